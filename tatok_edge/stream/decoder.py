"""Key and delta packets back to frames, also if packets are lost, late or repeated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from tatok_edge.format.header import PacketInfo, peek, verify
from tatok_edge.format.packet import body_crc, unpack, unpack_delta, unpack_delta_cells
from tatok_edge.geometry import PATCH, Image, patch_grid
from tatok_edge.model.networks import Clock
from tatok_edge.model.tokenizer import Tokenizer
from tatok_edge.runtime.cpu import kernels
from tatok_edge.stream.state import StreamState, empty_state, in_motion, prior_of, state_of

LATE: Final = 256
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
        self._stale = np.zeros((0, 0), np.bool_)
        self._picture: Image | None = None
        self._moved: Image | None = None
        self._early: dict[tuple[int, int], bytes] = {}
        self._joining: _Joining | None = None
        self._lost = False

    @property
    def needs_keyframe(self) -> bool:
        """Whether packets are missing, so that a keyframe would help."""
        return self.state is None or self._lost or bool(self._stale.any())

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
        image = self._shown(state)[: state.height, : state.width, :: -1 if bgr else 1].copy()
        stale = np.ones_like(self._stale) if self._lost else self._stale.copy()
        return DecodedFrame(image, info.index, info.timestamp_us, info.kind, stale, problem)

    def push(self, packet: bytes | bytearray | memoryview) -> str | None:
        """Take the next packet without making its picture.

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
            self._apply(packet, state)
            self._catch_up(state)
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
        self.state = state_of(frame, body_crc(packet), self.tokenizer)
        self._stale = np.zeros(frame.grid, np.bool_)
        self._picture = self._moved = None
        self._lost, self._joining = False, None
        self._catch_up(self.state)
        return None

    def _apply(self, packet: bytes | bytearray | memoryview, state: StreamState) -> None:
        """Update ``state`` and the picture. All that can fail comes first."""
        delta = unpack_delta(packet, self.tokenizer.entropy_model, state.global_ids)
        prior = prior_of(delta, state, self.tokenizer)
        if delta.n_vectors:
            motion = delta.motion()
            self._moved = kernels.move_cells(self._shown(state), motion)
            if self._stale.any():  # pixels that move may have been decoded beside stale patches
                self._stale |= in_motion(motion)
        if delta.n_vectors or delta.n_updated:
            self._picture = None
        state.apply(delta, body_crc(packet), prior, self.tokenizer.levels)
        self._stale.ravel()[delta.updated] = False
        self._lost, self._joining = False, None

    def _shown(self, state: StreamState) -> Image:
        """The picture, uint8 RGB, padded to whole cells."""
        if self._picture is None:
            rows, columns = state.grid
            pixels = state.pixels(self.tokenizer.networks, Clock())
            self._picture = kernels.assemble(pixels, columns, rows * PATCH, columns * PATCH, False)
            if self._moved is not None:
                moved = np.flatnonzero(state.moved).astype(np.int32)
                kernels.update_reference(self._moved, False, self._picture, moved)
        return self._picture

    def _catch_up(self, state: StreamState) -> None:
        """Apply packets that came too early and fit now."""
        while (early := self._early.pop((state.index, state.crc), None)) is not None:
            info = peek(early)
            if not self._follows(info, state):
                break
            self._apply(early, state)
        self._early = {key: early for key, early in self._early.items() if key[0] > state.index}

    def _push_out_of_order(self, packet: bytes, info: PacketInfo) -> str | None:
        """Take a delta packet that does not follow the last one: keep it for later, or join the stream with it."""
        state, reference = self.state, info.reference or 0
        if state is None:
            problem = f"packet of frame {info.index} updates frame {reference}; waiting for a keyframe"
        else:
            problem = (
                f"packet of frame {info.index} updates frame {reference}, the picture is of frame {state.index}: "
                "packets are missing or of another stream; waiting for a keyframe"
            )
            if reference > state.index and len(self._early) < MAX_EARLY:
                self._early[reference, info.follows or 0] = packet
        if not self._lost and self._on_loss is not None:
            self._on_loss(problem)
        self._lost = True
        return None if self._join(packet, info) else problem

    def _join(self, packet: bytes, info: PacketInfo) -> bool:
        """Join a stream in its middle: collect the global tokens that a rolling refresh sends.

        Returns:
            Whether all global tokens are known, so that the stream can be followed from here on.
        """
        joining = self._joining
        if joining is not None and info.index <= joining.state.index:
            return False
        if joining is None or not self._follows(info, joining.state):
            tokenizer = self.tokenizer
            state = empty_state(info.width, info.height, len(tokenizer.levels), tokenizer.networks.context_width)
            joining = self._joining = _Joining(state, np.zeros(state.global_ids.size, np.bool_))
        state = joining.state
        cells, global_ids = unpack_delta_cells(packet, self.tokenizer.entropy_model)
        state.global_ids[cells] = global_ids
        joining.known[cells] = True
        if not joining.known.all():
            state.index, state.crc = info.index, body_crc(packet)
            return False
        codes = kernels.codes_from_ids(state.global_ids, self.tokenizer.levels)
        state.global_codes = np.ascontiguousarray(codes.T).reshape(state.global_codes.shape)
        held = self.state
        if held is not None and held.grid == state.grid:  # old patches are better than none; all are stale
            state.context, state.mean, state.state = held.context, held.mean, held.state
        self._stale = np.ones(state.grid, np.bool_)
        self._picture = self._moved = None
        self.state = state
        self._apply(packet, state)
        return True


@dataclass(slots=True)
class _Joining:
    """A stream that is being joined in its middle, until all of its global tokens are known."""

    state: StreamState
    """Its state; so far only the global tokens are right."""
    known: NDArray[np.bool_]
    """Which global tokens have been received, ``(hc * wc,)``."""
