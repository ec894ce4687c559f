"""The CUDA kernels against the memory bandwidth of the GPU, and the networks in PyTorch on CUDA.

``python benchmarks/cuda_kernels.py --out benchmarks/results``. The floor of a kernel is the number of bytes that it
must move, over the measured bandwidth of a copy; arrays that fit the cache can be faster. Without a GPU the kernels run
once, on small frames, in their emulation on the CPU, as a test of the script, and every figure is "not run".
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import common
import numpy as np
from numpy.typing import NDArray

from tatok_edge.errors import BackendError
from tatok_edge.evaluation.speed import machine, test_image
from tatok_edge.model.tokenizer import Tokenizer
from tatok_edge.runtime.cuda import kernels as cuda_kernels
from tatok_edge.runtime.cuda.device import Device, open_device
from tatok_edge.runtime.cuda.kernels import DtfLimits, Frames, Kernels, Scores
from tatok_edge.runtime.tensorrt.flavour import (
    Messages,
    find_flavour,
    make_builder,
    make_logger,
    make_network,
    make_parser,
    make_runtime,
    rtx_sms,
    set_targets,
)

LEVELS = (8, 8, 8, 5, 5, 5)
DEPTH = 4
CONTEXT = 96
REPEATS, LAUNCHES = 20, 10
DTF_TARGET_US = 60.0
GATHER_TARGET = 0.6
"""Goals: time of token filtering for 32 frames of 4,800 patches, and the gather's share of the copy bandwidth."""


class Memory:
    """Arrays of the kernels: on the GPU, or on the host for the emulation."""

    def __init__(self, device: Device | None) -> None:
        self.device = device
        self.kept: list[Any] = []

    def put(self, array: NDArray[Any]) -> int:
        array = np.ascontiguousarray(array)
        if self.device is None:
            self.kept.append(array)
            return int(array.ctypes.data)
        pointer = self.device.allocate(array.nbytes)
        self.kept.append(pointer)
        self.device.copy_to_device(pointer, array, 0)
        self.device.synchronize(0)
        return pointer

    def empty(self, shape: tuple[int, ...], dtype: Any) -> int:
        return self.put(np.zeros(shape, dtype))

    def clear(self) -> None:
        if self.device is not None:
            for pointer in self.kept:
                self.device.free(pointer)
        self.kept.clear()


@dataclass(frozen=True, slots=True)
class Case:
    """One kernel at one size."""

    name: str
    work: str
    nbytes: int
    """Least number of bytes that it reads and writes."""
    launch: Callable[[int], None]
    """Launches it on a stream."""


def arrays(memory: Memory, images: int, height: int, width: int) -> tuple[Frames, dict[str, int], int]:
    """Inputs and outputs of the kernels: the frames, the other arrays by name, and how many patches are kept."""
    rng = np.random.default_rng(0)
    rows, columns = height // 8, width // 8
    patches, cells = rows * columns, (rows // 4) * (columns // 4)
    total = images * patches
    picture = np.ascontiguousarray(test_image(width, height))
    frames = Frames.packed(memory.put(np.stack([picture] * images)), images, height, width)
    old = np.ascontiguousarray(np.stack([picture] * images) + rng.integers(0, 9, (images, height, width, 3), np.uint8))
    scores = -np.sort(-rng.gamma(0.7, 4.0, (images, patches, DEPTH)).astype(np.float32), axis=2)
    positions = np.flatnonzero(rng.random(total) < 0.5).astype(np.int32)
    kept = len(positions)
    tokens = np.repeat(positions, 2)  # two of each patch
    basis = rng.integers(-1000, 1000, (DEPTH, 6, 192)).astype(np.int16)
    named = {
        "scores": memory.put(scores),
        "half": memory.put(scores.astype(np.float16)),
        "indices": memory.empty((images, patches * DEPTH), np.int32),
        "depths": memory.empty((images, patches * DEPTH), np.int32),
        "counts": memory.empty((images,), np.int32),
        "flat": memory.empty((total * DEPTH,), np.int32),
        "flat_depths": memory.empty((total * DEPTH,), np.int32),
        "cu": memory.empty((images + 1,), np.int32),
        "cells": memory.empty((images, 192, cells), np.float32),
        "context": memory.put(rng.standard_normal((images, CONTEXT, patches), np.float32)),
        "mean": memory.put(rng.standard_normal((images, 192, patches), np.float32)),
        "positions": memory.put(positions),
        "features": memory.empty((kept, 960 + CONTEXT), np.float32),
        "pixels": memory.put(rng.uniform(-1, 1, (images, 192, patches)).astype(np.float32)),
        "frames": memory.empty((images, height, width, 3), np.uint8),
        "old": memory.put(old),
        "changes": memory.empty((images, 2, patches), np.int32),
        "basis": memory.put(basis),
        "activity": memory.empty((images, patches), np.int64),
        "weights": memory.empty((images, patches), np.float32),
        "tokens": memory.put(tokens),
        "codes": memory.put(rng.integers(0, LEVELS, (2 * kept, 6)).astype(np.int32)),
        "stacks": memory.put(rng.integers(0, LEVELS * DEPTH, (kept, 6 * DEPTH)).astype(np.int32)),
        "expected": memory.put(rng.uniform(-1, 1, (images, 6 * DEPTH, patches)).astype(np.float32)),
        "entropy": memory.put(rng.uniform(0, 16, (images, DEPTH, patches)).astype(np.float32)),
        "state": memory.empty((images, 8 * DEPTH, patches), np.float32),
        "log2": memory.put(-rng.exponential(3, (images, sum(LEVELS) * DEPTH, patches)).astype(np.float32)),
        "bits": memory.empty((kept, DEPTH), np.float32),
    }
    return frames, named, kept


def cases(kernels: Kernels, memory: Memory, images: int, height: int, width: int) -> list[Case]:
    """Every kernel for a batch of frames whose sides are multiples of 32."""
    patches, cells = (height // 8) * (width // 8), (height // 32) * (width // 32)
    total = images * patches
    frames, p, kept = arrays(memory, images, height, width)
    limits = DtfLimits.make(tau=0.6)
    frame_bytes = images * height * width * 3
    size = f"{images} x {width}x{height}"

    def dtf(name: str, half: bool) -> Callable[[int], None]:
        scores = Scores.packed(p[name], images, patches, DEPTH, half=half)
        return lambda s: kernels.dtf(scores, limits, p["indices"], p["depths"], p["counts"], stream=s)

    return [
        Case(
            "scores of stacks",
            size,
            frame_bytes + total * (192 + DEPTH) * 4,
            lambda s: kernels.patch_scores(frames, p["mean"], p["basis"], DEPTH, 6, p["scores"], stream=s),
        ),
        Case(
            "visual weights",
            size,
            frame_bytes + total * (2 * 8 + 4),
            lambda s: kernels.visual_weights(frames, p["activity"], p["weights"], stream=s),
        ),
        Case("token filtering, fp32", size, total * DEPTH * 12, dtf("scores", False)),
        Case("token filtering, fp16", size, total * DEPTH * 10, dtf("half", True)),
        Case(
            "flat positions",
            size,
            total * DEPTH * 16,
            lambda s: kernels.flatten(
                *(p["indices"], p["depths"], p["counts"], images, patches, DEPTH),
                *(p["flat"], p["flat_depths"], p["cu"]),
                stream=s,
            ),
        ),
        Case(
            "frame to thumbnail cells",
            size,
            frame_bytes + images * 192 * cells * 4,
            lambda s: kernels.image_to_cells(frames, p["cells"], stream=s),
        ),
        Case(
            "gather of features",
            f"{size}, {kept} rows",
            # Each row is written; it reads one column of the maps, and 64 pixels of the frame.
            kept * ((960 + CONTEXT) * 4 + (192 + CONTEXT) * 4 + 192 + 4),
            lambda s: kernels.gather_features(
                *(frames, p["context"], CONTEXT, p["mean"], p["positions"], kept, p["features"]), stream=s
            ),
        ),
        Case(
            "pixels to frame",
            size,
            images * 192 * patches * 4 + frame_bytes,
            lambda s: kernels.assemble(p["pixels"], images, height, width, p["frames"], stream=s),
        ),
        Case(
            "change detection",
            size,
            2 * frame_bytes + total * 8,
            lambda s: kernels.patch_change(frames, p["old"], p["changes"], stream=s),
        ),
        Case(
            "reference update",
            f"{size}, {kept} patches",
            kept * (2 * 192 + 4),
            lambda s: kernels.update_reference(frames, p["old"], p["positions"], kept, stream=s),
        ),
        Case(
            "scatter of codes",
            f"{size}, {2 * kept} codes",
            total * (8 + 7) * DEPTH * 4 + 2 * kept * (7 * 4 + 7 * 4),
            lambda s: kernels.decoder_state(
                *(p["codes"], p["tokens"], 2 * kept, p["expected"], p["entropy"]),
                *(images, patches, DEPTH, LEVELS, p["state"]),
                stream=s,
            ),
        ),
        Case(
            "information",
            f"{size}, {kept} stacks",
            kept * (DEPTH * (6 * 4 + 6 * 4 + 4) + 4),
            lambda s: kernels.information(
                *(p["log2"], p["stacks"], p["positions"], kept),
                *(images, patches, DEPTH, DEPTH, LEVELS, p["bits"]),
                stream=s,
            ),
        ),
    ]


def median_us(device: Device, stream: int, launch: Callable[[int], None]) -> float:
    """Median time of one launch in microseconds; with CUDA graphs of several launches if possible (no launch cost)."""

    def many() -> None:
        for _ in range(LAUNCHES):
            launch(stream)

    many()
    device.synchronize(stream)
    work = many
    if device.has_graphs:
        graph = device.capture(stream, many)

        def work() -> None:
            graph.launch(stream)

    times = [device.elapsed(stream, work) for _ in range(REPEATS + 3)][3:]
    return float(np.median(times)) * 1e3 / LAUNCHES


def copy_bandwidth(device: Device, stream: int) -> float:
    """Bytes read and written per second by a copy of 256 MiB on the device."""
    size = 256 << 20
    source, target = device.allocate(size), device.allocate(size)
    try:
        device.fill(source, 1, size, stream)
        best = median_us(device, stream, lambda s: device.copy_on_device(target, source, size, s))
    finally:
        device.free(source)
        device.free(target)
    return 2 * size / (best * 1e-6)


def torch_rows(batches: tuple[int, ...], width: int, height: int, run: bool) -> list[dict[str, Any]]:
    """Encoding and decoding in eager PyTorch on CUDA, ms per frame; rows that cannot run are "not run"."""
    rows = [
        {"what": f"PyTorch CUDA {name}, batch {batch}", "work": f"{width}x{height}", "ms_per_frame": "not run"}
        for batch in batches
        for name in ("encode", "decode")
    ]
    if not run:
        return rows
    try:
        import torch
    except ImportError:
        return rows
    if not torch.cuda.is_available():
        return rows
    from tatok_edge.training.bundle import load_from_bundle
    from tatok_edge.training.model import decoder_state

    with Tokenizer.load() as tokenizer:
        model = load_from_bundle(tokenizer.bundle).cuda().to(memory_format=torch.channels_last)
    image = torch.from_numpy(np.ascontiguousarray(test_image(width, height))).permute(2, 0, 1)[None].float().cuda()
    for batch in batches:
        pixels = (image / 127.5 - 1).repeat(batch, 1, 1, 1)
        with torch.inference_mode():
            encoded = model.encode(pixels)
            keep = torch.ones_like(encoded.information)

            def decode(encoded: Any = encoded, keep: Any = keep) -> object:
                prior = model.context(model.fsq.values(encoded.global_codes, 1))
                state = decoder_state(encoded.values, keep, prior.expected, prior.entropy)
                return model.decoder(state, prior.context, prior.mean)

            calls = {"encode": lambda pixels=pixels: model.encode(pixels), "decode": decode}
            for name, call in calls.items():
                times = []
                for _ in range(REPEATS + 3):
                    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                    start.record()
                    call()
                    end.record()
                    end.synchronize()
                    times.append(start.elapsed_time(end) / batch)
                for row in rows:
                    if row["what"] == f"PyTorch CUDA {name}, batch {batch}":
                        row["ms_per_frame"] = round(float(np.median(times[3:])), 3)
    return rows


def rtx_status(device: Device) -> str:
    """Whether TensorRT-RTX builds and runs an engine on this GPU."""
    try:
        flavour = find_flavour("rtx")
        if device.sm not in rtx_sms(flavour):
            return f"{flavour.title} does not build for SM {device.sm}; it does for {', '.join(rtx_sms(flavour))}"
        from tatok_edge.export.engines.dtf_onnx import dtf_model

        messages = Messages()
        logger = make_logger(flavour, messages)
        builder = make_builder(flavour, logger, messages)
        network = make_network(flavour, builder)
        model = dtf_model(DtfLimits.make(tau=0.6), form="onnx", depth=DEPTH, shape=(1, 1024))
        if not make_parser(flavour, network, logger).parse(model.SerializeToString()):
            return f"{flavour.title} does not parse the filter: {messages.first('no message')}"
        config = builder.create_builder_config()
        set_targets(flavour, config, (device.sm,))
        plan = builder.build_serialized_network(network, config)
        if plan is None:
            return f"{flavour.title} builds no engine: {messages.first('no message')}"
        engine = make_runtime(flavour, logger, messages).deserialize_cuda_engine(plan)
        return f"{flavour.title} {'runs' if engine is not None else 'does not run: ' + messages.first('no message')}"
    except (BackendError, ImportError) as error:
        return str(error)


def measured(device: Device) -> dict[str, Any]:
    """The figures of this GPU."""
    try:
        kernels = cuda_kernels.load()
    except BackendError:
        kernels = cuda_kernels.load(cuda_kernels.build([device.sm]))
    stream, memory = device.create_stream(), Memory(device)
    bandwidth = copy_bandwidth(device, stream)
    rows = []
    for images in (1, 32):
        for case in cases(kernels, memory, images, 480, 640):
            time = median_us(device, stream, case.launch)
            floor = case.nbytes / bandwidth * 1e6
            share = round(floor / time, 3)
            row = {"kernel": case.name, "work": case.work, "us": round(time, 2), "floor_us": round(floor, 2)}
            rows.append(row | {"share_of_copy_bandwidth": share})
        memory.clear()
    return {
        "device": f"{device.name}, SM {device.sm}",
        "through": device.implementation,
        "copy_GB_per_s": round(bandwidth / 1e9, 1),
        "kernels": rows,
        "targets": targets(rows),
        "networks": torch_rows((1, 32), 640, 480, True),
        "tensorrt_rtx": rtx_status(device),
        "machine": machine(),
    }


def targets(rows: list[dict[str, Any]]) -> dict[str, bool]:
    """Whether the figures reach the goals."""
    batch = {row["kernel"]: row for row in rows if row["work"].startswith("32 x")}
    return {
        f"token filtering of 32 frames of 4,800 patches within {DTF_TARGET_US:.0f} us": (
            batch["token filtering, fp32"]["us"] <= DTF_TARGET_US
        ),
        f"gather at {GATHER_TARGET:.0%} of the copy bandwidth or more": (
            batch["gather of features"]["share_of_copy_bandwidth"] >= GATHER_TARGET
        ),
    }


def not_run(reason: str) -> dict[str, Any]:
    """The same tables without figures, after one small run of every kernel in its emulation."""
    with tempfile.TemporaryDirectory() as folder:
        kernels = Kernels(cuda_kernels.build_emulation(Path(folder) / "emulated.so"))
        memory = Memory(None)
        dry = cases(kernels, memory, 2, 64, 96)
        for case in dry:
            case.launch(0)
        names = [case.name for case in dry]
        memory.clear()
    empty = {"us": "not run", "floor_us": "not run", "share_of_copy_bandwidth": "not run"}
    return {
        "device": "none",
        "reason": reason,
        "copy_GB_per_s": "not run",
        "kernels": [{"kernel": n, "work": f"{b} x 640x480"} | empty for b in (1, 32) for n in names],
        "targets": {},
        "networks": torch_rows((1, 32), 640, 480, False),
        "tensorrt_rtx": "not run",
        "machine": machine(),
    }


def table(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    lines = ["# CUDA kernels", "", f"Device: {results['device']}."]
    if results["device"] == "none":
        lines += ["", f"Not run: {results['reason']}. Every kernel ran once in its emulation on the CPU."]
    else:
        lines += [
            "",
            f"Copy bandwidth {results['copy_GB_per_s']} GB/s (read and written), through {results['through']}.",
        ]
    lines += ["", "| kernel | work | us | floor us | share of copy bandwidth |", "|---|---|---|---|---|"]
    for row in results["kernels"]:
        values = (row["kernel"], row["work"], row["us"], row["floor_us"], row["share_of_copy_bandwidth"])
        lines.append("| " + " | ".join(map(str, values)) + " |")
    for name, met in results["targets"].items():
        lines += ["", f"- {name}: {'yes' if met else 'no'}"]
    lines += ["", "| networks | size | ms per frame |", "|---|---|---|"]
    lines += [f"| {row['what']} | {row['work']} | {row['ms_per_frame']} |" for row in results["networks"]]
    lines += ["", f"TensorRT-RTX on this GPU: {results['tensorrt_rtx']}."]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = common.parser(__doc__)
    options = parser.parse_args()
    try:
        device = open_device()
    except BackendError as error:
        results = not_run(str(error))
    else:
        with device:
            results = measured(device)
    common.publish("cuda_kernels", results, table(results), options.out)


if __name__ == "__main__":
    main()
