"""This module gives host memory that C's allocator keeps back to the system."""

from __future__ import annotations

import ctypes
import sys


def return_free_pages() -> None:
    """Return the pages that glibc holds without use; nothing happens with another C library.

    After an update its free blocks lie between those in use. A later phase with blocks of other
    sizes would take new pages beside them: a process then holds the sum of its phases.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
