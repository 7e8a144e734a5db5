"""Memory of the host process, for training on a CPU."""

import ctypes
import sys

import jax

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # of glibc's <malloc.h>


def keep_freed_memory() -> None:
    """Lets the allocator keep what is freed, instead of handing it back to the system.

    XLA on a CPU allocates its temporaries anew in every step. Handed back and faulted in page by page, they cost a
    small network a third of its step time. Does nothing where the C library has no `mallopt`.

    Steps on a CPU run in the thread that calls them: only the main thread's arena takes allocations beyond 64 MiB, so
    that those of another thread would be mapped and faulted in anew in every step (of MAE-B/16 1.3 million pages).
    """
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, -1)  # never; a number, at most 2 GiB, is less than a large network frees
        mallopt(M_TOP_PAD, 2**26)
