"""The C functions of the kernels as ``ctypes`` sees them: the structures and arguments of ``tatok_cuda.h``."""

from __future__ import annotations

import ctypes

MAX_DIMS = 16
"""Most dimensions of a code."""


class CFrames(ctypes.Structure):
    """``tatok_frames``."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("image_stride", ctypes.c_int64),
        ("row_stride", ctypes.c_int64),
        ("pixel_stride", ctypes.c_int64),
        ("channel_stride", ctypes.c_int64),
        ("images", ctypes.c_int32),
        ("height", ctypes.c_int32),
        ("width", ctypes.c_int32),
        ("bgr", ctypes.c_int32),
    )


class CScores(ctypes.Structure):
    """``tatok_scores``."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("image_stride", ctypes.c_int64),
        ("patch_stride", ctypes.c_int64),
        ("depth_stride", ctypes.c_int64),
        ("images", ctypes.c_int32),
        ("patches", ctypes.c_int32),
        ("depth", ctypes.c_int32),
        ("half", ctypes.c_int32),
    )


class CLimits(ctypes.Structure):
    """``tatok_dtf_limits``."""

    _fields_ = (
        ("share", ctypes.c_int64),
        ("min_tokens", ctypes.c_int64),
        ("max_tokens", ctypes.c_int64),
        ("floor_score", ctypes.c_int32),
    )


class CLevels(ctypes.Structure):
    """``tatok_levels``."""

    _fields_ = (("dims", ctypes.c_int32), ("level", ctypes.c_int32 * MAX_DIMS))


_POINTER, _INT = ctypes.c_void_p, ctypes.c_int32
SIGNATURES: dict[str, tuple[object, ...]] = {
    "tatok_dtf": (
        *(ctypes.POINTER(CScores), ctypes.POINTER(CLimits)),
        *(_POINTER, _POINTER, _POINTER, _POINTER),
    ),
    "tatok_flatten": (*(_POINTER, _POINTER, _POINTER, _INT, _INT, _INT), *(_POINTER, _POINTER, _POINTER, _POINTER)),
    "tatok_cells": (ctypes.POINTER(CFrames), _POINTER, _POINTER),
    "tatok_features": (ctypes.POINTER(CFrames), _POINTER, _INT, _POINTER, _POINTER, _INT, _POINTER, _POINTER),
    "tatok_assemble": (_POINTER, _INT, _INT, _INT, ctypes.c_int, _POINTER, _POINTER),
    "tatok_change": (ctypes.POINTER(CFrames), _POINTER, _POINTER, _POINTER),
    "tatok_patch_scores": (
        *(ctypes.POINTER(CFrames), _POINTER, _POINTER, _INT, _INT),
        *(_POINTER, _POINTER, _POINTER),
    ),
    "tatok_visual_weights": (ctypes.POINTER(CFrames), _POINTER, _POINTER, _POINTER),
    "tatok_update_reference": (ctypes.POINTER(CFrames), _POINTER, _POINTER, _INT, _POINTER),
    "tatok_decoder_state": (
        *(_POINTER, _POINTER, _INT, _POINTER, _POINTER, _INT, _INT, _INT),
        *(ctypes.POINTER(CLevels), _POINTER, _POINTER),
    ),
    "tatok_information": (
        *(_POINTER, _POINTER, _POINTER, _INT, _INT, _INT, _INT, _INT),
        *(ctypes.POINTER(CLevels), _POINTER, _POINTER),
    ),
}
"""Types of the arguments by function; the last one is the stream."""
