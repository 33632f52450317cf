"""How many operators are launched, which is what a GPU waits for when they are small."""

from collections import Counter
from typing import Any
from unittest.mock import patch

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.subjects import Step
from darts_sg.native import cpu

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
    """Operators of one step, by name; backward passes and calls of the C++ kernels included."""
    step()
    call = cpu.Calls.__call__

    def counted(calls: cpu.Calls, section: int, *more: int) -> None:
        launches.counts[f"darts_sg.{calls.name}"] += 1
        call(calls, section, *more)

    with (
        Launches() as launches,
        torch.autograd.set_multithreading_enabled(False),
        patch.object(cpu.Calls, "__call__", counted),
    ):
        step()
    return launches.counts
