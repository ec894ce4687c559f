"""``tatok build``: TensorRT engines from a model bundle."""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tatok_edge.cli.options import UsageError, add_bundle, add_choice, bundle_name, words
from tatok_edge.cli.progress import StageProgress
from tatok_edge.cli.report import Report, print_json
from tatok_edge.errors import InputError
from tatok_edge.export.engines.profiles import (
    CountAs,
    ProfileSet,
    TokenCounts,
    calibrate,
    count_tokens,
    default_profiles,
    load_profiles,
)
from tatok_edge.export.engines.tensorrt import BuiltEngine, build_engines, dtf_graph
from tatok_edge.model.bundle import Bundle, open_bundle
from tatok_edge.model.tokenizer import Tokenizer
from tatok_edge.runtime.tensorrt.flavour import Flavour, find_flavour
from tatok_edge.runtime.tensorrt.manifest import manifest_path
from tatok_edge.runtime.tensorrt.store import cache_folder
from tatok_edge.sources.open import open_source
from tatok_edge.tokens.budget import TokenBudget

TAU = 0.5
"""Share of the score that single frames keep where none is given."""
CALIBRATION_FRAMES = 600
"""Frames of each video that a calibration reads: 20 s of most cameras."""
PICTURES_PER_VIDEO = 4
"""Frames of each video on which fp16 is compared with fp32."""


EXAMPLES = (
    "tatok build --precision fp16",
    "tatok build tatok-s8 --flavour rtx --sm 8.9 -o engines",
    "tatok build --calibrate clip.mp4",
)
"""At the end of its help."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Defines the options."""
    add_bundle(parser)
    text = "TensorRT, or TensorRT-RTX, which also builds without a GPU (default: the installed one)"
    add_choice(parser, "--flavour", ("auto", "trt", "rtx"), text)
    add_choice(parser, "--precision", ("fp16", "fp32"), "precision (default: fp16)")
    parser.add_argument(
        "--profiles",
        default="auto",
        metavar="FILE",
        help="JSON file of frame sizes and token counts, or 'auto': pictures up to 1920x1088 (default)",
    )
    parser.add_argument(
        "--calibrate",
        nargs="+",
        default=[],
        metavar="VIDEO",
        help="fit frame sizes and token counts to these videos, one per camera",
    )
    text = "count the tokens of a stream of each video, or of every frame by itself (default: stream)"
    add_choice(parser, "--calibrate-as", ("stream", "frames"), text)
    parser.add_argument(
        "--tau",
        type=float,
        metavar="SHARE",
        help="share of the score that --calibrate and --dtf keep, above 0 to 1 (default: 0.5; in streams 1)",
    )
    parser.add_argument("--sm", type=words, metavar="SM,...", help="GPU architectures (default: this machine's GPU)")
    parser.add_argument(
        "--dtf", choices=("plugin", "onnx"), help="also build an engine for token filtering, with a plugin or without"
    )
    parser.add_argument("-o", "--output", metavar="DIR", help="folder of the engines (default: the user's cache)")
    parser.add_argument("--ignore-memory", action="store_true", help="build even with too little free memory")


def run(args: argparse.Namespace) -> int:
    """Builds the engines that are missing, and lists all engines of the model."""
    if args.tau is not None and not 0 < args.tau <= 1:
        raise UsageError(f"--tau must be above 0 and at most 1, got {args.tau:g}")
    start = time.perf_counter()
    bundle = open_bundle(bundle_name(args))
    flavour = find_flavour(args.flavour)
    profiles = choose_profiles(bundle, args.profiles, args.calibrate, args.calibrate_as, args.tau)
    extra = {}
    if args.dtf is not None:
        extra["dtf"] = dtf_graph(flavour, args.dtf, TAU if args.tau is None else args.tau, profiles, depth=bundle.depth)
    folder = cache_folder() if args.output in (None, "cache") else Path(args.output)
    with StageProgress() as progress:

        def say_line(text: str) -> None:
            progress.clear()
            print(f"tatok build: {text}", file=sys.stderr, flush=True)

        def advance(graph: str, share: float) -> None:
            progress.advance(f"building {graph}", round(100 * share), 100, unit="%")

        built = build_engines(
            bundle,
            flavour,
            profiles,
            precision=args.precision,
            sms=args.sm,
            folder=folder,
            pictures=_pictures(args.calibrate) if args.calibrate and args.precision == "fp16" else None,
            extra=extra,
            check_memory=not args.ignore_memory,
            say=say_line,
            advance=advance,
            verbose=args.debug,
        )
    report = _report(bundle, flavour, profiles, folder, built, time.perf_counter() - start)
    if args.json:
        print_json(report)
    else:
        _print(report)
    return 0


def choose_profiles(
    bundle: Bundle, profiles: str, videos: Sequence[str], count_as: CountAs, tau: float | None
) -> ProfileSet:
    """The profiles to build for.

    Args:
        bundle: The model that counts the tokens of the videos.
        profiles: ``"auto"``, or the path of a profile file.
        videos: Videos to fit the profiles to, one per camera.
        count_as: Take the videos as streams or as single frames.
        tau: Share of the score to keep; None for :data:`TAU`, or for 1 in streams.

    Raises:
        InputError: Videos and a file, or a file that is no profile file.
        SourceError: A video cannot be opened.
    """
    if videos and profiles != "auto":
        raise InputError("--calibrate finds the profiles itself: give either --calibrate or --profiles FILE")
    if not videos:
        return default_profiles() if profiles == "auto" else load_profiles(Path(profiles))
    if tau is None:
        tau = TAU if count_as == "frames" else 1.0
    budget = TokenBudget(tau=tau)
    counts: dict[str, TokenCounts] = {}
    with Tokenizer.load(bundle.path) as tokenizer:
        for number, video in enumerate(videos):
            print(f"tatok build: counting the tokens of {video}", file=sys.stderr, flush=True)
            name = video if video not in counts else f"{video} ({number})"
            counts[name] = count_tokens(video, tokenizer, budget, frames=CALIBRATION_FRAMES, count_as=count_as)
    return calibrate(counts, budget=f"{count_as}, tau={tau:g}, score={budget.score}")


def _pictures(videos: Sequence[str]) -> list[NDArray[np.uint8]]:
    """Frames spread over the part of each video that a calibration reads."""
    pictures = []
    for video in videos:
        with open_source(video) as source:
            length = min(source.frames or CALIBRATION_FRAMES, CALIBRATION_FRAMES)
            wanted = {length * i // PICTURES_PER_VIDEO for i in range(PICTURES_PER_VIDEO)}
            for number, frame in enumerate(source):
                if number in wanted:
                    pictures.append(np.ascontiguousarray(frame.image))
                if number >= max(wanted):
                    break
    return pictures


def _report(
    bundle: Bundle, flavour: Flavour, profiles: ProfileSet, folder: Path, built: Sequence[BuiltEngine], seconds: float
) -> Report:
    first = built[0].manifest
    return {
        "model": bundle.name,
        "tag": bundle.tag.hex(),
        "flavour": flavour.name,
        "version": flavour.version,
        "precision": first.precision,
        "sms": list(first.sms),
        "folder": str(folder),
        "profile_set": first.profile_set,
        "profiles": {**profiles.to_json(), "notes": dict(profiles.notes)},
        "agreement": first.notes.get("agreement"),
        "engines": [
            {
                "graph": engine.manifest.graph,
                "file": str(engine.path),
                "manifest": str(manifest_path(engine.path)),
                "bytes": engine.manifest.engine_bytes,
                "profiles": len(engine.manifest.profiles),
                "plugin": None if engine.manifest.plugin is None else dataclasses.asdict(engine.manifest.plugin),
                "seconds": round(engine.seconds, 3),
                "reused": engine.reused,
            }
            for engine in built
        ],
        "seconds": round(seconds, 3),
    }


def _print(report: Report) -> None:
    print(f"{report['model']} in {report['precision']} for SM {', '.join(report['sms'])}: {report['folder']}")
    for engine in report["engines"]:
        how = "was there" if engine["reused"] else f"{engine['seconds']:.1f} s"
        size = f"{engine['bytes'] / 1e6:.1f} MB"
        plural = "s" if engine["profiles"] > 1 else ""
        print(f"  {engine['graph']:<16}{engine['profiles']:>2} {'profile' + plural:<8}{size:>10}{how:>11}")
    edges = report["profiles"]["tokens"]
    print(f"  patches per call: up to {', '.join(map(str, edges))}")
    notes = report["profiles"]["notes"]
    if "waste" in notes:
        print(f"  padded rows: {notes['waste']:.1%} (equal widths: {notes['waste_of_equal_widths']:.1%})")
    if report["agreement"]:
        print(f"  tokens as in fp32: {report['agreement']['patch_tokens']:.2%}")
