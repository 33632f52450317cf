"""RandAugment: a few random operations of one magnitude on each image (Cubuk et al., NeurIPS 2020, section 3).

The operations and their strengths are those of the paper's code, which follow AutoAugment (Cubuk et al., CVPR 2019,
table 6): integer arithmetic on uint8 as in Pillow, nearest neighbours, and grey where an image is moved away. They work
on batches, on the device that holds the images.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

MAX_MAGNITUDE = 30
GREY_LEVEL = 128
"""Value of the pixels that come from outside the image."""
MOST_SHEAR, MOST_DEGREES, MOST_CHANGE, MOST_BITS = 0.3, 30.0, 0.9, 4
"""Strengths at MAX_MAGNITUDE: slope of a shear, angle of a rotation, change of an enhancement's factor from 1, bits
that are cut off."""
MOST_SHIFT = 150 / 331
"""Shift at MAX_MAGNITUDE, as a share of the side: 150 of the 331 pixels that AutoAugment was made for."""
GREY_WEIGHTS = (19595, 38470, 7471)
"""Weights of red, green and blue in the grey value, in units of 1/65536 (ITU-R 601-2, as in Pillow)."""
GEOMETRIC = ("shear_x", "shear_y", "translate_x", "translate_y", "rotate")


class OperationDraws(NamedTuple):
    """The random operations for one batch, on the CPU."""

    operations: Tensor
    """int64 (B, N): indices in OPERATIONS, applied from left to right."""
    signs: Tensor
    """float32 (B, N): 1 or -1, the direction of those that have one."""


def draw_operations(num_images: int, num_operations: int, generator: torch.Generator) -> OperationDraws:
    """Draw the operations of each image, with repetition, and their directions."""
    operations = torch.randint(len(OPERATIONS), (num_images, num_operations), generator=generator)
    signs = torch.randint(2, (num_images, num_operations), generator=generator) * 2.0 - 1
    return OperationDraws(operations, signs)


def rand_augment(images: Tensor, draws: OperationDraws, magnitude: int) -> Tensor:
    """Apply the drawn operations with a strength of `magnitude` out of MAX_MAGNITUDE.

    images: uint8 (B, H, W, C) with one channel or three; returns a new tensor of the same shape.
    """
    images, strength, names = images.clone(), magnitude / MAX_MAGNITUDE, list(OPERATIONS)
    for place in range(draws.operations.shape[1]):
        chosen, signs = draws.operations[:, place], draws.signs[:, place]
        # all geometric operations are one gather: each image has a matrix of its own
        moved = torch.isin(chosen, torch.tensor([names.index(name) for name in GEOMETRIC])).nonzero()[:, 0]
        if len(moved):
            size = images.shape[1:3]
            matrices = [affine_matrix(names[chosen[i]], strength * float(signs[i]), size) for i in moved.tolist()]
            at = moved.to(images.device)
            images[at] = warp(images[at], torch.tensor(matrices, dtype=torch.float64).to(images.device))
        for number, name in enumerate(names):
            if (change := OPERATIONS[name]) is None:
                continue
            here = (chosen == number).nonzero()[:, 0]
            if len(here):
                at = here.to(images.device)
                images[at] = change(images[at], strength, signs[here].to(images.device))
    return images


def affine_matrix(name: str, strength: float, size: tuple[int, ...]) -> list[float]:
    """(a, b, c, d, e, f) of a geometric operation: output pixel (x, y) shows the input at (ax + by + c, dx + ey + f).

    strength: from -1 to 1. size: height and width. Shears keep the upper left corner, rotations the centre.
    """
    height, width = size
    if name == "shear_x":
        return [1, MOST_SHEAR * strength, 0, 0, 1, 0]
    if name == "shear_y":
        return [1, 0, 0, MOST_SHEAR * strength, 1, 0]
    if name == "translate_x":
        return [1, 0, int(MOST_SHIFT * width * strength), 0, 1, 0]
    if name == "translate_y":
        return [1, 0, 0, 0, 1, int(MOST_SHIFT * height * strength)]
    angle = math.radians(MOST_DEGREES * strength)
    cosine, sine = math.cos(angle), math.sin(angle)
    x, y = width / 2, height / 2
    return [cosine, -sine, x - cosine * x + sine * y, sine, cosine, y - sine * x - cosine * y]


def warp(images: Tensor, matrices: Tensor) -> Tensor:
    """Move the pixels of each image by its matrix, see `affine_matrix`; nearest neighbours, grey outside.

    images: uint8 (B, H, W, C); matrices: float64 (B, 6).
    """
    batch, height, width, _ = images.shape
    device = images.device
    y = (torch.arange(height, dtype=torch.float64, device=device) + 0.5)[:, None]
    x = torch.arange(width, dtype=torch.float64, device=device) + 0.5
    a, b, c, d, e, f = matrices.T[:, :, None, None]  # (B, 1, 1) each
    columns, rows = (a * x + b * y + c).floor().long(), (d * x + e * y + f).floor().long()  # (B, H, W)
    inside = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
    image = torch.arange(batch, device=device)[:, None, None]
    moved = images[image, rows.clamp(0, height - 1), columns.clamp(0, width - 1)]  # (B, H, W, C)
    return torch.where(inside[..., None], moved, GREY_LEVEL)


# --- colours: uint8 (B, H, W, C), strength from 0 to 1, signs (B,), to uint8 (B, H, W, C)


def autocontrast(images: Tensor, strength: float, signs: Tensor) -> Tensor:
    """Stretch each channel to the whole range."""
    low, high = (extreme.double() for extreme in (images.amin((1, 2), True), images.amax((1, 2), True)))
    scale = 255 / (high - low).clamp_min(1)
    stretched = (images * scale - low * scale).clamp(0, 255).to(torch.uint8)
    return torch.where(high > low, stretched, images)


def equalize(images: Tensor, strength: float, signs: Tensor) -> Tensor:
    """Flatten the histogram of each channel."""
    batch, height, width, channels = images.shape
    planes = images.permute(0, 3, 1, 2).reshape(batch * channels, -1).long()
    counts = torch.zeros(len(planes), 256, dtype=torch.int64, device=images.device)
    counts.scatter_add_(1, planes, torch.ones_like(planes))
    last = counts.gather(1, planes.amax(1, keepdim=True))  # pixels of the brightest level
    step = (height * width - last) // 255
    below = counts.cumsum(1) - counts
    table = ((step // 2 + below) // step.clamp_min(1)).clamp_max(255)
    table = torch.where(step > 0, table, torch.arange(256, device=images.device))
    levels = table.gather(1, planes).to(torch.uint8)
    return levels.reshape(batch, channels, height, width).permute(0, 2, 3, 1)


def solarize(images: Tensor, strength: float, signs: Tensor) -> Tensor:
    """Invert the levels from a threshold on, which falls from 256 to 0."""
    return torch.where(images < 256 * (1 - strength), images, 255 - images)


def posterize(images: Tensor, strength: float, signs: Tensor) -> Tensor:
    """Cut off the lowest bits."""
    bits = round(MOST_BITS * strength)
    return images >> bits << bits


def color(images: Tensor, strength: float, signs: Tensor) -> Tensor:
    """Blend with the grey image."""
    return _blend(grey(images)[..., None].expand_as(images), images, strength, signs)


def contrast(images: Tensor, strength: float, signs: Tensor) -> Tensor:
    """Blend with the mean grey level."""
    mean = (grey(images).double().mean((1, 2)) + 0.5).floor()  # (B,)
    return _blend(mean[:, None, None, None].expand(images.shape), images, strength, signs)


def brightness(images: Tensor, strength: float, signs: Tensor) -> Tensor:
    """Blend with black."""
    return _blend(torch.zeros_like(images), images, strength, signs)


def sharpness(images: Tensor, strength: float, signs: Tensor) -> Tensor:
    """Blend with a smoothed image; the border stays."""
    channels = images.shape[3]
    if min(images.shape[1:3]) < 3:
        return images
    kernel = torch.ones(3, 3, device=images.device)
    kernel[1, 1] = 5
    x = images.permute(0, 3, 1, 2).float()
    # sums of integers are exact in float32; then rounded
    smooth = (F.conv2d(x, kernel.expand(channels, 1, 3, 3), groups=channels) / 13 + 0.5).floor()
    blurred = images.clone()
    blurred[:, 1:-1, 1:-1] = smooth.permute(0, 2, 3, 1).to(torch.uint8)
    return _blend(blurred, images, strength, signs)


def grey(images: Tensor) -> Tensor:
    """Grey values, uint8 (B, H, W), of images of one channel or three."""
    if images.shape[3] == 1:
        return images[..., 0]
    red, green, blue = (weight * images[..., i].int() for i, weight in enumerate(GREY_WEIGHTS))
    return ((red + green + blue + 0x8000) >> 16).to(torch.uint8)


def _blend(degenerate: Tensor, images: Tensor, strength: float, signs: Tensor) -> Tensor:
    """degenerate + factor · (images - degenerate), where the factor is 1 ± `strength` · MOST_CHANGE."""
    factor = (1 + MOST_CHANGE * strength * signs)[:, None, None, None].float()
    start = degenerate.float()
    return (start + factor * (images.float() - start)).clamp_(0, 255).to(torch.uint8)


OPERATIONS: dict[str, Callable[[Tensor, float, Tensor], Tensor] | None] = {
    "identity": None, "autocontrast": autocontrast, "equalize": equalize, "rotate": None, "solarize": solarize,
    "color": color, "posterize": posterize, "contrast": contrast, "brightness": brightness, "sharpness": sharpness,
    "shear_x": None, "shear_y": None, "translate_x": None, "translate_y": None,
}  # fmt: skip
"""The 14 operations of the paper. None: the identity, or a geometric one, which is a matrix."""
