"""Fashion-MNIST (Xiao, Rasul and Vollgraf, 2017) from its four idx files, gzipped or not.

An idx file of bytes: two zero bytes, 0x08 for unsigned bytes, the number of dimensions, each dimension as a
big-endian 32-bit integer, then the bytes.
"""

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
import torch

from darts_sg.data.download import fetch, published
from darts_sg.data.spec import Dataset, DataSpec, ImageSet, refuse_other_size
from darts_sg.errors import UsageError

SIZE = 28
SITE = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com"
FILES = {
    "train-images-idx3-ubyte": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "train-labels-idx1-ubyte": "25c81989df183df01b3e8a0aad5dffbe",
    "t10k-images-idx3-ubyte": "bef4ecab320f06d8554ea6380940ec79",
    "t10k-labels-idx1-ubyte": "bb300cfdad3c16e7a12a480ee83cd310",
}
"""Name -> published md5 of the gzipped file."""
CLASS_NAMES = (
    "t-shirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)


def load_fashion_mnist(directory: Path, *, image_size: int | None, seed: int, download: bool) -> Dataset:
    """Fashion-MNIST: 60,000 training and 10,000 test images, 28×28 grey, ten classes.

    `directory` holds the four files, as NAME or NAME.gz. Raises UsageError if one is damaged, or missing and cannot be
    downloaded.
    """
    refuse_other_size("fashion_mnist", image_size, SIZE)
    train, train_is_published = read_part(directory, "train", download)
    test, test_is_published = read_part(directory, "t10k", download)
    spec = DataSpec("fashion_mnist", len(CLASS_NAMES), SIZE, 1, (0.2860,), (0.3530,), CLASS_NAMES)
    remark = "" if train_is_published and test_is_published else "files not checked or unlike the published (md5)"
    return Dataset(spec, train, test, remark)


def read_part(directory: Path, part: str, download: bool) -> tuple[ImageSet, bool]:
    """The images of the part "train" or "t10k", and whether both files are the published ones."""
    image_path = find_file(directory, f"{part}-images-idx3-ubyte", download)
    label_path = find_file(directory, f"{part}-labels-idx1-ubyte", download)
    images, images_are_published = read_idx(image_path)
    labels, labels_are_published = read_idx(label_path)
    if images.ndim != 3 or images.shape[1:] != (SIZE, SIZE) or len(images) == 0:
        raise UsageError(f"{image_path} holds {images.shape}, not (N, {SIZE}, {SIZE}): get it again")
    if labels.shape != images.shape[:1] or labels.max() >= len(CLASS_NAMES):
        raise UsageError(f"{label_path} does not hold {len(images)} labels from 0 to 9: get it again")
    part_set = ImageSet(torch.from_numpy(images)[..., None], torch.from_numpy(labels.astype(np.int64)))
    return part_set, images_are_published and labels_are_published


def find_file(directory: Path, name: str, download: bool) -> Path:
    """The path of the file `name`, gzipped or not, after downloading it if necessary."""
    zipped = directory / f"{name}.gz"
    for path in (zipped, directory / name):
        if path.is_file():
            return path
    url = f"{SITE}/{name}.gz"
    if not download:
        raise UsageError(f"no {name} in {directory}: put {name}.gz there (it is published at {url})")
    fetch(url, zipped, FILES[name])
    return zipped


def read_idx(path: Path) -> tuple[np.ndarray, bool]:
    """The array of unsigned bytes in the idx file `path`, and whether it is the published (gzipped) file.

    Raises UsageError naming `path` if the file is damaged.
    """
    try:
        content = path.read_bytes()
        is_published = published(content, FILES[path.name.removesuffix(".gz")])
        if path.suffix == ".gz":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise UsageError(f"{path} cannot be read ({error}): get it again") from None
    num_dimensions = content[3] if len(content) > 3 and content[:3] == b"\0\0\x08" else 0
    start = 4 + 4 * num_dimensions
    shape = [int.from_bytes(content[at : at + 4], "big") for at in range(4, start, 4)]
    if not shape or len(content) != start + math.prod(shape):
        raise UsageError(f"{path} is cut short or is no idx file of bytes: get it again")
    return np.frombuffer(bytearray(content[start:]), np.uint8).reshape(shape), is_published
