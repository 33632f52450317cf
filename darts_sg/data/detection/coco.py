"""COCO (Lin et al., 2014), and any data set whose objects stand in JSON files of its form.

One file for each part: DIR/annotations/instances_train2017.json, DIR/annotations/train.json, DIR/train.json or
DIR/train/_annotations.coco.json, and likewise with test, val or valid. Images are looked for in the folder of that part
(DIR/train2017, DIR/images/train, …), in DIR/images and in DIR. Boxes are x, y, width, height in pixels from 0.
"""

import json
from pathlib import Path
from typing import Any

from darts_sg.data.detection.annotations import (
    MOST_OBJECTS,
    Annotated,
    DamagedAnnotation,
    Found,
    Row,
    annotation_problem,
    assemble,
    checked_class,
    counted,
    number,
    pixels,
    refuse_outside,
)
from darts_sg.data.folder import NAMED, TEST_PARTS
from darts_sg.data.spec import Dataset
from darts_sg.errors import UsageError, first_line, quoted
from darts_sg.files import read_text, why

MOST_BYTES = 2**31
"""Size limit for a file; that of COCO's training part has 448 MiB."""


def part_file(directory: Path, part: str) -> Path | None:
    """The JSON file of a part; None without one, UsageError if there are several."""
    names, places = (f"{part}.json", f"instances_{part}.json"), (directory / "annotations", directory)
    exact = [directory / part / "_annotations.coco.json", *(place / name for place in places for name in names)]
    for path in exact:
        if path.exists():
            return path
    years = sorted((directory / "annotations").glob(f"instances_{part}[0-9][0-9][0-9][0-9].json"))
    if len(years) > 1:
        several = ", ".join(path.name for path in years[:NAMED])
        raise UsageError(f"{directory / 'annotations'} holds {several}: leave the one to use")
    return years[0] if years else None


def is_coco(directory: Path) -> bool:
    """True for a folder in the layout of COCO."""
    return part_file(directory, "train") is not None


def load_coco(directory: Path, *, image_size: int | None, seed: int, download: bool, split_seed: int = 0) -> Dataset:
    """List the images and objects under `directory`; see the module for the layout. Images are read on demand.

    Raises UsageError if files are missing, are no such JSON, or their categories are ambiguous.
    """
    train_file = part_file(directory, "train")
    if train_file is None:
        raise UsageError(
            f"no coco in {directory}: it needs annotations/instances_train*.json, train.json or "
            "train/_annotations.coco.json there"
        )
    found = Found([], None)
    train_names, found.train = read_part(directory, train_file, "train", found)
    found.remarks.append(f"training part: {train_file.name}")
    for part in TEST_PARTS:
        test_file = part_file(directory, part)
        if test_file is not None:
            test_names, found.test = read_part(directory, test_file, part, found)
            more = [name for name in test_names if name not in train_names]
            if more:
                raise UsageError(f"{test_file} has the category {quoted(more[0])}, which {train_file} lacks")
            found.remarks.append(f"test part: {part}")
            break
    found.class_names = train_names
    return assemble("coco", directory, found, image_size, split_seed)


def read_part(directory: Path, path: Path, part: str, found: Found) -> tuple[list[str], list[Annotated]]:
    """The names of the categories, by their ids, and the annotations of all images in a file."""
    content = _content(path)
    categories: dict[Any, str] = {}
    for category in content["categories"]:
        if not isinstance(category, dict) or not isinstance(category.get("id"), int | str):
            raise UsageError(f"{path} has a category without id and name: {quoted(category)}")
        try:
            name = checked_class(category.get("name"))
        except DamagedAnnotation as error:
            raise UsageError(f"{path}: of the categories, {first_line(error)}") from None
        if category["id"] in categories or name in categories.values():
            raise UsageError(f"{path} has two categories with the id or name of {quoted(category)}")
        categories[category["id"]] = name
    objects: dict[Any, list[dict[str, Any]]] = {}
    for entry in content["annotations"]:
        key = entry.get("image_id") if isinstance(entry, dict) else None
        if not isinstance(key, int | str):
            raise UsageError(f"{path} has an annotation without image_id: {quoted(entry)}")
        objects.setdefault(key, []).append(entry)
    folders = [folder for folder in _image_folders(directory, path, part) if folder.is_dir()]
    listed = {folder: {entry.name for entry in folder.iterdir()} for folder in folders}
    read: list[Annotated] = []
    known = set()
    for image in content["images"]:
        if not isinstance(image, dict) or not isinstance(image.get("id"), int | str):
            raise UsageError(f"{path} has an image without id: {quoted(image)}")
        if image["id"] in known:
            raise UsageError(f"{path} has two images with the id {quoted(image['id'])}")
        known.add(image["id"])
        file = refuse_outside(str(image.get("file_name") or ""), path)
        place = next((f for f in folders if file in listed[f] or ("/" in file and (f / file).exists())), None)
        if place is None:
            found.damaged[file] = "the image is missing"
            continue
        name = (place / file).relative_to(directory).as_posix()
        try:
            rows = [_object(entry, categories) for entry in objects.get(image["id"], ())]
            if len(rows) > MOST_OBJECTS:
                raise DamagedAnnotation(f"more than {MOST_OBJECTS:,} objects")
        except DamagedAnnotation as error:
            found.damaged[name] = annotation_problem(first_line(error))
        else:
            read.append(Annotated(name, pixels(image.get("width")), pixels(image.get("height")), rows))
    strangers = len(objects.keys() - known)
    if strangers:
        raise UsageError(f"{path} has annotations of {counted(strangers, 'image')} that it does not list")
    in_order = [categories[key] for key in sorted(categories, key=lambda key: (isinstance(key, str), key))]
    return in_order, read


def _content(path: Path) -> dict[str, list[Any]]:
    """The content of a file with its three lists; UsageError if it is no such file."""
    try:
        content = json.loads(read_text(path, MOST_BYTES))
    except OSError as error:
        raise UsageError(f"cannot read {path}: {why(error)}") from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is no sound JSON ({first_line(error)[:200]})") from None
    for name in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(name), list):
            raise UsageError(f"{path} has no list of {name}, as COCO's files of instances have")
    return content


def _image_folders(directory: Path, path: Path, part: str) -> list[Path]:
    """Where the images of a part may lie."""
    year = path.stem.removeprefix("instances_")  # train2017
    names = dict.fromkeys((year, part))
    return [
        *(directory / name for name in names),
        *(directory / "images" / name for name in names),
        directory / "images",
        directory,
    ]


def _object(entry: dict[str, Any], categories: dict[Any, str]) -> Row:
    """An object as `Annotated` holds it."""
    key, box = entry.get("category_id"), entry.get("bbox")
    if not isinstance(key, int | str) or key not in categories:
        raise DamagedAnnotation(f"an object has the category {quoted(key)}, which is not listed")
    if not isinstance(box, list) or len(box) != 4:
        raise DamagedAnnotation(f"an object has the bbox {quoted(box)} instead of x, y, width, height")
    x, y, width, height = (number(value) for value in box)
    crowd = number(entry.get("iscrowd", 0)) == 1
    return categories[key], x, y, x + width, y + height, False, crowd, number(entry.get("area"))
