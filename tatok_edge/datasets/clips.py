"""Finds the clips of a data set: videos, folders of pictures and bags, given one by one, by folder or in a list."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tatok_edge.datasets.lerobot_input import LeRobotInput, is_lerobot, split_span
from tatok_edge.errors import InputError, SourceError
from tatok_edge.files import natural_order
from tatok_edge.limits import DEFAULT_LIMITS, Limits
from tatok_edge.robotics.bags.bag import Bag, is_bag, split_topic
from tatok_edge.robotics.images import IMAGE_TYPES
from tatok_edge.sources.folders import folder_content
from tatok_edge.sources.images import FolderSource
from tatok_edge.sources.kinds import IMAGE_SUFFIXES, VIDEO_SUFFIXES
from tatok_edge.sources.open import open_source
from tatok_edge.sources.source import Source

LIST_SUFFIX = ".txt"
"""Ending of a file that lists paths, one a line."""
MAX_LIST_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Clip:
    """One clip: one sequence of frames for a sequence model."""

    name: str
    """Its name in the data set: its path from the folder that all inputs share."""
    source: str
    """Path or name for :func:`open_clip`."""


def find_clips(inputs: Sequence[str], notes: list[str] | None = None) -> list[Clip]:
    """The clips of some inputs, in their order; the clips of a folder in natural order.

    Args:
        inputs: Each is one of these: the path of a video; of a bag (all its image topics, or one as ``BAG#/TOPIC``); of
            a folder, whose pictures are one clip, and whose videos, bags and folders are further clips, at any depth
            (:mod:`tatok_edge.sources.folders`); of a ``.txt`` file with one path a line (``#`` begins a comment); or
            ``synthetic:...``. A file of that name comes first.
        notes: Gets a line for each folder with files that are no clip.

    Raises:
        InputError: An input is missing, is empty or is named twice; the message says which one.
    """
    found: list[tuple[str, Path | None]] = []  # the source, and the folder above it
    notes = [] if notes is None else notes
    for name in _expanded(inputs):
        path = Path(name)
        if not os.path.exists(name):
            if name.partition(":")[0] == "synthetic":
                found.append((name, None))
                continue
            if (bag := split_topic(name)) is not None and bag[0].exists():
                found.append((name, _absolute(bag[0]).parent))
                continue
            raise InputError(
                f"{name}: no such file; an input is a video, a folder of pictures or of videos, a bag, "
                f"or a {LIST_SUFFIX} file with one path a line"
            )
        _refuse_lerobot(path)
        if not path.is_dir() or is_bag(path):
            found += [(source, _absolute(path).parent) for source in _sources(path)]
            continue
        inside = list(_walk(path, set(), notes))
        if not inside:
            raise InputError(
                f"{name}: holds no picture (*{', *'.join(IMAGE_SUFFIXES)}) and no video (*{', *'.join(VIDEO_SUFFIXES)})"
            )
        own = _absolute(path)
        found += [(source, own.parent if _absolute(Path(source)) == own else own) for source in inside]
    if not found:
        raise InputError("there is no input: the lists are empty")
    return _named(found)


def episode_clips(robot: LeRobotInput) -> list[Clip]:
    """The clips of a LeRobot data set: one for each episode and camera, episode by episode."""
    return [Clip(span.name, span.source) for episode in robot.episodes for span in episode.spans.values()]


def _refuse_lerobot(folder: Path) -> None:
    if is_lerobot(folder):
        raise InputError(f"{folder}: is a LeRobot data set; make a data set of it alone, without other inputs")


def _named(found: Sequence[tuple[str, Path | None]]) -> list[Clip]:
    """Names the clips by their paths from the folder that all share.

    Raises:
        InputError: A clip is named twice.
    """
    anchors = [str(anchor) for _, anchor in found if anchor is not None]
    base = os.path.commonpath(anchors) if anchors else ""
    clips = []
    names: set[str] = set()
    for source, anchor in found:
        name = source
        if anchor is not None:
            path, topic = _path_and_topic(source)
            name = Path(os.path.relpath(_absolute(path), base)).as_posix() + (f"#{topic}" if topic else "")
        name = os.fsencode(name).decode("utf-8", "backslashreplace")
        if name in names:
            raise InputError(f"{source}: is named twice; every clip goes into a data set once")
        names.add(name)
        clips.append(Clip(name, source))
    return clips


def open_clip(source: str, fps: float | None, limits: Limits = DEFAULT_LIMITS) -> Source:
    """Opens the source of a clip.

    Args:
        source: Source of a :class:`Clip`: a name for :func:`tatok_edge.open_source`, ``BAG#/TOPIC``, or a part of a
            video (:attr:`tatok_edge.datasets.lerobot_input.Span.source`).
        fps: Frame rate of folders of pictures.
        limits: Largest picture, file and message.

    Raises:
        SourceError: It cannot be opened.
    """
    path = Path(source)
    if os.path.isdir(source) and not is_bag(path):
        return FolderSource(path, fps, limits=limits)
    if not os.path.exists(source) and (span := split_span(source)) is not None:
        from tatok_edge.sources.video import open_span

        return open_span(*span, limits=limits)
    return open_source(source, limits=limits)


def _path_and_topic(source: str) -> tuple[Path, str | None]:
    if not os.path.exists(source) and (bag := split_topic(source)) is not None:
        return bag
    return Path(source), None


def _sources(path: Path) -> list[str]:
    """The clips of one path: one, or for a bag one per image topic with messages."""
    if not is_bag(path):
        return [str(path)]
    try:
        with Bag(path) as bag:
            topics = list(bag.topics(IMAGE_TYPES))
            topics = [topic for topic in topics if topic not in bag.silent] or topics
    except SourceError:
        topics = []
    # A bag that cannot be read, or has no images, becomes a clip, too: opening it fails with a message that says why.
    return [f"{path}#{topic}" for topic in topics] or [str(path)]


def _expanded(inputs: Sequence[str]) -> Iterator[str]:
    for name in inputs:
        path = Path(name)
        if path.suffix.lower() != LIST_SUFFIX or not path.is_file():
            yield name
            continue
        try:
            if path.stat().st_size > MAX_LIST_BYTES:
                raise InputError(f"{name}: a list of paths has at most {MAX_LIST_BYTES} bytes")
            lines = path.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
        except OSError as error:
            raise InputError(f"{name}: cannot be read ({error.strerror or error})") from None
        for line in lines:
            entry = line.strip()
            if entry and (not entry.startswith("#") or os.path.exists(entry)):
                yield entry


def _absolute(path: Path) -> Path:
    return Path(os.path.abspath(path))


def _walk(folder: Path, above: set[str], notes: list[str]) -> Iterator[str]:
    """The sources of the clips of a folder: its pictures, then its videos, bags and folders, in natural order.

    Args:
        folder: The folder.
        above: The folders that it lies in, with links resolved: a link may lead back.
        notes: Gets a line for each folder with files that are no clip, or that cannot be read.
    """
    real = os.path.realpath(folder)
    if real in above:
        return
    _refuse_lerobot(folder)
    try:
        content = folder_content(folder)
    except SourceError as error:
        notes.append(f"left out: {error}")
        return
    if beside := content.beside(clips=False):
        notes.append(f"{folder}: {beside} left out")
    if content.pictures:
        yield str(folder)
    for path in sorted([*content.videos, *content.bags, *content.folders], key=natural_order):
        if path.is_dir() and not is_bag(path):
            yield from _walk(path, above | {real}, notes)
        else:
            yield from _sources(path)
