"""How a detector of prior boxes is trained: which object each prior answers for, and the loss of that.

SSD (Liu et al., ECCV 2016), section 2.2, as the detection code of MobileNeXt's authors has it.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from darts_sg.boxes import box_iou
from darts_sg.networks.ssdlite import DetectorOutputs, encode, to_corners

POSITIVE_IOU = 0.5
NEGATIVES = 3
"""Hard negatives for each positive prior of an image."""


class Matched(NamedTuple):
    """What the priors of some images have to predict."""

    labels: Tensor
    """int64 (N, P): class + 1 of the object that a prior is matched with, 0 for the background."""
    offsets: Tensor
    """float (N, P, 4): the encoded box of that object; of no meaning for the background."""


def match(boxes: Tensor, labels: Tensor, priors: Tensor) -> Matched:
    """Match the objects of one image with the priors, centres (P, 4); labels (P,), offsets (P, 4).

    boxes: corners (G, 4), all with an area; labels: int64 (G,), classes from 0. A prior belongs to the object that it
    overlaps most, if their IoU is 0.5 or more. The best prior of an object always belongs to it, however small their
    IoU; the best prior of several belongs to the last of them.
    """
    if not len(boxes):
        return Matched(labels.new_zeros(len(priors)), priors.new_zeros(len(priors), 4))
    overlaps = box_iou(to_corners(priors), boxes)  # (P, G)
    best_iou, objects = overlaps.max(dim=1)
    best_priors = overlaps.argmax(dim=0).tolist()
    for number, prior in enumerate(best_priors):  # one after another: the last object wins on every device
        objects[prior] = number
        best_iou[prior] = 1.0
    matched = torch.where(best_iou >= POSITIVE_IOU, labels[objects] + 1, 0)
    return Matched(matched, encode(boxes[objects], priors))


def hard_negatives(background_loss: Tensor, labels: Tensor) -> Tensor:
    """The negatives that are trained on, bool (N, P): in each image the 3 with the largest loss for every positive.

    background_loss: -log p(background) of each prior, (N, P); labels: int64 (N, P). Equal losses count in the order of
    the priors.
    """
    positive = labels > 0
    loss = background_loss.masked_fill(positive, -torch.inf)
    order = loss.argsort(dim=1, descending=True, stable=True)
    rank = order.argsort(dim=1)
    return (rank < NEGATIVES * positive.sum(dim=1, keepdim=True)) & ~positive


def multibox_losses(outputs: DetectorOutputs, matched: Matched, num_positives: int | Tensor) -> tuple[Tensor, Tensor]:
    """(cross-entropy of positives and hard negatives, smooth L1 of the positives' offsets), scalars.

    Both are sums over the batch, divided by its positives, at least 1 (SSD, equations 1 and 3). In float32 or more.
    """
    logits, offsets = outputs.logits.float(), outputs.offsets.float()
    if outputs.logits.dtype == torch.float64:
        logits, offsets = outputs
    labels, positive = matched.labels, matched.labels > 0
    cross_entropy = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view_as(labels)
    with torch.no_grad():
        negative = hard_negatives(-logits.log_softmax(dim=2)[:, :, 0], labels)
    divisor = num_positives.clamp(min=1) if isinstance(num_positives, Tensor) else max(1, num_positives)
    box_error = F.smooth_l1_loss(offsets, matched.offsets.to(offsets.dtype), reduction="none").sum(dim=2)
    # multiplied by the mask instead of selected: the shapes do not depend on the values, so nothing waits for a GPU
    chosen = positive | negative
    class_loss = torch.where(chosen, cross_entropy, 0).sum() / divisor
    box_loss = torch.where(positive, box_error, 0).sum() / divisor
    return class_loss, box_loss
