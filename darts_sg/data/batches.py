"""Batches of normalised images, augmented as a whole on the device that holds the images.

The augmentation is that of DARTS on CIFAR-10 (Liu et al., ICLR 2019, section 3): random crops of the zero-padded
image, horizontal flips, and cutout (DeVries and Taylor, 2017) after normalisation. RandAugment, random erasing, mixup
and CutMix are options (`rand_augment.py`, `mixing.py`). Images read from files get random
resized crops instead; the worker processes crop and flip them (`darts_sg.data.stream`).
"""

import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from darts_sg.data.colour import ColourDraws, colour_jitter, draw_colours
from darts_sg.data.generator import keyed_generator, keyed_numpy
from darts_sg.data.mixing import MixDraws, draw_erasing, draw_mixing, erase_, mix, mix_labels
from darts_sg.data.rand_augment import OperationDraws, draw_operations, rand_augment
from darts_sg.data.spec import DataSpec, Images, ImageSet
from darts_sg.data.stream import BOXES_HINT, FileReader, ImageFiles, RandomCrops, Stream
from darts_sg.errors import UsageError


@dataclass(frozen=True)
class Augment:
    """The augmentation of training images."""

    crop_padding: int = 4
    """Black pixels added on each side before a random crop to the original size; 0 for no crop."""
    flip: bool = True
    """Mirror each image with probability 1/2, if the data set allows it (`DataSpec.flip`)."""
    cutout_length: int = 0
    """Side in pixels of a square set to the mean, centred anywhere in the image, clipped at the border; 0 for none."""
    cutout_growth: int = 0
    """Passes through the images over which the probability of cutout grows linearly from 0 to 1; 0 for always 1."""
    colour_jitter: float = 0.0
    """Brightness, contrast and saturation change by factors within 1 ± this, the hue by up to half of it in turns."""
    rand_augment: int = 0
    """Number of operations of RandAugment on each image; 0 for none."""
    rand_augment_magnitude: int = 9
    """Their strength, from 0 to 30."""
    random_erasing: float = 0.0
    """Probability with which a rectangle of an image is set to the mean."""
    mixup: float = 0.0
    """α of mixup, which mixes images in pairs; 0 for none."""
    cutmix: float = 0.0
    """α of CutMix; 0 for none. With mixup as well each image takes one of them."""

    @property
    def mixes(self) -> bool:
        """True if images are mixed: targets are then shares of the classes."""
        return bool(self.mixup or self.cutmix)

    def __post_init__(self) -> None:
        if self.crop_padding < 0 or self.cutout_length < 0 or self.colour_jitter < 0:
            raise ValueError("crop_padding, cutout_length and colour_jitter must not be negative")


@dataclass(frozen=True)
class Draws:
    """The random choices for one batch, on the CPU."""

    offsets: Tensor
    """int64 (B, 2): row and column of the crop in the padded image."""
    flips: Tensor
    """bool (B,)."""
    centres: Tensor
    """int64 (B, 2): row and column of the centre of the cutout."""
    cut: Tensor | None = None
    """bool (B,): whether the image is cut; None for all."""


class TrainBatches:
    """An endless stream of training batches: every image once a pass, in random order, randomly augmented.

    Stateless: `batches[position]` depends on the arguments only, so a resumed run gets the same bits at any position,
    and two streams with one seed are independent. The last batch of a pass may be smaller. Each rank gets its share of
    every batch, augmented as it would be in the whole batch.
    """

    def __init__(
        self,
        images: Images,
        spec: DataSpec,
        batch_size: int,
        augment: Augment,
        seed: int,
        stream: str,
        rank: int = 0,
        num_ranks: int = 1,
    ) -> None:
        if len(images) == 0 or batch_size < 1:
            raise ValueError(f"no batches of {batch_size} from {len(images)} images")
        if augment.colour_jitter and spec.in_channels != 3:
            raise UsageError(f"colour jitter is for colour images, and those of {spec.name} are grey: leave it out")
        self.images = images
        self.spec = spec
        self.batch_size = batch_size
        self.augment = augment
        self.seed = seed
        self.stream = stream
        self.rank, self.num_ranks = rank, num_ranks
        self._order: tuple[int, Tensor] | None = None
        self._files: Stream | None = None
        if isinstance(images, ImageFiles):
            own = weakref.proxy(self)  # without a reference cycle the workers end as soon as this object is released
            self._files = Stream(images, lambda position: own.keys(position), self._reader(images))

    def __len__(self) -> int:
        """Batches in one pass."""
        return -(-len(self.images) // self.batch_size)

    def num_images(self, position: int) -> int:
        """Images in batch `position`, over all ranks."""
        return min(self.batch_size, len(self.images) - position % len(self) * self.batch_size)

    def __getitem__(self, position: int) -> tuple[Tensor, Tensor]:
        """This rank's share of batch `position`, counted from 0 through all passes.

        Returns the images, float32 (B, C, H, W) in channels_last, normalised, and their labels, int64 (B,);
        mixed images have shares of the classes instead, float32 (B, num_classes).
        """
        if position < 0:
            raise IndexError(f"position {position} is negative")
        draws = self.own_draws(position)
        pixels, labels = self._pixels(position, draws) if self._files is None else self._files[position]
        if self.augment.rand_augment:
            pixels = rand_augment(pixels, self._operations(position), self.augment.rand_augment_magnitude)
        colours = None
        if self.augment.colour_jitter:
            generator = keyed_generator(self.seed, self.stream, "colour", position)
            drawn = draw_colours(self.num_images(position), self.augment.colour_jitter, generator)
            colours = ColourDraws(*(part[self.needed(position)] for part in drawn))
        x = normalise(pixels, self.spec, colours)
        if self.augment.cutout_length:
            cutout_(x, draws.centres, self.augment.cutout_length, draws.cut)
        if self.augment.random_erasing:
            erase_(x, self._erased(position))
        return self._mixed(x, labels, position) if self.augment.mixes else (x, labels)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of the first pass."""
        return (self[position] for position in range(len(self)))

    def share(self, position: int) -> slice:
        """This rank's part of the batch at `position`."""
        total = self.num_images(position)
        return slice(total * self.rank // self.num_ranks, total * (self.rank + 1) // self.num_ranks)

    def needed(self, position: int) -> slice | Tensor:
        """The places in the batch at `position` that this rank makes.

        They are its share, and where images are mixed the next one of another rank, which it mixes its last one with.
        """
        share, total = self.share(position), self.num_images(position)
        if not self.augment.mixes or share.stop - share.start == total:
            return share
        return torch.arange(share.start, share.stop + 1) % total

    def indices(self, position: int) -> Tensor:
        """The images that this rank needs of the batch at `position`, int64 (B,)."""
        number, step = divmod(position, len(self))
        order, needed = self.order(number)[step * self.batch_size :], self.needed(position)
        return order[needed if isinstance(needed, slice) else needed.to(order.device)]

    def keys(self, position: int) -> list[tuple[int, int]]:
        """(pass, image) for each image that this rank needs of the batch."""
        return [(position // len(self), index) for index in self.indices(position).tolist()]

    def order(self, number: int) -> Tensor:
        """The permutation of pass `number`, int64 (N,) on the device of the images."""
        if self._order is None or self._order[0] != number:
            generator = keyed_generator(self.seed, self.stream, "order", number)
            order = torch.randperm(len(self.images), generator=generator)
            self._order = number, order.to(self.images.labels.device)
        return self._order[1]

    def draws(self, position: int, num_images: int) -> Draws:
        """The random choices for the whole batch at `position`.

        All of them are drawn even if the augmentation does not use them, so that switching off one part of it leaves
        the others unchanged.
        """
        generator = keyed_generator(self.seed, self.stream, "augment", position)
        flips = torch.rand(num_images, generator=generator) < 0.5
        size = self.spec.image_size
        centres = torch.randint(size, (num_images, 2), generator=generator)
        offsets = torch.randint(2 * self.augment.crop_padding + 1, (num_images, 2), generator=generator)
        if not self.augment.cutout_growth:
            return Draws(offsets, flips, centres)
        probability = position // len(self) / max(1, self.augment.cutout_growth - 1)
        return Draws(offsets, flips, centres, torch.rand(num_images, generator=generator) < probability)

    def own_draws(self, position: int) -> Draws:
        """The random choices for the images that this rank needs of the batch at `position`."""
        draws, share = self.draws(position, self.num_images(position)), self.needed(position)
        cut = None if draws.cut is None else draws.cut[share]
        return Draws(draws.offsets[share], draws.flips[share], draws.centres[share], cut)

    def _operations(self, position: int) -> OperationDraws:
        """The operations of RandAugment on the images that this rank needs."""
        generator = keyed_generator(self.seed, self.stream, "RandAugment", position)
        drawn = draw_operations(self.num_images(position), self.augment.rand_augment, generator)
        return OperationDraws(*(part[self.needed(position)] for part in drawn))

    def _erased(self, position: int) -> Tensor:
        """The boxes of random erasing in the images that this rank needs."""
        random = keyed_numpy(self.seed, self.stream, "erasing", position)
        boxes = draw_erasing(self.num_images(position), self.spec.image_size, self.augment.random_erasing, random)
        return boxes[self.needed(position)]

    def mixing(self, position: int) -> MixDraws:
        """The random choices of mixing for the whole batch at `position`."""
        random = keyed_numpy(self.seed, self.stream, "mixing", position)
        size, augment = self.spec.image_size, self.augment
        return draw_mixing(self.num_images(position), size, augment.mixup, augment.cutmix, random)

    def _mixed(self, x: Tensor, labels: Tensor, position: int) -> tuple[Tensor, Tensor]:
        """This rank's share, each image mixed with the next one of the batch; targets float32 (B, num_classes)."""
        share = self.share(position)
        draws = MixDraws(*(part[share] for part in self.mixing(position)))
        size = share.stop - share.start
        own, next_to = slice(0, size), torch.arange(1, size + 1, device=x.device) % len(x)
        mixed = mix(x[own], x[next_to], draws)
        return mixed, mix_labels(labels[own], labels[next_to], draws, self.spec.num_classes)

    def _reader(self, images: ImageFiles) -> FileReader:
        """Reads the images of a set in files. UsageError if they have no label each."""
        if images.has_boxes:
            raise UsageError(f"the images of {self.spec.name} have boxes instead of one label each: {BOXES_HINT}")
        return FileReader(images, RandomCrops(self.seed, self.stream, self.augment.flip and self.spec.flip))

    def _pixels(self, position: int, draws: Draws) -> tuple[Tensor, Tensor]:
        """Cropped and flipped images in memory, uint8 (B, H, W, C), and their labels."""
        assert isinstance(self.images, ImageSet)
        indices = self.indices(position)
        flips = draws.flips if self.augment.flip and self.spec.flip else torch.zeros_like(draws.flips)
        pixels = crop_and_flip(self.images.images[indices], draws.offsets, flips, self.augment.crop_padding)
        return pixels, self.images.labels[indices]


def evaluation_batches(
    images: Images, spec: DataSpec, batch_size: int, rank: int = 0, num_ranks: int = 1
) -> Iterator[tuple[Tensor, Tensor]]:
    """Every image once, in order, normalised but not augmented; shapes as in `TrainBatches`. Ranks take turns."""
    for pixels, labels in images.parts(batch_size, rank, num_ranks):
        yield normalise(pixels, spec), labels


def crop_and_flip(images: Tensor, offsets: Tensor, flips: Tensor, padding: int) -> Tensor:
    """Pad with black, crop back to the original size at `offsets`, and mirror where `flips`.

    images: uint8 (B, H, W, C); offsets: int64 (B, 2) within 0..2·padding; flips: bool (B,). Returns (B, H, W, C).
    """
    batch, height, width, _ = images.shape
    # the two small index tensors are made on the CPU, where the draws are
    rows = offsets[:, :1] + torch.arange(height)  # (B, H)
    columns = torch.arange(width).expand(batch, width)
    columns = offsets[:, 1:] + torch.where(flips[:, None], width - 1 - columns, columns)  # (B, W)
    device = images.device
    if padding:
        images = F.pad(images, (0, 0, padding, padding, padding, padding))
    image = torch.arange(batch, device=device)
    return images[image[:, None, None], sent(rows, device)[:, :, None], sent(columns, device)[:, None, :]]


def sent(drawn: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor from the CPU to the device; to a GPU asynchronously, without waiting for its queue."""
    return drawn.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else drawn.to(device)


@cache
def constant(values: tuple[float, ...], device: torch.device) -> Tensor:
    """The values as a tensor on the device, cached so that they are copied once."""
    return torch.tensor(values, device=device)


def normalise(images: Tensor, spec: DataSpec, colours: ColourDraws | None = None) -> Tensor:
    """(pixel / 255 − mean) / std, after a colour jitter by `colours`.

    uint8 (B, H, W, C) to float32 (B, C, H, W) in channels_last.
    """
    mean, std = constant(spec.mean, images.device), constant(spec.std, images.device)
    x = images.float().div_(255)
    if colours is not None:
        x = colour_jitter(x, colours)
    x = x.sub_(mean).div_(std)
    return x.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)


def cutout_(x: Tensor, centres: Tensor, length: int, cut: Tensor | None = None) -> Tensor:
    """Zero a square of side `length` around each centre in place, clipped at the border.

    x: (B, C, H, W); centres: int64 (B, 2), row and column; cut: bool (B,), the images to treat, by default all. The
    square starts length // 2 before the centre.
    """
    spans = []
    for axis, size in enumerate(x.shape[2:]):
        start = centres[:, axis : axis + 1] - length // 2
        at = torch.arange(size)
        inside = (at >= start) & (at < start + length)  # (B, size)
        spans.append(sent(inside if cut is None else inside & cut[:, None], x.device))
    rows, columns = spans
    return x.masked_fill_((rows[:, :, None] & columns[:, None, :])[:, None], 0.0)
