"""Drop path: drops whole branches per sample (FractalNet, 2017; as NASNet and DARTS use it)."""

import torch
from torch import Tensor


class DrawnPaths:
    """The factors of drop path for all operations of a pass, from one draw: a few launches instead of six each.

    factors: float32 (operations, N), see `kept_factors`; each operation takes the next row.
    """

    def __init__(self, factors: Tensor) -> None:
        self._rows = {factors.dtype: factors}
        self._factors, self._next = factors, 0

    def take(self, x: Tensor) -> Tensor:
        """The next factors, in the type of x (N, …) and of shape (N, 1, …)."""
        if x.dtype not in self._rows:
            self._rows[x.dtype] = self._factors.to(x.dtype)
        row = self._rows[x.dtype][self._next]
        self._next += 1
        return row.view(-1, *[1] * (x.dim() - 1))


def drop_path(x: Tensor, drop_prob: float | Tensor | DrawnPaths | None) -> Tensor:
    """Zero each sample of x (N, …) with probability `drop_prob`; scale the others by 1 / (1 - drop_prob).

    Out of place, because others may hold `x`. None and the number 0 return x itself.
    """
    kept = kept_paths(x, drop_prob)
    return x if kept is None else x * kept


def kept_paths(x: Tensor, drop_prob: float | Tensor | DrawnPaths | None) -> Tensor | None:
    """The factor (N, 1, …) that `drop_path` multiplies x (N, …) by: 0 or 1 / (1 - drop_prob) for each sample.

    Drawn from the global generator of x's device, or taken from those drawn for the whole pass. None if nothing is
    dropped. Pass a probability that changes during training as a 0-dim tensor: torch.compile recompiles a network for
    every new number.
    """
    if isinstance(drop_prob, DrawnPaths):
        return drop_prob.take(x)
    if drop_prob is None or (isinstance(drop_prob, float) and drop_prob <= 0.0):
        return None
    return kept_factors(torch.rand(x.shape[0], *[1] * (x.dim() - 1), dtype=x.dtype, device=x.device), drop_prob)


def kept_factors(drawn: Tensor, drop_prob: float | Tensor) -> Tensor:
    """0 with probability `drop_prob`, else 1 / (1 - drop_prob), for uniform random numbers in [0, 1) of any shape."""
    keep = 1.0 - drop_prob
    return (drawn < keep).to(drawn.dtype) / keep
