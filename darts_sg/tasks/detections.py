"""From a detector's outputs to the objects that it finds: softmax, decoding, and non-maximum suppression by class."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from darts_sg.networks.ssdlite import Detections, PriorStyle, decode, prior_boxes


@dataclass(frozen=True)
class Selection:
    """Which boxes count as found objects."""

    score: float
    """Boxes with a score up to this are left out."""
    iou: float
    """A box that overlaps a better one of its class by more than this is left out."""
    most: int
    """Objects of an image."""
    candidates: int = 400
    """The best boxes of each class before overlaps are looked at, as in the original SSD: it bounds time and memory of
    untrained networks, in which every box scores above the threshold."""


SELECTIONS: dict[PriorStyle, Selection] = {
    "authors": Selection(score=0.01, iou=0.45, most=100),
    "torchvision": Selection(score=0.001, iou=0.55, most=300, candidates=300),
}


class FoundObjects(NamedTuple):
    """The objects found in one image, the best first."""

    boxes: Tensor
    """float32 (n, 4): corners, as shares of the image's sides."""
    labels: Tensor
    """int64 (n,): classes, from 0."""
    scores: Tensor
    """float32 (n,): probabilities."""


def decoded(outputs: Detections, style: PriorStyle, image_size: int) -> tuple[Tensor, Tensor]:
    """(boxes, corners (N, P, 4) clipped to the image; scores of the classes without background (N, P, C))."""
    priors = prior_boxes(style, image_size, outputs.offsets.device)
    boxes = decode(outputs.offsets.float(), priors).clamp(0, 1)
    return boxes, outputs.logits.float().softmax(dim=2)[:, :, 1:]


def greedy_keep(suppresses: Tensor) -> Tensor:
    """Which boxes non-maximum suppression keeps, bool (…, K), of K boxes in the order of falling scores.

    suppresses: bool (…, K, K), whether box i, if it is kept, suppresses the worse box j. Each round decides at least
    the first box that is still open, and usually nearly all: the result is that of taking one box after another.
    """
    suppresses = suppresses.triu(1)
    keep = torch.ones_like(suppresses[..., 0])
    while True:
        after = ~(suppresses & keep.unsqueeze(-1)).any(dim=-2)
        if torch.equal(after, keep):
            return keep
        keep = after


def select_objects(boxes: Tensor, scores: Tensor, selection: Selection) -> FoundObjects:
    """The objects of one image, from boxes (P, 4) and scores (P, C).

    Equal scores keep the order of classes, then of priors.
    """
    above = scores > selection.score
    K = min(selection.candidates, int(above.sum(dim=0).max())) if above.numel() else 0
    best, places = scores.where(above, 0).T.sort(dim=1, descending=True, stable=True)  # (C, P)
    best, places = best[:, :K], places[:, :K]
    candidates = boxes[places]  # (C, K, 4)
    found = best > 0
    overlaps = pairwise_iou(candidates) > selection.iou
    keep = greedy_keep(overlaps & found.unsqueeze(-1)) & found
    labels = torch.arange(len(best), device=boxes.device)[:, None].expand_as(best)[keep]
    order = best[keep].sort(descending=True, stable=True).indices[: selection.most]
    return FoundObjects(candidates[keep][order], labels[order], best[keep][order])


def pairwise_iou(boxes: Tensor) -> Tensor:
    """Intersection over union of all pairs, (…, K, 4) to (…, K, K); 0 for boxes without an area."""
    first = torch.maximum(boxes[..., :, None, :2], boxes[..., None, :, :2])
    last = torch.minimum(boxes[..., :, None, 2:], boxes[..., None, :, 2:])
    shared = (last - first).clamp(min=0).prod(dim=-1)
    area = (boxes[..., 2:] - boxes[..., :2]).prod(dim=-1)
    return shared / (area[..., :, None] + area[..., None, :] - shared).clamp(min=1e-12)
