"""ImageNet (Russakovsky et al., 2015), or any data set in its layout, read from files on demand.

The layout is DIR/train/CLASS/* and DIR/val/CLASS/*: the unpacked training archives, and the validation images sorted by
the usual script. Results are measured on the validation part, as in the literature: the labels of the test part are not
public.
"""

from pathlib import Path

import numpy as np
import torch

from darts_sg.data.folder import STEP, check_same_classes, list_names, subfolders
from darts_sg.data.spec import Dataset, DataSpec
from darts_sg.data.stream import ImageFiles, UnusualImages
from darts_sg.errors import UsageError

SIZE = 224
NUM_CLASSES = 1000
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def load_imagenet(directory: Path, *, image_size: int | None, seed: int, download: bool) -> Dataset:
    """List the images under `directory`; their files are read on demand, as squares of `image_size` pixels (224).

    Raises UsageError if the folders are missing or do not have the same classes.
    """
    size = image_size or SIZE
    if size < STEP:
        raise UsageError(f"an image size of {size} pixels is too small: ask for {STEP} or more")
    train, test = directory / "train", directory / "val"
    for part in (train, test):
        if not part.is_dir():
            raise UsageError(
                f"no imagenet in {directory}, which has no {part.name}/: it needs train/CLASS/*.JPEG and "
                "val/CLASS/*.JPEG there"
            )
    class_names = subfolders(train)
    if not subfolders(test):
        raise UsageError(f"{test} holds no class folders: sort the validation images into {test}/CLASS/ first")
    if len(class_names) < 2:
        raise UsageError(f"{train} has {len(class_names)} class folders: two or more are needed")
    check_same_classes(train, class_names, test, subfolders(test))
    spec = DataSpec("imagenet", len(class_names), size, 3, MEAN, STD, tuple(class_names), top5=True)
    remarks = ["test part: val"]
    if len(class_names) != NUM_CLASSES:
        remarks.append(f"{len(class_names)} classes")
    if size != SIZE:
        remarks.append(f"images brought to {size}×{size} pixels")
    unusual = UnusualImages()

    def files(part: Path) -> ImageFiles:
        names, labels = list_names(part, class_names)
        encoded = np.array([f"{part.name}/{name}".encode(errors="surrogateescape") for name in names])
        return ImageFiles(directory, encoded, torch.tensor(labels), size, unusual=unusual)

    return Dataset(spec, files(train), files(test), "; ".join(remarks))
