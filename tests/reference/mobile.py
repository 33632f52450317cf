"""MobileNetV2 (CVPR 2018, table 2), and MobileNeXt as the code of ECCV 2020 builds it, written out layer by layer.

Independent of the package on purpose, channels and strides listed block by block.
"""

import math

import torch
from torch import Tensor, nn

from tests.reference.textbook import conv, depthwise


def multiple(value: float, of: int) -> int:
    """The nearest multiple (halves upwards), at least one; the next if it lacks more than a tenth of the value."""
    candidates = [k * of for k in range(1, int(value / of) + 3)]
    nearest = min(candidates, key=lambda c: (abs(c - value), -c))
    return nearest if nearest >= 0.9 * value else min(c for c in candidates if c > nearest)


def normed(layer: nn.Conv2d) -> list[nn.Module]:
    """A convolution and its BatchNorm."""
    return [layer, nn.BatchNorm2d(layer.out_channels)]


class Block(nn.Module):
    """Layers; `added` is how many channels of the input are added to the output."""

    def __init__(self, layers: list[nn.Module], added: int) -> None:
        super().__init__()
        self.layers, self.added = nn.Sequential(*layers), added

    def forward(self, x: Tensor) -> Tensor:
        y = self.layers(x)
        if not self.added:
            return y
        kept = torch.arange(x.shape[1]) < self.added
        return y + x * kept.to(x.dtype)[:, None, None]


def inverted_residual(C_in: int, C_out: int, t: int, stride: int, m: int) -> Block:
    """MobileNetV2, table 1."""
    C = t * C_in
    layers = [] if t == 1 else [*normed(conv(C_in, C, 1)), nn.ReLU6()]
    layers += [*normed(depthwise(C, 3, stride)), nn.ReLU6(), *normed(conv(C, C_out, 1))]
    return Block(layers, C_in // m if stride == 1 and C_in == C_out else 0)


def reduced(C_in: int, C_out: int, t: int) -> int:
    """Width inside a sandglass block."""
    return C_in // t if 6 * (C_in // t) >= C_out else multiple(math.ceil(C_out / 6), 16)


def sandglass(C_in: int, C_out: int, t: int, stride: int, m: int, keep: bool) -> Block:
    """The four forms of the block in the authors' code; `keep`: the only block of its stage."""
    h = reduced(C_in, C_out, t)
    first = [*normed(depthwise(C_in, 3)), nn.ReLU6()]
    middle = [*normed(conv(C_in, h, 1)), *normed(conv(h, C_out, 1)), nn.ReLU6()]
    if keep:
        return Block([*first, *middle, *normed(depthwise(C_out, 3, stride))], 0)
    if C_in == C_out:
        return Block([*first, *middle, *normed(depthwise(C_out, 3, stride))], C_in // m if stride == 1 else 0)
    if stride == 2:
        return Block([*middle, *normed(depthwise(C_out, 3, 2))], 0)
    return Block(middle, 0)


def bottleneck(C_in: int, C_out: int, t: int, stride: int, m: int) -> Block:
    """ResNet's bottleneck with a depthwise 3×3 and without the last ReLU."""
    h = reduced(C_in, C_out, t)
    layers = [*normed(conv(C_in, h, 1)), nn.ReLU6(), *normed(depthwise(h, 3, stride)), nn.ReLU6()]
    return Block([*layers, *normed(conv(h, C_out, 1))], C_in // m if stride == 1 and C_in == C_out else 0)


MOBILENETV2 = [  # (t, channels, stride) of each block; a stride of 3 is 2 at 224 pixels and 1 at 32
    (1, 16, 1), (6, 24, 3), (6, 24, 1), (6, 32, 2), (6, 32, 1), (6, 32, 1), (6, 64, 2), (6, 64, 1), (6, 64, 1),
    (6, 64, 1), (6, 96, 1), (6, 96, 1), (6, 96, 1), (6, 160, 2), (6, 160, 1), (6, 160, 1), (6, 320, 1),
]  # fmt: skip
MOBILENEXT = [
    (2, 96, 3), (6, 144, 1), (6, 192, 2), (6, 192, 1), (6, 192, 1), (6, 288, 2), (6, 288, 1), (6, 288, 1), (6, 384, 1),
    (6, 384, 1), (6, 384, 1), (6, 384, 1), (6, 576, 2), (6, 576, 1), (6, 576, 1), (6, 576, 1), (6, 960, 1), (6, 960, 1),
    (6, 960, 1), (6, 1280, 1),
]  # fmt: skip
ALONE = (0, 1, 19)


class Network(nn.Module):
    """`family` at a width and for images of 224 or 32 pixels; shortcuts add 1/m of the channels."""

    def __init__(self, family: str, width: float, m: int, pixels: int, num_classes: int, in_channels: int = 3) -> None:
        super().__init__()
        first_stride = 2 if pixels == 224 else 1
        C = multiple(32 * width, 8)
        layers: list[nn.Module] = [*normed(conv(in_channels, C, 3, stride=first_stride, padding=1)), nn.ReLU6()]
        last = 1280 if width < 1 else multiple(1280 * width, 8)
        for i, (t, channels, stride) in enumerate(MOBILENETV2 if family == "mobilenetv2" else MOBILENEXT):
            C_out = last if channels == 1280 else multiple(channels * width, 8)
            s = first_stride if stride == 3 else stride
            if family == "mobilenext":
                layers.append(sandglass(C, C_out, t, s, m, keep=i in ALONE))
            else:
                block = inverted_residual if family == "mobilenetv2" else bottleneck
                layers.append(block(C, C_out, t, s, m))
            C = C_out
        if family == "mobilenetv2":
            layers += [*normed(conv(C, last, 1)), nn.ReLU6()]
            C = last
        self.layers, self.dropout, self.linear = nn.Sequential(*layers), nn.Dropout(0.2), nn.Linear(C, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.adaptive_avg_pool2d(self.layers(x), 1)
        return self.linear(self.dropout(x.flatten(1)))
