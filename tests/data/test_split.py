"""Class-balanced splits: disjoint, of the sizes asked for, and in proportion."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from darts_sg.data import balanced_split
from darts_sg.errors import UsageError


@given(
    counts=st.lists(st.integers(1, 30), min_size=1, max_size=8),
    parts=st.lists(st.floats(0, 1), min_size=1, max_size=4),
    seed=st.integers(0, 1000),
)
@settings(deadline=None, max_examples=80)
def test_sets_are_disjoint_of_the_right_size_and_in_proportion(
    counts: list[int], parts: list[float], seed: int
) -> None:
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))]
    sizes = [int(part * len(labels) / len(parts)) for part in parts]
    sets = balanced_split(labels, sizes, seed)
    assert [len(indices) for indices in sets] == sizes
    together = torch.cat(sets)
    assert len(together.unique()) == len(together)
    share = torch.tensor(counts) * sizes[0] / len(labels)
    assert ((labels[sets[0]].bincount(minlength=len(counts)) - share).abs() < 1).all()
    for indices, again in zip(sets, balanced_split(labels, sizes, seed), strict=True):
        assert torch.equal(indices, again)


@pytest.mark.parametrize("sizes", [[25_000, 25_000], [7, 13, 1001], [50_000], [4999, 45_001], [10, 0]])
def test_equal_classes_get_equal_shares(sizes: list[int]) -> None:
    labels = torch.arange(50_000) % 10
    for indices in balanced_split(labels, sizes, 0):
        counts = labels[indices].bincount(minlength=10)
        assert counts.max() - counts.min() <= 1


def test_halves_of_unequal_classes_use_every_image() -> None:
    labels = torch.tensor([0] * 5 + [1] * 3 + [2] * 1 + [3] * 11)
    halves = balanced_split(labels, [10, 10], 3)
    assert torch.equal(torch.cat(halves).sort().values, torch.arange(20))


def test_the_seed_decides() -> None:
    labels = torch.arange(1000) % 10
    one, same, other = (balanced_split(labels, [100], seed)[0] for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_every_image_is_as_likely_as_the_next() -> None:
    labels = torch.arange(40) % 4
    chosen = torch.zeros(40)
    for seed in range(400):
        chosen[balanced_split(labels, [10], seed)[0]] += 1
    # binomial(400, 1/4): mean 100, deviation 8.7
    assert (chosen - 100).abs().max() < 5 * 8.7


@pytest.mark.parametrize(("sizes", "message"), [([60, 41], "60 . 41 = 101 images"), ([-1], "must not be negative")])
def test_what_does_not_fit_is_refused(sizes: list[int], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        balanced_split(torch.arange(100) % 10, sizes, 0)
