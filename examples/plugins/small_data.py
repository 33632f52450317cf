"""A data set: images that fit into one .npz file of your own.

    python search.py --plugin examples/plugins/small_data.py --dataset npz --data FOLDER

FOLDER/images.npz holds `x_train` and `x_test`, uint8 (N, H, W) or (N, H, W, C) of square images, and `y_train` and
`y_test`, the class of each image as an integer from 0. `class_names` is optional. Such a file comes from

    np.savez(FOLDER / "images.npz", x_train=…, y_train=…, x_test=…, y_test=…)
"""

import zipfile
from pathlib import Path

import numpy as np
import torch

from darts_sg.data import DATASETS, Dataset, DataSpec, ImageSet
from darts_sg.data.spec import refuse_other_size
from darts_sg.data.statistics import channel_statistics
from darts_sg.errors import UsageError

FILE = "images.npz"


def load_npz(directory: Path, *, image_size: int | None, seed: int, download: bool) -> Dataset:
    """Both parts of FOLDER/images.npz; UsageError, which a user sees as one line, if they are not as described."""
    path = directory / FILE
    if not path.is_file():
        raise UsageError(f"{path} does not exist; say with --data which folder holds {FILE}")
    try:
        with np.load(path, allow_pickle=False) as arrays:  # pickles would run code
            train, test = (_part(arrays, part, path) for part in ("train", "test"))
            classes = 1 + int(max(train.labels.max(), test.labels.max()))
            names = tuple(map(str, arrays["class_names"])) if "class_names" in arrays else ()
    except (zipfile.BadZipFile, ValueError, KeyError, OSError) as error:
        raise error if isinstance(error, UsageError) else UsageError(f"{path}: {error}") from None
    _, side, _, channels = train.images.shape
    if test.images.shape[1:] != train.images.shape[1:]:
        raise UsageError(f"{path}: the images of x_train and x_test differ in size or channels")
    if names and len(names) != classes:
        raise UsageError(f"{path}: {len(names)} class names, but the labels say {classes} classes")
    refuse_other_size("npz", image_size, side)
    mean, std = channel_statistics(train.images)
    spec = DataSpec(
        name="npz",
        num_classes=classes,
        image_size=side,
        in_channels=channels,
        mean=mean,
        std=std,
        class_names=names or tuple(str(number) for number in range(classes)),
        flip=False,  # a mirrored digit is another one
    )
    return Dataset(spec, train, test)


def _part(arrays: "np.lib.npyio.NpzFile", part: str, path: Path) -> ImageSet:
    images, labels = arrays[f"x_{part}"], arrays[f"y_{part}"]
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or images.shape[1] != images.shape[2]:
        raise UsageError(
            f"{path}: x_{part} must be uint8 (N, H, H) or (N, H, H, C), found {images.dtype} {images.shape}"
        )
    if not np.issubdtype(labels.dtype, np.integer) or labels.shape != images.shape[:1] or labels.min(initial=0) < 0:
        raise UsageError(f"{path}: y_{part} must be {len(images)} integers from 0, found {labels.dtype} {labels.shape}")
    if not len(images):
        raise UsageError(f"{path}: x_{part} holds no images")
    whole = images if images.ndim == 4 else images[..., None]
    return ImageSet(torch.from_numpy(whole.copy()), torch.from_numpy(labels.astype(np.int64)))


DATASETS.add("npz", load_npz)
