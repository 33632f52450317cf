"""The sandglass block as a candidate operation.

Rethinking Bottleneck Structure for Efficient Mobile Network Design (ECCV 2020), section 3: the depthwise convolutions
and the shortcut work on the wide ends; two 1×1 convolutions form the bottleneck between them.
"""

from torch import nn

from darts_sg.ops.depthwise import DepthwiseConv2d
from darts_sg.ops.operation import Build, Residual, register_operation


class Sandglass(Residual):
    """k×k dw - BN - ReLU6 - 1×1 to C/r - BN - 1×1 to C - BN - ReLU6 - k×k dw (stride) - BN; + x with stride 1.

    (N, C, H, W) to (N, C, ceil(H / stride), ceil(W / stride)). The bottleneck has C // r channels, at least 1. The
    MobileNeXt code rounds them to a multiple of 16, so that the block searched at C = 16 would differ from the one
    trained at C = 36. Unlike the other candidate operations it has no leading ReLU.
    """

    def __init__(self, C: int, kernel_size: int, stride: int, reduction: int, affine: bool) -> None:
        hidden = max(1, C // reduction)
        body = nn.Sequential(
            DepthwiseConv2d(C, kernel_size),
            nn.BatchNorm2d(C, affine=affine),
            nn.ReLU6(),
            nn.Conv2d(C, hidden, 1, bias=False),  # (N, C // r, H, W), linear
            nn.BatchNorm2d(hidden, affine=affine),
            nn.Conv2d(hidden, C, 1, bias=False),
            nn.BatchNorm2d(C, affine=affine),
            nn.ReLU6(),
            DepthwiseConv2d(C, kernel_size, stride),
            nn.BatchNorm2d(C, affine=affine),
        )
        super().__init__(body, shortcut=stride == 1)


def _sandglass(kernel_size: int, reduction: int) -> Build:
    return lambda C, stride, affine: Sandglass(C, kernel_size, stride, reduction, affine)


for _name, _k, _r in (
    ("sandglass_3x3", 3, 2),
    ("sandglass_3x3_r4", 3, 4),
    ("sandglass_3x3_r6", 3, 6),
    ("sandglass_5x5", 5, 2),
):
    _bottleneck = f"1×1 to C/{_r} - BN - 1×1 to C - BN - ReLU6"
    _chain = f"{_k}×{_k} dw - BN - ReLU6 - {_bottleneck} - {_k}×{_k} dw - BN; + input with stride 1"
    register_operation(_name, "sandglass", _chain)(_sandglass(_k, _r))
