"""The candidate operation and its registry."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from darts_sg.errors import UsageError
from darts_sg.registry import Registry

Build = Callable[[int, int, bool], nn.Module]


@dataclass(frozen=True)
class Operation:
    """A candidate operation: maps (N, C, H, W) to (N, C, ceil(H / stride), ceil(W / stride)).

    `build(C, stride, affine)` makes the module. In a supernet BatchNorms have no scale and shift (`affine` is False),
    because the mixing weights do the scaling (DARTS paper, appendix A.1.1).
    """

    name: str
    build: Build
    chain: str
    """The layer chain in one line, in the words of the papers."""
    family: str
    """Operations of one family share a colour and a legend entry in pictures: sep_conv, dil_conv, sandglass,
    inverted_residual, pool, skip, none, other, or a family of a plug-in's own."""
    needs_norm: bool = False
    """The output is not normalised, as that of a pool, so that a supernet appends a BatchNorm to bring the outputs of
    all operations to one scale."""
    is_random: bool = False
    """The output is drawn anew in each pass, so that two ways to compute it differ."""


def check_operation(operation: Operation) -> None:
    """Build a plug-in's operation with either stride and run it; UsageError if its output has the wrong shape."""
    C, size = 16, 9
    with torch.random.fork_rng(devices=[]):  # building draws initial weights
        for stride in (1, 2):
            for affine in (True, False):
                module = operation.build(C, stride, affine)
                if not isinstance(module, nn.Module):
                    raise UsageError(f"build(C, stride, affine) must return a torch module, found {module!r}")
                side = -(-size // stride)
                for N in (2, 0):  # costs are counted with an empty batch
                    with torch.no_grad():
                        shape = tuple(module.train(N > 0)(torch.zeros(N, C, size, size)).shape)
                    if shape != (N, C, side, side):
                        raise UsageError(
                            f"with stride {stride} an input of shape {(N, C, size, size)} must give "
                            f"{(N, C, side, side)}, found {shape}"
                        )


OPERATIONS: Registry[Operation] = Registry("operation", check=check_operation)


def register_operation(
    name: str, family: str, chain: str, *, needs_norm: bool = False, is_random: bool = False
) -> Callable[[Build], Build]:
    """Decorator: register the factory `build(C, stride, affine)` as the operation `name`; see Operation."""

    def add(build: Build) -> Build:
        OPERATIONS.add(name, Operation(name, build, chain, family, needs_norm, is_random))
        return build

    return add


class Residual(nn.Module):
    """A chain of layers; with a `shortcut` the input is added to its output."""

    def __init__(self, body: nn.Sequential, shortcut: bool) -> None:
        super().__init__()
        self.body, self.shortcut = body, shortcut

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.shortcut else self.body(x)
