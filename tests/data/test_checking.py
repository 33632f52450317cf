"""data check and data score: each fault that a data set can have is found and named, and a clean set has none."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from darts_sg.cli.data import closest_priors
from darts_sg.cli.main import run
from darts_sg.data import DetectionImages, load_dataset
from darts_sg.data.checking import Check, check_detection, check_folders, layout_of
from darts_sg.data.detection.predictions import Detections, predictions_text, read_predictions
from darts_sg.data.examine import image_facts, nearly_identical
from darts_sg.errors import UsageError
from darts_sg.tasks.average_precision import average_precision
from tests.data.detection_fakes import (
    BOXES,
    SIZE,
    painted,
    save_image,
    voc_object,
    voc_xml,
    write_coco,
    write_voc,
    write_yolo,
)
from tests.data.fakes import write_image_folder


def checked(directory: Path, **options: Any) -> Check:
    dataset = load_dataset(layout_of(directory), directory)
    return check_detection(directory, dataset, 1, closest_priors(320), **options)


def texts(check: Check, *, problems: bool = True) -> list[str]:
    return [finding.text for finding in check.findings if finding.problem is problems]


def test_layouts_are_told_apart(tmp_path: Path) -> None:
    for name, write in (("voc", write_voc), ("coco", write_coco), ("yolo", write_yolo)):
        assert layout_of(write(tmp_path / name)) == name
    write_image_folder(tmp_path / "own", {"a": 2, "b": 2})
    assert layout_of(tmp_path / "own") == "folder"
    (tmp_path / "empty").mkdir()
    for directory, message in ((tmp_path / "empty", "has no known layout"), (tmp_path / "no", "there is no folder")):
        with pytest.raises(UsageError, match=message):
            layout_of(directory)


def test_a_clean_set_has_no_problems(tmp_path: Path) -> None:
    check = checked(write_voc(tmp_path))
    assert texts(check) == []
    found = check.as_dict()
    train, test = found["parts"].values()
    assert train["images"] == 3
    assert train["objects_by_class"] == {"green": 1, "red": 2}
    assert train["images_by_class"] == {"green": 1, "red": 2}
    assert train["images_without_objects"] == 1
    assert test["objects"] == 3
    assert found["image_sizes"]["width"]["50%"] == SIZE[0]
    assert found["boxes"]["side"]["max"] == pytest.approx(np.sqrt(39 * 29 / (40 * 30)), abs=1e-4)
    json.dumps(found, allow_nan=False)


def test_prior_boxes_are_compared_with_each_object(tmp_path: Path) -> None:
    """A square of 45 pixels of 320 in the middle of a place of the first map is a prior box itself."""
    best = closest_priors(320)
    centre, half = np.array([168, 168]) / 320, 45 / 2 / 320
    exact = np.concatenate([centre - half, centre + half])
    tiny = np.concatenate([centre - 4 / 320, centre + 4 / 320])
    found = best(np.array([exact, tiny], np.float32))
    assert found == pytest.approx([1, (8 / 45) ** 2], abs=1e-4)
    check = checked(write_voc(tmp_path))
    assert check.boxes is not None
    assert check.boxes.best_prior is not None
    assert len(check.boxes.best_prior) == sum(map(len, BOXES.values()))
    assert check.as_dict()["boxes"]["priors"]["objects_matched"] == (check.boxes.best_prior >= 0.5).mean().round(4)
    assert best(np.empty((0, 4), np.float32)).shape == (0,)


def test_faults_of_annotations_are_found(tmp_path: Path) -> None:
    write_voc(tmp_path)
    objects = {
        "a": voc_object("red", 5, 6, 20, 25) * 2 + voc_object("green", 5, 6, 20, 25) + voc_object("red", 3, 3, 3, 9),
        "b": voc_object("green", 1, 1, 99, 99) + voc_object("red", 9, 9, 10, 10),
        "d": voc_object("blue", 1, 1, 20, 20),
    }
    for stem, text in objects.items():
        size = (30, 40) if stem == "d" else SIZE
        (tmp_path / "Annotations" / f"{stem}.xml").write_text(voc_xml(text, size))
    (tmp_path / "Annotations" / "c.xml").write_text("<svg/>")
    check = checked(tmp_path)
    assert texts(check) == [
        "1 image is left out: a file is missing or an annotation is damaged",
        "1 image has boxes that are left out: without area, beyond the image, or no numbers",
        "1 image has boxes that reach beyond the border, and are cut there",
        "1 image has another size than the annotation says: do the boxes fit?",
        "1 image has the same box of one class twice",
        "1 class has no objects in the train part",
        "1 class has no objects in the test part",
    ]
    assert check.problems[3].examples == ("JPEGImages/d.jpg (40×30, annotated 30×40)",)
    assert check.problems[4].examples == ("JPEGImages/a.jpg",)
    assert check.problems[5].examples == ("blue",)
    notes = texts(check, problems=False)
    assert "1 image has the same box for two classes" in notes
    assert "2 classes have fewer than 10 objects to train on" in notes
    assert any(note.startswith("1 object has a side under 8 pixels at 320×320 (") for note in notes)
    assert texts(checked(tmp_path, look=False))[:3] == texts(check)[:3]


def test_spellings_of_one_class_and_unused_files_are_found(tmp_path: Path) -> None:
    write_voc(tmp_path, sets={"trainval": [*"abc"], "test": ["d"]})
    (tmp_path / "Annotations" / "a.xml").write_text(voc_xml(voc_object("Traffic Light", 1, 1, 9, 9)))
    (tmp_path / "Annotations" / "d.xml").write_text(voc_xml(voc_object("traffic_light", 1, 1, 9, 9)))
    check = checked(tmp_path)
    assert check.problems[0].text == "1 class has several spellings"
    assert check.problems[0].examples == ("Traffic Light ~ traffic_light",)
    found = {finding.text: finding.examples for finding in check.findings}
    assert found["1 image file is in no part of the data"] == ("JPEGImages/e.jpg",)


def test_small_objects_are_named_at_the_size_of_the_input(tmp_path: Path) -> None:
    write_voc(tmp_path)
    (tmp_path / "Annotations" / "a.xml").write_text(voc_xml(voc_object("red", 5, 6, 7, 25)))
    dataset = load_dataset("voc", tmp_path, image_size=128)
    check = check_detection(tmp_path, dataset, 1, None)
    assert any("1 object has a side under 8 pixels at 128×128" in note for note in texts(check, problems=False))


def test_faults_of_files_and_duplicates_are_found(tmp_path: Path) -> None:
    boxes = {stem: [("red", 3 * n, n, 3 * n + 10, n + 12)] for n, stem in enumerate("abcdef")}
    write_voc(tmp_path, boxes, {"trainval": [*"abcd"], "test": [*"ef"]})
    images = tmp_path / "JPEGImages"
    shutil.copy(images / "a.jpg", images / "e.jpg")  # the same file
    Image.fromarray(painted(boxes["b"], seed=1)).save(images / "f.jpg", quality=60)  # saved again
    content = (images / "c.jpg").read_bytes()
    (images / "c.jpg").write_bytes(content[: len(content) // 2])
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(painted(boxes["d"], seed=3)).convert("L").save(images / "d.jpg", exif=exif)
    check = checked(tmp_path)
    found = {finding.text: finding.examples for finding in check.findings}
    assert found["1 image is in the training part and in the test part, as the same file"] == (
        "JPEGImages/a.jpg = JPEGImages/e.jpg",
    )
    assert found["1 training image looks like a test image"] == ("JPEGImages/b.jpg ~ JPEGImages/f.jpg",)
    assert next(iter(found["1 image cannot be read"])).startswith("JPEGImages/c.jpg (image file is truncated")
    assert found["1 image is turned by EXIF data, which are ignored: do the boxes fit?"] == ("JPEGImages/d.jpg",)
    assert "images are of several kinds: 4 JPEG RGB, 1 JPEG L" in found


def test_near_duplicates_are_looked_for_within_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_image(tmp_path / "a.png", BOXES["a"])
    Image.fromarray(painted(BOXES["a"])).save(tmp_path / "b.jpg", quality=70)
    Image.new("RGB", (30, 30)).save(tmp_path / "black.png")
    Image.new("RGB", (30, 30)).save(tmp_path / "black.bmp")
    first, second, black, dark = (image_facts(tmp_path / n) for n in ("a.png", "b.jpg", "black.png", "black.bmp"))
    assert nearly_identical([black, first], [second, dark]) == [(1, 0)], "images without content are no duplicates"
    assert nearly_identical([first], [first]) == [], "the same file is reported as such"
    monkeypatch.setattr("darts_sg.data.examine.CHUNK", 1)
    assert nearly_identical([black, first] * 3, [second]) == [(1, 0), (3, 0), (5, 0)]
    monkeypatch.setattr("darts_sg.data.examine.MOST_PAIRS", 3)
    assert nearly_identical([first] * 2, [second] * 2) is None


def test_faults_of_class_folders_are_found(tmp_path: Path) -> None:
    write_image_folder(tmp_path / "train", {"cat": 41, "dog": 2, "owl": 1})
    write_image_folder(tmp_path / "test", {"cat": 3, "dog": 2})
    train = tmp_path / "train"
    shutil.copy(train / "cat" / "000.png", train / "dog" / "copy.png")
    shutil.copy(train / "cat" / "001.png", tmp_path / "test" / "cat" / "again.png")
    (train / "cat" / "bad.jpg").write_bytes(b"no image")
    (train / "cat" / "notes.txt").write_text("x")
    Image.fromarray(np.random.default_rng(9).integers(0, 255, (20, 40, 3), np.uint8)).save(train / "cat" / "small.png")
    check = check_folders(tmp_path, 1)
    assert {finding.text: finding.examples for finding in check.findings if finding.problem} == {
        "1 image cannot be read": ("train/cat/bad.jpg",),
        "1 image is in the training part and in the test part, as the same file": (
            "train/cat/001.png = test/cat/again.png",
        ),
        "1 image is in the folders of two classes": ("train/cat/000.png = train/dog/copy.png",),
        "1 class has no images in the test part": ("owl",),
    }
    notes = {finding.text: finding.examples for finding in check.findings if not finding.problem}
    assert notes["2 classes have fewer than 10 images to train on"] == ("dog (3)", "owl (1)")
    assert notes["1 image has a side of less than 32 pixels"] == ("train/cat/small.png",)
    assert "classes are imbalanced: the largest has 43 times as many images as the smallest" in notes
    assert any(examples == ("train/cat/notes.txt",) for examples in notes.values())
    assert texts(check_folders(tmp_path / "train", 1)) == [
        "1 image cannot be read", "1 image is in the folders of two classes"
    ]  # fmt: skip


# --- commands


def test_the_command_prints_json_and_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = write_voc(tmp_path / "[red] $x$")
    (directory / "Annotations" / "a.xml").write_text(
        voc_xml(voc_object("red", 1, 1, 99, 99) + voc_object("[x]$", 1, 1, 9, 9))
    )
    picture = tmp_path / "check.png"
    run(["data", "check", str(directory), "-o", str(picture)])
    out = capsys.readouterr().out
    assert "[red] $x$: layout voc, 3 classes, judged at 320×320 pixels" in out
    assert "[x]$" in out
    assert "- 1 image has boxes that reach beyond the border, and are cut there\n    JPEGImages/a.jpg" in out
    with Image.open(picture) as image:
        assert image.width > 1000
    with pytest.raises(UsageError, match="exists"):
        run(["data", "check", str(directory), "-o", str(picture)])
    with pytest.raises(SystemExit) as stopped:
        run(["data", "check", str(directory), "--json", "--strict"])
    assert stopped.value.code == 1
    assert json.loads(capsys.readouterr().out)["parts"]["train"]["images"] == 3


def test_class_folders_are_checked_by_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also with names that can be neither printed nor drawn as they are."""
    write_image_folder(tmp_path / "own", {"$a\x1b[31m\n\udcff": 10, "猫": 10})
    run(["data", "check", str(tmp_path / "own"), "--strict", "-o", str(tmp_path / "x.png")])
    assert "layout folder, 2 classes" in capsys.readouterr().out
    assert (tmp_path / "x.png").stat().st_size > 10000
    for words, message in (
        (["--image-size", "64"], "leave it out"),
        (["-o", "x.jpg"], "let its name end in .png"),
        (["--dataset", "coco"], "no coco in"),
    ):
        with pytest.raises(UsageError, match=message):
            run(["data", "check", str(tmp_path / "own"), *words])


def moved_objects(images: DetectionImages, seed: int = 0) -> Detections:
    """Detections near the objects of a set, as float32 numbers that the file has to round."""
    random, table = np.random.default_rng(seed), images.table
    boxes = (table.boxes + random.normal(0, 1, table.boxes.shape)).astype(np.float32)
    boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2])
    return Detections(table.images, boxes, table.labels, random.random(len(boxes)).astype(np.float32))


def test_figures_of_predictions_are_computed_again_from_their_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = load_dataset("voc", write_voc(tmp_path))
    assert isinstance(dataset.test, DetectionImages)
    found = moved_objects(dataset.test)
    names = [dataset.test.name(index) for index in range(len(dataset.test))]
    path = tmp_path / "predictions.json"
    path.write_text(predictions_text(found, names, dataset.spec.class_names))
    entries = json.loads(path.read_text())
    assert len(entries) == 3
    assert entries[0].keys() == {"image", "category", "bbox", "score"}
    again = read_predictions(path, dataset.test)
    assert predictions_text(again, names, dataset.spec.class_names) == path.read_text()
    first, second = (average_precision(dataset.test.table, one, 2) for one in (found, again))
    np.testing.assert_equal(first.figures(), second.figures())
    run(["data", "score", str(path), "--data", str(tmp_path), "--json", "--confusion"])
    scored = json.loads(capsys.readouterr().out)
    assert scored["figures"] == first.figures() | {
        name: None for name, value in first.figures().items() if np.isnan(value)
    }
    assert scored["by_class"]["red"]["objects"] == 1
    assert len(scored["curves"]["green"]["recall"]) == 2
    assert np.sum(scored["confusion"]["counts"]) >= 3
    run(["data", "score", str(path), "--data", str(tmp_path), "--confusion"])
    out = capsys.readouterr().out
    assert "3 predictions on the 2 test images" in out
    assert f"{100 * first.figures()['map_voc07']:.2f}" in out
    with pytest.raises(UsageError, match="is not among the 3 of the data"):
        run(["data", "score", str(path), "--data", str(tmp_path), "--part", "train"])
    write_image_folder(tmp_path / "own", {"a": 2, "b": 2})
    with pytest.raises(UsageError, match="no boxes to score predictions against"):
        run(["data", "score", str(path), "--data", str(tmp_path / "own")])


GOOD = {"image": "JPEGImages/d.jpg", "category": "red", "bbox": [1, 2, 3, 4], "score": 0.5}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", "is no list of predictions"),
        ("[", "is no sound JSON"),
        ("[" * 10**5, "is no sound JSON"),
        (json.dumps([1]), "entry 1 is no prediction with image, category, bbox and score"),
        (json.dumps([GOOD, {**GOOD, "bbox": [1, 2, 3]}]), "entry 2 is no prediction"),
        (json.dumps([{**GOOD, "bbox": [1, 2, 3, "4"]}]), "entry 1 is no prediction"),
        (json.dumps([{**GOOD, "score": True}]), "entry 1 is no prediction"),
        (json.dumps([{**GOOD, "score": 10**400}]), "entry 1 is no prediction|no sound JSON"),
        (json.dumps([{**GOOD, "image": "x.jpg"}]), "names the image 'x.jpg', which is not among the 2"),
        (json.dumps([{**GOOD, "category": "owl"}]), "has the category 'owl', which the data have not"),
        (json.dumps([{**GOOD, "bbox": [1, 2, float("nan"), 4]}]), "infinite, none, too large"),
        (json.dumps([{**GOOD, "bbox": [1, 2, -3, 4]}]), "sides below 0"),
        (json.dumps([{**GOOD, "bbox": [1e300, 2, 3, 4]}]), "too large"),
    ],
    ids=lambda value: value[:20],
)
def test_bad_predictions_are_refused(tmp_path: Path, content: str, message: str) -> None:
    test = load_dataset("voc", write_voc(tmp_path)).test
    assert isinstance(test, DetectionImages)
    (tmp_path / "predictions.json").write_text(content)
    with pytest.raises(UsageError, match=message):
        read_predictions(tmp_path / "predictions.json", test)


def test_no_predictions_are_a_file_and_figures_of_zero(tmp_path: Path) -> None:
    test = load_dataset("voc", write_voc(tmp_path)).test
    assert isinstance(test, DetectionImages)
    none = Detections(np.empty(0, int), np.empty((0, 4)), np.empty(0, int), np.empty(0))
    (tmp_path / "predictions.json").write_text(predictions_text(none, ["a"], ["red"]))
    again = read_predictions(tmp_path / "predictions.json", test)
    assert len(again) == 0
    assert average_precision(test.table, again, 2).figures()["map_voc07"] == 0
