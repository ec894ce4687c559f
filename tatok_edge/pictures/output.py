"""The base of all outputs of pictures."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path

from tatok_edge.files import Draft, put_in_place
from tatok_edge.geometry import Image


class Output(Draft):
    """Takes RGB pictures one by one; a context manager that keeps the output if its block succeeds.

    Args:
        path: The target.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.left: Path | None = None
        """Where :meth:`leave` left the output."""
        self.written = 0
        """Number of pictures so far."""

    def write(self, image: Image, number: int, timestamp_us: int | None = None) -> None:
        """Adds a picture.

        Args:
            image: uint8 RGB (height, width, 3).
            number: Number of the frame, which names its file in a folder.
            timestamp_us: Time of the frame in microseconds, for videos and animations. None in all frames gives them
                the frame rate.

        Raises:
            InputError: Its size differs from the pictures before (videos).
            OSError: It cannot be written.
        """
        self._write(image, number, timestamp_us)
        self.written += 1

    @abstractmethod
    def _write(self, image: Image, number: int, timestamp_us: int | None) -> None: ...

    def commit(self) -> None:
        """Completes the output and gives it its name; without pictures, removes it.

        Raises:
            OSError: It cannot be written.
        """
        if self.left is not None:
            return
        if self.written:
            part = self._complete()
            if part is not None:
                put_in_place(part, self.path)
        else:
            self.abort()

    def leave(self) -> Path | None:
        """See :meth:`Draft.leave`."""
        if self.written and self.left is None:
            self.left = self._complete()
        return self.left

    def abort(self) -> None:
        """Removes the unfinished output, unless it was left."""
        if self.left is None:
            self._remove()

    @abstractmethod
    def _complete(self) -> Path | None:
        """Completes the output under its temporary name; None where it has no name."""

    @abstractmethod
    def _remove(self) -> None: ...
