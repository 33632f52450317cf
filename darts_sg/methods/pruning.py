"""Pruning between stages: each edge keeps its strongest operations (P-DARTS, section 3.2; DrNAS, section 4)."""

import numpy as np
from numpy.typing import NDArray

from darts_sg.derive import Array


def strongest(weights: Array, num_kept: int, allowed: NDArray[np.bool_] | None = None) -> NDArray[np.bool_]:
    """Which operations are the `num_kept` with the largest mixing weights of their edge; ties go to the earlier one.

    weights: (num_edges, num_operations). allowed: which operations each edge has so far, None for all. `none` is pruned
    like any other.
    """
    ranked = np.asarray(weights, dtype=np.float64)
    if allowed is not None:
        ranked = np.where(allowed, ranked, -np.inf)
    best = np.argsort(-ranked, axis=1, kind="stable")[:, :num_kept]
    kept = np.zeros(ranked.shape, dtype=bool)
    np.put_along_axis(kept, best, True, axis=1)
    return kept if allowed is None else kept & allowed
