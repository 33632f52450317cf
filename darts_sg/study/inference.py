"""Comparisons of a study: paired tests with Holm's correction, and the number of seeds that a difference needs."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.stats import chi2, nct
from scipy.stats import t as t_distribution

ALPHA = 0.05
POWER = 0.8
MOST_PAIRS = 100_000


@dataclass(frozen=True)
class Pairs:
    """Differences of errors in points, one for each pair."""

    keys: tuple[str, ...]
    """What the two of a pair share, such as the seed."""
    values: tuple[float, ...]
    interval: tuple[float, float] | None
    """95% interval of the mean (paired t test); None for a single pair."""

    @property
    def mean(self) -> float:
        return float(np.mean(self.values))


@dataclass(frozen=True)
class Comparison:
    """Errors of `ours` minus errors of `theirs`, tested together with the other comparisons of the study."""

    ours: str
    theirs: str
    paired_by: str
    """What a pair shares, in words: the seed of the training, or of the search."""
    pairs: Pairs | None
    p: float | None
    """Of the paired t test; None without two pairs."""
    p_holm: float | None
    """The same, corrected for all comparisons that have a p-value (Holm 1979)."""

    @property
    def deviation(self) -> float | None:
        """Sample standard deviation of the differences; None without two pairs."""
        if self.pairs is None or len(self.pairs.values) < 2:
            return None
        return float(np.std(self.pairs.values, ddof=1))


class Asked(NamedTuple):
    """A comparison to test: its names, and the differences by pair."""

    ours: str
    theirs: str
    paired_by: str
    differences: Mapping[str, float]


def compare(asked: Sequence[Asked], correct: bool = True) -> list[Comparison]:
    """Test each comparison; the correction runs over all tests of the list.

    A comparison without two pairs has no p-value, and does not count for the correction of the others. With `correct`
    false the p-values stay as they are.
    """
    tested = [paired_p(list(one.differences.values())) for one in asked]
    p_values = [p for p in tested if p is not None]
    adjusted = iter(holm(p_values) if correct else p_values)
    return [
        Comparison(*one[:3], pairs_of(one.differences), p, None if p is None else next(adjusted))
        for one, p in zip(asked, tested, strict=True)
    ]


def pairs_of(differences: Mapping[str, float]) -> Pairs | None:
    """The differences with the interval of their mean; None if there is none."""
    if not differences:
        return None
    values, interval = tuple(differences.values()), None
    if len(values) > 1:
        mean, error = float(np.mean(values)), float(np.std(values, ddof=1)) / math.sqrt(len(values))
        reach = float(t_distribution.isf(ALPHA / 2, len(values) - 1)) * error
        interval = (mean - reach, mean + reach)
    return Pairs(tuple(differences), values, interval)


def paired_p(differences: Sequence[float]) -> float | None:
    """The two-sided p-value of a paired t test; None for fewer than two differences."""
    if len(differences) < 2:
        return None
    mean, deviation = float(np.mean(differences)), float(np.std(differences, ddof=1))
    if deviation == 0:  # equal differences: certain, or no difference at all
        return 1.0 if mean == 0 else 0.0
    t = mean / (deviation / math.sqrt(len(differences)))
    return float(2 * t_distribution.sf(abs(t), len(differences) - 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values (1979), in the given order: rejecting those at most 0.05 keeps the family's error."""
    order = np.argsort(p_values, kind="stable")
    adjusted, largest = [0.0] * len(p_values), 0.0
    for k, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - k) * p_values[i]))
        adjusted[i] = largest
    return adjusted


def power(difference: float, deviation: float, pairs: int, alpha: float = ALPHA) -> float:
    """Probability that a two-sided paired t test with so many pairs finds a true mean difference.

    deviation: standard deviation of the differences. From the non-central t distribution.
    """
    if pairs < 2:
        return 0.0
    if deviation == 0:
        return 1.0 if difference else alpha
    degrees, shift = pairs - 1, abs(difference) / deviation * math.sqrt(pairs)
    critical = float(t_distribution.isf(alpha / 2, degrees))
    other_side = nct.cdf(-critical, degrees, shift)
    # scipy gives NaN for probabilities far below rounding
    return float(nct.sf(critical, degrees, shift)) + (float(other_side) if math.isfinite(other_side) else 0.0)


def pairs_needed(difference: float, deviation: float, alpha: float = ALPHA, wanted: float = POWER) -> int | None:
    """The smallest number of pairs with which a paired t test finds `difference` with probability `wanted`.

    None if more than 100,000 would be needed.
    """
    low, high = 1, 2  # the power rises with the number of pairs: double, then halve
    while power(difference, deviation, high, alpha) < wanted:
        low, high = high, 2 * high
        if high > 2 * MOST_PAIRS:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power(difference, deviation, middle, alpha) >= wanted else (middle, high)
    return high if high <= MOST_PAIRS else None


def detectable(deviation: float, pairs: int, alpha: float = ALPHA, wanted: float = POWER) -> float | None:
    """The smallest true difference that so many pairs find with probability `wanted`; None for fewer than two."""
    if pairs < 2:
        return None
    low, high = 0.0, max(deviation, 1e-12)
    while power(high, deviation, pairs, alpha) < wanted:
        low, high = high, 2 * high
    while high - low > 1e-6 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if power(middle, deviation, pairs, alpha) >= wanted else (middle, high)
    return high


@dataclass(frozen=True)
class Design:
    """The power of the design of one comparison: what its pairs can find, and how many a small difference needs."""

    comparison: Comparison
    deviation: float
    """Of the differences, in points."""
    deviation_interval: tuple[float, float]
    """95%, chi-squared: a deviation from few pairs is itself uncertain."""
    target: float
    """The difference to settle, in points."""
    needed: int | None
    """Pairs for 80% power at 5%, if this comparison stood alone; None: more than 100,000."""
    needed_range: tuple[int | None, int | None]
    """The same at either end of the deviation's interval."""
    needed_corrected: int | None
    """Pairs if this comparison must hold against the first and hardest threshold of Holm, 5% / comparisons."""
    detectable: float | None
    """The smallest difference that the present pairs find with 80% power, in points."""


def designs(comparisons: Sequence[Comparison], target: float = 0.1) -> list[Design]:
    """The power of each comparison that has at least two different pairs."""
    family = max(1, len(comparisons))
    found = []
    for one in comparisons:
        if one.pairs is None or not one.deviation:
            continue
        pairs, sd = len(one.pairs.values), one.deviation
        low, high = (math.sqrt((pairs - 1) * sd**2 / chi2.ppf(q, pairs - 1)) for q in (0.975, 0.025))
        found.append(
            Design(
                comparison=one,
                deviation=sd,
                deviation_interval=(low, high),
                target=target,
                needed=pairs_needed(target, sd),
                needed_range=(pairs_needed(target, low), pairs_needed(target, high)),
                needed_corrected=pairs_needed(target, sd, ALPHA / family),
                detectable=detectable(sd, pairs),
            )
        )
    return found
