"""Gradient confusion: how strongly the gradients of different minibatches contradict each other.

Sankararaman et al., The impact of neural network overparameterization on gradient confusion and stochastic gradient
descent (ICML 2020): the losses f_i of the minibatches have the gradient confusion bound η ≥ 0 at the weights w if
⟨∇f_i(w), ∇f_j(w)⟩ ≥ -η for all i ≠ j (definition 2.1). Their experiments (section 5) take the cosines of pairs of
minibatch gradients, without dropout and weight decay, and report the minimum and how closely the cosines concentrate
around 0. A lower minimum and a wider spread mean more confusion.

Here f_i is the mean cross-entropy of the logits on minibatch i, without label smoothing, auxiliary head and weight
decay. BatchNorm uses the statistics of the minibatch, as in training; dropout and drop path are off.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

COLUMNS = 1 << 18  # columns of the gradients converted to float64 at a time: bounds the extra memory


class Gradients(NamedTuple):
    """Inner products of the gradients g_1 … g_B of B minibatches over all weights."""

    gram: Tensor
    """⟨g_i, g_j⟩: float64 (B, B), on the CPU."""
    loss: float
    """Mean loss of the minibatches."""

    @property
    def cosines(self) -> Tensor:
        """Cosines of all pairs i < j, float64 (B · (B - 1) / 2,); 0 if either gradient is zero."""
        norms = self.gram.diagonal().sqrt()
        units = torch.where(norms > 0, 1 / norms, 0.0)
        return self._pairs(self.gram * units * units[:, None]).clamp(-1, 1)

    @property
    def bound(self) -> float:
        """The gradient confusion bound: the smallest η ≥ 0 that holds for all pairs."""
        return max(0.0, -self._pairs(self.gram).min().item())

    def _pairs(self, matrix: Tensor) -> Tensor:
        """The entries (i, j) with i < j of a matrix (B, B)."""
        return matrix[torch.triu_indices(len(matrix), len(matrix), 1).unbind()]


def measure_gradients(
    network: nn.Module, batches: Iterable[tuple[Tensor, Any]], loss_of: Callable[[Any, Any], Tensor] = F.cross_entropy
) -> Gradients:
    """The gradients of `loss_of(outputs, targets)` on minibatches (images, targets), two or more.

    The network's `forward` gives (outputs, …).

    Every gradient is held once, in the precision of the weights, beside one more while it is computed; their products
    are summed in float64 by parts. Weights, running statistics, modes and `grad` of the network stay as they are.
    """
    weights = [p for p in network.parameters() if p.requires_grad]
    gradients, losses = list[Tensor](), list[float]()
    with normalising_by_batch(network), torch.enable_grad():
        for images, targets in batches:
            loss = loss_of(network(images)[0], targets)
            # an operation at a node that no cell output joins is reached by no gradient: zero
            parts = torch.autograd.grad(loss, weights, allow_unused=True, materialize_grads=True)
            gradients.append(torch.cat([part.flatten() for part in parts]))
            losses.append(loss.item())
    gram = torch.zeros(len(gradients), len(gradients), dtype=torch.float64)
    for parts in zip(*(gradient.split(COLUMNS) for gradient in gradients), strict=True):
        block = torch.stack(parts).to("cpu", torch.float64)  # (B, COLUMNS)
        gram += block @ block.T
    return Gradients(gram, sum(losses) / len(losses))


@contextmanager
def normalising_by_batch(network: nn.Module) -> Iterator[None]:
    """Eval mode, except that BatchNorm uses the statistics of the batch; the running statistics stay untouched."""
    modes = {module: module.training for module in network.modules()}
    tracking = {m: m.track_running_stats for m in network.modules() if isinstance(m, _BatchNorm)}
    try:
        network.eval()
        for norm in tracking:
            norm.train()
            norm.track_running_stats = False
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        for norm, tracks in tracking.items():
            norm.track_running_stats = tracks
