"""Your own images: a folder for each class.

Either DIR/train/CLASS/* with DIR/test/CLASS/* (or val, or valid); or DIR/CLASS/* (or only DIR/train/CLASS/*), in which
case a fifth of each class, chosen by a seed of the split's own, becomes the test part.
"""

import logging
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from rich.console import Console
from rich.progress import track

from darts_sg.data.memory import available_memory
from darts_sg.data.spec import Dataset, DataSpec, ImageSet
from darts_sg.data.split import balanced_split
from darts_sg.data.statistics import channel_statistics
from darts_sg.data.stream import UNREADABLE, refuse_bomb, to_rgb
from darts_sg.errors import UsageError, first_line
from darts_sg.files import refuse_irregular

logger = logging.getLogger(__name__)

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})
TEST_PARTS = ("test", "val", "valid")
SMALLEST, LARGEST, STEP = 32, 224, 8
"""The default image size in pixels lies within these bounds and is a multiple of STEP."""
NAMED = 5
"""Classes or files that a message names, if it is about many."""
MANY_FILES = 500
"""From this number on reading takes long enough for a progress bar."""


@dataclass(frozen=True)
class LabelledFiles:
    """Image files and their classes."""

    paths: list[Path]
    labels: list[int]

    def select(self, indices: torch.Tensor) -> "LabelledFiles":
        """The files with these indices, int64 (M,)."""
        chosen = indices.tolist()
        return LabelledFiles([self.paths[i] for i in chosen], [self.labels[i] for i in chosen])


def load_folder(directory: Path, *, image_size: int | None, seed: int, download: bool, split_seed: int = 0) -> Dataset:
    """Load the images under `directory` as RGB squares of `image_size` pixels; see the module for the layout.

    Images are resized by their shorter side and centre-cropped. The default size is the median of the shorter sides of
    the training images, rounded to a multiple of 8, between 32 and 224; `Dataset.remark` names it. Files that cannot be
    read are left out with a warning. Raises UsageError if the folders are no data set of two or more classes, or if the
    images would fill more than half of the available memory.
    """
    if image_size is not None and image_size < STEP:
        raise UsageError(f"an image size of {image_size} pixels is too small: ask for {STEP} or more")
    train_root, test_root = find_parts(directory)
    class_names = subfolders(train_root)
    if len(class_names) < 2:
        raise UsageError(f"{train_root} has {len(class_names)} class folders: two or more are needed")
    train = list_files(train_root, class_names)
    if test_root is None:
        rare = [name for label, name in enumerate(class_names) if train.labels.count(label) < 2]
        if rare:
            raise UsageError(f"{train_root / rare[0]} holds one image, and a test part is to be split off: add more")
        labels = torch.tensor(train.labels)
        num_test = max(1, len(labels) // 5)
        test_indices, train_indices = balanced_split(labels, (num_test, len(labels) - num_test), split_seed)
        train, test = train.select(train_indices), train.select(test_indices)
        remarks = [f"test part: a fifth of the images, by seed {split_seed}"]
    else:
        check_same_classes(train_root, class_names, test_root, subfolders(test_root))
        test = list_files(test_root, class_names)
        remarks = [f"test part: {test_root.name}"]
    size = image_size or median_size(train.paths)
    remarks.append(f"images brought to {size}×{size} pixels")
    check_memory(len(train.paths) + len(test.paths), size)
    train_set, test_set = read_images(train, size, class_names), read_images(test, size, class_names)
    mean, std = channel_statistics(train_set.images)
    spec = DataSpec("folder", len(class_names), size, 3, mean, std, tuple(class_names))
    return Dataset(spec, train_set, test_set, "; ".join(remarks))


def find_parts(directory: Path) -> tuple[Path, Path | None]:
    """The roots of the training part and of the test part; None if the latter is still to be split off."""
    if not directory.is_dir():
        raise UsageError(f"there is no folder {directory}: name the one that holds a folder for each class")
    train = directory / "train"
    for part in TEST_PARTS:
        if train.is_dir() and (directory / part).is_dir():
            return train, directory / part
    return (train, None) if subfolders(directory) == ["train"] else (directory, None)


def subfolders(root: Path) -> list[str]:
    """The sorted names of the folders in `root`, without hidden ones."""
    return sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))


def check_same_classes(train_root: Path, train: list[str], test_root: Path, test: list[str]) -> None:
    """UsageError if the two parts do not have the same classes."""
    for root, missing in ((test_root, set(train) - set(test)), (train_root, set(test) - set(train))):
        if missing:
            names = ", ".join(sorted(missing)[:NAMED])
            more = f" and {len(missing) - NAMED} others" if len(missing) > NAMED else ""
            raise UsageError(f"{root} lacks the classes {names}{more}: both parts need the same")


def list_files(root: Path, class_names: list[str]) -> LabelledFiles:
    """The image files of each class, sorted by name. UsageError if a class has none."""
    names, labels = list_names(root, class_names)
    return LabelledFiles([root / name for name in names], labels)


def list_names(root: Path, class_names: list[str]) -> tuple[list[str], list[int]]:
    """The image files as names CLASS/FILE, and their labels: cheaper than paths for a million of them."""
    names: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(class_names):
        files = (entry.name for entry in os.scandir(root / name))
        found = sorted(file for file in files if Path(file).suffix.lower() in SUFFIXES and file[0] != ".")
        if not found:
            raise UsageError(f"{root / name} holds no images ({' '.join(sorted(SUFFIXES))}): fill or remove it")
        names += [f"{name}/{file}" for file in found]
        labels += [label] * len(found)
    return names, labels


def median_size(paths: list[Path]) -> int:
    """The median of the shorter sides in pixels, rounded to a multiple of 8 between 32 and 224."""
    sides = []
    for path in paths:
        try:
            refuse_irregular(path)
            with Image.open(path) as image:
                sides.append(min(image.size))
        except UNREADABLE:
            continue  # `read_images` warns of it
    median = float(np.median(sides)) if sides else SMALLEST
    return min(max(STEP * round(median / STEP), SMALLEST), LARGEST)


def check_memory(num_images: int, size: int) -> None:
    """UsageError if so many RGB images of this size would fill more than half of the available memory."""
    needed, available = num_images * size * size * 3, available_memory()
    if available is not None and needed > available / 2:
        raise UsageError(
            f"{num_images} images of {size}×{size} pixels take {needed / 2**30:.1f} GiB, more than half "
            f"of the {available / 2**30:.1f} GiB available: ask for a smaller image size or remove images"
        )


def read_images(files: LabelledFiles, size: int, class_names: list[str]) -> ImageSet:
    """Read all `files`, leaving out unreadable ones with a warning. UsageError if no image of a class is left."""
    pixels = torch.empty((len(files.paths), size, size, 3), dtype=torch.uint8)
    labels: list[int] = []
    broken: list[Path] = []
    reason = ""
    pairs = zip(files.paths, files.labels, strict=True)
    for path, label in track(
        pairs,
        "reading images",
        total=len(files.paths),
        console=Console(stderr=True),
        transient=True,
        disable=len(files.paths) < MANY_FILES,
    ):
        try:
            pixels[len(labels)] = torch.from_numpy(read_image(path, size))
        except UNREADABLE as error:
            broken.append(path)
            reason = reason or first_line(error)
        else:
            labels.append(label)
    if broken:
        names = ", ".join(map(str, broken[:NAMED])) + (", …" if len(broken) > NAMED else "")
        text = "%d of %d images cannot be read and are left out: %s; of the first: %s"
        logger.warning(text, len(broken), len(files.paths), names, reason)
    for label in set(files.labels) - set(labels):
        raise UsageError(f"no image of the class {class_names[label]} can be read: repair or remove it")
    return ImageSet(pixels[: len(labels)], torch.tensor(labels))


def read_image(path: Path, size: int) -> np.ndarray:
    """An image as uint8 (size, size, 3): upright, resized by its shorter side, centre-cropped."""
    return fitted(read_upright(path), size)


def read_upright(path: Path) -> Image.Image:
    """An image at its original size, RGB, turned as its EXIF data say."""
    refuse_irregular(path)
    with Image.open(path) as image:
        refuse_bomb(image, path)
        return to_rgb(ImageOps.exif_transpose(image))


def fitted(image: Image.Image, size: int) -> np.ndarray:
    """An image resized by its shorter side and centre-cropped: uint8 (size, size, 3)."""
    return np.array(ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC))
