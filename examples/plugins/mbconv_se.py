"""Two operations and a space: MBConv with squeeze-and-excitation.

    python search.py --plugin examples/plugins/mbconv_se.py --space darts+mbconv_se

MnasNet (Tan et al., CVPR 2019, figure 7) and EfficientNet (Tan and Le, ICML 2019, section 4); squeeze-and-excitation:
Hu et al., CVPR 2018, section 3. The block is no chain of layers, since squeeze-and-excitation multiplies a branch with
its input: the search computes it edge by edge, and its dry run says what share of the time that takes.
"""

from torch import Tensor, nn

from darts_sg.ops import register_operation
from darts_sg.spaces import SPACES

EXPANSION = 6
REDUCTION = 4  # the squeeze has a quarter of the channels of the block's input


class SqueezeExcitation(nn.Module):
    """Scale each channel by a gate in 0..1 that sees all channels: (N, C, H, W) to (N, C, H, W).

    Mean over the image - 1×1 to `squeezed` - SiLU - 1×1 to C - sigmoid - times the input.
    """

    def __init__(self, C: int, squeezed: int) -> None:
        super().__init__()
        self.gate = nn.Sequential(nn.Conv2d(C, squeezed, 1), nn.SiLU(), nn.Conv2d(squeezed, C, 1), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x.mean(dim=(2, 3), keepdim=True))


class MBConvSE(nn.Module):
    """1×1 to 6C - BN - SiLU - k×k dw (stride) - BN - SiLU - SE - 1×1 to C - BN; + x with stride 1.

    (N, C, H, W) to (N, C, ceil(H / stride), ceil(W / stride)).
    """

    def __init__(self, C: int, kernel_size: int, stride: int, affine: bool) -> None:
        super().__init__()
        wide = EXPANSION * C
        self.shortcut = stride == 1
        self.body = nn.Sequential(
            nn.Conv2d(C, wide, 1, bias=False),
            nn.BatchNorm2d(wide, affine=affine),
            nn.SiLU(),
            nn.Conv2d(wide, wide, kernel_size, stride, kernel_size // 2, groups=wide, bias=False),
            nn.BatchNorm2d(wide, affine=affine),
            nn.SiLU(),
            SqueezeExcitation(wide, max(1, C // REDUCTION)),
            nn.Conv2d(wide, C, 1, bias=False),
            nn.BatchNorm2d(C, affine=affine),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.shortcut else self.body(x)


@register_operation(
    "mbconv_se_3x3",
    "mbconv_se",
    "1×1 to 6C - BN - SiLU - 3×3 dw - BN - SiLU - SE - 1×1 to C - BN; + input with stride 1",
)
def mbconv_se_3x3(C: int, stride: int, affine: bool) -> nn.Module:
    return MBConvSE(C, 3, stride, affine)


@register_operation(
    "mbconv_se_5x5",
    "mbconv_se",
    "1×1 to 6C - BN - SiLU - 5×5 dw - BN - SiLU - SE - 1×1 to C - BN; + input with stride 1",
)
def mbconv_se_5x5(C: int, stride: int, affine: bool) -> nn.Module:
    return MBConvSE(C, 5, stride, affine)


SPACES.add("mbconv_se", ("skip_connect", "mbconv_se_3x3", "mbconv_se_5x5"))
