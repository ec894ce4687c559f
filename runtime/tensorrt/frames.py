"""From uint8 frames to tokens and back on the GPU: the kernels around the engines.

Only frames and tokens are uploaded and downloaded; all values between them stay on the GPU. The steps are those of
:mod:`tatok_edge.model.tokenizer` with the kernels of the CPU: the same outputs of the networks give the same tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from tatok_edge.errors import BackendError, InputError
from tatok_edge.geometry import CELL, CELL_SIDE, PATCH_VALUES, WINDOW_VALUES
from tatok_edge.runtime.cpu import kernels as cpu_kernels
from tatok_edge.runtime.cuda.arrays import DeviceArray
from tatok_edge.runtime.cuda.device import Device
from tatok_edge.runtime.cuda.kernels import MAX_PATCHES, DtfLimits, Frames, Kernels, Scores
from tatok_edge.runtime.session import DecodeRequest, EncodedFrame, EncodeRequest, Stage, TokenFilter
from tatok_edge.runtime.tensorrt.choice import smallest_fitting
from tatok_edge.runtime.tensorrt.programs import PADDED, Programs, Shape

SCORES = ("residual", "visual", "entropy", "information")
"""Scores that this session can compute."""
_CELL_PATCHES = CELL_SIDE * CELL_SIDE


class Exchange:
    """Memory for exchanging values between host and GPU: page-locked on the host, with a copy on the device.

    Args:
        device: The GPU.
        nbytes: Size.
        pointer: Memory of the device to use for the copy; by default new memory.
        small: Where host and GPU share their memory (on a Jetson), use the same memory and copy nothing. The GPU does
            not cache such memory. So this is for values that it reads or writes once and in whole lines, not for
            frames, whose single bytes the kernels read several times.
    """

    def __init__(self, device: Device, nbytes: int, *, pointer: int | None = None, small: bool = False) -> None:
        self._device = device
        self.mapped = small and device.shares_memory
        """Whether host and device use the same memory."""
        self._host = device.pinned(nbytes, np.uint8, mapped=self.mapped)
        if self.mapped:
            pointer = self._host.device_pointer
        self.pointer: int = device.allocate(nbytes) if pointer is None else pointer
        """Address on the device."""

    def _view(self, shape: Shape, dtype: DTypeLike) -> NDArray[Any]:
        kind = np.dtype(dtype)
        return self._host.array[: math.prod(shape) * kind.itemsize].view(kind).reshape(shape)

    def upload(self, array: NDArray[Any], stream: int) -> None:
        """Copy an array, of any strides, before later work on the stream."""
        view = self._view(array.shape, array.dtype)
        np.copyto(view, array)
        if not self.mapped and view.size:
            self._device.copy_to_device(self.pointer, view, stream)

    def download(self, shape: Shape, dtype: DTypeLike, stream: int) -> NDArray[Any]:
        """A view of the values: valid once the stream has reached this point, until the next upload or download."""
        view = self._view(shape, dtype)
        if not self.mapped and view.size:
            self._device.copy_to_host(view, self.pointer, stream)
        return view


class DeviceFrames:
    """Encodes and decodes frames on the GPU. The caller holds a lock and has made the device current.

    Args:
        programs: The engines.
        device: Their GPU.
        kernels: The CUDA kernels.
        stream: The stream of all work.

    Raises:
        BackendError: too little memory.
    """

    def __init__(self, programs: Programs, device: Device, kernels: Kernels, stream: int) -> None:
        self._programs, self._device, self._kernels, self._stream = programs, device, kernels, stream
        self._context, self._encoder = programs.by_name["context"], programs.by_name[PADDED]
        self._mean = programs.by_name["cell_context"].pointers["mean"]
        sizes = [profile["codes"].max for profile in programs.by_name["cell_context"].manifest.profiles]
        state = programs.by_name["decoder"].manifest.profiles[-1]["state"].max
        self._dims = sizes[0][1]
        self._depth = state[1] // (self._dims + 2)
        self._stack = self._depth * self._dims  # codes of a patch
        cells = max(rows * columns for _, _, rows, columns in sizes)
        patches = cells * _CELL_PATCHES
        self._edges = [profile["features"].max[0] for profile in self._encoder.manifest.profiles]
        self._row = self._encoder.manifest.profiles[-1]["features"].max[1]
        self._frame = Exchange(device, cells * CELL * CELL * 3)
        self._scores = Exchange(device, patches * self._depth * 4)
        self._entropy = Exchange(device, patches * self._depth * 4, pointer=self._context.pointers["entropy"])
        self._positions = Exchange(device, patches * self._depth * 4, small=True)
        self._patches = Exchange(device, patches * 4, small=True)
        self._count = Exchange(device, 4, small=True)
        self._codes = Exchange(device, patches * self._stack * 4)
        cell_codes = programs.by_name["cell_context"].pointers["codes"]
        self._cell_codes = Exchange(device, cells * self._dims * 4, pointer=cell_codes)
        self._row_codes = Exchange(device, self._edges[-1] * self._stack * 4, pointer=self._encoder.pointers["codes"])
        self._basis = Exchange(device, self._stack * PATCH_VALUES * 2)
        self._uploaded: NDArray[np.int16] | None = None  # basis on the device
        self._depths = device.allocate(patches * self._depth * 4)
        self._activity, self._weights = device.allocate(patches * 8), device.allocate(patches * 4)
        self._filled = 0
        self._waiting: list[NDArray[np.int32]] = []  # targets for the codes of the filled rows
        self._every = device.allocate(patches * 4)
        every = np.arange(patches, dtype=np.int32)
        device.copy_to_device(self._every, every, stream)
        device.synchronize(stream)

    # --- encode -----------------------------------------------------------------------------------

    def encode(
        self, frames: Sequence[NDArray[np.uint8] | DeviceArray], request: EncodeRequest, stage: Stage
    ) -> list[EncodedFrame]:
        """See :meth:`tatok_edge.runtime.session.FrameSession.encode_frames`.

        The frames are filtered one after the other, and the feature rows of their kept patches are collected. The patch
        encoder runs when its largest profile is full, and at the end.
        """
        self._check_request(request)
        levels = request.levels
        grids = [self._check(frame.shape[0], frame.shape[1]) for frame in frames]
        encoded: list[_Encoded] = []
        self._filled = 0
        self._waiting.clear()
        for frame, (rows, columns), limits in zip(frames, grids, request.filters, strict=True):
            patches = rows * columns * _CELL_PATCHES
            with stage("prior"):
                view = self._take(frame, request.bgr)
                self._prior(view, rows, columns)
                ranked = self._rank(view, patches, request)
                cell_codes = self._cell_codes.download((self._dims, rows, columns), np.int32, self._stream)
                every = None
                if request.score == "information":
                    every = self._codes.download((patches, self._stack), np.int32, self._stream)
                scores = self._download_scores(patches, request) if request.with_scores else None
                positions = self._filter(ranked, limits, request)
                scores = None if scores is None else _prefix_scores(scores, request)
                cell_codes = _checked(cell_codes.copy(), np.array(levels)[:, None, None], "global_encoder")
            chosen = _different(positions)
            if every is not None:
                stacks = _checked(every, np.tile(levels, self._depth), PADDED)[chosen]
            else:
                stacks = np.empty((len(chosen), self._stack), np.int32)
                self._patches.upload(chosen, self._stream)
                with stage("patch_encoder"):
                    self._add(view, stacks, levels)
            encoded.append(_Encoded(cell_codes, positions, stacks, scores))
        with stage("patch_encoder"):
            self._finish(levels)
        return [one.frame(self._dims) for one in encoded]

    def _check_request(self, request: EncodeRequest) -> None:
        """Raise unless the request fits the engines; put its basis on the device."""
        if request.score not in SCORES:
            raise InputError(f"unknown score {request.score!r}: {', '.join(SCORES)} exist")
        if not 1 <= request.depth <= self._depth:
            raise InputError(
                f"depth must be 1 to {self._depth} tokens per patch for these engines, got {request.depth}"
            )
        shape = (self._depth, self._dims, PATCH_VALUES)
        if request.basis.dtype != np.int16 or request.basis.shape != shape:
            raise InputError(
                f"basis must be int16 {shape} for these engines, got {request.basis.dtype} {request.basis.shape}"
            )
        if self._uploaded is None or not np.array_equal(self._uploaded, request.basis):
            self._device.synchronize(self._stream)
            self._basis.upload(request.basis, self._stream)
            self._uploaded = request.basis.copy()

    def _check(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of cells of a frame that the engines take."""
        rows, columns = -(-height // CELL), -(-width // CELL)
        try:
            for graph, shapes in self._grid_shapes(rows, columns).items():
                program = self._programs.by_name[graph]
                program.profile(program.key(shapes))
        except InputError as error:
            raise InputError(f"a frame of {width}x{height} pixels does not fit: {error}") from None
        return rows, columns

    def _take(self, frame: NDArray[np.uint8] | DeviceArray, bgr: bool) -> Frames:
        """The frame in memory that the kernels can read."""
        height, width = frame.shape[:2]
        if isinstance(frame, DeviceArray):
            if frame.producer is not None:
                self._device.wait(self._stream, frame.producer)
            row, pixel, channel = frame.strides
            return Frames(frame.pointer, 1, height, width, (0, row, pixel, channel), bgr)
        self._frame.upload(frame, self._stream)
        return Frames.packed(self._frame.pointer, 1, height, width, bgr=bgr)

    def _grid_shapes(self, rows: int, columns: int) -> dict[str, dict[str, Shape]]:
        """Inputs of the graphs that give the prior of a frame; the context takes its patches in one row."""
        patches, width = rows * columns * _CELL_PATCHES, self._row - WINDOW_VALUES - PATCH_VALUES
        return {
            "global_encoder": {"cells": (1, PATCH_VALUES, rows, columns)},
            "cell_context": {"codes": (1, self._dims, rows, columns)},
            "context": {"coarse": (1, width, 1, patches)},
        }

    def _prior(self, view: Frames, rows: int, columns: int) -> None:
        cells = self._programs.by_name["global_encoder"].pointers["cells"]
        self._kernels.image_to_cells(view, cells, stream=self._stream)
        for graph, shapes in self._grid_shapes(rows, columns).items():
            self._programs.execute(graph, shapes)

    def _rank(self, view: Frames, patches: int, request: EncodeRequest) -> Scores:
        """Where the scores of all patches will be, (1, patches, depth)."""
        pointers, target, stream, depth = self._context.pointers, self._scores.pointer, self._stream, request.depth
        if request.score == "entropy":
            return Scores.planes(pointers["entropy"], 1, patches, depth, of=self._depth)
        if request.score == "information":
            self._encode_every(view, patches)
            codes = (self._codes.pointer, self._every, patches)
            counts = (1, patches, self._depth, depth)
            self._kernels.information(pointers["log2_probs"], *codes, *counts, request.levels, target, stream=stream)
        else:
            weights = 0
            if request.score == "visual":
                weights = self._weights
                self._kernels.visual_weights(view, self._activity, weights, stream=stream)
            basis = (self._basis.pointer, depth, self._dims)
            self._kernels.patch_scores(view, self._mean, *basis, target, weights=weights, stream=stream)
        return Scores.packed(target, 1, patches, depth)

    def _download_scores(self, patches: int, request: EncodeRequest) -> NDArray[np.float32]:
        """A view of the scores: (depth, patches) of the score ``entropy``, (patches, depth) of all others."""
        if request.score == "entropy":
            return self._entropy.download((request.depth, patches), np.float32, self._stream)
        return self._scores.download((patches, request.depth), np.float32, self._stream)

    def _filter(self, ranked: Scores, limits: TokenFilter, request: EncodeRequest) -> NDArray[np.int32]:
        """Patch of each kept token, in raster order. Earlier downloads are complete after it."""
        values = {name: getattr(limits, name) for name in ("tau", "min_tokens", "max_tokens", "floor_bits")}
        if ranked.patches > MAX_PATCHES:  # more than the kernel takes
            view = self._download_scores(ranked.patches, request)
            self._device.synchronize(self._stream)
            try:
                positions, _, _ = cpu_kernels.dtf(_prefix_scores(view, request)[None], **values)
            except ValueError as error:
                raise self._bad_scores(str(error)) from None
            return positions
        self._kernels.dtf(
            *(ranked, DtfLimits.make(**values), self._positions.pointer, self._depths, self._count.pointer),
            stream=self._stream,
        )
        most = min(limits.max_tokens, ranked.patches * ranked.depth)
        count_view = self._count.download((1,), np.int32, self._stream)
        positions = self._positions.download((most,), np.int32, self._stream)
        self._device.synchronize(self._stream)
        count = int(count_view[0])
        if count < 0:
            view = self._download_scores(ranked.patches, request)
            self._device.synchronize(self._stream)
            patch, token = divmod(-1 - count, ranked.depth)
            value = view[token, patch] if request.score == "entropy" else view[patch, token]
            raise self._bad_scores(f"the score of token {token + 1} of patch {patch} is {value}")
        if count > most:
            raise BackendError(f"token filtering kept {count} of {most} tokens: the CUDA kernels are broken")
        return positions[:count].copy()

    def _bad_scores(self, what: str) -> BackendError:
        return BackendError(
            f"tokens cannot be ranked ({what}): an engine gave no number; run 'tatok build --precision fp32'"
        )

    def _encode_every(self, view: Frames, patches: int) -> None:
        """Codes of all patches of a frame into the buffer of codes."""
        for start in range(0, patches, self._edges[-1]):
            count = min(self._edges[-1], patches - start)
            self._gather(view, self._every + 4 * start, count, 0)
            self._run_rows(count)
            target = self._codes.pointer + start * self._stack * 4
            source = self._encoder.pointers["codes"]
            self._device.copy_on_device(target, source, count * self._stack * 4, self._stream)

    def _gather(self, view: Frames, positions: int, count: int, first: int) -> None:
        """Feature rows of ``count`` patches, from row ``first`` on."""
        pointers = self._context.pointers
        width = self._row - WINDOW_VALUES - PATCH_VALUES
        target = self._encoder.pointers["features"] + first * self._row * 4
        self._kernels.gather_features(
            *(view, pointers["context"], width, self._mean, positions, count, target), stream=self._stream
        )

    def _run_rows(self, count: int) -> None:
        """The patch encoder on the first ``count`` rows, padded to its smallest fitting profile."""
        edge = self._edges[smallest_fitting(self._edges, count)]
        self._programs.execute(PADDED, {"features": (edge, self._row)})

    def _add(self, view: Frames, target: NDArray[np.int32], levels: Sequence[int]) -> None:
        """Rows of the patches in their buffer. ``target`` gets the codes of their stacks, at the latest in finish."""
        done, room = 0, self._edges[-1]
        while done < len(target):
            count = min(room - self._filled, len(target) - done)
            self._gather(view, self._patches.pointer + 4 * done, count, self._filled)
            self._waiting.append(target[done : done + count])
            self._filled += count
            done += count
            if self._filled == room:
                self._finish(levels)

    def _finish(self, levels: Sequence[int]) -> None:
        """Run the patch encoder on the waiting rows."""
        if not self._filled:
            return
        self._run_rows(self._filled)
        codes = self._row_codes.download((self._filled, self._stack), np.int32, self._stream)
        self._device.synchronize(self._stream)
        _checked(codes, np.tile(levels, self._depth), PADDED)
        start = 0
        for target in self._waiting:
            target[:] = codes[start : start + len(target)]
            start += len(target)
        self._filled = 0
        self._waiting.clear()

    # --- decode -----------------------------------------------------------------------------------

    def decode(self, request: DecodeRequest, stage: Stage) -> NDArray[np.uint8]:
        """See :meth:`tatok_edge.runtime.session.FrameSession.decode_frame`."""
        self._run_decoder(request, stage)
        with stage("assemble"):
            self._assemble(request, self._frame.pointer)
            frame = self._frame.download((*request.size, 3), np.uint8, self._stream)
            self._device.synchronize(self._stream)
            return frame.copy()

    def decode_into(self, request: DecodeRequest, out: DeviceArray, stage: Stage) -> None:
        """See :meth:`tatok_edge.runtime.session.FrameSession.decode_into`."""
        self._run_decoder(request, stage)
        with stage("assemble"):
            if out.producer is not None:
                self._device.wait(self._stream, out.producer)
            self._assemble(request, out.pointer)
            self._device.synchronize(self._stream)

    def _run_decoder(self, request: DecodeRequest, stage: Stage) -> None:
        """Put the decoder on the stream; its pixels appear in its buffer."""
        rows, columns = self._check(*request.size)
        patches, grid = rows * columns * _CELL_PATCHES, (rows * 4, columns * 4)
        prior, decoder = self._context.pointers, self._programs.by_name["decoder"]
        width = self._row - WINDOW_VALUES - PATCH_VALUES
        channels = {"state": self._depth * (self._dims + 2), "context": width, "mean": PATCH_VALUES}
        shapes = {name: (1, count, *grid) for name, count in channels.items()}
        decoder.profile(decoder.key(shapes))  # before anything is written
        with stage("upload"):
            self._cell_codes.upload(request.global_codes, self._stream)
            self._codes.upload(request.codes, self._stream)
            self._positions.upload(request.positions, self._stream)
        with stage("decoder"):
            graphs = self._grid_shapes(rows, columns)
            for graph in ("cell_context", "context"):
                self._programs.execute(graph, graphs[graph])
            tokens = (self._codes.pointer, self._positions.pointer, len(request.positions))
            self._kernels.decoder_state(
                *(*tokens, prior["expected"], prior["entropy"]),
                *(1, patches, self._depth, request.levels, decoder.pointers["state"]),
                stream=self._stream,
            )
            self._programs.execute("decoder", shapes)

    def _assemble(self, request: DecodeRequest, target: int) -> None:
        """Put the picture on the stream, from the decoder's pixels to ``target``."""
        pixels = self._programs.by_name["decoder"].pointers["pixels"]
        self._kernels.assemble(pixels, 1, *request.size, target, bgr=request.bgr, stream=self._stream)


@dataclass(frozen=True, slots=True)
class _Encoded:
    """A filtered frame, whose stacks are filled when the patch encoder runs."""

    cell_codes: NDArray[np.int32]
    positions: NDArray[np.int32]
    stacks: NDArray[np.int32]
    """Codes of the different patches at ``positions``, (P, K * D)."""
    scores: NDArray[np.float32] | None

    def frame(self, dims: int) -> EncodedFrame:
        """The frame with the codes of its kept tokens."""
        begins = np.flatnonzero(np.diff(self.positions, prepend=-1))
        counts = np.diff(begins, append=len(self.positions))
        codes = self.stacks.reshape(len(self.stacks), self.stacks.shape[1] // dims, dims)
        kept = counts[:, None] > np.arange(codes.shape[1])
        return EncodedFrame(self.cell_codes, self.positions, codes[kept], self.scores)


def _different(positions: NDArray[np.int32]) -> NDArray[np.int32]:
    """The different ones of positions that never fall."""
    return positions[np.diff(positions, prepend=-1) > 0]


def _prefix_scores(scores: NDArray[np.float32], request: EncodeRequest) -> NDArray[np.float32]:
    """Downloaded scores as new ones (patches, depth) that never rise over depth."""
    if request.score == "entropy":
        return np.ascontiguousarray(np.minimum.accumulate(scores, axis=0).T)
    return scores.copy()


def _checked(codes: NDArray[np.int32], levels: NDArray[Any], graph: str) -> NDArray[np.int32]:
    """Check that codes are within their levels.

    Raises:
        BackendError: a code is outside.
    """
    bad = (codes < 0) | (codes >= levels)
    if bad.any():
        raise BackendError(
            f"{graph} gave the code {codes[bad][0]}, which no level has: the engine is broken; run 'tatok build'"
        )
    return codes
