"""What was agreed on before the experiment of results/sg_darts was run: its names, its statistics and its verdicts.

Pure functions of counts and errors; nothing here reads a file.
"""

import statistics
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from scipy.stats import ttest_rel

CLAIM = 25
"""Percent of the parameters that the block saves (ECCV 2020, the experiment with DARTS)."""
MARGIN = 0.3
"""Points of error: to be so much worse, or more, has to be excluded."""
BOUND = 2_450_000
"""Parameters at C=36, 20 cells that a steered genotype has at most."""
MAX_SKIPS = 2
"""A search whose normal cell has more skip connections than these is called collapsed."""
SEEDS = (0, 1, 2)
"""Of the retrainings. What is said of every seed is said of these."""
DARTS, IR, SANDGLASS = SPACES = ("darts", "darts+ir", "darts+sandglass")
NAMES = {DARTS: "DARTS_OURS", IR: "IR_DARTS", SANDGLASS: "SG_DARTS"}
PUBLISHED = ("DARTS_V1", "DARTS_V2")
OURS = NAMES[SANDGLASS]
FULL_SEARCH = {"channels": 16, "cells": 8, "epochs": 50, "train_images": 25_000, "validation_images": 25_000}
FULL_TRAINING = {"channels": 36, "cells": 20, "epochs": 600, "train_images": 50_000}
FULL = "searched at C=16, 8 cells for 50 epochs and retrained at C=36, 20 cells for 600 epochs, on all images"


def steered_name(name: str) -> str:
    """The name of the steered form of a named genotype: SG_DARTS_2.45M."""
    return f"{name}_{BOUND / 1e6:g}M"


COMPARISONS = (
    (OURS, NAMES[DARTS]),
    (OURS, NAMES[IR]),
    (OURS, "DARTS_V2"),
    (OURS, "DARTS_V1"),
    (steered_name(OURS), steered_name(NAMES[DARTS])),
    (steered_name(OURS), steered_name(NAMES[IR])),
)


class Spread(NamedTuple):
    """Mean and sample standard deviation, which one value has none of."""

    number: int
    mean: float
    deviation: float | None

    def text(self, digits: int, scale: float = 1.0) -> str:
        """Mean ± deviation, both divided by `scale`."""
        text = f"{self.mean / scale:.{digits}f}"
        return text if self.deviation is None else f"{text} ± {self.deviation / scale:.{digits}f}"


def spread(values: Sequence[float]) -> Spread | None:
    """The Spread of some values, None of none."""
    if not values:
        return None
    return Spread(len(values), statistics.mean(values), statistics.stdev(values) if len(values) > 1 else None)


class Difference(NamedTuple):
    """Errors of one genotype minus those of another, in points, seed by seed."""

    seeds: tuple[int, ...]
    values: tuple[float, ...]
    interval: tuple[float, float] | None
    """95% confidence interval of the mean (paired t test); None for one pair."""

    @property
    def mean(self) -> float:
        return statistics.mean(self.values)

    @property
    def complete(self) -> bool:
        """Whether all seeds of the protocol are among the pairs."""
        return set(SEEDS) <= set(self.seeds)

    @property
    def worse_everywhere(self) -> bool:
        """Whether the first is worse in every seed of the protocol."""
        return self.complete and min(self.values) > 0

    def as_dict(self) -> dict[str, Any]:
        """The fields with the mean."""
        return {"mean": self.mean, **self._asdict()}


def paired(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Difference | None:
    """The Difference of two genotypes' errors by seed, over the seeds that both have; None if there is none."""
    seeds = tuple(sorted(ours.keys() & theirs.keys()))
    if not seeds:
        return None
    a, b = ([errors[seed] for seed in seeds] for errors in (ours, theirs))
    interval = None
    if len(seeds) > 1:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # equal differences, whose interval is a point
            low, high = ttest_rel(a, b).confidence_interval(0.95)
        interval = float(low), float(high)
    return Difference(seeds, tuple(round(x - y, 10) for x, y in zip(a, b, strict=True)), interval)


class Condition(NamedTuple):
    """A condition of the protocol: met or not, None while that is undecided, and why in words."""

    met: bool | None
    text: str

    @property
    def word(self) -> str:
        return {True: "met", False: "not met", None: "undecided"}[self.met]


def fewer_parameters(counts: Sequence[int], base: Sequence[int], published: int) -> Condition:
    """Condition 1: on average at least CLAIM percent fewer than `published` and than the mean of `base`.

    counts: of the genotypes of darts+sandglass. base: of our own plain genotypes of darts. published: of DARTS_V2.
    """
    if not counts:
        return Condition(None, f"no genotype of {SANDGLASS} was measured")
    mean, limit = statistics.mean(counts), 1 - CLAIM / 100
    text = f"{counted(counts, 'genotype')} of {SANDGLASS}: {mean / 1e6:.2f}M parameters"
    text += f"{' on average' if len(counts) > 1 else ''}, {relative(mean, published)} than DARTS_V2 ({published:,})"
    if not base:
        met = None if mean <= limit * published else False
        return Condition(met, f"{text}; plain genotypes of {DARTS}: not measured")
    own = statistics.mean(base)
    text += f", {relative(mean, own)} than our {counted(base, 'plain genotype')} of {DARTS} ({own / 1e6:.2f}M)"
    return Condition(mean <= limit * published and mean <= limit * own, text)


def no_worse(difference: Difference | None, ours: str, theirs: str) -> Condition:
    """Condition 2: no larger mean error, and the interval excludes being worse by MARGIN points or more."""
    if difference is None:
        return Condition(None, f"{ours} and {theirs} with the same seed in the same setting: not measured")
    pairs = counted(difference.seeds, "pair")
    text = f"{ours} − {theirs}: {difference.mean:+.2f} points on average of {pairs}, "
    if difference.interval is None:
        text += "one pair alone gives no interval"
    else:
        low, high = difference.interval
        excluded = "excludes" if high < MARGIN else "does not exclude"
        text += f"95% interval {low:+.2f} to {high:+.2f}, which {excluded} being worse by {MARGIN:g} or more"
    if difference.worse_everywhere:
        text += "; worse in every seed"
    if missing := [seed for seed in SEEDS if seed not in difference.seeds]:
        return Condition(None, f"{text}; still without seed{'s' * (len(missing) > 1)} {', '.join(map(str, missing))}")
    assert difference.interval is not None  # there are several SEEDS
    return Condition(difference.mean <= 0 and difference.interval[1] < MARGIN, text)


class Judgement(NamedTuple):
    """The two conditions, asked of the plain or of the steered genotypes."""

    fewer: Condition
    no_worse: Condition
    word: str
    """holds, does not hold, or open."""


def judge(fewer: Condition, error: Condition, difference: Difference | None) -> Judgement:
    """It holds if both conditions are met, does not if the first fails or each seed is worse, and is open otherwise."""
    if fewer.met is False or (difference is not None and difference.worse_everywhere):
        word = "does not hold"
    else:
        word = "holds" if fewer.met and error.met else "open"
    return Judgement(fewer, error, word)


def verdict(plain: Judgement, steered: Judgement) -> str:
    """holds, holds when steered, does not hold, or open: what the protocol calls the claim."""
    if plain.word != "holds" and steered.word == "holds":
        return "holds when steered"
    return plain.word


def counted(things: Sequence[Any], noun: str, plural: str | None = None) -> str:
    """`2 genotypes`, `one genotype`."""
    return f"one {noun}" if len(things) == 1 else f"{len(things)} {plural or noun + 's'}"


def relative(value: float, base: float) -> str:
    """`12.3% fewer`, `1.0% more`: how a count lies to another."""
    percent = 100 * (value / base - 1)
    return f"{abs(percent):.1f}% {'more' if percent > 0 else 'fewer'}"
