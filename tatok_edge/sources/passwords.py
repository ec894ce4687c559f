"""Hides user names, passwords and tokens in what a message, a log or a page shows."""

from __future__ import annotations

import re

_RUN = re.compile(r"[^\s\"']*")
"""A URL ends at white space or a quote."""
_HOST = re.compile(r"(?:\[[0-9A-Fa-f:.]*\]|[^/?#:\s\"']*)(?::\d*)?[^\w/?#\s\"']*(?:[/?#\s\"']|$)")
"""A host with or without a port, and punctuation of the sentence around it."""
_SECRET = re.compile(
    r"(?i)((?:password|passwd|passw?|pwd|user-pw|user-id|token|secret|auth)\s*=\s*)"
    r"(\"(?:\\.|[^\"\\])*\"?|'(?:\\.|[^'\\])*'?|[^&\s]+)"
)


def without_secrets(text: str) -> str:
    """A URL, pipeline or message without user names, passwords and tokens.

    In a URL, everything between ``://`` and the last ``@`` before white space or a quote is removed. A password may
    hold any other character, ``/``, ``?``, ``#`` and ``@`` too, although a correct URL percent-encodes them. So more
    than the password may be hidden: of ``rtsp://host/path@2x``, which has no password, ``rtsp://2x`` is shown.
    Where the text after ``://`` is no host, a password with white space or a quote is assumed, and the same is done
    from there to the next ``@``.
    Values such as those of ``password=`` and ``user-pw=`` are replaced by ``***``.
    """
    shown = []
    start = 0
    while (colon := text.find("://", start)) >= 0:
        shown.append(text[start : colon + 3])
        start = _end_of_userinfo(text, colon + 3)
    shown.append(text[start:])
    return _SECRET.sub(r"\1***", "".join(shown))


def _end_of_userinfo(text: str, start: int) -> int:
    """Where the host of a URL begins whose userinfo or host begins at ``start``."""
    at = _last_at(text, start)
    if at < 0 and not _HOST.match(text, start) and (further := text.find("@", start)) >= 0:
        at = _last_at(text, further)
    return at + 1 if at >= 0 else start


def _last_at(text: str, start: int) -> int:
    """Place of the last ``@`` before white space or a quote; -1 where there is none."""
    run = _RUN.match(text, start)
    assert run is not None
    return text.rfind("@", start, run.end())
