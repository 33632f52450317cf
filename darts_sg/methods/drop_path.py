"""Drop path on the edges of a supernet, R-DARTS(DP)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from darts_sg.errors import UsageError
from darts_sg.ops.drop_path import kept_factors


@dataclass(frozen=True)
class EdgeDropPath:
    """Drops the output of each edge for each image with a probability that grows from 0 to `prob` in the last epoch.

    Zela et al., "Understanding and Robustifying Differentiable Architecture Search", ICLR 2020, section 5.1; edges and
    schedule p · e / (E - 1) are those of the authors' code. In both steps; never in evaluation.
    """

    prob: float

    def __post_init__(self) -> None:
        if not 0 <= self.prob < 1:
            raise UsageError(f"--drop-path-prob must be from 0 up to, not including, 1: {self.prob}")

    def draw(self, num_cells: int, num_edges: int, num_images: int, generator: torch.Generator) -> Tensor:
        """The random numbers of a step, (num_cells, num_edges, num_images), on the generator's device."""
        return torch.rand(num_cells, num_edges, num_images, generator=generator, device=generator.device)

    def kept(self, drawn: Tensor, growth: Tensor) -> Tensor:
        """The factor of each edge and image, 0 or 1 / (1 - p), from random numbers.

        growth: e / (E - 1), from 0 in the first epoch to 1 in the last, a scalar tensor on the device.
        """
        return kept_factors(drawn, self.prob * growth)
