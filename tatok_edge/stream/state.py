"""The state that both ends of a stream hold, and how packets change it.

Both ends hold, for every patch, its tokens, its context, its mean and the decoder's state as of the frame in which it
was last updated, and the picture that is shown. A delta packet moves cells of the shown picture, *renews* patches (new
tokens under a new context) and *refines* patches (further tokens under the held context). The pixels of these patches
and of those beside them are decoded and replaced in the shown picture; all other pixels stay. Context comes from
integer codes, so nothing drifts.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tatok_edge.geometry import CELL_SIDE, PATCH, PATCH_VALUES, Image, PictureSize, cell_grid, patch_grid
from tatok_edge.model.networks import CellContext, Clock, Prior
from tatok_edge.model.tokenizer import Tokenizer
from tatok_edge.runtime.cpu import kernels
from tatok_edge.stream.pixels import Maps, decode_patches, put_patches, reach_of
from tatok_edge.stream.windows import around, cell_of, in_motion, shifts, windows_of
from tatok_edge.tokens.checks import depths_of
from tatok_edge.tokens.delta import DeltaFrame
from tatok_edge.tokens.frame import TokenFrame
from tatok_edge.tokens.held import HeldTokens

HALO: Final = 4
"""Cells on each side of the cell of a renewed patch that are passed to the context network with it: what lies beyond
changes the context by a tenth of a grey level."""


@dataclass(slots=True)
class StreamState(PictureSize):
    """The state that encoder and decoder hold of a stream of pictures with ``N`` patches."""

    width: int
    """Width of the images in pixels."""
    height: int
    """Height of the images in pixels."""
    index: int
    """Number of the last frame."""
    crc: int
    """Checksum of the last packet; a delta packet names the checksum of the packet that it follows."""
    held: HeldTokens
    """Tokens of all patches and cells."""
    maps: Maps
    """What the decoder reads of all patches; updates write to it in place."""
    moved: NDArray[np.bool_]
    """Which patches show moved pixels, which their tokens do not describe, ``(N,)``."""
    offsets: NDArray[np.int32]
    """How far the pixels of each patch have moved away from what is held of it, int32 ``(h, w, 2)``, in half pixels."""
    picture: Image
    """The shown picture, uint8 RGB, padded to whole cells."""

    def copy(self) -> StreamState:
        """A state that changes independently."""
        return replace(self, maps=self.maps.copy())

    def apply(self, update: Update, crc: int) -> None:
        """Write an update; ``crc`` is the checksum of its packet. Nothing in it can fail."""
        self.held, self.moved, self.picture = update.held, update.moved, update.picture
        self.offsets = update.offsets
        if len(update.written):
            self.maps.write(update.written, update.columns)
        self.index, self.crc = update.delta.index, crc


@dataclass(frozen=True, slots=True)
class Update:
    """What a delta changes in a state, ready to be written."""

    delta: DeltaFrame
    """The delta."""
    held: HeldTokens
    """Tokens of all patches and cells after it."""
    written: NDArray[np.int32]
    """Patches of which other things are held after it: the updated ones, and those that moved far, ascending."""
    columns: Maps
    """What the decoder reads of these, one column each."""
    moved: NDArray[np.bool_]
    """Which patches show moved pixels after it, ``(N,)``."""
    offsets: NDArray[np.int32]
    """How far the pixels of each patch have moved away from what is held of it, int32 ``(h, w, 2)``."""
    source: NDArray[np.int64]
    """The patch of which was held before what is held of each patch after the move, ``(N,)``."""
    decoded: NDArray[np.bool_]
    """Patches whose pixels are decoded anew: the updated ones, and those beside them, ``(h, w)``."""
    picture: Image
    """The shown picture after it; a new array where it changes."""


def update_of(
    delta: DeltaFrame, state: StreamState, tokenizer: Tokenizer, clock: Clock, prior: Prior | None = None
) -> Update:
    """What a delta changes; changes nothing.

    Args:
        delta: The delta.
        state: The state before it.
        tokenizer: The model.
        clock: Counts the time.
        prior: Prior of the renewed patches, if the caller has it.

    Raises:
        InputError: The delta does not go with the state.
    """
    before = held_ahead(state.held, delta.cells.size)
    held = before.updated(delta)
    moved, offsets, picture = state.moved, state.offsets, state.picture
    source, written, decoded = np.arange(delta.n_patches), delta.updated, np.zeros(state.grid, np.bool_)
    if delta.n_vectors:
        motion = delta.motion()
        with clock.stage("motion"):
            moved = moved | in_motion(motion).ravel()
            source, offsets = shifts(motion, offsets)
            far = np.flatnonzero(source != np.arange(delta.n_patches))
            written = np.union1d(written, far).astype(np.int32)
            picture = kernels.move_cells(picture, motion)
    columns = Maps(*(np.take(values, source[written], 1) for values in state.maps.named().values()))
    if delta.n_updated:
        place = np.searchsorted(written, delta.updated)
        _renew(columns, place, delta, held, state, tokenizer, clock, prior)
        _refine(columns, place, delta, before, tokenizer)
        moved, offsets = moved.copy(), offsets.copy()
        moved[delta.updated] = False
        offsets.reshape(-1, 2)[delta.updated] = 0
        # The patches beside updated ones change with them, so that borders match; moved ones show other pixels.
        decoded = around(delta.update_map(), 1) & ~moved.reshape(state.grid)
        shown = np.flatnonzero(decoded).astype(np.int32)
        reach = reach_of(tokenizer.bundle.manifest)
        pixels = decode_patches(tokenizer.networks, state.maps, written, columns, shown, state.grid, reach, clock)
        picture = picture.copy() if picture is state.picture else picture
        put_patches(picture, shown, pixels)
    return Update(delta, held, written, columns, moved, offsets, source, decoded, picture)


def _renew(
    columns: Maps,
    place: NDArray[np.int64],
    delta: DeltaFrame,
    held: HeldTokens,
    state: StreamState,
    tokenizer: Tokenizer,
    clock: Clock,
    prior: Prior | None,
) -> None:
    """Write what the decoder reads of renewed patches; ``place`` is the column of each updated patch."""
    renewed = delta.renewed_map().ravel()
    new = renewed[delta.updated]
    if not new.any():
        return
    patches, tokens = delta.updated[new], renewed[delta.positions]
    if prior is None:
        prior = tokenizer.networks.prior_of(context_of(patches, held.global_ids, state, tokenizer, clock), None, clock)
    places = np.searchsorted(patches, delta.positions[tokens]).astype(np.int32)
    codes = kernels.codes_from_ids(np.ascontiguousarray(delta.ids[tokens]), tokenizer.levels)
    values = kernels.decoder_state(codes, places, prior.expected, prior.entropy, tokenizer.levels)
    columns.state[:, place[new]] = values
    columns.context[:, place[new]] = prior.context
    columns.mean[:, place[new]] = prior.mean


def _refine(
    columns: Maps, place: NDArray[np.int64], delta: DeltaFrame, before: HeldTokens, tokenizer: Tokenizer
) -> None:
    """Write the further tokens of refined patches; ``place`` is the column of each updated patch."""
    further = ~delta.renewed_map().ravel()[delta.positions]
    if not further.any():
        return
    levels, depth = tokenizer.levels, tokenizer.depth
    dims = len(levels)
    column = place[np.searchsorted(delta.updated, delta.positions[further])]
    token = (before.starts(delta)[delta.positions] + depths_of(delta.positions) - 1)[further]
    codes = kernels.codes_from_ids(np.ascontiguousarray(delta.ids[further]), levels)
    values = (2 * codes + 1).astype(np.float32) / np.array(levels, np.float32) - np.float32(1)
    columns.state[token[:, None] * dims + np.arange(dims), column[:, None]] = values
    columns.state[depth * dims + token, column] = 1


def held_ahead(held: HeldTokens, cells: int) -> HeldTokens:
    """The tokens that a delta packet updates.

    A packet with the global tokens of all cells begins a round of a rolling refresh: from it on, the patch tokens
    before it count as unknown. So a receiver that joins there knows all that later packets rely on.

    Args:
        held: The tokens after the packet before.
        cells: Global tokens in the packet.
    """
    if cells < held.global_ids.size:
        return held
    return HeldTokens(held.global_ids, np.zeros_like(held.depths), np.zeros_like(held.ids))


def context_of(
    patches: NDArray[np.int32], global_ids: NDArray[np.int32], size: PictureSize, tokenizer: Tokenizer, clock: Clock
) -> CellContext:
    """What the cells around some patches say of them, one column for each.

    Args:
        patches: The patches ``(P,)``, ascending, at least one.
        global_ids: Ids of the global tokens of all cells ``(hc * wc,)``.
        size: The picture.
        tokenizer: The model.
        clock: Counts the time.
    """
    columns = size.grid[1]
    cells = cell_of(patches, columns)
    touched, cell = np.unique(cells, return_inverse=True)
    row, column = np.divmod(patches, columns)
    codes = kernels.codes_from_ids(global_ids, tokenizer.levels).T.reshape(-1, *size.cell_grid)
    found: list[tuple[NDArray[np.int64], CellContext]] = []
    for window in windows_of(touched, size.cell_grid, HALO):
        (top, left), (height, width) = window.corner, window.size
        area = codes[:, top : top + height, left : left + width]
        of_window = tokenizer.networks.cell_context(area, clock)
        mine = np.flatnonzero(np.isin(cell, window.members))
        place = (row[mine] - CELL_SIDE * top) * (CELL_SIDE * width) + column[mine] - CELL_SIDE * left
        found.append((mine, of_window.of(place)))
    order = np.argsort(np.concatenate([mine for mine, _ in found]))
    every = CellContext(*(np.concatenate([getattr(of, name) for _, of in found], 1) for name in ("coarse", "mean")))
    return every.of(order)


def state_of(
    frame: TokenFrame, crc: int, tokenizer: Tokenizer, clock: Clock, prior: Prior | None = None
) -> StreamState:
    """The state after a keyframe.

    Args:
        frame: The keyframe.
        crc: Checksum of its packet.
        tokenizer: The model.
        clock: Counts the time.
        prior: Prior of all patches, if the caller has it.

    Raises:
        InputError: The frame has stacks deeper than the model's.
    """
    rows, columns = frame.grid
    held = HeldTokens.of_frame(frame, tokenizer.depth)
    if prior is None:
        cell_codes = kernels.codes_from_ids(frame.global_ids, tokenizer.levels)
        prior = tokenizer.networks.prior(cell_codes.T.reshape(-1, *frame.cell_grid), clock)
    codes = kernels.codes_from_ids(frame.ids, tokenizer.levels)
    state = kernels.decoder_state(codes, frame.positions, prior.expected, prior.entropy, tokenizer.levels)
    pixels = tokenizer.networks.pixels(state, prior.context, prior.mean, frame.grid, clock)
    return StreamState(
        width=frame.width,
        height=frame.height,
        index=frame.index,
        crc=crc,
        held=held,
        maps=Maps(state, prior.context, prior.mean),
        moved=np.zeros(frame.n_patches, np.bool_),
        offsets=np.zeros((rows, columns, 2), np.int32),
        picture=kernels.assemble(pixels, columns, rows * PATCH, columns * PATCH, False),
    )


def empty_state(width: int, height: int, tokenizer: Tokenizer) -> StreamState:
    """The state before the first packet: no tokens, a grey picture."""
    (rows, columns), (hc, wc) = patch_grid(width, height), cell_grid(width, height)
    patches, depth, dims = rows * columns, tokenizer.depth, len(tokenizer.levels)
    return StreamState(
        width=width,
        height=height,
        index=-1,
        crc=0,
        held=HeldTokens(np.zeros(hc * wc, np.int32), np.zeros(patches, np.int32), np.zeros((patches, depth), np.int32)),
        maps=Maps(
            np.zeros((depth * (dims + 2), patches), np.float32),
            np.zeros((tokenizer.networks.context_width, patches), np.float32),
            np.zeros((PATCH_VALUES, patches), np.float32),
        ),
        moved=np.zeros(patches, np.bool_),
        offsets=np.zeros((rows, columns, 2), np.int32),
        picture=np.full((rows * PATCH, columns * PATCH, 3), 128, np.uint8),
    )
