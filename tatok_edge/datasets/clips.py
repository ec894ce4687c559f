"""Finds the clips of a data set: videos, folders of pictures and bags, given one by one, by folder or in a list."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tatok_edge.errors import InputError
from tatok_edge.sources.images import IMAGE_SUFFIXES
from tatok_edge.sources.open import open_source
from tatok_edge.sources.source import Source

BAG_SUFFIXES = (".mcap", ".db3")
VIDEO_SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ts", ".webm")
"""Endings of the videos that are taken from a folder; a video that is given by its own path may have any ending."""
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


def find_clips(inputs: Sequence[str]) -> list[Clip]:
    """The clips of some inputs, in their order; the clips of a folder in natural order.

    Args:
        inputs: Each is one of these: the path of a video; of a folder of pictures; of a bag (all its image topics, or
            one as ``BAG#/TOPIC``); of a folder with any of these at any depth; of a ``.txt`` file with one path a line
            (``#`` begins a comment); or ``synthetic:...``.

    Raises:
        InputError: An input is missing, is empty or is named twice; the message says which one.
    """
    found: list[tuple[str, Path | None]] = []  # the source, and the folder above it
    for name in _expanded(inputs):
        if name.partition(":")[0] == "synthetic":
            found.append((name, None))
            continue
        path = Path(name)
        if bag := _topic(name):
            found.append((name, _absolute(bag[0]).parent))
            continue
        if not path.exists():
            raise InputError(
                f"{name}: no such file; an input is a video, a folder of pictures or of videos, a bag, "
                f"or a {LIST_SUFFIX} file with one path a line"
            )
        if not path.is_dir() or _is_clip(path):
            found += [(source, _absolute(path).parent) for source in _sources(path)]
            continue
        inside = [source for clip in _walk(path) for source in _sources(clip)]
        if not inside:
            raise InputError(
                f"{name}: holds no picture (*{', *'.join(IMAGE_SUFFIXES)}) and no video (*{', *'.join(VIDEO_SUFFIXES)})"
            )
        found += [(source, _absolute(path)) for source in inside]
    if not found:
        raise InputError("there is no input: the lists are empty")
    anchors = [str(anchor) for _, anchor in found if anchor is not None]
    base = os.path.commonpath(anchors) if anchors else ""
    clips = []
    names: set[str] = set()
    for source, anchor in found:
        path, topic = _topic(source) or (Path(source), "")
        if anchor is not None:
            name = Path(os.path.relpath(_absolute(path), base)).as_posix() + ("#" + topic if topic else "")
        else:
            name = source
        name = os.fsencode(name).decode("utf-8", "backslashreplace")
        if name in names:
            raise InputError(f"{source}: is named twice; every clip goes into a data set once")
        names.add(name)
        clips.append(Clip(name, source))
    return clips


def open_clip(source: str, fps: float | None) -> Source:
    """Opens the source of a clip.

    Args:
        source: Source of a :class:`Clip`: a name for :func:`tatok_edge.open_source`, or ``BAG#/TOPIC``.
        fps: Frame rate of folders of pictures.

    Raises:
        SourceError: It cannot be opened.
    """
    path, topic = _topic(source) or (Path(source), "")
    if topic or _is_bag(path):
        from tatok_edge.sources.bag import BagSource

        return BagSource(path, topic or None)
    return open_source(source, fps=fps if path.is_dir() else None)


def _topic(source: str) -> tuple[Path, str] | None:
    """The bag and the topic of ``BAG#/TOPIC``; None where there is no bag of that name."""
    name, mark, topic = source.partition("#/")
    path = Path(name)
    return (path, "/" + topic) if mark and path.exists() and _is_bag(path) else None


def _sources(path: Path) -> list[str]:
    """The clips of one path: one, or for a bag one per image topic."""
    if not _is_bag(path):
        return [str(path)]
    from tatok_edge.robotics.bags.bag import Bag
    from tatok_edge.robotics.images import IMAGE_TYPES

    with Bag(path) as bag:
        topics = list(bag.topics(IMAGE_TYPES))
    # A bag without images becomes a clip, too: opening it fails with a message that names its topics.
    return [f"{path}#{topic}" for topic in topics] or [str(path)]


def _is_bag(path: Path) -> bool:
    if not path.is_dir() and path.suffix.lower() not in BAG_SUFFIXES:
        return False
    if path.is_dir() and _holds_pictures(path):
        return False
    from tatok_edge.robotics.bags.bag import is_bag

    return path.exists() and is_bag(path)


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
            if entry and not entry.startswith("#"):
                yield entry


def _absolute(path: Path) -> Path:
    return Path(os.path.abspath(path))


def _is_clip(folder: Path) -> bool:
    """Whether a folder is one clip: a folder of pictures, or a bag."""
    return _holds_pictures(folder) or _is_bag(folder)


def _holds_pictures(folder: Path) -> bool:
    with os.scandir(folder) as entries:
        return any(entry.name.lower().endswith(IMAGE_SUFFIXES) and entry.is_file() for entry in entries)


def _walk(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir(), key=_natural_order):
        if path.name.startswith("."):
            continue
        if path.is_dir():
            if _is_clip(path):
                yield path
            else:
                yield from _walk(path)
        elif path.suffix.lower() in (*VIDEO_SUFFIXES, *BAG_SUFFIXES):
            yield path


def _natural_order(path: Path) -> list[tuple[bool, int, str]]:
    """Sorts numbers inside names by value."""
    parts = re.findall(r"\d+|\D+", path.name)
    return [(not part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in parts]
