"""Variance components: how much errors differ between the searches of a method, and between trainings of one genotype.

A one-way model with random effects, unbalanced: the error of training j of the genotype of search i is
y_ij = mean + a_i + e_ij, with variances `between` of a_i (searches) and `within` of e_ij (trainings).
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import chi2
from scipy.stats import f as f_distribution

LEVEL = 0.95

Interval = tuple[float, float]


@dataclass(frozen=True)
class Component:
    """A standard deviation with its 95% interval, in the unit of the values."""

    deviation: float
    interval: Interval | None
    """None where the data cannot bound it."""
    degrees: int
    """Degrees of freedom of the mean square that it rests on."""


@dataclass(frozen=True)
class Components:
    """The spread of errors, split by where it comes from."""

    groups: int
    """Genotypes, one from each search."""
    values: int
    """Trainings of all of them."""
    mean: float
    """Mean over the genotypes of their mean errors."""
    between: Component | None
    """Between searches; None with a single search, or if no genotype was trained twice."""
    within: Component | None
    """Between trainings of one genotype; None if no genotype was trained twice."""
    total: float | None
    """Sample standard deviation of the genotypes' means; None with a single search. It mixes both components."""


def variance_components(groups: Iterable[Sequence[float]]) -> Components | None:
    """Split the spread of `groups`, the errors of each genotype's trainings; None if there is no error at all.

    Estimates are those of the analysis of variance, with the unbalanced design's n_0 = (N - sum n_i^2 / N) / (a - 1);
    a negative variance counts as 0. Intervals: chi-squared for `within`; for `between` the modified large-sample
    interval of Ting et al. (1990) on unweighted means (Thomas and Hultquist 1978), with the harmonic mean of n_i.
    """
    filled = [np.asarray(group, dtype=float) for group in groups if len(group)]
    if not filled:
        return None
    sizes = np.array([len(group) for group in filled])
    means = np.array([group.mean() for group in filled])
    a, N = len(filled), int(sizes.sum())
    total = float(means.std(ddof=1)) if a > 1 else None
    if a == N:  # one training each: searches and trainings cannot be told apart
        return Components(a, N, float(means.mean()), None, None, total)
    ms_within = sum(((group - group.mean()) ** 2).sum() for group in filled) / (N - a)
    within = Component(math.sqrt(ms_within), _deviation_interval(ms_within, N - a), N - a)
    between = None if a == 1 else _between(means, sizes, ms_within, N - a)
    return Components(a, N, float(means.mean()), between, within, total)


def _between(means: np.ndarray, sizes: np.ndarray, ms_within: float, degrees: int) -> Component:
    a, N = len(sizes), sizes.sum()
    grand = (sizes * means).sum() / N
    ms_between = (sizes * (means - grand) ** 2).sum() / (a - 1)
    n_0 = (N - (sizes**2).sum() / N) / (a - 1)
    variance = max(0.0, (ms_between - ms_within) / n_0)
    harmonic = a / (1 / sizes).sum()
    unweighted = harmonic * means.var(ddof=1)
    low, high = _difference_interval(unweighted, a - 1, ms_within, degrees)
    bounds = tuple(math.sqrt(max(0.0, bound / harmonic)) for bound in (low, high))
    return Component(math.sqrt(variance), (bounds[0], bounds[1]), a - 1)


def _deviation_interval(mean_square: float, degrees: int) -> Interval:
    """The interval of a standard deviation whose estimate has a chi-squared distribution."""
    tail = (1 - LEVEL) / 2
    low, high = (degrees * mean_square / chi2.ppf(q, degrees) for q in (1 - tail, tail))
    return math.sqrt(low), math.sqrt(high)


def _difference_interval(first: float, d1: int, second: float, d2: int) -> Interval:
    """Modified large-sample interval of E[first] - E[second], two independent mean squares (Ting et al. 1990)."""
    tail = (1 - LEVEL) / 2

    def bound(upper: bool) -> float:
        # q1 and q2 are the tails that push the difference in the direction of this bound
        q1, q2 = (tail, 1 - tail) if upper else (1 - tail, tail)
        F = f_distribution.ppf(q1, d1, d2)
        g1 = 1 - d1 / chi2.ppf(q1, d1)
        g2 = d2 / chi2.ppf(q2, d2) - 1
        g12 = ((F - 1) ** 2 - g1**2 * F**2 - g2**2) / F
        root = math.sqrt(max(0.0, (g1 * first) ** 2 + (g2 * second) ** 2 + g12 * first * second))
        return first - second + (root if upper else -root)

    return bound(False), bound(True)
