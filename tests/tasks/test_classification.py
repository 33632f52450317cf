"""Measures and figures of classification, against their definitions."""

import pytest
import torch
import torch.nn.functional as F

from darts_sg.data import DataSpec
from darts_sg.engine.steps import evaluate
from darts_sg.tasks import Classification, task_of

SPEC = DataSpec("noise", 9, 16, 3, (0.5,) * 3, (0.25,) * 3, tuple("abcdefghi"), top5=True)


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
