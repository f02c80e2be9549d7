"""The process's allocator: what a program gives back is kept for the next step's arrays, or returned to the system at once.

By default glibc maps every array of more than 32 MiB anew and returns it to the system at once. A step that keeps its
activations then writes into pages that the system has to clear first: up to a fifth of its time (docs/performance.md). Smaller
ones stay in the heap of the thread that asked for them, and no other thread gets them.
"""

import contextlib
import ctypes

# glibc's malloc.h, by what they bound: bytes at the end of the heap that are kept, bytes that the heap grows by, arrays with
# a mapping of their own, heaps
KEPT, GROWTH, MAPPED, HEAPS = -1, -2, -4, -8


def keep_pages() -> None:
    """Makes this process keep the memory that it has used; to be called before JAX starts. No effect without glibc."""
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        for option, value in ((MAPPED, 0), (HEAPS, 1), (KEPT, 2**31 - 1), (GROWTH, 2**26)):
            mallopt(option, value)


def return_pages() -> None:
    """Returns to the system what this process has given back, in the heap of every thread. No effect without glibc."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
