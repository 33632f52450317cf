"""The dominant eigenvalue of a supernet's validation loss in the alphas, computed by all ranks together."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor

from darts_sg.engine.distributed import Ranks
from darts_sg.methods.hessian import Vector, dominant_eigenvalue
from darts_sg.networks.supernet import Supernet


def supernet_eigenvalue(
    supernet: Supernet,
    loss: Callable[[Supernet, tuple[Tensor, Tensor]], Tensor],
    batch: tuple[Tensor, Tensor],
    ranks: Ranks,
) -> float:
    """The dominant eigenvalue of the Hessian of `loss(supernet, batch)` in the alphas, at the current ones.

    batch: this rank's share, images in float32. A copy of the supernet computes it in float64, in train mode: the
    statistics, gradients and random numbers of the run stay as they are. Rank 0 chooses the alphas at which all ranks
    take the gradient of their share.
    """
    supernet = copy.deepcopy(supernet).double()
    x, y = batch[0].double(), batch[1]
    alphas = supernet.alphas()
    for weight in supernet.weights():
        weight.requires_grad_(False)

    def gradient(point: Vector) -> Vector:
        torch.nn.utils.vector_to_parameters(torch.from_numpy(point).to(x.device), alphas)
        found = ranks.mean(torch.autograd.grad(loss(supernet, (x, y)), alphas), len(y))
        return torch.cat([g.flatten() for g in found]).cpu().numpy()

    def for_all(point: Vector) -> Vector:
        return gradient(ranks.from_first(lambda: point))

    value = float("nan")
    if ranks.leads:
        value = dominant_eigenvalue(for_all, torch.cat([a.detach().flatten() for a in alphas]).cpu().numpy())
        ranks.from_first(lambda: None)  # the other ranks leave their loop
    else:
        nothing: Vector | None = None
        while (point := ranks.from_first(lambda: nothing)) is not None:
            gradient(point)
    return ranks.from_first(lambda: value)
