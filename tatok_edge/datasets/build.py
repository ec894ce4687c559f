"""Makes a data set: encodes clips into parts, then writes the parts as files of a format. A killed run can go on.

All work happens in the folder ``OUT.partial``. Each encoded clip is a part there. At the end the parts are written in
the order of the clips, so the result does not depend on the engine or the number of workers. Then the folder is renamed
to ``OUT``.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tatok_edge.datasets.assembly import BLOCK_FRAMES, Assembly
from tatok_edge.datasets.clips import Clip, episode_clips, find_clips
from tatok_edge.datasets.formats import FORMAT_VERSION, FORMATS, LEROBOT_METADATA, METADATA, module_of
from tatok_edge.datasets.lerobot_input import LeRobotInput, is_lerobot
from tatok_edge.datasets.local import run_here, run_processes
from tatok_edge.datasets.parts import MAX_SIZES, PARTS, Part
from tatok_edge.datasets.tokens import DEPTH_DTYPE, narrow
from tatok_edge.datasets.worker import Done, EncodeOptions, Engine, Job
from tatok_edge.errors import InputError, SourceError
from tatok_edge.files import NAME_BYTES, put_in_place, replaced_file, sync
from tatok_edge.geometry import CELL, PATCH, patch_grid
from tatok_edge.limits import DEFAULT_LIMITS, Limits
from tatok_edge.model.bundle import Bundle, open_bundle
from tatok_edge.runtime.cores import default_threads, usable_cores
from tatok_edge.tokens.budget import TokenBudget

ENGINES = ("local", "ray")
DEFAULT_SHARD_BYTES = 256 << 20
LEROBOT_SHARD_BYTES = 100 << 20
_PLAN = "plan.json"
_DATA = "data"
_LOCK = "lock"
_FORCED = "forced"
"""File in the working folder of a run that may replace an existing data set."""


class Interrupted(Exception):
    """The run was stopped; its complete clips are kept."""


@dataclass(frozen=True, slots=True)
class Options:
    """How to make a data set."""

    format: str | None = None
    """One of :data:`tatok_edge.datasets.formats.FORMATS`; None takes ``"lerobot"`` for a LeRobot data set, else
    ``"flat"``."""
    model: str = "tatok-s8"
    """Name or path of the bundle."""
    backend: str = "auto"
    """Backend of the networks."""
    threads: int | None = None
    """Threads of each worker; None divides the cores among the workers."""
    budget: TokenBudget = TokenBudget()  # noqa: RUF009  # frozen
    """Limits on the tokens of a frame."""
    frames: int | None = None
    """Largest number of frames of a clip."""
    fps: float | None = None
    """Frame rate of clips without one: folders of pictures, bags."""
    workers: int | None = None
    """Number of workers; None takes one per core, but at most one per clip."""
    engine: str = "local"
    """One of :data:`ENGINES`."""
    limits: Limits = DEFAULT_LIMITS
    """Largest picture, file and message of the inputs."""
    shard_bytes: int | None = None
    """Size in bytes at which a new file begins (Parquet, WebDataset, LeRobot)."""
    resume: bool = False
    """Continue an earlier run with the same inputs and options."""
    force: bool = False
    """Replace an existing data set, and remove an unfinished run."""


Advance = Callable[[str, int, int | None, str], object]
"""Takes progress: the stage (``"encoding"`` counts frames, ``"writing"`` clips), how many are done, how many there are
if known, and a note."""


@dataclass(frozen=True, slots=True)
class _Monitor:
    """The caller of a run: whether it wants to stop, and how it takes progress."""

    stopped: Callable[[], bool]
    advance: Advance


def make_dataset(
    inputs: Sequence[str],
    output: str | Path,
    options: Options,
    *,
    stopped: Callable[[], bool] = lambda: False,
    advance: Advance = lambda *_: None,
) -> dict[str, Any]:
    """Makes a data set of tokens.

    With more than one worker this starts processes, so a script that calls it needs the usual
    ``if __name__ == "__main__"``.

    Args:
        inputs: See :func:`tatok_edge.datasets.clips.find_clips`; or one folder of a LeRobot data set.
        output: Folder to make.
        options: Format, model, budget, workers.
        stopped: Called now and then; True ends the run.
        advance: Called with the progress of each stage.

    Returns:
        The metadata of the data set, and figures of this run under ``"run"``.

    Raises:
        InputError: The inputs or options are wrong, or the output exists.
        SourceError: No clip could be encoded.
        Interrupted: ``stopped`` returned True; :attr:`Options.resume` continues.
        OSError: A file cannot be written; :attr:`Options.resume` continues.
    """
    start = time.perf_counter()
    monitor = _Monitor(stopped, advance)
    _check_options(options)
    robot = LeRobotInput(inputs[0]) if len(inputs) == 1 and is_lerobot(Path(inputs[0])) else None
    chosen = options.format or ("lerobot" if robot else "flat")
    options = replace(options, format=chosen)
    module = module_of(chosen)  # fails early if a package is missing
    notes = [] if robot is None else list(robot.notes)
    clips = find_clips(inputs, notes) if robot is None else episode_clips(robot)
    if robot and chosen != "lerobot":
        notes.append(f"{robot.folder}: the format '{chosen}' holds tokens only; actions and states are left out")
        robot = None
    if robot:
        robot.check_rows()
    bundle = open_bundle(options.model)
    plan = _plan(clips, bundle, options)
    target = Path(output)
    work = work_folder(target)
    if (finished := _check_output(target, work, plan, options)) is not None:
        shutil.rmtree(work, ignore_errors=True)
        return finished | {"run": _run_record(start, target, 0, len(finished["clips"]), 0, notes)}
    work.mkdir(exist_ok=True)
    with _lock(work / _LOCK, target):
        _begin(work, plan, options)
        parts = work / PARTS
        parts.mkdir(exist_ok=True)
        for leftover in parts.glob(".*.tmp"):
            shutil.rmtree(leftover, ignore_errors=True)
        jobs = [
            Job(number, clip.name, clip.source) for number, clip in enumerate(clips) if Part.find(parts, number) is None
        ]
        workers = options.workers or default_threads()
        workers = max(1, min(workers, len(jobs)))
        left_out, frames = _encode(work, jobs, len(clips), workers, options, module, monitor) if jobs else ({}, 0)
        metadata = _assemble(work, clips, left_out, bundle, plan, options, module, monitor, robot)
        _put_in_place(work, target)
    size = _metadata_path(target, chosen).stat().st_size
    if size > options.limits.max_metadata:
        notes.append(f"its metadata have {size} bytes: open it with limits=Limits(max_metadata={size})")
    return metadata | {"run": _run_record(start, target, workers, len(clips) - len(jobs), frames, notes)}


def work_folder(target: Path) -> Path:
    """The folder beside ``target`` in which the work happens, ``TARGET.partial``; long names are cut."""
    return target.with_name(os.fsdecode(os.fsencode(target.name)[:NAME_BYTES]) + ".partial")


def _check_options(options: Options) -> None:
    if options.format is not None and options.format not in FORMATS:
        raise InputError(f"format must be one of {', '.join(FORMATS)}, got {options.format!r}")
    if options.engine not in ENGINES:
        raise InputError(f"engine must be one of {', '.join(ENGINES)}, got {options.engine!r}")
    if options.resume and options.force:
        raise InputError("resume continues an earlier run and force replaces it: give one of them")
    for name in ("frames", "workers", "threads", "shard_bytes"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise InputError(f"{name} must be at least 1, got {value}")


def _plan(clips: Sequence[Clip], bundle: Bundle, options: Options) -> dict[str, Any]:
    """All inputs that the bytes of the data set depend on."""
    budget = options.budget
    return {
        "format": options.format,
        "format_version": FORMAT_VERSION,
        "tool": f"tatok-edge {version('tatok-edge')}",
        "model": bundle.tag.hex(),
        "budget": {name: getattr(budget, name) for name in TokenBudget.__dataclass_fields__},
        "frames": options.frames,
        "fps": options.fps,
        "shard_bytes": _shard_bytes(options),
        "clips": [[clip.name, clip.source] for clip in clips],
    }


def _shard_bytes(options: Options) -> int:
    return options.shard_bytes or (LEROBOT_SHARD_BYTES if options.format == "lerobot" else DEFAULT_SHARD_BYTES)


def _digest(plan: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()


def _check_output(target: Path, work: Path, plan: dict[str, Any], options: Options) -> dict[str, Any] | None:
    """Checks the output; returns its metadata if it exists and is complete.

    Raises:
        InputError: The output must not be written.
    """
    if not target.name or not target.absolute().parent.is_dir():
        raise InputError(f"{target}: the folder {target.absolute().parent} does not exist; create it first")
    if target.exists() or target.is_symlink():
        metadata = _metadata_of(target)
        is_empty = target.is_dir() and not any(target.iterdir())
        if options.force:
            if metadata is None and not is_empty:
                raise InputError(f"{target}: exists and is no data set of tokens; name another folder")
        elif options.resume and metadata is not None:
            if metadata.get("plan") != _digest(plan):
                if (work / _FORCED).exists():
                    return None
                raise InputError(
                    f"{target}: is finished, and was made of other inputs or with other options; "
                    "name another folder, or replace it with --force"
                )
            return metadata
        elif not is_empty:
            raise InputError(f"{target}: exists; name another folder, or replace it with --force")
    if work.exists() and not (options.resume or options.force):
        raise InputError(
            f"{target}: an earlier run has not finished and left {work}; "
            "continue with --resume or start again with --force"
        )
    return None


def _metadata_path(folder: Path, form: str) -> Path:
    return folder / (LEROBOT_METADATA if form == "lerobot" else METADATA)


def _metadata_of(folder: Path) -> dict[str, Any] | None:
    for name in (METADATA, LEROBOT_METADATA):
        try:
            metadata = json.loads((folder / name).read_bytes())
        except (OSError, ValueError):
            continue
        if isinstance(metadata, dict) and metadata.get("format") in FORMATS:
            return metadata
    return None


@contextmanager
def _lock(path: Path, target: Path) -> Iterator[None]:
    """Keeps other runs out; the operating system unlocks when this process ends, even when it is killed."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(f"{target}: another run is writing to it") from None
        yield


def _begin(work: Path, plan: dict[str, Any], options: Options) -> None:
    """Prepares the working folder.

    Raises:
        InputError: The folder belongs to other inputs or options.
    """
    path = work / _PLAN
    if options.force:
        for name in (PARTS, _DATA):
            shutil.rmtree(work / name, ignore_errors=True)
        path.unlink(missing_ok=True)
        (work / _FORCED).unlink(missing_ok=True)
    if path.exists():
        if json.loads(path.read_text()) != json.loads(json.dumps(plan)):
            raise InputError(
                f"{work}: was begun with other inputs or options, or by another version; "
                "--resume needs the same, --force begins anew"
            )
        return
    if options.force:  # a run with --force that is killed can be resumed: it may still replace the output
        (work / _FORCED).touch()
    with replaced_file(path) as temporary:
        temporary.write_text(json.dumps(plan) + "\n")


def _encode(
    work: Path,
    jobs: list[Job],
    clips: int,
    workers: int,
    options: Options,
    module: Any,
    monitor: _Monitor,
) -> tuple[dict[int, str], int]:
    """Encodes the clips; returns why clips were left out, by number, and the number of encoded frames."""
    encoding = EncodeOptions(
        folder=str(work.absolute()),
        model=options.model if not Path(options.model).exists() else str(Path(options.model).absolute()),
        backend=options.backend,
        threads=options.threads or max(1, min(usable_cores() // workers, 8)),
        budget=options.budget,
        frames=options.frames,
        fps=options.fps,
        limits=options.limits,
    )
    engine = _engine(options.engine, workers)
    left_out: dict[int, str] = {}
    frames = 0
    running: dict[int, int] = {}
    rates: dict[str, float | None] = {}
    done = clips - len(jobs)
    for event in engine(encoding, jobs, workers, monitor.stopped):
        running[event.number] = event.frames
        if isinstance(event, Done):
            frames += running.pop(event.number)
            done += 1
            if event.left_out is not None:
                left_out[event.number] = event.left_out
            elif options.format == "lerobot":  # a wrong rate is reported at the second clip, not after the last
                part = Part.find(work / PARTS, event.number)
                assert part is not None
                if (problem := module.unsteady(part)) is not None:
                    left_out[event.number] = problem
                    shutil.rmtree(part.path)
                    continue
                rates = rates or {part.info["name"]: part.info["fps"]}
                module.frame_rate(rates | {part.info["name"]: part.info["fps"]})
        monitor.advance("encoding", frames + sum(running.values()), None, f"{done} of {clips} clips")
    if monitor.stopped():
        raise Interrupted(f"{done} of {clips} clips are done")
    return left_out, frames


def _engine(name: str, workers: int) -> Engine:
    if name == "ray":
        from tatok_edge.datasets.ray_engine import run_ray

        return run_ray
    return run_here if workers == 1 else run_processes


def _assemble(
    work: Path,
    clips: Sequence[Clip],
    left_out: dict[int, str],
    bundle: Bundle,
    plan: dict[str, Any],
    options: Options,
    module: Any,
    monitor: _Monitor,
    robot: LeRobotInput | None,
) -> dict[str, Any]:
    """Writes the parts as the files of the format."""
    found = [Part.find(work / PARTS, number) for number in range(len(clips))]
    if robot is not None:
        _leave_out_episodes(robot, found, left_out)
    parts = [part for part in found if part is not None]
    if not parts:
        raise SourceError(f"none of the {len(clips)} clips could be encoded; the first: {left_out[min(left_out)]}")
    metadata = _metadata(parts, bundle, plan, options)
    metadata["left_out"] = [
        {"name": clips[number].name, "source": clips[number].source, "problem": problem}
        for number, problem in sorted(left_out.items())
    ]
    folder = work / _DATA
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()

    def tick(done: int) -> None:
        monitor.advance("writing", done, len(parts), "")
        if monitor.stopped():
            raise Interrupted("all clips are encoded")

    try:
        module.write(Assembly(parts, folder, metadata, _shard_bytes(options), tick, robot))
        assert options.format is not None
        path = _metadata_path(folder, options.format)
        path.write_text(json.dumps(metadata, indent=1) + "\n")
        sync(path)
    except BaseException:
        # The parts are enough to write it again, and the disk may be full.
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return metadata


def _leave_out_episodes(robot: LeRobotInput, found: list[Part | None], left_out: dict[int, str]) -> None:
    """Leaves out the other cameras of an episode of which one is left out: an episode has all cameras."""
    count = len(robot.cameras)
    for first in range(0, len(found), count):
        if None in found[first : first + count]:
            for number in range(first, first + count):
                if found[number] is not None:
                    found[number] = None
                    left_out[number] = (
                        f"{robot.episodes[first // count].spans[robot.cameras[number - first]].name}: "
                        + ("another camera of its episode is left out")
                    )


def _metadata(parts: Sequence[Part], bundle: Bundle, plan: dict[str, Any], options: Options) -> dict[str, Any]:
    counts = [np.diff(part.offsets[:, 0]) for part in parts]
    frames, tokens, cells = (sum(int(part.info[name]) for part in parts) for name in ("frames", "tokens", "globals"))
    sizes: dict[tuple[int, int], int] = {}
    for part in parts:
        for size, number in zip(*np.unique(part.table[["width", "height"]], return_counts=True), strict=True):
            key = (int(size["width"]), int(size["height"]))
            sizes[key] = sizes.get(key, 0) + int(number)
    patches = max(rows * columns for rows, columns in (patch_grid(*size) for size in sizes))
    rates = {part.info["fps"] for part in parts}
    default = TokenBudget()
    vocabulary = int(np.prod(bundle.levels))
    budget = {name: value for name, value in plan["budget"].items() if value != getattr(default, name)}
    return {
        "format": options.format,
        "format_version": FORMAT_VERSION,
        "tool": plan["tool"],
        "plan": _digest(plan),
        "model": {
            "name": bundle.name,
            "tag": bundle.tag.hex(),
            "sha256": {name: entry["sha256"] for name, entry in bundle.manifest["files"].items()},
        },
        "vocabulary": vocabulary,
        "levels": list(bundle.levels),
        "depth": bundle.depth,
        "patch": PATCH,
        "cell": CELL,
        "budget": budget | {"score": options.budget.score},
        "fps": next(iter(rates)) if len(rates) == 1 else None,
        "frames": frames,
        "tokens": tokens,
        "globals": cells,
        "tokens_per_frame": {
            "mean": round(tokens / frames, 3),
            "min": min(int(count.min()) for count in counts),
            "max": max(int(count.max()) for count in counts),
        },
        "patches_by_depth": patches_by_depth(parts, bundle.depth),
        "sizes": [[*size, number] for size, number in sorted(sizes.items(), key=lambda item: -item[1])[:MAX_SIZES]],
        "types": {
            "ids": narrow(vocabulary).str,
            "positions": narrow(patches).str,
            "depths": DEPTH_DTYPE.str,
            "globals": narrow(vocabulary).str,
        },
        "clips": [
            {
                "name": part.info["name"],
                "source": part.info["source"],
                "fps": part.info["fps"],
                "frames": part.frames,
                "tokens": part.info["tokens"],
                "globals": part.info["globals"],
            }
            | ({"problem": part.info["problem"]} if part.info["problem"] else {})
            for part in parts
        ],
    }


def patches_by_depth(parts: Sequence[Part], depth: int) -> list[int]:
    """Number of patches with 0, 1, ... ``depth`` tokens, in all frames together."""
    reaching = np.zeros(depth + 2, np.int64)
    for part in parts:
        for start, stop in part.blocks(BLOCK_FRAMES):
            reaching[: depth + 1] += np.bincount(part.read("depths", start, stop), minlength=depth + 1)
            sizes = part.table[start:stop]
            reaching[0] += (cells_along(sizes["width"]) * cells_along(sizes["height"])).sum() * (CELL // PATCH) ** 2
    # A patch of depth 3 has a token of depth 1, 2 and 3.
    counts: list[int] = (reaching[:-1] - reaching[1:]).tolist()
    return counts


def cells_along(pixels: NDArray[np.uint16]) -> NDArray[np.int64]:
    """Cells along sides of so many pixels."""
    return -(-pixels.astype(np.int64) // CELL)


def _put_in_place(work: Path, target: Path) -> None:
    put_in_place(work / _DATA, target)
    shutil.rmtree(work, ignore_errors=True)


def _run_record(
    start: float, target: Path, workers: int, resumed: int, frames: int, notes: Sequence[str]
) -> dict[str, Any]:
    return {
        "seconds": round(time.perf_counter() - start, 3),
        "workers": workers,
        "resumed_clips": resumed,
        "encoded_frames": frames,
        "notes": list(notes),
        "bytes": sum(path.stat().st_size for path in target.rglob("*") if path.is_file()),
    }
