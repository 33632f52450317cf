"""Relaxations: how alphas become mixing weights. Each lives in a file of this package and registers itself."""

from typing import ClassVar

import torch
from torch import Tensor

from darts_sg.methods.parts import import_parts
from darts_sg.networks.supernet import normal_alphas
from darts_sg.registry import Registry


class Relaxation:
    """Base class of the relaxations: the alphas of one cell kind, (num_edges, num_operations), to its mixing weights.

    A frozen dataclass whose fields are its options. `progress` is the share of the search that is done, from 0 to 1: a
    scalar tensor on the device, so that a captured CUDA graph sees a temperature change.

    Random numbers are drawn apart from the weights that are made of them: `sample` depends on its arguments alone. A
    hypergradient that evaluates the loss several times thus sees the same noise each time.
    """

    sums_to_one: ClassVar[bool] = True
    """Whether the mixing weights of an edge sum to one."""

    @property
    def is_one_hot(self) -> bool:
        """Whether each sample chooses one operation an edge, which then is the only one to be computed."""
        return False

    @property
    def needs_all_operations(self) -> bool:
        """Whether the alphas' gradient of a one-hot sample needs the outputs of all operations."""
        return False

    def initial(self, num_edges: int, num_operations: int) -> Tensor:
        """The alphas that a search starts from: 1e-3 · N(0, 1), drawn from PyTorch's default generator."""
        return normal_alphas(num_edges, num_operations)

    def draw(self, alphas: Tensor, progress: Tensor, generator: torch.Generator) -> Tensor | None:
        """The random numbers of a sample, without gradient; None if it needs none."""
        return None

    def sample(self, alphas: Tensor, progress: Tensor, drawn: Tensor | None) -> Tensor:
        """The mixing weights of a training step, differentiable in the alphas; `drawn` is what `draw` returned."""
        raise NotImplementedError

    def expected(self, alphas: Tensor) -> Tensor:
        """The mixing weights without noise: what evaluation, logs, the eigenvalue and the derivation see."""
        raise NotImplementedError


RELAXATIONS: Registry[type[Relaxation]] = Registry("relaxation")

import_parts(__name__)
