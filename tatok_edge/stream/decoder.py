"""Key and delta packets back to frames, also if packets are lost, late or repeated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from tatok_edge.errors import FormatError, InputError
from tatok_edge.format.header import PacketInfo, peek, verify
from tatok_edge.format.packet import body_crc, unpack, unpack_delta
from tatok_edge.geometry import Image, patch_grid
from tatok_edge.model.networks import Clock
from tatok_edge.model.tokenizer import Tokenizer
from tatok_edge.stream.pixels import reach_of
from tatok_edge.stream.state import StreamState, empty_state, held_ahead, state_of, update_of
from tatok_edge.stream.windows import around, move_flags
from tatok_edge.tokens.delta import DeltaFrame

LATE: Final = 16
"""A key packet up to this many frames older than the picture is late. An older one begins a new stream."""
MAX_EARLY: Final = 16
"""Largest number of packets that wait for packets before them."""


@dataclass(frozen=True, slots=True)
class DecodedFrame:
    """The picture after a packet."""

    image: Image | None = field(repr=False)
    """uint8 ``(H, W, 3)``; None before the first packet that could be decoded."""
    index: int
    """Number of the packet's frame."""
    timestamp_us: int
    """Time of that frame in microseconds."""
    kind: Literal["key", "delta"]
    """Kind of the packet."""
    stale: NDArray[np.bool_] = field(repr=False)
    """Patches that may differ from the encoder's, bool ``(h, w)``."""
    problem: str | None = None
    """Why the packet was not used, or the picture is not whole; None if all is well."""

    @property
    def complete(self) -> bool:
        """Whether the picture is the encoder's: the packet was used and no patch is stale."""
        return self.problem is None and not self.stale.any()


class StreamDecoder:
    """Turns key and delta packets of one stream back into frames.

    Packets may come from a file, a socket or a queue. Some may be lost, repeated, late or of another stream. Patches
    that miss an update are held and marked as stale until the next keyframe, or until a rolling refresh has gone once
    through the picture. Packets that come a few places too early are put in order.

    Args:
        tokenizer: The model that made the packets.
        on_loss: Called with a line of text when packets are missing. It may ask the sender for a keyframe
            (:meth:`StreamEncoder.request_keyframe`).
    """

    def __init__(self, tokenizer: Tokenizer, *, on_loss: Callable[[str], None] | None = None) -> None:
        self.tokenizer = tokenizer
        """The model."""
        self.state: StreamState | None = None
        """The state after the last used packet; None before the first one."""
        self._on_loss = on_loss
        self._stale = _Stale.nothing((0, 0))
        self._early: dict[tuple[int, int], bytes] = {}
        self._lost = False

    @property
    def needs_keyframe(self) -> bool:
        """Whether packets are missing, so that a keyframe would help."""
        return self.state is None or self._lost or bool(self._stale.picture.any())

    def decode(self, packet: bytes | bytearray | memoryview, *, bgr: bool = False) -> DecodedFrame:
        """Take the next packet and return the picture after it.

        Args:
            packet: One key or delta packet.
            bgr: Write the channels in BGR order.

        Raises:
            FormatError: The packet is damaged, too new or of another model; the decoder is as before.
        """
        problem = self.push(packet)
        info = peek(packet)
        state = self.state
        if state is None:
            stale = np.ones(patch_grid(info.width, info.height), np.bool_)
            return DecodedFrame(None, info.index, info.timestamp_us, info.kind, stale, problem)
        image = state.picture[: state.height, : state.width, :: -1 if bgr else 1].copy()
        stale = np.ones_like(self._stale.picture) if self._lost else self._stale.picture.copy()
        return DecodedFrame(image, info.index, info.timestamp_us, info.kind, stale, problem)

    def push(self, packet: bytes | bytearray | memoryview) -> str | None:
        """Take the next packet without a copy of its picture.

        Returns:
            Why the packet was not used; None if it was.

        Raises:
            FormatError: The packet is damaged, too new or of another model; the decoder is as before.
        """
        info = verify(packet)
        if info.reference is None:
            return self._push_key(packet, info)
        state = self.state
        if state is not None and info.index <= state.index and not self._lost:
            return f"packet of frame {info.index} came twice or too late: the picture is of frame {state.index}"
        if state is not None and self._follows(info, state):
            self._apply(packet, state, self._stale)
            self._catch_up()
            return None
        return self._push_out_of_order(bytes(packet), info)

    @staticmethod
    def _follows(info: PacketInfo, state: StreamState) -> bool:
        return (info.reference, info.follows, info.width, info.height) == (
            state.index,
            state.crc,
            state.width,
            state.height,
        )

    def _push_key(self, packet: bytes | bytearray | memoryview, info: PacketInfo) -> str | None:
        state = self.state
        if state is not None and not self._lost and info.index <= state.index <= info.index + LATE:
            return f"key packet of frame {info.index} came twice or too late: the picture is of frame {state.index}"
        frame = unpack(packet, self.tokenizer.entropy_model)
        self.state = state_of(frame, body_crc(packet), self.tokenizer, Clock())
        self._stale = _Stale.nothing(frame.grid)
        self._lost = False
        self._catch_up()
        return None

    def _apply(self, packet: bytes | bytearray | memoryview, state: StreamState, stale: _Stale) -> None:
        """Update ``state``, of which ``stale`` is stale, and make it the decoder's. All that can fail comes first."""
        sent = peek(packet).n_updated_cells or 0
        try:
            delta = unpack_delta(packet, self.tokenizer.entropy_model, held_ahead(state.held, sent))
            update = update_of(delta, state, self.tokenizer, Clock())
        except InputError as error:  # a packet with a right checksum that does not go with what is held
            raise FormatError(f"packet of frame {peek(packet).index}: {error}") from None
        state.apply(update, body_crc(packet))
        self.state, self._lost = state, False
        self._stale = stale.after(delta, update.decoded, reach_of(self.tokenizer.bundle.manifest))

    def _catch_up(self) -> None:
        """Apply packets that came too early and fit now; a damaged one is dropped."""
        state = self.state
        while state is not None and (early := self._early.pop((state.index, state.crc), None)) is not None:
            if not self._follows(peek(early), state):
                break
            try:
                self._apply(early, state, self._stale)
            except FormatError:
                break
        if state is not None:
            self._early = {key: early for key, early in self._early.items() if key[0] > state.index}

    def _push_out_of_order(self, packet: bytes, info: PacketInfo) -> str | None:
        """Take a delta packet that does not follow the last one: keep it for later, or join the stream with it."""
        if self._join(packet, info):
            return None
        state, reference = self.state, info.reference or 0
        if state is None:
            problem = f"packet of frame {info.index} updates frame {reference}; waiting for a keyframe"
        else:
            problem = (
                f"packet of frame {info.index} updates frame {reference}, the picture is of frame {state.index}: "
                "packets are missing or of another stream; waiting for a keyframe"
            )
            if reference > state.index:
                self._early[reference, info.follows or 0] = packet
                if len(self._early) > MAX_EARLY:  # those far ahead are strays, or come too early by far
                    del self._early[max(self._early)]
        if not self._lost and self._on_loss is not None:
            self._on_loss(problem)
        self._lost = True
        return problem

    def _join(self, packet: bytes, info: PacketInfo) -> bool:
        """Join a stream in its middle, at a packet that begins a round of a rolling refresh.

        Returns:
            Whether it is such a packet, so that the stream can be followed from here on.
        """
        if info.n_updated_cells != info.n_cells:
            return False
        state, old = empty_state(info.width, info.height, self.tokenizer), self.state
        state.index, state.crc = info.reference or 0, info.follows or 0
        if old is not None and old.grid == state.grid:  # an old picture is better than none
            state.picture = old.picture
        self._apply(packet, state, _Stale.everything(state.grid))
        self._catch_up()
        return True


@dataclass(frozen=True, slots=True)
class _Stale:
    """Which patches may differ from the encoder's; the arrays are never written to."""

    maps: NDArray[np.bool_]
    """Patches whose tokens and context are not those of the encoder, ``(h, w)``."""
    picture: NDArray[np.bool_]
    """Patches whose pixels may not be those of the encoder, ``(h, w)``."""

    @classmethod
    def nothing(cls, grid: tuple[int, int]) -> _Stale:
        return cls(np.zeros(grid, np.bool_), np.zeros(grid, np.bool_))

    @classmethod
    def everything(cls, grid: tuple[int, int]) -> _Stale:
        return cls(np.ones(grid, np.bool_), np.ones(grid, np.bool_))

    def after(self, delta: DeltaFrame, decoded: NDArray[np.bool_], reach: int) -> _Stale:
        """The same after a delta: ``decoded`` patches are right if all that the decoder saw around them was."""
        if not self.picture.any():
            return self
        maps, picture = self.maps & ~delta.renewed_map(), self.picture
        if delta.n_vectors:
            picture = move_flags(picture, delta.motion())
        return _Stale(maps, np.where(decoded, around(maps, reach), picture))
