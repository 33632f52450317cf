"""SSDLite written out plainly: the network layer by layer, priors, matching and loss as loops over the definitions.

Independent of the package on purpose. Boxes are plain tuples (x1, y1, x2, y2) in fractions of the image.
"""

import math

import torch
from torch import Tensor, nn

from tests.reference import mobile
from tests.reference.textbook import conv, depthwise

Box = tuple[float, float, float, float]


class Detector(nn.Module):
    """`family` at a width on images of 3 channels; gives class logits and box offsets in the order of the priors."""

    def __init__(self, family: str, width: float, num_classes: int) -> None:
        super().__init__()
        self.sandglass = family == "mobilenext"
        network = mobile.Network(family, width, 1, 224, 1)
        self.backbone = network.layers
        with torch.no_grad():
            fine, coarse, x = self.taps(torch.zeros(1, 3, 64, 64))
        widths = [(512, 0.2), (256, 0.25 if self.sandglass else 0.5), (256, 0.5), (128 if self.sandglass else 64, 0.5)]
        C, levels, sizes = x.shape[1], [], [fine.shape[1], coarse.shape[1]]
        for C_out, share in widths:
            h = int(C * share) if self.sandglass else round(C * share)
            if self.sandglass:
                layers = [*mobile.normed(depthwise(C, 3, 2)), nn.ReLU6(), *mobile.normed(conv(C, h, 1))]
                layers += [*mobile.normed(conv(h, C_out, 1)), nn.ReLU6()]
            else:
                layers = [*mobile.normed(conv(C, h, 1)), nn.ReLU6(), *mobile.normed(depthwise(h, 3, 2)), nn.ReLU6()]
                layers += mobile.normed(conv(h, C_out, 1))
            levels.append(nn.Sequential(*layers))
            sizes.append(C := C_out)
        self.levels = nn.ModuleList(levels)
        self.class_heads = nn.ModuleList(self.head(C, 6 * (num_classes + 1), i < 5) for i, C in enumerate(sizes))
        self.box_heads = nn.ModuleList(self.head(C, 6 * 4, i < 5) for i, C in enumerate(sizes))
        self.num_classes = num_classes

    @staticmethod
    def head(C: int, outputs: int, whole: bool) -> nn.Module:
        last = nn.Conv2d(C, outputs, 1)
        if not whole:
            return last
        return nn.Sequential(nn.Conv2d(C, C, 3, padding=1, groups=C), nn.BatchNorm2d(C), nn.ReLU6(), last)

    def taps(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        layers = list(self.backbone)
        if not self.sandglass:
            fine = nn.Sequential(*layers[:16])(x)
            coarse = nn.Sequential(*layers[16:])(fine)
            return fine, coarse, coarse
        block_13, block_20 = (list(layers[2 + number].layers) for number in (13, 20))
        fine = nn.Sequential(*layers[:15], *block_13[:5])(x)
        coarse = nn.Sequential(*block_13[5:], *layers[16:22], *block_20[:8])(fine)
        return fine, coarse, nn.Sequential(*block_20[8:])(coarse)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        fine, coarse, x = self.taps(x)
        maps = [fine, coarse]
        for level in self.levels:
            maps.append(x := level(x))
        rows: list[list[Tensor]] = [[], []]
        for x, *heads in zip(maps, self.class_heads, self.box_heads, strict=True):
            for into, head, size in zip(rows, heads, (self.num_classes + 1, 4), strict=True):
                y = head(x)
                for row in range(y.shape[2]):
                    for column in range(y.shape[3]):
                        into += [y[:, k * size : (k + 1) * size, row, column] for k in range(6)]
        return torch.stack(rows[0], dim=1), torch.stack(rows[1], dim=1)


def priors() -> list[Box]:
    """The 3,234 prior boxes of the authors as (centre x, centre y, width, height), written out from their table."""
    table = [(20, 16, 45, 120), (10, 32, 90, 180), (5, 64, 135, 220), (3, 120, 180, 260), (2, 160, 225, 300)]
    found = []
    for side, step, least, most in [*table, (1, 320, 270, 320)]:
        for row in range(side):
            for column in range(side):
                x, y = (column + 0.5) * step / 320, (row + 0.5) * step / 320
                middle = math.sqrt(least * most)
                for width, height in (
                    (least, least), (middle, middle),
                    (least * 2**0.5, least / 2**0.5), (least / 2**0.5, least * 2**0.5),
                    (least * 3**0.5, least / 3**0.5), (least / 3**0.5, least * 3**0.5),
                ):  # fmt: skip
                    found.append((x, y, min(1.0, width / 320), min(1.0, height / 320)))
    return found


def corners(box: Box) -> Box:
    x, y, width, height = box
    return x - width / 2, y - height / 2, x + width / 2, y + height / 2


def overlap(a: Box, b: Box) -> float:
    """Intersection over union."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(0.0, width) * max(0.0, height)
    area_a, area_b = ((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return shared / (area_a + area_b - shared)


def matches(objects: list[Box], prior_boxes: list[Box]) -> list[int | None]:
    """For each prior, given as centre and size, the object that it is matched with."""
    found: list[int | None] = []
    for prior in prior_boxes:
        overlaps = [overlap(corners(prior), box) for box in objects]
        best = max(range(len(objects)), key=lambda k: overlaps[k]) if objects else None
        found.append(best if best is not None and overlaps[best] >= 0.5 else None)
    for k, box in enumerate(objects):
        found[max(range(len(prior_boxes)), key=lambda p: overlap(corners(prior_boxes[p]), box))] = k
    return found


def losses(
    logits: Tensor, offsets: Tensor, objects: list[list[tuple[int, Box]]], prior_boxes: list[Box]
) -> tuple[Tensor, Tensor]:
    """(cross-entropy, smooth L1) of images with objects (class from 0, box), over the number of positive priors."""
    class_loss, box_loss, positives = 0 * logits.sum(), 0 * offsets.sum(), 0
    for n, found in enumerate(objects):
        matched = matches([box for _, box in found], prior_boxes)
        log_p = logits[n].log_softmax(dim=1)
        negatives = []
        for p, number in enumerate(matched):
            if number is None:
                negatives.append((-log_p[p, 0].item(), -p))
                continue
            positives += 1
            label, (x1, y1, x2, y2) = found[number]
            class_loss = class_loss - log_p[p, label + 1]
            x, y, width, height = prior_boxes[p]
            wanted = [
                ((x1 + x2) / 2 - x) / width / 0.1, ((y1 + y2) / 2 - y) / height / 0.1,
                math.log((x2 - x1) / width) / 0.2, math.log((y2 - y1) / height) / 0.2,
            ]  # fmt: skip
            for k in range(4):
                d = (offsets[n, p, k] - wanted[k]).abs()
                box_loss = box_loss + (d**2 / 2 if d < 1 else d - 0.5)
        hardest = sorted(negatives, reverse=True)[: 3 * sum(number is not None for number in matched)]
        for _, minus_p in hardest:
            class_loss = class_loss - log_p[-minus_p, 0]
    return class_loss / max(1, positives), box_loss / max(1, positives)
