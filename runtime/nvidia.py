"""The library of the NVIDIA driver, which is on a machine only if the driver is."""

from __future__ import annotations

import ctypes
import sys


def driver_library() -> ctypes.CDLL:
    """The driver's library.

    Raises:
        OSError: this machine has no NVIDIA driver.
    """
    return ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
