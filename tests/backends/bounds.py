"""Finds loads and stores of Triton kernels outside their tensors, in Triton's interpreter.

Within `checked_bounds` a launch sees copies of its tensors that lie far apart, so that one element too far never hits
another tensor. Each address that a mask lets through must be that of an element of a tensor given to the launch. Memory
that PyTorch hands out uninitialised holds NaN, so that what a kernel has not written shows in the results.
"""

import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from triton.runtime import interpreter

ROOM = 2**32
"""Bytes of address space for the copies; pages that nothing touches take no memory."""
GAP = 2**22
"""Bytes between two copies, more than a kernel of the tests could be off by."""


@dataclass
class Checked:
    """What `checked_bounds` has seen."""

    launches: int = 0
    addresses: int = 0
    """Number of elements loaded and stored."""
    kernel: str = ""
    """The kernel that runs now."""
    starts: "np.ndarray[Any, Any]" = field(default_factory=lambda: np.empty(0, np.uint64))
    ends: "np.ndarray[Any, Any]" = field(default_factory=lambda: np.empty(0, np.uint64))
    """The first byte of each tensor of the launch and the one behind its last, sorted."""

    def check(self, what: str, pointers: Any, mask: Any) -> None:
        """IndexError if an address that the mask lets through lies in none of the tensors."""
        addresses = np.asarray(pointers.data)[np.asarray(mask.data, dtype=bool)].ravel().astype(np.uint64)
        size = np.uint64(max(1, pointers.get_element_ty().primitive_bitwidth // 8))
        self.addresses += addresses.size
        place = np.searchsorted(self.starts, addresses, side="right")
        outside = (place == 0) | (addresses + size > self.ends[np.maximum(place, 1) - 1])
        if outside.any():
            number, whole = int(outside.sum()), addresses.size
            raise IndexError(f"{self.kernel} {what} {number} of {whole} elements outside its tensors")


@contextmanager
def checked_bounds() -> Iterator[Checked]:
    """Within the context kernels that reach outside their tensors raise InterpreterError."""
    found, builder = Checked(), interpreter.interpreter_builder
    load, store = builder.create_masked_load, builder.create_masked_store
    room = np.frombuffer(mmap.mmap(-1, ROOM), np.uint8)

    def checked_load(pointers: Any, mask: Any, *more: Any) -> Any:
        found.check("loads", pointers, mask)
        return load(pointers, mask, *more)

    def checked_store(pointers: Any, value: Any, mask: Any, *more: Any) -> Any:
        found.check("stores", pointers, mask)
        return store(pointers, value, mask, *more)

    def apart(self: Any, arguments: Any, keywords: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        """Copies of a launch's arguments, far apart; Triton copies them back after the launch."""
        storages: dict[int, Any] = {}
        ranges: list[tuple[int, int]] = []
        at = 0

        def copied(argument: Any) -> Any:
            nonlocal at
            if isinstance(argument, tuple):
                return tuple(map(copied, argument))
            if not isinstance(argument, Tensor):
                return argument
            storage = argument.untyped_storage()
            if storage.data_ptr() not in storages:
                piece = room[at + GAP : at + GAP + storage.nbytes()]  # nothing for an empty tensor
                at += GAP + -(-piece.size // 4096) * 4096
                storages[storage.data_ptr()] = torch.from_numpy(piece).untyped_storage()
                storages[storage.data_ptr()].copy_(storage)
            new = argument.new_empty(0, device="cpu")
            new.set_(storages[storage.data_ptr()], argument.storage_offset(), argument.size(), argument.stride())
            if new.numel():
                last = sum((size - 1) * stride for size, stride in zip(new.shape, new.stride(), strict=True))
                ranges.append((new.data_ptr(), new.data_ptr() + (last + 1) * new.element_size()))
            return new

        copies = [copied(each) for each in arguments], {name: copied(each) for name, each in keywords.items()}
        found.launches += 1
        found.kernel = self.fn.__name__
        found.starts, found.ends = _joined(ranges)
        return copies

    was = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(builder, "create_masked_load", checked_load)
        patch.setattr(builder, "create_masked_store", checked_store)
        patch.setattr(interpreter.GridExecutor, "_init_args_hst", apart)
        patch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            yield found
        finally:
            torch.use_deterministic_algorithms(was[0], warn_only=was[1])


def _joined(ranges: list[tuple[int, int]]) -> "tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]":
    """Starts and ends of ranges, sorted, those that overlap as one."""
    found: list[list[int]] = []
    for start, end in sorted(ranges):
        if found and start <= found[-1][1]:
            found[-1][1] = max(found[-1][1], end)
        else:
            found.append([start, end])
    starts, ends = np.array(found, np.uint64).reshape(-1, 2).T
    return starts, ends
