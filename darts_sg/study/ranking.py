"""Rank correlation: does a search rank its genotypes as their retraining does?"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import kendalltau, norm, rankdata, spearmanr

MOST_PERMUTED = 8  # 8! = 40,320 orders


@dataclass(frozen=True)
class RankCorrelation:
    """Rank correlation of a belief with the accuracy after retraining: +1 if both rank the genotypes alike."""

    belief: str
    number: int
    spearman: float
    spearman_p: float
    """Exact up to 8 genotypes (all orders), above from the t distribution."""
    spearman_interval: tuple[float, float] | None
    """95%, Fisher's z with the variance of Bonett and Wright (2000); None for fewer than 5 genotypes."""
    kendall: float
    """tau-b."""
    kendall_p: float


def rank_correlation(belief: str, believed: Sequence[float], errors: Sequence[float]) -> RankCorrelation | None:
    """Correlate what a search believed (larger is better) with retrained errors (smaller is better).

    None for fewer than three genotypes, or if either side is the same for all.
    """
    x, y = np.asarray(believed, dtype=float), -np.asarray(errors, dtype=float)
    if len(x) < 3 or len(set(x)) == 1 or len(set(y)) == 1:
        return None
    rho, approximate = spearmanr(x, y)
    tau, tau_p = kendalltau(x, y)
    p = _exact_p(x, y) if len(x) <= MOST_PERMUTED else float(approximate)
    return RankCorrelation(
        belief, len(x), float(rho), p, _interval(float(rho), len(x)), float(tau), float(tau_p)
    )  # fmt: skip


def _exact_p(x: np.ndarray, y: np.ndarray) -> float:
    """The share of all orders of `y` whose Spearman correlation is at least as far from 0; ties count as ties."""
    ranks_x, ranks_y = (rankdata(values) - (len(values) + 1) / 2 for values in (x, y))
    orders = np.array(list(itertools.permutations(range(len(x)))))
    products = np.abs(ranks_y[orders] @ ranks_x)  # the denominator is the same for all orders
    return float((products >= abs(ranks_x @ ranks_y) - 1e-9).mean())


def _interval(rho: float, number: int) -> tuple[float, float] | None:
    if number < 5:
        return None
    if abs(rho) >= 1:
        return rho, rho
    reach = float(norm.ppf(0.975)) * math.sqrt((1 + rho**2 / 2) / (number - 3))
    return math.tanh(math.atanh(rho) - reach), math.tanh(math.atanh(rho) + reach)
