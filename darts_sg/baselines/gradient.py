"""The search that is no baseline: by the gradient of the alphas."""

from dataclasses import dataclass

from darts_sg.baselines import STRATEGIES, Strategy


@dataclass(frozen=True)
class Gradient(Strategy):
    """Alphas learn by gradient descent, as the other options of the search say."""


STRATEGIES.add("gradient", Gradient)
