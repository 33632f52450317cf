"""CIFAR folders and archives: read to the pixel, and refused in one line when something is wrong with them."""

import io
import pickle
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import darts_sg
from darts_sg.data import Dataset, load_dataset
from darts_sg.data.cifar import CIFAR10, CIFAR100, CifarLayout
from darts_sg.data.download import published
from darts_sg.errors import UsageError
from tests.data.fakes import PER_FILE, cifar_batch, write_cifar, write_pickle

LAYOUTS = pytest.mark.parametrize("layout", [CIFAR10, CIFAR100], ids=lambda layout: layout.name)
REAL = Path(darts_sg.__file__).parents[2] / "shared" / "data" / "cifar10_jpeg.npz"


def load(directory: Path, layout: CifarLayout = CIFAR10) -> Dataset:
    return load_dataset(layout.name, directory, download=False)


@LAYOUTS
@pytest.mark.parametrize("protocol", [2, 4])
def test_every_pixel_and_label_arrives_in_its_place(tmp_path: Path, layout: CifarLayout, protocol: int) -> None:
    write_cifar(tmp_path, layout, protocol)
    dataset = load(tmp_path, layout)
    batches = [cifar_batch(layout, PER_FILE, seed) for seed in range(len(layout.train) + 1)]
    for part, contents in ((dataset.train, batches[:-1]), (dataset.test, batches[-1:])):
        rows = np.concatenate([content[b"data"] for content in contents])
        labels = [y for content in contents for y in content[layout.labels_key.encode()]]
        assert part.labels.tolist() == labels
        for n, row, column, channel in [(0, 0, 0, 0), (1, 31, 0, 2), (PER_FILE - 1, 3, 17, 1), (7, 30, 31, 0)]:
            assert part.images[n, row, column, channel] == rows[n, channel * 1024 + row * 32 + column]
    assert dataset.spec.class_names[3] == "class 3"
    assert dataset.spec.num_classes == layout.num_classes
    assert "md5" in dataset.remark


@LAYOUTS
def test_the_folder_itself_is_accepted(tmp_path: Path, layout: CifarLayout) -> None:
    folder = write_cifar(tmp_path, layout)
    assert load(folder, layout).fingerprint() == load(tmp_path, layout).fingerprint()


def test_the_fingerprint_knows_pixels_labels_and_their_place(tmp_path: Path) -> None:
    write_cifar(tmp_path)
    before = load(tmp_path)
    assert before.fingerprint() == load(tmp_path).fingerprint()
    prints = {before.fingerprint()}
    for name, key, index in (("data_batch_3", b"data", (4, 5)), ("test_batch", b"labels", 2)):
        path = tmp_path / CIFAR10.folder / name
        content = cifar_batch(CIFAR10, PER_FILE, 2 if name == "data_batch_3" else 5)
        content[key][index] = (content[key][index] + 1) % 10
        write_pickle(path, content)
        prints.add(load(tmp_path).fingerprint())
    assert len(prints) == 3


def make_archive(directory: Path, layout: CifarLayout, change: Callable[[tarfile.TarFile], None] | None = None) -> Path:
    """The published archive in `directory`, made of a fake folder that is then gone."""
    folder = write_cifar(directory / "elsewhere", layout)
    path = directory / layout.archive
    with tarfile.open(path, "w:gz") as tar:
        if change:
            change(tar)
        tar.add(folder, layout.folder)
    shutil.rmtree(directory / "elsewhere")
    return path


@LAYOUTS
def test_an_archive_lying_there_is_unpacked(tmp_path: Path, layout: CifarLayout) -> None:
    make_archive(tmp_path, layout)
    assert len(load(tmp_path, layout).test) == PER_FILE
    assert sorted(path.name for path in (tmp_path / layout.folder).iterdir()) == sorted(layout.files)
    assert {path.name for path in tmp_path.iterdir()} == {layout.archive, layout.folder}


def test_an_archive_writes_nothing_outside_its_folder(tmp_path: Path) -> None:
    def escape(tar: tarfile.TarFile) -> None:
        for name in ("../escaped", f"{CIFAR10.folder}/../../escaped", str(tmp_path / "escaped")):
            member = tarfile.TarInfo(name)
            member.size = 3
            tar.addfile(member, io.BytesIO(b"bad"))

    data = tmp_path / "data"
    data.mkdir()
    make_archive(data, CIFAR10, escape)
    load(data)
    assert {path.name for path in tmp_path.rglob("*")} == {"data", CIFAR10.archive, CIFAR10.folder, *CIFAR10.files}


def test_an_archive_with_a_link_for_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    with tarfile.open(tmp_path / CIFAR10.archive, "w:gz") as tar:
        for name in CIFAR10.files:
            member = tarfile.TarInfo(f"{CIFAR10.folder}/{name}")
            member.type, member.linkname = tarfile.SYMTYPE, str(tmp_path / "secret")
            tar.addfile(member)
    with pytest.raises(UsageError, match="no ordinary file"):
        load(tmp_path)
    assert not (tmp_path / CIFAR10.folder).exists()


@pytest.mark.parametrize(
    "damage",
    [
        lambda whole: whole[:-5000],
        lambda whole: whole[:100_000] + bytes(100_000) + whole[200_000:],
        lambda whole: b"<html>not found</html>",
        lambda whole: b"",
    ],
    ids=["cut", "overwritten", "html", "empty"],
)
def test_a_damaged_archive_leaves_no_folder(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    path = make_archive(tmp_path, CIFAR10)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UsageError, match=r"cifar-10-python\.tar\.gz .*get it again") as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == [CIFAR10.archive]


class RunsCommand:
    """Pickles to something that runs a command when it is loaded."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("name", ["data_batch_2", "test_batch", "batches.meta"])
def test_a_pickle_that_would_run_something_is_refused_and_not_run(tmp_path: Path, name: str, protocol: int) -> None:
    import os

    path = write_cifar(tmp_path) / name
    content = {b"data": RunsCommand(os.system, f"touch {tmp_path / 'ran'}"), b"labels": [0]}
    write_pickle(path, content, protocol)
    pickle.loads(path.read_bytes())  # it does run when it is let
    assert (tmp_path / "ran").exists()
    (tmp_path / "ran").unlink()
    with pytest.raises(UsageError, match=rf"{name} wants to run (posix|nt)\.system"):
        load(tmp_path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "call",
    [
        RunsCommand(eval, "1"),
        RunsCommand(np.load, "x"),
        RunsCommand(getattr, "", "join"),
        RunsCommand(np.fromfile, "/dev/null"),
        RunsCommand(torch.load, "x"),
    ],
    ids=lambda call: call.call[0].__name__,
)
def test_no_other_function_is_found_either(tmp_path: Path, call: RunsCommand) -> None:
    write_pickle(write_cifar(tmp_path) / "data_batch_1", {b"data": call})
    with pytest.raises(UsageError, match=rf"data_batch_1 wants to run .*{call.call[0].__name__}"):
        load(tmp_path)


def batch_with(**changes: object) -> bytes:
    """A batch of CIFAR-10 with some entries replaced, or taken out where the change is None."""
    content = cifar_batch(CIFAR10, PER_FILE, 0) | {key.encode(): value for key, value in changes.items()}
    return pickle.dumps({key: value for key, value in content.items() if value is not None}, protocol=2)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "damaged"),
        (b"not a pickle", "damaged"),
        (batch_with()[:-100], "damaged"),
        (batch_with()[:200], "damaged"),
        (pickle.dumps([1, 2]), "holds a list"),
        (batch_with(data=None), "does not hold images"),
        (batch_with(data=np.zeros((PER_FILE, 3071), np.uint8)), "does not hold images"),
        (batch_with(data=np.zeros((PER_FILE, 3, 32, 32), np.uint8)), "does not hold images"),
        (batch_with(data=np.zeros((PER_FILE, 3072), np.float32)), "not of unsigned bytes"),
        (batch_with(data=np.array([None])), "not of unsigned bytes"),
        (batch_with(labels=None), "does not hold labels"),
        (batch_with(labels=[10] * PER_FILE), "labels from 0 to 9"),
        (batch_with(labels=[-1] * PER_FILE), "labels from 0 to 9"),
        (batch_with(labels=["cat"] * PER_FILE), "labels from 0 to 9"),
        (batch_with(labels=[1] * (PER_FILE - 1)), f"{PER_FILE} images and {PER_FILE - 1} labels"),
        (pickle.dumps(cifar_batch(CIFAR10, 19, 0), 2), f"holds 19 images, and batches.meta says {PER_FILE}"),
    ],
)
def test_an_odd_file_is_named_in_one_line(tmp_path: Path, content: bytes, message: str) -> None:
    (write_cifar(tmp_path) / "data_batch_4").write_bytes(content)
    with pytest.raises(UsageError, match=message) as caught:
        load(tmp_path)
    assert "data_batch_4" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    (write_cifar(tmp_path) / "data_batch_5").unlink()
    with pytest.raises(UsageError, match="data_batch_5 cannot be read"):
        load(tmp_path)


@LAYOUTS
def test_where_nothing_lies_the_user_is_told_what_to_put_there(tmp_path: Path, layout: CifarLayout) -> None:
    with pytest.raises(UsageError) as caught:
        load(tmp_path / "none", layout)
    for word in (str(tmp_path / "none"), layout.folder, layout.archive, "https://"):
        assert word in str(caught.value)
    assert not (tmp_path / "none").exists()


def test_another_image_size_is_refused(tmp_path: Path) -> None:
    write_cifar(tmp_path)
    with pytest.raises(UsageError, match="32×32"):
        load_dataset("cifar10", tmp_path, image_size=64, download=False)


@pytest.mark.skipif(not REAL.is_file(), reason="../shared/data is absent")
def test_real_images_arrive_whole_and_have_the_statistics_of_the_spec(tmp_path: Path) -> None:
    """300 images of each file, brought from JPEGs into the published layout."""
    from PIL import Image

    stored = np.load(REAL)
    offsets, labels, jpeg = stored["offsets"], stored["labels"], stored["jpeg"].tobytes()
    folder = tmp_path / CIFAR10.folder
    folder.mkdir()
    kept = [np.arange(k * 10_000, k * 10_000 + 300) for k in range(6)]
    decoded = []
    for name, indices in zip([*CIFAR10.train, *CIFAR10.test], kept, strict=True):
        images = [np.array(Image.open(io.BytesIO(jpeg[offsets[i] : offsets[i + 1]]))) for i in indices]
        decoded.append(np.stack(images))
        rows = decoded[-1].transpose(0, 3, 1, 2).reshape(len(indices), -1)
        write_pickle(folder / name, {b"data": rows, b"labels": labels[indices].tolist()})
    write_pickle(folder / CIFAR10.meta, {b"label_names": [b"x"] * 10, b"num_cases_per_batch": 300})
    dataset = load(tmp_path)
    assert np.array_equal(dataset.train.images.numpy(), np.concatenate(decoded[:5]))
    assert np.array_equal(dataset.test.labels.numpy(), labels[kept[5]])
    pixels = dataset.train.images.double() / 255
    torch.testing.assert_close(pixels.mean((0, 1, 2)), torch.tensor(CIFAR10.mean).double(), atol=0.02, rtol=0)
    torch.testing.assert_close(pixels.std((0, 1, 2)), torch.tensor(CIFAR10.std).double(), atol=0.02, rtol=0)


def test_published_means_the_md5_of_the_bytes() -> None:
    assert published(b"", "d41d8cd98f00b204e9800998ecf8427e")
    assert not published(b"\0", "d41d8cd98f00b204e9800998ecf8427e")
