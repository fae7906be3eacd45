"""Keeping memory that training frees at every step and wants again in the next."""

from __future__ import annotations

import ctypes
import platform

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4
"""Of glibc's malloc.h."""
_GROWTH_BYTES = 1 << 28


def keep_freed_memory() -> None:
    """Let glibc keep what is freed for the next request; elsewhere nothing happens.

    By default it gives blocks above 32 MiB, as activations are, back to the kernel at once, which then
    hands out zeroed pages again, 4 KiB at a time: about a tenth of a step on a CPU. The process stays as
    large as it once was.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_MAX, 0)  # everything from the heap
        libc.mallopt(_M_TRIM_THRESHOLD, -1)  # never shrink it
        libc.mallopt(_M_TOP_PAD, _GROWTH_BYTES)
