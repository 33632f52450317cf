"""Small detection data sets of painted rectangles: the boxes are exactly where the paint is."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

Box = tuple[str, int, int, int, int]
"""Class name, and x1, y1, x2, y2 with x2 and y2 the first column and row beyond the paint."""
COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}
SIZE = 40, 30
SETS = {"trainval": ["a", "b", "c"], "test": ["d", "e"]}
BOXES: dict[str, list[Box]] = {
    "a": [("red", 4, 5, 20, 25)],
    "b": [("green", 1, 2, 11, 12), ("red", 20, 10, 39, 30)],
    "c": [],
    "d": [("red", 0, 0, 40, 30)],
    "e": [("green", 8, 8, 18, 28), ("green", 20, 3, 35, 20)],
}


def painted(boxes: Sequence[Box], size: tuple[int, int] = SIZE, seed: int = 0) -> np.ndarray:
    """uint8 (H, W, 3): grey noise with a rectangle in the colour of its class for each box."""
    width, height = size
    pixels = np.random.default_rng(seed).integers(80, 120, (height, width, 1), dtype=np.uint8).repeat(3, 2)
    for name, x1, y1, x2, y2 in boxes:
        pixels[y1:y2, x1:x2] = COLOURS[name]
    return pixels


def save_image(path: Path, boxes: Sequence[Box], seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(painted(boxes, seed=seed)).save(path, quality=95)


def voc_object(name: str, x1: float, y1: float, x2: float | str, y2: float | str, difficult: int = 0) -> str:
    """An object in VOC's XML, its coordinates as they are given."""
    box = f"<xmin>{x1}</xmin><ymin>{y1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax>"
    return f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>{box}</bndbox></object>"


def voc_xml(objects: str, size: tuple[int, int] = SIZE) -> str:
    width, height = size
    return f"<annotation><size><width>{width}</width><height>{height}</height></size>{objects}</annotation>"


def write_voc(
    folder: Path, boxes: Mapping[str, Sequence[Box]] = BOXES, sets: Mapping[str, Sequence[str]] = SETS
) -> Path:
    """VOC's layout; coordinates count from 1, and the last column and row belong to a box. Returns the folder."""
    for name in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (folder / name).mkdir(parents=True)
    for seed, (stem, given) in enumerate(boxes.items()):
        save_image(folder / "JPEGImages" / f"{stem}.jpg", given, seed)
        objects = "".join(voc_object(name, x1 + 1, y1 + 1, x2, y2) for name, x1, y1, x2, y2 in given)
        (folder / "Annotations" / f"{stem}.xml").write_text(voc_xml(objects))
    for name, stems in sets.items():
        (folder / "ImageSets" / "Main" / f"{name}.txt").write_text("\n".join(stems) + "\n")
    return folder


def coco_content(boxes: Mapping[str, Sequence[Box]], suffix: str = ".jpg") -> dict[str, list[dict[str, object]]]:
    """COCO's instances for these images."""
    names = ["red", "green", "blue"]
    objects = [
        {"id": 1, "image_id": number, "category_id": 10 * (names.index(name) + 1), "bbox": [x1, y1, x2 - x1, y2 - y1],
         "area": (x2 - x1) * (y2 - y1) / 2, "iscrowd": 0}
        for number, given in enumerate(boxes.values()) for name, x1, y1, x2, y2 in given
    ]  # fmt: skip
    return {
        "images": [
            {"id": number, "file_name": stem + suffix, "width": SIZE[0], "height": SIZE[1]}
            for number, stem in enumerate(boxes)
        ],
        "annotations": objects,
        "categories": [{"id": 10 * (number + 1), "name": name} for number, name in reversed([*enumerate(names)])],
    }


def write_coco(folder: Path) -> Path:
    """COCO's own layout, with train2017 and val2017."""
    for part, stems in (("train", SETS["trainval"]), ("val", SETS["test"])):
        boxes = {stem: BOXES[stem] for stem in stems}
        for stem, given in boxes.items():
            save_image(folder / f"{part}2017" / f"{stem}.jpg", given)
        (folder / "annotations").mkdir(exist_ok=True)
        (folder / "annotations" / f"instances_{part}2017.json").write_text(json.dumps(coco_content(boxes)))
    return folder


def yolo_text(boxes: Sequence[Box]) -> str:
    width, height = SIZE
    rows = (
        (
            list(COLOURS).index(name),
            (x1 + x2) / 2 / width,
            (y1 + y2) / 2 / height,
            (x2 - x1) / width,
            (y2 - y1) / height,
        )
        for name, x1, y1, x2, y2 in boxes
    )
    return "".join(" ".join(map(str, row)) + "\n" for row in rows)


def write_yolo(folder: Path, images: str = "images/{}", labels: str = "labels/{}") -> Path:
    """YOLO's layout, without names of classes; an image without objects has no text."""
    for part, stems in (("train", SETS["trainval"]), ("val", SETS["test"])):
        for stem in stems:
            save_image(folder / images.format(part) / f"{stem}.jpg", BOXES[stem])
            (folder / labels.format(part)).mkdir(parents=True, exist_ok=True)
            if BOXES[stem]:
                (folder / labels.format(part) / f"{stem}.txt").write_text(yolo_text(BOXES[stem]))
    return folder
