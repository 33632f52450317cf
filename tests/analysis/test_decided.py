"""A search whose mixing weights have hardly moved says that its genotype is that of chance."""

import numpy as np
import pytest

from darts_sg.analysis.decided import doubt, entropy_share
from darts_sg.analysis.run_folder import SearchEpoch
from darts_sg.derive import derive_cell
from darts_sg.genotype import Genotype

OPERATIONS = ("none", "skip_connect", "sep_conv_3x3")


def epoch(number: int, logits: np.ndarray) -> SearchEpoch:
    weights = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    cell = derive_cell(weights, OPERATIONS)
    return SearchEpoch(number, Genotype("g", "s", OPERATIONS, cell, cell), {"normal": weights, "reduce": weights})


def drift(epochs: int, slope: float, noise: float = 0.0) -> list[SearchEpoch]:
    """Alphas that head for one operation on each of five edges, and a random walk."""
    rng = np.random.default_rng(0)
    direction, walk, found = rng.normal(size=(5, 3)), np.zeros((5, 3)), []
    for i in range(1, epochs + 1):
        walk += noise * rng.normal(size=walk.shape)
        found.append(epoch(i, slope * i * direction + walk))
    return found


def test_alphas_near_their_start_are_doubted_by_their_entropy() -> None:
    told = doubt(drift(4, 1e-3), 24)
    assert told.startswith("the genotype cannot be told from a random one: after 24 steps of the alphas the entropy")
    assert "DARTS makes 19,550 steps" in told


def test_leads_that_come_and_go_are_doubted() -> None:
    states = drift(8, 0.0, noise=0.6)
    assert entropy_share(states[-1].weights["normal"]) < 0.9
    swapped = [*states[:-1], epoch(8, -3 * np.log(states[-2].weights["normal"]))]
    assert "chosen edges the strongest operation leads by less than its lead changed" in doubt(swapped, 1000)


def test_alphas_that_keep_their_direction_are_not_doubted() -> None:
    assert not doubt(drift(8, 0.3), 1000)
    assert not doubt([], 0)


def test_an_operation_that_an_edge_lacks_does_not_count() -> None:
    weights = np.array([[0.5, 0.5, 0.0], [1 / 3, 1 / 3, 1 / 3]])
    assert entropy_share(weights) == pytest.approx(1)
    assert entropy_share(np.array([[1.0, 0.0]])) is None
    assert entropy_share(np.array([[0.9, 0.8]])) is None  # sigmoids
