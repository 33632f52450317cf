"""Colour jitter of a batch of images, on the device that holds them."""

from typing import NamedTuple

import torch
from torch import Tensor

GREY = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in the grey value (ITU-R 601-2, as in Pillow)."""
NUM_CHANGES = 4


class ColourDraws(NamedTuple):
    """The random colour changes for one batch, on the CPU."""

    amounts: Tensor
    """float32 (B, 4): factors of brightness, contrast and saturation; shift of the hue in turns."""
    orders: Tensor
    """int64 (B, 4): the order in which the four are applied to each image."""


def draw_colours(num_images: int, strength: float, generator: torch.Generator) -> ColourDraws:
    """Draw factors from 1 ± `strength` (clipped at 0), shifts from ± `strength` / 2, and random orders."""
    uniform = torch.rand(num_images, NUM_CHANGES, generator=generator) * 2 - 1
    orders = torch.rand(num_images, NUM_CHANGES, generator=generator).argsort(dim=1)
    amounts = torch.cat([(1 + strength * uniform[:, :3]).clamp_min(0), strength / 2 * uniform[:, 3:]], dim=1)
    return ColourDraws(amounts, orders)


def colour_jitter(x: Tensor, draws: ColourDraws) -> Tensor:
    """Change brightness, contrast, saturation and hue of each image, each in its own order.

    x: float (B, H, W, 3) in 0..1, overwritten; returns the same shape in 0..1.
    """
    amounts = draws.amounts.to(x.device)
    for place in range(NUM_CHANGES):
        for number, change in enumerate((brightness, contrast, saturation, hue)):
            chosen = (draws.orders[:, place] == number).nonzero()[:, 0].to(x.device)
            if len(chosen):
                x[chosen] = change(x[chosen], amounts[chosen, number, None, None])
    return x


def brightness(x: Tensor, factor: Tensor) -> Tensor:
    """Blend with black. x (B, H, W, 3), factor (B, 1, 1), here and below."""
    return (x * factor[..., None]).clamp_(0, 1)


def contrast(x: Tensor, factor: Tensor) -> Tensor:
    """Blend with the mean grey value of the image."""
    mean = grey(x).mean(dim=(1, 2), keepdim=True)
    return (x * factor[..., None]).add_((mean * (1 - factor))[..., None]).clamp_(0, 1)


def saturation(x: Tensor, factor: Tensor) -> Tensor:
    """Blend with the grey image."""
    return (x * factor[..., None]).add_((grey(x) * (1 - factor))[..., None]).clamp_(0, 1)


def hue(x: Tensor, shift: Tensor) -> Tensor:
    """Rotate the hue of the HSV colour space by `shift` turns; saturation and value stay."""
    value = x.amax(-1)
    chroma = value - x.amin(-1)
    red, green, blue = x.unbind(-1)
    divisor = torch.where(chroma > 0, chroma, 1)
    sextant = torch.where(
        value == red,
        (green - blue) / divisor,
        torch.where(value == green, 2 + (blue - red) / divisor, 4 + (red - green) / divisor),
    )
    sextant += 6 * shift
    channels = []
    for offset in (5, 3, 1):  # red, green, blue
        k = (sextant + offset) % 6
        channels.append(value - chroma * torch.minimum(k, 4 - k).clamp_(0, 1))
    return torch.stack(channels, dim=-1)


def grey(x: Tensor) -> Tensor:
    """Grey values (…) of colours (…, 3)."""
    red, green, blue = (weight * channel for weight, channel in zip(GREY, x.unbind(-1), strict=True))
    return red + green + blue
