"""Average precision of detections, as Pascal VOC and COCO define it, without a loop over boxes.

Pascal VOC (Everingham et al., 2010): in the order of the scores, a detection is right if the object of its class that
it overlaps most, with an IoU of at least 0.5, was not found before; difficult objects count neither way. Boxes have
inclusive coordinates. The AP of a class is the mean of the best precision at a recall of at least 0, 0.1, …, 1 (2007),
or the area under the precision's envelope (from 2010 on).

COCO (Lin et al., 2014): at most 100 detections of a class an image; a detection takes the object that it overlaps most
among those that are left; the AP is the mean precision at 101 recalls, over IoUs 0.5, 0.55, …, 0.95, and over classes.
Crowds and difficult objects count neither way.
"""

from dataclasses import dataclass

import numpy as np

from darts_sg.data.detection.objects import ObjectTable
from darts_sg.data.detection.predictions import Detections

VOC_IOU = 0.5
COCO_IOUS = np.linspace(0.5, 0.95, 10)
COCO_RECALLS = np.linspace(0, 1, 101)
COCO_DETECTIONS = 100
COCO_AREAS = {"": (0, 1e10), "small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, 1e10)}
"""Ranges of an object's area in pixels, both ends included."""
CHUNK = 2**22
"""Pairs of a detection and an object that are compared at once."""


@dataclass(frozen=True, eq=False)
class Curve:
    """Precision and recall of a class after each detection, from the highest score on."""

    num_objects: int
    """Objects to be found, without those that count neither way."""
    scores: np.ndarray
    """(K,), falling; detections that count neither way are left out."""
    precision: np.ndarray
    """(K,)."""
    recall: np.ndarray
    """(K,); NaN without objects."""

    def eleven_points(self) -> float:
        """VOC's AP of 2007; NaN without objects."""
        if not self.num_objects:
            return float("nan")
        envelope, at = _envelope(self.precision), np.searchsorted(self.recall, np.linspace(0, 1, 11) - 1e-12)
        return float(np.append(envelope, 0.0)[at].mean())

    def area(self) -> float:
        """VOC's AP from 2010 on; NaN without objects."""
        if not self.num_objects:
            return float("nan")
        return float((np.diff(self.recall, prepend=0.0) * _envelope(self.precision)).sum())


def voc_curves(
    objects: ObjectTable, detections: Detections, num_classes: int, *, iou: float = VOC_IOU, inclusive: bool = True
) -> list[Curve]:
    """The curve of each class.

    inclusive: whether x2 and y2 are the last column and row inside a box, as in VOC's own annotations.
    """
    found = detections.select(np.argsort(-detections.scores, kind="stable"))
    ignored = objects.difficult | objects.crowd
    which, target, overlap = overlapping(objects, found, iou, inclusive=inclusive)
    best = _firsts(np.lexsort((target, -overlap, which)), which)
    which, target = which[best], target[best]  # each detection with the object that it overlaps most
    right, counts = np.zeros(len(found), bool), np.ones(len(found), bool)
    first = _firsts(np.lexsort((which, target)), target)  # each object with the first detection that found it
    right[which[first]] = True
    counts[which[ignored[target]]] = False
    curves = []
    for label in range(num_classes):
        of_class = (found.labels == label) & counts
        num_objects = int(((objects.labels == label) & ~ignored).sum())
        curves.append(_curve(right[of_class], found.scores[of_class], num_objects))
    return curves


def mean_over_classes(values: np.ndarray) -> float:
    """The mean over the classes that have objects; 0 if none has."""
    return float(np.nanmean(values)) if not np.isnan(values).all() else 0.0


@dataclass(frozen=True, eq=False)
class CocoFigures:
    """The figures of COCO's evaluation; NaN where a class has no object of a size."""

    precision: np.ndarray
    """float64 (sizes, IoUs, classes): the AP; sizes as in COCO_AREAS."""
    recall: np.ndarray
    """The same shape: the share of the objects that is found."""

    def figures(self) -> dict[str, float]:
        """AP, AP50, AP75, AP of each size and AR, by name; NaN where there are no objects of a size."""
        sizes = list(COCO_AREAS)
        found = {"ap": self.precision[0], "ap50": self.precision[0, 0], "ap75": self.precision[0, 5]}
        found |= {f"ap_{size}": self.precision[index] for index, size in enumerate(sizes) if size}
        found["ar"] = self.recall[0]
        return {name: float("nan") if np.isnan(v).all() else float(np.nanmean(v)) for name, v in found.items()}

    def by_class(self) -> np.ndarray:
        """The AP of each class, (classes,)."""
        return self.precision[0].mean(axis=0)


def coco_figures(objects: ObjectTable, detections: Detections, num_classes: int) -> CocoFigures:
    """COCO's figures of these detections."""
    found = _best_by_class(detections, num_classes)
    which, target, overlap = overlapping(objects, found, COCO_IOUS[0], inclusive=False)
    # rounds[k]: the pairs of the k-th detection, by score, of each image and class; all classes and images at once
    order = np.lexsort((target, which))
    which, target, overlap = which[order], target[order], overlap[order]
    rounds = _rounds(which, found, num_classes)
    det_area = np.prod(found.boxes[:, 2:] - found.boxes[:, :2], axis=1)
    shape = len(COCO_AREAS), len(COCO_IOUS), num_classes
    precision, recall = np.full(shape, np.nan), np.full(shape, np.nan)
    never = objects.difficult | objects.crowd
    for size, (low, high) in enumerate(COCO_AREAS.values()):
        ignored = never | (objects.area < low) | (objects.area > high)
        right, counts = _greedy(rounds, which, target, overlap, objects.crowd, ignored, len(found))
        unmatched = ~right & counts
        counts &= ~(unmatched & ((det_area < low) | (det_area > high)))
        for label in range(num_classes):
            num_objects = int(((objects.labels == label) & ~ignored).sum())
            if not num_objects:
                continue
            of_class = np.flatnonzero(found.labels == label)
            for threshold in range(len(COCO_IOUS)):
                kept = of_class[counts[threshold, of_class]]
                curve = _curve(right[threshold, kept], found.scores[kept], num_objects)
                at = np.searchsorted(curve.recall, COCO_RECALLS)
                precision[size, threshold, label] = np.append(_envelope(curve.precision), 0.0)[at].mean()
                recall[size, threshold, label] = curve.recall[-1] if len(kept) else 0.0
    return CocoFigures(precision, recall)


@dataclass(frozen=True, eq=False)
class Precision:
    """All figures of a set of detections; shares, not percent."""

    voc: list[Curve]
    """For each class."""
    coco: CocoFigures

    def figures(self) -> dict[str, float]:
        """Means over the classes, by name; NaN where there are no objects of a size, otherwise never."""
        coco = self.coco.figures()
        found = {
            "map_voc07": mean_over_classes(np.array([curve.eleven_points() for curve in self.voc])),
            "map_area": mean_over_classes(np.array([curve.area() for curve in self.voc])),
            "map_coco": coco["ap"], "map_50": coco["ap50"], "map_75": coco["ap75"],
        }  # fmt: skip
        found = {name: 0.0 if np.isnan(value) else value for name, value in found.items()}
        return found | {f"map_{size}": coco[f"ap_{size}"] for size in COCO_AREAS if size} | {"recall": coco["ar"]}

    def by_class(self) -> list[dict[str, float]]:
        """For each class: ap_voc07, ap_area, ap_coco, ap_50, NaN without objects, and the number of objects."""
        found = zip(self.voc, self.coco.by_class().tolist(), self.coco.precision[0, 0].tolist(), strict=True)
        return [
            {"ap_voc07": curve.eleven_points(), "ap_area": curve.area(), "ap_coco": coco, "ap_50": at_50,
             "objects": curve.num_objects}
            for curve, coco, at_50 in found
        ]  # fmt: skip


def average_precision(objects: ObjectTable, detections: Detections, num_classes: int) -> Precision:
    """All figures of detections in these images, rounded as predictions.json holds them."""
    found = detections.rounded()
    return Precision(voc_curves(objects, found, num_classes), coco_figures(objects, found, num_classes))


def confusion(
    objects: ObjectTable, detections: Detections, num_classes: int, *, score: float = 0.5, iou: float = 0.5
) -> np.ndarray:
    """int64 (num_classes + 1, num_classes + 1): how often an object of the row's class was detected as the column's.

    The last column counts missed objects, the last row detections without an object. Detections of at least `score`
    count; each goes to the object that it overlaps most, and an object takes the one that overlaps it most. Difficult
    objects and crowds, and the detections that go to them, are left out.
    """
    found = detections.select(detections.scores >= score)
    ignored = objects.difficult | objects.crowd
    which, target, overlap = overlapping(objects, found, iou, inclusive=False, same_class=False)
    best = _firsts(np.lexsort((target, -overlap, which)), which)
    which, target, overlap = which[best], target[best], overlap[best]
    left_out = np.zeros(len(found), bool)
    left_out[which[ignored[target]]] = True
    best = _firsts(np.lexsort((which, -overlap, target)), target)
    which, target = which[best], target[best]
    counted = ~ignored[target]
    which, target = which[counted], target[counted]
    matrix = np.zeros((num_classes + 1, num_classes + 1), np.int64)
    np.add.at(matrix, (objects.labels[target], found.labels[which]), 1)
    missed = ~ignored
    missed[target] = False
    matrix[:-1, -1] = np.bincount(objects.labels[missed], minlength=num_classes)
    wrong = ~left_out
    wrong[which] = False
    matrix[-1, :-1] = np.bincount(found.labels[wrong], minlength=num_classes)
    return matrix


def overlapping(
    objects: ObjectTable, detections: Detections, least: float, *, inclusive: bool, same_class: bool = True
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All pairs of a detection and an object of its image, and its class, with an IoU of at least `least`.

    Returns the indices of the detections and of the objects, int64 (P,), and the IoUs, float64 (P,). With a crowd the
    union is the detection alone, as in COCO's evaluation, unless boxes are `inclusive`.
    """
    many = 1 + int(max(objects.labels.max(initial=0), detections.labels.max(initial=0))) if same_class else 1
    object_keys = objects.images * many + (objects.labels if same_class else 0)
    keys = detections.images * many + (detections.labels if same_class else 0)
    by_key = np.argsort(object_keys, kind="stable")
    first = np.searchsorted(object_keys[by_key], keys)
    counts = np.searchsorted(object_keys[by_key], keys, side="right") - first
    ends = counts.cumsum()
    parts = []
    start = 0
    while start < len(keys):  # as many detections at once as have CHUNK pairs, at least one
        stop = max(start + 1, int(np.searchsorted(ends, (ends[start - 1] if start else 0) + CHUNK, side="right")))
        part = counts[start:stop]
        which = np.repeat(np.arange(start, stop), part)
        within = np.arange(part.sum()) - np.repeat(part.cumsum() - part, part)
        target = by_key[np.repeat(first[start:stop], part) + within]
        iou = _iou(detections.boxes[which], objects.boxes[target], objects.crowd[target] & (not inclusive), inclusive)
        kept = iou >= min(least, 1 - 1e-10)
        parts.append((which[kept], target[kept], iou[kept]))
        start = stop
    if not parts:
        return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0)
    which, target, iou = (np.concatenate(column) for column in zip(*parts, strict=True))
    return which, target, iou


def _iou(first: np.ndarray, second: np.ndarray, crowd: np.ndarray, inclusive: bool) -> np.ndarray:
    """Pairwise IoU of boxes (P, 4) and (P, 4), (P,)."""
    first, second = first.astype(np.float64), second.astype(np.float64)
    sides = np.minimum(first[:, 2:], second[:, 2:]) - np.maximum(first[:, :2], second[:, :2]) + inclusive
    shared = sides.clip(min=0).prod(axis=1)
    own, other = ((boxes[:, 2:] - boxes[:, :2] + inclusive).prod(axis=1) for boxes in (first, second))
    union = np.where(crowd, own, own + other - shared)
    return shared / np.where(union > 0, union, 1)


def _firsts(order: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """The first index of each group in an order that keeps groups together."""
    sorted_groups = groups[order]
    return order[np.diff(sorted_groups, prepend=-1) != 0]


def _envelope(precision: np.ndarray) -> np.ndarray:
    """The best precision at this recall or a higher one."""
    return np.maximum.accumulate(precision[::-1])[::-1]


def _curve(right: np.ndarray, scores: np.ndarray, num_objects: int) -> Curve:
    """The curve of detections in the order of their scores, each of them right or wrong."""
    hits = right.cumsum()
    recall = hits / num_objects if num_objects else np.full(len(hits), np.nan)
    return Curve(num_objects, scores, hits / np.arange(1, len(hits) + 1), recall)


def _best_by_class(detections: Detections, num_classes: int) -> Detections:
    """The 100 best detections of each class in each image, all of them in the order of their scores."""
    found = detections.select(np.lexsort((-detections.scores, detections.images)))  # stable, image after image
    keys = found.images * num_classes + found.labels
    found = found.select(_rank_in_group(keys) < COCO_DETECTIONS)
    return found.select(np.argsort(-found.scores, kind="stable"))


def _rank_in_group(keys: np.ndarray) -> np.ndarray:
    """How many earlier entries have the same key, int64, for each entry."""
    order = np.argsort(keys, kind="stable")
    new = np.diff(keys[order], prepend=keys[order[:1]] - 1 if len(keys) else 0) != 0
    starts = np.flatnonzero(new)
    ranks = np.empty(len(keys), np.int64)
    ranks[order] = np.arange(len(keys)) - np.repeat(starts, np.diff(np.append(starts, len(keys))))
    return ranks


def _rounds(which: np.ndarray, found: Detections, num_classes: int) -> list[np.ndarray]:
    """The pairs, by their indices, of the first detection with pairs in each image and class, of the second, …"""
    candidates = np.unique(which)
    ranks = _rank_in_group(found.images[candidates] * num_classes + found.labels[candidates])
    rank_of_pair = ranks[np.searchsorted(candidates, which)]
    order = np.argsort(rank_of_pair, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(rank_of_pair[order])) + 1) if len(order) else []


def _greedy(
    rounds: list[np.ndarray],
    which: np.ndarray,
    target: np.ndarray,
    overlap: np.ndarray,
    crowd: np.ndarray,
    ignored: np.ndarray,
    num_detections: int,
) -> tuple[np.ndarray, np.ndarray]:
    """COCO's assignment of detections to objects: bool (IoUs, D) each, which are right, and which count.

    A detection takes, among the objects that are left and overlap it enough, the one with the largest IoU, the last one
    of equals; ignored objects only if there is no other. Crowds can be taken again and again.
    """
    num_ious = len(COCO_IOUS)
    taken = np.zeros((num_ious, len(ignored)), bool)
    right, counts = np.zeros((num_ious, num_detections), bool), np.ones((num_ious, num_detections), bool)
    limits = np.minimum(COCO_IOUS, 1 - 1e-10)[:, None]
    for pairs in rounds:
        own, other, iou = which[pairs], target[pairs], overlap[pairs]  # (P,), the pairs of a detection in a row
        starts = np.flatnonzero(np.diff(own, prepend=-1))
        open_ = (iou >= limits) & (~taken[:, other] | crowd[other])  # (IoUs, P)
        # objects that count come before ignored ones; IoUs are at most 1
        value = np.where(open_, iou - 2.0 * ignored[other], -9.0)
        best = np.maximum.reduceat(value, starts, axis=1)  # (IoUs, detections of this round)
        lengths = np.diff(np.append(starts, len(own)))
        is_best = open_ & (value == np.repeat(best, lengths, axis=1))
        # the last one of equals
        place = np.maximum.reduceat(np.where(is_best, np.arange(len(own)), -1), starts, axis=1)
        threshold, column = np.nonzero(place >= 0)
        chosen = place[threshold, column]
        taken[threshold, other[chosen]] = True
        right[threshold, own[chosen]] = ~ignored[other[chosen]]
        counts[threshold, own[chosen]] = ~ignored[other[chosen]]
    return right, counts
