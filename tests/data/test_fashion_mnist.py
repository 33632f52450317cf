"""The idx files of Fashion-MNIST: read to the pixel, gzipped or not, and refused in one line when odd."""

import gzip
from pathlib import Path

import numpy as np
import pytest

from darts_sg.data import load_dataset
from darts_sg.errors import UsageError
from tests.data.fakes import idx_bytes, write_fashion_mnist

IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


@pytest.mark.parametrize("zipped", [True, False])
def test_pixels_and_labels_arrive(tmp_path: Path, zipped: bool) -> None:
    arrays = write_fashion_mnist(tmp_path, zipped)
    dataset = load_dataset("fashion_mnist", tmp_path, download=False)
    for part, name in ((dataset.train, "train"), (dataset.test, "t10k")):
        assert np.array_equal(part.images[..., 0].numpy(), arrays[f"{name}-images-idx3-ubyte"])
        assert np.array_equal(part.labels.numpy(), arrays[f"{name}-labels-idx1-ubyte"])
    assert (dataset.spec.image_size, dataset.spec.in_channels, dataset.spec.num_classes) == (28, 1, 10)
    assert "md5" in dataset.remark


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (IMAGES, b""),
        (IMAGES, b"\0\0\x08\x03\0\0"),
        (IMAGES, b"\x89PNG" * 100),
        (IMAGES, idx_bytes(np.zeros((40, 28, 28), np.uint8))[:-1]),
        (IMAGES, idx_bytes(np.zeros((40, 28, 27), np.uint8))),
        (LABELS, idx_bytes(np.zeros(39, np.uint8))),
        (LABELS, idx_bytes(np.full(40, 10, np.uint8))),
        (LABELS, idx_bytes(np.zeros((40, 1), np.uint8))),
    ],
)
def test_an_odd_file_is_named_in_one_line(tmp_path: Path, name: str, content: bytes) -> None:
    write_fashion_mnist(tmp_path)
    (tmp_path / f"{name}.gz").write_bytes(gzip.compress(content))
    with pytest.raises(UsageError, match=rf"{name}\.gz .*get it again") as caught:
        load_dataset("fashion_mnist", tmp_path, download=False)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("keep", [0, 10, 1000])
def test_a_damaged_gzip_file_is_named(tmp_path: Path, keep: int) -> None:
    write_fashion_mnist(tmp_path)
    path = tmp_path / f"{IMAGES}.gz"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UsageError, match=IMAGES):
        load_dataset("fashion_mnist", tmp_path, download=False)


def test_a_missing_file_is_named_with_its_source(tmp_path: Path) -> None:
    write_fashion_mnist(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(UsageError, match=r"put t10k-labels-idx1-ubyte\.gz there .*http"):
        load_dataset("fashion_mnist", tmp_path, download=False)
