"""Images with objects: boxes, classes and flags of each image, and the set of image files that they belong to.

Boxes are x1, y1, x2, y2 in pixels of the original image, from the upper left corner. Where a format counts pixels from
1, as Pascal VOC does, all four numbers are one less than in the file, as in the SSD codebases; there x2 and y2 are the
last column and row inside the box, and a width in the sense of VOC's evaluation is x2 - x1 + 1.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NoReturn

import numpy as np
import torch
from torch import Tensor

from darts_sg.data.stream import BOXES_HINT, DAMAGED, ImageFiles
from darts_sg.errors import UsageError

ANNOTATION = "annotation"
"""Follows DAMAGED in the report on an image whose pixels are fine and whose annotation cannot be read."""


@dataclass(frozen=True, eq=False)
class Objects:
    """The objects of one image: n boxes."""

    boxes: Tensor
    """float32 (n, 4): x1, y1, x2, y2 in pixels of the original image; in batches as shares of the sides, 0 to 1."""
    labels: Tensor
    """int64 (n,): classes, from 0."""
    difficult: Tensor
    """bool (n,): objects that an evaluation neither expects nor counts as wrong."""
    crowd: Tensor
    """bool (n,): boxes around many objects (COCO's iscrowd)."""
    area: Tensor
    """float32 (n,): pixels of the object in the original image; those of its box where the format has no masks."""
    image: str = ""
    """The name of the image below the folder of the data."""
    width: int = 0
    """Width of the original image in pixels; 0 if unknown."""
    height: int = 0

    def __len__(self) -> int:
        return len(self.labels)

    def changed(self, change: Callable[[Tensor], Tensor]) -> "Objects":
        """The same objects with each of the tensors changed alike."""
        boxes, labels, difficult, crowd, area = map(
            change, (self.boxes, self.labels, self.difficult, self.crowd, self.area)
        )
        return Objects(boxes, labels, difficult, crowd, area, self.image, self.width, self.height)

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> "Objects":
        """The same objects on `device`."""
        return self.changed(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def select(self, chosen: Tensor) -> "Objects":
        """The objects with these indices, or where a mask is true."""
        return self.changed(lambda tensor: tensor[chosen])


def as_objects(arrays: Sequence[np.ndarray], image: str, width: int, height: int) -> Objects:
    """Objects from boxes, labels, difficult, crowd and area, which are copied: arrays from workers are read-only."""
    boxes, labels, difficult, crowd, area = (torch.from_numpy(np.array(array)) for array in arrays)
    return Objects(boxes, labels, difficult, crowd, area, image, width, height)


@dataclass(frozen=True, eq=False)
class ObjectTable:
    """The objects of many images as arrays over all M objects, image after image; meanings as in `Objects`."""

    starts: np.ndarray
    """int64 (N + 1,): the objects of image i are those from starts[i] to starts[i + 1]."""
    boxes: np.ndarray
    """float32 (M, 4)."""
    labels: np.ndarray
    """int64 (M,)."""
    difficult: np.ndarray
    """bool (M,)."""
    crowd: np.ndarray
    """bool (M,)."""
    area: np.ndarray
    """float32 (M,)."""

    def __post_init__(self) -> None:
        wanted = {"boxes": np.float32, "labels": np.int64, "difficult": np.bool_, "crowd": np.bool_, "area": np.float32}
        for name, dtype in wanted.items():
            array = getattr(self, name)
            shape = (self.starts[-1], 4) if name == "boxes" else (self.starts[-1],)
            if array.dtype != dtype or array.shape != shape:
                raise ValueError(f"{name} must be {np.dtype(dtype)} {shape}, got {array.dtype} {array.shape}")

    def __len__(self) -> int:
        """The number of images."""
        return len(self.starts) - 1

    @property
    def counts(self) -> np.ndarray:
        """Objects of each image, int64 (N,)."""
        return np.diff(self.starts)

    @property
    def images(self) -> np.ndarray:
        """The image of each object, int64 (M,)."""
        return np.repeat(np.arange(len(self)), self.counts)

    @property
    def columns(self) -> tuple[np.ndarray, ...]:
        """Boxes, labels, difficult, crowd and area."""
        return self.boxes, self.labels, self.difficult, self.crowd, self.area

    def __getitem__(self, image: int) -> tuple[np.ndarray, ...]:
        """The columns of one image, as views."""
        part = slice(self.starts[image], self.starts[image + 1])
        return tuple(column[part] for column in self.columns)

    def select(self, indices: np.ndarray) -> "ObjectTable":
        """The objects of the images with these indices, int64 (K,), in this order."""
        counts = self.counts[indices]
        starts = np.concatenate([[0], counts.cumsum()]).astype(np.int64)
        # for each object kept: its place in the new image, counted from that image's first object in this table
        rows = np.arange(starts[-1]) - np.repeat(starts[:-1], counts) + np.repeat(self.starts[indices], counts)
        return ObjectTable(starts, *(column[rows] for column in self.columns))

    def update(self, digest: Any) -> None:
        """Add the objects to a hash."""
        for array in (self.starts, *self.columns):
            digest.update(f"{array.dtype.str}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)


def make_table(images: Sequence[Sequence[Sequence[Any]]]) -> ObjectTable:
    """A table from the objects of each image as rows x1, y1, x2, y2, label, difficult, crowd, area."""
    counts = [len(rows) for rows in images]
    starts = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]).astype(np.int64)
    rows = np.array([row for part in images for row in part], np.float64).reshape(-1, 8)
    return ObjectTable(
        starts,
        rows[:, :4].astype(np.float32),
        rows[:, 4].astype(np.int64),
        rows[:, 5] != 0,
        rows[:, 6] != 0,
        rows[:, 7].astype(np.float32),
    )


def join_objects(images: Sequence[Objects]) -> ObjectTable:
    """The objects of several images as a table; boxes must be in pixels."""
    starts = np.concatenate([[0], np.cumsum([len(one) for one in images], dtype=np.int64)]).astype(np.int64)
    if not images:
        return make_table([])
    columns = zip(*((one.boxes, one.labels, one.difficult, one.crowd, one.area) for one in images), strict=True)
    return ObjectTable(starts, *(torch.cat(column).cpu().numpy() for column in columns))


@dataclass(frozen=True, eq=False, kw_only=True)
class DetectionImages(ImageFiles):
    """A set of image files and their objects, read on demand.

    `labels` is the class by which splits are balanced: the one of the image's objects that is rarest in the whole set,
    and the number of classes for an image without objects.
    """

    has_boxes: ClassVar[bool] = True

    table: ObjectTable
    sizes: np.ndarray
    """int64 (N, 2): width and height of each image in pixels; 0 where the annotations do not say."""
    class_names: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(self.table) != len(self.names) or len(self.sizes) != len(self.names):
            raise ValueError(f"{len(self.names)} images, objects of {len(self.table)} and {len(self.sizes)} sizes")
        if self.reading.damaged == "stop":
            annotations = f"{DAMAGED}: {ANNOTATION}"
            for name, what in self.unusual.items():
                if what.startswith(annotations):
                    raise UsageError(f"{self.root / name} is {what}; repair it, or choose --damaged skip")

    def objects(self, index: int) -> Objects:
        """The objects of an image, in pixels of the original."""
        width, height = self.sizes[index].tolist()
        return as_objects(self.table[index], self.name(index), width, height)

    def name(self, index: int) -> str:
        """The path of an image below the folder of the data, as predictions name it."""
        return self.names[index].decode(errors="surrogateescape")

    def __iter__(self) -> Iterator[Objects]:
        return (self.objects(index) for index in range(len(self)))

    def select(self, indices: Tensor) -> "DetectionImages":
        """The images with these indices, int64 (M,), in this order."""
        chosen = indices.cpu().numpy()
        return replace(
            self,
            names=self.names[chosen],
            labels=self.labels[indices.cpu()],
            table=self.table.select(chosen),
            sizes=self.sizes[chosen],
        )

    def update(self, digest: Any) -> None:
        """Add names, image size, class names and objects to a hash, but not the content of the image files."""
        super().update(digest)
        digest.update("\n".join(self.class_names).encode(errors="surrogateescape"))
        self.table.update(digest)

    def parts(self, batch_size: int, rank: int = 0, num_ranks: int = 1) -> NoReturn:
        """UsageError: these images have no label each."""
        raise UsageError(f"the images in {self.root} have boxes instead of one label each: {BOXES_HINT}")


def splitting_labels(table: ObjectTable, num_classes: int) -> Tensor:
    """The class of each image by which splits are balanced, see `DetectionImages`; int64 (N,).

    An image with a rare class counts for that class: a split in proportion then has rare objects in both parts.
    """
    counts = np.bincount(table.labels, minlength=num_classes)
    order = np.argsort(counts, kind="stable")  # from the rarest class on
    rank = np.empty(num_classes, np.int64)
    rank[order] = np.arange(num_classes)
    lowest = np.full(len(table), num_classes, np.int64)
    np.minimum.at(lowest, table.images, rank[table.labels])
    return torch.from_numpy(np.append(order, num_classes)[lowest])
