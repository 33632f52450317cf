"""Memory for what the C++ kernels keep between a forward and a backward pass.

Blocks of several MiB are mapped in huge pages and reused by the next pass instead of going back to the system: from the
heap, such blocks would fragment it and fault in small pages anew each time.
"""

import mmap
import sys
import weakref
from contextlib import suppress

import numpy as np
import torch
from torch import Tensor

SMALLEST = 2**22  # bytes; smaller blocks come from the heap
PAGE = 2**21  # bytes of a huge page


class Pool:
    """Reusable blocks of memory, each owned by one tensor at a time."""

    def __init__(self) -> None:
        self._free: list[mmap.mmap] = []

    def take(self, size: int) -> Tensor:
        """An uninitialised uint8 tensor of `size` bytes on the CPU.

        Its block is free again when the tensor and all its views are gone. Raises MemoryError if memory runs out.
        """
        if size < SMALLEST or sys.platform != "linux":
            return torch.empty(size, dtype=torch.uint8)
        array = np.frombuffer(block := self._block(size), dtype=np.uint8, count=size)
        weakref.finalize(array, self._free.append, block).atexit = False
        return torch.from_numpy(array)

    def release(self) -> None:
        """Return all free blocks to the system."""
        self._free.clear()

    def _block(self, size: int) -> mmap.mmap:
        """The smallest free block that is large enough; if there is none, a new one is mapped.

        Free blocks go back to the system for it, the smallest first, as many as make up its size: all blocks together
        take no more than before, and steps that ask for other sizes each time still find most of theirs.
        """
        while fitting := min((block for block in self._free if len(block) >= size), key=len, default=None):
            with suppress(ValueError):  # another thread took it in the meantime
                self._free.remove(fitting)
                return fitting
        self._make_room(size)
        try:
            block = mmap.mmap(-1, -(-size // PAGE) * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except OSError as error:
            raise MemoryError(f"not enough memory: {size} bytes for the C++ kernels") from error
        with suppress(OSError):  # a system without huge pages
            block.madvise(mmap.MADV_HUGEPAGE)
        return block

    def _make_room(self, size: int) -> None:
        """Return free blocks of at least `size` bytes in all to the system, or all there are."""
        while size > 0 and (smallest := min(self._free, key=len, default=None)) is not None:
            with suppress(ValueError):  # another thread took it in the meantime
                self._free.remove(smallest)
                size -= len(smallest)


POOL = Pool()
