"""The statistics of a study: spreads, paired differences with intervals, and whether its claim holds.

Pure functions of counts and errors; nothing here reads a file.
"""

import statistics
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from scipy.stats import ttest_rel


class Spread(NamedTuple):
    """Mean and sample standard deviation; a single value has no deviation."""

    number: int
    mean: float
    deviation: float | None

    def text(self, digits: int, scale: float = 1.0) -> str:
        """Mean ± deviation, both divided by `scale`."""
        text = f"{self.mean / scale:.{digits}f}"
        return text if self.deviation is None else f"{text} ± {self.deviation / scale:.{digits}f}"


def spread(values: Sequence[float]) -> Spread | None:
    """Mean and deviation of `values`; None if there are none."""
    if not values:
        return None
    return Spread(len(values), statistics.mean(values), statistics.stdev(values) if len(values) > 1 else None)


class Difference(NamedTuple):
    """Errors of one genotype minus those of another, in points, seed by seed."""

    seeds: tuple[int, ...]
    values: tuple[float, ...]
    interval: tuple[float, float] | None
    """95% confidence interval of the mean (paired t test); None for a single pair."""

    @property
    def mean(self) -> float:
        return statistics.mean(self.values)

    def worse_everywhere(self, seeds: Sequence[int]) -> bool:
        """Tell whether the first genotype is worse in each of `seeds`; False while one of them is missing."""
        return set(seeds) <= set(self.seeds) and min(self.values) > 0

    def as_dict(self) -> dict[str, Any]:
        """The fields, with the mean, for JSON."""
        return {"mean": self.mean, **self._asdict()}


def paired(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Difference | None:
    """Subtract errors by seed, over the seeds that both genotypes have; None if they share no seed."""
    seeds = tuple(sorted(ours.keys() & theirs.keys()))
    if not seeds:
        return None
    a, b = ([errors[seed] for seed in seeds] for errors in (ours, theirs))
    interval = None
    if len(seeds) > 1:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # equal differences: their interval is a point
            low, high = ttest_rel(a, b).confidence_interval(0.95)
        interval = float(low), float(high)
    return Difference(seeds, tuple(round(x - y, 10) for x, y in zip(a, b, strict=True)), interval)


class Condition(NamedTuple):
    """A condition of a claim, evaluated."""

    met: bool | None
    """None while the runs that would decide it are missing."""
    text: str
    """The measured figures, in words."""
    refuted: bool = False
    """Whether this condition alone shows that the claim does not hold."""

    @property
    def word(self) -> str:
        return {True: "met", False: "not met", None: "undecided"}[self.met]


@dataclass(frozen=True)
class Evidence:
    """What the conditions of a claim are evaluated on, for one kind of genotypes (plain or steered)."""

    counts: Sequence[int]
    """Parameters of the genotypes that the claim is about."""
    baseline_counts: Sequence[int]
    """Parameters of the plain genotypes of the baseline's space."""
    reference_counts: Mapping[str, int]
    """Parameters of published genotypes, by name."""
    difference: Difference | None
    """Errors of the claim's genotype minus those of the baseline."""
    seeds: Sequence[int]
    """Seeds that every comparison needs."""
    names: tuple[str, str]
    """The genotypes of `difference`."""
    spaces: tuple[str, str]
    """The spaces of the claim's genotype and of the baseline."""


@dataclass(frozen=True)
class FewerParameters:
    """At least `percent` fewer parameters on average than a published genotype and than the baseline's space."""

    percent: float
    than: str
    """The published genotype."""

    def title(self, baseline_space: str) -> str:
        fewer = f"At least {self.percent:g}% fewer parameters"
        return f"{fewer} than {self.than} and than our plain genotypes of {baseline_space}"

    def evaluate(self, found: Evidence) -> Condition:
        """Compare the mean count with either; a failure of this condition refutes the claim."""
        ours, theirs = found.spaces
        published = found.reference_counts[self.than]
        if not found.counts:
            return Condition(None, f"no genotype of {ours} was measured")
        mean, limit = statistics.mean(found.counts), 1 - self.percent / 100
        text = f"{counted(found.counts, 'genotype')} of {ours}: {mean / 1e6:.2f}M parameters"
        text += f"{' on average' if len(found.counts) > 1 else ''}, {relative(mean, published)} than {self.than}"
        text += f" ({published:,})"
        if not found.baseline_counts:
            met = None if mean <= limit * published else False
            return Condition(met, f"{text}; plain genotypes of {theirs}: not measured", refuted=met is False)
        own = statistics.mean(found.baseline_counts)
        plain = counted(found.baseline_counts, "plain genotype")
        text += f", {relative(mean, own)} than our {plain} of {theirs} ({own / 1e6:.2f}M)"
        met = mean <= limit * published and mean <= limit * own
        return Condition(met, text, refuted=not met)


@dataclass(frozen=True)
class NoWorse:
    """No larger mean error than the baseline, and the 95% interval excludes being worse by `points` or more."""

    points: float

    def title(self, baseline_space: str) -> str:
        return f"No larger mean error, and not worse by {self.points:g} points or more"

    def evaluate(self, found: Evidence) -> Condition:
        """Judge the paired difference; only being worse in every seed refutes the claim."""
        (ours, theirs), difference = found.names, found.difference
        if difference is None:
            return Condition(None, f"{ours} and {theirs} with the same seed in the same setting: not measured")
        pairs = counted(difference.seeds, "pair")
        text = f"{ours} − {theirs}: {difference.mean:+.2f} points on average of {pairs}, "
        if difference.interval is None:
            text += "one pair alone gives no interval"
        else:
            low, high = difference.interval
            excluded = "excludes" if high < self.points else "does not exclude"
            text += f"95% interval {low:+.2f} to {high:+.2f}, which {excluded} being worse by {self.points:g} or more"
        refuted = difference.worse_everywhere(found.seeds)
        if refuted:
            text += "; worse in every seed"
        if missing := [seed for seed in found.seeds if seed not in difference.seeds]:
            plural = "s" * (len(missing) > 1)
            return Condition(None, f"{text}; still without seed{plural} {', '.join(map(str, missing))}", refuted)
        if difference.interval is None:  # a protocol with a single seed
            return Condition(None, text, refuted)
        return Condition(difference.mean <= 0 and difference.interval[1] < self.points, text, refuted)


CONDITIONS: dict[str, type[FewerParameters] | type[NoWorse]] = {
    "fewer_parameters": FewerParameters,
    "no_worse": NoWorse,
}
"""The conditions that a claim can have, by the key that a protocol names them with."""


class Judgement(NamedTuple):
    """The conditions of a claim, evaluated on the plain or on the steered genotypes."""

    conditions: Mapping[str, Condition]
    word: str
    """holds, does not hold, or open."""


def judge(conditions: Mapping[str, Condition]) -> Judgement:
    """The claim does not hold if a condition refutes it, holds if all are met, and is open otherwise."""
    if any(condition.refuted for condition in conditions.values()):
        return Judgement(conditions, "does not hold")
    return Judgement(conditions, "holds" if all(condition.met for condition in conditions.values()) else "open")


def verdict(plain: Judgement, steered: Judgement | None = None) -> str:
    """Sum up: holds, holds when steered, does not hold, or open."""
    if plain.word != "holds" and steered is not None and steered.word == "holds":
        return "holds when steered"
    return plain.word


def counted(things: Sequence[Any], noun: str, plural: str | None = None) -> str:
    """`2 genotypes`, `one genotype`."""
    return f"one {noun}" if len(things) == 1 else f"{len(things)} {plural or noun + 's'}"


def relative(value: float, base: float) -> str:
    """`12.3% fewer`, `1.0% more`: one count relative to another."""
    percent = 100 * (value / base - 1)
    return f"{abs(percent):.1f}% {'more' if percent > 0 else 'fewer'}"
