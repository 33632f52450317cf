"""predictions.npz: what a classifier said of each test image, and what follows from it.

For each image the file holds the label, the most probable classes with their log-probabilities (float16), and the
log-probability of the label; beside them small pictures of the images that a report shows.
"""

import io
import math
import zipfile
from dataclasses import dataclass, fields
from pathlib import Path
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np

from darts_sg.errors import UsageError, first_line
from darts_sg.files import read_bytes, why

FILE = "predictions.npz"
KEPT_CLASSES = 5
SHOWN_IMAGES = 12
"""Images of each kind that a report shows."""
CONFIDENCE = 0.95
"""Of the intervals of accuracies."""
BINS = 15
"""Of the calibration error, as in Guo et al. (2017), section 5."""
LARGEST_FILE, LARGEST_CONTENT = 2**27, 2**29  # bytes; 50,000 images of ImageNet take 2 MB


@dataclass(frozen=True, eq=False)
class Classified:
    """The predictions of N test images of K classes."""

    labels: np.ndarray
    """int32 (N,)."""
    classes: np.ndarray
    """int32 (N, k): the most probable classes, the first one being the answer; k = min(5, K)."""
    log_probabilities: np.ndarray
    """float16 (N, k): theirs."""
    of_label: np.ndarray
    """float32 (N,): the log-probability of the label, minus the loss of the image."""
    class_names: np.ndarray
    """Texts (K,)."""
    images: np.ndarray
    """int64 (M,): the images, among the N, of which there are pictures."""
    pixels: np.ndarray
    """uint8 (M, S, S, C): as the network saw them, before the normalisation."""

    @property
    def answers(self) -> np.ndarray:
        return self.classes[:, 0]

    @property
    def right(self) -> np.ndarray:
        """bool (N,)."""
        return self.answers == self.labels

    @property
    def confidences(self) -> np.ndarray:
        """float64 (N,): the probability of each answer."""
        return np.exp(self.log_probabilities[:, 0].astype(np.float64))

    @property
    def accuracy(self) -> float:
        """The share of right answers."""
        return float(self.right.mean())

    @property
    def interval(self) -> tuple[float, float]:
        """The confidence interval of the accuracy, see `accuracy_interval`."""
        return accuracy_interval(int(self.right.sum()), len(self.labels))

    def confusion(self) -> np.ndarray:
        """Images by label (rows) and answer (columns), int64 (K, K)."""
        number = len(self.class_names)
        counts = np.bincount(self.labels.astype(np.int64) * number + self.answers, minlength=number**2)
        return counts.reshape(number, number)

    def class_accuracy(self) -> np.ndarray:
        """The share of right answers among the images of each class, float64 (K,); NaN for a class without images."""
        counts = self.confusion()
        total = counts.sum(1)
        return np.where(total > 0, counts.diagonal() / np.maximum(total, 1), np.nan)

    def calibration(self, num_bins: int = BINS) -> "Calibration":
        """Accuracy against confidence, in bins of equal width (Guo et al., ICML 2017, equations 2 and 3)."""
        # bin m is ((m - 1) / M, m / M]
        bins = np.clip(np.ceil(self.confidences * num_bins).astype(np.int64) - 1, 0, num_bins - 1)
        counts = np.bincount(bins, minlength=num_bins)
        sums = (np.bincount(bins, weights=each, minlength=num_bins) for each in (self.right, self.confidences))
        accuracy, confidence = (each / np.maximum(counts, 1) for each in sums)
        error = float((counts / max(1, counts.sum()) * abs(accuracy - confidence)).sum())
        return Calibration(counts, accuracy, confidence, error)

    def worst(self) -> np.ndarray:
        """The images of the highest loss, the worst first."""
        return np.argsort(self.of_label, kind="stable")[:SHOWN_IMAGES]

    def most_confident_mistakes(self) -> np.ndarray:
        """The wrong answers of the highest confidence, the most confident first."""
        wrong = np.flatnonzero(~self.right)
        return wrong[np.argsort(-self.log_probabilities[wrong, 0].astype(np.float64), kind="stable")][:SHOWN_IMAGES]

    def shown(self) -> np.ndarray:
        """The images that a report shows."""
        return np.union1d(self.worst(), self.most_confident_mistakes())

    def details(self) -> dict[str, Any]:
        """Entries of result.json."""
        by_class = self.class_accuracy()
        named = zip(self.class_names.tolist(), by_class.tolist(), strict=True)
        return {
            "expected_calibration_error": round(self.calibration().error, 5),
            "mean_class_accuracy": round(float(np.nanmean(by_class)), 5),
            "class_accuracy": {name: None if share != share else round(share, 5) for name, share in named},
        }

    def as_bytes(self) -> bytes:
        """The content of the file; the same predictions give the same bytes."""
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **{f.name: getattr(self, f.name) for f in fields(self)})
        return buffer.getvalue()


def accuracy_interval(right: int, images: int) -> tuple[float, float]:
    """The interval in which the accuracy on unseen images lies, at CONFIDENCE (Wilson, 1927).

    It is about the choice of the test images only, not about another training.
    """
    z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    centre = (right + z**2 / 2) / (images + z**2)
    half = z / (images + z**2) * math.sqrt(right * (images - right) / images + z**2 / 4)
    return max(0.0, centre - half), min(1.0, centre + half)


class Calibration(NamedTuple):
    """Accuracy and confidence of the answers in each of M bins of the confidence."""

    counts: np.ndarray
    accuracy: np.ndarray
    """0 for an empty bin, as the confidence."""
    confidence: np.ndarray
    error: float
    """Expected calibration error: the mean distance of both, weighted by the images in the bins."""


KINDS = {
    "labels": ("i", 1), "classes": ("i", 2), "log_probabilities": ("f", 2), "of_label": ("f", 1),
    "class_names": ("U", 1), "images": ("i", 1), "pixels": ("u", 4),
}  # fmt: skip


def read_classified(path: Path) -> Classified:
    """Read a predictions.npz; UsageError if it cannot be read or is none."""
    try:
        content = io.BytesIO(read_bytes(path, LARGEST_FILE))
        with zipfile.ZipFile(content) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > LARGEST_CONTENT:
                raise ValueError("its content is too large")
            for name in KINDS:
                _check_size(archive, f"{name}.npy")
        content.seek(0)
        with np.load(content, allow_pickle=False) as arrays:
            found = Classified(**{name: arrays[name] for name in KINDS})
        _check(found)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {why(error)}") from None
    except Exception as error:  # NumPy's readers raise errors of many kinds for damaged files
        raise UsageError(f"{path} does not hold the predictions of a classifier: {first_line(error)[:200]}") from None
    return found


def _check_size(archive: zipfile.ZipFile, name: str) -> None:
    """ValueError if an array claims another size than its file has: NumPy would allocate what it claims."""
    with archive.open(name) as file:
        if np.lib.format.read_magic(file) != (1, 0):
            raise ValueError(f"{name} has another version")
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        if math.prod(shape) * dtype.itemsize != archive.getinfo(name).file_size - file.tell():
            raise ValueError(f"{name} has another size than it says")


def _check(found: Classified) -> None:
    """ValueError unless types, shapes and indices fit each other."""
    for name, (kind, ndim) in KINDS.items():
        array = getattr(found, name)
        if array.dtype.kind != kind or array.ndim != ndim:
            raise ValueError(f"{name} is {array.dtype} of {array.ndim} dimensions")
    number, num_classes = len(found.labels), len(found.class_names)
    lengths = {len(found.classes), len(found.log_probabilities), len(found.of_label)}
    if lengths != {number} or found.classes.shape != found.log_probabilities.shape or not found.classes.size:
        raise ValueError("its arrays are not of the same images")
    bounds = ((found.labels, num_classes), (found.classes, num_classes), (found.images, number))
    for indices, most in bounds:
        if indices.size and not 0 <= indices.min() <= indices.max() < most:
            raise ValueError("an index is out of range")
    if num_classes > 2**13 or len(found.images) != len(found.pixels) or found.pixels.shape[3] not in (1, 3):
        raise ValueError("it has too many classes, or other pictures than it says")
    if np.isnan(found.log_probabilities).any() or np.isnan(found.of_label).any():
        raise ValueError("a probability is no number")
