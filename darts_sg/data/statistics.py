"""Channel means and standard deviations of a set of images."""

import torch
from torch import Tensor


def channel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel of uint8 images (N, H, W, C), for pixels scaled to 0..1.

    Computed from histograms, hence exact and without a float copy of the images, and rounded to six decimals. A
    constant channel gets deviation 1, so that normalising by it stays finite.
    """
    values = torch.arange(256, dtype=torch.float64) / 255
    means, deviations = [], []
    for channel in images.unbind(-1):
        weights = torch.bincount(channel.reshape(-1), minlength=256).double() / channel.numel()
        mean = (weights * values).sum()
        deviation = (weights * (values - mean) ** 2).sum().sqrt()
        means.append(round(mean.item(), 6))
        deviations.append(round(deviation.item(), 6) or 1.0)
    return tuple(means), tuple(deviations)
