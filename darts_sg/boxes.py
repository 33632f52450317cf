"""Boxes as tensors: intersection over union and non-maximum suppression. Needs PyTorch and nothing of the package.

A box is x1, y1, x2, y2 in any unit. `inclusive` measures boxes as Pascal VOC's evaluation does: x2 and y2 are the last
column and row inside a box, so that its width is x2 - x1 + 1.
"""

import torch
from torch import Tensor

LARGEST_PAIRS = 2**25
"""Pairs of boxes that are compared at once; more are compared group by group, in bounded memory."""


def box_area(boxes: Tensor, *, inclusive: bool = False) -> Tensor:
    """The areas of boxes (..., 4), (...); 0 for those with x2 < x1 or y2 < y1."""
    width, height = (boxes[..., 2:] - boxes[..., :2] + inclusive).clamp(min=0).unbind(-1)
    return width * height


def intersection(first: Tensor, second: Tensor, *, inclusive: bool = False) -> Tensor:
    """The area that two boxes share; shapes (..., 4) that broadcast against each other."""
    lower = torch.maximum(first[..., :2], second[..., :2])
    upper = torch.minimum(first[..., 2:], second[..., 2:])
    width, height = (upper - lower + inclusive).clamp(min=0).unbind(-1)
    return width * height


def paired_iou(first: Tensor, second: Tensor, *, inclusive: bool = False) -> Tensor:
    """Intersection over union of boxes that broadcast against each other, (..., 4) and (..., 4); 0 where both have no
    area."""
    shared = intersection(first, second, inclusive=inclusive)
    union = box_area(first, inclusive=inclusive) + box_area(second, inclusive=inclusive) - shared
    return shared / torch.where(union > 0, union, 1)


def box_iou(first: Tensor, second: Tensor, *, inclusive: bool = False) -> Tensor:
    """Intersection over union of each of the first boxes, (..., n, 4), with each of the second, (..., m, 4).

    Returns (..., n, m).
    """
    return paired_iou(first[..., :, None, :], second[..., None, :, :], inclusive=inclusive)


def suppress(boxes: Tensor, scores: Tensor, groups: Tensor, threshold: float) -> Tensor:
    """Non-maximum suppression: which boxes stay, a mask (..., n).

    boxes (..., n, 4), scores (..., n), groups (..., n): only boxes of one group, such as a class, suppress each other,
    and only within their image, the leading dimensions. From the highest score on, a box stays unless its IoU with one
    that stays is above the threshold; of equal scores the earlier box comes first.

    The rule is sequential, and is solved here for all boxes at once: in each round a box stays if no box that stayed in
    the round before suppresses it. The first box is right in the first round, and each round makes at least one more
    right, in order; the mask is that of the sequence once a round changes nothing, after as many rounds as the longest
    chain of boxes that suppress one another, usually two to five. Compares n² pairs: keep the best few hundred first.
    """
    order = scores.argsort(dim=-1, descending=True, stable=True)
    if order.numel() * order.shape[-1] > LARGEST_PAIRS and order.ndim > 1:
        parts = zip(boxes, scores, groups, strict=True)
        return torch.stack([suppress(*part, threshold) for part in parts])
    sorted_boxes = boxes.gather(-2, order[..., None].expand(*order.shape, 4))
    sorted_groups = groups.gather(-1, order)
    overlap = box_iou(sorted_boxes, sorted_boxes) > threshold
    overlap &= sorted_groups[..., :, None] == sorted_groups[..., None, :]
    suppresses = overlap.triu(1)  # [..., i, j]: i comes first and overlaps j
    stays = torch.ones_like(order, dtype=torch.bool)
    while True:
        before = stays
        stays = ~(suppresses & before[..., :, None]).any(dim=-2)
        if torch.equal(stays, before):
            return torch.zeros_like(stays).scatter(-1, order, stays)
