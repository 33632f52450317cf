"""The inverted residual block as a candidate operation: the control of the sandglass experiment.

MobileNetV2 (CVPR 2018), section 3.3: the shortcut connects the narrow ends, the depthwise convolution is in between,
on the expanded channels.
"""

from torch import nn

from darts_sg.ops.depthwise import DepthwiseConv2d
from darts_sg.ops.operation import Residual, register_operation


class InvertedResidual(Residual):
    """1×1 to t·C - BN - ReLU6 - k×k dw (stride) - BN - ReLU6 - 1×1 to C - BN; + x with stride 1.

    (N, C, H, W) to (N, C, ceil(H / stride), ceil(W / stride)).
    """

    def __init__(self, C: int, kernel_size: int, stride: int, expansion: int, affine: bool) -> None:
        hidden = C * expansion
        body = nn.Sequential(
            nn.Conv2d(C, hidden, 1, bias=False),  # (N, t·C, H, W)
            nn.BatchNorm2d(hidden, affine=affine),
            nn.ReLU6(),
            DepthwiseConv2d(hidden, kernel_size, stride),
            nn.BatchNorm2d(hidden, affine=affine),
            nn.ReLU6(),
            nn.Conv2d(hidden, C, 1, bias=False),
            nn.BatchNorm2d(C, affine=affine),
        )
        super().__init__(body, shortcut=stride == 1)


@register_operation(
    "inverted_residual_3x3",
    "inverted_residual",
    "1×1 to 6C - BN - ReLU6 - 3×3 dw - BN - ReLU6 - 1×1 to C - BN; + input with stride 1",
)
def inverted_residual_3x3(C: int, stride: int, affine: bool) -> nn.Module:
    return InvertedResidual(C, 3, stride, 6, affine)
