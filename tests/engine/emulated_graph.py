"""CUDA graphs on a CPU: a capture records the operators of a step with their tensors, a replay runs them again.

As in a real graph, numbers are frozen at the values they had, tensors keep their addresses, random numbers are drawn
anew, and reading a value back, or making a tensor of a Python number, is an error.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

READS = {
    "aten._local_scalar_dense", "aten.nonzero", "aten.masked_select", "aten.unique_dim", "aten._unique2", "aten.equal",
    "aten.is_nonzero", "aten.bincount", "aten.repeat_interleave",
}  # fmt: skip
"""Operators that wait for a GPU: their result, or its shape, depends on values."""
COPIES = {"tensor", "as_tensor", "from_numpy", "new_tensor", "item", "tolist", "cpu", "cuda", "numpy", "pin_memory"}
"""Functions of PyTorch that copy between CPU and GPU."""


class Forbidden(AssertionError):
    """A captured step did what a capture forbids."""


class OnDevice(TorchFunctionMode):
    """Forbids copies between CPU and GPU, which cannot be told by the operators on a CPU."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(function, "__name__", "") in COPIES:
            raise Forbidden(f"{function.__name__} in a captured step")
        return function(*args, **(kwargs or {}))


class Recorder(TorchDispatchMode):
    """Records the operators that are dispatched, and refuses those that wait for the device."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, list[Tensor]]] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = str(function.overloadpacket), kwargs or {}
        masks = name.startswith("aten.index") and any(
            isinstance(leaf, Tensor) and leaf.dtype == torch.bool for leaf in tree_leaves(args[1:2])
        )
        if name in READS or masks:
            raise Forbidden(f"{name} in a captured step")
        found = function(*args, **kwargs)
        if not (function.is_view or name.startswith(("aten.empty", "aten.new_empty", "aten.detach"))):
            self.calls.append(
                (function, args, kwargs, [leaf for leaf in tree_leaves(found) if isinstance(leaf, Tensor)])
            )
        return found


class EmulatedGraph:
    """In place of torch.cuda.CUDAGraph."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, Any, Any, list[Tensor]]] = []
        self.replays = 0

    def pool(self) -> None: ...

    def register_generator_state(self, generator: torch.Generator) -> None: ...

    def replay(self) -> None:
        self.replays += 1
        if self.replays == 1:
            return  # recording has computed the step already
        with torch.no_grad():
            for function, args, kwargs, found in self.calls:
                again = [leaf for leaf in tree_leaves(function(*args, **kwargs)) if isinstance(leaf, Tensor)]
                for old, new in zip(found, again, strict=True):
                    if old.data_ptr() != new.data_ptr():
                        old.copy_(new)


class Stream:
    def wait_stream(self, other: "Stream") -> None: ...


@contextmanager
def emulated_graphs() -> Iterator[list[EmulatedGraph]]:
    """Within the context steps are captured and replayed on the CPU; gives the graphs."""
    graphs: list[EmulatedGraph] = []

    @contextmanager
    def capture(graph: EmulatedGraph, **options: Any) -> Iterator[None]:
        graphs.append(graph)
        with OnDevice(), Recorder() as recorder:
            yield
        graph.calls = recorder.calls

    @contextmanager
    def stream(stream: Stream) -> Iterator[None]:
        yield

    with pytest.MonkeyPatch.context() as patch:
        for name, fake in {
            "Stream": Stream, "current_stream": Stream, "stream": stream, "CUDAGraph": EmulatedGraph, "graph": capture
        }.items():  # fmt: skip
            patch.setattr(torch.cuda, name, fake)
        yield graphs


def as_on_a_gpu(optimizer: torch.optim.Optimizer) -> None:
    """Let an optimizer keep on the device what one for a GPU keeps there: learning rate and number of steps."""
    for group in optimizer.param_groups:
        group["lr"] = torch.tensor(float(group["lr"]))
        group["fused"] = True
