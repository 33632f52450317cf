"""Detections of a set of images as arrays, and predictions.json, the file that holds them.

The file is a list with one object a detection:

    {"image": "JPEGImages/000005.jpg", "category": "chair", "bbox": [262.0, 210.0, 61.0, 128.0], "score": 0.9113}

`image` is the path below the folder of the data; `bbox` is x, y, width and height in pixels of the original image.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from darts_sg.data.detection.objects import DetectionImages
from darts_sg.errors import UsageError, first_line, quoted
from darts_sg.files import read_text, why

BOX_DIGITS, SCORE_DIGITS = 2, 6
"""Decimals in the file. Evaluations round to them first, so that figures computed from the file are the same."""
MOST_BYTES = 2**31
LARGEST = 1e7
"""Pixels; no image is larger."""


@dataclass(frozen=True, eq=False)
class Detections:
    """D detections in a set of images, in any order."""

    images: np.ndarray
    """int64 (D,): the index of the image in its set."""
    boxes: np.ndarray
    """float64 (D, 4): x1, y1, x2, y2 in pixels of the original image."""
    labels: np.ndarray
    """int64 (D,)."""
    scores: np.ndarray
    """float64 (D,)."""

    def __len__(self) -> int:
        return len(self.scores)

    def rounded(self) -> "Detections":
        """The detections as predictions.json holds them."""
        corner = self.boxes[:, :2].astype(np.float64).round(BOX_DIGITS)
        sides = (self.boxes[:, 2:].astype(np.float64) - corner).round(BOX_DIGITS)
        boxes = np.concatenate([corner, corner + sides], axis=1)
        return Detections(self.images, boxes, self.labels, self.scores.astype(np.float64).round(SCORE_DIGITS))

    def select(self, chosen: np.ndarray) -> "Detections":
        """The detections with these indices, or where a mask is true."""
        return Detections(self.images[chosen], self.boxes[chosen], self.labels[chosen], self.scores[chosen])


def join_detections(parts: Sequence[Detections]) -> Detections:
    """All detections of several parts, one after another."""
    if not parts:
        none = np.empty(0, np.int64)
        return Detections(none, np.empty((0, 4)), none, np.empty(0))
    columns = zip(*((p.images, p.boxes, p.labels, p.scores) for p in parts), strict=True)
    images, boxes, labels, scores = (np.concatenate(column) for column in columns)
    return Detections(images, boxes, labels, scores)


def predictions_text(detections: Detections, names: Sequence[str], class_names: Sequence[str]) -> str:
    """The content of predictions.json: image after image, the best first. `names`: those of the images."""
    order = np.lexsort((-detections.scores, detections.images))
    found = detections.select(order).rounded()
    quoted_names, quoted_classes = ([json.dumps(name) for name in words] for words in (names, class_names))
    sides = (found.boxes[:, 2:] - found.boxes[:, :2]).round(BOX_DIGITS)
    rows = zip(
        found.images.tolist(), found.labels.tolist(), found.boxes[:, :2].tolist(), sides.tolist(),
        found.scores.tolist(), strict=True,
    )  # fmt: skip
    lines = [
        f'{{"image": {quoted_names[image]}, "category": {quoted_classes[label]}, '
        f'"bbox": [{x!r}, {y!r}, {width!r}, {height!r}], "score": {score!r}}}'
        for image, label, (x, y), (width, height), score in rows
    ]
    return "[\n" + ",\n".join(lines) + "\n]\n"


def read_predictions(path: Path, images: DetectionImages) -> Detections:
    """The detections in a file of the above form, of a set of images.

    Raises UsageError if it is no such file, or names an image or a class that the set has not.
    """
    try:
        content = json.loads(read_text(path, MOST_BYTES, pipe=True))
    except OSError as error:
        raise UsageError(f"cannot read {path}: {why(error)}") from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is no sound JSON ({first_line(error)[:200]})") from None
    if not isinstance(content, list):
        raise UsageError(f"{path} is no list of predictions")
    index_of = {images.name(index): index for index in range(len(images))}
    label_of = {name: label for label, name in enumerate(images.class_names)}
    rows = np.empty((len(content), 5))
    found, labels = np.empty(len(content), np.int64), np.empty(len(content), np.int64)
    for row, entry in enumerate(content):
        name, category, values = _checked(entry, path, row)
        if name not in index_of:
            raise UsageError(f"{path} names the image {quoted(name)}, which is not among the {len(images)} of the data")
        if category not in label_of:
            raise UsageError(f"{path} has the category {quoted(category)}, which the data have not")
        found[row], labels[row], rows[row] = index_of[name], label_of[category], values
    if not (np.isfinite(rows).all() and (np.abs(rows) < LARGEST).all() and (rows[:, 2:4] >= 0).all()):
        raise UsageError(f"{path} has numbers that are infinite, none, too large, or sides below 0")
    boxes = np.concatenate([rows[:, :2], rows[:, :2] + rows[:, 2:4]], axis=1)
    return Detections(found, boxes, labels, rows[:, 4]).rounded()


def _checked(entry: object, path: Path, row: int) -> tuple[str, str, list[float]]:
    """Image, category and five numbers of an entry; UsageError if it has another form."""
    if isinstance(entry, dict):
        name, category, box, score = (entry.get(key) for key in ("image", "category", "bbox", "score"))
        if isinstance(name, str) and isinstance(category, str) and isinstance(box, list) and len(box) == 4:
            values = [*box, score]
            if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
                try:
                    return name, category, [float(value) for value in values]
                except OverflowError:
                    pass
    raise UsageError(f"{path}: entry {row + 1} is no prediction with image, category, bbox and score: {quoted(entry)}")
