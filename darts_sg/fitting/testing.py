"""The test of a trained network: predictions, accuracy with its uncertainty, by class, and against another network."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from darts_sg.data import Dataset, ImageSet
from darts_sg.engine.setup import to_device
from darts_sg.engine.weights import read_weights
from darts_sg.errors import UsageError
from darts_sg.files import write_atomically

CONFIDENCE = 0.95
BATCH = 64


@dataclass(frozen=True, eq=False)
class Predicted:
    """What a network says of the test images."""

    labels: NDArray[np.int64]
    """(N,): the right classes."""
    classes: NDArray[np.int64]
    """(N,): the predicted ones."""
    scores: NDArray[np.float32]
    """(N,): their probabilities."""

    @property
    def right(self) -> NDArray[np.bool_]:
        return self.labels == self.classes

    @property
    def accuracy(self) -> float:
        """Share of right answers."""
        return float(self.right.mean())

    @property
    def interval(self) -> tuple[float, float]:
        """Confidence interval of the accuracy, see `accuracy_interval`."""
        return accuracy_interval(int(self.right.sum()), len(self.labels))

    def confusion(self, num_classes: int) -> NDArray[np.int64]:
        """(classes, classes): images by right class (row) and predicted class (column)."""
        return np.bincount(self.labels * num_classes + self.classes, minlength=num_classes**2).reshape(
            num_classes, num_classes
        )

    def save(self, path: Path) -> None:
        """Write predictions.csv: one row a test image, in the order of the data set."""
        rows = zip(self.labels.tolist(), self.classes.tolist(), self.scores.tolist(), strict=True)
        lines = [f"{label},{found},{score:.6g}" for label, found, score in rows]
        write_atomically(path, "\n".join(["label,predicted,score", *lines]) + "\n")

    @classmethod
    def load(cls, path: Path) -> "Predicted":
        """The inverse of `save`; UsageError if the file is missing or damaged."""
        try:
            table = np.loadtxt(path, delimiter=",", skiprows=1, ndmin=2)
            labels, classes, scores = table[:, 0].astype(np.int64), table[:, 1].astype(np.int64), table[:, 2]
        except (OSError, ValueError, IndexError) as error:
            raise UsageError(f"{path} cannot be read ({type(error).__name__}): remove it to test again") from None
        return cls(labels, classes, scores.astype(np.float32))


def accuracy_interval(right: int, images: int) -> tuple[float, float]:
    """The interval in which the accuracy on unseen images lies, at CONFIDENCE (Wilson, 1927).

    It is about the choice of the test images only, not about another training.
    """
    from scipy.stats import binomtest  # imported here: takes half a second

    found = binomtest(right, images).proportion_ci(CONFIDENCE, method="wilson")
    return float(found.low), float(found.high)


def predict(weights: Path, data: Dataset, device: torch.device) -> Predicted:
    """The predictions of a weights file on the test part."""
    read = read_weights(weights)
    network = to_device(read.build(), device).eval()
    assert isinstance(data.test, ImageSet)
    classes, scores = [], []
    with torch.inference_mode():
        for x, _ in read.task.evaluation_batches(data.test, read.spec, BATCH):
            best = network(x.to(device))[0].float().softmax(dim=1).max(dim=1)
            classes.append(best.indices.cpu())
            scores.append(best.values.cpu())
    return Predicted(data.test.labels.numpy(), torch.cat(classes).numpy(), torch.cat(scores).numpy())


def compared(own: Predicted, other: Predicted) -> dict[str, Any]:
    """Two networks on the same test images: how many only one of them gets right, and McNemar's exact test.

    p is the probability of a difference at least as large if both were equally good.
    """
    from scipy.stats import binomtest

    only_own, only_other = int((own.right & ~other.right).sum()), int((other.right & ~own.right).sum())
    differing = only_own + only_other
    p = float(binomtest(only_own, differing).pvalue) if differing else 1.0
    return {
        "accuracy": other.accuracy, "only_searched_right": only_own, "only_other_right": only_other, "p": p,
        "points": round(100 * (own.accuracy - other.accuracy), 2),
    }  # fmt: skip


def verdict(title: str, found: Mapping[str, Any]) -> str:
    """One sentence: does the searched network beat the other one?"""
    points, p = found["points"], found["p"]
    counts = f"{found['only_searched_right']} images only it gets right, {found['only_other_right']} only {title}"
    if points <= 0:
        how = "is as accurate as" if points == 0 else f"is {-points:.2f} points less accurate than"
        return f"the searched network does not beat {title}: it {how} it ({counts}; McNemar's p = {p:.2g})"
    if p > 1 - CONFIDENCE:
        return (
            f"the searched network is {points:.2f} points more accurate than {title}, but on these test images that "
            f"cannot be told from chance ({counts}; McNemar's p = {p:.2g})"
        )
    return f"the searched network beats {title} by {points:.2f} points ({counts}; McNemar's p = {p:.2g})"
