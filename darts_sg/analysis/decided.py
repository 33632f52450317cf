"""Did a search choose anything? Mixing weights that have hardly left their start rank operations by noise."""

from collections.abc import Sequence

import numpy as np

from darts_sg.analysis.run_folder import SearchEpoch
from darts_sg.derive import Array, entropy, num_edges
from darts_sg.genotype import NUM_INPUTS

EVEN = 0.99
"""Share of its maximum from which on the entropy says that all operations are alike."""
STEPS_OF_DARTS = 19_550  # alpha steps of the search of the DARTS paper: 50 epochs of 391 batches
CELL_TITLES = ("normal", "reduce")


def doubt(epochs: Sequence[SearchEpoch], alpha_steps: int) -> str:
    """One sentence that says why a genotype cannot be told from a random one; empty if the search chose it.

    epochs: the states of the search, up to the one that the genotype is derived from. alpha_steps: how often the
    alphas were updated until then. There is doubt if the mean entropy of the mixing weights is within 1% of its maximum
    in both cells, or if on half of the chosen edges the strongest operation leads the next one by less than that lead
    has changed in the last quarter of the epochs.
    """
    if not epochs:
        return ""
    last = epochs[-1].weights
    shares = [share for title in CELL_TITLES if (share := entropy_share(last[title])) is not None]
    if len(shares) == len(CELL_TITLES) and min(shares) >= EVEN:
        reason = f"the entropy of the mixing weights is {min(shares):.1%} of its maximum"
    else:
        unsettled, chosen = unsettled_edges(epochs)
        if 2 * unsettled < chosen or not chosen:
            return ""
        reason = (
            f"on {unsettled} of {chosen} chosen edges the strongest operation leads by less than its lead changed in "
            "the last quarter of the epochs"
        )
    return (
        f"the genotype cannot be told from a random one: after {alpha_steps:,} steps of the alphas {reason}; DARTS "
        f"makes {STEPS_OF_DARTS:,} steps. More epochs, more images or a larger --alpha-learning-rate decide more"
    )


def entropy_share(weights: Array) -> float | None:
    """Mean entropy as a share of its maximum; None for weights that do not sum to 1 on each edge, or without a choice.

    weights: (num_edges, num_operations). An operation that an edge does not have weighs 0.
    """
    most = np.log(np.maximum((weights > 0).sum(axis=1), 1))
    if not np.allclose(weights.sum(axis=1), 1, atol=1e-3) or not most.any():
        return None
    return float(entropy(weights).sum() / most.sum())


def unsettled_edges(epochs: Sequence[SearchEpoch]) -> tuple[int, int]:
    """(chosen edges whose strongest operation is not settled, chosen edges) of the last of `epochs`."""
    now, before = epochs[-1], epochs[min(len(epochs) * 3 // 4, len(epochs) - 2)]
    if len(epochs) < 2:
        return 0, 0
    names = now.genotype.operations
    real = [i for i, name in enumerate(names) if name != "none"]
    unsettled = chosen = 0
    for title in CELL_TITLES:
        rows = [num_edges(state - NUM_INPUTS) + edge.state for state, edge in now.cell(title).edges()]
        for row in rows:
            then, there = before.weights[title][row, real], now.weights[title][row, real]
            if np.count_nonzero(there) < 2:
                continue  # nothing to choose between
            first, second = np.argsort(there)[::-1][:2]
            lead = there[first] - there[second]
            chosen += 1
            unsettled += lead <= abs(lead - (then[first] - then[second]))
    return int(unsettled), chosen
