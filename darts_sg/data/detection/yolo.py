"""Text files of objects beside the images, as YOLO (Redmon et al., 2016) and its successors read them.

DIR/images/train/NAME.jpg with DIR/labels/train/NAME.txt, or DIR/train/images/NAME.jpg with DIR/train/labels/NAME.txt,
likewise with test, val or valid; or a data.yaml in DIR that names these folders. Each line of a text is a class (from
0), the centre's x and y, width and height, all four as shares of the image's sides; or a class and the corners of a
polygon, whose bounding box is taken. An image without a text has no objects. Class names stand in data.yaml or in
classes.txt.
"""

from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import yaml
from PIL import Image

from darts_sg.data.detection.annotations import (
    MOST_ANNOTATION_BYTES,
    MOST_CLASSES,
    MOST_OBJECTS,
    Annotated,
    DamagedAnnotation,
    Found,
    Row,
    annotation_problem,
    assemble,
    checked_class,
    counted,
    image_names,
    in_turn,
)
from darts_sg.data.folder import TEST_PARTS
from darts_sg.data.spec import Dataset
from darts_sg.data.stream import UNREADABLE
from darts_sg.errors import UsageError, first_line, quoted
from darts_sg.files import read_text, refuse_irregular, why

CONFIGS = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
NAMES = ("classes.txt", "obj.names")
MOST_BYTES = 2**22
"""Size limit for data.yaml and lists of names."""
MOST_LIST_BYTES = 2**28
"""Size limit for a text that lists images."""


def is_yolo(directory: Path) -> bool:
    """True for a folder in the layout of YOLO."""
    return any((directory / name).is_file() for name in CONFIGS) or _found_images(directory, "train") is not None


def load_yolo(directory: Path, *, image_size: int | None, seed: int, download: bool, split_seed: int = 0) -> Dataset:
    """List the images and objects under `directory`; see the module for the layout. Images are read on demand.

    Raises UsageError if there are no such folders. Single images or texts that are damaged are left out, with a
    warning.
    """
    config = _config(directory)
    train = _named_images(directory, config, "train") or _found_images(directory, "train")
    if train is None:
        raise UsageError(
            f"no yolo in {directory}: it needs images/train/ and labels/train/, train/images/ and train/labels/, or a "
            "data.yaml there"
        )
    found = Found([], None)
    class_names = _class_names(directory, config)
    found.train = read_part(directory, train, class_names, found)
    for part in TEST_PARTS:
        test = _named_images(directory, config, part) or _found_images(directory, part)
        if test is not None:
            if both := set(train) & set(test):
                raise UsageError(
                    f"{counted(len(both), 'image', 'is')} in the training and in the {part} part, such as {min(both)}"
                )
            found.test = read_part(directory, test, class_names, found)
            found.remarks.append(f"test part: {part}")
            break
    if class_names is None:  # the classes are their numbers
        numbers = {int(row[0]) for image in (*found.train, *(found.test or ())) for row in image.objects}
        class_names = [str(label) for label in range(max(numbers, default=-1) + 1)]
    found.class_names = class_names
    return assemble("yolo", directory, found, image_size, split_seed)


def read_part(directory: Path, images: list[str], class_names: list[str] | None, found: Found) -> list[Annotated]:
    """The annotations of these images, without damaged ones."""
    read = []
    for name in in_turn(images, "reading annotations"):
        try:
            width, height = _image_size(directory / name)
        except UNREADABLE as error:
            found.damaged[name] = why(error) if isinstance(error, OSError) else first_line(error)
            continue
        try:
            text = _label_text(directory, name)
            read.append(Annotated(name, width, height, parse_labels(text, class_names, width, height)))
        except DamagedAnnotation as error:
            found.damaged[name] = annotation_problem(first_line(error))
    return read


def parse_labels(text: str, class_names: list[str] | None, width: int, height: int) -> list[Row]:
    """The objects in the text of an image of this size, as `Annotated` holds them; DamagedAnnotation if it is none.

    class_names: None if the classes are known by their numbers only.
    """
    objects: list[Row] = []
    for line_number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if not words:
            continue
        if len(objects) == MOST_OBJECTS:
            raise DamagedAnnotation(f"more than {MOST_OBJECTS:,} objects")
        try:
            label, values = float(words[0]), np.array([float(word) for word in words[1:]])
        except ValueError:
            raise DamagedAnnotation(f"line {line_number} holds something else than numbers: {quoted(line)}") from None
        most = MOST_CLASSES if class_names is None else len(class_names)
        if not (label == int(label) if 0 <= label < most else False):
            raise DamagedAnnotation(f"line {line_number} has the class {words[0][:20]}, and there are {most}")
        if len(values) == 4:
            x, y, w, h = values.tolist()
            corners = x - w / 2, y - h / 2, x + w / 2, y + h / 2
        elif len(values) >= 6 and len(values) % 2 == 0:
            points = values.reshape(-1, 2)
            corners = (*points.min(axis=0).tolist(), *points.max(axis=0).tolist())
        else:
            raise DamagedAnnotation(f"line {line_number} has {len(words)} numbers instead of 5, or a polygon's 7, 9, …")
        x1, y1, x2, y2 = corners
        class_name = str(int(label)) if class_names is None else class_names[int(label)]
        objects.append((class_name, x1 * width, y1 * height, x2 * width, y2 * height, False, False, float("nan")))
    return objects


def _image_size(path: Path) -> tuple[int, int]:
    """Width and height from the head of an image file; raises one of UNREADABLE."""
    refuse_irregular(path)
    with Image.open(path) as image:
        return image.size


def _label_text(directory: Path, name: str) -> str:
    """The text of an image: below labels/ instead of the last images/ in its path, or beside it; empty without one."""
    parts = list(PurePosixPath(name).with_suffix(".txt").parts)
    beside = directory.joinpath(*parts)
    if "images" in parts[:-1]:
        parts[len(parts) - 2 - parts[-2::-1].index("images")] = "labels"
    path = directory.joinpath(*parts)
    path = path if path.exists() else beside
    if not path.exists():
        return ""
    try:
        return read_text(path, MOST_ANNOTATION_BYTES)
    except OSError as error:
        raise DamagedAnnotation(why(error)) from None


def _config(directory: Path) -> dict[str, Any]:
    """The content of data.yaml; empty without one, UsageError if it is no mapping."""
    for name in CONFIGS:
        path = directory / name
        if path.exists():
            try:
                content = yaml.safe_load(_refuse_aliases(read_text(path, MOST_BYTES), path))
            except OSError as error:
                raise UsageError(f"cannot read {path}: {why(error)}") from None
            except (yaml.YAMLError, ValueError, RecursionError) as error:
                raise UsageError(f"{path} is no sound YAML ({first_line(error)[:200]})") from None
            if not isinstance(content, dict):
                raise UsageError(f"{path} is no mapping with train, val and names")
            return content
    return {}


def _refuse_aliases(text: str, path: Path) -> str:
    """The text itself; UsageError if it repeats parts by aliases, which can expand to gigabytes."""
    try:
        aliases = any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, yaml.SafeLoader))
    except yaml.YAMLError:
        return text  # the caller parses it again and says what is wrong
    if aliases:
        raise UsageError(f"{path} has YAML aliases (*name): write the parts out")
    return text


def _class_names(directory: Path, config: dict[str, Any]) -> list[str] | None:
    """The names of the classes by their numbers; None if they stand nowhere."""
    names, where = config.get("names"), "data.yaml"
    if isinstance(names, dict):
        if sorted(map(str, names)) != sorted(str(label) for label in range(len(names))):
            raise UsageError(f"{directory / where}: names must have the keys 0 to {len(names) - 1}")
        names = [names[key] for key in sorted(names, key=int)]
    if names is None:
        where = next((name for name in NAMES if (directory / name).exists()), "")
        if not where:
            return None
        try:
            names = [line for line in read_text(directory / where, MOST_BYTES).splitlines() if line.strip()]
        except OSError as error:
            raise UsageError(f"cannot read {directory / where}: {why(error)}") from None
    if not isinstance(names, list) or not names:
        raise UsageError(f"{directory / where}: names must be a list of class names, not {quoted(names)}")
    if len(names) > MOST_CLASSES:
        raise UsageError(f"{directory / where} has {len(names)} class names, more than {MOST_CLASSES}")
    try:
        checked = [checked_class(str(name) if isinstance(name, int | float) else name) for name in names]
    except DamagedAnnotation as error:
        raise UsageError(f"{directory / where}: {first_line(error)}") from None
    if len(set(checked)) < len(checked):
        raise UsageError(f"{directory / where} has a class name twice")
    return checked


def _found_images(directory: Path, part: str) -> list[str] | None:
    """The images of a part in one of the usual folders; None if there is none."""
    for images, labels in (("images/{}", "labels/{}"), ("{}/images", "{}/labels")):
        if (directory / labels.format(part)).is_dir() and (directory / images.format(part)).is_dir():
            return image_names(directory / images.format(part), directory)
    flat = part == "train" and (directory / "labels").is_dir() and (directory / "images").is_dir()
    return image_names(directory / "images", directory) or None if flat else None


def _named_images(directory: Path, config: dict[str, Any], part: str) -> list[str] | None:
    """The images of a part that data.yaml names: folders, or texts that list images; None if it names none there."""
    given = config.get(part)
    if given is None or given == "":
        return None
    base = config.get("path")
    found: list[str] = []
    for entry in given if isinstance(given, list) else [given]:
        if not isinstance(entry, str) or "\0" in entry or len(entry) > 1000:
            raise UsageError(f"data.yaml: {part} must name a folder, not {quoted(entry)}")
        place = _below(directory, base if isinstance(base, str) else "", entry)
        if place is None:
            if part == "train":
                raise UsageError(
                    f"data.yaml: there is no {quoted(entry)} in {directory}, or it leads out of that folder: move the "
                    "images there, and leave out path"
                )
            continue
        if place.is_dir():
            found += image_names(place, directory)
        else:
            found += _listed(directory, place)
    return list(dict.fromkeys(found)) or None


def _below(directory: Path, base: str, entry: str) -> Path | None:
    """A file or folder that data.yaml names, as a path below `directory`; None if there is none.

    Its own folder is tried first, then `path`; leading ../ are dropped, for such files often name ../train/images.
    """
    words = [word for word in PurePosixPath(entry).parts if word not in ("/", ".")]
    while words and words[0] == "..":
        words.pop(0)
    if ".." in words:
        return None
    for place in (directory.joinpath(*words), directory / PurePosixPath(base).name / PurePosixPath(*words)):
        if words and place.exists():
            return place
    whole = Path(entry)
    inside = whole.is_absolute() and whole.is_relative_to(directory.absolute()) and whole.exists()
    return directory / whole.relative_to(directory.absolute()) if inside else None


def _listed(directory: Path, path: Path) -> list[str]:
    """The images that a text lists, as paths below `directory`."""
    try:
        lines = read_text(path, MOST_LIST_BYTES).splitlines()
    except OSError as error:
        raise UsageError(f"cannot read {path}: {why(error)}") from None
    names = []
    for line in lines:
        if line.strip():
            place = _below(directory, "", line.strip()) if "\0" not in line and len(line) < 1000 else None
            if place is None:
                raise UsageError(f"{path} lists {quoted(line.strip())}, which is not in {directory}")
            names.append(place.relative_to(directory).as_posix())
    return names
