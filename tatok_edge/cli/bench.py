"""``tatok bench``: how long encoding and decoding take on this machine."""

from __future__ import annotations

import argparse

from tatok_edge.cli.options import add_model, model_choice, positive, sizes
from tatok_edge.cli.report import Report, print_json
from tatok_edge.evaluation.speed import bench, bench_stream

_TIMES = {
    "encode_ms": "encode, all tokens",
    "encode_1_ms": "1 token per patch",
    "encode_035_ms": "0.35 per patch",
    "decode_ms": "decode",
    "torch_encode_ms": "PyTorch encode",
    "torch_decode_ms": "PyTorch decode",
}
"""Rows of the table of single images."""


EXAMPLES = (
    "tatok bench",
    "tatok bench --sizes 640x480 --repeats 10",
    "tatok bench stream --sizes 320x240",
)
"""At the end of its help."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Defines the options."""
    add_model(parser)
    parser.add_argument(
        "what",
        nargs="?",
        choices=("images", "stream"),
        default="images",
        help="single images, or a stream of the synthetic camera (default: images)",
    )
    parser.add_argument(
        "--sizes",
        type=sizes,
        default=[(256, 256), (640, 480)],
        metavar="WxH,...",
        help="picture sizes (default: 256x256,640x480)",
    )
    parser.add_argument(
        "--repeats", type=positive, default=30, metavar="N", help="runs or frames per size (default: 30)"
    )


def run(args: argparse.Namespace) -> int:
    """Measures, and prints a table."""
    tokenizer = model_choice(args).load()
    measure, print_rows = (bench_stream, _print_stream) if args.what == "stream" else (bench, _print_images)
    report = measure(tokenizer, args.sizes, args.repeats)
    if args.json:
        print_json(report)
    else:
        print(f"{tokenizer.name}: {tokenizer.backend}")
        print_rows(report)
    return 0


def _print_images(report: Report) -> None:
    print(f"PyTorch: {report['torch']}")
    print(
        f"{'median ms (quartiles)':<24}"
        + "".join(f"{row['width']}x{row['height']}".rjust(26) for row in report["sizes"])
    )
    for key, label in _TIMES.items():
        if any(row[key] for row in report["sizes"]):
            print(f"{label:<24}" + "".join(_time(row[key]).rjust(26) for row in report["sizes"]))


def _print_stream(report: Report) -> None:
    """The stream beside a tokenizer that gives every patch of every frame one token."""
    print(
        f"{'synthetic camera':<14}{'stream ms':>26}{'fixed rate ms':>26}{'tokens':>10}{'fixed rate':>12}{'updated':>10}"
    )
    for row in report["sizes"]:
        print(
            f"{row['width']}x{row['height']}".ljust(16)
            + _time(row["stream_ms"]).rjust(26)
            + _time(row["fixed_ms"]).rjust(26)
            + f"{row['tokens_per_frame']:>10.0f}{row['fixed_tokens_per_frame']:>12}{row['updated_share']:>10.1%}"
        )


def _time(figure: dict[str, float] | None) -> str:
    return "-" if figure is None else f"{figure['median']:.2f} ({figure['q1']:.2f}-{figure['q3']:.2f})"
