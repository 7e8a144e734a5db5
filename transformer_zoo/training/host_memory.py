"""Memory of the host process, for training on a CPU."""

import ctypes
import sys

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # of glibc's <malloc.h>


def keep_freed_memory() -> None:
    """Lets the allocator keep what is freed, instead of handing it back to the system.

    XLA on a CPU allocates its temporaries anew in every step. Handed back and faulted in page by page, they cost a
    small network a third of its step time. Does nothing where the C library has no `mallopt`.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, -1)  # never; a number, at most 2 GiB, is less than a large network frees
        mallopt(M_TOP_PAD, 2**26)
