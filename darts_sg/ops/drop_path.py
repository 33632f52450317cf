"""Drop path: whole branches are dropped for single samples (FractalNet, 2017; as NASNet and DARTS use it)."""

import torch
from torch import Tensor


def drop_path(x: Tensor, drop_prob: float | Tensor | None) -> Tensor:
    """Zero each sample of x (N, …) with probability `drop_prob`; scale the others by 1 / (1 - drop_prob).

    Out of place, so that it is safe whatever else holds `x`. None and the number 0 leave x as it is.
    """
    kept = kept_paths(x, drop_prob)
    return x if kept is None else x * kept


def kept_paths(x: Tensor, drop_prob: float | Tensor | None) -> Tensor | None:
    """What `drop_path` multiplies x (N, …) with, (N, 1, …), drawn from torch's global generator of x's device.

    None if nothing is dropped. A probability that changes during training is best given as a 0-dim tensor: a compiled
    network is compiled anew for each number.
    """
    if drop_prob is None or (isinstance(drop_prob, float) and drop_prob <= 0.0):
        return None
    keep = 1.0 - drop_prob
    kept = torch.rand(x.shape[0], *[1] * (x.dim() - 1), dtype=x.dtype, device=x.device) < keep
    return kept.to(x.dtype) / keep
