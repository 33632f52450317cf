"""From a detector's outputs to the objects that it finds: softmax, decoding, and non-maximum suppression by class."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from darts_sg.boxes import suppress
from darts_sg.networks.ssdlite import DetectorOutputs, PriorStyle, SSDLite, decode, prior_boxes


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


def decoded(outputs: DetectorOutputs, priors: Tensor) -> tuple[Tensor, Tensor]:
    """(boxes, corners (N, P, 4) clipped to the image; scores of the classes without background (N, P, C)).

    priors: centres (P, 4), on the device of the outputs.
    """
    boxes = decode(outputs.offsets.float(), priors).clamp(0, 1)
    return boxes, outputs.logits.float().softmax(dim=2)[:, :, 1:]


def select_objects(boxes: Tensor, scores: Tensor, selection: Selection) -> FoundObjects:
    """The objects of one image, from boxes (P, 4) and scores (P, C).

    Equal scores keep the order of classes, then of priors.
    """
    above = scores > selection.score
    K = min(selection.candidates, int(above.sum(dim=0).max())) if above.numel() else 0
    best, places = scores.where(above, 0).T.sort(dim=1, descending=True, stable=True)  # (C, P)
    best, places = best[:, :K], places[:, :K]
    candidates = boxes[places]  # (C, K, 4)
    keep = suppress(candidates, best, torch.zeros_like(places), selection.iou) & (best > 0)
    labels = torch.arange(len(best), device=boxes.device)[:, None].expand_as(best)[keep]
    order = best[keep].sort(descending=True, stable=True).indices[: selection.most]
    return FoundObjects(candidates[keep][order], labels[order], best[keep][order])


# --- selection within an exported model


@torch.library.custom_op("darts_sg::nms", mutates_args=())
def nms(boxes: Tensor, scores: Tensor, iou: float, score: float, most: int) -> Tensor:
    """Non-maximum suppression by image and class, as ONNX defines NonMaxSuppression.

    boxes: corners (N, P, 4); scores: (N, C, P). Returns int64 (M, 3): image, class and prior of each box kept, by image
    and class, and within these the best first; at most `most` for each class.
    """
    found = [boxes.new_empty(0, 3, dtype=torch.int64)]
    for image in range(len(boxes)):
        for label in range(scores.shape[1]):
            places = (scores[image, label] > score).nonzero().flatten()
            order = scores[image, label, places].sort(descending=True, stable=True).indices
            places = places[order]
            stays = suppress(boxes[image, places], scores[image, label, places], torch.zeros_like(places), iou)
            kept = places[stays][:most]
            where = [torch.full_like(kept, image), torch.full_like(kept, label), kept]
            found.append(torch.stack(where, dim=1))
    return torch.cat(found)


@nms.register_fake
def _nms_shape(boxes: Tensor, scores: Tensor, iou: float, score: float, most: int) -> Tensor:
    return boxes.new_empty((torch.library.get_ctx().new_dynamic_size(), 3), dtype=torch.int64)


def onnx_operators() -> dict[Any, Callable[..., Any]]:
    """How ONNX computes the operators of `selected` that PyTorch's exporter does not know."""
    from onnxscript import opset18 as onnx

    def suppress(boxes: Any, scores: Any, iou: float, score: float, most: int) -> Any:
        numbers = ({"value_int": most}, {"value_float": iou}, {"value_float": score})
        limits: list[Any] = [onnx.Constant(**number) for number in numbers]
        return onnx.NonMaxSuppression(boxes, scores, *limits)

    def stable_sort(x: Any, stable: bool, dim: int = -1, descending: bool = False) -> Any:
        # TopK keeps the order of equal values
        return onnx.TopK(x, onnx.Shape(x), axis=dim, largest=int(descending), sorted=1)

    return {torch.ops.darts_sg.nms.default: suppress, torch.ops.aten.sort.stable: stable_sort}


class DecodingModel(nn.Module):
    """A detector with softmax and decoding, without non-maximum suppression: images to boxes and scores."""

    def __init__(self, network: SSDLite) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("priors", prior_boxes(network.style, network.image_size), persistent=False)
        self.priors: Tensor

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return decoded(self.network(images)[0], self.priors)


class SelectingModel(DecodingModel):
    """A detector with decoding and selection: images (N, C, S, S) to the objects found in all of them.

    Returns image (M,), boxes (M, 4) as shares of the sides, labels (M,) and scores (M,), the images in turn and the
    best object of each first; then boxes (N, P, 4) and scores (N, P, num_classes) of all prior boxes.
    """

    def forward(self, images: Tensor) -> Any:
        boxes, scores = super().forward(images)
        return *selected(boxes, scores, SELECTIONS[self.network.style]), boxes, scores


def selected(boxes: Tensor, scores: Tensor, selection: Selection) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`select_objects` of several images, by operators that can be exported: boxes (N, P, 4), scores (N, P, C).

    Returns image, boxes, labels and scores of all objects, see `SelectingModel`.
    """
    scores = scores.transpose(1, 2)  # (N, C, P)
    last = scores.topk(min(selection.candidates, scores.shape[2]), dim=2).values[:, :, -1:]
    scores = torch.where(scores >= last, scores, 0)
    chosen = torch.ops.darts_sg.nms(boxes, scores, selection.iou, selection.score, selection.candidates)
    image, label, place = chosen.unbind(dim=1)
    found = scores[image, label, place]
    order = found.sort(descending=True, stable=True).indices
    image, label, place, found = image[order], label[order], place[order], found[order]
    of_image = (image[:, None] == torch.arange(boxes.shape[0], device=image.device)).long()  # (M, N)
    rank = (of_image.cumsum(dim=0) * of_image).sum(dim=1)
    among_best = rank <= selection.most
    image, label, place, found = image[among_best], label[among_best], place[among_best], found[among_best]
    order = image.sort(stable=True).indices
    image, label, place, found = image[order], label[order], place[order], found[order]
    return image, boxes[image, place], label, found


def selection_difference(found: Sequence[Tensor], expected: Sequence[Tensor], selection: Selection) -> Tensor:
    """How far two outputs of `SelectingModel` are apart: the largest difference of a score or a box of a prior.

    Infinite if the objects of the first are not those that `select_objects` finds among its own boxes. Compared like
    this, boxes with equal scores, of which an untrained network has many, may be taken in another order than in the
    second output.
    """
    *objects, boxes, scores = found
    *_, expected_boxes, expected_scores = expected
    for number in range(len(boxes)):
        own = select_objects(boxes[number], scores[number], selection)
        there = objects[0] == number
        for part, wanted in zip(objects[1:], own, strict=True):
            if not torch.equal(part[there], wanted):
                return torch.tensor(torch.inf)
    return torch.stack([(boxes - expected_boxes).abs().max(), (scores - expected_scores).abs().max()]).max()
