"""MobileNetV2 and MobileNeXt: one body, the table of its stages is data, its block a parameter.

MobileNetV2 (CVPR 2018), table 2; Rethinking Bottleneck Structure for Efficient Mobile Network Design (ECCV 2020),
section 3, as the authors' code has it. Models go by name: `mobilenext_1.0` is the family with its width multiplier,
`mobilenext_1.0_id2` has shortcuts over a half of the channels. The blocks are not the candidate operations of `ops/`:
they change the number of channels, and leave out layers where they do.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, nn

from darts_sg.errors import UsageError
from darts_sg.networks.derived import NetworkShape
from darts_sg.ops.depthwise import DepthwiseConv2d
from darts_sg.ops.primitives import ConvBN
from darts_sg.registry import Registry, unknown_name

STEM_CHANNELS = 32
LAST_CHANNELS = 1280  # of the last layer before the pooling; widths under 1 leave it as it is
DROPOUT = 0.2


class Stage(NamedTuple):
    """Blocks of the same width, the first of them with the stride."""

    ratio: int
    """Expansion of an inverted residual, reduction of the others: t in the papers."""
    channels: int
    num_blocks: int
    stride: int


class Chain(NamedTuple):
    """The layers of a block, and whether its input is added to their output."""

    layers: list[nn.Module]
    shortcut: bool


Block = Callable[[int, int, Stage, int], Chain]
"""(C_in, C_out, stage, stride): from (N, C_in, H, W) to (N, C_out, ceil(H / stride), ceil(W / stride))."""


def round_width(width: float, divisor: int = 8) -> int:
    """The multiple of `divisor` closest to `width`, but the next one if that is less than 90% of it."""
    rounded = max(divisor, int(width + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * width else rounded


def bottleneck_width(C_in: int, C_out: int, reduction: int) -> int:
    """C_in / reduction; if that is less than a sixth of C_out, that sixth as a multiple of 16."""
    hidden = C_in // reduction
    return round_width(math.ceil(C_out / 6), 16) if hidden < C_out / 6 else hidden


def depthwise(C: int, stride: int = 1) -> list[nn.Module]:
    """3×3 dw - BN: (N, C, H, W) to (N, C, ceil(H / stride), ceil(W / stride))."""
    return [DepthwiseConv2d(C, 3, stride), nn.BatchNorm2d(C)]


def relu6() -> nn.Module:
    """ReLU6 in place: what stands before it is always a BN, whose backward pass does not look at its output."""
    return nn.ReLU6(inplace=True)


def inverted_residual(C_in: int, C_out: int, stage: Stage, stride: int) -> Chain:
    """1×1 to t·C_in - BN - ReLU6 - 3×3 dw (stride) - BN - ReLU6 - 1×1 to C_out - BN; + x if nothing changes shape.

    MobileNetV2, section 3.3. With t = 1 there is no first 1×1.
    """
    hidden = C_in * stage.ratio
    expansion = [ConvBN(C_in, hidden), relu6()] if stage.ratio > 1 else []
    layers = [*expansion, *depthwise(hidden, stride), relu6(), ConvBN(hidden, C_out)]
    return Chain(layers, stride == 1 and C_in == C_out)


def sandglass(C_in: int, C_out: int, stage: Stage, stride: int) -> Chain:
    """3×3 dw - BN - ReLU6 - 1×1 to h - BN - 1×1 to C_out - BN - ReLU6 - 3×3 dw (stride) - BN; + x.

    ECCV 2020, section 3.2, with h = `bottleneck_width`. As in the authors' code, a block that changes the number of
    channels has no first dw, nor a last one unless it has a stride; the only block of a stage keeps both, but has no
    shortcut.
    """
    hidden, alone = bottleneck_width(C_in, C_out, stage.ratio), stage.num_blocks == 1
    whole = alone or C_in == C_out
    first = [*depthwise(C_in), relu6()] if whole else []
    last = depthwise(C_out, stride) if whole or stride > 1 else []
    layers = [*first, ConvBN(C_in, hidden), ConvBN(hidden, C_out), relu6(), *last]
    return Chain(layers, stride == 1 and C_in == C_out and not alone)


def bottleneck(C_in: int, C_out: int, stage: Stage, stride: int) -> Chain:
    """1×1 to h - BN - ReLU6 - 3×3 dw (stride) - BN - ReLU6 - 1×1 to C_out - BN; + x if nothing changes shape.

    The classic bottleneck (ResNet, CVPR 2016) with a depthwise convolution, to which the sandglass block is the
    alternative (ECCV 2020, figure 3a); h = `bottleneck_width`.
    """
    hidden = bottleneck_width(C_in, C_out, stage.ratio)
    layers = [ConvBN(C_in, hidden), relu6(), *depthwise(hidden, stride), relu6(), ConvBN(hidden, C_out)]
    return Chain(layers, stride == 1 and C_in == C_out)


@dataclass(frozen=True)
class Family:
    """Networks that differ in their width only."""

    title: str
    """What its blocks are called."""
    block: Block
    stages: tuple[Stage, ...]
    last_conv: bool = False
    """Whether a 1×1 convolution to the last channels follows the stages."""
    wide_inside: bool = False
    """Whether a block is widest before its last depthwise convolution, where detectors then take their features."""


MOBILENETV2 = (
    Stage(1, 16, 1, 1),
    Stage(6, 24, 2, 2),
    Stage(6, 32, 3, 2),
    Stage(6, 64, 4, 2),
    Stage(6, 96, 3, 1),
    Stage(6, 160, 3, 2),
    Stage(6, 320, 1, 1),
)
MOBILENEXT = (
    Stage(2, 96, 1, 2),
    Stage(6, 144, 1, 1),
    Stage(6, 192, 3, 2),
    Stage(6, 288, 3, 2),
    Stage(6, 384, 4, 1),
    Stage(6, 576, 4, 2),
    Stage(6, 960, 3, 1),
    Stage(6, LAST_CHANNELS, 1, 1),
)

FAMILIES: Registry[Family] = Registry("family of models")
FAMILIES.add("mobilenext", Family("sandglass", sandglass, MOBILENEXT, wide_inside=True))
FAMILIES.add("mobilenetv2", Family("inverted residual", inverted_residual, MOBILENETV2, last_conv=True))
FAMILIES.add("bottleneck", Family("bottleneck", bottleneck, MOBILENEXT))  # the block that MobileNeXt argues against


class Published(NamedTuple):
    """What a paper reports of a model on ImageNet: top-1 accuracy in percent, parameters and MACs in millions."""

    accuracy: float
    params: float
    macs: float
    source: str


@dataclass(frozen=True)
class Model:
    """A network by name."""

    name: str
    family: Family
    width: float
    """Multiplier of all channels."""
    identity_divisor: int
    """m: shortcuts add the first 1/m of the channels (ECCV 2020: identity tensor multiplier 1/m)."""
    published: Published | None = None

    def channels(self, channels: int) -> int:
        """So many channels at this width."""
        return round_width(channels * (max(1.0, self.width) if channels == LAST_CHANNELS else self.width))

    def stages(self, network: NetworkShape) -> list[Stage]:
        """The stages with their channels at this width, and their strides in this shape; without stem and last conv.

        `imagenet` reduces 224×224 by 32 to 7×7. `cifar` reduces 32×32 by 8 to 4×4: the stem and the first stage that
        halves have stride 1, as in the usual ports of MobileNetV2 to CIFAR.
        """
        stages = [stage._replace(channels=self.channels(stage.channels)) for stage in self.family.stages]
        if network == "cifar":
            first = next(i for i, stage in enumerate(stages) if stage.stride > 1)
            stages[first] = stages[first]._replace(stride=1)
        return stages


def stem_stride(network: NetworkShape) -> int:
    """Stride of the stem; see `Model.stages`."""
    return 1 if network == "cifar" else 2


MODELS: Registry[Model] = Registry("model")
SPELLING = re.compile(r"(?P<family>[a-z0-9]+)_(?P<width>\d{1,9}(\.\d{1,9})?)(_id(?P<divisor>\d{1,9}))?")
LARGEST_WIDTH = 100.0  # papers go up to 1.4


def spelled_model(name: str, published: Published | None = None) -> Model | None:
    """The model that a name such as mobilenext_0.9 or mobilenext_1.0_id2 spells; None if it spells none."""
    found = SPELLING.fullmatch(name)
    if found is None or found["family"] not in FAMILIES:
        return None
    width, divisor = float(found["width"]), int(found["divisor"] or 1)
    if not (0 < width <= LARGEST_WIDTH and divisor > 0):
        return None
    return Model(name, FAMILIES[found["family"]], width, divisor, published)


def find_model(name: str) -> Model:
    """The model called `name`, registered or of a width of its own; UsageError with the choices if there is none."""
    model = MODELS[name] if name in MODELS else spelled_model(name)
    if model is None:
        raise UsageError(f"{unknown_name('model', name, list(MODELS))}, or another width: mobilenext_0.9, …")
    return model


_CODE, _PAPER = "authors' code of ECCV 2020", "ECCV 2020, for comparison"
for _name, _published in (
    ("mobilenext_1.4", Published(76.1, 6.1, 590, _CODE)),
    ("mobilenext_1.0", Published(74.02, 3.5, 300, _CODE)),
    ("mobilenext_1.0_id2", Published(74.09, 3.5, 300, _CODE)),
    ("mobilenext_0.75", Published(72.0, 2.5, 210, _CODE)),
    ("mobilenext_0.5", Published(67.7, 2.1, 110, _CODE)),
    ("mobilenext_0.35", Published(64.7, 1.8, 80, _CODE)),
    ("mobilenetv2_1.4", None),
    ("mobilenetv2_1.0", Published(72.3, 3.5, 300, _PAPER)),
    ("mobilenetv2_0.75", None),
    ("mobilenetv2_0.5", None),
    ("mobilenetv2_0.35", None),
    ("bottleneck_1.0", None),
):
    _model = spelled_model(_name, _published)
    assert _model is not None
    MODELS.add(_name, _model)


class MobileBlock(nn.Module):
    """A chain of layers, to whose output the first `num_shared` channels of the input are added; 0: no shortcut."""

    def __init__(self, layers: list[nn.Module], num_shared: int) -> None:
        super().__init__()
        self.body, self.num_shared = nn.Sequential(*layers), num_shared

    def forward(self, x: Tensor) -> Tensor:
        return self.with_shortcut(x, self.body(x))

    def with_shortcut(self, x: Tensor, y: Tensor) -> Tensor:
        """The output of the layers with the shared channels of the input added, possibly in place."""
        if self.num_shared == y.shape[1]:
            return x + y
        if self.num_shared:
            y[:, : self.num_shared].add_(x[:, : self.num_shared])
        return y


class MobileNetwork(nn.Module):
    """3×3 - BN - ReLU6 - the blocks of a model - (1×1 - BN - ReLU6) - global average pool - dropout - linear.

    `forward(x)` maps images (N, in_channels, H, W) to (logits, None), as a derived network without an auxiliary head
    does. With num_classes None there is no classifier: a backbone, whose `maps(x)` detectors use. The weights start as
    in the code of both papers: normal, of variance 2 / (k² · C_out), in the linear layer of deviation 0.01.
    """

    def __init__(
        self, model: Model, *, network: NetworkShape = "cifar", num_classes: int | None = 10, in_channels: int = 3
    ) -> None:
        super().__init__()
        C = model.channels(STEM_CHANNELS)
        stem = nn.Conv2d(in_channels, C, 3, stem_stride(network), padding=1, bias=False)
        features: list[nn.Module] = [stem, nn.BatchNorm2d(C), relu6()]
        self.wide_inside = model.family.wide_inside
        self.last_halving, C_fine = 0, C
        """Index in `features` of the last block with a stride."""
        for stage in model.stages(network):
            for i in range(stage.num_blocks):
                stride = stage.stride if i == 0 else 1
                if stride > 1:
                    self.last_halving, C_fine = len(features), stage.channels if self.wide_inside else C
                layers, shortcut = model.family.block(C, stage.channels, stage, stride)
                C = stage.channels
                features.append(MobileBlock(layers, C // model.identity_divisor if shortcut else 0))
        if model.family.last_conv:
            C_out = model.channels(LAST_CHANNELS)
            features += [ConvBN(C, C_out), relu6()]
            C = C_out
        self.features = nn.Sequential(*features)
        self.map_channels = C_fine, C, C
        """Channels of the three `maps`."""
        self.classifier = None if num_classes is None else nn.Sequential(nn.Dropout(DROPOUT), nn.Linear(C, num_classes))
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out")
            elif isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=0.01)
                nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        assert self.classifier is not None, "a backbone has maps only"
        return self.classifier(self.features(x).mean(dim=(2, 3))), None

    def maps(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The features of a detector: the last ones before the last halving, the last ones, and the output.

        In the imagenet shape (N, C, H/16, W/16), (N, C, H/32, W/32) and the output, also at 1/32. Sandglass blocks are
        tapped inside, before their last depthwise convolution, as in the authors' detection code.
        """
        halving, last = self.last_halving, len(self.features) - 1
        x = self.features[:halving](x)
        if not self.wide_inside:
            output = self.features[halving:](x)
            return x, output, output
        fine, x = self._tapped(self.features[halving], x)
        x = self.features[halving + 1 : last](x)
        coarse, output = self._tapped(self.features[last], x)
        return fine, coarse, output

    @staticmethod
    def _tapped(block: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
        """What enters the last depthwise convolution of a block without a shortcut, and the block's output."""
        assert isinstance(block, MobileBlock) and not block.num_shared  # noqa: PT018
        inside = block.body[:-2](x)
        return inside, block.body[-2:](inside)
