"""Pictures in memory: arrays, lists and generators."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from typing import Any

import numpy as np

from tatok_edge.errors import InputError, SourceError
from tatok_edge.geometry import Image
from tatok_edge.model.pictures import check_image
from tatok_edge.sources.source import Source, SourceFrame


class ArraySource(Source):
    """Pictures of the caller. Each is copied, so that the caller may reuse its buffer for the next one.

    Args:
        pictures: RGB, uint8 (height, width, 3), as :func:`tatok_edge.model.pictures.check_image` takes them:
            an array of them, a list, a generator.
        fps: Frame rate.

    Raises:
        SourceError: There is no picture or no frame rate, or the first picture is of another kind.
    """

    def __init__(self, pictures: Iterable[Any], fps: float | None) -> None:
        if isinstance(pictures, np.ndarray) and pictures.ndim == 3:
            raise SourceError("got a single picture; give a list of pictures or an array (frames, height, width, 3)")
        if not isinstance(pictures, Iterable):
            raise SourceError(
                f"a source is a name, a number, a path, or something that yields pictures, got {type(pictures)}"
            )
        if fps is None:
            raise SourceError("pictures in memory need their frame rate: add fps=30")
        self._rate = fps
        self._pictures = iter(pictures)
        try:
            self._first = _checked(next(self._pictures), 0)
        except StopIteration:
            raise SourceError("got no picture: the list, array or generator is empty") from None
        count = len(pictures) if isinstance(pictures, Sized) else None
        super().__init__("arrays", self._first, fps=fps, frames=count)

    def _read(self) -> Iterator[SourceFrame]:
        yield SourceFrame(self._first, 0, 0)
        for index, picture in enumerate(self._pictures, 1):
            yield SourceFrame(_checked(picture, index), index, round(index / self._rate * 1e6))


def _checked(picture: Any, index: int) -> Image:
    """A copy of a picture of the caller, uint8 (height, width, 3).

    Raises:
        SourceError: It has another type, shape or size.
    """
    try:
        return np.array(check_image(picture, f"picture {index}"), order="C")
    except InputError as error:
        raise SourceError(str(error)) from None
