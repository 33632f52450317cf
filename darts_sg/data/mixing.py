"""Mixup and CutMix: training images mixed in pairs, with targets that are mixed alike; and random erasing.

Mixup (Zhang et al., ICLR 2018): x = λ·x_i + (1 - λ)·x_j, y = λ·y_i + (1 - λ)·y_j with λ ~ Beta(α, α). CutMix (Yun et
al., ICCV 2019, section 3.1): a rectangle of x_i is replaced by that of x_j, and λ is the share that is left of x_i.
Image i is mixed with image i + 1 of its batch. As the order of a batch is random, so are the pairs; and of several
ranks each needs one image beside its own.
"""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

ERASED_AREA = 0.02, 0.4
ERASED_RATIO = 0.3, 1 / 0.3
ERASING_TRIES = 10


class MixDraws(NamedTuple):
    """The random choices of mixing for one batch, on the CPU."""

    shares: Tensor
    """float32 (B,): λ, the share of the image itself. For CutMix the exact one of its rectangle."""
    boxes: Tensor
    """int64 (B, 4): top, left, bottom and right of CutMix; an empty box for mixup."""
    cuts: Tensor
    """bool (B,): CutMix instead of mixup."""


def draw_mixing(num_images: int, size: int, mixup: float, cutmix: float, random: np.random.Generator) -> MixDraws:
    """Draw λ and, for CutMix, rectangles of area (1 - λ) with a uniform centre, clipped at the border.

    mixup, cutmix: α of each, 0 for none. With both, each image takes one of them with probability 1/2. All numbers are
    drawn in any case.
    """
    uniform = random.random(num_images)
    cuts = uniform < 0.5 if mixup and cutmix else np.full(num_images, bool(cutmix))
    alphas = np.where(cuts, cutmix, mixup)
    shares = random.beta(alphas, alphas)
    centres = random.integers(size, size=(num_images, 2))
    side = (size * np.sqrt(1 - shares)).astype(np.int64)[:, None]
    boxes = np.concatenate([centres - side // 2, centres - side // 2 + side], axis=1).clip(0, size)
    boxes[~cuts] = 0
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    shares = np.where(cuts, 1 - areas / size**2, shares)
    return MixDraws(torch.from_numpy(shares).float(), torch.from_numpy(boxes), torch.from_numpy(cuts))


def mix(x: Tensor, others: Tensor, draws: MixDraws) -> Tensor:
    """Each image (B, C, H, W) mixed with the one at the same place in `others`."""
    shares = torch.where(draws.cuts, 1.0, draws.shares).to(x.device)[:, None, None, None]
    mixed = shares * x + (1 - shares) * others
    if draws.cuts.any():
        mixed = torch.where(inside(draws.boxes.to(x.device), x.shape[2:]), others, mixed)
    return mixed.contiguous(memory_format=torch.channels_last)


def mix_labels(labels: Tensor, others: Tensor, draws: MixDraws, num_classes: int) -> Tensor:
    """Shares of the classes, float32 (B, num_classes), of labels (B,) mixed with those of the other images."""
    shares = draws.shares.to(labels.device)[:, None]
    own, other = (F.one_hot(each, num_classes).float() for each in (labels, others))
    return shares * own + (1 - shares) * other


def inside(boxes: Tensor, size: torch.Size) -> Tensor:
    """Which pixels are inside of the box of each image: bool (B, 1, H, W)."""
    rows, columns = (torch.arange(side, device=boxes.device) for side in size)
    top, left, bottom, right = boxes.T[:, :, None]  # (B, 1) each
    in_rows, in_columns = (rows >= top) & (rows < bottom), (columns >= left) & (columns < right)
    return (in_rows[:, :, None] & in_columns[:, None, :])[:, None]


def draw_erasing(num_images: int, size: int, probability: float, random: np.random.Generator) -> Tensor:
    """The boxes of random erasing (Zhong et al., AAAI 2020, algorithm 1), int64 (B, 4), see `MixDraws`.

    Each image has a box with `probability`, otherwise an empty one: of 2 to 40% of the area, with an aspect ratio from
    0.3 to 1/0.3. The first of ten draws that fits into the image counts.
    """
    erased = random.random(num_images) < probability
    draws = random.random((num_images, ERASING_TRIES, 4))
    areas = (ERASED_AREA[0] + (ERASED_AREA[1] - ERASED_AREA[0]) * draws[..., 0]) * size**2
    ratios = ERASED_RATIO[0] + (ERASED_RATIO[1] - ERASED_RATIO[0]) * draws[..., 1]
    heights, widths = (np.sqrt(each).round().astype(np.int64) for each in (areas * ratios, areas / ratios))
    fits = (heights < size) & (widths < size)
    first = np.arange(num_images), fits.argmax(axis=1)
    height, width, place = heights[first], widths[first], draws[first][:, 2:]
    top, left = (place * (size - np.stack([height, width], 1) + 1)).astype(np.int64).T
    boxes = np.stack([top, left, top + height, left + width], axis=1)
    boxes[~(erased & fits.any(axis=1))] = 0
    return torch.from_numpy(boxes)


def erase_(x: Tensor, boxes: Tensor) -> Tensor:
    """Set the box of each image (B, C, H, W) to 0, the mean of normalised pixels, in place."""
    return x.masked_fill_(inside(boxes.to(x.device), x.shape[2:]), 0.0)
