"""The comparisons of a study against scipy, closed testing, numerical integration and simulation."""

import itertools
import math

import numpy as np
import pytest
from scipy import integrate, stats

from darts_sg.study.inference import Asked, Pairs, compare, designs, detectable, holm, paired_p, pairs_needed, power

OURS, THEIRS, OTHER = (12.0, 11.0, 12.5, 11.9), (12.4, 11.8, 12.6, 12.2), (12.4, 10.9, 12.1)
ASKED = [
    Asked("A", "B", "seed", {str(k): a - b for k, (a, b) in enumerate(zip(OURS, THEIRS, strict=True))}),
    Asked("A", "D", "seed", {}),
    Asked("A", "C", "seed", {str(k): a - b for k, (a, b) in enumerate(zip(OURS[:3], OTHER, strict=True))}),
    Asked("A", "E", "seed", {"0": 0.5}),
]


def closed_testing(p_values: list[float]) -> list[float]:
    """Adjusted p-values by the definition: the largest Bonferroni p of all families that hold the hypothesis."""
    indices = range(len(p_values))
    families = [s for k in range(1, len(p_values) + 1) for s in itertools.combinations(indices, k)]
    bonferroni = {family: min(1.0, len(family) * min(p_values[i] for i in family)) for family in families}
    return [max(p for family, p in bonferroni.items() if i in family) for i in indices]


@pytest.mark.parametrize("p_values", [[0.01, 0.04, 0.03, 0.005], [0.2], [0.5, 0.5, 0.01], [1.0, 0.0, 0.3], []])
def test_holm_is_closed_testing_with_bonferroni(p_values: list[float]) -> None:
    assert holm(p_values) == pytest.approx(closed_testing(p_values))


def test_comparisons_are_tested_and_corrected_together() -> None:
    found = compare(ASKED)
    tests = [stats.ttest_rel(OURS, THEIRS), stats.ttest_rel(OURS[:3], OTHER)]
    expected = [test.pvalue for test in tests]
    assert [found[0].p, found[2].p] == pytest.approx(expected)
    assert [found[0].p_holm, found[2].p_holm] == pytest.approx(closed_testing(expected))  # the others have no test
    assert found[0].pairs is not None
    assert found[0].pairs.interval == pytest.approx(tuple(tests[0].confidence_interval(0.95)))
    assert found[0].pairs.mean == pytest.approx(-0.4)
    assert (found[1].pairs, found[1].p, found[1].p_holm) == (None, None, None)
    assert (found[3].pairs, found[3].p) == (Pairs(("0",), (0.5,), None), None)
    assert found[0].deviation == pytest.approx(np.std([-0.4, -0.8, -0.1, -0.3], ddof=1))
    plain = compare(ASKED, correct=False)
    assert [one.p_holm for one in plain] == [one.p for one in plain]


@pytest.mark.parametrize(("values", "p"), [([0.5, 0.5], 0.0), ([0.0, 0.0, 0.0], 1.0), ([0.3], None), ([], None)])
def test_equal_differences_have_a_p_value(values: list[float], p: float | None) -> None:
    assert paired_p(values) == p


@pytest.mark.parametrize(("difference", "deviation", "pairs"), [(0.1, 0.15, 8), (0.1, 0.4, 3), (0.5, 0.3, 5)])
def test_power_is_the_integral_over_the_estimated_deviation(difference: float, deviation: float, pairs: int) -> None:
    degrees, shift = pairs - 1, difference / deviation * math.sqrt(pairs)
    critical = stats.t.ppf(0.975, degrees)

    def given(s: float) -> float:  # s is the estimated over the true deviation, chi / sqrt(degrees)
        rejected = stats.norm.sf(critical * s - shift) + stats.norm.cdf(-critical * s - shift)
        return float(rejected * stats.chi.pdf(s * math.sqrt(degrees), degrees) * math.sqrt(degrees))

    expected, _ = integrate.quad(given, 0, 10)
    assert power(difference, deviation, pairs) == pytest.approx(expected, abs=1e-6)


def test_power_is_what_simulated_studies_find() -> None:
    drawn = np.random.default_rng(0).normal(0.1, 0.12, (20_000, 6))
    t = drawn.mean(1) / (drawn.std(1, ddof=1) / math.sqrt(6))
    found = (abs(t) > stats.t.ppf(0.975, 5)).mean()
    assert power(0.1, 0.12, 6) == pytest.approx(found, abs=0.012)  # 3 standard errors


@pytest.mark.parametrize(("difference", "deviation"), [(0.1, 0.12), (0.1, 0.5), (1.0, 0.1)])
def test_the_number_of_pairs_is_the_smallest_that_suffices(difference: float, deviation: float) -> None:
    number = pairs_needed(difference, deviation)
    assert number is not None
    assert power(difference, deviation, number) >= 0.8 > power(difference, deviation, number - 1)
    reach = detectable(deviation, number)
    assert reach is not None
    assert reach <= difference * (1 + 1e-5)
    assert power(reach, deviation, number) == pytest.approx(0.8, abs=1e-4)


def test_what_no_number_of_pairs_settles() -> None:
    assert pairs_needed(1e-4, 1.0) is None
    assert (power(0.1, 0.2, 1), detectable(0.2, 1)) == (0.0, None)
    assert (power(0.1, 0.0, 2), power(0.0, 0.0, 2)) == (1.0, 0.05)


def test_the_design_states_how_uncertain_it_is() -> None:
    (one,) = designs(compare(ASKED[:2]), 0.1)
    sd = float(np.std([-0.4, -0.8, -0.1, -0.3], ddof=1))
    expected = tuple(math.sqrt(3 * sd**2 / stats.chi2.ppf(q, 3)) for q in (0.975, 0.025))
    assert one.deviation_interval == pytest.approx(expected)
    assert one.needed == pairs_needed(0.1, sd)
    assert one.needed_range == (pairs_needed(0.1, expected[0]), pairs_needed(0.1, expected[1]))
    assert one.needed_corrected == pairs_needed(0.1, sd, 0.05 / 2)
