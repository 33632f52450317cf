"""The operations of the DARTS space and of the published cells (DARTS paper, section 3.1.1; NASNet).

All map (N, C, H, W) to (N, C, ceil(H / stride), ceil(W / stride)). No convolution has a bias.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from darts_sg.ops.depthwise import DepthwiseConv2d
from darts_sg.ops.operation import Build, register_operation


class Zero(nn.Module):
    """No connection: zeros of the output's shape."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x[..., :: self.stride, :: self.stride])


class Noise(nn.Module):
    """Standard normal noise of the output's shape, whatever the input; another draw in each pass.

    Drawn from PyTorch's default generator, whose state checkpoints hold. RobustDARTS, space S4.
    """

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.silent = False
        """Give zeros, so that two ways to compute a network can be compared."""

    def forward(self, x: Tensor) -> Tensor:
        kept = x[..., :: self.stride, :: self.stride]
        return torch.zeros_like(kept) if self.silent else torch.randn_like(kept)


class AvgPool(nn.AvgPool2d):
    """3×3 average pool, padding not counted.

    On a CUDA GPU it runs in the contiguous (NCHW) layout: up to version 2.13 PyTorch silently computes wrong gradients
    there for padded average pools of channels_last tensors (pytorch issue 188344).
    """

    def __init__(self, stride: int) -> None:
        super().__init__(3, stride, padding=1, count_include_pad=False)

    def forward(self, x: Tensor) -> Tensor:
        if x.is_cuda and x.is_contiguous(memory_format=torch.channels_last):
            return super().forward(x.contiguous()).contiguous(memory_format=torch.channels_last)
        return super().forward(x)


class ConvBN(nn.Sequential):
    """1×1 convolution - BN: (N, C_in, H, W) to (N, C_out, H, W)."""

    def __init__(self, C_in: int, C_out: int, affine: bool = True) -> None:
        super().__init__(nn.Conv2d(C_in, C_out, 1, bias=False), nn.BatchNorm2d(C_out, affine=affine))


class HalvingConv(nn.Module):
    """Two 1×1 convolutions of stride 2, the second shifted by one pixel, concatenated.

    (N, C_in, H, W) to (N, C_out, ceil(H / 2), ceil(W / 2)). An input with an odd side is padded by a row or column of
    zeros, so that both halves have the same size. With `groups` every group of channels is treated this way.
    Consecutive groups may share input channels, which are then passed only once.

    Implemented as matrix products with the pixels (0, 0) and (1, 1) of each 2×2 block, which one copy gathers: on a
    CPU, forward and backward take at most half the time of the convolutions. On the meta device and for an empty
    batch, where costs are counted, the two convolutions run as defined.
    """

    def __init__(self, C_in: int, C_out: int, groups: int = 1) -> None:
        super().__init__()
        self.C_in, self.C_out, self.groups = C_in, C_out, groups
        first = C_out // groups // 2 * groups
        self.conv_1 = nn.Conv2d(C_in, first, 1, stride=2, groups=groups, bias=False)
        self.conv_2 = nn.Conv2d(C_in, C_out - first, 1, stride=2, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        H, W = x.shape[-2:]
        if H % 2 or W % 2:
            x = F.pad(x, (0, W % 2, 0, H % 2))
        groups = x.shape[1] // self.conv_1.weight.shape[1]  # of the input: fewer than self.groups where they share it
        if x.is_meta or not x.shape[0]:
            parts = [F.conv2d(x, self.conv_1.weight, stride=2, groups=groups)]
            parts.append(F.conv2d(x[..., 1:, 1:], self.conv_2.weight, stride=2, groups=groups))
            return torch.cat(parts, dim=1)
        N, C, (h, w) = x.shape[0], self.conv_1.weight.shape[1], (x.shape[2] // 2, x.shape[3] // 2)
        pixels = x.permute(0, 2, 3, 1).reshape(N, h, 2, w, 2, groups, C).diagonal(dim1=2, dim2=4)
        pixels = pixels.permute(5, 3, 0, 1, 2, 4).reshape(2, groups, N * h * w, C)  # [0]: (0, 0), [1]: (1, 1)
        parts = []
        for half, conv in zip(pixels, (self.conv_1, self.conv_2), strict=True):
            y = half @ conv.weight.view(groups, -1, C).transpose(1, 2)
            parts.append(y.view(groups, N, h, w, self.groups // groups, -1).permute(1, 2, 3, 0, 4, 5))
        return torch.cat(parts, dim=-1).view(N, h, w, self.C_out).permute(0, 3, 1, 2)


class HalvingConvBN(HalvingConv):
    """HalvingConv - BN: (N, C_in, H, W) to (N, C_out, ceil(H / 2), ceil(W / 2))."""

    def __init__(self, C_in: int, C_out: int, affine: bool = True) -> None:
        super().__init__(C_in, C_out)
        self.bn = nn.BatchNorm2d(C_out, affine=affine)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(super().forward(x))


class FactorizedReduce(nn.Sequential):
    """ReLU - HalvingConvBN: the skip connection of stride 2."""

    def __init__(self, C: int, affine: bool) -> None:
        super().__init__(nn.ReLU(), HalvingConvBN(C, C, affine))


class DilConv(nn.Sequential):
    """ReLU - k×k depthwise convolution with stride and dilation - 1×1 - BN."""

    def __init__(self, C: int, kernel_size: int, stride: int, dilation: int, affine: bool) -> None:
        super().__init__(
            nn.ReLU(),
            DepthwiseConv2d(C, kernel_size, stride, dilation),
            nn.Conv2d(C, C, 1, bias=False),
            nn.BatchNorm2d(C, affine=affine),
        )


class SepConv(nn.Sequential):
    """(ReLU - k×k depthwise - 1×1 - BN) twice, the first with the stride."""

    def __init__(self, C: int, kernel_size: int, stride: int, affine: bool) -> None:
        super().__init__(
            *DilConv(C, kernel_size, stride, 1, affine),
            *DilConv(C, kernel_size, 1, 1, affine),
        )


@register_operation("none", "none", "zeros")
def none(C: int, stride: int, affine: bool) -> nn.Module:
    return Zero(stride)


@register_operation("noise", "other", "N(0, 1) of the output's shape, whatever the input", is_random=True)
def noise(C: int, stride: int, affine: bool) -> nn.Module:
    return Noise(stride)


@register_operation("max_pool_3x3", "pool", "3×3 max pool", needs_norm=True)
def max_pool_3x3(C: int, stride: int, affine: bool) -> nn.Module:
    return nn.MaxPool2d(3, stride, padding=1)


@register_operation("avg_pool_3x3", "pool", "3×3 average pool, padding not counted", needs_norm=True)
def avg_pool_3x3(C: int, stride: int, affine: bool) -> nn.Module:
    return AvgPool(stride)


@register_operation(
    "skip_connect", "skip", "identity; with stride 2: ReLU - two 1×1 (stride 2, C/2 each, one shifted) - BN"
)
def skip_connect(C: int, stride: int, affine: bool) -> nn.Module:
    return nn.Identity() if stride == 1 else FactorizedReduce(C, affine)


def _sep_conv(kernel_size: int) -> Build:
    return lambda C, stride, affine: SepConv(C, kernel_size, stride, affine)


def _dil_conv(kernel_size: int) -> Build:
    return lambda C, stride, affine: DilConv(C, kernel_size, stride, 2, affine)


for _k in (3, 5, 7):
    register_operation(f"sep_conv_{_k}x{_k}", "sep_conv", f"(ReLU - {_k}×{_k} dw - 1×1 - BN) twice")(_sep_conv(_k))
for _k in (3, 5):
    register_operation(f"dil_conv_{_k}x{_k}", "dil_conv", f"ReLU - {_k}×{_k} dw dilation 2 - 1×1 - BN")(_dil_conv(_k))


@register_operation("conv_7x1_1x7", "other", "ReLU - 1×7 - 7×1 - BN")
def conv_7x1_1x7(C: int, stride: int, affine: bool) -> nn.Module:
    return nn.Sequential(
        nn.ReLU(),
        nn.Conv2d(C, C, (1, 7), (1, stride), (0, 3), bias=False),
        nn.Conv2d(C, C, (7, 1), (stride, 1), (3, 0), bias=False),
        nn.BatchNorm2d(C, affine=affine),
    )
