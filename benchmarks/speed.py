"""Speed of every part against this machine's matrix products and against eager PyTorch.

Run it on a quiet machine: ``python benchmarks/speed.py --out benchmarks/results``. Needs the ``export``
extra: onnx to count operations, PyTorch to compare with.
"""

from __future__ import annotations

import io
import os
import time
from functools import partial
from typing import Any

import common
import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, shape_inference

from tatok_edge.evaluation.speed import bench, machine, measure, test_image
from tatok_edge.geometry import cell_grid, patch_grid
from tatok_edge.model.bundle import GRAPHS, INT8, PRECISIONS, Bundle
from tatok_edge.model.tokenizer import Tokenizer
from tatok_edge.tokens.budget import TokenBudget

SIZES = ((256, 256), (640, 480))
NETWORKS = set(GRAPHS)
REFINE_PASSES = (0, 1, 2, 4, 8)


def gemm_rate(threads: int) -> float:
    """GFLOP/s of a 1536x1536 fp32 matrix product in ONNX Runtime, the best of several."""
    side = 1536
    node = helper.make_node("MatMul", ["a", "b"], ["c"])
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [side, side]) for name in "abc"]
    model = helper.make_model(helper.make_graph([node], "gemm", values[:2], values[2:]), ir_version=9)
    model.opset_import[0].version = 17
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    a = np.random.default_rng(0).standard_normal((side, side), np.float32)
    best = 0.0
    for _ in range(12):
        start = time.perf_counter()
        session.run(None, {"a": a, "b": a})
        best = max(best, 2 * side**3 / (time.perf_counter() - start) / 1e9)
    return best


def count_operations(graph: bytes, inputs: dict[str, tuple[int, ...]]) -> float:
    """Multiplications and additions (two per product) of the convolutions and matrix products of a graph."""
    model = onnx.load_model_from_string(graph)
    for value in model.graph.input:
        for axis, size in zip(value.type.tensor_type.shape.dim, inputs[value.name], strict=True):
            axis.dim_value = size
    model = shape_inference.infer_shapes(model, data_prop=True)
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in model.graph.value_info}
    shapes |= {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in model.graph.output}
    weights = {w.name: list(w.dims) for w in model.graph.initializer}
    # Constants may also stand in Constant nodes.
    for node in model.graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            weights[node.output[0]] = list(node.attribute[0].t.dims)
    total = 0.0
    for node in model.graph.node:
        if node.op_type == "Conv":
            weight = weights.get(node.input[1]) or shapes[node.input[1]]
            total += 2.0 * float(np.prod(shapes[node.output[0]])) * float(np.prod(weight[1:]))
        elif node.op_type in ("Gemm", "MatMul"):
            weight = weights.get(node.input[1]) or shapes[node.input[1]]
            inner = float(np.prod(weight)) / shapes[node.output[0]][-1]
            total += 2.0 * float(np.prod(shapes[node.output[0]])) * inner
    return total


def graph_inputs(tokenizer: Tokenizer, width: int, height: int) -> dict[str, dict[str, np.ndarray]]:
    """Real inputs of every graph for one picture, all patches with all their tokens."""
    from tatok_edge.runtime.cpu import kernels

    image = test_image(width, height)
    cells = kernels.image_to_cells(image)[None]
    run = tokenizer.networks.session.run
    codes = run("global_encoder", {"cells": cells})["codes"]
    of_cells = dict(run("cell_context", {"codes": codes}))
    prior = {"mean": of_cells["mean"], **run("context", {"coarse": of_cells["coarse"]})}
    flat = {name: value.reshape(value.shape[1], -1) for name, value in prior.items()}
    rows, columns = patch_grid(width, height)
    positions = np.arange(rows * columns, dtype=np.int32)
    features = kernels.gather_features(image, False, flat["context"], flat["mean"], positions, positions, columns)
    stacks = run("patch_encoder", {"features": features})["codes"]
    codes_of_tokens = np.ascontiguousarray(stacks.reshape(-1, len(tokenizer.levels)))
    every_token = np.repeat(positions, tokenizer.depth)
    state = kernels.decoder_state(codes_of_tokens, every_token, flat["expected"], flat["entropy"], tokenizer.levels)
    return {
        "global_encoder": {"cells": cells},
        "cell_context": {"codes": codes},
        "context": {"coarse": of_cells["coarse"]},
        "patch_encoder": {"features": features},
        "decoder": {
            "state": state.reshape(1, -1, rows, columns),
            "context": prior["context"],
            "mean": prior["mean"],
        },
    }


def eager_graphs(tokenizer: Tokenizer) -> dict[str, Any] | None:
    """The networks in eager PyTorch, with the inputs and outputs of the graphs."""
    try:
        import torch

        from tatok_edge.training.bundle import load_from_bundle
    except ImportError:
        return None
    torch.set_num_threads(tokenizer.backend.threads)
    model = load_from_bundle(tokenizer.bundle).to(memory_format=torch.channels_last)
    width = tokenizer.bundle.context_width

    def patch_encoder(features: Any) -> Any:
        """The codes of whole stacks, as the graph gives them."""
        windows, context, mean = features[:, :768], features[:, 768 : 768 + width], features[:, 768 + width :]
        hidden = model.patch_encoder.hidden(windows, context, mean)
        left = windows[:, model.patch_encoder.centre] - mean
        codes = [model.fsq.codes(model.patch_encoder.first(left, hidden), 1)]
        values = [model.fsq.values(codes[0], 1)]
        for number, refinement in enumerate(model.refinements):
            left = left - model.local[number](values[-1])
            codes.append(model.fsq.codes(refinement(left, hidden, torch.cat(values, -1)), 1))
            values.append(model.fsq.values(codes[-1], 1))
        return torch.cat(codes, 1)

    calls = {
        "global_encoder": lambda cells: model.fsq.codes(model.global_encoder(cells), 1),
        "cell_context": lambda codes: model.context.cells(model.fsq.values(codes.float(), 1)),
        "context": model.context.patches,
        "patch_encoder": patch_encoder,
        "decoder": lambda state, context, mean: model.decoder(state, context, mean),
    }

    def wrap(call: Any) -> Any:
        def run(inputs: dict[str, np.ndarray]) -> Any:
            with torch.inference_mode():
                return call(*(torch.from_numpy(value) for value in inputs.values()))

        return run

    return {name: wrap(call) for name, call in calls.items()}


def stage_times(tokenizer: Tokenizer, width: int, height: int, budget: TokenBudget, repeats: int) -> dict[str, float]:
    """Median ms per stage of encoding and decoding one picture."""
    image = test_image(width, height)
    frame = tokenizer.encode(image, budget=budget)
    rows: dict[str, list[float]] = {}
    for _ in range(repeats):
        encoded = tokenizer.encode_detailed(image, budget=budget).seconds
        decoded = tokenizer.decode_detailed(frame)[1]
        for prefix, seconds in (("encode", encoded), ("decode", decoded)):
            for name, value in seconds.items():
                rows.setdefault(f"{prefix}/{name}", []).append(1e3 * value)
    return {name: float(np.median(values)) for name, values in rows.items()}


def openvino_decoders(bundle: Bundle, threads: int) -> dict[str, Any]:
    """The decoder in fp32 and int8 in OpenVINO, if it is installed, for comparison."""
    try:
        import openvino
    except ImportError:
        return {}
    core = openvino.Core()
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "f32",  # and not bf16, which it would take by itself
    }
    requests = {}
    for precision in PRECISIONS:
        model = core.read_model(io.BytesIO(bundle.graphs(precision)["decoder"]))
        requests[precision] = core.compile_model(model, "CPU", settings).create_infer_request()

    def wrap(request: Any) -> Any:
        return lambda feeds: request.infer(feeds, share_inputs=True, share_outputs=True)

    return {
        f"OpenVINO {openvino.__version__.split('-')[0]}, {precision}": wrap(request)
        for precision, request in requests.items()
    }


def time_decoders(tokenizer: Tokenizer, repeats: int) -> list[dict[str, Any]]:
    """The decoder by engine and precision, and encoding and decoding in fp32 and int8; a row per size."""
    threads = tokenizer.backend.threads
    others = openvino_decoders(tokenizer.bundle, threads)
    rows = []
    with Tokenizer.load(tokenizer.bundle.path, backend="onnxruntime", threads=threads, precision="int8") as quantized:
        engine = f"ONNX Runtime {tokenizer.backend.version}"
        for width, height in SIZES:
            feeds = graph_inputs(tokenizer, width, height)["decoder"]
            frame = tokenizer.encode(test_image(width, height))
            calls = {
                f"{engine}, fp32": partial(tokenizer.networks.session.run, "decoder"),
                f"{engine}, int8": partial(quantized.networks.session.run, "decoder"),
                **others,
            }
            rows.append(
                {
                    "width": width,
                    "height": height,
                    "decoders": {name: measure(partial(call, feeds), repeats) for name, call in calls.items()},
                    "decode_ms": measure(partial(tokenizer.decode, frame), repeats),
                    "decode_int8_ms": measure(partial(quantized.decode, frame), repeats),
                    "encode_ms": measure(partial(tokenizer.encode, test_image(width, height)), repeats),
                    "encode_int8_ms": measure(partial(quantized.encode, test_image(width, height)), repeats),
                }
            )
    return rows


def time_refining(tokenizer: Tokenizer, repeats: int) -> list[dict[str, Any]]:
    """Time of encoding a third of the tokens by number of passes, and of decoding; a row per size."""
    rows = []
    for width, height in SIZES:
        image = test_image(width, height)
        frame = tokenizer.encode(image, budget=TokenBudget(keep=0.35))
        encode = {
            str(passes): measure(
                partial(tokenizer.encode, image, budget=TokenBudget(keep=0.35, refine=passes)), repeats
            )
            for passes in REFINE_PASSES
        }
        decode = measure(partial(tokenizer.decode, frame), repeats)
        rows.append({"width": width, "height": height, "encode_ms": encode, "decode_ms": decode})
    return rows


def run(tokenizer: Tokenizer, repeats: int) -> dict[str, Any]:
    """All figures."""
    rate = gemm_rate(tokenizer.backend.threads)
    eager = eager_graphs(tokenizer)
    report: dict[str, Any] = {
        "machine": machine(),
        "tag": tokenizer.tag.hex(),
        "load_average": os.getloadavg()[0],
        "backend": str(tokenizer.backend),
        "gemm_gflops": round(rate, 1),
        "sizes": [],
    }
    for width, height in SIZES:
        inputs = graph_inputs(tokenizer, width, height)
        graphs = {}
        for name in GRAPHS:
            feeds = inputs[name]
            ours = measure(lambda name=name, feeds=feeds: tokenizer.networks.session.run(name, feeds), repeats)
            operations = count_operations(
                tokenizer.bundle.read(name), {key: value.shape for key, value in feeds.items()}
            )
            row = {
                "ms": ours,
                "gflop": round(operations / 1e9, 4),
                "gflops": round(operations / ours["median"] / 1e6, 1),
            }
            row["share_of_gemm"] = round(row["gflops"] / rate, 3)
            if eager is not None:
                row["torch_ms"] = measure(lambda name=name, feeds=feeds: eager[name](feeds), repeats)
            graphs[name] = row
        stages = stage_times(tokenizer, width, height, TokenBudget(keep=0.35), repeats)
        encode = {name[7:]: value for name, value in stages.items() if name.startswith("encode/")}
        total = sum(encode.values())
        other = sum(value for name, value in encode.items() if name not in NETWORKS)
        report["sizes"].append(
            {
                "width": width,
                "height": height,
                "cells": cell_grid(width, height),
                "graphs": graphs,
                "stages_ms": {name: round(value, 3) for name, value in stages.items()},
                "not_network_share_of_encode": round(other / total, 4),
                "dtf_share_of_encode": round(encode["dtf"] / total, 4),
            }
        )
    whole = bench(tokenizer, SIZES, repeats)
    for row, timed in zip(report["sizes"], whole["sizes"], strict=True):
        row["whole"] = timed
        row["speedup_of_035"] = round(timed["encode_ms"]["median"] / timed["encode_035_ms"]["median"], 3)
    report["torch"] = whole["torch"]
    if INT8 in tokenizer.bundle.manifest:
        report["int8"] = time_decoders(tokenizer, repeats)
    report["refine"] = time_refining(tokenizer, max(5, repeats // 4))
    return report


def markdown(report: dict[str, Any]) -> str:
    """The report as Markdown tables."""
    lines = [
        f"{report['machine']['cpu']}, {report['machine']['cores']} cores; {report['backend']}; "
        f"fp32 matrix product {report['gemm_gflops']:.0f} GFLOP/s; {report['torch']}.",
        "",
        "| size | graph | ms (quartiles) | GFLOP/s | share of GEMM | eager PyTorch ms |",
        "|---|---|---|---|---|---|",
    ]
    for size in report["sizes"]:
        for name, row in size["graphs"].items():
            ms = row["ms"]
            eager = f"{row['torch_ms']['median']:.2f}" if "torch_ms" in row else ""
            lines.append(
                f"| {size['width']}x{size['height']} | {name} | {ms['median']:.2f} ({ms['q1']:.2f} to {ms['q3']:.2f}) "
                f"| {row['gflops']:.0f} | {row['share_of_gemm']:.0%} | {eager} |"
            )
    lines += [
        "",
        "| size | encode, all tokens | 1 token per patch | 0.35 per patch | decode | PyTorch encode | PyTorch decode "
        "| not networks | DTF |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for size in report["sizes"]:
        whole = size["whole"]

        def ms(key: str, whole: dict[str, Any] = whole) -> str:
            return f"{whole[key]['median']:.1f} ms" if whole[key] else ""

        lines.append(
            f"| {size['width']}x{size['height']} | {ms('encode_ms')} | {ms('encode_1_ms')} | {ms('encode_035_ms')} "
            f"({size['speedup_of_035']:.2f}x) | {ms('decode_ms')} | {ms('torch_encode_ms')} "
            f"| {ms('torch_decode_ms')} | "
            f"{size['not_network_share_of_encode']:.1%} | {size['dtf_share_of_encode']:.2%} |"
        )
    if "int8" in report:
        lines += [
            "",
            "In int8 (`--precision int8`), all tokens; the first columns are the decoder alone:",
            "",
            "| size | " + " | ".join(f"{name}, ms" for name in report["int8"][0]["decoders"]) + " | decode, fp32 "
            "| decode, int8 | encode, fp32 | encode, int8 | encode + decode, fp32 to int8 |",
            "|---|" + "---|" * (len(report["int8"][0]["decoders"]) + 5),
        ]
        for row in report["int8"]:
            fp32, int8 = (row[f"decode_{name}ms"]["median"] for name in ("", "int8_"))
            encode, encode_int8 = (row[f"encode_{name}ms"]["median"] for name in ("", "int8_"))
            decoders = " | ".join(f"{value['median']:.2f}" for value in row["decoders"].values())
            lines.append(
                f"| {row['width']}x{row['height']} | {decoders} | {fp32:.1f} ms | {int8:.1f} ms ({fp32 / int8:.2f}x) "
                f"| {encode:.1f} ms | {encode_int8:.1f} ms ({encode / encode_int8:.2f}x) "
                f"| {(encode + fp32) / (encode_int8 + int8):.2f}x |"
            )
    lines += [
        "",
        "Encoding 35 % of the tokens with `--refine PASSES`, in ms, beside decoding them:",
        "",
        "| size | " + " | ".join(f"{passes} passes" for passes in REFINE_PASSES) + " | decode |",
        "|---" * (len(REFINE_PASSES) + 2) + "|",
    ]
    for row in report["refine"]:
        cells = [f"{row['encode_ms'][str(passes)]['median']:.1f}" for passes in REFINE_PASSES]
        cells.append(f"{row['decode_ms']['median']:.1f}")
        lines.append(f"| {row['width']}x{row['height']} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Command line."""
    parser = common.parser(__doc__)
    parser.add_argument("--model", default="tatok-s8")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=40)
    args = parser.parse_args()
    with Tokenizer.load(args.model, threads=args.threads) as tokenizer:
        report = run(tokenizer, args.repeats)
    common.publish("speed", report, markdown(report), args.out)


if __name__ == "__main__":
    main()
