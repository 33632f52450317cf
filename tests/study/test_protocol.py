"""The protocol's statistics against the textbook formulas, and every verdict that it knows."""

import math
import statistics
from collections.abc import Mapping

import pytest
from scipy import stats

from darts_sg.study.protocol import (
    Condition,
    Difference,
    fewer_parameters,
    judge,
    no_worse,
    paired,
    relative,
    spread,
    verdict,
)

V2 = 3_349_342
OURS = {0: 12.0, 1: 11.0, 2: 12.5}


def shifted(*points: float) -> Mapping[int, float]:
    """Errors by seed such that OURS is worse than these by so many points."""
    return {seed: OURS[seed] - shift for seed, shift in enumerate(points)}


def test_a_difference_is_paired_by_seed() -> None:
    found = paired({0: 10.0, 1: 12.0, 2: 13.5, 7: 50.0}, {2: 13.0, 1: 12.5, 0: 9.0, 8: 1.0})
    assert found is not None
    assert (found.seeds, found.values) == ((0, 1, 2), (1.0, -0.5, 0.5))
    assert found.mean == pytest.approx(1 / 3)
    reach = stats.t.ppf(0.975, 2) * statistics.stdev([1.0, -0.5, 0.5]) / math.sqrt(3)  # the formula of the textbook
    assert found.interval == pytest.approx((1 / 3 - reach, 1 / 3 + reach))
    assert found.interval == pytest.approx(
        tuple(stats.ttest_rel([10.0, 12.0, 13.5], [9.0, 12.5, 13.0]).confidence_interval(0.95))
    )


def test_one_pair_gives_no_interval_and_none_no_difference() -> None:
    assert paired({0: 10.0, 1: 9.0}, {1: 9.5}) == Difference((1,), (-0.5,), None)
    assert paired({0: 10.0}, {1: 9.5}) is None


def test_equal_differences_have_a_point_for_an_interval() -> None:
    found = paired(OURS, shifted(0.5, 0.5, 0.5))
    assert found is not None
    assert found.interval == pytest.approx((0.5, 0.5))


def test_spread() -> None:
    assert spread([]) is None
    assert spread([3.0]) == (1, 3.0, None)
    assert spread([1.0, 2.0, 6.0]) == (3, 3.0, pytest.approx(math.sqrt(7)))


@pytest.mark.parametrize(
    ("counts", "base", "met"),
    [
        ([2_400_000, 2_600_000], [3_400_000], True),
        ([2_512_000], [3_349_334], True),  # 25% of either
        ([2_513_000], [9_000_000], False),  # too many for DARTS_V2
        ([2_400_000], [3_100_000], False),  # too many for our own
        ([2_400_000], [], None),
        ([2_600_000], [], False),  # whatever our own will have
        ([], [3_000_000], None),
    ],
)
def test_fewer_parameters(counts: list[int], base: list[int], met: bool | None) -> None:
    assert fewer_parameters(counts, base, V2).met is met


def test_fewer_parameters_in_words() -> None:
    text = fewer_parameters([2_400_000, 2_600_000], [3_000_000], V2).text
    assert text == (
        "2 genotypes of darts+sandglass: 2.50M parameters on average, 25.4% fewer than DARTS_V2 (3,349,342), "
        "16.7% fewer than our one plain genotype of darts (3.00M)"
    )
    assert relative(3.0, 2.0) == "50.0% more"


@pytest.mark.parametrize(
    ("theirs", "met", "words"),
    [
        (shifted(-0.5, -0.4, -0.6), True, "excludes being worse"),
        (shifted(0.0, 0.0, 0.0), True, "excludes being worse"),
        (shifted(0.2, 0.2, 0.2), False, "excludes being worse"),  # the mean is larger
        (shifted(-2.0, 1.0, -0.5), False, "does not exclude being worse"),
        (shifted(-0.5, -0.4), None, "still without seed 2"),
        (shifted(-0.5), None, "one pair alone gives no interval; still without seeds 1, 2"),
        ({5: 1.0}, None, "not measured"),
    ],
)
def test_no_worse(theirs: Mapping[int, float], met: bool | None, words: str) -> None:
    found = no_worse(paired(OURS, theirs), "A", "B")
    assert found.met is met
    assert words in found.text


YES, NO, OPEN = Condition(True, ""), Condition(False, ""), Condition(None, "")
BETTER, WORSE, MIXED = (paired(OURS, shifted(*points)) for points in ((-1, -1, -1), (1, 1, 1), (1, 1, -1)))
WORSE_SO_FAR = paired(OURS, shifted(1, 1))


@pytest.mark.parametrize(
    ("fewer", "error", "difference", "word"),
    [
        (YES, YES, BETTER, "holds"),
        (YES, NO, MIXED, "open"),
        (YES, OPEN, None, "open"),
        (OPEN, YES, BETTER, "open"),
        (OPEN, OPEN, None, "open"),
        (NO, YES, BETTER, "does not hold"),
        (NO, OPEN, None, "does not hold"),
        (YES, NO, WORSE, "does not hold"),
        (OPEN, NO, WORSE, "does not hold"),
        (YES, OPEN, WORSE_SO_FAR, "open"),  # every seed of the protocol, not of those trained so far
    ],
)
def test_judgement(fewer: Condition, error: Condition, difference: Difference | None, word: str) -> None:
    assert judge(fewer, error, difference).word == word


@pytest.mark.parametrize(
    ("plain", "steered", "word"),
    [
        ("holds", "open", "holds"),
        ("holds", "holds", "holds"),
        ("open", "holds", "holds when steered"),
        ("does not hold", "holds", "holds when steered"),
        ("does not hold", "open", "does not hold"),
        ("open", "does not hold", "open"),
        ("open", "open", "open"),
    ],
)
def test_verdict(plain: str, steered: str, word: str) -> None:
    judged = {
        "holds": judge(YES, YES, BETTER),
        "open": judge(OPEN, OPEN, None),
        "does not hold": judge(NO, OPEN, None),
    }
    assert verdict(judged[plain], judged[steered]) == word
