"""Check a data set before a training: counts, sizes, broken boxes, damaged files, images that are there twice.

`check_detection` is for the layouts of Pascal VOC, COCO and YOLO, `check_folders` for class folders. A finding is a
problem if results would be wrong or lower for it, and a note if it is good to know.
"""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from darts_sg.data.detection.annotations import CUT, LEFT_OUT, counted
from darts_sg.data.detection.coco import is_coco
from darts_sg.data.detection.objects import DetectionImages
from darts_sg.data.detection.voc import is_voc
from darts_sg.data.detection.yolo import is_yolo
from darts_sg.data.examine import ImageFacts, examine, identical, nearly_identical
from darts_sg.data.folder import SUFFIXES, find_parts, subfolders
from darts_sg.data.spec import Dataset
from darts_sg.data.stream import DAMAGED
from darts_sg.errors import UsageError

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
FEW = 10
"""Objects or images of a class below which it is named as rare."""
IMBALANCE = 20
"""Largest class / smallest class from which on a data set is called imbalanced."""
SMALLEST_OBJECT = 8
"""Pixels of a side, at the size of the network's input, below which objects are hardly found."""
SMALLEST_IMAGE = 32
PRIOR_IOU = 0.5
"""An object matches the prior boxes that overlap it this much."""
SIDES = {"under 0.1": (0.0, 0.1), "0.1 to 0.3": (0.1, 0.3), "over 0.3": (0.3, 2.0)}
"""Ranges of an object's size: the root of its share of the image's area."""
COCO_SIZES = {"small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, np.inf)}
MOST_EXAMPLES = 1000
NUM_SAMPLES = 24
"""Images that a picture can choose from: not all of them can be read."""

BestPrior = Callable[[np.ndarray], np.ndarray]
"""From boxes as shares of the sides, float32 (M, 4), to the IoU of each with the prior box closest to it, (M,)."""


@dataclass(frozen=True)
class Finding:
    """Something worth knowing about a data set."""

    problem: bool
    text: str
    examples: tuple[str, ...] = ()
    """Names of images or classes, at most MOST_EXAMPLES."""

    def as_dict(self) -> dict[str, Any]:
        return {"kind": "problem" if self.problem else "note", "text": self.text, "examples": list(self.examples)}


@dataclass(frozen=True, eq=False)
class PartCounts:
    """Numbers of images and objects in one part of a data set."""

    images: int
    images_by_class: np.ndarray
    """int64 (classes,): images with an object of the class, or of the class."""
    objects_by_class: np.ndarray | None = None
    """int64 (classes,); None for class folders."""
    without_objects: int = 0
    difficult: int = 0
    crowds: int = 0

    @property
    def by_class(self) -> np.ndarray:
        """Objects of each class, or images of class folders."""
        return self.images_by_class if self.objects_by_class is None else self.objects_by_class


@dataclass(frozen=True, eq=False)
class BoxFacts:
    """The boxes of all parts, one entry an object."""

    shares: np.ndarray
    """float32 (M, 4): boxes as shares of the sides of their image."""
    side: np.ndarray
    """(M,): root of the share of the image's area."""
    aspect: np.ndarray
    """(M,): width / height in pixels."""
    area: np.ndarray
    """(M,): pixels in the original image."""
    best_prior: np.ndarray | None
    """(M,): IoU with the closest prior box."""


@dataclass(eq=False)
class Check:
    """The result of a check."""

    layout: str
    directory: Path
    remark: str
    class_names: tuple[str, ...]
    parts: dict[str, PartCounts]
    image_size: int | None
    """Side of the network's input that objects are judged at; None for class folders."""
    facts: dict[str, list[ImageFacts]]
    """Facts about each file, by part; empty if files were not decoded."""
    boxes: BoxFacts | None = None
    samples: list[tuple[Path, str]] = field(default_factory=list)
    """Some training images of class folders, and their classes."""
    findings: list[Finding] = field(default_factory=list)

    @property
    def problems(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.problem]

    def add(self, problem: bool, text: str, examples: Sequence[str] = ()) -> None:
        self.findings.append(Finding(problem, text, tuple(examples[:MOST_EXAMPLES])))

    def image_sides(self) -> np.ndarray:
        """Width and height of all readable images that were looked into, int64 (N, 2)."""
        sides = [(one.width, one.height) for part in self.facts.values() for one in part if not one.damaged]
        return np.array(sides, np.int64).reshape(-1, 2)

    def as_dict(self) -> dict[str, Any]:
        """Everything but the single images and boxes, as plain values."""
        sides = self.image_sides()
        found: dict[str, Any] = {
            "layout": self.layout,
            "directory": str(self.directory),
            "remark": self.remark,
            "classes": list(self.class_names),
            "parts": {name: self._part(part) for name, part in self.parts.items()},
        }
        if len(sides):
            found["image_sizes"] = {"width": quantiles(sides[:, 0]), "height": quantiles(sides[:, 1])}
        if self.boxes is not None:
            found["boxes"] = self._boxes(self.boxes)
        return found | {"findings": [finding.as_dict() for finding in self.findings]}

    def _part(self, part: PartCounts) -> dict[str, Any]:
        counts: dict[str, Any] = {"images": part.images}
        named = dict(zip(self.class_names, part.images_by_class.tolist(), strict=True))
        if part.objects_by_class is None:
            return counts | {"images_by_class": named}
        objects = dict(zip(self.class_names, part.objects_by_class.tolist(), strict=True))
        counts |= {"objects": int(part.objects_by_class.sum()), "images_without_objects": part.without_objects}
        counts |= {"difficult": part.difficult, "crowds": part.crowds}
        return counts | {"objects_by_class": objects, "images_by_class": named}

    def _boxes(self, boxes: BoxFacts) -> dict[str, Any]:
        areas = {
            name: int(((boxes.area >= low) & (boxes.area < high)).sum()) for name, (low, high) in COCO_SIZES.items()
        }
        found: dict[str, Any] = {"side": quantiles(boxes.side), "aspect": quantiles(boxes.aspect), "coco_sizes": areas}
        if boxes.best_prior is not None and len(boxes.side):
            found["priors"] = {
                "objects_matched": matched_share(boxes.best_prior),
                "best_iou": quantiles(boxes.best_prior),
                "objects_matched_by_side": {
                    name: matched_share(boxes.best_prior[(boxes.side >= low) & (boxes.side < high)])
                    for name, (low, high) in SIDES.items()
                },
            }
        return found


def quantiles(values: np.ndarray) -> dict[str, float] | None:
    """Quantiles by name: "5%" to "95%", the smallest and the largest value; None without values."""
    if not len(values):
        return None
    found = {f"{share:.0%}": round(float(np.quantile(values, share)), 4) for share in QUANTILES}
    return {"min": round(float(values.min()), 4), **found, "max": round(float(values.max()), 4)}


def matched_share(best_prior: np.ndarray) -> float | None:
    """The share of the objects that a prior box overlaps enough; None without objects."""
    return round(float((best_prior >= PRIOR_IOU).mean()), 4) if len(best_prior) else None


def layout_of(directory: Path) -> str:
    """The layout of a folder: voc, coco, yolo or folder; UsageError if it is none of them."""
    if not directory.is_dir():
        raise UsageError(f"there is no folder {directory}: name the one that holds the data")
    for name, suits in (("voc", is_voc), ("coco", is_coco), ("yolo", is_yolo)):
        if suits(directory):
            return name
    if subfolders(find_parts(directory)[0]):
        return "folder"
    raise UsageError(
        f"{directory} has no known layout: Annotations/ and JPEGImages/ (voc), annotations/*.json (coco), images/ and "
        "labels/ (yolo), or a folder for each class"
    )


def check_detection(
    directory: Path, dataset: Dataset, threads: int, best_prior: BestPrior | None, *, look: bool = True
) -> Check:
    """Check a data set of images with boxes. `look`: decode every image, which takes the most time."""
    parts = {"train": dataset.train, "test": dataset.test}
    images = {name: part for name, part in parts.items() if isinstance(part, DetectionImages)}
    assert len(images) == len(parts)
    spec = dataset.spec
    facts = {
        name: examine([part.path(index) for index in range(len(part))], threads) if look else []
        for name, part in images.items()
    }
    check = Check(
        spec.name, directory, dataset.remark, spec.class_names,
        {name: _count_objects(part, spec.num_classes) for name, part in images.items()}, spec.image_size, facts,
    )  # fmt: skip
    check.boxes = _box_facts(images, facts, best_prior)
    _find_damage(check, dataset)
    _find_in_files(check, {name: [part.name(i) for i in range(len(part))] for name, part in images.items()})
    _find_wrong_sizes(check, images)
    _find_doubled_boxes(check, images)
    _find_similar_names(check)
    _find_rare_classes(check, "objects")
    _find_unused_files(check, dataset, {part.name(index) for part in images.values() for index in range(len(part))})
    _find_difficult_to_detect(check)
    return check


def check_folders(directory: Path, threads: int, *, look: bool = True) -> Check:
    """Check class folders, DIR/CLASS/* or DIR/train/CLASS/* with DIR/test, val or valid."""
    train_root, test_root = find_parts(directory)
    roots = {"train": train_root} | ({"test": test_root} if test_root else {})
    names = sorted({name for root in roots.values() for name in subfolders(root)})
    files = {part: _class_files(root, names) for part, root in roots.items()}
    labels = {part: np.repeat(np.arange(len(names)), list(map(len, found))) for part, found in files.items()}
    paths = {part: [path for of_class in found for path in of_class] for part, found in files.items()}
    facts = {part: examine(paths[part], threads) if look else [] for part in roots}
    counts = {
        part: PartCounts(len(paths[part]), np.bincount(labels[part], minlength=len(names)).astype(np.int64))
        for part in roots
    }
    remark = f"test part: {test_root.name}" if test_root else "no test part: a fifth will be split off"
    check = Check("folder", directory, remark, tuple(names), counts, None, facts)
    chosen = np.random.default_rng(0).permutation(len(paths["train"]))[:NUM_SAMPLES].tolist()
    check.samples = [(paths["train"][index], names[labels["train"][index]]) for index in chosen]
    shown = {part: [path.relative_to(directory).as_posix() for path in paths[part]] for part in roots}
    if damaged := [name for part in roots for name in _where(shown[part], facts[part], lambda one: bool(one.damaged))]:
        check.add(True, f"{counted(len(damaged), 'image')} cannot be read", damaged)
    if strange := [path.relative_to(directory).as_posix() for root in roots.values() for path in _other_files(root)]:
        check.add(False, f"{counted(len(strange), 'file', 'is')} no image ({' '.join(sorted(SUFFIXES))})", strange)
    _find_in_files(check, shown)
    _find_label_conflicts(check, shown, labels)
    _find_similar_names(check)
    _find_rare_classes(check, "images")

    def is_small(one: ImageFacts) -> bool:
        return 0 < min(one.width, one.height) < SMALLEST_IMAGE

    small = [name for part in roots for name in _where(shown[part], facts[part], is_small)]
    if small:
        check.add(False, f"{counted(len(small), 'image', 'has')} a side of less than {SMALLEST_IMAGE} pixels", small)
    return check


def _count_objects(images: DetectionImages, num_classes: int) -> PartCounts:
    table = images.table
    pairs = np.unique(table.images * num_classes + table.labels) if len(table.labels) else np.empty(0, np.int64)
    return PartCounts(
        len(images),
        np.bincount(pairs % num_classes, minlength=num_classes).astype(np.int64),
        np.bincount(table.labels, minlength=num_classes).astype(np.int64),
        int((table.counts == 0).sum()),
        int(table.difficult.sum()),
        int(table.crowd.sum()),
    )


def _box_facts(
    images: Mapping[str, DetectionImages], facts: Mapping[str, list[ImageFacts]], best_prior: BestPrior | None
) -> BoxFacts:
    """The boxes of all images whose size is known."""
    columns = []
    for name, part in images.items():
        sizes = part.sizes
        if facts[name]:  # the files know better than the annotations
            real = np.array([(one.width, one.height) for one in facts[name]], np.int64).reshape(-1, 2)
            sizes = np.where(real > 0, real, sizes)
        table = part.table
        sides = sizes[table.images].astype(np.float64)  # (M, 2)
        known = (sides > 0).all(axis=1)
        boxes, sides, area = table.boxes[known].astype(np.float64), sides[known], table.area[known]
        extent = boxes[:, 2:] - boxes[:, :2]
        side, aspect = np.sqrt((extent / sides).prod(axis=1)), extent[:, 0] / extent[:, 1]
        columns.append((boxes / np.tile(sides, 2), side, aspect, area))
    shares, side, aspect, area = (np.concatenate(column) for column in zip(*columns, strict=True))
    shares = shares.astype(np.float32)
    return BoxFacts(shares, side, aspect, area, None if best_prior is None else best_prior(shares))


def _find_damage(check: Check, dataset: Dataset) -> None:
    """Images and boxes that the reader of the annotations left out or changed."""
    for kind, verb, text in (
        (DAMAGED, "is", "left out: a file is missing or an annotation is damaged"),
        (LEFT_OUT, "has", "boxes that are left out: without area, beyond the image, or no numbers"),
        (CUT, "has", "boxes that reach beyond the border, and are cut there"),
    ):
        found = [f"{name} ({what})" for name, what in sorted(dataset.unusual.items()) if what.startswith(kind)]
        if found:
            check.add(True, f"{counted(len(found), 'image', verb)} {text}", found)


def _find_in_files(check: Check, names: Mapping[str, Sequence[str]]) -> None:
    """Damaged files, odd ones, and images that are there twice."""
    facts = check.facts
    if not any(facts.values()):
        return
    if check.layout != "folder":
        damaged = [
            f"{name} ({one.damaged})" for part in facts for name, one in zip(names[part], facts[part], strict=True)
            if one.damaged
        ]  # fmt: skip
        if damaged:
            check.add(True, f"{counted(len(damaged), 'image')} cannot be read", damaged)
    rotated = [name for part in facts for name in _where(names[part], facts[part], lambda one: one.rotated)]
    if rotated:
        reading = "which are applied" if check.layout == "folder" else "which are ignored: do the boxes fit?"
        check.add(False, f"{counted(len(rotated), 'image', 'is')} turned by EXIF data, {reading}", rotated)
    kinds: dict[str, int] = {}
    for part in facts.values():
        for one in part:
            if one.kind:
                kinds[one.kind] = kinds.get(one.kind, 0) + 1
    if len(kinds) > 1:
        words = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items(), key=lambda item: -item[1]))
        check.add(False, f"images are of several kinds: {words}")
    both = [(part, index) for part in facts for index in range(len(facts[part]))]
    across: list[str] = []
    within: list[str] = []
    for group in identical([facts[part][index] for part, index in both]):
        members = [both[position] for position in group]
        several = len({part for part, _ in members}) > 1
        (across if several else within).append(" = ".join(names[part][index] for part, index in members))
    if across:
        check.add(
            True,
            f"{counted(len(across), 'image', 'is')} in the training part and in the test part, as the same file",
            across,
        )
    if within:
        check.add(False, f"{counted(len(within), 'image', 'is')} more than once in one part", within)
    if len(facts) == 2:
        (first, second), (a, b) = facts, facts.values()
        twins = nearly_identical(a, b)
        if twins is None:
            check.add(False, f"{len(a):,} and {len(b):,} images are too many to look for near duplicates")
        elif twins:
            words_ = [f"{names[first][i]} ~ {names[second][j]}" for i, j in twins]
            check.add(True, f"{counted(len(twins), 'training image', 'looks')} like a test image", words_)


def _find_wrong_sizes(check: Check, images: Mapping[str, DetectionImages]) -> None:
    wrong = []
    for name, part in images.items():
        for index, one in enumerate(check.facts[name]):
            width, height = part.sizes[index].tolist()
            if one.width and width and height and (one.width, one.height) != (width, height):
                wrong.append(f"{part.name(index)} ({one.width}×{one.height}, annotated {width}×{height})")
    if wrong:
        check.add(
            True,
            f"{counted(len(wrong), 'image', 'has')} another size than the annotation says: do the boxes fit?",
            wrong,
        )


def _find_doubled_boxes(check: Check, images: Mapping[str, DetectionImages]) -> None:
    doubled: list[str] = []
    ambiguous: list[str] = []
    for part in images.values():
        table = part.table
        where = np.concatenate([table.images[:, None], table.boxes], axis=1)
        _, place, counts = np.unique(where, axis=0, return_inverse=True, return_counts=True)
        place = place.reshape(-1)
        classes = np.unique(np.stack([place, table.labels], axis=1), axis=0)[:, 0]
        labels_at = np.bincount(classes, minlength=len(counts))
        for target, which in ((doubled, counts > labels_at), (ambiguous, labels_at > 1)):
            target += [part.name(index) for index in np.unique(table.images[which[place]]).tolist()]
    if doubled:
        check.add(True, f"{counted(len(doubled), 'image', 'has')} the same box of one class twice", doubled)
    if ambiguous:
        check.add(False, f"{counted(len(ambiguous), 'image', 'has')} the same box for two classes", ambiguous)


def _find_similar_names(check: Check) -> None:
    """Classes whose names differ in case, blanks, hyphens or underscores only, such as of two annotators."""
    groups: dict[str, list[str]] = {}
    for name in check.class_names:
        groups.setdefault(re.sub(r"[\s_-]+", "", name.casefold()), []).append(name)
    if similar := [" ~ ".join(names) for names in groups.values() if len(names) > 1]:
        check.add(True, f"{counted(len(similar), 'class', 'has')} several spellings", similar)


def _find_unused_files(check: Check, dataset: Dataset, used: set[str]) -> None:
    """Image files beside those of the data that belong to no part, such as those that nobody has annotated."""
    unused: list[str] = []
    for folder in sorted({PurePosixPath(name).parent for name in used}):
        names = (
            entry.name for entry in os.scandir(check.directory / folder) if Path(entry.name).suffix.lower() in SUFFIXES
        )
        found = ((folder / name).as_posix() for name in sorted(names) if Path(name).suffix.lower() in SUFFIXES)
        unused += [name for name in found if name not in used and name not in dataset.unusual]
    if unused:
        check.add(False, f"{counted(len(unused), 'image file', 'is')} in no part of the data", unused)


def _find_rare_classes(check: Check, what: str) -> None:
    """Classes that a part lacks, rare ones, and imbalance."""
    for part, counts in check.parts.items():
        missing = [name for name, count in zip(check.class_names, counts.by_class, strict=True) if not count]
        if missing:
            check.add(True, f"{counted(len(missing), 'class', 'has')} no {what} in the {part} part", missing)
    train = check.parts["train"].by_class
    rare = [f"{name} ({count})" for name, count in zip(check.class_names, train, strict=True) if 0 < count < FEW]
    if rare:
        check.add(False, f"{counted(len(rare), 'class', 'has')} fewer than {FEW} {what} to train on", rare)
    known = train[train > 0]
    if len(known) and known.max() >= IMBALANCE * known.min():
        ratio = known.max() / known.min()
        check.add(False, f"classes are imbalanced: the largest has {ratio:.0f} times as many {what} as the smallest")


def _find_difficult_to_detect(check: Check) -> None:
    """Objects too small for the network's input, and those that no prior box suits."""
    boxes, size = check.boxes, check.image_size
    if boxes is None or size is None or not len(boxes.side):
        return
    smallest = ((boxes.shares[:, 2:] - boxes.shares[:, :2]) * size).min(axis=1)
    if tiny := int((smallest < SMALLEST_OBJECT).sum()):
        share = tiny / len(smallest)
        text = f"{counted(tiny, 'object', 'has')} a side under {SMALLEST_OBJECT} pixels at {size}×{size} ({share:.1%})"
        check.add(False, text)
    if boxes.best_prior is not None and (far := int((boxes.best_prior < PRIOR_IOU).sum())):
        share = far / len(smallest)
        text = f"{counted(far, 'object', 'overlaps')} no prior box by an IoU of {PRIOR_IOU} ({share:.1%})"
        check.add(False, text)


def _find_label_conflicts(check: Check, names: Mapping[str, Sequence[str]], labels: Mapping[str, np.ndarray]) -> None:
    """Files that are in the folders of two classes."""
    every = [(part, index) for part in check.facts for index in range(len(check.facts[part]))]
    found = []
    for group in identical([check.facts[part][index] for part, index in every]):
        members = [every[position] for position in group]
        if len({int(labels[part][index]) for part, index in members}) > 1:
            found.append(" = ".join(names[part][index] for part, index in members))
    if found:
        check.add(True, f"{counted(len(found), 'image', 'is')} in the folders of two classes", found)


def _where(names: Sequence[str], facts: Sequence[ImageFacts], suits: Callable[[ImageFacts], bool]) -> list[str]:
    return [name for name, one in zip(names, facts, strict=True) if suits(one)] if facts else []


def _class_files(root: Path, class_names: Sequence[str]) -> list[list[Path]]:
    """The image files of each class, sorted; none for a class that the part lacks."""
    return [
        sorted(p for p in (root / name).iterdir() if p.suffix.lower() in SUFFIXES and p.name[0] != ".")
        if (root / name).is_dir() else []
        for name in class_names
    ]  # fmt: skip


def _other_files(root: Path) -> list[Path]:
    """Files in the class folders that are no images."""
    return [
        path for name in subfolders(root) for path in sorted((root / name).iterdir())
        if path.name[0] != "." and path.suffix.lower() not in SUFFIXES
    ]  # fmt: skip
