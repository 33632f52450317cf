"""What a report says of a classifier's test, against definitions written out; and the file that holds it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import binomtest

from darts_sg.data import Augment, DataSpec, ImageSet, TrainBatches, load_dataset
from darts_sg.engine.steps import evaluate_all
from darts_sg.errors import UsageError
from darts_sg.tasks.classification import Classification, Recorded
from darts_sg.tasks.classified import FILE, Classified, accuracy_interval, read_classified

NAMES = tuple("abcdefg")
SPEC = DataSpec("noise", 7, 8, 3, (0.5,) * 3, (0.25,) * 3, NAMES)
NUMBER = 61


@pytest.fixture(scope="module")
def logits() -> torch.Tensor:
    return 2 * torch.randn(NUMBER, 7, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def images() -> ImageSet:
    pixels = torch.randint(256, (NUMBER, 8, 8, 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    return ImageSet(pixels, torch.arange(NUMBER) % 6)  # there is no image of g


def recorded(logits: torch.Tensor, images: ImageSet) -> Recorded:
    batches = list(zip(logits.split(8), images.labels.split(8), strict=True))
    (found,) = evaluate_all(
        {torch.nn.Identity(): lambda x: x}, batches, lambda: Classification({}).final_evaluator(SPEC)
    )
    assert isinstance(found.evaluator, Recorded)
    (plain,) = evaluate_all({torch.nn.Identity(): lambda x: x}, batches, lambda: Classification({}).evaluator(SPEC))
    assert found.measures == plain.measures
    return found.evaluator


def classified(logits: torch.Tensor, images: ImageSet, folder: Path) -> Classified:
    evaluator = recorded(logits, images)
    batches = TrainBatches(images, SPEC, 8, Augment(), 0, "weights")
    (folder / FILE).write_bytes(Classification({}).pictures(batches, images, evaluator)[FILE])
    return read_classified(folder / FILE)


def test_figures_are_their_definitions(logits: torch.Tensor, images: ImageSet, tmp_path: Path) -> None:
    found, labels = classified(logits, images, tmp_path), images.labels.tolist()
    p = logits.double().softmax(1)
    answers = p.argmax(1).tolist()
    pairs = list(zip(labels, answers, strict=True))
    assert found.accuracy == sum(a == b for a, b in pairs) / NUMBER
    assert found.confusion().tolist() == [[pairs.count((a, b)) for b in range(7)] for a in range(7)]
    for k in range(6):
        assert found.class_accuracy()[k] == pairs.count((k, k)) / labels.count(k)
    assert np.isnan(found.class_accuracy()[6])
    confidence = p.max(1).values.tolist()
    error = 0.0
    for m in range(15):
        inside = [i for i in range(NUMBER) if m / 15 < confidence[i] <= (m + 1) / 15]
        right, sure = (sum(each[i] for i in inside) for each in ([a == b for a, b in pairs], confidence))
        error += abs(right - sure) / NUMBER
    assert found.calibration().error == pytest.approx(error, abs=2e-4)  # float16
    losses = [-p[i, label].log().item() for i, label in enumerate(labels)]
    assert found.worst().tolist() == sorted(range(NUMBER), key=lambda i: -losses[i])[:12]
    wrong = [i for i in range(NUMBER) if answers[i] != labels[i]]
    assert found.most_confident_mistakes().tolist() == sorted(wrong, key=lambda i: -confidence[i])[:12]
    assert set(found.images) == {*found.worst(), *found.most_confident_mistakes()}
    np.testing.assert_array_equal(found.pixels, images.images[torch.from_numpy(found.images)])
    details = found.details()
    assert details["class_accuracy"]["g"] is None
    assert details["mean_class_accuracy"] == pytest.approx(
        np.mean([pairs.count((k, k)) / labels.count(k) for k in range(6)]), abs=1e-5
    )


@pytest.mark.parametrize(("right", "number"), [(0, 1), (3, 3), (7, 20), (9_412, 10_000)])
def test_the_interval_of_an_accuracy_is_wilsons(right: int, number: int) -> None:
    known = binomtest(right, number).proportion_ci(0.95, method="wilson")
    assert accuracy_interval(right, number) == pytest.approx((known.low, known.high), abs=1e-12)


def test_several_ranks_give_the_images_in_the_order_of_the_test(logits: torch.Tensor, images: ImageSet) -> None:
    batches = list(zip(logits.split(8), images.labels.split(8), strict=True))
    parts = []
    for rank in range(3):
        own = Classification({}).final_evaluator(SPEC)
        for outputs, labels in batches[rank::3]:
            own.update(outputs, labels)
        parts.append(own)
    parts[0].measures(parts[0].sums(), [part.records() for part in parts], NUMBER)
    one = recorded(logits, images)
    assert parts[0].found is not None
    assert one.found is not None
    assert parts[0].found.as_bytes() == one.found.as_bytes()


def test_the_report_has_tables_and_pictures_of_the_test(logits: torch.Tensor, images: ImageSet, tmp_path: Path) -> None:
    assert Classification({}).sections(tmp_path, "noise") == []
    classified(logits, images, tmp_path)
    text = "\n".join(Classification({}).sections(tmp_path, "noise"))
    assert "| a | 11 |" in text
    assert "Expected calibration error" in text
    pictures = {path.name for path in (tmp_path / "pictures").iterdir()}
    assert pictures == {f"{name}.png" for name in ("confusion", "class_accuracy", "calibration", "worst", "mistakes")}
    assert all(f"](pictures/{name})" in text for name in pictures)


def test_a_file_that_is_none_is_named(logits: torch.Tensor, images: ImageSet, tmp_path: Path) -> None:
    found, path = classified(logits, images, tmp_path), tmp_path / FILE
    for damaged in (
        replace(found, labels=found.labels + 7), replace(found, classes=found.classes[:3]),
        replace(found, images=found.images - 100), replace(found, of_label=found.of_label * np.nan),
    ):  # fmt: skip
        path.write_bytes(damaged.as_bytes())
        with pytest.raises(UsageError, match="does not hold the predictions of a classifier"):
            read_classified(path)
    path.write_bytes(b"PK\x03\x04")
    with pytest.raises(UsageError, match="does not hold the predictions of a classifier"):
        read_classified(path)


@pytest.mark.parametrize("name", ["folder", "imagenet"])
def test_a_file_becomes_the_pixels_that_the_test_sees(name: str, tmp_path: Path) -> None:
    """So that `predict` says of a folder what the test said, to the bit."""
    random, last = np.random.default_rng(0), "test" if name == "folder" else "val"
    for part in ("train", last):
        for k in range(4):
            path = tmp_path / part / "ab"[k % 2] / f"{k}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            size = (40 + 7 * k, 61 - 5 * k, 3)
            exif = Image.Exif()
            exif[0x0112] = 6 if k == 1 else 1  # turned by 90 degrees
            Image.fromarray(random.integers(256, size=size, dtype=np.uint8)).save(path, exif=exif)
    data, task = load_dataset(name, tmp_path, image_size=32), Classification({})
    files = sorted((tmp_path / last).glob("*/*.jpg"))
    ((seen, labels),) = data.test.parts(4)
    assert labels.tolist() == [0, 0, 1, 1]
    for pixels, file in zip(seen.numpy(), files, strict=True):
        np.testing.assert_array_equal(task.square(task.read(file, data.spec), data.spec), pixels)
    small = np.asarray(Image.fromarray(seen[0].numpy()))
    if name == "folder":  # an image of the network's own size stays as it is, as those of CIFAR do
        np.testing.assert_array_equal(task.square(small, data.spec), small)
    words = task.preprocessing(data.spec)
    assert ("EXIF ignored" in words) == (name == "imagenet")
    assert "32x32" in words
    assert f"mean {data.spec.mean[0]:g}" in words
