"""Matching and loss of a detector against loops over their definitions."""

import pytest
import torch

from darts_sg.networks.ssdlite import DetectorOutputs, prior_boxes
from darts_sg.tasks.matching import Matched, hard_negatives, match, multibox_losses
from tests.reference import detection
from tests.reference.transfer import assert_equal_tensors, gradients

PRIORS = prior_boxes("authors", 64).double()
PLAIN = [tuple(prior) for prior in PRIORS.tolist()]
IMAGES = [
    [(1, (0.1, 0.2, 0.5, 0.7)), (0, (0.4, 0.4, 0.9, 0.8)), (2, (0.57, 0.58, 0.67, 0.69))],
    [],
    [(0, (0.0, 0.0, 1.0, 1.0)), (1, (0.3, 0.3, 0.4, 0.4)), (2, (0.3, 0.3, 0.4, 0.41))],
]


def matched_of(objects: list[tuple[int, detection.Box]]) -> Matched:
    boxes = torch.tensor([box for _, box in objects], dtype=torch.float64).reshape(-1, 4)
    return match(boxes, torch.tensor([label for label, _ in objects], dtype=torch.int64), PRIORS)


def test_priors_belong_to_the_objects_that_the_definition_says() -> None:
    for objects in IMAGES:
        expected = detection.matches([box for _, box in objects], PLAIN)
        labels = [0 if number is None else objects[number][0] + 1 for number in expected]
        found = matched_of(objects)
        assert found.labels.tolist() == labels
        assert found.offsets.isfinite().all()


def test_a_prior_that_is_the_best_of_two_objects_belongs_to_the_last() -> None:
    close = [(0, (0.32, 0.32, 0.42, 0.42)), (1, (0.33, 0.33, 0.43, 0.43))]
    for objects in (close, close[::-1]):
        found = matched_of(objects).labels
        assert found[found > 0].tolist() == [objects[1][0] + 1]


@pytest.mark.parametrize("images", [IMAGES, [[], []], [IMAGES[2]]])
def test_losses_are_those_of_the_formula(images: list[list[tuple[int, detection.Box]]]) -> None:
    generator = torch.Generator().manual_seed(0)
    shape = len(images), len(PRIORS)
    logits = torch.randn(*shape, 4, dtype=torch.float64, generator=generator, requires_grad=True)
    offsets = torch.randn(*shape, 4, dtype=torch.float64, generator=generator, requires_grad=True)
    matched = Matched(*(torch.stack(parts) for parts in zip(*map(matched_of, images), strict=True)))
    found = multibox_losses(DetectorOutputs(logits, offsets), matched, int((matched.labels > 0).sum()))
    expected = detection.losses(logits, offsets, images, PLAIN)
    assert_equal_tensors(found, expected)
    assert_equal_tensors(*(gradients(sum(losses), [logits, offsets]) for losses in (found, expected)))


def test_hard_negatives_are_the_worst_three_for_each_positive_of_an_image() -> None:
    labels = torch.tensor([[0, 2, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0], [1, 1, 0, 0, 0, 3]])
    loss = torch.tensor([[5.0, 9, 1, 5, 2, 5], [9, 9, 9, 9, 9, 9], [7, 8, 1, 2, 3, 4]])
    chosen = hard_negatives(loss, labels)
    assert [row.nonzero().flatten().tolist() for row in chosen] == [[0, 3, 5], [], [2, 3, 4]]
