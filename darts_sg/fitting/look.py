"""The first look at a folder of images: what is in it, and what a fit should know of it."""

import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from darts_sg.analysis.draw_data import Sample, draw_data
from darts_sg.data.checking import Check, check_folders, layout_of
from darts_sg.data.detection.annotations import counted
from darts_sg.data.detection.batches import read_image as read_stored
from darts_sg.data.folder import (
    TEST_PARTS,
    check_same_classes,
    find_parts,
    list_names,
    read_image,
    subfolders,
)
from darts_sg.data.stream import UNREADABLE
from darts_sg.errors import UsageError, one_line
from darts_sg.fitting.choices import DataFacts

MANY_SIDES = 4
"""Ratio of the larger images to the smaller ones from which on sizes are called very different."""
TIMED_IMAGES = 12


def refuse_folders(directory: Path) -> None:
    """UsageError, before any image is read, if a folder is no data set of two or more classes."""
    layout = layout_of(directory)
    if layout != "folder":
        raise UsageError(
            f"{directory} has images with boxes (layout {layout}), and fit is for a folder for each class; see "
            "augment --recipe voc for detectors"
        )
    train, test = find_parts(directory)
    names = subfolders(train)
    if len(names) < 2:
        raise UsageError(f"{train} has {len(names)} class folders: two or more are needed")
    for root in filter(None, (train, test)):
        if root == test:
            check_same_classes(train, names, root, subfolders(root))
        list_names(root, names)


def look(directory: Path, threads: int) -> Check:
    """Read every image file; UsageError if a class has too few that can be read."""
    refuse_folders(directory)
    check = check_folders(directory, threads)
    least = 1 if "test" in check.parts else 2
    for part, facts in check.facts.items():
        counts = check.parts[part].images_by_class.tolist()
        start = 0
        for name, count in zip(check.class_names, counts, strict=True):
            readable = sum(not one.damaged for one in facts[start : start + count])
            start += count
            if readable < least:
                why = ": a test part is to be split off, which needs two" if least == 2 else f" in the {part} part"
                raise UsageError(
                    f"the class {name} has {readable} image{'s' * (readable != 1)} that can be read{why}; add images, "
                    "or remove the class"
                )
    return check


def facts_of(check: Check) -> DataFacts:
    """The numbers that choices depend on; a fifth of the images is the test part where there is none."""
    readable = {part: [one for one in facts if not one.damaged] for part, facts in check.facts.items()}
    train = len(readable["train"])
    # the loader splits off before it finds damaged files, which is the same up to those
    test = len(readable["test"]) if "test" in readable else max(1, train // 5)
    side = int(np.median([min(one.width, one.height) for one in readable["train"]]))
    return DataFacts(train if "test" in readable else train - test, test, len(check.class_names), side)


def notes_of(check: Check) -> list[str]:
    """Lines about the data: what the check found, and what a fit does about it."""
    lines = [
        f"{'problem' if finding.problem else 'note'}: {finding.text}"
        + (f": {', '.join(finding.examples[:3])}" + (", …" if len(finding.examples) > 3 else ""))
        * bool(finding.examples)
        for finding in check.findings
    ]
    sides = check.image_sides().min(axis=1)
    low, high = np.quantile(sides, (0.05, 0.95))
    if high >= MANY_SIDES * low:
        lines.append(
            f"note: images are of very different sizes, shorter sides {low:.0f} to {high:.0f} pixels: each is scaled "
            "by its shorter side and cropped"
        )
    if (grey := sum(one.kind.endswith((" L", " 1", " LA")) for part in check.facts.values() for one in part)) > 0:
        lines.append(f"note: {counted(grey, 'image', 'is')} grey; all are read as colour images")
    _, test = find_parts(check.directory)
    unused = [part for part in TEST_PARTS if (check.directory / part).is_dir() and test and part != test.name]
    if unused:
        lines.append(
            f"note: {' and '.join(f'{part}/' for part in unused)} is not used: the network is tested on {test}, and "
            "the search holds out images of train/"
        )
    return [one_line(line, 400) for line in lines]


def described(check: Check, facts: DataFacts) -> str:
    """The data in one line."""
    _, test = find_parts(check.directory)
    part = f"the test part {test.name}/" if test else "a fifth that is held out as the test part"
    return (
        f"{facts.images + facts.test:,} images of {facts.classes} classes: {facts.images:,} to train on, "
        f"{facts.test:,} in {part}; shorter sides about {facts.side} pixels"
    )


def listing_hash(directory: Path) -> str:
    """A hash of the names and sizes of all image files: quick to compare when a fit is continued."""
    digest = hashlib.blake2b(digest_size=8)
    for root in filter(None, find_parts(directory)):
        names, _ = list_names(root, subfolders(root))
        for name in names:
            digest.update(f"{root.name}/{name} {(root / name).stat().st_size}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def loading_seconds(check: Check) -> Callable[[int], float]:
    """From a size to the seconds in which all images are read at it, measured with some of them."""
    paths = [path for path, _ in check.samples[:TIMED_IMAGES]]
    total = sum(part.images for part in check.parts.values())
    known: dict[int, float] = {}

    def seconds(size: int) -> float:
        if size not in known:
            read, begun = 0, time.perf_counter()
            for path in paths:
                try:
                    read_image(path, size)
                    read += 1
                except UNREADABLE:
                    continue
            known[size] = (time.perf_counter() - begun) / max(1, read) * total
        return known[size]

    return seconds


def picture(check: Check) -> bytes:
    """The picture of the data, as `data check -o` draws it."""
    samples = []
    for path, name in check.samples:
        try:
            samples.append(Sample(read_stored(str(path))[0], np.empty((0, 4), np.float32), [one_line(name)]))
        except UNREADABLE:
            continue
    counts = {name: part.by_class for name, part in check.parts.items()}
    parts = ", ".join(f"{part.images:,} {name} images" for name, part in check.parts.items())
    title = one_line(f"{check.directory.resolve().name}: {parts}")
    names = [one_line(name) for name in check.class_names]
    return draw_data(title, names, counts, "images", check.image_sides(), None, samples)


def summary(check: Check) -> dict[str, Any]:
    """The check as plain values, without the names of all examples."""
    found = check.as_dict()
    for finding in found["findings"]:
        finding["examples"] = finding["examples"][:20]
    return found
