"""Key and delta packets back to frames, also if packets are lost, late or repeated."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from tatok_edge.errors import FormatError, InputError
from tatok_edge.format.header import PacketInfo, peek
from tatok_edge.format.packet import body_crc, checked, unpack, unpack_delta, unpack_delta_cells
from tatok_edge.geometry import Image, patch_grid
from tatok_edge.limits import Limits
from tatok_edge.model.networks import Clock
from tatok_edge.model.tokenizer import Tokenizer
from tatok_edge.stream.pixels import reach_of
from tatok_edge.stream.state import StreamState, Update, empty_state, held_ahead, state_of, update_of
from tatok_edge.stream.windows import around, move_flags

LATE: Final = 16
"""A key packet up to this many frames older than the picture is late, if it was seen before or no packet follows it. An
older one begins a new stream."""
MAX_EARLY: Final = 16
"""Largest number of packets that wait for packets before them."""


@dataclass(frozen=True, slots=True)
class DecodedFrame:
    """The picture after a packet.

    Example:
        >>> decoder = tatok_edge.StreamDecoder(tokenizer)
        >>> decoded = decoder.decode(tatok_edge.StreamEncoder(tokenizer).encode(image).packet)
        >>> decoded.image.shape, decoded.complete, decoded.stale.any()
    """

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
    through the picture. Packets that come a few places too early are put in order. An encoder that starts again is
    followed, whatever its frame numbers are.

    Args:
        tokenizer: The model that made the packets.
        on_loss: Called with a line of text when packets are missing. It may ask the sender for a keyframe
            (:meth:`StreamEncoder.request_keyframe`).
        limits: Largest packet and picture; by default those of ``tokenizer``.

    Example:
        >>> decoder = tatok_edge.StreamDecoder(tokenizer, on_loss=print)
        >>> for frame in tatok_edge.Stream(tokenizer, images, fps=30):
        ...     picture = decoder.decode(frame.packet).image  # uint8 (H, W, 3)
    """

    def __init__(
        self, tokenizer: Tokenizer, *, on_loss: Callable[[str], None] | None = None, limits: Limits | None = None
    ) -> None:
        self.tokenizer = tokenizer
        """The model."""
        self.state: StreamState | None = None
        """The state after the last used packet; None before the first one."""
        self._limits = tokenizer.limits if limits is None else limits
        self._on_loss = on_loss
        self._stale = _Stale.nothing((0, 0))
        self._early: dict[tuple[int, int], bytes] = {}
        self._lost = False
        self._seen: deque[tuple[int, int]] = deque(maxlen=LATE + 1)
        self._restart: tuple[tuple[int, int], bytes] | None = None

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
            FormatError: The packet is damaged, too new, too large or of another model; the decoder is as before.
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
            FormatError: The packet is damaged, too new, too large or of another model; the decoder is as before.
        """
        info = checked(packet, self._limits)
        model = self.tokenizer.tag
        if info.model not in (None, model):
            raise FormatError(f"packet of frame {info.index} was made by another model than {model.hex()}")
        if info.reference is None:
            return self._push_key(packet, info)
        state = self.state
        if self._restart is not None and (info.reference, info.follows) == self._restart[0]:
            self._follow_restart(packet)
            return None
        if state is not None and info.index <= state.index and not self._lost:
            return f"packet of frame {info.index} came twice or too late: the picture is of frame {state.index}"
        if state is not None and _follows(info, state):
            self._apply(packet, state, self._stale)
            self._catch_up()
            return None
        return self._push_out_of_order(bytes(packet), info)

    def _push_key(self, packet: bytes | bytearray | memoryview, info: PacketInfo) -> str | None:
        state = self.state
        if state is not None and not self._lost and info.index <= state.index <= info.index + LATE:
            if (number := (info.index, body_crc(packet))) not in self._seen:
                # Not of this stream, as far as it was received: perhaps the encoder has started again.
                unpack(packet, self.tokenizer.entropy_model, limits=self._limits)
                self._restart = number, bytes(packet)
            return f"key packet of frame {info.index} came twice or too late: the picture is of frame {state.index}"
        self._show_key(packet)
        self._catch_up()
        return None

    def _show_key(self, packet: bytes | bytearray | memoryview) -> None:
        """Begin anew with a key packet. All that can fail comes first."""
        frame = unpack(packet, self.tokenizer.entropy_model, limits=self._limits)
        crc = body_crc(packet)
        state = state_of(frame, crc, self.tokenizer, Clock())
        self._commit(state, _Stale.nothing(frame.grid))

    def _follow_restart(self, packet: bytes | bytearray | memoryview) -> None:
        """Take the packet behind the first one of an encoder that has started again: from here on, follow that."""
        assert self._restart is not None
        trial = StreamDecoder(self.tokenizer, limits=self._limits)
        trial.push(self._restart[1])
        trial.push(packet)
        state = trial.state
        assert state is not None
        self._early = {}
        self._commit(state, _Stale.nothing(state.grid))

    def _apply(self, packet: bytes | bytearray | memoryview, state: StreamState, stale: _Stale) -> None:
        """Update ``state``, of which ``stale`` is stale, and make it the decoder's. All that can fail comes first."""
        info = peek(packet)
        try:
            ahead = held_ahead(state.held, info.n_updated_cells or 0)
            delta = unpack_delta(packet, self.tokenizer.entropy_model, ahead)
            update = update_of(delta, state, self.tokenizer, Clock())
        except InputError as error:  # a packet with a right checksum that does not go with what is held
            raise FormatError(f"packet of frame {info.index}: {error}") from None
        after = stale.after(update, reach_of(self.tokenizer.bundle.manifest))
        crc = body_crc(packet)
        state.apply(update, crc)
        self._commit(state, after)

    def _commit(self, state: StreamState, stale: _Stale) -> None:
        """Make a state the decoder's. It cannot fail."""
        self.state, self._stale, self._lost, self._restart = state, stale, False, None
        self._seen.append((state.index, state.crc))

    def _catch_up(self) -> None:
        """Apply packets that came too early and fit now; a damaged one is dropped."""
        state = self.state
        while state is not None and (early := self._early.get(key := (state.index, state.crc))) is not None:
            if not _follows(peek(early), state):
                break
            try:
                self._apply(early, state, self._stale)
            except FormatError:
                break
            del self._early[key]
        if state is not None:
            self._early = {key: early for key, early in self._early.items() if key[0] > state.index}

    def _push_out_of_order(self, packet: bytes, info: PacketInfo) -> str | None:
        """Take a delta packet that does not follow the last one: keep it for later, or join the stream with it."""
        if self._join(packet, info):
            return None
        # What can be read of it without the state must be right.
        unpack_delta_cells(packet, self.tokenizer.entropy_model, limits=self._limits)
        state, reference = self.state, info.reference or 0
        if state is None:
            problem = f"packet of frame {info.index} updates frame {reference}; waiting for a keyframe"
        else:
            problem = (
                f"packet of frame {info.index} updates frame {reference}, the picture is of frame {state.index}: "
                "packets are missing or of another stream; waiting for a keyframe"
            )
            if reference > state.index:
                self._keep(packet, (reference, info.follows or 0))
        told, self._lost = self._lost, True
        if not told and self._on_loss is not None:
            self._on_loss(problem)
        return problem

    def _keep(self, packet: bytes, key: tuple[int, int]) -> None:
        """Keep a packet that came too early. The nearest are kept: those far ahead are strays, or too early by far."""
        self._early[key] = packet
        while len(self._early) > MAX_EARLY or sum(map(len, self._early.values())) > self._limits.max_packet:
            del self._early[max(self._early)]

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


def _follows(info: PacketInfo, state: StreamState) -> bool:
    """Whether a delta packet updates a state."""
    packet = info.reference, info.follows, info.width, info.height
    return packet == (state.index, state.crc, state.width, state.height)


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

    def after(self, update: Update, reach: int) -> _Stale:
        """The same after an update: decoded patches are right if all that the decoder saw around them was."""
        if not self.picture.any():
            return self
        delta, picture = update.delta, self.picture
        # Where a moved patch comes from depends on how far it had moved before, which is held with it.
        came = self.maps.ravel()[update.source].reshape(self.maps.shape)
        maps = (self.maps | came) & ~delta.renewed_map()
        if delta.n_vectors:
            picture = move_flags(picture, delta.motion())
        return _Stale(maps, np.where(update.decoded, around(maps, reach), picture))
