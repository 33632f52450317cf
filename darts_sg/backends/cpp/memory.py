"""Memory for what the kernels for CPUs keep between a forward and a backward pass.

It is taken from the system in large pages, and kept when it is free, for the next pass: neither is left to the heap,
which such pieces would break up, and whose pages are small.
"""

import mmap
import sys
import weakref
from contextlib import suppress

import numpy as np
import torch
from torch import Tensor

SMALLEST = 2**22  # bytes; less than that comes from the heap
PAGE = 2**21  # a large one


class Pool:
    """Pieces of memory, each of which is one tensor's at a time."""

    def __init__(self) -> None:
        self._free: list[mmap.mmap] = []

    def take(self, size: int) -> Tensor:
        """A tensor of `size` bytes on the CPU, which hold anything; they are free again when it is gone, and all that
        share its memory. Raises MemoryError if there are not so many."""
        if size < SMALLEST or sys.platform != "linux":
            return torch.empty(size, dtype=torch.uint8)
        array = np.frombuffer(piece := self._piece(size), dtype=np.uint8, count=size)
        weakref.finalize(array, self._free.append, piece).atexit = False
        return torch.from_numpy(array)

    def release(self) -> None:
        """Give back to the system what is free."""
        self._free.clear()

    def _piece(self, size: int) -> mmap.mmap:
        """The smallest of those that are free and large enough; if there is none all of them are given back, and one is
        new."""
        while fitting := min((piece for piece in self._free if len(piece) >= size), key=len, default=None):
            with suppress(ValueError):  # another thread has just taken it
                self._free.remove(fitting)
                return fitting
        self.release()
        try:
            piece = mmap.mmap(-1, -(-size // PAGE) * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except OSError as error:
            raise MemoryError(f"not enough memory: {size} bytes for the C++ kernels") from error
        with suppress(OSError):  # a system without large pages
            piece.madvise(mmap.MADV_HUGEPAGE)
        return piece


POOL = Pool()
