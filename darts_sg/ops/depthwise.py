"""Depthwise convolution."""

from torch import nn


class DepthwiseConv2d(nn.Conv2d):
    """k×k depthwise convolution without a bias, padded to keep the size at stride 1: (N, C, H, W) to (N, C, H', W')."""

    def __init__(self, C: int, kernel_size: int, stride: int = 1, dilation: int = 1) -> None:
        super().__init__(C, C, kernel_size, stride, dilation * (kernel_size // 2), dilation, groups=C, bias=False)
