"""SSDLite: a detector of one stage on a mobile backbone, with separable convolutions in its heads.

SSD (Liu et al., ECCV 2016); SSDLite (MobileNetV2, CVPR 2018, section 6.2), at 320 pixels as the authors of MobileNeXt
(ECCV 2020, section 4.3) train it. Six maps of halving size see objects of growing size. At every place of a map stand
six prior boxes; for each of them the heads predict class logits and how the box has to move and grow.

Boxes are fractions of the image's sides: `corners` are (x1, y1, x2, y2), `centres` (centre x, centre y, width, height).
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from darts_sg.errors import UsageError
from darts_sg.networks.build import NetworkPlan, build_backbone
from darts_sg.networks.mobile import Model, depthwise, relu6
from darts_sg.ops.primitives import ConvBN

IMAGE_SIZE = 320
NUM_LEVELS = 6
BOXES_PER_PLACE = 6
SMALLEST_IMAGE = 32  # pixels of a side: one place in the map at 1/32
CENTRE_VARIANCE, SIZE_VARIANCE = 0.1, 0.2
LARGEST_GROWTH = math.log(1000 / 16)
"""Bound of a predicted logarithm of a size, as in torchvision: `exp` of an untrained network's outputs stays finite."""


class Published(NamedTuple):
    """Published mAP of a detector in percent: on the test images of VOC07, and on COCO."""

    map_voc07: float
    map_coco: float
    source: str


_SOURCE = "authors' detection code of ECCV 2020"
PUBLISHED = {
    "mobilenext_1.0": Published(72.6, 23.3, _SOURCE),
    "mobilenetv2_1.0": Published(71.8, 22.3, _SOURCE),
}
"""By the name of the backbone."""


# --- prior boxes


@dataclass(frozen=True)
class Priors:
    """The prior boxes of a detector, as fractions of the image's sides."""

    min_sizes: tuple[float, ...]
    """Side of the square prior of each level. The priors of ratios 2 and 3, both ways, have its area."""
    max_sizes: tuple[float, ...]
    """The larger square of a level has the side √(min · max)."""
    steps: tuple[float, ...] | None = None
    """Distance between neighbouring places of each level; None for maps evenly covered."""

    def boxes(self, sides: tuple[int, ...]) -> Tensor:
        """Centres of all priors for maps with these sides, clipped to the image: float32 (P, 4).

        In the order of the heads' outputs: levels, rows, columns, then the six boxes of a place.
        """
        found = []
        for level, side in enumerate(sides):
            step = 1 / side if self.steps is None else self.steps[level]
            places = (torch.arange(side, dtype=torch.float64) + 0.5) * step
            y, x = torch.meshgrid(places, places, indexing="ij")
            small, large = self.min_sizes[level], math.sqrt(self.min_sizes[level] * self.max_sizes[level])
            shapes = [(small, small), (large, large)]
            for ratio in (math.sqrt(2), math.sqrt(3)):
                shapes += [(small * ratio, small / ratio), (small / ratio, small * ratio)]
            wh = torch.tensor(shapes, dtype=torch.float64).expand(side, side, len(shapes), 2)
            xy = torch.stack([x, y], dim=-1)[:, :, None].expand_as(wh)
            found.append(torch.cat([xy, wh], dim=-1).reshape(-1, 4))
        return torch.cat(found).clamp(0, 1).float()


def _of_320(*pixels: int) -> tuple[float, ...]:
    return tuple(value / IMAGE_SIZE for value in pixels)


PriorStyle = Literal["authors", "torchvision"]
AUTHORS = Priors(
    _of_320(45, 90, 135, 180, 225, 270), _of_320(120, 180, 220, 260, 300, 320), _of_320(16, 32, 64, 120, 160, 320)
)
"""Of the authors' code at 320 pixels. 3 · 120 > 320: the places of the 3×3 map lie at 0.1875, 0.5625 and 0.9375."""
TORCHVISION = Priors((0.2, 0.35, 0.5, 0.65, 0.8, 0.95), (0.35, 0.5, 0.65, 0.8, 0.95, 1.0))
"""Of torchvision's ssdlite320_mobilenet_v3_large: sides from 0.2 to 0.95, places evenly spread."""


def map_sides(image_size: int) -> tuple[int, ...]:
    """Sides of the six maps: 20, 10, 5, 3, 2, 1 for images of 320 pixels.

    Raises UsageError for images that are too small.
    """
    if image_size < SMALLEST_IMAGE:
        raise UsageError(f"--image-size {image_size}: a detector needs images of at least {SMALLEST_IMAGE} pixels")
    side, sides = image_size, []
    for halving in range(3 + NUM_LEVELS):
        side = -(-side // 2)
        if halving >= 3:  # the first map is that at 1/16
            sides.append(side)
    return tuple(sides)


@functools.cache
def prior_boxes(
    style: PriorStyle,
    image_size: int = IMAGE_SIZE,
    device: torch.device = torch.device("cpu"),  # noqa: B008
) -> Tensor:
    """Centres of the prior boxes for images of this size, float32 (P, 4); 3,234 at 320 pixels.

    The steps of the authors are those of 320 pixels; at other sizes their priors are spread evenly.
    """
    priors = AUTHORS if style == "authors" else TORCHVISION
    if image_size != IMAGE_SIZE:
        priors = replace(priors, steps=None)
    with torch.device("cpu"):  # not on the device of a context, such as meta: the boxes are cached
        boxes = priors.boxes(map_sides(image_size))
    return boxes.to(device)


def to_corners(centres: Tensor) -> Tensor:
    """(…, 4) as corners."""
    xy, wh = centres.split(2, dim=-1)
    return torch.cat([xy - wh / 2, xy + wh / 2], dim=-1)


def to_centres(corners: Tensor) -> Tensor:
    """(…, 4) as centres; the inverse of `to_corners`."""
    first, second = corners.split(2, dim=-1)
    return torch.cat([(first + second) / 2, second - first], dim=-1)


def encode(corners: Tensor, priors: Tensor) -> Tensor:
    """What the heads have to predict for boxes (…, P, 4), one for each of the `priors`, centres (P, 4).

    The shift of the centre in sizes of the prior over 0.1; the logarithm of the growth over 0.2 (SSD, equation 2).
    Boxes have to have an area.
    """
    xy, wh = to_centres(corners).split(2, dim=-1)
    prior_xy, prior_wh = priors.split(2, dim=-1)
    return torch.cat([(xy - prior_xy) / prior_wh / CENTRE_VARIANCE, (wh / prior_wh).log() / SIZE_VARIANCE], dim=-1)


def decode(offsets: Tensor, priors: Tensor) -> Tensor:
    """The boxes that the heads' outputs (…, P, 4) mean, as corners; the inverse of `encode`."""
    shift, growth = offsets.split(2, dim=-1)
    prior_xy, prior_wh = priors.split(2, dim=-1)
    xy = prior_xy + CENTRE_VARIANCE * shift * prior_wh
    wh = prior_wh * (SIZE_VARIANCE * growth).clamp(max=LARGEST_GROWTH).exp()
    return to_corners(torch.cat([xy, wh], dim=-1))


# --- layers


class LevelShape(NamedTuple):
    """An extra level behind the backbone."""

    channels: int
    ratio: float
    """Width inside the block, as a share of its input's channels."""


Extra = Callable[[int, LevelShape], nn.Sequential]
"""(C_in, level): from (N, C_in, H, W) to (N, level.channels, ceil(H / 2), ceil(W / 2))."""


def sandglass_extra(C_in: int, level: LevelShape) -> nn.Sequential:
    """3×3 dw /2 - BN - ReLU6 - 1×1 to h - BN - 1×1 - BN - ReLU6 (authors' code)."""
    hidden = int(C_in * level.ratio)
    return nn.Sequential(*depthwise(C_in, 2), relu6(), ConvBN(C_in, hidden), ConvBN(hidden, level.channels), relu6())


def inverted_extra(C_in: int, level: LevelShape) -> nn.Sequential:
    """1×1 to h - BN - ReLU6 - 3×3 dw /2 - BN - ReLU6 - 1×1 - BN: an inverted residual without a shortcut."""
    hidden = round(C_in * level.ratio)
    return nn.Sequential(ConvBN(C_in, hidden), relu6(), *depthwise(hidden, 2), relu6(), ConvBN(hidden, level.channels))


class Extras(NamedTuple):
    """The four levels behind a backbone."""

    block: Extra
    levels: tuple[LevelShape, ...]


SANDGLASS_EXTRAS = Extras(
    sandglass_extra, (LevelShape(512, 0.2), LevelShape(256, 0.25), LevelShape(256, 0.5), LevelShape(128, 0.5))
)
INVERTED_EXTRAS = Extras(
    inverted_extra, (LevelShape(512, 0.2), LevelShape(256, 0.5), LevelShape(256, 0.5), LevelShape(64, 0.5))
)


def head(C: int, num_outputs: int, separable: bool) -> nn.Module:
    """3×3 dw with a bias - BN - ReLU6 - 1×1, or the 1×1 alone: (N, C, H, W) to (N, num_outputs, H, W)."""
    pointwise = nn.Conv2d(C, num_outputs, 1)
    if not separable:
        return pointwise
    return nn.Sequential(nn.Conv2d(C, C, 3, padding=1, groups=C), nn.BatchNorm2d(C), relu6(), pointwise)


class DetectorOutputs(NamedTuple):
    """The raw outputs of a detector for P prior boxes an image."""

    logits: Tensor
    """(N, P, 1 + num_classes): class 0 is the background."""
    offsets: Tensor
    """(N, P, 4), to be decoded by the prior boxes."""


class SSDLite(nn.Module):
    """Backbone - two of its maps and four extra levels - a head for classes and one for boxes on each of them.

    `forward(x)` maps images (N, in_channels, image_size, image_size) to (DetectorOutputs, None), for the prior boxes of
    `prior_boxes(style, image_size)`. Style `authors`: the last level, a single place, has
    plain 1×1 heads. Style `torchvision`: all heads are separable, and the BN of extra levels and heads has eps 1e-3 and
    momentum 0.03. Extra levels start like the backbone, the heads with Xavier-uniform weights and zero biases. After
    `freeze_backbone()` only extra levels and heads are trained.
    """

    def __init__(
        self,
        plan: NetworkPlan,
        *,
        num_classes: int,
        style: PriorStyle = "authors",
        image_size: int = IMAGE_SIZE,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        if plan.shape != "imagenet":
            raise UsageError(
                f"--network {plan.shape}: a detector needs maps at 1/16 and 1/32 of the image, which the shape "
                "imagenet has; give --network imagenet, or weights of that shape"
            )
        self.num_classes, self.style, self.image_size = num_classes, style, image_size
        self.backbone = build_backbone(plan, in_channels)
        wide_inside = isinstance(plan.trained, Model) and plan.trained.family.wide_inside
        extras = SANDGLASS_EXTRAS if wide_inside else INVERTED_EXTRAS
        C_fine, C_coarse, C = self.backbone.map_channels
        channels = [C_fine, C_coarse]
        self.extras = nn.ModuleList()
        for level in extras.levels:
            self.extras.append(extras.block(C, level))
            channels.append(C := level.channels)
        separable = [style != "authors" or level < NUM_LEVELS - 1 for level in range(NUM_LEVELS)]
        self.class_heads, self.box_heads = (
            nn.ModuleList(head(C, BOXES_PER_PLACE * size, whole) for C, whole in zip(channels, separable, strict=True))
            for size in (1 + num_classes, 4)
        )
        self.frozen = False
        self._initialise(style)

    def freeze_backbone(self) -> None:
        """Keep weights and BatchNorm statistics of the backbone as they are."""
        self.frozen = True
        self.backbone.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> "SSDLite":
        """Train mode, of a frozen backbone's BatchNorm and drop path never."""
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self

    def _initialise(self, style: PriorStyle) -> None:
        for layer in self.extras.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out")
        for layer in (*self.class_heads.modules(), *self.box_heads.modules()):
            if isinstance(layer, nn.Conv2d):
                nn.init.xavier_uniform_(layer.weight)
                assert layer.bias is not None
                nn.init.zeros_(layer.bias)
        if style == "torchvision":
            for part in (self.extras, self.class_heads, self.box_heads):
                for layer in part.modules():
                    if isinstance(layer, nn.BatchNorm2d):
                        layer.eps, layer.momentum = 1e-3, 0.03

    def forward(self, x: Tensor) -> tuple[DetectorOutputs, None]:
        fine, coarse, x = self.backbone.maps(x)
        maps = [fine, coarse]
        for extra in self.extras:
            x = extra(x)
            maps.append(x)
        logits, offsets = (
            torch.cat([self._by_prior(layer(x), size) for layer, x in zip(heads, maps, strict=True)], dim=1)
            for heads, size in ((self.class_heads, 1 + self.num_classes), (self.box_heads, 4))
        )
        return DetectorOutputs(logits, offsets), None

    @staticmethod
    def _by_prior(x: Tensor, size: int) -> Tensor:
        """(N, 6 · size, H, W) to (N, H · W · 6, size), the order of the prior boxes."""
        return x.permute(0, 2, 3, 1).unflatten(3, (BOXES_PER_PLACE, size)).flatten(1, 3)
