"""The errors that callers can catch, each with a one-line message: what came, what is allowed, what to do."""

from __future__ import annotations


class TaTokError(Exception):
    """Base of every error that TaTok Edge raises on purpose.

    Example:
        >>> try:
        ...     tokenizer.encode(image[:8])
        ... except tatok_edge.TaTokError as error:
        ...     print(error)  # what came, what is allowed, what to do
    """


class InputError(TaTokError, ValueError):
    """A wrong argument, image or token array.

    Example:
        >>> try:
        ...     tatok_edge.TokenBudget(tau=2)
        ... except tatok_edge.InputError as error:
        ...     print(error)
    """


class BundleError(TaTokError):
    """A model bundle that is missing, damaged, unknown or too new.

    Example:
        >>> try:
        ...     tatok_edge.Tokenizer.load("no-such-model")
        ... except tatok_edge.BundleError as error:
        ...     print(error)
    """


class FormatError(TaTokError, ValueError):
    """A packet or ``.ttk`` file that is damaged, too new, or belongs to another model.

    Example:
        >>> try:
        ...     tokenizer.decode(b"no packet")
        ... except tatok_edge.FormatError as error:
        ...     print(error)
    """


class SourceError(TaTokError):
    """An image, video or camera that cannot be opened or read.

    Example:
        >>> try:
        ...     tatok_edge.open_source("no_such_video.mp4")
        ... except tatok_edge.SourceError as error:
        ...     print(error)
    """


class BackendError(TaTokError):
    """An inference backend that is not usable, or failed while running.

    Example:
        >>> try:
        ...     tatok_edge.Tokenizer.load(backend="no-such-backend")
        ... except tatok_edge.TaTokError as error:
        ...     print(error)
    """


def one_line(text: object) -> str:
    """The text of a foreign error on one line, for a message of ours."""
    return " ".join(str(text).split())
