"""Counts launched operators: where they are small, launching them is what limits a GPU."""

import sys
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pkgutil import resolve_name
from typing import Any
from unittest.mock import patch

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.subjects import Step

# functions that launch our own kernels: module, name, and the title they are counted under
NATIVE = (
    ("darts_sg.backends.cpp.run", "Calls.__call__", "darts_sg.cpp"),
    ("darts_sg.backends.triton.run", "launch", "darts_sg.triton"),
)
SILENT = {  # operators that compute nothing
    "aten.empty", "aten.empty_like", "aten.empty_strided", "aten.new_empty", "aten.new_empty_strided",
    "aten.detach", "aten._unsafe_view", "aten.is_same_size", "aten._local_scalar_dense",
}  # fmt: skip


class Launches(TorchDispatchMode):
    """Counts the operators that are dispatched within the context; views and allocations do not count."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func.overloadpacket)
        if not func.is_view and name not in SILENT:
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))


def count(step: Step) -> Counter[str]:
    """Operators of one step by name, with its backward passes; calls of C++ and Triton kernels under their titles."""
    step()
    with Launches() as launches, torch.autograd.set_multithreading_enabled(False), ExitStack() as patches:
        for module, name, title in NATIVE:
            if module in sys.modules:  # an unused backend is not imported, and Triton may not be installed
                target = f"{module}.{name}"
                patches.enter_context(patch(target, counting(resolve_name(target), launches.counts, title)))
        step()
    return launches.counts


def counting(call: Callable[..., None], counts: Counter[str], title: str) -> Callable[..., None]:
    """`call`, which also adds to the count of `title`."""

    def counted(*arguments: Any, **more: Any) -> None:
        counts[title] += 1
        call(*arguments, **more)

    return counted
