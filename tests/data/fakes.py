"""Tiny data sets of random pixels in the layouts in which the real ones are published."""

import gzip
import pickle
from pathlib import Path

import numpy as np
from PIL import Image

from darts_sg.data.cifar import CIFAR10, CIFAR100, CifarLayout

PER_FILE = 20


def write_pickle(path: Path, content: object, protocol: int = 2) -> None:
    path.write_bytes(pickle.dumps(content, protocol=protocol))


def cifar_batch(layout: CifarLayout, num_images: int, seed: int) -> dict[bytes, object]:
    """The content of one file, as it looks after loading with encoding="bytes"."""
    rng = np.random.default_rng(seed)
    data = rng.integers(0, 256, (num_images, 3072), dtype=np.uint8)
    labels = [(i + seed) % layout.num_classes for i in range(num_images)]
    return {b"data": data, layout.labels_key.encode(): labels, b"filenames": [b"x.png"] * num_images}


def write_cifar(directory: Path, layout: CifarLayout = CIFAR10, protocol: int = 2) -> Path:
    """`PER_FILE` images in each file; returns the folder."""
    folder = directory / layout.folder
    folder.mkdir(parents=True)
    for seed, name in enumerate([*layout.train, *layout.test]):
        write_pickle(folder / name, cifar_batch(layout, PER_FILE, seed), protocol)
    names = [b"class %d" % i for i in range(layout.num_classes)]
    meta: dict[bytes, object] = {layout.names_key.encode(): names}
    if layout is CIFAR10:
        meta[b"num_cases_per_batch"] = PER_FILE
    write_pickle(folder / layout.meta, meta, protocol)
    return folder


def write_cifar100(directory: Path) -> Path:
    return write_cifar(directory, CIFAR100)


def idx_bytes(array: np.ndarray) -> bytes:
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes()


def write_fashion_mnist(directory: Path, zipped: bool = True) -> dict[str, np.ndarray]:
    """40 training and 10 test images; returns the arrays by file name."""
    rng = np.random.default_rng(0)
    arrays = {}
    for part, count in (("train", 40), ("t10k", 10)):
        arrays[f"{part}-images-idx3-ubyte"] = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        arrays[f"{part}-labels-idx1-ubyte"] = np.arange(count, dtype=np.uint8) % 10
    for name, array in arrays.items():
        content = idx_bytes(array)
        if zipped:
            (directory / f"{name}.gz").write_bytes(gzip.compress(content))
        else:
            (directory / name).write_bytes(content)
    return arrays


def write_image_folder(root: Path, counts: dict[str, int], size: tuple[int, int] = (40, 48)) -> None:
    """`counts` says how many images of (width, height) pixels each class gets."""
    rng = np.random.default_rng(len(str(root)))
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for i in range(count):
            pixels = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i:03d}.png")


def write_imagenet(directory: Path, num_classes: int = 3, per_class: int = 4, odd: bool = False) -> None:
    """Smooth JPEGs of several sizes in ImageNet's layout; `odd`: the first ones of class 0 of either part are grey,
    CMYK, a PNG named .JPEG, and cut short."""
    rng = np.random.default_rng(0)
    for part in ("train", "val"):
        for label in range(num_classes):
            folder = directory / part / f"n{label:08d}"
            folder.mkdir(parents=True)
            for i in range(per_class):
                coarse = rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)
                size = (int(rng.integers(40, 90)), int(rng.integers(40, 90)))
                image = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)
                path = folder / f"{folder.name}_{i}.JPEG"
                kind = i if odd and label == 0 else None
                if kind in (0, 1):
                    image = image.convert(("L", "CMYK")[i])
                image.save(path, format="PNG" if kind == 2 else "JPEG", quality=90)
                if kind == 3:
                    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
