"""Augmentation of detection images: colours, expansion, crops and flips, with the boxes following the pixels.

The steps and their numbers are those of SSD (Liu et al., ECCV 2016, section 2.2) as the public PyTorch codebases have
them, in this order: photometric changes, expansion, crop by IoU, mirror, warp to a square. Differences that speed
allows: the photometric changes are computed on the pixels that the crop keeps, which gives the same pixels, for they
treat each pixel alone; values are cut to 0..255 and rounded after them; the warp averages over the pixels that it
merges (Pillow's bilinear filter).
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image

from darts_sg.registry import Registry

FILL = (123, 117, 104)
"""The colour around an expanded image: the mean of ImageNet, RGB."""
ROUNDS = 50
"""Overlaps tried one after another before the image stays whole."""


@dataclass(frozen=True)
class BoxAugment:
    """The augmentation of training images and their boxes: steps and their probabilities."""

    photometric: float = 0.0
    """Probability of each of: brightness, contrast, saturation, hue, channel order."""
    brightness: float = 32.0
    """Largest number added to all pixels, of 255, up or down."""
    contrast: tuple[float, float] = (0.5, 1.5)
    """Range of the factor of all pixels, applied before or after saturation and hue."""
    saturation: tuple[float, float] = (0.5, 1.5)
    hue: float = 18.0
    """Largest turn in degrees, either way."""
    expansion: float = 0.0
    """Probability that the image is placed on a larger canvas, which makes objects smaller."""
    largest_expansion: float = 4.0
    """Longest sides of the canvas, in sides of the image."""
    overlaps: tuple[float | None, ...] = ()
    """Crops are drawn with one of these: the smallest IoU that the best box has with the crop; None leaves the image
    whole. Empty for no crops."""
    tries: int = 50
    """Crops drawn for an overlap before another one is chosen."""
    mirror: float = 0.0
    """Probability of a horizontal flip."""


NONE = BoxAugment()
SSD = BoxAugment(photometric=0.5, expansion=0.5, overlaps=(None, 0.1, 0.3, 0.7, 0.9, 0.0), mirror=0.5)
CROP_AND_FLIP = BoxAugment(overlaps=(None, 0.0, 0.1, 0.3, 0.5, 0.7, 0.9), tries=40, mirror=0.5)
"""The augmentation of torchvision's SSDLite."""

BOX_AUGMENTS: Registry[BoxAugment] = Registry("augmentation of boxes")
BOX_AUGMENTS.add("ssd", SSD)
BOX_AUGMENTS.add("crop", CROP_AND_FLIP)
BOX_AUGMENTS.add("mirror", BoxAugment(mirror=0.5))
BOX_AUGMENTS.add("none", NONE)


class View(NamedTuple):
    """The part of the plane that becomes the training image, in pixels of the original, which starts at (0, 0)."""

    left: float
    top: float
    width: float
    height: float


class Plan(NamedTuple):
    """The random choices for one image, made before it is decoded."""

    view: View
    mirrored: bool
    colours: "Colours | None"
    kept: np.ndarray
    """int64 (m,): the indices of the objects whose centre is in view."""
    shares: np.ndarray
    """float32 (m, 4): their boxes, cut at the border, as shares of the sides."""

    def reduction(self, size: int) -> int:
        """By which whole number an image may be reduced so that the view still has twice the pixels of its square."""
        return max(1, int(min(self.view.width, self.view.height) / (2 * size)))


def make_plan(width: int, height: int, boxes: np.ndarray, augment: BoxAugment, random: np.random.Generator) -> Plan:
    """Random choices for an image with these boxes, (n, 4) in pixels."""
    colours = draw_colours(augment, random)  # before all else: what geometry draws depends on the boxes
    canvas = expand(width, height, augment, random)
    view = crop(canvas, boxes, augment, random)
    mirrored = augment.mirror > 0 and random.random() < augment.mirror
    return Plan(view, mirrored, colours, *follow(boxes, view, mirrored=mirrored))


def carry_out(plan: Plan, pixels: np.ndarray, size: int, factor: float = 1) -> np.ndarray:
    """The augmented image, uint8 (size, size, 3). pixels: uint8 (H, W, 3), at 1 / `factor` of the planned size."""
    view = View(*(number / factor for number in plan.view))
    picture = render(pixels, view, size, plan.colours)
    return np.ascontiguousarray(picture[:, ::-1]) if plan.mirrored else picture


def augmented(
    pixels: np.ndarray, boxes: np.ndarray, augment: BoxAugment, size: int, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A random view of an image, and its objects.

    pixels: uint8 (H, W, 3); boxes: (n, 4) in pixels. Returns the pixels, uint8 (size, size, 3); the indices of the
    objects whose centre is in view, (m,); and their boxes, float32 (m, 4), cut at the border, as shares of the sides.
    """
    plan = make_plan(pixels.shape[1], pixels.shape[0], boxes, augment, random)
    return carry_out(plan, pixels, size), plan.kept, plan.shares


def expand(width: int, height: int, augment: BoxAugment, random: np.random.Generator) -> View:
    """The canvas that the image is placed on: a random multiple of its size, with the image anywhere in it."""
    whole = View(0, 0, width, height)
    if not augment.expansion or random.random() >= augment.expansion:
        return whole
    ratio = random.uniform(1, augment.largest_expansion)
    left, top = random.uniform(0, width * ratio - width), random.uniform(0, height * ratio - height)
    return View(-float(int(left)), -float(int(top)), float(int(width * ratio)), float(int(height * ratio)))


def crop(canvas: View, boxes: np.ndarray, augment: BoxAugment, random: np.random.Generator) -> View:
    """A random part of the canvas that has the centre of an object in it and overlaps an object enough.

    Sides are 0.3 to 1 of the canvas's, the aspect ratio 1/2 to 2. An image without objects stays whole.
    """
    if not augment.overlaps or not len(boxes):
        return canvas
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2  # (n, 2)
    start, sides = np.array((canvas.left, canvas.top)), np.array((canvas.width, canvas.height))
    for _ in range(ROUNDS):
        overlap = augment.overlaps[random.integers(len(augment.overlaps))]
        if overlap is None:
            return canvas
        shares = random.random((augment.tries, 4))  # all tries of a round at once
        extent = sides * (0.3 + 0.7 * shares[:, :2])  # (tries, 2)
        ratio = extent[:, 1] / extent[:, 0]
        low = start + np.floor(shares[:, 2:] * (sides - extent))
        extent = np.floor(extent).clip(min=1)
        inside = (centres > low[:, None]) & (centres < (low + extent)[:, None])  # (tries, n, 2)
        best = overlaps(boxes, np.concatenate([low, low + extent], axis=1)).max(axis=1)
        suits = (ratio >= 0.5) & (ratio <= 2) & inside.all(axis=2).any(axis=1) & (best >= overlap)
        if suits.any():
            first = int(suits.argmax())
            return View(*low[first].tolist(), *extent[first].tolist())
    return canvas


def overlaps(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """The IoU of each box, (n, 4), with each of the others, (m, 4): (m, n)."""
    shared = np.minimum(boxes[:, 2:], others[:, None, 2:]) - np.maximum(boxes[:, :2], others[:, None, :2])
    intersection = shared.clip(min=0).prod(axis=2)
    areas = [(corners[:, 2:] - corners[:, :2]).prod(axis=1) for corners in (boxes, others)]
    return intersection / (areas[0] + areas[1][:, None] - intersection)


def follow(boxes: np.ndarray, view: View, *, mirrored: bool) -> tuple[np.ndarray, np.ndarray]:
    """The objects whose centre is in view: their indices, and their boxes as shares of the view, cut at its border."""
    shares = (boxes - np.tile((view.left, view.top), 2)) / np.tile((view.width, view.height), 2)
    centres = (shares[:, :2] + shares[:, 2:]) / 2
    kept = np.flatnonzero(((centres > 0) & (centres < 1)).all(axis=1))
    shares = shares[kept].clip(0, 1)
    if mirrored:
        shares[:, 0::2] = 1 - shares[:, 2::-2]
    return kept, shares.astype(np.float32)


def render(pixels: np.ndarray, view: View, size: int, colours: "Colours | None") -> np.ndarray:
    """The view, warped to uint8 (size, size, 3); FILL where it reaches beyond the image."""
    height, width, _ = pixels.shape
    x, y = _spans(view.left, view.width, width, size), _spans(view.top, view.height, height, size)
    part = pixels[y.image, x.image]
    if not part.size:
        return np.full((size, size, 3), FILL, np.uint8)
    if colours is not None:
        part = recolour(part, colours)
    if x.canvas == part.shape[1] and y.canvas == part.shape[0]:
        canvas = np.ascontiguousarray(part)
    else:
        canvas = np.empty((y.canvas, x.canvas, 3), np.uint8)
        canvas[:] = FILL
        canvas[y.place, x.place] = part
    out = x.out.stop - x.out.start, y.out.stop - y.out.start
    box = x.box[0], y.box[0], x.box[1], y.box[1]
    warped = np.asarray(Image.fromarray(canvas).resize(out, Image.Resampling.BILINEAR, box=box))
    # only what lies around the image is resampled: of an expanded image the rest would take most of the time
    square = np.empty((size, size, 3), np.uint8)
    if warped.shape != square.shape:
        square[:] = FILL
    square[y.out, x.out] = warped
    return square


class _Spans(NamedTuple):
    """Where the image lies along one axis of a view."""

    image: slice
    """The pixels of the image that are in view."""
    out: slice
    """The pixels of the warped view that these reach, with one more on each side."""
    canvas: int
    """Pixels of a canvas that has all that flows into `out`."""
    place: slice
    """The image on the canvas."""
    box: tuple[float, float]
    """The part of the canvas that becomes `out`."""


def _spans(start: float, length: float, image: int, size: int) -> _Spans:
    """For a view of `length` pixels from `start` on, of an image of `image` pixels, warped to `size`."""
    low, high = math.floor(start), math.ceil(start + length)
    first = max(0, low)
    last = max(first, min(image, high))
    scale = length / size
    out = slice(max(0, math.floor((first - start) / scale) - 1), min(size, math.ceil((last - start) / scale) + 1))
    box = start + out.start * scale, start + out.stop * scale
    reach = max(scale, 1.0) + 1  # the filter's, and one for rounding
    begin, end = max(low, math.floor(box[0] - reach)), min(high, math.ceil(box[1] + reach))
    place = slice(first - begin, last - begin)
    inner = max(0.0, box[0] - begin), min(float(end - begin), box[1] - begin)
    return _Spans(slice(first, last), out, end - begin, place, inner)


def warp(pixels: np.ndarray | Image.Image, size: int) -> np.ndarray:
    """The whole image as a square, uint8 (size, size, 3), whatever its aspect ratio."""
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(np.ascontiguousarray(pixels))
    return np.array(image.resize((size, size), Image.Resampling.BILINEAR))


class Colours(NamedTuple):
    """The photometric changes of one image; neutral values change nothing."""

    brightness: float
    contrast: float
    contrast_first: bool
    """True: contrast changes before saturation and hue; false: after them."""
    saturation: float
    hue: float
    """In degrees."""
    channels: tuple[int, int, int]


def draw_colours(augment: BoxAugment, random: np.random.Generator) -> Colours | None:
    """Random photometric changes; None if the augmentation has none."""
    if not augment.photometric:
        return None
    chosen = random.random(6) < (augment.photometric,) * 5 + (0.5,)
    brightness = random.uniform(-augment.brightness, augment.brightness)
    contrast, saturation = random.uniform(*augment.contrast), random.uniform(*augment.saturation)
    hue = random.uniform(-augment.hue, augment.hue)
    first, second, third = random.permutation(3).tolist()
    return Colours(
        brightness if chosen[0] else 0.0,
        contrast if chosen[1] else 1.0,
        bool(chosen[5]),
        saturation if chosen[2] else 1.0,
        hue if chosen[3] else 0.0,
        (first, second, third) if chosen[4] else (0, 1, 2),
    )


def recolour(pixels: np.ndarray, colours: Colours) -> np.ndarray:
    """The pixels, uint8 (H, W, 3), after these changes."""
    x = np.ascontiguousarray(pixels.transpose(2, 0, 1)).astype(np.float32)  # (3, H, W): channels are fast to compare
    if colours.brightness:
        x += np.float32(colours.brightness)
    if colours.contrast_first and colours.contrast != 1:
        x *= np.float32(colours.contrast)
    if colours.saturation != 1:
        # scaling the saturation in HSV scales the distance of each channel from the largest one, the value
        value = np.maximum(np.maximum(x[0], x[1]), x[2])
        x -= value
        x *= np.float32(colours.saturation)
        x += value
    if colours.hue:
        x = turn_hue(x, colours.hue)
    if not colours.contrast_first and colours.contrast != 1:
        x *= np.float32(colours.contrast)
    x = x[list(colours.channels)]
    np.rint(x.clip(0, 255, out=x), out=x)
    return np.ascontiguousarray(x.astype(np.uint8).transpose(1, 2, 0))


def turn_hue(x: np.ndarray, degrees: float) -> np.ndarray:
    """RGB pixels (3, H, W) with their hue in HSV turned; value and saturation stay."""
    red, green, blue = x
    value = np.maximum(np.maximum(red, green), blue)
    chroma = value - np.minimum(np.minimum(red, green), blue)
    scale = np.float32(1) / np.where(chroma > 0, chroma, np.float32(1))
    # the hue in sixths of a turn: from red, green or blue, whichever is largest
    hue = np.where(value == green, (blue - red) * scale + np.float32(2), (red - green) * scale + np.float32(4))
    hue = np.where(value == red, (green - blue) * scale, hue)
    hue += np.float32(degrees / 60)
    turned = np.empty_like(x)
    for channel, offset in enumerate((5, 3, 1)):
        k = hue + np.float32(offset)
        k -= np.float32(6) * np.floor(k / np.float32(6))
        np.minimum(k, np.float32(4) - k, out=k)
        turned[channel] = value - chroma * k.clip(0, 1, out=k)
    return turned
