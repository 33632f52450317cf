"""Data sets by name, and the batches made of them.

A data set is a function that returns a Dataset, see `Loader`, registered with `DATASETS.add(name, load)`: here, or in a
plug-in (examples/plugins/small_data.py).
"""

import inspect
from pathlib import Path

from darts_sg.data.batches import Augment, TrainBatches, evaluation_batches, keyed_generator
from darts_sg.data.cifar import load_cifar10, load_cifar100
from darts_sg.data.detection.coco import load_coco
from darts_sg.data.detection.objects import DetectionImages, Objects
from darts_sg.data.detection.voc import load_voc
from darts_sg.data.detection.yolo import load_yolo
from darts_sg.data.fashion_mnist import load_fashion_mnist
from darts_sg.data.folder import load_folder
from darts_sg.data.imagenet import load_imagenet
from darts_sg.data.spec import Dataset, DataSpec, Images, ImageSet, Loader
from darts_sg.data.split import balanced_split, read_split, split_text
from darts_sg.data.stream import ImageFiles, Reading, count_unusual
from darts_sg.data.synthetic import load_synthetic
from darts_sg.errors import UsageError
from darts_sg.registry import Registry

__all__ = [
    "DATASETS",
    "Augment",
    "DataSpec",
    "Dataset",
    "DetectionImages",
    "ImageFiles",
    "ImageSet",
    "Images",
    "Loader",
    "Objects",
    "Reading",
    "TrainBatches",
    "balanced_split",
    "count_unusual",
    "evaluation_batches",
    "keyed_generator",
    "load_dataset",
    "read_split",
    "split_text",
]

DATASETS: Registry[Loader] = Registry("data set")
DATASETS.add("cifar10", load_cifar10)
DATASETS.add("cifar100", load_cifar100)
DATASETS.add("fashion_mnist", load_fashion_mnist)
DATASETS.add("folder", load_folder)
DATASETS.add("imagenet", load_imagenet)
DATASETS.add("synthetic", load_synthetic)
DATASETS.add("voc", load_voc)
DATASETS.add("coco", load_coco)
DATASETS.add("yolo", load_yolo)


def load_dataset(
    name: str,
    directory: Path,
    *,
    image_size: int | None = None,
    seed: int = 0,
    split_seed: int = 0,
    download: bool = True,
) -> Dataset:
    """Load the data set `name` into memory; of imagenet the names and labels only.

    directory: holds its files; missing ones are downloaded to it if `download` allows that. image_size: side in pixels
    to which images of arbitrary sizes are brought. seed: of rendered images. split_seed: of the test part that a data
    set splits off; passed to the loaders that take it. Raises UsageError if there is no such data set, its files are
    missing or damaged, or an option does not suit it; the message says what to do.
    """
    if seed < 0:
        raise UsageError(f"the seed must not be negative: {seed}")
    load = DATASETS[name]
    # a loader of a plug-in need not split
    more = {"split_seed": split_seed} if "split_seed" in inspect.signature(load).parameters else {}
    return load(directory.expanduser(), image_size=image_size, seed=seed, download=download, **more)
