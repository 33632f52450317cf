"""Intersection over union and non-maximum suppression against loops over single boxes."""

import pytest
import torch

from darts_sg import boxes
from darts_sg.boxes import box_area, box_iou, paired_iou, suppress


def random_boxes(generator: torch.Generator, *shape: int, spread: float = 3.0) -> torch.Tensor:
    corner = spread * torch.rand(*shape, 2, generator=generator, dtype=torch.float64)
    return torch.cat([corner, corner + 0.2 + torch.rand(*shape, 2, generator=generator, dtype=torch.float64)], dim=-1)


def iou_of(a: list[float], b: list[float], extra: float) -> float:
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]) + extra)
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]) + extra)
    first, second = ((c[2] - c[0] + extra) * (c[3] - c[1] + extra) for c in (a, b))
    return width * height / (first + second - width * height)


@pytest.mark.parametrize("inclusive", [False, True])
def test_iou_is_that_of_single_boxes(inclusive: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = random_boxes(generator, 2, 5), random_boxes(generator, 2, 7)
    found = box_iou(first, second, inclusive=inclusive)
    for image in range(2):
        expected = [[iou_of(a, b, inclusive) for b in second[image].tolist()] for a in first[image].tolist()]
        torch.testing.assert_close(found[image], torch.tensor(expected, dtype=torch.float64))
    assert (found > 0).any()
    torch.testing.assert_close(paired_iou(first, second[:, :5], inclusive=inclusive), found.diagonal(dim1=1, dim2=2))


def test_boxes_without_area_overlap_nothing() -> None:
    none = torch.tensor([[1.0, 1, 1, 1], [3, 3, 2, 2]])
    assert box_area(none).tolist() == [0, 0]
    assert box_iou(none, none).tolist() == [[0, 0], [0, 0]]


def suppress_by_loop(given: list, scores: list, groups: list, threshold: float) -> list[bool]:
    kept: list[int] = []
    for index in sorted(range(len(given)), key=lambda index: -scores[index]):
        if all(groups[k] != groups[index] or iou_of(given[k], given[index], 0) <= threshold for k in kept):
            kept.append(index)
    return [index in kept for index in range(len(given))]


@pytest.mark.parametrize("threshold", [0.1, 0.45, 0.9])
def test_suppression_keeps_the_boxes_that_a_loop_keeps(threshold: float, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(1)
    given = random_boxes(generator, 3, 80, spread=1.5)
    scores = torch.randint(0, 30, (3, 80), generator=generator) / 30  # equal scores among them
    groups = torch.randint(0, 3, (3, 80), generator=generator)
    expected = [
        suppress_by_loop(given[image].tolist(), scores[image].tolist(), groups[image].tolist(), threshold)
        for image in range(3)
    ]
    assert suppress(given, scores, groups, threshold).tolist() == expected
    assert suppress(given[0], scores[0], groups[0], threshold).tolist() == expected[0]
    monkeypatch.setattr(boxes, "LARGEST_PAIRS", 80 * 80)
    assert suppress(given, scores, groups, threshold).tolist() == expected


def test_a_suppressed_box_suppresses_none() -> None:
    """A chain of boxes, each of which overlaps its neighbours only: every second one stays."""
    left = torch.arange(20.0)
    chain = torch.stack([left, 0 * left, left + 1.8, 0 * left + 1], dim=1)
    kept = suppress(chain, -left, torch.zeros(20, dtype=torch.int64), 0.2)
    assert kept.tolist() == [index % 2 == 0 for index in range(20)]


def test_no_boxes_are_no_problem() -> None:
    none = torch.empty(2, 0, 4)
    assert suppress(none, torch.empty(2, 0), torch.empty(2, 0, dtype=torch.int64), 0.5).shape == (2, 0)
