"""The regularizer of β-DARTS."""

from dataclasses import dataclass

import torch
from torch import Tensor

from darts_sg.errors import UsageError
from darts_sg.methods.mixing import Alphas
from darts_sg.methods.regularizers import REGULARIZERS, Regularizer
from darts_sg.networks.supernet import Mixing


@dataclass(frozen=True)
class BetaDecay(Regularizer):
    """The mean over all edges of logsumexp(alpha) (β-DARTS), with a weight that grows linearly to weight_end.

    Ye et al., "β-DARTS: Beta-Decay Regularization for Differentiable Architecture Search", CVPR 2022, section 3.2. Its
    gradient is softmax(alpha) / number of edges: it lowers the largest mixing weights most.
    """

    weight: float = 0.0
    weight_end: float = 50.0

    def __post_init__(self) -> None:
        for name in ("weight", "weight_end"):
            if not getattr(self, name) >= 0:
                raise UsageError(f"{name} must be at least 0, found {getattr(self, name)}")

    def __call__(self, alphas: Alphas, mixing: Mixing, progress: Tensor) -> Tensor:
        weight = self.weight + (self.weight_end - self.weight) * progress
        edges = torch.cat([alphas.alpha_normal, alphas.alpha_reduce])  # (2 · num_edges, num_operations)
        return weight * edges.logsumexp(dim=-1).mean()


REGULARIZERS.add("beta-decay", BetaDecay)
