"""Base of the classes whose ``with`` block ends in ``close``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from types import TracebackType
from typing import TypeVar

_Closing = TypeVar("_Closing", bound="Closing")


class Closing(ABC):
    """A context manager that closes itself at the end of its block, with or without an error."""

    @abstractmethod
    def close(self) -> None:
        """Releases what the object holds."""

    def __enter__(self: _Closing) -> _Closing:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
