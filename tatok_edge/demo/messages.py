"""Messages of a page over its socket: small JSON objects. Each is checked before use."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, Final, Literal, TypeVar

from tatok_edge.errors import InputError
from tatok_edge.stream.options import MAX_LOSS_DB
from tatok_edge.stream.rate import SMALLEST_KBPS
from tatok_edge.tokens.budget import TokenBudget
from tatok_edge.tokens.checks import MAX_DEPTH

MAX_TEXT: Final = 4096
"""Length of the longest text message in characters."""
MAX_JPEG: Final = 1 << 20
"""Size of the largest webcam picture in bytes."""
SIZES: Final = (64, 1920)
"""Smallest and largest length of the longer side of a picture in pixels."""
MAX_SIDE_RATIO: Final = 16
"""Largest ratio of the sides of a JPEG picture."""
MAX_KBPS: Final = 1e6
DEFAULT_KBPS: Final = 128.0
MAX_NUMBER: Final = 1 << 53
"""Browsers store larger whole numbers inexactly."""

Mode = Literal["adaptive", "fixed"]
Typed = TypeVar("Typed")


class MessageError(InputError):
    """A wrong message from a page."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of the sliders of the page."""

    tau: float = 1.0
    """Share of the total score to keep; see :class:`TokenBudget`."""
    keep: float | None = None
    """Most tokens per patch on average in one frame; None for no limit."""
    max_tokens: int | None = None
    """Largest number of patch tokens in one frame."""
    max_loss_db: float = MAX_LOSS_DB
    """Allowed loss of PSNR against all tokens of every frame; see :class:`StreamEncoder`."""
    max_kbps: float | None = DEFAULT_KBPS
    """Largest bandwidth of any second, in kbit/s; None for no limit. What moving parts leave of it makes still parts
    sharper, up to the depth of the model; without a limit they stay as they were sent."""
    mode: Mode = "adaptive"
    """``"adaptive"`` sends tokens for changed patches only, ``"fixed"`` one token for every patch of every frame."""
    size: int = 320
    """Length of the longer side of the pictures in pixels; larger pictures are scaled down."""
    version: int = 0
    """Number of changes so far."""

    @property
    def budget(self) -> TokenBudget:
        """Budget of each packet."""
        return TokenBudget(tau=self.tau, keep=self.keep, max_tokens=self.max_tokens)

    def changed(self, changes: dict[str, Any]) -> Settings:
        """These settings with the ``changes`` of a page.

        Raises:
            MessageError: An unknown setting, or a value outside its range; the message says what is allowed.
        """
        checked: dict[str, Any] = {}
        for name, value in changes.items():
            if name not in _CHECKS:
                raise MessageError(f"settings has no {_shown(name)}; it has {', '.join(_CHECKS)}")
            checked[name] = _CHECKS[name](name, value)
        return replace(self, **checked, version=self.version + 1)

    def report(self) -> dict[str, Any]:
        """The settings as JSON."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def parse(text: str) -> dict[str, Any]:
    """Parse a text message: a JSON object with a ``type``.

    Raises:
        MessageError: The message is too long, no JSON, or no object with a type.
    """
    if len(text) > MAX_TEXT:
        raise MessageError(f"a message has at most {MAX_TEXT} characters, got {len(text)}")
    try:
        message = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        raise MessageError('a message must be JSON, such as {"type": "settings", "tau": 0.8}') from None
    if not isinstance(message, dict) or not isinstance(message.get("type"), str):
        raise MessageError('a message must be a JSON object with a "type"')
    return message


def whole(message: dict[str, Any], name: str, low: int = 0, high: int = MAX_NUMBER) -> int:
    """The whole number ``name`` of a message.

    Raises:
        MessageError: The number is missing, not whole, or not from ``low`` to ``high``.
    """
    return _integer(name, message.get(name), low, high)


def flag(message: dict[str, Any], name: str) -> bool:
    """The boolean ``name`` of a message.

    Raises:
        MessageError: The value is missing or no boolean.
    """
    return _typed(message, name, bool, "true or false")


def string(message: dict[str, Any], name: str) -> str:
    """The text ``name`` of a message.

    Raises:
        MessageError: The value is missing or no text.
    """
    return _typed(message, name, str, "text")


def jpeg_size(data: bytes) -> tuple[int, int]:
    """Width and height of a JPEG picture, from its header: a huge picture is refused without decoding.

    Raises:
        MessageError: It is no JPEG picture, or its size is not allowed.
    """
    at = 2
    while data[:2] == b"\xff\xd8" and at + 9 <= len(data) and data[at] == 0xFF:
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == 0xFF:  # padding before a marker
            at += 1
            continue
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # start of frame
            height, width = (int.from_bytes(data[at + 5 + i : at + 7 + i], "big") for i in (0, 2))
            short, long = sorted((width, height))
            if not SIZES[0] // 2 <= short <= long <= SIZES[1] or long > MAX_SIDE_RATIO * short:
                raise MessageError(
                    f"a picture must have sides of {SIZES[0] // 2} to {SIZES[1]} pixels, got {width}x{height}"
                )
            return width, height
        if marker in (0xD8, 0xD9, 0xDA) or length < 2:
            break
        at += 2 + length
    raise MessageError("a binary message must be a JPEG picture")


def _refuse(constant: str) -> float:
    raise ValueError(constant)


def _shown(value: object) -> str:
    """A value from a page, shortened for an error message."""
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}..."


def _typed(message: dict[str, Any], name: str, kind: type[Typed], what: str) -> Typed:
    value = message.get(name)
    if not isinstance(value, kind):
        raise MessageError(f"{name} must be {what}, got {_shown(value)}")
    return value


def _real(name: str, value: object, low: float, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise MessageError(f"{name} must be a number from {low:g} to {high:g}, got {_shown(value)}")
    return float(value)


def _integer(name: str, value: object, low: int, high: int) -> int:
    # JavaScript has one type of number: 3.0 is a whole number.
    if isinstance(value, float) and math.isfinite(value) and value == int(value):
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise MessageError(f"{name} must be a whole number from {low} to {high}, got {_shown(value)}")
    return value


def _mode(name: str, value: object) -> str:
    if value not in ("adaptive", "fixed"):
        raise MessageError(f"{name} must be 'adaptive' or 'fixed', got {_shown(value)}")
    return str(value)


_CHECKS: Final[dict[str, Callable[[str, object], Any]]] = {
    "tau": lambda name, value: _real(name, value, 0.01, 1.0),
    "keep": lambda name, value: None if value is None else _real(name, value, 0.0, MAX_DEPTH),
    "max_tokens": lambda name, value: None if value is None else _integer(name, value, 0, 1 << 24),
    "max_loss_db": lambda name, value: _real(name, value, 0.0, 20.0),
    "max_kbps": lambda name, value: None if value is None else _real(name, value, SMALLEST_KBPS, MAX_KBPS),
    "mode": _mode,
    "size": lambda name, value: _integer(name, value, *SIZES),
}
