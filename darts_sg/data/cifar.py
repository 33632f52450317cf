"""CIFAR-10 and CIFAR-100 (Krizhevsky, 2009) from the published python folders.

Each file is a pickled dict with `data`, uint8 (N, 3072), each row the red, green and blue plane of a 32×32 image, and
`labels` (CIFAR-100: `fine_labels`), a list of N ints.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from darts_sg.data.download import LARGEST_MEMBER, fetch, published, unpack
from darts_sg.data.pickles import PickledBytes, load_pickled_dict
from darts_sg.data.spec import Dataset, DataSpec, ImageSet, refuse_other_size
from darts_sg.errors import UsageError
from darts_sg.files import read_bytes, why

SIZE = 32
SITE = "https://www.cs.toronto.edu/~kriz"


@dataclass(frozen=True)
class CifarLayout:
    """The published folder of one of the two data sets: its files, their checksums and where it comes from."""

    name: str
    folder: str
    archive: str
    archive_md5: str
    train: dict[str, str]
    """File name -> published md5."""
    test: dict[str, str]
    meta: str
    labels_key: str
    names_key: str
    num_classes: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @property
    def files(self) -> list[str]:
        return [*self.train, *self.test, self.meta]


CIFAR10 = CifarLayout(
    name="cifar10",
    folder="cifar-10-batches-py",
    archive="cifar-10-python.tar.gz",
    archive_md5="c58f30108f718f92721af3b95e74349a",
    train={
        "data_batch_1": "c99cafc152244af753f735de768cd75f",
        "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
        "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
        "data_batch_4": "634d18415352ddfa80567beed471001a",
        "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    },
    test={"test_batch": "40351d587109b95175f43aff81a1287e"},
    meta="batches.meta",
    labels_key="labels",
    names_key="label_names",
    num_classes=10,
    mean=(0.49139968, 0.48215827, 0.44653124),
    std=(0.24703233, 0.24348505, 0.26158768),
)
CIFAR100 = CifarLayout(
    name="cifar100",
    folder="cifar-100-python",
    archive="cifar-100-python.tar.gz",
    archive_md5="eb9058c3a382ffc7106e4002c42a8d85",
    train={"train": "16019d7e3df5f24257cddd939b257f8d"},
    test={"test": "f0ef6b0ae62326f3e7ffdfab6717acfc"},
    meta="meta",
    labels_key="fine_labels",
    names_key="fine_label_names",
    num_classes=100,
    mean=(0.5071, 0.4865, 0.4409),
    std=(0.2673, 0.2564, 0.2762),
)


def load_cifar10(directory: Path, *, image_size: int | None, seed: int, download: bool) -> Dataset:
    """CIFAR-10: 50,000 training and 10,000 test images, 32×32 RGB, ten classes."""
    return load_cifar(CIFAR10, directory, image_size, download)


def load_cifar100(directory: Path, *, image_size: int | None, seed: int, download: bool) -> Dataset:
    """CIFAR-100: 50,000 training and 10,000 test images, 32×32 RGB, 100 (fine) classes."""
    return load_cifar(CIFAR100, directory, image_size, download)


def load_cifar(layout: CifarLayout, directory: Path, image_size: int | None, download: bool) -> Dataset:
    """Load the data set of `layout` from `directory`: the published folder, or a folder that holds it or its archive.

    Raises UsageError if it is not there and cannot be downloaded, or if a file is missing or damaged.
    """
    refuse_other_size(layout.name, image_size, SIZE)
    folder = find_folder(layout, directory, download)
    meta = load_pickled_dict(read(folder / layout.meta), folder / layout.meta)
    names = entry(meta, layout.names_key)
    class_names = tuple(map(as_text, names)) if isinstance(names, list) else ()
    if len(class_names) != layout.num_classes or not all(class_names):
        raise UsageError(f"{folder / layout.meta} does not hold {layout.num_classes} class names: get it again")
    per_file = entry(meta, "num_cases_per_batch")
    train, train_is_published = read_part(layout, folder, layout.train, per_file)
    test, test_is_published = read_part(layout, folder, layout.test, per_file)
    spec = DataSpec(
        name=layout.name,
        num_classes=layout.num_classes,
        image_size=SIZE,
        in_channels=3,
        mean=layout.mean,
        std=layout.std,
        class_names=class_names,
    )
    remark = "" if train_is_published and test_is_published else "files differ from the published ones (md5)"
    return Dataset(spec, train, test, remark)


def find_folder(layout: CifarLayout, directory: Path, download: bool) -> Path:
    """The folder with the files, after unpacking or downloading the archive if necessary."""
    for folder in (directory, directory / layout.folder):
        if any((folder / name).is_file() for name in layout.files):
            return folder
    folder, archive = directory / layout.folder, directory / layout.archive
    url = f"{SITE}/{layout.archive}"
    if not archive.is_file():
        if not download:
            raise UsageError(
                f"no {layout.name} in {directory}: put the folder {layout.folder} or the archive "
                f"{layout.archive} there (it is published at {url})"
            )
        fetch(url, archive, layout.archive_md5)
    unpack(archive, folder, layout.files)
    return folder


def read_part(layout: CifarLayout, folder: Path, files: dict[str, str], per_file: object) -> tuple[ImageSet, bool]:
    """The images of `files` (name -> md5) in order, and whether all checksums are the published ones."""
    pixels: list[np.ndarray] = []
    labels: list[int] = []
    all_published = True
    for name, md5 in files.items():
        content = read(folder / name)
        rows, row_labels = read_batch(content, folder / name, layout.labels_key, layout.num_classes)
        if isinstance(per_file, int) and len(rows) != per_file:
            raise UsageError(
                f"{folder / name} holds {len(rows)} images, and {layout.meta} says {per_file}: get it again"
            )
        pixels.append(rows)
        labels.extend(row_labels)
        all_published &= published(content, md5)
    planes = torch.from_numpy(np.concatenate(pixels)).view(-1, 3, SIZE, SIZE)
    return ImageSet(planes.permute(0, 2, 3, 1).contiguous(), torch.tensor(labels)), all_published


def read_batch(content: bytes, path: Path, labels_key: str, num_classes: int) -> tuple[np.ndarray, Sequence[int]]:
    """Pixels, uint8 (N, 3072), and N labels of one file. UsageError naming `path` if it holds anything else."""
    batch = load_pickled_dict(content, path)
    data, labels = entry(batch, "data"), entry(batch, labels_key)
    if not isinstance(data, PickledBytes) or data.array.ndim != 2 or data.array.shape[1] != 3 * SIZE * SIZE:
        raise UsageError(f"{path} does not hold images as (N, {3 * SIZE * SIZE}) bytes under 'data': get it again")
    if not isinstance(labels, list) or not all(type(y) is int and 0 <= y < num_classes for y in labels):
        raise UsageError(f"{path} does not hold labels from 0 to {num_classes - 1} under {labels_key!r}: get it again")
    if len(labels) != len(data.array) or not labels:
        raise UsageError(f"{path} holds {len(data.array)} images and {len(labels)} labels: get it again")
    return data.array, labels


def entry(content: dict[bytes | str, object], key: str) -> object:
    """The value under `key`, a byte string in files of Python 2; None if there is none."""
    return content.get(key.encode(), content.get(key))


def as_text(name: object) -> str:
    """A class name, which is bytes in files of Python 2; empty if it is no text."""
    try:
        return name.decode() if isinstance(name, bytes) else name if isinstance(name, str) else ""
    except UnicodeDecodeError:
        return ""


def read(path: Path) -> bytes:
    """The content of `path`; UsageError if it cannot be read, or is larger than any file of the data sets."""
    try:
        return read_bytes(path, LARGEST_MEMBER)
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({why(error)}): get the whole published folder") from None
