"""Batches of detection images and their objects, read and augmented ahead of the steps.

Positions, order, ranks and workers are those of `darts_sg.data.batches` and `darts_sg.data.stream`: a batch depends on
its position and the seed alone.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from darts_sg.data.batches import Augment, TrainBatches, normalise
from darts_sg.data.detection.augment import SSD, BoxAugment, carry_out, make_plan, warp
from darts_sg.data.detection.objects import DetectionImages, Objects, as_objects
from darts_sg.data.generator import keyed_seed
from darts_sg.data.spec import DataSpec
from darts_sg.data.stream import USUAL, FileReader, ImageFiles, Key, Stream, refuse_bomb, to_rgb
from darts_sg.files import refuse_irregular


def read_image(path: str) -> tuple[np.ndarray, str]:
    """An image at its original size, uint8 (H, W, 3), and its kind if that is unusual; raises one of UNREADABLE.

    The orientation in the EXIF data is ignored: boxes are drawn on the pixels as they are stored.
    """
    refuse_irregular(path)
    with Image.open(path) as image:
        refuse_bomb(image, path)
        kind = f"{image.format} {image.mode}"
        return np.array(to_rgb(image)), "" if kind == USUAL else kind


class BoxReader(FileReader):
    """Reads single images with their objects in a worker process."""

    def __init__(self, files: DetectionImages, augment: BoxAugment | None, seed: int = 0, stream: str = "") -> None:
        """augment: None for an evaluation, which sees all objects and whole images."""
        super().__init__(files, None)
        self.table, self.augment, self.seed, self.stream = files.table, augment, seed, stream
        self.replace = augment is not None and files.reading.damaged == "skip"

    def draw(self, key: Key) -> Callable[[str, int], tuple[np.ndarray, str, Any]]:
        number, index = key

        def read(path: str, at: int) -> tuple[np.ndarray, str, Any]:
            boxes, labels, difficult, crowd, area = self.table[at]
            refuse_irregular(path)
            with Image.open(path) as image:
                refuse_bomb(image, path)
                size, kind = image.size, f"{image.format} {image.mode}"
                kind = "" if kind == USUAL else kind
                if self.augment is None:
                    if self.reduced:
                        image.draft(None, (2 * self.size, 2 * self.size))
                    shares = boxes / np.array(size * 2, np.float32)
                    return (
                        warp(to_rgb(image), self.size),
                        kind,
                        (size, (shares, labels, difficult, crowd, area)),
                    )
                random = np.random.default_rng(keyed_seed(self.seed, self.stream, f"boxes of {index}", number))
                # objects that an evaluation does not ask for are not trained on
                wanted = np.flatnonzero(~(difficult | crowd))
                plan = make_plan(*size, boxes[wanted], self.augment, random)
                pixels, factor = read_reduced(image, plan.reduction(self.size), decoding=self.reduced)
            kept = wanted[plan.kept]
            target = size, (plan.shares, labels[kept], difficult[kept], crowd[kept], area[kept])
            return carry_out(plan, pixels, self.size, factor), kind, target

        return read


def read_reduced(image: Image.Image, factor: int, *, decoding: bool) -> tuple[np.ndarray, int]:
    """The pixels of an opened image, uint8 (H, W, 3), averaged over squares of up to `factor` pixels a side, and the
    side of these squares. `decoding`: also decode JPEGs at 1/2, 1/4 or 1/8, faster and with slightly different pixels.

    All that follows takes less time on large photographs, such as those of 12 megapixels.
    """
    decoded = 1
    if decoding and factor > 1:
        width = image.width
        image.draft(None, (math.ceil(width / factor), math.ceil(image.height / factor)))
        decoded = round(width / image.width)
    rgb = to_rgb(image)
    rest = factor // decoded
    return np.asarray(rgb.reduce(rest) if rest > 1 else rgb), max(1, rest) * decoded


class DetectionBatches(TrainBatches):
    """An endless stream of training batches of images and objects, as `TrainBatches` is one of images and labels.

    Difficult objects and crowds are left out; an image without objects stays.
    """

    def __init__(
        self,
        images: DetectionImages,
        spec: DataSpec,
        batch_size: int,
        augment: BoxAugment = SSD,
        seed: int = 0,
        stream: str = "weights",
        rank: int = 0,
        num_ranks: int = 1,
    ) -> None:
        self.box_augment = augment
        super().__init__(images, spec, batch_size, Augment(), seed, stream, rank, num_ranks)

    def __getitem__(self, position: int) -> tuple[Tensor, Any]:
        """This rank's share of batch `position`.

        Returns the images, float32 (B, 3, S, S) in channels_last, normalised, and a list of B `Objects` whose boxes are
        shares of the sides, from 0 to 1.
        """
        if position < 0:
            raise IndexError(f"position {position} is negative")
        assert self._files is not None
        return prepared(self._files, position, self.spec)

    def _reader(self, images: ImageFiles) -> FileReader:
        assert isinstance(images, DetectionImages)
        return BoxReader(images, self.box_augment, self.seed, self.stream)


def detection_evaluation_batches(
    images: DetectionImages, spec: DataSpec, batch_size: int, rank: int = 0, num_ranks: int = 1
) -> Iterator[tuple[Tensor, list[Objects]]]:
    """Every readable image once, in order, warped to a square but not augmented, with all its objects.

    Shapes as in `DetectionBatches`; `Objects.width` and `height` are the sides of the original, and `area` counts its
    pixels. Ranks take turns.
    """
    starts = range(rank * batch_size, len(images), num_ranks * batch_size)
    stream = Stream(
        images,
        lambda position: [(0, i) for i in range(starts[position], min(starts[position] + batch_size, len(images)))],
        BoxReader(images, None),
        len(starts),
    )
    for position in range(len(starts)):
        x, targets = prepared(stream, position, spec)
        if targets:
            yield x, targets
    stream.stop()


def prepared(stream: Stream, position: int, spec: DataSpec) -> tuple[Tensor, list[Objects]]:
    """The batch at `position`: normalised images, and their objects, on the device of the images."""
    images = stream.files
    assert isinstance(images, DetectionImages)
    batch = stream.read(position)
    x = normalise(batch.pixels.to(images.device, non_blocking=True), spec)
    targets = [
        as_objects(arrays, images.name(index), *size).to(images.device)
        for index, (size, arrays) in zip(batch.indices, batch.targets, strict=True)
    ]
    return x, targets
