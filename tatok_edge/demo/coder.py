"""Encodes the pictures of a camera with the settings of the pages, and decodes them again."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tatok_edge.demo.messages import Settings
from tatok_edge.errors import InputError
from tatok_edge.geometry import Image
from tatok_edge.model.tokenizer import Tokenizer
from tatok_edge.stream.decoder import StreamDecoder
from tatok_edge.stream.encoder import StreamEncoder
from tatok_edge.stream.frame import KeyframeTooLarge, StreamFrame
from tatok_edge.stream.rate import RateControl
from tatok_edge.tokens.budget import TokenBudget
from tatok_edge.tokens.delta import DeltaFrame
from tatok_edge.tokens.frame import TokenFrame

FIXED_RATE: Final = TokenBudget(min_tokens=1 << 24, max_depth=1, score="entropy")
"""Budget of the fixed-rate mode: one token for every patch. The entropy score costs no time, and ranks nothing here."""

Tokens = TokenFrame | DeltaFrame


class LiveCoder:
    """Encoder and decoder of one camera."""

    def __init__(self, tokenizer: Tokenizer, settings: Settings) -> None:
        self._tokenizer = tokenizer
        self.restart(settings)

    def restart(self, settings: Settings) -> None:
        """Take a new encoder and decoder."""
        # What is left of the bandwidth makes still parts sharper.
        self._encoder = StreamEncoder(self._tokenizer, max_loss_db=settings.max_loss_db, fill=True)
        self._decoder = StreamDecoder(self._tokenizer)
        self._mode = settings.mode
        self._rate: RateControl | None = None
        self.picture: Image | None = None
        """The last decoded picture."""
        self.depths: NDArray[np.int32] | None = None
        """Tokens that are held of each patch, ``(N,)``."""

    def follow(self, settings: Settings, *, restarted: bool) -> None:
        """Restart when the mode has changed; after a gap of the camera, take a keyframe."""
        if settings.mode != self._mode:
            self.restart(settings)
        elif restarted:
            self.request_keyframe()

    def request_keyframe(self) -> None:
        """Make the next frame a keyframe."""
        self._encoder.request_keyframe()

    def encode(
        self, image: Image, settings: Settings, *, index: int, timestamp_us: int, sent: Iterable[tuple[int, int]]
    ) -> tuple[Tokens, bytes] | None:
        """Tokens and packet of a picture; None where too little of the bandwidth is left.

        Args:
            image: RGB, uint8 ``(H, W, 3)``.
            settings: Mode, budget and bandwidth.
            index: Number of the frame.
            timestamp_us: Time of the frame in microseconds.
            sent: Times in microseconds and bits of earlier packets, for a bandwidth that begins with this frame.

        Raises:
            InputError: The bandwidth is too small for one keyframe.
        """
        if settings.mode == "fixed":
            frame = self._tokenizer.encode(image, budget=FIXED_RATE, index=index, timestamp_us=timestamp_us)
            return frame, self._tokenizer.pack(frame)
        encoder = self._encoder
        encoder.max_loss_db = settings.max_loss_db

        def encode(budget: TokenBudget) -> StreamFrame:
            encoder.budget = budget
            return encoder.encode(image, index=index, timestamp_us=timestamp_us)

        rate = self._rate_control(settings, sent)
        if rate is None:
            encoded = encode(settings.budget)
            return encoded.tokens, encoded.packet
        try:
            within = rate.encode(timestamp_us, settings.budget, encode)
        except KeyframeTooLarge as error:
            raise InputError(
                f"{settings.max_kbps:g} kbit/s are too few for {image.shape[1]}x{image.shape[0]} pixels: "
                f"a keyframe needs {error.bits / 1000:.1f} kbit"
            ) from None
        return None if within is None else (within.tokens, within.packet)

    def _rate_control(self, settings: Settings, sent: Iterable[tuple[int, int]]) -> RateControl | None:
        """Keeps the bandwidth; a new one counts the earlier packets."""
        if settings.max_kbps is None:
            self._rate = None
        elif self._rate is None or self._rate.bits != int(settings.max_kbps * 1000):
            self._rate = RateControl(settings.max_kbps)
            for when, bits in sent:
                self._rate.spend(when, bits)
        return self._rate

    def decode(self, tokens: Tokens, packet: bytes) -> None:
        """Decode what :meth:`encode` gave, into ``picture``."""
        if isinstance(tokens, TokenFrame) and self._mode == "fixed":
            self.picture = self._tokenizer.decode(tokens)
            self.depths = tokens.depth_map().ravel()
        else:
            self.picture = self._decoder.decode(packet).image
            self.depths = None if self._decoder.state is None else self._decoder.state.held.depths
