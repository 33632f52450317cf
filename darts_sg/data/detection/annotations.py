"""From the annotations of single images, as the readers of the formats find them, to a data set."""

import logging
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, TypeVar

import numpy as np
from rich.console import Console
from rich.progress import track

from darts_sg.data.detection.objects import ANNOTATION, DetectionImages, ObjectTable, make_table, splitting_labels
from darts_sg.data.folder import MANY_FILES, NAMED, STEP, SUFFIXES
from darts_sg.data.imagenet import MEAN, STD
from darts_sg.data.spec import Dataset, DataSpec
from darts_sg.data.split import balanced_split
from darts_sg.data.stream import DAMAGED, UnusualImages
from darts_sg.errors import UsageError, quoted

logger = logging.getLogger(__name__)

SIZE = 320
"""Default side of the images in pixels, that of SSDLite-320."""
MOST_OBJECTS = 10_000
"""Limit for one image; COCO has up to 93, aerial images up to 2,000."""
MOST_CLASSES = 10_000
MOST_ANNOTATION_BYTES = 2**24
"""Size limit for the annotation of one image."""
TOLERANCE = 1.0
"""Pixels that a box may reach beyond its image without being reported: some tools count from 0, others from 1."""
LEFT_OUT, CUT = "boxes left out", "boxes cut at the border"
"""Kinds of images whose annotations are partly wrong, in the list of unusual images."""

T = TypeVar("T")
Row = tuple[str, float, float, float, float, bool, bool, float]
"""An object in `Annotated.objects`."""


class Annotated(NamedTuple):
    """The annotation of one image."""

    name: str
    """The path of the image below the folder of the data."""
    width: int
    """In pixels; 0 if the annotation does not say."""
    height: int
    objects: "list[Row]"
    """Class name, x1, y1, x2, y2, difficult, crowd, area; an area of NaN stands for that of the box."""


class DamagedAnnotation(ValueError):
    """The annotation of an image cannot be read; the message says why."""


@dataclass
class Found:
    """The annotations of a data set while they are read."""

    train: list[Annotated]
    test: list[Annotated] | None
    """None: a fifth of the training images is split off."""
    class_names: list[str] | None = None
    """None: those that occur, sorted."""
    remarks: list[str] = field(default_factory=list)
    damaged: dict[str, str] = field(default_factory=dict)
    """Images that are left out because their annotation, or they themselves, cannot be read, and why."""


def number(value: Any) -> float:
    """A coordinate from a text or a number; NaN if it is neither."""
    if isinstance(value, bool) or value is None:
        return math.nan
    try:
        return float(value)
    except (ValueError, TypeError, OverflowError):
        return math.nan


def pixels(value: Any) -> int:
    """A side of an image in pixels, from 1 to a million; 0 if it is anything else."""
    side = number(value)
    return int(side) if 1 <= side <= 1e6 else 0


def checked_class(name: Any) -> str:
    """The name of a class without blanks around it; DamagedAnnotation if it has none."""
    if not isinstance(name, str) or not name.strip():
        raise DamagedAnnotation(f"an object has no class name, but {quoted(name)}")
    if len(name) > 200 or not name.strip().isprintable():
        raise DamagedAnnotation(f"an object has a class name that is none: {quoted(name)}")
    return name.strip()


def refuse_outside(name: str, where: Path) -> str:
    """The path of an image below a folder; UsageError if it leads out of it, or can be no path."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not name.strip() or "\0" in name or len(name) > 1000:
        raise UsageError(f"{where} names the image {quoted(name)}, which is no path below the folder of the data")
    return path.as_posix()


def counted(number: int, noun: str, verb: str = "") -> str:
    """A number with its noun and the verb that follows, both of one thing: "1 class has", "3 classes have"."""
    if number != 1:
        noun += "es" if noun.endswith("s") else "s"
        verb = {"has": "have", "is": "are", "looks": "look", "overlaps": "overlap"}.get(verb, verb)
    return f"{number:,} {noun} {verb}".rstrip()


def in_turn(items: Sequence[T], what: str) -> Iterable[T]:
    """The items one by one, with a progress bar if they are many."""
    console = Console(stderr=True)
    return track(items, what, console=console, transient=True, disable=len(items) < MANY_FILES)


def image_names(folder: Path, below: Path) -> list[str]:
    """The image files in a folder, sorted, as paths below the folder of the data."""
    found = (path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.name[0] != ".")
    return sorted(path.relative_to(below).as_posix() for path in found)


def check_size(image_size: int | None) -> int:
    """The side of the images; UsageError if it is too small."""
    if image_size is not None and image_size < STEP:
        raise UsageError(f"an image size of {image_size} pixels is too small: ask for {STEP} or more")
    return image_size or SIZE


def assemble(name: str, directory: Path, found: Found, image_size: int | None, split_seed: int) -> Dataset:
    """The data set `name` from its annotations.

    Boxes are cut at the borders of their images; those without an area or with coordinates that are no numbers are left
    out, and named among the unusual images. Raises UsageError if nothing is left to train or to test on.
    """
    size = check_size(image_size)
    both = [*found.train, *(found.test or [])]
    class_names = found.class_names
    if class_names is None:
        class_names = sorted({row[0] for image in both for row in image.objects})
    if not class_names:
        raise UsageError(f"no object in {directory}: {counted(len(both), 'image')} read{_damage(found)}")
    if len(class_names) > MOST_CLASSES:
        raise UsageError(f"{directory} has {len(class_names)} classes, more than {MOST_CLASSES}: these are no classes")
    label_of = {class_name: label for label, class_name in enumerate(class_names)}
    unusual = UnusualImages()
    for image, reason in found.damaged.items():
        unusual[image] = f"{DAMAGED}: {reason}"
    if found.damaged:
        first = next(iter(found.damaged.items()))
        text = "%s left out, with a damaged file or annotation; the first one: %s: %s"
        logger.warning(text, counted(len(found.damaged), "image", "is"), *first)
        found.remarks.append(f"{counted(len(found.damaged), 'damaged image')} left out")

    def images(part: list[Annotated]) -> DetectionImages:
        rows = [[(*row[1:5], label_of[row[0]], *row[5:]) for row in image.objects] for image in part]
        sizes = np.array([(image.width, image.height) for image in part], np.int64).reshape(-1, 2)
        names = [image.name for image in part]
        table = clean(make_table(rows), sizes, names, unusual)
        encoded = np.array([image.encode(errors="surrogateescape") for image in names])
        labels = splitting_labels(table, len(class_names))
        return DetectionImages(
            directory, encoded, labels, size, unusual=unusual, table=table, sizes=sizes, class_names=tuple(class_names)
        )

    if not found.train or (found.test is not None and not found.test):
        part = "test" if found.train else "training"
        raise UsageError(f"no image in the {part} part of {directory} can be used{_damage(found)}")
    train = images(found.train)
    if found.test is None:
        if len(train) < 2:
            raise UsageError(f"{directory} holds one image, and a test part is to be split off: add more")
        num_test = max(1, len(train) // 5)
        test_indices, train_indices = balanced_split(train.labels, (num_test, len(train) - num_test), split_seed)
        train, test = train.select(train_indices), train.select(test_indices)
        found.remarks.append(f"test part: a fifth of the images, by seed {split_seed}")
    else:
        test = images(found.test)
    unseen = set(np.unique(test.table.labels)) - set(np.unique(train.table.labels))
    if unseen:
        names = ", ".join(class_names[label] for label in sorted(unseen)[:NAMED])
        logger.warning("%s no object in the training part: %s", counted(len(unseen), "class", "has"), names)
    reported = [what.partition(":")[0] for what in unusual.values()]
    for kind in (LEFT_OUT, CUT):
        if count := reported.count(kind):
            logger.warning("%s in %d of %d images; python -m darts_sg data check names them", kind, count, len(both))
    spec = DataSpec(name, len(class_names), size, 3, MEAN, STD, tuple(class_names))
    if size != SIZE:
        found.remarks.append(f"images brought to {size}×{size} pixels")
    return Dataset(spec, train, test, "; ".join(found.remarks))


def clean(table: ObjectTable, sizes: np.ndarray, names: Sequence[str], unusual: UnusualImages) -> ObjectTable:
    """The table with its boxes cut at the borders, without those that then have no area or are no numbers.

    Adds the images concerned to `unusual`, but for damaged ones.
    """
    boxes, image, counts = table.boxes, table.images, table.counts
    limits = np.where(sizes > 0, sizes, np.inf).astype(np.float32)[image][:, [0, 1, 0, 1]]  # (M, 4)
    finite = np.isfinite(boxes).all(axis=1)
    inside = np.clip(boxes, 0, limits)
    beyond = finite & (np.abs(inside - boxes) > TOLERANCE).any(axis=1)
    kept = finite & (inside[:, 2:] > inside[:, :2]).all(axis=1)
    area = np.where(np.isfinite(table.area), table.area, np.prod(inside[:, 2:] - inside[:, :2], axis=1))
    for kind, which in ((CUT, beyond & kept), (LEFT_OUT, ~kept)):
        for index, count in sorted(Counter(image[which].tolist()).items()):
            unusual.setdefault(names[index], f"{kind}: {count} of {counts[index]}")
    starts = np.concatenate([[0], np.bincount(image[kept], minlength=len(table)).cumsum()]).astype(np.int64)
    return ObjectTable(
        starts, inside[kept], table.labels[kept], table.difficult[kept], table.crowd[kept],
        area[kept].astype(np.float32),
    )  # fmt: skip


def _damage(found: Found) -> str:
    """How much is damaged, for a message: empty if nothing is."""
    if not found.damaged:
        return ""
    image, reason = next(iter(found.damaged.items()))
    return f", {len(found.damaged)} damaged, such as {image}: {reason}"


def annotation_problem(reason: str) -> str:
    """How the report on an image names a fault of its annotation."""
    return f"{ANNOTATION}: {reason}"
