"""Images read from their files: the same bits from any number of workers, and no crop, odd or damaged image amiss."""

import json
import random
import shutil
import tarfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from PIL import Image

from darts_sg.data import (
    Augment,
    Dataset,
    ImageFiles,
    Reading,
    TrainBatches,
    balanced_split,
    count_unusual,
    evaluation_batches,
    load_dataset,
    memory,
    read_split,
    split_text,
    stream,
)
from darts_sg.data.stream import CROP_TRIES, middle_box, random_box, read_square
from darts_sg.errors import RunError, UsageError
from tests.data.fakes import write_imagenet

SIZE = 16
SAMPLE = Path(__file__).parents[3] / "shared" / "data" / "imagenet_sample.tar"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of six images in either part, four of them odd or damaged."""
    directory = tmp_path_factory.mktemp("imagenet")
    write_imagenet(directory, 3, 6, odd=True)
    return directory


def load(directory: Path, workers: int = 0, damaged: Literal["skip", "stop"] = "skip") -> Dataset:
    return load_dataset("imagenet", directory, image_size=SIZE).read_by(Reading(workers, damaged))


def files_of(dataset: Dataset, part: str = "train") -> ImageFiles:
    files = getattr(dataset, part)
    assert isinstance(files, ImageFiles)
    return files


def batches(dataset: Dataset, seed: int = 3, stream: str = "weights") -> TrainBatches:
    return TrainBatches(dataset.train, dataset.spec, 5, Augment(cutout_length=4, colour_jitter=0.4), seed, stream)


def slow_resize(image: np.ndarray, box: tuple[float, float, float, float], size: int) -> np.ndarray:
    """The box of (H, W, 3) resized with a triangle as wide as two of its pixels, in float64."""
    for axis, (low, high) in enumerate(((box[1], box[3]), (box[0], box[2]))):
        scale = (high - low) / size
        centres = low + (np.arange(size) + 0.5) * scale
        places = np.arange(image.shape[axis]) + 0.5
        weights = np.clip(1 - np.abs(places - centres[:, None]) / max(scale, 1), 0, None)
        weights /= weights.sum(axis=1, keepdims=True)
        image = np.moveaxis(np.tensordot(weights, image, (1, axis)), 0, axis)
    return image


def test_a_position_gives_the_same_bits_from_any_number_of_workers_and_in_any_order_of_asking(folder: Path) -> None:
    straight = batches(load(folder))
    expected = [straight[position] for position in range(9)]
    assert [len(y) for _, y in expected[:4]] == [5, 5, 5, 3]
    torch.manual_seed(1)
    state = torch.get_rng_state()
    read_ahead = batches(load(folder, workers=2))
    from_the_middle = range(3, 9)
    asked_anyhow = random.Random(0).sample(range(9), 9)
    for others, asked in ((batches(load(folder)), asked_anyhow), (read_ahead, from_the_middle)):
        for position in asked:
            x, y = others[position]
            assert torch.equal(x, expected[position][0])
            assert torch.equal(y, expected[position][1])
    assert torch.equal(torch.get_rng_state(), state)
    for other in (batches(load(folder), seed=4), batches(load(folder), stream="alphas")):
        assert not torch.equal(other[0][0], expected[0][0])
    data = load(folder, workers=2)
    for (x, y), (expected_x, expected_y) in zip(
        evaluation_batches(data.test, data.spec, 7), evaluation_batches(load(folder).test, data.spec, 7), strict=True
    ):
        assert torch.equal(x, expected_x)
        assert torch.equal(y, expected_y)


@pytest.mark.parametrize(
    ("batches_in_memory", "batches_in_shared_memory", "expected"),
    [
        (1000, None, (6, 2)),
        (12, 12, (6, 2)),
        (11, 100, (6, 1)),
        (100, 6, (6, 1)),
        (5, 100, (5, 1)),
        (100, 2, (2, 1)),
        (0, 0, (1, 1)),
        (None, None, (6, 2)),
    ],
)
def test_what_is_read_ahead_is_bounded_by_memory(
    batches_in_memory: int | None,
    batches_in_shared_memory: int | None,
    expected: tuple[int, int],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """At most 1/8 of the memory available and 1/4 of the free shared memory; the bits are the same."""
    batch_bytes = 5 * SIZE * SIZE * 3

    def limit(name: str, batches: int | None, part: int) -> None:
        monkeypatch.setattr(memory, name, lambda: None if batches is None else batches * batch_bytes * part)
        monkeypatch.setattr(stream, name, getattr(memory, name), raising=False)

    limit("available_memory", batches_in_memory, 8)
    limit("shared_memory", batches_in_shared_memory, 4)
    asked: list[tuple[int, int]] = []
    loader = stream.torch_data.DataLoader

    def watched(*arguments: Any, num_workers: int, prefetch_factor: int = 2, **options: Any) -> Any:
        asked.append((num_workers, prefetch_factor))
        return loader(*arguments, **options | {"multiprocessing_context": None})

    monkeypatch.setattr(stream.torch_data, "DataLoader", watched)
    found = batches(load(folder, workers=6))
    first = [found[position][0] for position in (0, 1, 0, 1)]  # going back starts the workers anew
    assert asked == [expected, expected]
    assert torch.equal(first[0], first[2])
    lines = [record.getMessage() for record in caplog.records if "reading ahead" in record.getMessage()]
    assert len(lines) == (expected[0] < 6)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    if expected == (5, 1):
        assert stream.read_ahead(6, batch_bytes) == (2, 1)


def test_each_pass_has_each_image_and_each_pass_crops_it_anew(tmp_path: Path) -> None:
    write_imagenet(tmp_path, 2, 5)
    data = load(tmp_path)
    train = TrainBatches(data.train, data.spec, 10, Augment(), 0, "weights")
    (x, y), (again_x, again_y) = train[0], train[1]
    assert torch.equal(y, data.train.labels[train.order(0)])
    assert torch.equal(again_y, data.train.labels[train.order(1)])
    x, again_x = x[train.order(0).argsort()], again_x[train.order(1).argsort()]
    assert not (x == again_x).flatten(1).all(1).any()


@pytest.mark.parametrize("box", [(0, 0, 70, 50), (3, 7, 60, 21), (10.5, 2.25, 20, 49.75), (20, 20, 25, 23)], ids=str)
def test_a_box_is_resized_as_the_slow_reference_does_it(box: tuple[float, ...], tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    found, kind = read_square(str(tmp_path / "a.png"), SIZE, lambda w, h: box)  # type: ignore[arg-type,return-value]
    assert found.shape == (SIZE, SIZE, 3)
    assert np.abs(found - slow_resize(pixels.astype(float), box, SIZE)).max() < 1.01  # type: ignore[arg-type]
    assert kind == "PNG RGB"


def test_evaluation_resizes_to_256_and_takes_the_middle_224(tmp_path: Path) -> None:
    coarse = np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize((768, 512), Image.Resampling.BICUBIC)
    image.save(tmp_path / "a.png")
    found, _ = read_square(str(tmp_path / "a.png"), 224, middle_box)
    whole = image.resize((384, 256), Image.Resampling.BILINEAR)
    expected = np.asarray(whole.crop((80, 16, 80 + 224, 16 + 224)), dtype=float)
    assert np.abs(found - expected).max() <= 1


def test_random_boxes_lie_in_the_image_and_have_the_areas_and_ratios_asked_for() -> None:
    generator = torch.Generator().manual_seed(0)
    areas, ratios = [], []
    for _ in range(2000):
        left, top, right, bottom = random_box(500, 375, torch.rand(CROP_TRIES, 4, generator=generator).tolist())
        assert 0 <= left < right <= 500
        assert 0 <= top < bottom <= 375
        areas.append((right - left) * (bottom - top) / (500 * 375))
        ratios.append((right - left) / (bottom - top))
    assert 0.079 < min(areas) < 0.09
    assert 0.95 < max(areas) <= 1
    assert 0.74 < min(ratios) < 0.76
    assert 1.31 < max(ratios) < 1.35
    assert 0.4 < np.mean(areas) < 0.54  # what does not fit is drawn again
    draws = [[1.0, 0.5, 0.0, 0.0]] * CROP_TRIES
    assert random_box(100, 1000, draws) == pytest.approx((0, 500 - 200 / 3, 100, 500 + 200 / 3))
    assert random_box(1000, 100, draws) == pytest.approx((500 - 200 / 3, 0, 500 + 200 / 3, 100))
    assert random_box(1, 1, draws) == (0, 0, 1, 1)


def test_odd_images_become_rgb_and_are_named_and_damaged_ones_are_replaced(folder: Path) -> None:
    data = load(folder)
    for position in range(4):
        batches(data)[position]
    assert count_unusual(data.unusual) == {"JPEG CMYK": 1, "JPEG L": 1, "PNG RGB": 1, "damaged": 1}
    damaged = "train/n00000000/n00000000_3.JPEG"
    assert "truncated" in data.unusual[damaged]
    files = replace(files_of(data), labels=torch.arange(18))
    train = TrainBatches(files, data.spec, 18, Augment(), 0, "weights")
    assert sorted(train[0][1].tolist()) == sorted([*range(3), 4, *range(4, 18)])  # 4 stands in for 3
    x, y = next(evaluation_batches(files_of(data, "test"), data.spec, 50))
    assert len(x) == len(y) == 17
    mean, std = (torch.tensor(v)[:, None, None] for v in (data.spec.mean, data.spec.std))
    for i in range(3):
        path = files_of(data, "test").path(i)
        with Image.open(path) as image:
            rgb = np.asarray(image.convert("RGB"), dtype=float)
        expected = slow_resize(rgb, middle_box(rgb.shape[1], rgb.shape[0]), SIZE)
        assert np.abs((x[i] * std + mean).permute(1, 2, 0).numpy() * 255 - expected).max() < 1.1


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_image_or_a_missing_file_can_end_a_run_and_is_named(
    workers: int, folder: Path, tmp_path: Path
) -> None:
    stop = load(folder, workers, "stop")
    with pytest.raises(RunError, match=r"n00000000_3.JPEG is damaged: .*truncated.*--damaged skip"):
        list(batches(stop))
    if workers:
        return
    write_imagenet(tmp_path, 2, 2)
    data = load(tmp_path)
    gone = files_of(data).path(1)
    gone.unlink()
    with pytest.raises(RunError, match=f"cannot read {gone}: No such file"):
        list(batches(data))
    for path in tmp_path.glob("train/*/*"):
        path.write_bytes(b"no image")
    gone.write_bytes(b"")
    with pytest.raises(RunError, match="in a row cannot be decoded"):
        list(batches(data))


def test_decoding_at_reduced_size_is_nearly_the_same(tmp_path: Path) -> None:
    coarse = np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize((640, 480), Image.Resampling.BICUBIC).save(tmp_path / "a.jpg", quality=90)
    box_of = partial(random_box, draws=[[0.5, 0.5, 0.3, 0.4]])
    for boxes in (middle_box, box_of):
        whole, _ = read_square(str(tmp_path / "a.jpg"), 64, boxes)
        reduced, _ = read_square(str(tmp_path / "a.jpg"), 64, boxes, reduced=True)
        difference = np.abs(whole.astype(int) - reduced)
        assert 0 < difference.mean() < 1
    large, _ = read_square(str(tmp_path / "a.jpg"), 400, middle_box)
    again, _ = read_square(str(tmp_path / "a.jpg"), 400, middle_box, reduced=True)
    assert np.array_equal(large, again)  # nothing to reduce


def test_the_fingerprint_is_of_names_and_labels_and_parts_select_alike(folder: Path, tmp_path: Path) -> None:
    data = load(folder)
    assert data.fingerprint() == load(folder, 3, "stop").fingerprint()
    write_imagenet(tmp_path, 3, 6)
    assert load(tmp_path).fingerprint() == data.fingerprint()  # what the files hold is not looked at
    (tmp_path / "val" / "n00000002" / "more.JPEG").write_bytes(b"")
    assert load(tmp_path).fingerprint() != data.fingerprint()
    (part,) = balanced_split(data.train.labels, [6], 0)
    chosen = files_of(data).select(part)
    assert [chosen.path(i) for i in range(6)] == [files_of(data).path(i) for i in part.tolist()]
    assert chosen.labels.bincount().tolist() == [2, 2, 2]


def test_a_split_file_lists_balanced_disjoint_parts_and_is_checked(folder: Path, tmp_path: Path) -> None:
    files, path = files_of(load(folder)), tmp_path / "split.json"
    path.write_text(split_text(files, [0.5, 0.17], 1))
    weights, alphas = read_split(path, files)
    assert [files.labels[part].bincount().tolist() for part in (weights, alphas)] == [[3, 3, 3], [1, 1, 1]]
    assert not set(weights.tolist()) & set(alphas.tolist())
    assert split_text(files, [0.5, 0.17], 1) == path.read_text() != split_text(files, [0.5, 0.17], 2)
    for fractions, expected in (([0.9, 0.2], "sum at most 1"), ([-0.1], "above 0"), ([0.01], "is none")):
        with pytest.raises(UsageError, match=expected):
            split_text(files, fractions, 0)
    content = json.loads(path.read_text())
    for broken, expected in (
        ("{", "is no split file"),
        ("[]", "is no split file"),
        (
            json.dumps(content | {"parts": [["train/n00000000/zz.JPEG"]]}),
            "lists 'train/n00000000/zz.JPEG' and 0 others",
        ),
        (json.dumps(content | {"parts": [[1]]}), "is no split file"),
        (json.dumps(content | {"parts": True}), "is no split file"),
        ("[" * 100_000, "is no split file"),
        (json.dumps(content | {"parts": [["\\ud800"]]}).replace("\\\\", "\\"), "lists a name that no file can have"),
        (json.dumps(content | {"parts": [content["parts"][0]] * 2}), "an image twice"),
    ):
        path.write_text(broken)
        with pytest.raises(UsageError, match=expected):
            read_split(path, files)
    with pytest.raises(UsageError, match="cannot read"):
        read_split(tmp_path / "nowhere", files)


@pytest.mark.parametrize(
    ("broken", "expected"),
    [
        ("no train", "which has no train/: it needs train/CLASS"),
        ("no val", "which has no val/: it needs train/CLASS"),
        ("flat validation", "holds no class folders: sort the validation images"),
        ("class missing", "lacks the classes n00000001:"),
        ("classes missing", "lacks the classes n00000001, .*, n00000005 and 2 others:"),
        ("class empty", "holds no images"),
        ("one class", "two or more are needed"),
    ],
)
def test_a_layout_that_is_none_is_refused_with_the_way_out(broken: str, expected: str, tmp_path: Path) -> None:
    write_imagenet(tmp_path, {"one class": 1, "classes missing": 8}.get(broken, 2), 1)
    val = tmp_path / "val"
    if broken == "no train":
        (tmp_path / "train").rename(tmp_path / "training")
    elif broken == "no val":
        val.rename(tmp_path / "validation")
    elif broken == "classes missing":
        for label in range(1, 8):
            shutil.rmtree(val / f"n{label:08d}")
    elif broken == "flat validation":
        for path in list(val.glob("*/*")):
            path.rename(val / path.name)
            path.parent.rmdir()
    elif broken in ("class missing", "class empty"):
        (val / "n00000001" / "n00000001_0.JPEG").unlink()
        if broken == "class missing":
            (val / "n00000001").rmdir()
    with pytest.raises(UsageError, match=expected):
        load(tmp_path)
    with pytest.raises(UsageError, match="too small"):
        load_dataset("imagenet", tmp_path / "elsewhere", image_size=4)


@pytest.mark.skipif(not SAMPLE.is_file(), reason="the sample of 200 ImageNet images is not beside the checkout")
def test_real_images_are_all_read(tmp_path: Path) -> None:
    with tarfile.open(SAMPLE) as archive:
        archive.extractall(tmp_path / "train", filter="data")
    (tmp_path / "val").symlink_to(tmp_path / "train")
    data = load_dataset("imagenet", tmp_path, image_size=64)
    assert (len(data.train), data.spec.num_classes, data.remark) == (
        200, 200, "test part: val; 200 classes; images brought to 64×64 pixels",
    )  # fmt: skip
    means = []
    for x, y in evaluation_batches(data.test, data.spec, 80):
        means.append(x.mean(dim=(0, 2, 3)) * len(y) / 200)
    assert torch.stack(means).sum(0).abs().max() < 0.3  # normalised by the figures of all of ImageNet
    assert count_unusual(data.unusual) == {"JPEG L": 3}
    x, y = TrainBatches(data.train, data.spec, 200, Augment(colour_jitter=0.4), 0, "weights")[0]
    assert x.isfinite().all()
    assert len(y.unique()) == 200
