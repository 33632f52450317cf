"""The pictures of a detector's training and test, for report.md."""

import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor

from darts_sg.data import DataSpec
from darts_sg.data.detection.batches import read_image
from darts_sg.data.detection.objects import DetectionImages, ObjectTable
from darts_sg.data.detection.predictions import Detections
from darts_sg.data.stream import UNREADABLE
from darts_sg.networks.ssdlite import to_corners
from darts_sg.tasks.average_precision import Curve, confusion, overlapping
from darts_sg.tasks.drawing import Drawn, draw_boxes, png, scaled, sheet

SHOWN_SCORE = 0.3
"""The lowest score of a box in predictions and pictures; measures take all of them."""
SHOWN_IOU = 0.5
SHOWN_IMAGES, TRAINING_IMAGES, MOST_PRIORS, MOST_BOXES = 4, 6, 40, 20
SIDE = 320
"""Pixels of the longer side of an image in a picture."""
TRUTH, RIGHT, WRONG, PRIOR = (40, 160, 70), (31, 98, 181), (200, 16, 46), (217, 130, 0)
INK, FAINT = "#1F2933", "#D5DBE1"
MOST_CLASSES = 25
"""Classes with a panel of their own; a confusion matrix of more has no numbers."""


def training_batch(x: Tensor, matched: Any, priors: Tensor, spec: DataSpec) -> bytes:
    """The first images of a training batch as the network sees them, with objects and the prior boxes matched.

    x: (B, 3, S, S), normalised; matched: `MatchedObjects`; priors: centres (P, 4).
    """
    mean, std = (np.array(values, np.float32) for values in (spec.mean, spec.std))
    pictures = []
    corners = to_corners(priors).numpy()
    for i in range(min(TRAINING_IMAGES, len(x))):
        pixels = 255 * (x[i].permute(1, 2, 0).float().cpu().numpy() * std + mean)
        pixels, factor = scaled(pixels.round().clip(0, 255).astype(np.uint8), SIDE)
        size = factor * spec.image_size
        positive = np.flatnonzero(matched.matched.labels[i].cpu().numpy())
        boxes = [Drawn(box, "", PRIOR, 1) for box in (size * corners[positive[:MOST_PRIORS]]).tolist()]
        objects = matched.objects[i]
        for box, label in zip((size * objects.boxes.cpu()).tolist(), objects.labels.tolist(), strict=True):
            boxes.append(Drawn(box, spec.class_names[label], TRUTH))
        title = f"{counted(len(objects))}, {len(positive)} prior boxes matched"
        pictures.append((title, draw_boxes(pixels, boxes)))
    return png(sheet([pictures[:3], pictures[3:]] if len(pictures) > 3 else [pictures]))


def counted(number: int) -> str:
    """A number of objects in words."""
    return f"{number:,} object{'s' * (number != 1)}"


class Scored(NamedTuple):
    """How well the objects of a test image were found."""

    image: int
    right: np.ndarray
    """bool, for each of its detections that are shown."""
    num_objects: int
    f1: float
    """2 · right / (detections + objects)."""


def scored_images(objects: ObjectTable, found: Detections) -> list[Scored]:
    """Each image with its detections of a score worth showing; difficult objects count as objects here."""
    which, target, overlap = overlapping(objects, found, SHOWN_IOU, inclusive=False)
    order = np.lexsort((-overlap, -found.scores[which]))  # the best detection first, with the object it overlaps most
    right, taken = np.zeros(len(found), bool), np.zeros(len(objects.labels), bool)
    for detection, number in zip(which[order].tolist(), target[order].tolist(), strict=True):
        if not right[detection] and not taken[number]:
            right[detection] = taken[number] = True
    scored = []
    for index, count in enumerate(objects.counts.tolist()):
        own = right[found.images == index]
        total = len(own) + count
        scored.append(Scored(index, own, count, 2 * own.sum() / total if total else 1.0))
    return scored


def predictions(
    images: DetectionImages, names: Sequence[str], objects: ObjectTable, found: Detections, seed: int = 0
) -> dict[str, bytes]:
    """Images beside what was found in them: the best, the worst and random ones, a picture each, by title.

    names: those of the images in `objects`. In each row the objects, then the predictions of a score of 0.3 or more: in
    blue those that overlap an object of their class by 0.5 or more, in red the others.
    """
    shown = found.select(found.scores >= SHOWN_SCORE)
    scored = scored_images(objects, shown)
    with_objects = [one for one in scored if one.num_objects]
    by_quality = sorted(with_objects, key=lambda one: (-one.f1, -one.num_objects, one.image))
    order = np.random.default_rng(seed).permutation(len(scored))[:SHOWN_IMAGES]
    chosen = {
        "best": by_quality[:SHOWN_IMAGES],
        "worst": by_quality[::-1][:SHOWN_IMAGES],
        "random": [scored[i] for i in order],
    }
    index_of = {images.name(index): index for index in range(len(images))}
    pictures = {}
    for title, some in chosen.items():
        rows: list[list[tuple[str, Image.Image]]] = [[], []]
        for one in some:
            try:
                pixels = read_image(str(images.path(index_of[names[one.image]])))[0]
            except UNREADABLE:  # readable in the test, and not now
                continue
            pixels, factor = scaled(pixels, SIDE)
            boxes, labels, *_ = objects[one.image]
            truth = [
                Drawn(box, images.class_names[label], TRUTH)
                for box, label in zip((factor * boxes).tolist(), labels.tolist(), strict=True)
            ]
            own = shown.select(shown.images == one.image)
            best = np.argsort(-own.scores, kind="stable")[:MOST_BOXES]
            best = best[np.lexsort((own.scores[best], one.right[best]))]  # the right ones on top, the best last
            texts = [f"{images.class_names[own.labels[i]]} {own.scores[i]:.2f}" for i in best]
            colours = [RIGHT if one.right[i] else WRONG for i in best]
            drawn = [Drawn(*part) for part in zip((factor * own.boxes[best]).tolist(), texts, colours, strict=True)]
            name = names[one.image].rpartition("/")[2]
            rows[0].append((f"{name}: {counted(one.num_objects)}", draw_boxes(pixels, truth)))
            left_out = f", {len(best)} drawn" if len(best) < len(own) else ""
            rows[1].append((f"{one.right.sum()} of {len(own)} found are right{left_out}", draw_boxes(pixels, drawn)))
        if rows[0]:
            pictures[title] = png(sheet(rows))
    return pictures


def precision_recall(curves: Sequence[Curve], class_names: Sequence[str]) -> bytes:
    """Precision against recall of each class, the classes with the most objects first."""
    order = sorted((i for i, c in enumerate(curves) if c.num_objects), key=lambda i: -curves[i].num_objects)
    order = order[:MOST_CLASSES]
    columns = min(5, max(1, len(order)))
    rows = max(1, -(-len(order) // columns))
    figure = _figure(2.6 * columns + 0.4, 2.3 * rows + 0.3)
    for number, i in enumerate(order):
        axes, curve = figure.add_subplot(rows, columns, number + 1), curves[i]
        recall, precision = np.append(0, curve.recall), np.append(curve.precision[:1], curve.precision)
        if len(curve.recall):
            axes.plot(recall, precision, color="#1F62B5", linewidth=1.2)
        if not curve.recall.any():  # an empty panel would look like an error
            axes.text(0.5, 0.5, "none found", ha="center", va="center", fontsize=8, color=INK)
        axes.set_xlim(0, 1.02)
        axes.set_ylim(0, 1.05)
        title = f"{_plain(class_names[i])}: AP {100 * curve.area():.1f}%, {curve.num_objects:,} objects"
        _finish(axes, title)
        if number % columns == 0:
            axes.set_ylabel("precision", fontsize=8, color=INK)
        if number + columns >= len(order):
            axes.set_xlabel("recall", fontsize=8, color=INK)
    return _content(figure)


def confusion_matrix(objects: ObjectTable, found: Detections, class_names: Sequence[str]) -> bytes:
    """Which classes were found in place of which, in shares of the objects of a class."""
    counts = confusion(objects, found, len(class_names), score=SHOWN_SCORE, iou=SHOWN_IOU)
    rows, columns = [*class_names, "no object"], [*class_names, "not found"]
    side = min(14.0, 2.6 + 0.42 * len(rows))
    figure = _figure(side + 0.8, side)
    axes = figure.add_subplot()
    shares = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    image = axes.imshow(shares, vmin=0, vmax=1, cmap="Blues")
    if len(class_names) <= MOST_CLASSES:
        for row, column in np.argwhere(counts).tolist():
            colour = "white" if shares[row, column] > 0.6 else INK
            axes.text(column, row, f"{counts[row, column]:,}", ha="center", va="center", fontsize=7, color=colour)
        axes.set_xticks(range(len(columns)), [_plain(name) for name in columns], rotation=60, ha="right", fontsize=8)
        axes.set_yticks(range(len(rows)), [_plain(name) for name in rows], fontsize=8)
    axes.set_xlabel("found as", fontsize=9, color=INK)
    axes.set_ylabel("object", fontsize=9, color=INK)
    bar = figure.colorbar(image, fraction=0.046)
    bar.ax.tick_params(labelsize=8)
    bar.set_label("share of the row", fontsize=8, color=INK)
    return _content(figure)


def _figure(width: float, height: float) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _finish(axes: Any, title: str) -> None:
    axes.set_title(title, fontsize=8, color=INK)
    axes.tick_params(labelsize=7, color=FAINT)
    axes.grid(color=FAINT, linewidth=0.6)
    for spine in axes.spines.values():
        spine.set_color(FAINT)


def _plain(text: str) -> str:
    """A name that matplotlib does not read as a formula, cut to a length that fits."""
    return (text if len(text) <= 18 else text[:17] + "…").replace("$", r"\$")


def _content(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return buffer.getvalue()
