"""Encoding and decoding on a GPU: PyTorch on CUDA, and TensorRT and TensorRT-RTX where they run.

``python benchmarks/gpu.py --out benchmarks/results``. Time per frame at batch 1 and 32 in eager PyTorch; for each
flavour of TensorRT whether it builds, loads and runs the model here, and the time of the whole tokenizer with it. Rows
that cannot run are "not run", with the reason. ``--device cpu --repeats 1`` is a dry run of PyTorch without a GPU.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import common
import numpy as np
from numpy.typing import NDArray

from tatok_edge.errors import TaTokError
from tatok_edge.evaluation.speed import machine, test_image
from tatok_edge.export.engines.profiles import FrameRange, ProfileSet
from tatok_edge.export.engines.tensorrt import build_engines
from tatok_edge.model.bundle import Bundle, open_bundle
from tatok_edge.model.tokenizer import Tokenizer
from tatok_edge.runtime.tensorrt.flavour import FLAVOURS, find_flavour, gpu_architecture, target_sms

NOT_RUN = "not run"
WARMUP = 3
BATCHES = (1, 32)

Device = Literal["auto", "cuda", "cpu"]
Row = dict[str, Any]


def row(what: str, batch: int, size: str, milliseconds: float | None = None, note: str = "") -> Row:
    """One row of the table; a row without a time was not run."""
    value = NOT_RUN if milliseconds is None else round(milliseconds, 3)
    return {"what": what, "batch": batch, "size": size, "ms_per_frame": value, "note": note}


def median_ms(call: Callable[[], object], synchronize: Callable[[], object], repeats: int) -> float:
    """Median wall time of ``call`` until all of its work is done."""
    times = []
    for number in range(WARMUP + repeats):
        synchronize()
        start = time.perf_counter()
        call()
        synchronize()
        if number >= WARMUP or repeats == 1:
            times.append(1e3 * (time.perf_counter() - start))
    return float(np.median(times))


# --- PyTorch --------------------------------------------------------------------------------------


def torch_device(wanted: Device) -> tuple[str | None, str]:
    """Name of the PyTorch device, or None and the reason."""
    try:
        import torch
    except ImportError:
        return None, "PyTorch is not installed: pip install 'tatok-edge[train]'"
    if wanted == "cpu":
        return "cpu", ""
    if not torch.cuda.is_available():
        return None, f"PyTorch {torch.__version__} finds no CUDA GPU"
    return "cuda", ""


def torch_rows(
    bundle: Bundle, image: NDArray[np.uint8], batches: Sequence[int], device: str | None, why: str, repeats: int
) -> list[Row]:
    """All tokens of frames and back, in eager PyTorch in fp32."""
    size = f"{image.shape[1]}x{image.shape[0]}"
    names = ("PyTorch encode", "PyTorch decode")
    if device is None:
        return [row(name, batch, size, note=why) for batch in batches for name in names]
    import torch

    from tatok_edge.training.bundle import load_from_bundle

    model = load_from_bundle(bundle).to(device).to(memory_format=torch.channels_last)
    pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None].to(device).float() / 127.5 - 1
    rows = []

    def synchronize() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    for batch in batches:
        try:
            with torch.inference_mode():
                frames = pixels.repeat(batch, 1, 1, 1)
                encoded = model.encode(frames)
                keep = torch.ones_like(encoded.information)
                times = (
                    median_ms(lambda frames=frames: model.encode(frames), synchronize, repeats),
                    median_ms(lambda e=encoded, k=keep: model.decode(e, k), synchronize, repeats),
                )
            rows += [row(name, batch, size, ms / batch) for name, ms in zip(names, times, strict=True)]
        except torch.OutOfMemoryError:
            rows += [row(name, batch, size, note="out of memory") for name in names]
    return rows


# --- TensorRT -------------------------------------------------------------------------------------


def tensorrt_rows(bundle: Bundle, image: NDArray[np.uint8], batches: Sequence[int], repeats: int) -> list[Row]:
    """The whole tokenizer, uint8 frames to tokens and back, for every flavour of TensorRT in fp16."""
    rows = []
    for flavour, facts in FLAVOURS.items():
        try:
            rows += _flavour_rows(bundle, image, batches, repeats, flavour, facts.backend)
        except (TaTokError, ImportError) as error:
            why = " ".join(str(error).split())
            size = f"{image.shape[1]}x{image.shape[0]}"
            names = [f"{facts.title} {name}" for name in ("encode", "decode")]
            rows += [row(name, batch, size, note=why) for batch in batches for name in names]
    return rows


def _flavour_rows(
    bundle: Bundle, image: NDArray[np.uint8], batches: Sequence[int], repeats: int, flavour: str, backend: str
) -> list[Row]:
    found = find_flavour(flavour)
    height, width = image.shape[:2]
    most = max(batches)
    patches = height * width // 64
    profiles = ProfileSet(
        tuple(sorted({patches // 4, patches, patches * most})),
        (FrameRange((1, 1, most), (height, height, height), (width, width, width)),),
    )
    sms = target_sms(found, None, gpu_architecture())
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        build_engines(bundle, found, profiles, precision="fp16", sms=sms, folder=Path(folder), say=print)
        note = f"{found.title}; engines built in {time.perf_counter() - start:.1f} s"
        rows = []
        with Tokenizer.load(bundle.path, backend=backend, engines=folder) as tokenizer:
            for batch in batches:
                frames = [image] * batch
                encoded = tokenizer.encode_batch(frames)
                times = {
                    "encode": median_ms(lambda f=frames: tokenizer.encode_batch(f), lambda: None, repeats),
                    "decode": median_ms(lambda e=encoded: tokenizer.decode(e), lambda: None, repeats),
                }
                size = f"{width}x{height}"
                rows += [row(f"{found.title} {name}", batch, size, ms / batch, note) for name, ms in times.items()]
    return rows


# --- report ---------------------------------------------------------------------------------------


def measured(
    bundle: Bundle, size: tuple[int, int], batches: Sequence[int], wanted: Device, repeats: int
) -> dict[str, Any]:
    """All rows, and the machine."""
    image = test_image(*size)
    device, why = torch_device(wanted)
    name = "none"
    if device == "cpu":
        name = "the CPU (a dry run; these are no figures of a GPU)"
    elif device == "cuda":
        import torch

        name = f"{torch.cuda.get_device_name()}, SM {'.'.join(map(str, torch.cuda.get_device_capability()))}"
    rows = torch_rows(bundle, image, batches, device, why, repeats)
    rows += tensorrt_rows(bundle, image, batches, repeats)
    return {
        "device": name,
        "model": bundle.name,
        "tag": bundle.tag.hex(),
        "repeats": repeats,
        "rows": rows,
        "machine": machine(),
    }


def markdown(report: dict[str, Any]) -> str:
    """The table."""
    lines = [
        f"Device: {report['device']}. {report['model']} `{report['tag']}`, all tokens; median of {report['repeats']} "
        "runs. PyTorch: the networks in eager fp32, frames on the device; TensorRT: the tokenizer in fp16, frames in "
        "the memory of the host.",
        "",
        "| what | size | batch | ms per frame | |",
        "|---|---|---|---|---|",
    ]
    for one in report["rows"]:
        lines.append(f"| {one['what']} | {one['size']} | {one['batch']} | {one['ms_per_frame']} | {one['note']} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Command line."""
    parser = common.parser(__doc__)
    parser.add_argument("--model", default="tatok-s8")
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto", help="of PyTorch (default: a GPU)")
    parser.add_argument("--size", default="640x480", metavar="WxH", help="multiples of 32 (default: 640x480)")
    parser.add_argument("--batches", default=",".join(map(str, BATCHES)), metavar="N,...")
    parser.add_argument("--repeats", type=int, default=20)
    options = parser.parse_args()
    width, height = map(int, options.size.split("x"))
    if width % 32 or height % 32:
        parser.error(f"--size must be multiples of 32, got {options.size}")
    batches = tuple(map(int, options.batches.split(",")))
    report = measured(open_bundle(options.model), (width, height), batches, options.device, options.repeats)
    common.publish("gpu", report, markdown(report), options.out)


if __name__ == "__main__":
    main()
