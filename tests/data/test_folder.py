"""Class folders of images: both layouts, any size, and what is wrong with them in one line."""

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from darts_sg.data import Dataset, folder, load_dataset
from darts_sg.data.statistics import channel_statistics
from darts_sg.errors import UsageError
from tests.data.fakes import write_image_folder


def load(directory: Path, image_size: int | None = None, seed: int = 0, split_seed: int = 0) -> Dataset:
    return load_dataset("folder", directory, image_size=image_size, seed=seed, split_seed=split_seed)


@pytest.mark.parametrize("part", ["test", "val", "valid"])
def test_a_split_of_ones_own_is_taken(tmp_path: Path, part: str) -> None:
    write_image_folder(tmp_path / "train", {"cat": 6, "dog": 3})
    write_image_folder(tmp_path / part, {"cat": 2, "dog": 1})
    dataset = load(tmp_path)
    assert dataset.train.labels.tolist() == [0] * 6 + [1] * 3
    assert dataset.test.labels.tolist() == [0, 0, 1]
    assert dataset.spec.class_names == ("cat", "dog")
    assert f"test part: {part}" in dataset.remark


@pytest.mark.parametrize("inside", ["", "train"])
def test_a_fifth_of_each_class_becomes_the_test_part(tmp_path: Path, inside: str) -> None:
    write_image_folder(tmp_path / inside, {"a": 20, "b": 10, "c": 5}, (32, 32))
    dataset = load(tmp_path)
    assert dataset.train.labels.bincount().tolist() == [16, 8, 4]
    assert dataset.test.labels.bincount().tolist() == [4, 2, 1]
    both = torch.cat([dataset.train.images, dataset.test.images])
    assert len(both.flatten(1).unique(dim=0)) == 35
    assert load(tmp_path).fingerprint() == dataset.fingerprint()
    assert "by seed 0" in dataset.remark


def test_the_test_part_belongs_to_the_data_and_not_to_the_seed_of_a_run(tmp_path: Path) -> None:
    """Otherwise a network fine-tuned with another seed is tested on images that it was trained on."""
    write_image_folder(tmp_path, {"a": 20, "b": 10}, (32, 32))
    first = load(tmp_path)
    assert load(tmp_path, seed=1).fingerprint() == first.fingerprint()
    other = load(tmp_path, split_seed=1)
    assert other.fingerprint() != first.fingerprint()
    assert "by seed 1" in other.remark


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    write_image_folder(tmp_path, {"train": 5, "ship": 5})
    assert load(tmp_path).spec.class_names == ("ship", "train")


@pytest.mark.parametrize(
    ("size", "expected"),
    [((40, 90), 40), ((43, 90), 40), ((45, 90), 48), ((8, 9), 32), ((400, 300), 224), ((90, 60), 64)],
)
def test_the_size_is_the_median_of_the_shorter_sides(tmp_path: Path, size: tuple[int, int], expected: int) -> None:
    write_image_folder(tmp_path, {"a": 4, "b": 4}, size)
    write_image_folder(tmp_path / "odd", {"x": 1}, (500, 700))
    (tmp_path / "odd" / "x" / "000.png").rename(tmp_path / "a" / "large.png")
    (tmp_path / "odd" / "x").rmdir()
    (tmp_path / "odd").rmdir()
    dataset = load(tmp_path)
    assert dataset.spec.image_size == expected
    assert dataset.train.images.shape[1:] == (expected, expected, 3)
    assert f"{expected}×{expected} pixels" in dataset.remark
    assert load(tmp_path, image_size=16).train.images.shape[1:] == (16, 16, 3)


def test_images_are_cropped_in_the_middle_and_resized(tmp_path: Path) -> None:
    """Of a red, a green and a blue third the green one stays, with a breath of the others at its edges."""
    pixels = np.zeros((64, 192, 3), np.uint8)
    for third in range(3):
        pixels[:, 64 * third : 64 * third + 64, third] = 200
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(5):
            Image.fromarray(pixels).save(tmp_path / name / f"{i}.png")
    image = load(tmp_path, image_size=32).train.images[0]
    assert torch.equal(image[:, 2:-2], torch.tensor([0, 200, 0], dtype=torch.uint8).expand(32, 28, 3))
    assert image[:, 0].float().mean(0).argmax() == image[:, -1].float().mean(0).argmax() == 1


@pytest.mark.parametrize(
    ("suffix", "mode"),
    [
        *((".png", mode) for mode in ("L", "P", "RGBA", "1")),
        *((".JPG", mode) for mode in ("L", "CMYK")),
        *((".tif", mode) for mode in ("L", "P", "RGBA", "CMYK")),
        (".gif", "P"),
    ],
)
def test_every_mode_becomes_rgb(tmp_path: Path, suffix: str, mode: str) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(2):
            image = Image.new("RGB", (40, 40), (255, 255, 255)).convert(mode)
            image.save(tmp_path / name / f"{i}{suffix}")
    assert (load(tmp_path).train.images > 250).all()


def test_a_photograph_lying_on_its_side_is_set_upright(tmp_path: Path) -> None:
    pixels = np.zeros((40, 40, 3), np.uint8)
    pixels[:20] = 255  # the top is white as stored; orientation 6 turns it clockwise, to the right
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(2):
            Image.fromarray(pixels).save(tmp_path / name / f"{i}.png", exif=exif)
    image = load(tmp_path, image_size=40).train.images[0].float()
    assert image[:, 25:].min() == 255
    assert image[:, :15].max() == 0


def test_mean_and_deviation_are_those_of_the_training_part(tmp_path: Path) -> None:
    write_image_folder(tmp_path / "train", {"a": 6, "b": 6})
    write_image_folder(tmp_path / "test", {"a": 60, "b": 6})
    dataset = load(tmp_path)
    pixels = dataset.train.images.double().flatten(0, 2) / 255
    assert dataset.spec.mean == pytest.approx(pixels.mean(0).tolist(), abs=1e-6)
    assert dataset.spec.std == pytest.approx(pixels.std(0, correction=0).tolist(), abs=1e-6)


def test_a_channel_that_never_varies_can_be_normalised() -> None:
    assert channel_statistics(torch.full((2, 3, 3, 1), 51, dtype=torch.uint8)) == ((0.2,), (1.0,))


def test_broken_images_are_named_and_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_image_folder(tmp_path / "train", {"a": 6, "b": 6})
    write_image_folder(tmp_path / "test", {"a": 2, "b": 2})
    whole = load(tmp_path).train
    (tmp_path / "train" / "a" / "001.png").write_bytes(b"no image")
    path = tmp_path / "train" / "b" / "003.png"
    path.write_bytes(path.read_bytes()[:300])
    (tmp_path / "train" / "a" / "notes.txt").write_text("not an image, and not meant as one")
    with caplog.at_level(logging.WARNING):
        kept = load(tmp_path).train
    assert "2 of 12 images cannot be read" in caplog.text
    assert "001.png" in caplog.text
    assert "003.png" in caplog.text
    rest = torch.tensor([0, 2, 3, 4, 5, 6, 7, 8, 10, 11])
    assert torch.equal(kept.images, whole.images[rest])
    assert torch.equal(kept.labels, whole.labels[rest])


def only_one_class(root: Path) -> None:
    write_image_folder(root, {"a": 5})


def empty_class(root: Path) -> None:
    write_image_folder(root, {"a": 5, "b": 0})


def single_image(root: Path) -> None:
    write_image_folder(root, {"a": 5, "b": 1})


def class_missing_in_test(root: Path) -> None:
    write_image_folder(root / "train", {"a": 2, "b": 2})
    write_image_folder(root / "test", {"a": 2})


def class_missing_in_train(root: Path) -> None:
    write_image_folder(root / "train", {"a": 2, "b": 2})
    write_image_folder(root / "val", {"a": 2, "b": 2, "c": 1})


def all_broken(root: Path) -> None:
    write_image_folder(root, {"a": 5, "b": 5})
    for path in (root / "b").iterdir():
        path.write_bytes(b"")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: None, "there is no folder"),
        (Path.mkdir, "0 class folders"),
        (only_one_class, "1 class folders"),
        (empty_class, "b holds no images"),
        (single_image, "b holds one image"),
        (class_missing_in_test, "test lacks the classes b"),
        (class_missing_in_train, "train lacks the classes c"),
        (all_broken, "no image of the class b can be read"),
    ],
)
def test_what_is_no_data_set_is_refused_in_one_line(tmp_path: Path, make: Callable[[Path], None], message: str) -> None:
    make(tmp_path / "images")
    with pytest.raises(UsageError, match=message) as caught:
        load(tmp_path / "images")
    assert "\n" not in str(caught.value)


def test_what_does_not_fit_into_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_image_folder(tmp_path, {"a": 5, "b": 5})
    needed = 10 * 40 * 40 * 3
    monkeypatch.setattr(folder, "available_memory", lambda: 2 * needed)
    load(tmp_path)
    monkeypatch.setattr(folder, "available_memory", lambda: 2 * needed - 1)
    with pytest.raises(UsageError, match=r"10 images of 40×40 pixels take .* smaller image size"):
        load(tmp_path)


def test_a_size_too_small_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="too small"):
        load(tmp_path, image_size=4)


def test_grey_values_of_16_bits_keep_their_upper_8_and_values_without_a_range_are_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ramp = np.arange(0, 65536, 64, dtype=np.uint16).reshape(32, 32)
    for name in ("a", "b"):
        for index in range(5):
            path = tmp_path / name / f"{index}.png"
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(ramp).save(path)
    Image.fromarray(ramp / np.float32(65536)).save(tmp_path / "a" / "x.tiff")
    with caplog.at_level(logging.WARNING):
        dataset = load(tmp_path)
    assert len(dataset.train.labels) + len(dataset.test.labels) == 10
    assert torch.equal(
        dataset.train.images[0], torch.from_numpy((ramp >> 8).astype(np.uint8))[..., None].expand(-1, -1, 3)
    )
    assert "1 of 9 images cannot be read and are left out" in caplog.text
    assert "pixels of mode F have no fixed range; convert it to 8 bits" in caplog.text
