"""Variance components against the design's matrices, an exact interval, and the coverage in simulated studies."""

import math

import numpy as np
import pytest
from scipy import stats

from darts_sg.study.components import variance_components

UNBALANCED = [[12.0, 11.0, 12.5], [13.1, 13.4], [11.2], [12.9, 12.2, 12.4, 13.0]]


def by_matrices(groups: list[list[float]]) -> tuple[float, float]:
    """(between, within) variances: quadratic forms of projections, equated with their expectations."""
    y = np.concatenate(groups)
    member = np.repeat(np.arange(len(groups)), [len(group) for group in groups])
    Z = (member[:, None] == np.arange(len(groups))).astype(float)
    P, one = Z @ np.linalg.pinv(Z), np.full((len(y), len(y)), 1 / len(y))
    Q_between, Q_within = P - one, np.eye(len(y)) - P
    # E[y'Qy] = between * tr(QZZ') + within * tr(Q)
    system = [[np.trace(Q @ Z @ Z.T), np.trace(Q)] for Q in (Q_between, Q_within)]
    between, within = np.linalg.solve(system, [y @ Q_between @ y, y @ Q_within @ y])
    return float(between), float(within)


def test_unbalanced_components_solve_the_moment_equations() -> None:
    found = variance_components(UNBALANCED)
    assert found is not None
    assert found.between is not None
    assert found.within is not None
    between, within = by_matrices(UNBALANCED)
    assert found.between.deviation == pytest.approx(math.sqrt(between))
    assert found.within.deviation == pytest.approx(math.sqrt(within))
    assert (found.groups, found.values, found.within.degrees, found.between.degrees) == (4, 10, 6, 3)
    assert found.total == pytest.approx(np.std([np.mean(group) for group in UNBALANCED], ddof=1))
    bounds = [math.sqrt(6 * within / stats.chi2.ppf(q, 6)) for q in (0.975, 0.025)]
    assert found.within.interval == pytest.approx(bounds)


def test_balanced_mean_squares_are_those_of_the_f_test() -> None:
    groups = [[12.0, 11.0, 12.5], [13.1, 13.4, 12.2], [11.2, 11.9, 11.0]]
    found = variance_components(groups)
    assert found is not None
    assert found.between is not None
    assert found.within is not None
    ratio = 1 + 3 * found.between.deviation**2 / found.within.deviation**2
    assert ratio == pytest.approx(stats.f_oneway(*groups).statistic)


def test_a_negative_variance_counts_as_none() -> None:
    found = variance_components([[1.0, 3.0], [3.0, 1.5], [2.0, 2.9]])
    assert found is not None
    assert found.between is not None
    assert found.between.deviation == 0
    assert found.between.interval is not None
    assert found.between.interval[0] == 0 < found.between.interval[1]


def test_what_cannot_be_told_apart_is_not_told() -> None:
    assert variance_components([[], []]) is None
    single = variance_components([[1.0], [2.0]])  # one training each
    assert single is not None
    assert (single.between, single.within, single.total) == (None, None, pytest.approx(math.sqrt(0.5)))
    alone = variance_components([[1.0, 2.0]])  # one search
    assert alone is not None
    assert (alone.between, alone.total) == (None, None)
    assert alone.within is not None


@pytest.mark.parametrize(("between", "within", "sizes"), [(0.3, 0.2, (3, 3, 3, 3, 3)), (0.2, 0.4, (1, 2, 3, 4, 5, 2))])
def test_intervals_cover_the_true_deviation(between: float, within: float, sizes: tuple[int, ...]) -> None:
    rng, number = np.random.default_rng(1), 300
    hits = np.zeros(2)
    for _ in range(number):
        found = variance_components([rng.normal(3, between) + rng.normal(0, within, n) for n in sizes])
        assert found is not None
        for k, (part, true) in enumerate(((found.between, between), (found.within, within))):
            assert part is not None
            assert part.interval is not None
            hits[k] += part.interval[0] <= true <= part.interval[1]
    assert (hits / number > 0.91).all()  # 95%, less three standard errors
    assert (hits / number < 0.99).all()  # and no wider than needed
