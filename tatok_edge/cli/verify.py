"""``tatok verify``: compares a backend with the CPU reference, and records a success."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tatok_edge.cli.options import SOURCE_HELP, add_backend, add_bundle, add_choice, bundle_name, positive
from tatok_edge.cli.progress import Progress
from tatok_edge.cli.report import print_json, say
from tatok_edge.errors import BackendError, InputError
from tatok_edge.geometry import CELL, PATCH, patch_grid
from tatok_edge.model.bundle import GRAPHS, Bundle, list_models, open_bundle
from tatok_edge.runtime.cores import default_threads
from tatok_edge.runtime.onnxruntime import OnnxSession
from tatok_edge.runtime.open import open_session
from tatok_edge.runtime.session import Backend, Session
from tatok_edge.runtime.tensorrt.choice import EngineSet
from tatok_edge.runtime.tensorrt.manifest import EnginePrecision, Profile
from tatok_edge.sources.open import open_source

if TYPE_CHECKING:
    from tatok_edge.export.engines.profiles import ProfileSet
    from tatok_edge.export.engines.verdict import Verification

SOURCE = "synthetic:frames=60,width=640,height=480"
"""Default source of the frames to compare on: the rendered camera clip, which every machine can make."""
SPREAD = 5
"""Distance between the frames taken from a source of unknown length."""


EXAMPLES = (
    "tatok verify",
    "tatok verify --source clip.mp4 --frames 8",
    "tatok verify --backend onnxruntime --precision fp16",
)
"""At the end of its help."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Defines the options."""
    add_bundle(parser)
    parser.add_argument("--engines", metavar="DIR", help="folder of the engines (default: the user's cache)")
    text = "backend to verify (default: auto, the TensorRT engines); onnxruntime verifies the graphs behind engines"
    add_backend(parser, text)
    parser.add_argument(
        "--precision",
        choices=("fp32", "fp16"),
        help="precision of the engines or graphs (default: the engines' own; fp32 for graphs)",
    )
    add_choice(parser, "--reference", ("onnxruntime",), "reference backend (default: onnxruntime)")
    parser.add_argument("--source", default=SOURCE, metavar="IN", help="frames to compare on: " + SOURCE_HELP)
    parser.add_argument("--frames", type=positive, default=4, metavar="N", help="number of frames (default: 4)")


def run(args: argparse.Namespace) -> int:
    """Runs the command; returns the exit code."""
    return verify(
        bundle_name(args),
        folder=args.engines,
        backend=args.backend,
        precision=args.precision,
        source=args.source,
        count=args.frames,
        as_json=args.json,
    )


@dataclass(frozen=True, slots=True)
class Candidate:
    """The session to be verified."""

    session: Session
    backend: Backend
    precision: str
    profiles: Mapping[str, Sequence[Profile]]
    """Shapes that it takes, by graph."""
    engines: EngineSet | None
    """Its engines; None for ONNX graphs, which get no record."""


def verify(
    model: str,
    *,
    folder: str | None,
    backend: str,
    precision: EnginePrecision | None,
    source: str,
    count: int,
    as_json: bool,
) -> int:
    """Compares the backend with ONNX Runtime in fp32 on the CPU.

    Args:
        model: A shipped model's name, or the path of a bundle.
        folder: Where the engines are; None for the user's cache.
        backend: The candidate's backend, see :func:`tatok_edge.runtime.open.open_session`.
        precision: Precision of the engines, or of the graphs in ONNX Runtime; None for the engines' own, or fp32.
        source: Where the frames come from.
        count: Number of frames.
        as_json: Print one JSON document instead of a table.

    Returns:
        0 if all bounds hold, 1 if not.
    """
    from tatok_edge.export.engines import record as records
    from tatok_edge.export.engines.verdict import BOUNDS
    from tatok_edge.export.engines.verify import verify as compare

    bundle = open_bundle(model)
    graphs = bundle.graphs()
    frames = read_frames(source, count)
    reference, reference_backend = open_session(graphs, backend="onnxruntime")
    candidate = open_candidate(bundle, graphs, frames, folder=folder, backend=backend, precision=precision)
    try:
        with Progress("verifying", None, unit="steps") as progress:
            steps = itertools.count(1)
            result = compare(
                bundle,
                reference,
                candidate.session,
                frames=frames,
                profiles=candidate.profiles,
                bounds=BOUNDS[candidate.precision],
                say=lambda text: progress.update(next(steps), text),
            )
    finally:
        candidate.session.close()
        reference.close()
    record: Path | None = None
    if candidate.engines is not None and result.ok:
        record = records.write_record(
            bundle, candidate.engines, result, reference=reference_backend, candidate=candidate.backend
        )
    report = {
        "model": bundle.name,
        "tag": bundle.tag.hex(),
        "reference": str(reference_backend),
        "candidate": str(candidate.backend),
        "precision": candidate.precision,
        "source": source,
        "frames": len(frames),
        **result.to_json(),
        "record": None if record is None else str(record),
    }
    if as_json:
        print_json(report)
    else:
        _print(report, result)
    for failure in result.failures:
        say("verify", failure)
    if not result.ok:
        if candidate.engines is not None:
            records.remove_record(candidate.engines)
        say("verify", f"{bundle.name} on {candidate.backend.name} is not verified: {_what_to_do(candidate)}")
    return 0 if result.ok else 1


def read_frames(source: str, count: int) -> list[NDArray[np.uint8]]:
    """``count`` frames spread over a source, or all frames of a shorter source.

    Raises:
        SourceError: the source cannot be opened.
    """
    frames: list[NDArray[np.uint8]] = []
    with open_source(source) as opened:
        spread = max(1, opened.frames // count) if opened.frames else SPREAD
        for number, frame in enumerate(opened):
            if number % spread == 0:
                frames.append(np.ascontiguousarray(frame.image))
            if len(frames) == count:
                break
    return frames


def open_candidate(
    bundle: Bundle,
    graphs: Mapping[str, bytes],
    frames: Sequence[NDArray[np.uint8]],
    *,
    folder: str | None,
    backend: str,
    precision: EnginePrecision | None,
) -> Candidate:
    """Open the session to be verified.

    Raises:
        InputError: a folder of engines for a backend that runs none.
        BackendError: the backend cannot run here.
    """
    if backend == "onnxruntime":
        if folder is not None:
            raise InputError("--engines is for TensorRT; --backend onnxruntime runs the graphs of the bundle")
        return _onnx_candidate(bundle, graphs, frames, precision or "fp32")
    return _engine_candidate(bundle, graphs, folder, backend, precision)


def _onnx_candidate(
    bundle: Bundle, graphs: Mapping[str, bytes], frames: Sequence[NDArray[np.uint8]], precision: EnginePrecision
) -> Candidate:
    from tatok_edge.export.engines.profiles import graph_profiles

    threads = default_threads()
    if precision == "fp16":
        from tatok_edge.export.engines import precision as module
        from tatok_edge.export.engines.lint import load_graph

        # The graphs that TensorRT would get, with fp16 emulated: ONNX Runtime on a CPU has no fp16.
        parsed = {name: load_graph(data, name) for name, data in graphs.items()}
        converted, _ = module.convert_bundle(parsed, frames, bundle.levels, bundle.context_width)
        graphs = {name: module.emulate(graph).SerializeToString() for name, graph in converted.items()}
    session = OnnxSession(graphs, threads=threads)

    what = "the graphs that engines are built from, in emulated fp16" if precision == "fp16" else "asked for by name"
    backend = Backend("onnxruntime", version("onnxruntime"), "cpu", precision, threads, what)
    return Candidate(session, backend, precision, graph_profiles(_frame_profiles(frames), bundle), None)


def _frame_profiles(frames: Sequence[NDArray[np.uint8]]) -> ProfileSet:
    """Shapes for a backend without profiles: one and two frames of each size, token counts up to the largest's."""
    from tatok_edge.export.engines.profiles import FrameRange, ProfileSet

    sides = [patch_grid(frame.shape[1], frame.shape[0]) for frame in frames]
    ranges = dict.fromkeys(
        FrameRange((1, 1, 2), (CELL, rows * PATCH, rows * PATCH), (CELL, columns * PATCH, columns * PATCH))
        for rows, columns in sides
    )
    most = max(rows * columns for rows, columns in sides)
    return ProfileSet(tuple(sorted({min(edge, most) for edge in (64, 256, 1024, most)})), tuple(ranges))


def _engine_candidate(
    bundle: Bundle, graphs: Mapping[str, bytes], folder: str | None, backend: str, precision: EnginePrecision | None
) -> Candidate:
    if folder is not None and not Path(folder).is_dir():
        raise InputError(f"--engines {folder}: no such folder; 'tatok build -o {folder}' makes it")
    session, chosen = open_session(graphs, backend=backend, engines=folder, model=_named(bundle))
    there = session.engines
    try:
        if there is None:
            raise BackendError(
                f"nothing to verify: {chosen.name} runs no engines ({chosen.reason}). 'tatok doctor' says what is "
                f"missing; 'tatok verify {_named(bundle)} --backend onnxruntime --precision fp16' checks the graphs "
                "behind engines"
            )
        _check_precision(bundle, there, precision)
    except BackendError:
        session.close()
        raise
    first = there.manifests[GRAPHS[0]]
    profiles = {graph: manifest.profiles for graph, manifest in there.manifests.items()}
    return Candidate(session, chosen, first.precision, profiles, there)


def _named(bundle: Bundle) -> str:
    """The name or path of the bundle, as commands take it."""
    return bundle.name if bundle.name in list_models() else str(bundle.path)


def _check_precision(bundle: Bundle, there: EngineSet, wanted: EnginePrecision | None) -> None:
    precision = there.manifests[GRAPHS[0]].precision
    if wanted is not None and precision != wanted:
        raise BackendError(
            f"the engines in {there.folder} are in {precision}, not in {wanted}: run "
            f"'tatok build {_named(bundle)} --precision {wanted}'"
        )
    if precision not in ("fp32", "fp16"):
        raise BackendError(f"the engines in {there.folder} are in {precision}; there are bounds for fp32 and fp16")


def _what_to_do(candidate: Candidate) -> str:
    if candidate.engines is None:
        return "do not build engines from it in this precision"
    return (
        f"do not use the engines in {candidate.engines.folder}; build them again, or with --precision fp32, and report "
        "it if that does not help"
    )


def _print(report: Mapping[str, Any], result: Verification) -> None:
    print(f"{report['model']} in {report['precision']}: {report['candidate']}")
    print(f"  against {report['reference']}")
    print(f"  {report['frames']} frames of {report['source']}, {len(result.shapes)} shapes")
    for name, graph in result.graphs.items():
        parts = [f"{graph['calls']} calls"]
        if graph["tokens"] is not None:
            off = f", others {graph['code_step']} level{'s' * (graph['code_step'] > 1)} off at most"
            parts.append(f"{graph['tokens']:.2%} of the tokens equal{off if graph['code_step'] else ''}")
        for score, kept in (graph["kept"] or {}).items():
            parts.append(f"kept by {score}: Jaccard {kept['jaccard']:.4f}, {kept['exact']:.0%} of the sets equal")
        if graph["pixels"] is not None:
            pixels = graph["pixels"]
            what = "mean pixels" if name == "context" else "pixels"
            parts.append(f"{what}: max {pixels['max']:.3%}, mean {pixels['mean']:.4%}, {pixels['psnr_db']:.1f} dB")
        faults = {
            "not finite": graph["not_finite"],
            "not repeated": graph["not_repeated"],
            "equal rows differ": graph["not_equal"],
            "failed": len(graph["errors"]),
        }
        parts.append(", ".join(f"{what} {count}" for what, count in faults.items() if count) or "no faults")
        print(f"  {name:<16}{'; '.join(parts)}")
    whole = result.end_to_end
    if whole["pictures"]:
        print(
            f"  {'whole frames':<16}{whole['pictures']} pictures; {whole['patch_tokens']:.2%} of the tokens equal; "
            f"kept sets: Jaccard {whole['kept']['jaccard']:.4f}; "
            f"same tokens decoded: {whole['between_db']:.1f} dB apart; "
            f"{whole['candidate_db']:.2f} dB, the reference {whole['reference_db']:.2f} dB"
        )
    if report["record"] is not None:
        print(f"verified: {report['record']}")
    elif result.ok:
        print("all bounds hold; no record is written, because there are no engines")
