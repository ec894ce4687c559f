"""The errors that callers can catch, each with a one-line message: what came, what is allowed, what to do."""

from __future__ import annotations


class TaTokError(Exception):
    """Base of every error that TaTok Edge raises on purpose."""


class InputError(TaTokError, ValueError):
    """A wrong argument, image or token array."""


class BundleError(TaTokError):
    """A model bundle that is missing, damaged, unknown or too new."""


class FormatError(TaTokError, ValueError):
    """A packet or ``.ttk`` file that is damaged, too new, or belongs to another model."""


class SourceError(TaTokError):
    """An image, video or camera that cannot be opened or read."""


class BackendError(TaTokError):
    """An inference backend that is not usable, or failed while running."""


def one_line(text: object) -> str:
    """The text of a foreign error on one line, for a message of ours."""
    return " ".join(str(text).split())
