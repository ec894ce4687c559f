"""``tatok build``: TensorRT engines from a model bundle."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from tatok_edge.cli.progress import Progress
from tatok_edge.errors import InputError
from tatok_edge.model.bundle import Bundle, open_bundle

if TYPE_CHECKING:
    from tatok_edge.export.engines.profiles import CountAs, ProfileSet
    from tatok_edge.export.engines.tensorrt import BuiltEngine
    from tatok_edge.runtime.tensorrt.flavour import Flavour
    from tatok_edge.runtime.tensorrt.manifest import EnginePrecision

TAU = 0.5
"""Share of the score that single frames keep where none is named."""
CALIBRATION_FRAMES = 600
"""Frames of each video that a calibration looks at: 20 s of most cameras."""
PICTURES_PER_VIDEO = 4
"""Frames of each video on which fp16 is compared with fp32."""


def build(
    model: str,
    *,
    flavour: str,
    precision: EnginePrecision,
    profiles: str,
    calibrate: Sequence[str],
    count_as: CountAs,
    tau: float | None,
    sms: Sequence[str] | None,
    dtf: Literal["plugin", "onnx"] | None,
    output: str | None,
    check_memory: bool,
    as_json: bool,
    verbose: bool,
) -> int:
    """Builds the engines that are not there yet, and says which there are.

    Args:
        model: A shipped model's name, or the path of a bundle.
        flavour: ``"auto"``, ``"trt"`` or ``"rtx"``.
        precision: ``"fp32"`` or ``"fp16"``.
        profiles: ``"auto"``, or the path of a profile file.
        calibrate: Videos to fit the profiles to, one per camera.
        count_as: Whether the calibration takes them for streams or for single frames.
        tau: Share of the score that the calibration and token filtering keep; None for :data:`TAU`, in streams for all
            that a stream needs.
        sms: GPU architectures; None for this machine's.
        dtf: Form of an engine for token filtering; None for no such engine.
        output: Folder of the engines; None for the user's cache.
        check_memory: Refuse to start with too little free memory.
        as_json: Print one JSON document instead of a table.
        verbose: Print all that TensorRT says.
    """
    from tatok_edge.export.engines.tensorrt import build_engines, dtf_graph
    from tatok_edge.runtime.tensorrt.flavour import find_flavour
    from tatok_edge.runtime.tensorrt.store import cache_folder

    start = time.perf_counter()
    bundle = open_bundle(model)
    found = find_flavour(flavour)
    chosen = _profiles(bundle, profiles, calibrate, count_as, tau)
    extra = {} if dtf is None else {"dtf": dtf_graph(found, dtf, TAU if tau is None else tau, chosen)}
    folder = cache_folder() if output in (None, "cache") else Path(str(output))
    with _Bar() as bar:
        built = build_engines(
            bundle,
            found,
            chosen,
            precision=precision,
            sms=sms,
            folder=folder,
            pictures=_pictures(calibrate) if calibrate and precision == "fp16" else None,
            extra=extra,
            check_memory=check_memory,
            say=bar.say,
            advance=bar.advance,
            verbose=verbose,
        )
    report = _report(bundle, found, chosen, folder, built, time.perf_counter() - start)
    if as_json:
        print(json.dumps(report, indent=2, allow_nan=False))
    else:
        _print_table(report)
    return 0


class _Bar:
    """Says what is going on in lines, and how far it is in a bar below them."""

    def __init__(self) -> None:
        self._bar: Progress | None = None
        self._graph = ""

    def say(self, text: str) -> None:
        """Shows a line on standard error."""
        self._end()
        print(f"tatok build: {text}", file=sys.stderr, flush=True)

    def advance(self, graph: str, share: float) -> None:
        """Moves the bar of one graph."""
        if graph != self._graph or self._bar is None:
            self._end()
            self._bar, self._graph = Progress(f"building {graph}", 100, unit="%"), graph
        self._bar.update(round(100 * share))

    def _end(self) -> None:
        if self._bar is not None:
            self._bar.__exit__(None, None, None)
            self._bar = None

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()


def _profiles(bundle: Bundle, profiles: str, videos: Sequence[str], count_as: CountAs, tau: float | None) -> ProfileSet:
    from tatok_edge.export.engines import profiles as module

    if videos and profiles != "auto":
        raise InputError("--calibrate finds the profiles itself; give either it or --profiles FILE")
    if not videos:
        return module.default_profiles() if profiles == "auto" else module.load_profiles(Path(profiles))
    from tatok_edge.model.tokenizer import Tokenizer
    from tatok_edge.tokens.budget import TokenBudget

    if tau is None:
        tau = TAU if count_as == "frames" else 1.0
    budget = TokenBudget(tau=tau)
    counts: dict[str, module.TokenCounts] = {}
    with Tokenizer.load(bundle.path) as tokenizer:
        for number, video in enumerate(videos):
            print(f"tatok build: counting the tokens of {video}", file=sys.stderr, flush=True)
            name = video if video not in counts else f"{video} ({number})"
            counts[name] = module.count_tokens(video, tokenizer, budget, frames=CALIBRATION_FRAMES, count_as=count_as)
    return module.calibrate(counts, budget=f"{count_as}, tau={tau:g}, score={budget.score}")


def _pictures(videos: Sequence[str]) -> list[NDArray[np.uint8]]:
    """Frames spread over the part of each video that a calibration looks at."""
    from tatok_edge.sources.open import open_source

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
) -> dict[str, Any]:
    from tatok_edge.runtime.tensorrt.manifest import manifest_path

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


def _print_table(report: dict[str, Any]) -> None:
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
