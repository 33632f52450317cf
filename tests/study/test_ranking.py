"""Rank correlations and anytime curves against plain computations."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from darts_sg.study.anytime import anytime_curve
from darts_sg.study.ranking import rank_correlation

BELIEVED = [60.0, 58.0, 61.0, 59.5, 57.0, 57.0]
ERRORS = [12.0, 12.9, 11.8, 12.0, 12.6, 13.4]


def test_spearman_and_kendall_by_their_definitions() -> None:
    found = rank_correlation("accuracy of the supernet", BELIEVED, ERRORS)
    assert found is not None
    ranks = [stats.rankdata(values) for values in (BELIEVED, [-error for error in ERRORS])]
    assert found.spearman == pytest.approx(np.corrcoef(*ranks)[0, 1])
    signs = [
        (np.sign(BELIEVED[i] - BELIEVED[j]), np.sign(ERRORS[j] - ERRORS[i]))
        for i, j in itertools.combinations(range(6), 2)
    ]
    norms = [sum(abs(pair[k]) for pair in signs) for k in range(2)]  # pairs that are not tied
    assert found.kendall == pytest.approx(sum(a * b for a, b in signs) / math.sqrt(norms[0] * norms[1]))


def test_the_p_value_counts_all_orders() -> None:
    x, y = BELIEVED[:4], ERRORS[:4]
    small = rank_correlation("x", x, y)
    assert small is not None
    orders = [abs(stats.spearmanr(x, order).statistic) for order in itertools.permutations(y)]
    assert small.spearman_p == pytest.approx(np.mean([value >= abs(small.spearman) - 1e-9 for value in orders]))
    perfect = rank_correlation("x", [1, 2, 3], [5, 4, 3])
    assert perfect is not None
    assert (perfect.spearman, perfect.kendall, perfect.spearman_p) == (1, 1, pytest.approx(2 / 6))  # never near 0
    assert perfect.spearman_interval is None


def test_the_interval_covers_the_true_correlation() -> None:
    # a bivariate normal with correlation r has the Spearman correlation 6 / pi * asin(r / 2)
    rng, r, hits = np.random.default_rng(2), 0.6, 0
    true = 6 / math.pi * math.asin(r / 2)
    for _ in range(300):
        x, y = rng.multivariate_normal([0, 0], [[1, r], [r, 1]], 20).T
        found = rank_correlation("x", x.tolist(), (-y).tolist())
        assert found is not None
        assert found.spearman_interval is not None
        hits += found.spearman_interval[0] <= true <= found.spearman_interval[1]
    assert 0.91 < hits / 300 < 0.99


@pytest.mark.parametrize(("x", "y"), [([1, 2], [3, 4]), ([1, 1, 1], [1, 2, 3]), ([1, 2, 3], [5, 5, 5])])
def test_what_has_no_order_has_no_correlation(x: list[float], y: list[float]) -> None:
    assert rank_correlation("x", x, y) is None


def test_an_anytime_curve_keeps_the_best() -> None:
    rows = [
        {"seconds": 3600.0, "validation_accuracy": 0.5},
        {"seconds": 7200.0, "validation_accuracy": 0.4},
        {"seconds": 9000.0, "validation_accuracy": math.nan},
        {"seconds": 10800.0, "validation_accuracy": 0.625},
        {"validation_accuracy": 0.9},
    ]
    assert anytime_curve(rows, "validation_accuracy") == [(1.0, 50.0), (2.0, 50.0), (3.0, 37.5)]
    assert anytime_curve(rows, "test_accuracy") == []
