"""What a candidate operation is, and the registry of all of them."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from darts_sg.registry import Registry

Build = Callable[[int, int, bool], nn.Module]


@dataclass(frozen=True)
class Operation:
    """A candidate operation: maps (N, C, H, W) to (N, C, ceil(H / stride), ceil(W / stride)).

    `build(C, stride, affine)` makes the module; `affine` says whether its BatchNorms have scale and shift (they
    have none in a supernet, where the mixing weights do the scaling: DARTS paper, appendix A.1.1).
    """

    name: str
    build: Build
    chain: str
    """The layer chain in one line, in the words of the papers."""
    family: str
    """sep_conv, dil_conv, sandglass, inverted_residual, pool, skip, none or other: one colour each in pictures."""


OPERATIONS: Registry[Operation] = Registry("operation")


def register_operation(name: str, family: str, chain: str) -> Callable[[Build], Build]:
    """Decorator: register the factory `build(C, stride, affine)` as the operation `name`."""

    def add(build: Build) -> Build:
        OPERATIONS.add(name, Operation(name, build, chain, family))
        return build

    return add


class Residual(nn.Module):
    """A chain of layers, to whose output the input is added if there is a `shortcut`."""

    def __init__(self, body: nn.Sequential, shortcut: bool) -> None:
        super().__init__()
        self.body, self.shortcut = body, shortcut

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.shortcut else self.body(x)
