"""Fashion-MNIST (Xiao, Rasul and Vollgraf, 2017) from its four idx files, gzipped or not.

An idx file of bytes: two zero bytes, 0x08 for unsigned bytes, the number of dimensions, each dimension as a
big-endian 32-bit integer, then the bytes.
"""

import gzip
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

from darts_sg.data.download import fetch, published
from darts_sg.data.memory import available_memory
from darts_sg.data.spec import Dataset, DataSpec, ImageSet, refuse_other_size
from darts_sg.errors import UsageError
from darts_sg.files import read_bytes, refuse_irregular, size_text, why

SIZE = 28
SITE = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com"
FILES = {
    "train-images-idx3-ubyte": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "train-labels-idx1-ubyte": "25c81989df183df01b3e8a0aad5dffbe",
    "t10k-images-idx3-ubyte": "bef4ecab320f06d8554ea6380940ec79",
    "t10k-labels-idx1-ubyte": "bb300cfdad3c16e7a12a480ee83cd310",
}
"""Name -> published md5 of the gzipped file."""
MOST_DIMENSIONS = 3
LARGE = 1 << 28
"""Bytes from which on a compressed file is looked at twice; the published images are 47 MB."""
MOST_COMPRESSED = 100
"""Times that gzip makes such a file smaller at most: real images become 2 to 3 times smaller, equal bytes 1,000."""
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

    The header says how large the array is. Nothing is read, let alone decompressed, before that size is found to be
    possible. Raises UsageError naming `path` if the file is damaged.
    """
    zipped = path.suffix == ".gz"
    try:
        refuse_irregular(path)
        with gzip.open(path) if zipped else path.open("rb") as file:
            shape = read_idx_shape(file)
            start, size, stored = 4 + 4 * len(shape), math.prod(shape), path.stat().st_size
            refuse_large(path, size, stored)
            # gzip adds little to what it cannot compress
            possible = stored <= size + size // 100 + 2**16 if zipped else stored == start + size
            pixels = bytearray(file.read(size)) if shape and possible else bytearray()
            complete = bool(shape) and possible and len(pixels) == size and not file.read(1)
        if not complete:
            raise UsageError(f"{path} is cut short or is no idx file of bytes: get it again")
        is_published = published(read_bytes(path, stored), FILES[path.name.removesuffix(".gz")])
    except (OSError, EOFError, zlib.error) as error:
        reason = why(error) if isinstance(error, OSError) else error
        raise UsageError(f"{path} cannot be read ({reason}): get it again") from None
    return np.frombuffer(pixels, np.uint8).reshape(shape), is_published


def read_idx_shape(file: Any) -> list[int]:
    """The dimensions in the header of an open idx file of bytes; none if it is no such file."""
    head = file.read(4)
    if head[:3] != b"\0\0\x08" or len(head) < 4 or not 1 <= head[3] <= MOST_DIMENSIONS:
        return []
    sizes = file.read(4 * head[3])
    return [int.from_bytes(sizes[at : at + 4], "big") for at in range(0, len(sizes), 4)]


def refuse_large(path: Path, size: int, stored: int) -> None:
    """UsageError if an array of `size` bytes does not fit into memory, or cannot be meant by `stored` bytes of file."""
    available = available_memory()
    if available is not None and size > available / 2:
        raise UsageError(
            f"{path} claims to hold {size_text(size)}, more than half of the {size_text(available)} of memory "
            "available: get it again"
        )
    if size > LARGE and size > MOST_COMPRESSED * stored:
        raise UsageError(
            f"{path} claims to hold {size_text(size)} in a file of {size_text(stored)}; no images are that much "
            "smaller when compressed: get it again"
        )
