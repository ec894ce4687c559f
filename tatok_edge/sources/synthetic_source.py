"""The rendered clip as a source: like a file that waits for its reader, or like a camera in real time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import fields

from tatok_edge.errors import SourceError
from tatok_edge.geometry import MIN_SIDE, Image
from tatok_edge.sources.live import POLL, Ended, LiveSource
from tatok_edge.sources.source import MAX_FPS, Source, SourceFrame
from tatok_edge.sources.synthetic import Scene, render, render_loop

_LIMITS = {
    "frames": (1, 1_000_000),
    "width": (MIN_SIDE, 4096),
    "height": (MIN_SIDE, 4096),
    "fps": (1, MAX_FPS),
    "live": (0, 1),
}


def open_synthetic(text: str, *, drop: bool) -> Source:
    """Opens the rendered clip.

    Args:
        text: ``synthetic``, with settings as in ``synthetic:frames=120,width=640,live=1``. A live clip repeats a loop
            that is rendered beforehand: ``frames`` pictures, or without end.
        drop: See :class:`tatok_edge.sources.live.LiveSource`.

    Raises:
        SourceError: A setting is unknown or out of its range.
    """
    scene, frames, is_live = _parse(text)
    if not is_live:
        return SyntheticSource(text, scene)
    pictures = render_loop(scene)
    return LiveSource(text, lambda: LoopConnection(pictures, scene.fps, frames), drop=drop)


class SyntheticSource(Source):
    """The rendered clip like a file.

    Args:
        name: Its name in messages and files.
        scene: Settings of the clip.
    """

    def __init__(self, name: str, scene: Scene) -> None:
        self._scene = scene
        super().__init__(name, render(scene, 0), fps=scene.fps, frames=scene.frames)

    def _read(self) -> Iterator[SourceFrame]:
        for index in range(self._scene.frames):
            yield SourceFrame(render(self._scene, index), index, round(index / self._scene.fps * 1e6))


class LoopConnection:
    """Pictures in memory that come at a frame rate, like those of a camera.

    Args:
        pictures: Shown forwards and backwards in turn, so that nothing jumps.
        fps: Pictures per second.
        frames: Number of pictures to deliver; None for no end.
    """

    def __init__(self, pictures: list[Image], fps: float, frames: int | None) -> None:
        self.fps: float | None = fps
        self._rate = fps
        self._pictures = pictures
        self._frames = frames
        self._index = 0
        self._start = time.monotonic()

    def read(self) -> Image | None:
        """The next picture when it is due; see :meth:`tatok_edge.sources.live.Connection.read`."""
        if self._index == self._frames:
            raise Ended
        due = self._start + self._index / self._rate
        if (wait := due - time.monotonic()) > 0:
            time.sleep(min(wait, POLL))
            if wait > POLL:
                return None
        last = len(self._pictures) - 1
        place = self._index % max(2 * last, 1)
        self._index += 1
        return self._pictures[min(place, 2 * last - place)]

    def close(self) -> None:
        """Frees the pictures."""
        self._pictures = []


def _parse(text: str) -> tuple[Scene, int | None, bool]:
    """The scene that ``synthetic:...`` describes, its number of frames if it is given, and whether it is live."""
    types = {field.name: int if field.type == "int" else float for field in fields(Scene)} | {"live": int}
    values: dict[str, int | float] = {}
    for item in text.partition(":")[2].split(","):
        if not item:
            continue
        key, _, value = item.partition("=")
        if key not in types:
            raise SourceError(f"{text}: unknown setting {key!r}; settings are {', '.join(types)}")
        try:
            number = types[key](value)
        except ValueError:
            raise SourceError(f"{text}: {key} must be a number, got {value!r}") from None
        low, high = _LIMITS.get(key, (0, 2**31 - 1))
        if not low <= number <= high:
            raise SourceError(f"{text}: {key} must be from {low} to {high}, got {value}")
        values[key] = number
    is_live = bool(values.pop("live", 0))
    frames = int(values["frames"]) if "frames" in values else None
    return Scene(**values), frames, is_live  # type: ignore[arg-type]  # the types were taken from its fields
