"""What holds for every data set in the registry."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from darts_sg.data import (
    DATASETS,
    Augment,
    Dataset,
    DataSpec,
    DetectionImages,
    ImageFiles,
    ImageSet,
    TrainBatches,
    load_dataset,
)
from darts_sg.data.detection.batches import DetectionBatches
from darts_sg.errors import UsageError
from tests.data.detection_fakes import write_coco, write_voc, write_yolo
from tests.data.fakes import write_cifar, write_cifar100, write_fashion_mnist, write_image_folder, write_imagenet

WRITERS: dict[str, Callable[[Path], object]] = {
    "cifar10": write_cifar,
    "cifar100": write_cifar100,
    "fashion_mnist": write_fashion_mnist,
    "imagenet": lambda directory: write_imagenet(directory, 4, 8),
    "folder": lambda directory: write_image_folder(directory, {"a": 20, "b": 20}),
    "synthetic": lambda directory: None,
    "voc": write_voc,
    "coco": write_coco,
    "yolo": write_yolo,
}


@pytest.mark.parametrize("name", DATASETS)
def test_every_data_set_loads_whole_and_makes_batches(name: str, tmp_path: Path) -> None:
    WRITERS[name](tmp_path)
    dataset = load_dataset(name, tmp_path, download=False)
    spec = dataset.spec
    assert spec.name == name
    for part in (dataset.train, dataset.test):
        assert 0 <= part.labels.min() <= part.labels.max() < spec.num_classes + isinstance(part, DetectionImages)
        if isinstance(part, ImageFiles):
            assert len(part.names) == len(part)
            continue
        assert part.images.dtype == torch.uint8
        assert part.images.shape == (len(part), spec.image_size, spec.image_size, spec.in_channels)
        assert part.images.is_contiguous()
    assert all(0 < value < 1 for value in (*spec.mean, *spec.std))
    if isinstance(dataset.train, DetectionImages):
        x, objects = DetectionBatches(dataset.train, spec, 3)[3]
        assert len(objects) == len(x) == 3
    else:
        x, y = TrainBatches(dataset.train, spec, 8, Augment(cutout_length=8), 0, "weights")[3]
        assert y.shape == (8,)
    assert x.shape[1:] == (spec.in_channels, spec.image_size, spec.image_size)
    assert len(dataset.fingerprint()) == 16
    assert dataset.fingerprint() == load_dataset(name, tmp_path, download=False).fingerprint()


def test_an_unknown_name_is_answered_with_the_choices(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"did you mean 'cifar10'.*choices: cifar10, cifar100, fashion_mnist"):
        load_dataset("cifar-10", tmp_path)


def test_a_negative_seed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="seed"):
        load_dataset("synthetic", tmp_path, seed=-1)


def test_select_keeps_images_with_their_labels_and_copies() -> None:
    images = ImageSet(torch.arange(10, dtype=torch.uint8)[:, None, None, None], torch.arange(10))
    chosen = images.select(torch.tensor([7, 2]))
    assert chosen.images.flatten().tolist() == chosen.labels.tolist() == [7, 2]
    chosen.images.zero_()
    assert images.images[7] == 7


def test_to_another_device_keeps_the_kind() -> None:
    moved = ImageSet(torch.zeros(2, 4, 4, 3, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64)).to("meta")
    assert moved.images.device.type == moved.labels.device.type == "meta"


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        (torch.zeros(2, 4, 4, 3), torch.zeros(2, dtype=torch.int64)),
        (torch.zeros(2, 4, 4, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64)),
        (torch.zeros(2, 4, 4, 3, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64)),
        (torch.zeros(2, 4, 4, 3, dtype=torch.uint8), torch.zeros(2)),
    ],
)
def test_tensors_of_another_kind_make_no_image_set(images: torch.Tensor, labels: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="must be"):
        ImageSet(images, labels)


def test_a_spec_that_contradicts_itself_is_refused() -> None:
    with pytest.raises(ValueError, match="class names"):
        DataSpec("x", 2, 32, 1, (0.5,), (0.5,), ("a",))
    with pytest.raises(ValueError, match="1 entries"):
        DataSpec("x", 1, 32, 1, (0.5, 0.5), (0.5,), ("a",))


def test_the_fingerprint_does_not_depend_on_how_the_memory_lies() -> None:
    spec = DataSpec("x", 2, 4, 3, (0.5,) * 3, (0.5,) * 3, ("a", "b"))
    pixels = torch.randint(256, (6, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(6) % 2
    strided = ImageSet(pixels.permute(0, 2, 3, 1), labels)
    compact = ImageSet(pixels.permute(0, 2, 3, 1).contiguous(), labels)
    assert Dataset(spec, strided, strided).fingerprint() == Dataset(spec, compact, compact).fingerprint()
