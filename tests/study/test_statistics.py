"""The statistics of a study against the textbook formulas, and every verdict that there is."""

import math
import statistics
from collections.abc import Mapping, Sequence

import pytest
from scipy import stats

from darts_sg.study.statistics import (
    Condition,
    Difference,
    Evidence,
    FewerParameters,
    NoWorse,
    judge,
    paired,
    relative,
    spread,
    verdict,
)

V2 = 3_349_342
OURS = {0: 12.0, 1: 11.0, 2: 12.5}
SEEDS = (0, 1, 2)


def fewer_parameters(counts: Sequence[int], base: Sequence[int]) -> Condition:
    spaces = ("darts+sandglass", "darts")
    found = Evidence(counts, base, {"DARTS_V2": V2}, None, SEEDS, ("A", "B"), spaces)
    return FewerParameters(25, "DARTS_V2").evaluate(found)


def no_worse(difference: Difference | None, seeds: Sequence[int] = SEEDS) -> Condition:
    return NoWorse(0.3).evaluate(Evidence([], [], {}, difference, seeds, ("A", "B"), ("a", "b")))


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
    assert fewer_parameters(counts, base).met is met


def test_fewer_parameters_in_words() -> None:
    text = fewer_parameters([2_400_000, 2_600_000], [3_000_000]).text
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
    found = no_worse(paired(OURS, theirs))
    assert found.met is met
    assert words in found.text


@pytest.mark.parametrize(
    ("theirs", "seeds", "refuted"),
    [
        (shifted(1.0, 1.0, 1.0), SEEDS, True),
        (shifted(1.0, 1.0, -0.1), SEEDS, False),
        (shifted(1.0, 1.0), SEEDS, False),  # every seed of the protocol, not of those trained so far
        (shifted(1.0, 1.0), (0, 1), True),
        (shifted(-1.0, -1.0, -1.0), SEEDS, False),
    ],
)
def test_being_worse_in_every_seed_refutes(theirs: Mapping[int, float], seeds: Sequence[int], refuted: bool) -> None:
    found = no_worse(paired(OURS, theirs), seeds)
    assert found.refuted is refuted
    assert found.text.endswith("worse in every seed") is refuted


def test_one_seed_leaves_the_error_undecided() -> None:
    assert no_worse(paired(OURS, shifted(-0.5)), seeds=(0,)).met is None


def test_too_many_parameters_refute() -> None:
    assert fewer_parameters([2_600_000], []).refuted
    assert fewer_parameters([2_400_000], [3_100_000]).refuted
    assert not fewer_parameters([2_400_000], []).refuted
    assert not fewer_parameters([], [3_000_000]).refuted


MET, FAILED, OPEN, REFUTED = Condition(True, ""), Condition(False, ""), Condition(None, ""), Condition(False, "", True)


@pytest.mark.parametrize(
    ("conditions", "word"),
    [
        ((MET, MET), "holds"),
        ((MET,), "holds"),
        ((MET, FAILED), "open"),
        ((MET, OPEN), "open"),
        ((OPEN, OPEN), "open"),
        ((REFUTED, MET), "does not hold"),
        ((REFUTED, OPEN), "does not hold"),
        ((MET, REFUTED), "does not hold"),
        ((OPEN, Condition(None, "", True)), "does not hold"),
    ],
)
def test_judgement(conditions: Sequence[Condition], word: str) -> None:
    assert judge({str(i): condition for i, condition in enumerate(conditions)}).word == word


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
        ("open", None, "open"),
        ("holds", None, "holds"),
    ],
)
def test_verdict(plain: str, steered: str | None, word: str) -> None:
    judged = {
        "holds": judge({"a": MET, "b": MET}),
        "open": judge({"a": OPEN, "b": OPEN}),
        "does not hold": judge({"a": REFUTED, "b": OPEN}),
    }
    assert verdict(judged[plain], None if steered is None else judged[steered]) == word
