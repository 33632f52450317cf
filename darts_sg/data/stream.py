"""Data sets that do not fit into memory: worker processes read, crop and resize image files ahead of the steps."""

import atexit
import logging
import math
import os
import signal
import struct
import warnings
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils import data as torch_data

from darts_sg.data.generator import keyed_generator
from darts_sg.data.memory import available_memory, shared_memory
from darts_sg.errors import RunError
from darts_sg.files import refuse_irregular

logger = logging.getLogger(__name__)

UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)
"""Errors of Pillow's decoders on damaged files. An OSError with an errno comes from the system, not from the file."""
DAMAGED = "damaged"
USUAL = "JPEG RGB"
CROP_AREA = 0.08, 1.0
CROP_RATIO = 3 / 4, 4 / 3
CROP_TRIES = 10
KEPT_SIDE = 224 / 256
"""Share of the shorter side kept in evaluation: the middle 224 pixels of an image resized to 256."""
BATCHES_AHEAD = 2
"""Batches that each worker reads ahead (PyTorch's default)."""
MEMORY_PART, SHARED_MEMORY_PART = 8, 4
"""Batches read ahead take at most 1/8 of the memory available and 1/4 of the free shared memory."""
LARGE_IMAGE = 2**25
"""Pixels from which on the size of a file is looked at."""
MOST_COMPRESSED = 500
"""Pixels for a byte of file: photographs have 2 to 20, a single colour up to 1,000."""
BOXES_HINT = "choose --task detection"
"""Ends the message about images with boxes where labels are needed."""
MOST_IN_A_ROW = 100
"""Unreadable files in a row after which the run ends: then it is not single files that are damaged."""

Box = tuple[float, float, float, float]
"""Left, top, right and bottom in pixels."""
Key = tuple[int, int]
"""The number of the pass and the index of an image in its set."""


@dataclass(frozen=True)
class Reading:
    """How image files are read. Of these options only `reduced` changes the pixels of intact files."""

    workers: int = 0
    """Processes that read ahead; with 0 the main process reads."""
    damaged: Literal["skip", "stop"] = "skip"
    """skip: replace a damaged training image by the next readable one, leave a damaged test image out. stop: end the
    run."""
    reduced: bool = False
    """Decode JPEGs at 1/2, 1/4 or 1/8 of their size, as long as that is not below the size needed."""


class UnusualImages(dict[str, str]):
    """The images found so far that are damaged or no RGB JPEG: their names, and what they are.

    It grows while images are read. All parts of a data set share one.
    """

    def replace(self, found: Mapping[str, str]) -> None:
        """Hold exactly `found`, sorted by name."""
        self.clear()
        self.update(sorted(found.items()))


@dataclass(frozen=True, eq=False)
class ImageFiles:
    """A labelled set of image files, read and cropped to squares on demand."""

    has_boxes: ClassVar[bool] = False
    """Whether the images have objects in boxes instead of one label each."""

    root: Path
    names: np.ndarray
    """Paths below `root`, an array of bytes (N,), which takes little memory for a million of them."""
    labels: Tensor
    """int64 (N,), on the CPU."""
    size: int
    """Side of the squares, in pixels."""
    reading: Reading = Reading()
    device: torch.device = torch.device("cpu")
    """The device that batches are moved to."""
    unusual: UnusualImages = field(default_factory=UnusualImages)
    """The damaged and odd images of the whole data set, shared by all its parts."""

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str) -> "ImageFiles":
        """The same images, with batches on `device`."""
        return replace(self, device=torch.device(device))

    def select(self, indices: Tensor) -> "ImageFiles":
        """The images with these indices, int64 (M,), in this order."""
        return replace(self, names=self.names[indices.numpy()], labels=self.labels[indices])

    def update(self, digest: Any) -> None:
        """Add names, labels and image size to a hash, but not the content of the files."""
        digest.update(f"{len(self)} {self.size}\n".encode())
        for name, label in zip(self.names.tolist(), self.labels.tolist(), strict=True):
            digest.update(b"%d %s\n" % (label, name))

    @property
    def num_damaged(self) -> int:
        """Images of this set that have been found to be damaged so far."""
        damaged = [os.fsencode(name) for name, what in self.unusual.items() if what.startswith(DAMAGED)]
        return int(np.isin(self.names, damaged).sum()) if damaged else 0

    def path(self, index: int) -> Path:
        return self.root / os.fsdecode(self.names[index])

    def parts(self, batch_size: int, rank: int = 0, num_ranks: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
        """Every readable image once, in order: uint8 (B, H, W, C), cropped as in evaluation, and labels (B,).

        Batches are dealt to the ranks in turn. Raises RunError as `Stream` does.
        """
        starts = range(rank * batch_size, len(self), num_ranks * batch_size)
        stream = Stream(
            self,
            lambda position: [(0, i) for i in range(starts[position], min(starts[position] + batch_size, len(self)))],
            FileReader(self, None),
            len(starts),
        )
        for position in range(len(starts)):
            pixels, labels = stream[position]
            if len(labels):
                yield pixels, labels
        stream.stop()


class Read(NamedTuple):
    """The result of reading one image."""

    pixels: Tensor | None
    """uint8 (H, W, C); None if the image cannot be read."""
    given: int
    """Index of the image read: the next readable one if the image asked for is damaged."""
    unusual: list[tuple[int, str]]
    """Index and description of the images tried that are damaged or no RGB JPEG."""
    failure: str = ""
    """Why nothing can be read at all, if the fault is not in the image."""
    target: Any = None
    """The image's target where it is more than a label; NumPy arrays, which are cheaper to send than small tensors."""


class Batch(NamedTuple):
    """The result of reading a batch, in a form that is cheap to send from a worker to the main process."""

    pixels: Tensor
    """uint8 (B, H, W, C) of the images that could be read."""
    indices: list[int]
    unusual: list[tuple[int, str]]
    failure: str
    targets: list[Any]
    """The targets of the images that could be read."""


class RandomCrops(NamedTuple):
    """Random resized crops and flips, which depend on these fields, the pass and the index of the image only."""

    seed: int
    stream: str
    flip: bool


class FileReader(torch_data.Dataset[Read]):
    """Reads single images in a worker process."""

    def __init__(self, files: ImageFiles, crops: RandomCrops | None) -> None:
        """crops: None for the centre crop of an evaluation."""
        self.root, self.names = os.fsencode(files.root), files.names
        self.size, self.reduced = files.size, files.reading.reduced
        self.replace = crops is not None and files.reading.damaged == "skip"
        self.crops = crops

    def __getitem__(self, key: Key) -> Read:
        read = self.draw(key)
        unusual: list[tuple[int, str]] = []
        # in training the next readable image stands in for a damaged one, so that batches keep their size
        for turn in range(MOST_IN_A_ROW if self.replace else 1):
            at = (key[1] + turn) % len(self.names)
            path = os.path.join(self.root, self.names[at])  # noqa: PTH118 - pathlib takes no bytes
            try:
                pixels, kind, target = read(os.fsdecode(path), at)
            except UNREADABLE as error:
                if isinstance(error, OSError) and error.errno is not None:
                    return Read(None, at, unusual, f"cannot read {os.fsdecode(path)}: {error.strerror}")
                unusual.append((at, f"{DAMAGED}: {' '.join(str(error).split()) or type(error).__name__}"))
                continue
            if kind:
                unusual.append((at, kind))
            return Read(torch.from_numpy(pixels), at, unusual, target=target)
        failure = f"{MOST_IN_A_ROW} images in a row cannot be decoded, from {os.fsdecode(path)} back"
        return Read(None, at, unusual, failure if self.replace else "")

    def draw(self, key: Key) -> Callable[[str, int], tuple[np.ndarray, str, Any]]:
        """Make the random choices for an image, and return the function that reads a file by them.

        It takes path and index of the image, or of one that stands in for it, and returns the pixels, uint8 (H, W, C),
        the kind of an unusual image, and the target, None where a label is enough. It raises one of UNREADABLE.
        """
        number, index = key
        box_of: Callable[[int, int], Box] = middle_box
        flip = False
        if self.crops is not None:
            generator = keyed_generator(self.crops.seed, self.crops.stream, f"crop of {index}", number)
            draws = torch.rand(CROP_TRIES, 4, generator=generator).tolist()
            box_of = partial(random_box, draws=draws)
            flip = self.crops.flip and torch.rand((), generator=generator).item() < 0.5

        def read(path: str, at: int) -> tuple[np.ndarray, str, None]:
            pixels, kind = read_square(path, self.size, box_of, reduced=self.reduced)
            return pixels[:, ::-1].copy() if flip else pixels, kind, None

        return read


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image of any mode to RGB with 8 bits a channel.

    Keeps the upper 8 bits of 16-bit grey values, which Pillow would clip at 255. Raises ValueError for modes whose
    values have no fixed range: float and 32-bit integers.
    """
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"pixels of mode {image.mode} have no fixed range; convert it to 8 bits")
    return image if image.mode == "RGB" else image.convert("RGB")


def refuse_bomb(image: Image.Image, path: str | Path) -> None:
    """ValueError if a file of a few bytes claims to be a huge image: decoding it would take gigabytes."""
    pixels = image.width * image.height
    if pixels > LARGE_IMAGE and pixels > MOST_COMPRESSED * Path(path).stat().st_size:
        raise ValueError(f"{image.width}×{image.height} pixels in so small a file are no picture")


def read_square(
    path: str, size: int, box_of: Callable[[int, int], Box], *, reduced: bool = False
) -> tuple[np.ndarray, str]:
    """A box of an image, resized (bilinear, antialiased) to uint8 (size, size, 3); and the image's kind if unusual.

    `box_of(width, height)` chooses the box. Any mode becomes RGB. The orientation in the EXIF data is ignored, as in
    all published results on ImageNet. Raises one of UNREADABLE.
    """
    refuse_irregular(path)
    with Image.open(path) as image:
        refuse_bomb(image, path)
        width, height = image.size
        kind = f"{image.format} {image.mode}"
        left, top, right, bottom = box_of(width, height)
        if reduced:
            # the size of the whole image at which the box has size×size pixels; draft() stays above it
            wanted = math.ceil(width * size / (right - left)), math.ceil(height * size / (bottom - top))
            image.draft(None, wanted)
        x, y = image.width / width, image.height / height
        whole = to_rgb(image)
        box = left * x, top * y, min(right * x, image.width), min(bottom * y, image.height)
        square = whole.resize((size, size), Image.Resampling.BILINEAR, box=box)
    return np.array(square), "" if kind == USUAL else kind


def random_box(width: int, height: int, draws: Sequence[Sequence[float]]) -> Box:
    """A random box with 8 to 100% of the area and an aspect ratio from 3/4 to 4/3 (Szegedy et al., 2015).

    draws: four numbers in [0, 1) for each try: area, ratio, left and top. If no try fits into the image, the largest
    centred box with an allowed ratio.
    """
    low, high = (math.log(ratio) for ratio in CROP_RATIO)
    for area, ratio, left, top in draws:
        pixels = width * height * (CROP_AREA[0] + (CROP_AREA[1] - CROP_AREA[0]) * area)
        aspect = math.exp(low + (high - low) * ratio)
        w, h = round(math.sqrt(pixels * aspect)), round(math.sqrt(pixels / aspect))
        if 0 < w <= width and 0 < h <= height:
            x, y = int(left * (width - w + 1)), int(top * (height - h + 1))
            return x, y, x + w, y + h
    return centred(width, height, min(width, height * CROP_RATIO[1]), min(height, width / CROP_RATIO[0]))


def middle_box(width: int, height: int) -> Box:
    """The middle square of 224/256 of the shorter side."""
    side = KEPT_SIDE * min(width, height)
    return centred(width, height, side, side)


def centred(width: int, height: int, w: float, h: float) -> Box:
    x, y = (width - w) / 2, (height - h) / 2
    return x, y, x + w, y + h


class Stream:
    """Batches of images by position, read ahead in order.

    `stream[position]` depends on the keys of that position only, not on the number of workers. A jump to another
    position restarts the workers. Raises RunError when a file or folder cannot be read, and when an image is damaged
    and `Reading.damaged` is "stop".
    """

    def __init__(
        self, files: ImageFiles, keys: Callable[[int], list[Key]], reader: FileReader, length: int | None = None
    ) -> None:
        """keys(position): the images of a batch. length: number of positions; None for an endless stream."""
        self.files, self.keys, self.reader, self.length = files, keys, reader, length
        self.next = 0
        self.running: Iterator[Batch] | None = None
        self.limited = False
        """Whether memory has limited the workers, and a warning has said so."""

    def __getitem__(self, position: int) -> tuple[Tensor, Tensor]:
        """uint8 (B, H, W, C) and labels int64 (B,), on the device of `files`; without damaged images in evaluation."""
        batch = self.read(position)
        labels, device = self.files.labels[batch.indices], self.files.device
        return batch.pixels.to(device, non_blocking=True), labels.to(device)

    def read(self, position: int) -> Batch:
        """The batch at `position` as the workers send it, on the CPU."""
        if self.running is None or position != self.next:
            self.stop()
            self.running = self._start(position)
        self.next = position + 1
        batch = next(self.running)
        try:
            self._note(batch)
        except RunError:
            self.stop()
            raise
        return batch

    def stop(self) -> None:
        """End the workers. The next batch starts new ones."""
        self.running = None

    def _start(self, position: int) -> Iterator[Batch]:
        """Start reading at `position`, in as many workers as the memory has room for."""
        batch_bytes = len(self.keys(position)) * self.files.size**2 * 3
        workers, batches_ahead = read_ahead(self.files.reading.workers, batch_bytes)
        # once for a stream of training batches; an evaluation makes a stream each time
        if workers < self.files.reading.workers and self.length is None and not self.limited:
            self.limited = True
            logger.warning(
                "reading ahead with %d of %d workers: a batch takes %d MiB, and what is read ahead is kept within 1/%d "
                "of the memory available",
                workers, self.files.reading.workers, batch_bytes >> 20, MEMORY_PART,
            )  # fmt: skip
        if self.length is not None:
            workers = min(workers, self.length - position)
        loader: torch_data.DataLoader[Any] = torch_data.DataLoader(
            self.reader,
            batch_sampler=Positions(self.keys, position, self.length),
            num_workers=workers,
            prefetch_factor=batches_ahead if workers else None,
            collate_fn=partial(collate, size=self.files.size),
            multiprocessing_context="spawn" if workers else None,
            worker_init_fn=quieten,
            pin_memory=self.files.device.type == "cuda",
            generator=torch.Generator(),  # by default DataLoader draws a seed from the global one, at every start
        )
        STREAMS.add(self)
        # Workers inherit the blocked signals: Ctrl-C must not end them before their parent, which has a step to finish
        # and a checkpoint to write. The resource tracker would unblock the signals if it were started in between.
        resource_tracker.ensure_running()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        try:
            return iter(loader)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _note(self, batch: Batch) -> None:
        """Record damaged and odd images, with a warning for damaged ones; RunError if one of them ends the run."""
        for index, what in batch.unusual:
            name = os.fsdecode(self.files.names[index])
            damaged = what.startswith(DAMAGED)
            if damaged and self.files.reading.damaged == "stop":
                raise RunError(
                    f"{self.files.path(index)} is {what}; repair it, or choose --damaged skip (a run goes on with "
                    "--resume)"
                )
            if damaged and name not in self.files.unusual:
                done = "replaced by the next" if self.reader.replace else "left out"
                logger.warning("%s is %s; %s", self.files.path(index), what, done)
            self.files.unusual[name] = what
        if batch.failure:
            raise RunError(f"{batch.failure}; check that the data are there (a run goes on with --resume)")


def read_ahead(workers: int, batch_bytes: int) -> tuple[int, int]:
    """How many of the `workers` may read ahead, and how many batches each, so that memory has room for these batches.

    Together they take at most 1/8 of the memory available and 1/4 of the free shared memory (of this rank's share of
    it): a search has three streams, two of training images and one of an evaluation. If that is too little, each worker
    reads one batch ahead instead of two; if that is too much still, there are fewer workers, but at least one.
    """
    bounds = [(available_memory(), MEMORY_PART), (shared_memory(), SHARED_MEMORY_PART)]
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # processes of torchrun on this machine
    room = [size // part // ranks // max(1, batch_bytes) for size, part in bounds if size is not None]
    most = max(1, min(room, default=workers * BATCHES_AHEAD))
    if most >= workers * BATCHES_AHEAD:
        return workers, BATCHES_AHEAD
    return min(workers, most), 1


class Positions(torch_data.Sampler[list[Key]]):
    """The keys of all positions from `first` on."""

    def __init__(self, keys: Callable[[int], list[Key]], first: int, length: int | None) -> None:
        self.keys, self.first, self.length = keys, first, length

    def __iter__(self) -> Iterator[list[Key]]:
        return map(self.keys, count(self.first) if self.length is None else range(self.first, self.length))


def collate(reads: Sequence[Read], size: int) -> Batch:
    """Put the images of a batch into one tensor, and collect the reports on unusual ones."""
    kept = [read.pixels for read in reads if read.pixels is not None]
    return Batch(
        torch.stack(kept) if kept else torch.empty(0, size, size, 3, dtype=torch.uint8),
        [read.given for read in reads if read.pixels is not None],
        [item for read in reads for item in read.unusual],
        next((read.failure for read in reads if read.failure), ""),
        [read.target for read in reads if read.pixels is not None],
    )


def count_unusual(unusual: Mapping[str, str]) -> dict[str, int]:
    """The number of damaged images, and of each kind of odd ones."""
    return dict(sorted(Counter(what.partition(":")[0] for what in unusual.values()).items()))


def quieten(worker: int) -> None:
    """Silence Pillow in a worker: it warns of odd EXIF data, which is not used."""
    warnings.filterwarnings("ignore", module="PIL")


STREAMS: "weakref.WeakSet[Stream]" = weakref.WeakSet()


@atexit.register  # runs before multiprocessing's own hook, which would wait for workers that still read ahead
def stop_all() -> None:
    """End the workers of all streams."""
    for stream in list(STREAMS):
        stream.stop()
