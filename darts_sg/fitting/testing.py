"""The test of a trained network: its predictions, and its accuracy against that of another network."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from darts_sg.data import Dataset
from darts_sg.engine.setup import to_device
from darts_sg.engine.steps import evaluate_all
from darts_sg.engine.weights import read_weights
from darts_sg.tasks.classification import with_pictures
from darts_sg.tasks.classified import CONFIDENCE, Classified

BATCH = 64


def predictions_of(weights: Path, data: Dataset, device: torch.device) -> bytes:
    """The content of a predictions.npz, as a training leaves it for its last epoch, for any weights file."""
    read = read_weights(weights)
    network = to_device(read.build(), device)
    batches = ((x.to(device), y.to(device)) for x, y in read.task.evaluation_batches(data.test, read.spec, BATCH))
    outputs = {network: lambda x: network(x)[0].float()}
    (tested,) = evaluate_all(outputs, batches, lambda: read.task.final_evaluator(read.spec))
    return with_pictures(tested.evaluator, data.test).as_bytes()


def compared(own: Classified, other: Classified) -> dict[str, Any]:
    """Two networks on the same test images: how many only one of them gets right, and McNemar's exact test.

    p is the probability of a difference at least as large if both were equally good.
    """
    from scipy.stats import binomtest  # imported here: takes half a second

    if not np.array_equal(own.labels, other.labels):
        raise ValueError("the predictions are of other images")
    only_own, only_other = int((own.right & ~other.right).sum()), int((other.right & ~own.right).sum())
    differing = only_own + only_other
    p = float(binomtest(only_own, differing).pvalue) if differing else 1.0
    return {
        "accuracy": other.accuracy, "only_searched_right": only_own, "only_other_right": only_other, "p": p,
        "points": round(100 * (own.accuracy - other.accuracy), 2),
    }  # fmt: skip


def verdict(title: str, found: Mapping[str, Any], cut: str = "") -> str:
    """One sentence: does the searched network beat the other one?

    cut: how much of its training the searched network had, such as "27 of 40 epochs"; empty for all of it.
    """
    points, p = found["points"], found["p"]
    counts = f"{found['only_searched_right']} images only it gets right, {found['only_other_right']} only {title}"
    if cut:
        return (
            f"the searched network, after {cut} and of an epoch chosen on the test images, differs by {points:+.2f} "
            f"points from {title} after the whole training, which decides nothing ({counts}): complete it first"
        )
    if points <= 0:
        how = "is as accurate as" if points == 0 else f"is {-points:.2f} points less accurate than"
        return f"the searched network does not beat {title}: it {how} it ({counts}; McNemar's p = {p:.2g})"
    if p > 1 - CONFIDENCE:
        return (
            f"the searched network is {points:.2f} points more accurate than {title}, but on these test images that "
            f"cannot be told from chance ({counts}; McNemar's p = {p:.2g})"
        )
    return f"the searched network beats {title} by {points:.2f} points ({counts}; McNemar's p = {p:.2g})"
