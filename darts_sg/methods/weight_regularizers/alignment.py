"""The layer alignment of Λ-DARTS.

Movahedi et al., "Λ-DARTS: Mitigating Performance Collapse by Harmonizing Operation Selection among Cells", ICLR 2023,
section 4.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from darts_sg.errors import UsageError
from darts_sg.methods.weight_regularizers import WEIGHT_REGULARIZERS, WeightRegularizer
from darts_sg.networks.supernet import Mixing


@dataclass(frozen=True)
class Alignment(WeightRegularizer):
    """Aligns what the normal cells want of the mixing weights they share (Λ-DARTS).

    Λ(w) is the mean over all pairs of normal cells of the cosine of g_l = ∂L/∂p_l, where p_l are the mixing weights of
    cell l, equal in value; -λ · Λ joins the training loss, with λ growing from 0 to `strength` in the last epoch. Its
    gradient is a directional derivative of ∇w L along u = ∂Λ/∂g, taken as a central difference of radius
    `radius` / ‖u‖: two more passes over the batch. With `signs` a pair counts (g_i · g_j) / (|g_i| · |g_j|) instead,
    a product of absolute values below. Reduction cells are left out, as in the authors' code.
    """

    min_normal_cells: ClassVar[int] = 2

    strength: float = 0.125
    radius: float = 1e-4
    signs: bool = False

    def __post_init__(self) -> None:
        for name in ("strength", "radius"):
            if not getattr(self, name) > 0:
                raise UsageError(f"{name} must be above 0, found {getattr(self, name)}")

    def prepared(self, mixing: Mixing, num_normal_cells: int) -> Mixing:
        of_cells = mixing.normal.detach().expand(num_normal_cells, -1, -1).clone()
        return mixing._replace(normal=of_cells.requires_grad_())

    def gradients(
        self,
        mixing: Mixing,
        loss: Callable[[Mixing], Tensor],
        weights: Sequence[Tensor],
        growth: Tensor,
        mean: Callable[[Sequence[Tensor]], Sequence[Tensor]],
    ) -> Sequence[Tensor]:
        assert mixing.normal.grad is not None
        [of_cells] = mean([mixing.normal.grad])
        direction = self.direction(of_cells)
        norm = torch.linalg.vector_norm(direction)
        eps = self.radius / norm.clamp_min(torch.finfo(norm.dtype).tiny)
        sides = []
        for sign in (1.0, -1.0):
            moved = mixing._replace(normal=mixing.normal.detach() + sign * eps * direction)
            sides.append(torch.autograd.grad(loss(moved), list(weights), materialize_grads=True))
        factor = self.strength * growth / (2 * eps)  # of the gradient at minus, less that at plus: Λ is to grow
        return [factor * (minus - plus) for plus, minus in zip(*sides, strict=True)]

    def direction(self, gradients: Tensor) -> Tensor:
        """∂Λ/∂g for the gradients g of each cell, (num_cells, num_edges, num_operations)."""
        with torch.enable_grad():
            g = gradients.detach().flatten(1).requires_grad_()
            sizes = g.abs() @ g.abs().t() if self.signs else g.norm(dim=1)[:, None] * g.norm(dim=1)
            agreement = (g @ g.t()) / sizes.clamp_min(torch.finfo(g.dtype).tiny)
            count = len(g) * (len(g) - 1)
            off_diagonal = 1 - torch.eye(len(g), dtype=g.dtype, device=g.device)
            [found] = torch.autograd.grad((agreement * off_diagonal).sum() / count, g)
        return found.view_as(gradients)


WEIGHT_REGULARIZERS.add("alignment", Alignment)
