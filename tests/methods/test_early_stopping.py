"""The two rules for ending a search early, against RobustDARTS' written out with NumPy."""

import math

import numpy as np
import pytest

from darts_sg.methods.early_stopping import EarlyStop, stop_by_eigenvalue, stop_by_skips


def rows_of(values: list[float], column: str = "eigenvalue") -> list[dict[str, float]]:
    return [{"epoch": float(i + 1), column: value} for i, value in enumerate(values)]


def first_stop(values: list[float], ratio: float, frozen: int = 0) -> EarlyStop | None:
    rows = rows_of(values)
    stops = (stop_by_eigenvalue(rows[:n], ratio, frozen) for n in range(len(rows) + 1))
    return next((stop for stop in stops if stop), None)


def written_out(values: list[float], ratio: float, first: int = 10) -> tuple[int, int] | None:
    """(epoch after which to stop, epoch to go back to): the first i with mean(i - 5) / mean(i) < ratio, i from 0."""
    means = np.convolve(values, np.ones(5) / 5, mode="valid")  # means[j] is around epoch j + 2
    for j in range(5, len(means)):
        if j - 5 + 2 >= first and means[j - 5] / means[j] < ratio:
            return j + 2 + 2 + 1, j - 5 + 2 + 1
    return None


@pytest.mark.parametrize("seed", range(30))
def test_the_eigenvalue_stops_where_the_rule_of_robustdarts_does(seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = np.exp(np.cumsum(0.15 * rng.standard_normal(50))).tolist()
    ratio = float(rng.uniform(0.5, 0.9))
    found, expected = first_stop(values, ratio), written_out(values, ratio)
    assert (None if found is None else found[:2]) == expected


def test_a_leap_is_answered_with_the_epoch_before_it() -> None:
    stop = first_stop([0.1] * 25 + [0.5] * 25, 0.75)
    assert stop is not None
    assert stop.after_epoch == 26
    assert stop.chosen_epoch == 19
    assert stop.reason == (
        "the dominant eigenvalue rose from 0.1 around epoch 19 to 0.18 around epoch 24, a ratio of 0.556, below 0.75"
    )


def test_where_it_does_not_stop() -> None:
    assert first_stop([1.0] * 50, 0.75) is None
    assert first_stop(np.linspace(3, 0.1, 50).tolist(), 0.99) is None
    assert first_stop([-0.5] * 25 + [-0.1] * 25, 0.75) is None
    assert first_stop([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4] + [6.4] * 20, 0.75) is None  # before the earliest epoch
    assert stop_by_eigenvalue([], 0.75) is None


def test_epochs_without_a_figure_are_left_out_of_the_means() -> None:
    values = [0.1] * 25 + [0.5] * 25
    values[23] = math.nan
    stop = first_stop(values, 0.75)
    assert stop is not None
    assert stop[:2] == (26, 19)
    assert "to 0.2 around" in stop.reason


def test_frozen_epochs_are_neither_averaged_nor_returned() -> None:
    stop = first_stop([9.0] * 15 + [0.1] + [0.5] * 20, 0.75, frozen=15)
    assert stop is not None
    assert stop[:2] == (23, 16)


def test_skips_stop_with_the_last_genotype_within_the_bound() -> None:
    rows = rows_of([3, 2, 1, 3, 2], "skips_normal")
    assert stop_by_skips([], 2) is None
    assert [stop_by_skips(rows[:n], 2) for n in (1, 2, 3)] == [None] * 3
    assert stop_by_skips(rows[:4], 2) == EarlyStop(4, 3, "the normal cell has 3 skip connections, more than 2")
    assert stop_by_skips(rows, 1) == EarlyStop(5, 3, "the normal cell has 2 skip connections, more than 1")
    assert stop_by_skips(rows[:4], 2, frozen_epochs=3) is None
    assert stop_by_skips(rows, 0) is None
