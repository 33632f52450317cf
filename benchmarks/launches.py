"""How many operators are launched, which is what a GPU waits for when they are small."""

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

# what launches our kernels, and how it is counted: module, name and title
NATIVE = (
    ("darts_sg.backends.cpp.run", "KernelCalls.__call__", "darts_sg.cpp"),
    ("darts_sg.backends.triton.run", "launch", "darts_sg.triton"),
)
SILENT = {  # they compute nothing
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
    """Operators of one step, by name, backward passes included; and calls of the C++ kernels, and Triton kernels."""
    step()
    with Launches() as launches, torch.autograd.set_multithreading_enabled(False), ExitStack() as patches:
        for module, name, title in NATIVE:
            if module in sys.modules:  # otherwise not in use, and Triton may not be there
                target = f"{module}.{name}"
                patches.enter_context(patch(target, counting(resolve_name(target), launches.counts, title)))
        step()
    return launches.counts


def counting(call: Callable[..., None], counts: Counter[str], title: str) -> Callable[..., None]:
    """`call`, counted under the title."""

    def counted(*arguments: Any, **more: Any) -> None:
        counts[title] += 1
        call(*arguments, **more)

    return counted
