"""From uint8 frames to tokens and back on the GPU: the kernels around the engines.

Only frames and tokens are uploaded and downloaded; all values between them stay on the GPU. The steps are those of
:mod:`tatok_edge.model.tokenizer` with the kernels of the CPU: the same outputs of the networks give the same tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from tatok_edge.errors import BackendError, InputError
from tatok_edge.geometry import CELL, CELL_SIDE, PATCH_VALUES, WINDOW_VALUES
from tatok_edge.runtime.cpu import kernels as cpu_kernels
from tatok_edge.runtime.cuda.arrays import DeviceArray
from tatok_edge.runtime.cuda.device import Device
from tatok_edge.runtime.cuda.kernels import MAX_PATCHES, DtfLimits, Frames, Kernels
from tatok_edge.runtime.session import DecodeRequest, EncodedFrame, EncodeRequest, Stage, TokenFilter
from tatok_edge.runtime.tensorrt.choice import smallest_fitting
from tatok_edge.runtime.tensorrt.programs import PADDED, Programs, Shape

SCORES = ("residual", "entropy", "information")
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
        sizes = [profile["codes"].max for profile in self._context.manifest.profiles]
        self._dims = sizes[0][1]
        cells = max(rows * columns for _, _, rows, columns in sizes)
        patches = cells * _CELL_PATCHES
        self._edges = [profile["features"].max[0] for profile in self._encoder.manifest.profiles]
        self._row = self._encoder.manifest.profiles[-1]["features"].max[1]
        self._frame = Exchange(device, cells * CELL * CELL * 3)
        self._scores = Exchange(device, patches * 4)
        self._positions = Exchange(device, patches * 4, small=True)
        self._count = Exchange(device, 4, small=True)
        self._codes = Exchange(device, patches * self._dims * 4)
        self._cell_codes = Exchange(device, cells * self._dims * 4, pointer=self._context.pointers["codes"])
        self._row_codes = Exchange(device, self._edges[-1] * self._dims * 4, pointer=self._encoder.pointers["codes"])
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
        score, levels = request.score, request.levels
        if score not in SCORES:
            raise InputError(f"unknown score {score!r}: {', '.join(SCORES)} exist")
        grids = [self._check(frame.shape[0], frame.shape[1]) for frame in frames]
        results = []
        self._filled = 0
        self._waiting.clear()
        for frame, (rows, columns), limits in zip(frames, grids, request.filters, strict=True):
            patches = rows * columns * _CELL_PATCHES
            with stage("prior"):
                view = self._take(frame, request.bgr)
                self._prior(view, rows, columns)
                self._rank(view, patches, score, levels)
                cell_codes = self._cell_codes.download((self._dims, rows, columns), np.int32, self._stream)
                every = None
                if score == "information":
                    every = self._codes.download((patches, self._dims), np.int32, self._stream)
                scores = self._scores.download((patches,), np.float32, self._stream) if request.with_scores else None
                positions = self._filter(patches, limits)
                scores = None if scores is None else scores.copy()
                cell_codes = _checked(cell_codes.copy(), np.array(levels)[:, None, None], "global_encoder")
            if every is not None:
                codes = _checked(every, np.array(levels), PADDED)[positions]
            else:
                codes = np.empty((len(positions), self._dims), np.int32)
                with stage("patch_encoder"):
                    self._add(view, codes, levels)
            results.append(EncodedFrame(cell_codes, positions, codes, scores))
        with stage("patch_encoder"):
            self._finish(levels)
        return results

    def _check(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of cells of a frame that the engines take."""
        rows, columns = -(-height // CELL), -(-width // CELL)
        try:
            for graph, name, channels in (("global_encoder", "cells", PATCH_VALUES), ("context", "codes", self._dims)):
                program = self._programs.by_name[graph]
                program.profile(program.key({name: (1, channels, rows, columns)}))
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

    def _prior(self, view: Frames, rows: int, columns: int) -> None:
        cells = self._programs.by_name["global_encoder"].pointers["cells"]
        self._kernels.image_to_cells(view, cells, stream=self._stream)
        self._programs.execute("global_encoder", {"cells": (1, PATCH_VALUES, rows, columns)})
        self._programs.execute("context", {"codes": (1, self._dims, rows, columns)})

    def _rank(self, view: Frames, patches: int, score: str, levels: Sequence[int]) -> None:
        """Scores of all patches into their buffer."""
        pointers, target, stream = self._context.pointers, self._scores.pointer, self._stream
        if score == "residual":
            self._kernels.patch_residual(view, pointers["mean"], target, stream=stream)
        elif score == "entropy":
            self._device.copy_on_device(target, pointers["entropy"], patches * 4, stream)
        else:
            self._encode_every(view, patches)
            codes = (self._codes.pointer, self._every, patches)
            self._kernels.information(pointers["log2_probs"], *codes, 1, patches, levels, target, stream=stream)

    def _filter(self, patches: int, limits: TokenFilter) -> NDArray[np.int32]:
        """Kept positions, on the host and in the buffer of positions. Earlier downloads are complete after it."""
        values = {name: getattr(limits, name) for name in ("tau", "min_tokens", "max_tokens", "floor_bits")}
        if patches > MAX_PATCHES:  # more than the kernel sorts
            scores = self._scores.download((patches,), np.float32, self._stream)
            self._device.synchronize(self._stream)
            try:
                positions, _ = cpu_kernels.dtf(scores[None], **values)
            except ValueError as error:
                raise self._bad_scores(str(error)) from None
            self._positions.upload(positions, self._stream)
            return positions
        self._kernels.dtf(
            *(self._scores.pointer, 1, patches, DtfLimits.make(**values), self._positions.pointer, self._count.pointer),
            stream=self._stream,
        )
        count_view = self._count.download((1,), np.int32, self._stream)
        indices = self._positions.download((patches,), np.int32, self._stream)
        self._device.synchronize(self._stream)
        count = int(count_view[0])
        if count < 0:
            scores = self._scores.download((patches,), np.float32, self._stream)
            self._device.synchronize(self._stream)
            raise self._bad_scores(f"score {-1 - count} is {scores[-1 - count]}")
        if count > patches:
            raise BackendError(f"token filtering kept {count} of {patches} patches: the CUDA kernels are broken")
        return indices[:count].copy()

    def _bad_scores(self, what: str) -> BackendError:
        return BackendError(
            f"patches cannot be ranked ({what}): an engine gave no number; run 'tatok build --precision fp32'"
        )

    def _encode_every(self, view: Frames, patches: int) -> None:
        """Codes of all patches of a frame into the buffer of codes."""
        for start in range(0, patches, self._edges[-1]):
            count = min(self._edges[-1], patches - start)
            self._gather(view, self._every + 4 * start, count, 0)
            self._run_rows(count)
            target = self._codes.pointer + start * self._dims * 4
            source = self._encoder.pointers["codes"]
            self._device.copy_on_device(target, source, count * self._dims * 4, self._stream)

    def _gather(self, view: Frames, positions: int, count: int, first: int) -> None:
        """Feature rows of ``count`` patches, from row ``first`` on."""
        pointers = self._context.pointers
        width = self._row - WINDOW_VALUES - PATCH_VALUES
        target = self._encoder.pointers["features"] + first * self._row * 4
        self._kernels.gather_features(
            *(view, pointers["context"], width, pointers["mean"], positions, count, target), stream=self._stream
        )

    def _run_rows(self, count: int) -> None:
        """The patch encoder on the first ``count`` rows, padded to its smallest fitting profile."""
        edge = self._edges[smallest_fitting(self._edges, count)]
        self._programs.execute(PADDED, {"features": (edge, self._row)})

    def _add(self, view: Frames, target: NDArray[np.int32], levels: Sequence[int]) -> None:
        """Rows of the patches in the buffer of positions. ``target`` gets their codes, at the latest in finish."""
        done, room = 0, self._edges[-1]
        while done < len(target):
            count = min(room - self._filled, len(target) - done)
            self._gather(view, self._positions.pointer + 4 * done, count, self._filled)
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
        codes = self._row_codes.download((self._filled, self._dims), np.int32, self._stream)
        self._device.synchronize(self._stream)
        _checked(codes, np.array(levels), PADDED)
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
        channels = {"state": self._dims + 2, "context": width, "mean": PATCH_VALUES}
        shapes = {name: (1, count, *grid) for name, count in channels.items()}
        decoder.profile(decoder.key(shapes))  # before anything is written
        with stage("upload"):
            self._cell_codes.upload(request.global_codes, self._stream)
            self._codes.upload(request.codes, self._stream)
            self._positions.upload(request.positions, self._stream)
        with stage("decoder"):
            self._programs.execute("context", {"codes": (1, self._dims, rows, columns)})
            tokens = (self._codes.pointer, self._positions.pointer, len(request.positions))
            self._kernels.decoder_state(
                *(*tokens, prior["expected"], prior["entropy"]),
                *(1, patches, request.levels, decoder.pointers["state"]),
                stream=self._stream,
            )
            self._programs.execute("decoder", shapes)

    def _assemble(self, request: DecodeRequest, target: int) -> None:
        """Put the picture on the stream, from the decoder's pixels to ``target``."""
        pixels = self._programs.by_name["decoder"].pointers["pixels"]
        self._kernels.assemble(pixels, 1, *request.size, target, bgr=request.bgr, stream=self._stream)


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
