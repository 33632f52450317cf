"""A regularizer: the mean entropy of the mixing weights, so that a search decides.

    python search.py --plugin examples/plugins/entropy.py --regularizer entropy:0.1

The weight grows linearly over the search: at first all operations should be tried, in the end one should be chosen.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from darts_sg.errors import UsageError
from darts_sg.methods.mixing import Alphas
from darts_sg.methods.regularizers import REGULARIZERS, Regularizer
from darts_sg.networks.supernet import Mixing


def mean_entropy(weights: Tensor) -> Tensor:
    """The mean over the edges of -sum(p log p) in nats; weights: (num_edges, num_operations)."""
    return -(weights * weights.clamp_min(1e-30).log()).sum(dim=-1).mean()


@dataclass(frozen=True)
class Entropy(Regularizer):
    """Mean entropy of the mixing weights of both cells, times weight · progress."""

    weight: float = 0.1

    def __post_init__(self) -> None:
        if self.weight < 0:
            raise UsageError(f"weight must be at least 0, found {self.weight}")

    def __call__(self, alphas: Alphas, mixing: Mixing, progress: Tensor) -> Tensor:
        return self.weight * progress * (mean_entropy(mixing.normal) + mean_entropy(mixing.reduce)) / 2

    def metrics(self, mixing: Mapping[str, Tensor]) -> dict[str, float]:
        both = (mean_entropy(mixing[title]).item() for title in ("normal", "reduce"))
        return {"mean_entropy": sum(both) / 2}


REGULARIZERS.add("entropy", Entropy)
