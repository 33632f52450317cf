"""Measures and figures of classification, against their definitions."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from darts_sg.data import DataSpec
from darts_sg.engine.steps import evaluate
from darts_sg.tasks import Classification, task_of

SPEC = DataSpec("noise", 9, 16, 3, (0.5,) * 3, (0.25,) * 3, tuple("abcdefghi"), top5=True)


@pytest.mark.parametrize(("name", "channels"), [("imagenet", 3), ("folder", 3), ("fashion_mnist", 1)])
def test_single_images_are_brought_to_the_size_of_the_test(name: str, channels: int) -> None:
    """The middle of the image, 7/8 of its shorter side for ImageNet; the border has another colour."""
    spec = DataSpec(name, 6, 8, channels, (0.5,) * channels, (0.5,) * channels, tuple("abcdef"))
    pixels = np.zeros((32, 64, 3), np.uint8)
    pixels[2:30, 18:46] = 200
    square = Classification({}).square(pixels, spec)
    assert square.shape == (8, 8, channels)
    assert (square[0].mean() > 140) == (name == "imagenet")
    assert 175 < square[4, 4, 0] <= 200


def test_the_five_most_probable_classes_are_told_of_each_image() -> None:
    spec = DataSpec("synthetic", 6, 8, 3, (0.5,) * 3, (0.5,) * 3, tuple("abcdef"))
    logits = torch.tensor([[0.0, 3, 1, 2, -1, -2], [9, 0, 0, 0, 0, 0]])
    first, second = Classification({}).predictions(logits, spec, [("x.png", 4, 3), ("", 1, 1)], None)
    assert first.names == ["b", "d", "c", "a", "e"]
    assert first.scores.tolist() == pytest.approx(logits[0].softmax(0)[[1, 3, 2, 0, 4]].tolist())
    assert first.as_dict()["found"][0] == {"class": "b", "score": round(float(first.scores[0]), 5)}
    (kept,) = Classification({}).predictions(logits[1:], spec, [("", 1, 1)], 0.5)
    assert kept.names == ["a"]
    assert len(second.names) == 5


def test_top1_and_top5_are_counted_over_unequal_batches() -> None:
    logits = torch.randn(23, 9, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(23) % 9
    ranks = [(row > row[label]).sum().item() for row, label in zip(logits, labels, strict=True)]
    batches = zip(logits.split(8), labels.split(8), strict=True)
    found = evaluate(torch.nn.Identity(), lambda x: x, batches, lambda: task_of({}).evaluator(SPEC))
    assert list(found) == ["loss", "accuracy", "top5_accuracy"]
    assert found["accuracy"] == pytest.approx(ranks.count(0) / 23)
    assert found["top5_accuracy"] == pytest.approx(sum(rank < 5 for rank in ranks) / 23)
    assert found["loss"] == pytest.approx(F.cross_entropy(logits, labels).item())


def test_errors_are_percentages_of_the_last_and_the_best_epoch_in_the_order_of_result_json() -> None:
    task = Classification({})
    last, best = {"loss": 1.0, "accuracy": 0.875}, {"loss": 2.0, "accuracy": 0.9}
    assert list(task.results(last, best).items()) == [("test_error_last", 12.5), ("test_error_best", 10.0)]
    more = {"top5_accuracy": 1.0}
    assert list(task.results(last | more, best | more).items()) == [
        ("test_error_last", 12.5), ("test_error_best", 10.0),
        ("test_top5_error_last", 0.0), ("test_top5_error_best", 0.0),
    ]  # fmt: skip
    assert task.recorded(last, {}) == {"test_error": 12.5}
    assert task.recorded(last | more, best) == {"test_error": 12.5, "validation_error": 10.0}
