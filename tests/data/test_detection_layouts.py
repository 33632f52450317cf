"""The layouts of VOC, COCO and YOLO: what is read, what is left out by name, and what is refused in one line."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from darts_sg.data import Dataset, DetectionImages, Reading, TrainBatches, load_dataset
from darts_sg.data.detection import annotations
from darts_sg.data.detection.voc import parse_annotation
from darts_sg.data.detection.yolo import parse_labels
from darts_sg.errors import UsageError
from tests.data.detection_fakes import (
    BOXES,
    COLOURS,
    SETS,
    coco_content,
    save_image,
    voc_object,
    voc_xml,
    write_coco,
    write_voc,
    write_yolo,
    yolo_text,
)


def load(name: str, directory: Path, **options: Any) -> Dataset:
    return load_dataset(name, directory, **options)


def short(value: object) -> str | None:
    """The name of a test case: hostile content can be long."""
    return repr(value)[:30] if isinstance(value, str | bytes) else None


def boxes_of(dataset: Dataset, part: str = "train") -> dict[str, list[tuple[float, ...]]]:
    """Class and box of every object, by the name of the image's file."""
    images = getattr(dataset, part)
    assert isinstance(images, DetectionImages)
    return {
        Path(one.image).stem: [
            (images.class_names[label], *box)
            for label, box in zip(one.labels.tolist(), one.boxes.tolist(), strict=True)
        ]
        for one in images
    }


def annotate(folder: Path, stem: str, content: str | bytes) -> None:
    path = folder / "Annotations" / f"{stem}.xml"
    path.write_bytes(content.encode() if isinstance(content, str) else content)


# --- VOC


def test_all_four_coordinates_of_voc_become_one_less(tmp_path: Path) -> None:
    """The convention of the SSD codebases: x2 and y2 are the last column and row of the object, counted from 0."""
    dataset = load("voc", write_voc(tmp_path))
    found = boxes_of(dataset) | boxes_of(dataset, "test")
    assert found == {
        stem: [(name, x1, y1, x2 - 1, y2 - 1) for name, x1, y1, x2, y2 in given] for stem, given in BOXES.items()
    }
    assert dataset.spec.class_names == ("green", "red")
    assert dataset.spec.image_size == 320
    assert dataset.remark == "training part: trainval; test part: test"
    one = dataset.test.objects(0)  # type: ignore[union-attr]
    assert (one.width, one.height, one.image) == (40, 30, "JPEGImages/d.jpg")
    assert one.area.tolist() == [39 * 29]


def test_the_devkit_trains_on_both_years_and_tests_on_2007(tmp_path: Path) -> None:
    some = {stem: BOXES[stem] for stem in "ab"}
    write_voc(tmp_path / "VOCdevkit" / "VOC2007", {**some, "d": BOXES["d"]}, {"trainval": ["a", "b"], "test": ["d"]})
    # the sets of 2012's test images are published, their annotations are not
    write_voc(tmp_path / "VOCdevkit" / "VOC2012", {"e": BOXES["e"]}, {"trainval": ["e"], "test": ["x"]})
    for directory in (tmp_path, tmp_path / "VOCdevkit"):
        dataset = load("voc", directory)
        assert set(boxes_of(dataset)) == {"a", "b", "e"}
        assert set(boxes_of(dataset, "test")) == {"d"}
        assert dataset.remark == "training part: VOC2007 trainval, VOC2012 trainval; test part: VOC2007 test"
    (tmp_path / "VOCdevkit" / "VOC2007" / "ImageSets" / "Main" / "test.txt").unlink()
    with pytest.raises(UsageError, match=r"has no annotated test set: unpack VOCtest_06-Nov-2007\.tar"):
        load("voc", tmp_path)


@pytest.mark.parametrize(
    ("sets", "train", "test", "remark"),
    [
        ({"train": ["a", "b"], "val": ["c", "d"]}, "ab", "cd", "training part: train; test part: val"),
        ({"train": ["a"], "val": ["b"], "test": ["d"]}, "ab", "d", "training part: train+val; test part: test"),
        ({"test": ["d"]}, "abce", "d", "training part: all images without a set; test part: test"),
        ({"trainval": ["a", "b"], "val": ["b"], "test": ["x"]}, None, "", "in a training set and in the test set"),
        ({"trainval": ["a", "a", "b  1"], "test": ["d -1"]}, "ab", "d", "training part: trainval; test part: test"),
    ],
)
def test_sets_are_chosen_by_what_is_there(
    tmp_path: Path, sets: dict[str, list[str]], train: str | None, test: str, remark: str
) -> None:
    write_voc(tmp_path, sets=sets)
    if train is None:
        sets["train"] = sets["trainval"]
        (tmp_path / "ImageSets" / "Main" / "train.txt").write_text("a\nb\n")
        with pytest.raises(UsageError, match=remark):
            load("voc", tmp_path)
        return
    dataset = load("voc", tmp_path)
    assert "".join(boxes_of(dataset)) == train
    assert "".join(boxes_of(dataset, "test")) == test
    assert dataset.remark == remark


def test_without_sets_a_fifth_is_split_off_by_a_seed(tmp_path: Path) -> None:
    boxes = {f"{number:02}": [("red" if number < 15 else "green", 1, 1, 9, 9)] for number in range(20)}
    write_voc(tmp_path, boxes, {})
    dataset = load("voc", tmp_path)
    test = boxes_of(dataset, "test")
    assert sorted(given[0][0] for given in test.values()) == ["green", "red", "red", "red"]
    assert not test.keys() & boxes_of(dataset).keys()
    assert boxes_of(load("voc", tmp_path, seed=1), "test") == test
    assert boxes_of(load("voc", tmp_path, split_seed=1), "test") != test
    assert "by seed 0" in dataset.remark


def test_flags_parts_and_decimals_of_voc() -> None:
    head = "<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part>"
    first = voc_object("dog", 2.5, 3, 10.25, 12, difficult=1).replace("</object>", f"{head}</object>")
    found = parse_annotation(voc_xml(first + voc_object(" cat ", 1, 1, 4, 4)).encode(), "x.jpg")
    assert [row[:7] for row in found.objects] == [
        ("dog", 1.5, 2, 9.25, 11, True, False),
        ("cat", 0, 0, 3, 3, False, False),
    ]
    assert (found.width, found.height) == (40, 30)


def test_boxes_are_cut_at_the_border_and_those_without_area_left_out_by_name(tmp_path: Path) -> None:
    write_voc(tmp_path)
    objects = [
        voc_object("red", 0, 0, 10, 10),  # counted from 0 by another tool: not worth a word
        voc_object("red", -5, 1, 10, 100),
        voc_object("red", 50, 1, 60, 10),
        voc_object("red", 7, 7, 7, 9),
        voc_object("red", "nan", 1, 5, 5),  # type: ignore[arg-type]
        voc_object("red", 1, 1, "1e400", 5),  # type: ignore[arg-type]
        voc_object("red", 1, "x", 5, 5),  # type: ignore[arg-type]
        voc_object("red", 9, 1, 5, 5),
    ]
    annotate(tmp_path, "a", voc_xml("".join(objects)))
    annotate(tmp_path, "b", voc_xml(voc_object("green", 1, 1, 100, 100)))
    dataset = load("voc", tmp_path)
    assert boxes_of(dataset)["a"] == [("red", 0, 0, 9, 9), ("red", 0, 0, 9, 30)]
    assert dataset.unusual == {
        "JPEGImages/a.jpg": "boxes cut at the border: 1 of 8",
        "JPEGImages/b.jpg": "boxes cut at the border: 1 of 1",
    }
    annotate(tmp_path, "a", voc_xml("".join(objects[2:])))
    assert load("voc", tmp_path).unusual["JPEGImages/a.jpg"] == "boxes left out: 6 of 6"


BOMB = (
    '<!DOCTYPE a [<!ENTITY a "aaaaaaaaaa">'
    + "".join(f'<!ENTITY {chr(98 + n)} "{f"&{chr(97 + n)};" * 10}">' for n in range(9))
    + "]><annotation>&j;</annotation>"
)
WHOLE = voc_xml(voc_object("red", 1, 1, 9, 9))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (WHOLE[:-20], "no sound XML: unclosed token"),
        ("", "no sound XML: no element found"),
        (BOMB, "it declares a document type"),
        ('<!DOCTYPE a SYSTEM "/etc/passwd"><annotation/>', "it declares a document type"),
        ("<svg/>", "no annotation of VOC: its root is <svg>"),
        ("<annotation>" + "<a>" * 50 + "</a>" * 50 + "</annotation>", "more than 20 elements in one another"),
        (voc_xml("<object/>" * 11), "more than 10 objects"),
        (voc_xml("<object><name>red</name></object>"), "an object has no xmin"),
        (WHOLE.replace("red", " "), "an object has no class name"),
        (WHOLE.replace("red", "r" * 300), "a class name that is none"),
        (WHOLE.encode("utf-16"), None),
        (b"\xff\xfe\x00" + WHOLE.encode(), "no sound XML"),
        (f'<?xml version="1.0" encoding="nope"?>{WHOLE}', "unknown encoding"),
        (WHOLE + " " * 3000, "it is larger than 2.93 KiB"),
    ],
    ids=short,
)
def test_a_damaged_annotation_is_named_and_left_out(
    tmp_path: Path, content: str | bytes, reason: str | None, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    monkeypatch.setattr("darts_sg.data.detection.voc.MOST_OBJECTS", 10)
    monkeypatch.setattr("darts_sg.data.detection.voc.MOST_ANNOTATION_BYTES", 3000)
    annotate(write_voc(tmp_path), "a", content)
    dataset = load("voc", tmp_path)
    if reason is None:
        assert "a" in boxes_of(dataset)
        return
    assert list(boxes_of(dataset)) == ["b", "c"]
    assert dataset.unusual["JPEGImages/a.jpg"].startswith("damaged: annotation: ")
    assert reason in dataset.unusual["JPEGImages/a.jpg"]
    assert "1 damaged image left out" in dataset.remark
    assert "1 image is left out, with a damaged file or annotation" in caplog.text
    with pytest.raises(UsageError, match=r"a\.jpg is damaged: annotation: .*repair it, or choose --damaged skip"):
        dataset.read_by(Reading(0, "stop"))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_pipes_and_missing_files_are_named_and_left_out(tmp_path: Path) -> None:
    write_voc(tmp_path)
    (tmp_path / "Annotations" / "a.xml").unlink()
    os.mkfifo(tmp_path / "Annotations" / "a.xml")
    (tmp_path / "JPEGImages" / "b.jpg").unlink()
    (tmp_path / "Annotations" / "e.xml").unlink()
    dataset = load("voc", tmp_path)
    assert list(boxes_of(dataset)) == ["c"]
    assert "no regular file" in dataset.unusual["JPEGImages/a.jpg"]
    assert dataset.unusual["JPEGImages/b"] == "damaged: the image is missing"
    assert "No such file" in dataset.unusual["JPEGImages/e.jpg"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("ImageSets/Main/trainval.txt", "../../secret\n", "no path below the folder"),
        ("ImageSets/Main/trainval.txt", "/etc/passwd\n", "no path below the folder"),
        ("ImageSets/Main/trainval.txt", b"\xff\xfe", "cannot read .*it is no text"),
        ("ImageSets/Main/trainval.txt", "d\n", "1 image is in a training set and in the test set"),
        ("ImageSets/Main/trainval.txt", "x\n", "the training part|annotated"),
    ],
    ids=short,
)
def test_bad_sets_are_refused(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    write_voc(tmp_path)
    (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    if content == "x\n":
        assert "all images without a set" in load("voc", tmp_path).remark
        return
    with pytest.raises(UsageError, match=message):
        load("voc", tmp_path)


# --- COCO


@pytest.mark.parametrize("roboflow", [False, True])
def test_coco_files_are_read_in_both_layouts(tmp_path: Path, roboflow: bool) -> None:
    if roboflow:
        for part, stems in (("train", SETS["trainval"]), ("valid", SETS["test"])):
            boxes = {stem: BOXES[stem] for stem in stems}
            for stem, given in boxes.items():
                save_image(tmp_path / part / f"{stem}.jpg", given)
            (tmp_path / part / "_annotations.coco.json").write_text(json.dumps(coco_content(boxes)))
    else:
        write_coco(tmp_path)
    dataset = load("coco", tmp_path)
    assert boxes_of(dataset) | boxes_of(dataset, "test") == {stem: [*given] for stem, given in BOXES.items()}
    assert dataset.spec.class_names == ("red", "green", "blue"), "in the order of the ids"
    assert dataset.train.objects(0).area.tolist() == [160]  # type: ignore[union-attr]
    assert f"test part: {'valid' if roboflow else 'val'}" in dataset.remark


def test_crowds_bad_boxes_and_missing_images_of_coco(tmp_path: Path) -> None:
    write_coco(tmp_path)
    path = tmp_path / "annotations" / "instances_train2017.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["iscrowd"] = 1
    content["annotations"][1]["bbox"] = [1, 2, 0, 5]
    content["annotations"][2]["category_id"] = 99
    content["images"].append({"id": 77, "file_name": "gone.jpg"})
    path.write_text(json.dumps(content))
    dataset = load("coco", tmp_path)
    assert isinstance(dataset.train, DetectionImages)
    assert [one.crowd.tolist() for one in dataset.train] == [[True], []]
    assert dataset.unusual["gone.jpg"] == "damaged: the image is missing"
    assert "the category 99, which is not listed" in dataset.unusual["train2017/b.jpg"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("[1]", "has no list of images"),
        ("{", "is no sound JSON"),
        ("[" * 10**5, "is no sound JSON"),
        (lambda c: c.pop("categories"), "has no list of categories"),
        (lambda c: c["categories"].append({"id": 10, "name": "x"}), "two categories with the id or name"),
        (lambda c: c["categories"].append({"id": 1}), "an object has no class name"),
        (lambda c: c["images"].append(c["images"][0]), "two images with the id 0"),
        (lambda c: c["annotations"].append({"image_id": 9}), "annotations of 1 image that it does not list"),
        (lambda c: c["annotations"].append([]), "an annotation without image_id"),
        (lambda c: c["images"][0].update(file_name="../x.jpg"), "no path below the folder"),
        (lambda c: c["categories"].pop(0), "has the category 'blue', which"),
    ],
    ids=short,
)
def test_bad_coco_files_are_refused(tmp_path: Path, change: Any, message: str) -> None:
    write_coco(tmp_path)
    path = tmp_path / "annotations" / "instances_train2017.json"
    if not isinstance(change, str):
        content = json.loads(path.read_text())
        change(content)
        change = json.dumps(content)
    path.write_text(change)
    with pytest.raises(UsageError, match=message):
        load("coco", tmp_path)


# --- YOLO


@pytest.mark.parametrize("names", ["list", "keys", "classes.txt", ""])
@pytest.mark.parametrize("inside", [False, True])
def test_yolo_folders_are_read(tmp_path: Path, names: str, inside: bool) -> None:
    write_yolo(tmp_path, *(("{}/images", "{}/labels") if inside else ()))
    if names in ("list", "keys"):
        given = dict(enumerate(COLOURS)) if names == "keys" else list(COLOURS)
        folders = {"train": "../train/images", "val": "../val/images"} if inside else {"train": "images/train"}
        (tmp_path / "data.yaml").write_text(json.dumps({**folders, "names": given}))
    elif names:
        (tmp_path / names).write_text("\n".join(COLOURS))
    dataset = load("yolo", tmp_path)
    expected = {stem: [(name if names else str([*COLOURS].index(name)), *box) for name, *box in given]
                for stem, given in BOXES.items()}  # fmt: skip
    found = boxes_of(dataset) | boxes_of(dataset, "test")
    for stem, given in expected.items():
        assert [row[0] for row in given] == [row[0] for row in found[stem]]
        np.testing.assert_allclose([r[1:] for r in found[stem]], [r[1:] for r in given], atol=1e-4)
    assert dataset.spec.class_names == (tuple(COLOURS) if names else ("0", "1"))


def test_yolo_polygons_lists_and_flat_folders(tmp_path: Path) -> None:
    assert parse_labels("1 0.1 0.2 0.5 0.2 0.3 0.6\n\n", ["a", "b"], 100, 50)[0][:5] == (
        "b", pytest.approx(10), pytest.approx(10), pytest.approx(50), pytest.approx(30)
    )  # fmt: skip
    write_yolo(tmp_path)
    (tmp_path / "train.txt").write_text("./images/train/a.jpg\nimages/train/b.jpg\n")
    (tmp_path / "data.yaml").write_text(json.dumps({"train": "train.txt", "val": "images/val", "names": [*COLOURS]}))
    assert list(boxes_of(load("yolo", tmp_path))) == ["a", "b"]
    flat = tmp_path / "flat"
    for number in range(10):
        save_image(flat / "images" / f"{number}.jpg", BOXES["a"])
    (flat / "labels").mkdir()
    (flat / "labels" / "0.txt").write_text(yolo_text(BOXES["a"]))
    dataset = load("yolo", flat)
    assert len(dataset.train) == 8
    assert len(dataset.test) == 2


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("0 0.5 0.5 0.5", "line 1 has 4 numbers instead of 5"),
        ("0 0.5 0.5 0.5 0.5 0.9", "line 1 has 6 numbers"),
        ("0 0.5 0.5 0.1 0.1\nx 1 1 1 1", "line 2 holds something else than numbers"),
        ("3 0.5 0.5 0.1 0.1", "line 1 has the class 3, and there are 3"),
        ("-1 0.5 0.5 0.1 0.1", "has the class -1"),
        ("nan 0.5 0.5 0.1 0.1", "has the class nan"),
        ("0.5 0.5 0.5 0.1 0.1", "has the class 0.5"),
        ("0 0.5 0.5 0.1 0.1\n" * (annotations.MOST_OBJECTS + 1), "more than 10,000 objects"),
        (b"\xff\xfe", "no text"),
    ],
    ids=short,
)
def test_damaged_texts_of_yolo_are_named_and_left_out(tmp_path: Path, text: str | bytes, reason: str) -> None:
    write_yolo(tmp_path)
    (tmp_path / "classes.txt").write_text("\n".join(COLOURS))
    (tmp_path / "labels" / "train" / "a.txt").write_bytes(text.encode() if isinstance(text, str) else text)
    (tmp_path / "images" / "train" / "c.jpg").write_bytes(b"no image")
    dataset = load("yolo", tmp_path)
    assert list(boxes_of(dataset)) == ["b"]
    assert reason in dataset.unusual["images/train/a.jpg"]
    assert dataset.unusual["images/train/c.jpg"].startswith("damaged: cannot identify image")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("names: [a, a]\ntrain: images/train", "a class name twice"),
        ("names: {0: a, 2: b}", "must have the keys 0 to 1"),
        ("names: 5", "must be a list of class names"),
        ("names: [[]]", "no class name"),
        ("a: &a [1]\nnames: [*a, *a]", "YAML aliases"),
        ("names: [", "no sound YAML"),
        ("- 1", "no mapping"),
        ("train: ../../elsewhere", "there is no '../../elsewhere' in"),
        ("train: 5", "train must name a folder"),
    ],
    ids=short,
)
def test_a_bad_data_yaml_is_refused(tmp_path: Path, content: str, message: str) -> None:
    write_yolo(tmp_path)
    (tmp_path / "data.yaml").write_text(content)
    with pytest.raises(UsageError, match=message):
        load("yolo", tmp_path)


# --- all of them


@pytest.mark.parametrize("name", ["voc", "coco", "yolo"])
def test_a_folder_of_another_layout_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "cats").mkdir()
    with pytest.raises(UsageError, match=f"no {name} in .*: it needs"):
        load(name, tmp_path)
    with pytest.raises(UsageError, match="image size of 4 pixels is too small"):
        load(name, {"voc": write_voc, "coco": write_coco, "yolo": write_yolo}[name](tmp_path / "x"), image_size=4)


def test_nothing_left_is_an_error_that_names_the_damage(tmp_path: Path) -> None:
    write_voc(tmp_path, {"a": BOXES["a"], "d": BOXES["d"]}, {"trainval": ["a"], "test": ["d"]})
    annotate(tmp_path, "d", "<svg/>")
    with pytest.raises(UsageError, match=r"no image in the test part .* can be used, 1 damaged, such as .*d\.jpg"):
        load("voc", tmp_path)
    annotate(tmp_path, "d", voc_xml(""))
    annotate(tmp_path, "a", voc_xml(""))
    with pytest.raises(UsageError, match="no object in"):
        load("voc", tmp_path)


def test_images_and_their_objects_are_selected_together(tmp_path: Path) -> None:
    dataset = load("voc", write_voc(tmp_path))
    assert isinstance(dataset.train, DetectionImages)
    chosen = dataset.train.select(torch.tensor([2, 1, 1]))
    assert [one.image[-5:] for one in chosen] == ["c.jpg", "b.jpg", "b.jpg"]
    assert [len(one) for one in chosen] == [0, 2, 2]
    assert torch.equal(chosen.objects(2).boxes, dataset.train.objects(1).boxes)
    assert dataset.train.labels.tolist() == [1, 0, 2], "the rarest class of each image, and none for c"


def test_the_fingerprint_covers_boxes_and_flags(tmp_path: Path) -> None:
    fingerprint = load("voc", write_voc(tmp_path)).fingerprint()
    assert load("voc", tmp_path).fingerprint() == fingerprint
    for objects in (voc_object("red", 5, 6, 20, 24), voc_object("red", 5, 6, 20, 25, difficult=1)):
        annotate(tmp_path, "a", voc_xml(objects))
        assert load("voc", tmp_path).fingerprint() != fingerprint
    annotate(tmp_path, "a", voc_xml(voc_object("red", 5, 6, 20, 25)))
    assert load("voc", tmp_path).fingerprint() == fingerprint


def test_images_with_boxes_are_refused_where_labels_are_needed(tmp_path: Path) -> None:
    from darts_sg.data import Augment

    dataset = load("voc", write_voc(tmp_path))
    for ask in (
        lambda: TrainBatches(dataset.train, dataset.spec, 2, Augment(), 0, "weights"),
        lambda: next(dataset.train.parts(2)),
    ):
        with pytest.raises(UsageError, match="boxes instead of one label each: choose --task detection"):
            ask()


def test_the_documented_plug_in_reads_another_format(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "detection.md").read_text()
    blocks = [block.split("```")[0] for block in page.split("```python\n")[1:]]
    [code] = [block for block in blocks if "load_csv" in block]
    code = code.replace('DATASETS.add("csv", load_csv)', "")
    found: dict[str, Any] = {}
    exec(code, found)
    for stem in ("a", "b"):
        save_image(tmp_path / f"{stem}.jpg", BOXES[stem])
    rows = [",".join(map(str, (f"{stem}.jpg", *box))) for stem in ("a", "b") for box in BOXES[stem]]
    (tmp_path / "boxes.csv").write_text("\n".join(rows))
    dataset = found["load_csv"](tmp_path, image_size=32, seed=0, download=False)
    assert boxes_of(dataset) | boxes_of(dataset, "test") == {stem: [*BOXES[stem]] for stem in ("a", "b")}
