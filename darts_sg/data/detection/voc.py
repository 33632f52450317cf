"""Pascal VOC (Everingham et al., 2010), and any data set in its layout.

DIR/Annotations/NAME.xml describes DIR/JPEGImages/NAME.jpg, and DIR/ImageSets/Main/SET.txt lists the images of a set.
DIR may also be a VOCdevkit, or the folder around it: then the training part is trainval of VOC2007 and VOC2012, and the
test part that of VOC2007, as in the literature ("07+12").

Coordinates count pixels from 1; all four become one less, as in the SSD codebases.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from xml.parsers import expat

from darts_sg.data.detection.annotations import (
    MOST_ANNOTATION_BYTES,
    MOST_OBJECTS,
    Annotated,
    DamagedAnnotation,
    Found,
    annotation_problem,
    assemble,
    checked_class,
    counted,
    image_names,
    in_turn,
    number,
    pixels,
    refuse_outside,
)
from darts_sg.data.spec import Dataset
from darts_sg.errors import UsageError, first_line
from darts_sg.files import read_bytes, read_text, why

YEARS = ("VOC2007", "VOC2012")
TRAIN_SETS = (("trainval",), ("train", "val"))
"""The sets to train on, the first that are there; without any, all annotated images."""
TRAIN_SETS_BESIDE_VAL = (("train",),)
TEST_SETS = (("test",), ("val",))
MOST_SET_BYTES = 2**26
DEEPEST = 20
"""Levels of elements in an annotation; VOC has 5."""
FIRST_PIXEL = 1
"""The number of the first column and row in VOC's annotations."""
CORNERS = ("xmin", "ymin", "xmax", "ymax")
KEPT = frozenset({*CORNERS, "name", "difficult", "width", "height"})
"""The elements whose text is read."""


def is_voc(directory: Path) -> bool:
    """True for a folder in the layout of VOC."""
    return bool(year_folders(directory))


def year_folders(directory: Path) -> list[Path]:
    """The folders that hold Annotations and JPEGImages: `directory` itself, or those of VOC's years in it."""
    places = [directory, *(base / year for base in (directory, directory / "VOCdevkit") for year in YEARS)]
    found = [place for place in places if (place / "Annotations").is_dir() and (place / "JPEGImages").is_dir()]
    return found[:1] if found[:1] == [directory] else found


def load_voc(directory: Path, *, image_size: int | None, seed: int, download: bool, split_seed: int = 0) -> Dataset:
    """List the images and objects under `directory`; see the module for the layout. Images are read on demand.

    Raises UsageError if it has another layout, a set is missing, or no annotation can be read. Single annotations that
    are damaged are left out, with a warning.
    """
    folders = year_folders(directory)
    if not folders:
        raise UsageError(
            f"no voc in {directory}: it needs JPEGImages/, Annotations/ and ImageSets/Main/ there, or VOC2007 or "
            "VOC2012 that have them"
        )
    found = Found([], None)
    listings = [Listing(folder, directory, found) for folder in folders]
    first = listings[0]  # the one to test on: VOC2007 where there are both
    tested = first.first_set(TEST_SETS)
    if len(listings) > 1 and tested != ("test",):
        raise UsageError(f"{first.folder} has no annotated test set: unpack VOCtest_06-Nov-2007.tar there, too")
    held_out = set(first.stems(*tested)) if tested else set()
    train_sets = TRAIN_SETS_BESIDE_VAL if tested == ("val",) else TRAIN_SETS
    used = []
    for listing in listings:
        chosen = listing.first_set(train_sets)
        stems = listing.stems(*chosen) if chosen else sorted(listing.annotations & set(listing.images) - held_out)
        if listing is first and (both := held_out & set(stems)):
            raise UsageError(
                f"{counted(len(both), 'image', 'is')} in a training set and in the test set of {directory}, such as "
                f"{min(both)}: "
                "take them out of one of ImageSets/Main/*.txt"
            )
        found.train += listing.read(stems)
        used.append(listing.title(chosen))
    found.remarks.append(f"training part: {', '.join(used)}")
    if tested is not None:
        found.test = first.read(first.stems(*tested))
        found.remarks.append(f"test part: {first.title(tested)}")
    return assemble("voc", directory, found, image_size, split_seed)


class Listing:
    """One folder of images, annotations and sets."""

    def __init__(self, folder: Path, root: Path, found: Found) -> None:
        self.folder, self.root, self.found = folder, root, found
        self.annotations = {path.stem for path in (folder / "Annotations").iterdir() if path.suffix == ".xml"}
        self.images = {Path(name).stem: name for name in image_names(folder / "JPEGImages", root)}

    def first_set(self, sets: Sequence[tuple[str, ...]]) -> tuple[str, ...] | None:
        """The first of the sets that is listed and has annotations: those of VOC2012's test part are not public."""
        for names in sets:
            if any(stem in self.annotations for stem in self.stems(*names)):
                return names
        return None

    def title(self, sets: tuple[str, ...] | None) -> str:
        """These sets in words, with the year where there are several."""
        year = f"{self.folder.name} " if self.folder != self.root else ""
        return year + ("+".join(name for name in sets if self.stems(name)) if sets else "all images without a set")

    def stems(self, *sets: str) -> list[str]:
        """The images of these sets, each once; none of a set that is not listed."""
        return list(dict.fromkeys(stem for name in sets for stem in self._listed(name)))

    def _listed(self, name: str) -> list[str]:
        path = self.folder / "ImageSets" / "Main" / f"{name}.txt"
        if not path.exists():
            return []
        try:
            lines = read_text(path, MOST_SET_BYTES).splitlines()
        except OSError as error:
            raise UsageError(f"cannot read {path}: {why(error)}") from None
        # the sets of single classes have a flag behind each name
        stems = (re.sub(r"\s+(-1|0|1)$", "", line.strip()) for line in lines if line.strip())
        return [refuse_outside(stem, path) for stem in stems]

    def read(self, stems: Sequence[str]) -> list[Annotated]:
        """The annotations of these images, without damaged ones."""
        read = []
        for stem in in_turn(stems, "reading annotations"):
            name = self.images.get(stem)
            path = self.folder / "Annotations" / f"{stem}.xml"
            if name is None:
                missing = (self.folder / "JPEGImages" / stem).relative_to(self.root).as_posix()
                self.found.damaged[missing] = "the image is missing"
                continue
            try:
                read.append(read_annotation(path, name))
            except DamagedAnnotation as error:
                self.found.damaged[name] = annotation_problem(first_line(error))
        return read


def read_annotation(path: Path, name: str) -> Annotated:
    """The annotation of the image `name`; DamagedAnnotation if it cannot be read."""
    try:
        content = read_bytes(path, MOST_ANNOTATION_BYTES)
    except OSError as error:
        raise DamagedAnnotation(why(error)) from None
    return parse_annotation(content, name)


def parse_annotation(content: bytes, name: str) -> Annotated:
    """The annotation of the image `name` from XML; DamagedAnnotation if it is none.

    Refuses document types, and with them entities: a few bytes of these can expand to gigabytes.
    """
    reader = _Reader()
    try:
        reader.parser.Parse(content, True)
    except expat.ExpatError as error:
        raise DamagedAnnotation(f"no sound XML: {error}") from None
    except (ValueError, LookupError) as error:  # LookupError: a character set that Python does not know
        raise DamagedAnnotation(first_line(error)) from None
    objects = []
    for given in reader.objects:
        missing = [corner for corner in CORNERS if corner not in given]
        if missing:
            raise DamagedAnnotation(f"an object has no {missing[0]}")
        x1, y1, x2, y2 = (number(given[corner]) - FIRST_PIXEL for corner in CORNERS)
        difficult = given.get("difficult", "0").strip() not in ("0", "", "Unspecified")
        objects.append((checked_class(given.get("name")), x1, y1, x2, y2, difficult, False, float("nan")))
    return Annotated(name, pixels(reader.size.get("width")), pixels(reader.size.get("height")), objects)


class _Reader:
    """Collects the size and the objects while an annotation is parsed; parts of objects, such as heads, are skipped.

    Text is asked for only within the elements that are kept: between the others it is blanks, which take most of the
    time.
    """

    def __init__(self) -> None:
        self.parser = expat.ParserCreate()
        self.parser.buffer_text = True
        self.parser.StartElementHandler = self.start
        self.parser.EndElementHandler = self.end
        self.parser.StartDoctypeDeclHandler = self.refuse
        self.path: list[str] = []
        self.words: list[str] = []
        self.size: dict[str, str] = {}
        self.objects: list[dict[str, str]] = []
        self.kept: dict[str, str] | None = None
        """Receives the text of the current element; None if that is skipped."""

    def start(self, element: str, attributes: dict[str, str]) -> None:
        path = self.path
        path.append(element)
        if element in KEPT:
            outer = path[1:-1]
            if outer == ["size"]:
                self.kept = self.size
            elif outer == ["object"] or outer == ["object", "bndbox"]:
                self.kept = self.objects[-1]
            if self.kept is not None:
                self.words = []
                self.parser.CharacterDataHandler = self.words.append
        elif element == "object" and len(path) == 2:
            if len(self.objects) == MOST_OBJECTS:
                raise DamagedAnnotation(f"more than {MOST_OBJECTS:,} objects")
            self.objects.append({})
        elif len(path) == 1 and element != "annotation":
            raise DamagedAnnotation(f"no annotation of VOC: its root is <{element[:40]}>")
        if len(path) > DEEPEST:
            raise DamagedAnnotation(f"more than {DEEPEST} elements in one another")

    def end(self, element: str) -> None:
        if self.kept is not None and element in KEPT:
            self.kept.setdefault(element, "".join(self.words))
            self.kept = self.parser.CharacterDataHandler = None
        self.path.pop()

    def refuse(self, *ignored: object) -> None:
        raise DamagedAnnotation("it declares a document type, which no annotation needs")
