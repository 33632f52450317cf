"""darts-sg data ACTION: prepare and check data, and score predictions."""

import argparse
import json
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from darts_sg.cli.parser import Parser, argument_type, positive, whole_number
from darts_sg.cli.terminal import console, deliver, refuse_existing
from darts_sg.errors import UsageError, one_line
from darts_sg.files import write_atomically

if TYPE_CHECKING:
    from darts_sg.data.checking import Check
    from darts_sg.data.spec import Dataset

DETECTION = ("voc", "coco", "yolo")
FOLDERS = ("folder", "imagenet")
SHOWN_EXAMPLES = 5
SHOWN_CLASSES = 120


def add_parser(commands: Any) -> None:
    """Add `data` with its actions to the commands of the package."""
    data = commands.add_parser("data", description="Prepare and check data, and score predictions.")
    actions = data.add_subparsers(dest="action", required=True, metavar="ACTION", parser_class=Parser)
    subset = actions.add_parser("subset", help="list class-balanced, disjoint parts of ImageNet to search on")
    subset.add_argument("--data", type=Path, required=True, help="folder that holds train/CLASS/* and val/CLASS/*")
    subset.add_argument(
        "--fraction",
        type=argument_type(float),
        nargs="+",
        default=[0.1, 0.025],
        help="share of the training images in each part: for the weights, for the alphas (default: 0.1 0.025)",
    )
    subset.add_argument("--seed", type=whole_number, default=0, help="seed of the choice (default: 0)")
    subset.add_argument("-o", "--output", type=Path, help="file to write (default: print it)")
    check = actions.add_parser("check", help="find damaged files, broken boxes, duplicates and rare classes")
    check.add_argument("directory", metavar="DIR", type=Path, help="folder of the data")
    check.add_argument(
        "--dataset", choices=[*DETECTION, *FOLDERS], help="layout of the folder (default: detected from its content)"
    )
    check.add_argument("--image-size", type=positive, help="side of a detector's input in pixels (default: 320)")
    check.add_argument("--split-seed", type=whole_number, default=0, help="seed of a test part that is split off")
    check.add_argument("--annotations-only", action="store_true", help="do not decode the images")
    check.add_argument("--strict", action="store_true", help="exit with 1 if there are problems, as for CI")
    check.add_argument("--json", action="store_true", help="print JSON, with up to 1,000 names for each finding")
    check.add_argument("-o", "--output", type=Path, metavar="PNG", help="also draw a picture of the data")
    score = actions.add_parser("score", help="compute the figures of a detector from its predictions.json")
    score.add_argument("predictions", metavar="PREDICTIONS", type=Path, help="predictions.json")
    score.add_argument("--data", type=Path, required=True, help="folder of the data")
    score.add_argument("--dataset", choices=DETECTION, help="layout of the folder (default: detected)")
    score.add_argument("--part", choices=["test", "train"], default="test", help="part to score on (default: test)")
    score.add_argument("--split-seed", type=whole_number, default=0, help="seed of a test part that is split off")
    score.add_argument("--confusion", action="store_true", help="also print which classes are taken for which")
    score.add_argument("--json", action="store_true", help="print JSON, with precision and recall of each class")


def run(arguments: argparse.Namespace) -> None:
    """Carry out an action."""
    {"subset": list_subset, "check": check_data, "score": score_predictions}[arguments.action](arguments)


def list_subset(arguments: argparse.Namespace) -> None:
    """Print or write the list of images."""
    from darts_sg.data import ImageFiles, load_dataset, split_text

    train = load_dataset("imagenet", arguments.data, seed=arguments.seed).train
    assert isinstance(train, ImageFiles)
    deliver(split_text(train, arguments.fraction, arguments.seed), arguments.output)


# --- check


def check_data(arguments: argparse.Namespace) -> None:
    """Print what is in a data set and what is wrong with it, and draw it if asked to."""
    from darts_sg.data import load_dataset
    from darts_sg.data.checking import check_detection, check_folders, layout_of
    from darts_sg.engine.environment import usable_cores
    from darts_sg.networks.ssdlite import IMAGE_SIZE

    if arguments.output is not None:
        if arguments.output.suffix.lower() != ".png":
            raise UsageError(f"--output {arguments.output}: the picture is a PNG; let its name end in .png")
        refuse_existing(arguments.output)
    directory = arguments.directory.expanduser()
    layout = arguments.dataset or layout_of(directory)
    look, dataset = not arguments.annotations_only, None
    if layout in FOLDERS:
        if arguments.image_size is not None:
            raise UsageError("--image-size is the size that objects in boxes are judged at; leave it out")
        check = check_folders(directory, usable_cores(), look=look)
    else:
        size = arguments.image_size or IMAGE_SIZE
        dataset = load_dataset(layout, directory, image_size=size, split_seed=arguments.split_seed)
        check = check_detection(directory, dataset, usable_cores(), closest_priors(size), look=look)
    if arguments.json:
        print(json.dumps(check.as_dict(), indent=1))
    else:
        print_check(check)
    if arguments.output is not None:
        write_atomically(arguments.output, picture(check, dataset))
        if not arguments.json:
            print(f"\n{arguments.output}")
    if arguments.strict and check.problems:
        raise SystemExit(1)


def closest_priors(image_size: int) -> Any:
    """The function that gives the IoU of boxes with the prior box closest to each; for images of this size."""
    import numpy as np
    import torch

    from darts_sg.boxes import box_iou
    from darts_sg.networks.ssdlite import prior_boxes, to_corners

    priors = to_corners(prior_boxes("authors", image_size))

    def best(shares: np.ndarray) -> np.ndarray:
        parts = torch.from_numpy(shares).split(2048)
        found = [box_iou(part, priors).amax(dim=1) for part in parts if len(part)]
        return torch.cat(found).numpy().astype(np.float64) if found else np.empty(0)

    return best


def print_check(check: "Check") -> None:
    """The result as tables and lines."""
    out, found = console(), check.as_dict()
    boxes = check.boxes is not None
    at = f", judged at {check.image_size}×{check.image_size} pixels" if check.image_size else ""
    _say(out, f"{check.directory}: layout {check.layout}, {len(check.class_names)} classes{at}")
    _say(out, check.remark)
    titles = ["", "images", *(["without objects", "objects", "difficult", "crowds"] if boxes else [])]
    table = Table(*titles, box=None, pad_edge=False)
    for name, part in check.parts.items():
        cells = [
            part.images,
            *([part.without_objects, part.by_class.sum(), part.difficult, part.crowds] if boxes else []),
        ]
        table.add_row(name, *(f"{cell:,}" for cell in cells))
    out.print()
    out.print(table)
    what = "objects" if boxes else "images"
    columns = [f"{part} {what}" for part in check.parts]
    columns += [f"{part} images" for part in check.parts] if boxes else []
    table = Table("class", *columns, box=None, pad_edge=False)
    counts = [part.by_class for part in check.parts.values()]
    counts += [part.images_by_class for part in check.parts.values()] if boxes else []
    for label, name in enumerate(check.class_names[:SHOWN_CLASSES]):
        table.add_row(_escape(name), *(f"{count[label]:,}" for count in counts))
    if len(check.class_names) > SHOWN_CLASSES:
        table.add_row(f"… {len(check.class_names) - SHOWN_CLASSES} more (--json has all)")
    out.print()
    out.print(table)
    out.print()
    for title, values in _distributions(found):
        if values:
            _say(out, f"{title}: " + ", ".join(f"{name} {value:g}" for name, value in values.items()))
    priors = found.get("boxes", {}).get("priors")
    if priors:
        sides = ", ".join(
            f"{name}: {share:.1%}" for name, share in priors["objects_matched_by_side"].items() if share is not None
        )
        _say(
            out,
            f"objects that a prior box overlaps by 0.5: {priors['objects_matched']:.1%} ({sides} of the image's side)",
        )
    for title, findings in (
        ("Problems", check.problems),
        ("Notes", [finding for finding in check.findings if not finding.problem]),
    ):
        out.print()
        _say(out, f"{title}{'' if findings else ': none'}")
        for finding in findings:
            _say(out, f"- {finding.text}")
            for example in finding.examples[:SHOWN_EXAMPLES]:
                _say(out, f"    {example}")
            if (more := len(finding.examples) - SHOWN_EXAMPLES) > 0:
                _say(out, f"    … {more} more")


def _distributions(found: dict[str, Any]) -> list[tuple[str, dict[str, float] | None]]:
    sizes, boxes = found.get("image_sizes", {}), found.get("boxes", {})
    return [
        ("widths of images", sizes.get("width")),
        ("heights of images", sizes.get("height")),
        ("sizes of objects, √(box / image)", boxes.get("side")),
        ("aspect ratios of objects, width / height", boxes.get("aspect")),
        ("objects by COCO's sizes", boxes.get("coco_sizes")),
        ("IoU with the closest prior box", boxes.get("priors", {}).get("best_iou")),
    ]


def picture(check: "Check", dataset: "Dataset | None") -> bytes:
    """The picture of a checked data set."""
    import numpy as np

    from darts_sg.analysis.draw_data import BoxPlots, Sample, draw_data
    from darts_sg.data.checking import NUM_SAMPLES, PRIOR_IOU
    from darts_sg.data.detection.batches import read_image
    from darts_sg.data.detection.objects import DetectionImages
    from darts_sg.data.stream import UNREADABLE

    boxes, samples = None, []
    if check.boxes is not None and dataset is not None:
        one = check.boxes
        boxes = BoxPlots(one.shares, one.side, one.aspect, one.best_prior, PRIOR_IOU)
        train = dataset.train
        assert isinstance(train, DetectionImages)
        for index in np.random.default_rng(0).permutation(len(train)).tolist()[:NUM_SAMPLES]:
            with suppress(*UNREADABLE):  # among the findings
                found = train.objects(index)
                names = [check.class_names[label] for label in found.labels.tolist()]
                samples.append(Sample(read_image(str(train.path(index)))[0], found.boxes.numpy(), names))
    for path, name in check.samples:
        with suppress(*UNREADABLE):
            samples.append(Sample(read_image(str(path))[0], np.empty((0, 4), np.float32), [name]))
    counts = {name: part.by_class for name, part in check.parts.items()}
    what = "images" if check.boxes is None else "objects"
    parts = ", ".join(f"{part.images:,} {name} images" for name, part in check.parts.items())
    title = f"{check.directory.resolve().name}: {parts}"
    shown = [sample._replace(names=[one_line(name) for name in sample.names]) for sample in samples]
    names = [one_line(name) for name in check.class_names]
    return draw_data(one_line(title), names, counts, what, check.image_sides(), boxes, shown)


# --- score


def score_predictions(arguments: argparse.Namespace) -> None:
    """Print the figures of predictions, in percent."""
    from darts_sg.data import DetectionImages, load_dataset
    from darts_sg.data.checking import layout_of
    from darts_sg.data.detection.predictions import read_predictions
    from darts_sg.tasks.average_precision import average_precision, confusion

    directory = arguments.data.expanduser()
    layout = arguments.dataset or layout_of(directory)
    if layout not in DETECTION:
        raise UsageError(f"{directory} has class folders, and no boxes to score predictions against")
    dataset = load_dataset(layout, directory, split_seed=arguments.split_seed)
    images = dataset.test if arguments.part == "test" else dataset.train
    assert isinstance(images, DetectionImages)
    detections = read_predictions(arguments.predictions, images)
    names = images.class_names
    precision = average_precision(images.table, detections, len(names))
    figures, by_class = precision.figures(), dict(zip(names, precision.by_class(), strict=True))
    matrix = confusion(images.table, detections, len(names)) if arguments.confusion else None
    if arguments.json:
        curves = {
            name: {part: getattr(curve, part).round(6).tolist() for part in ("scores", "precision", "recall")}
            for name, curve in zip(names, precision.voc, strict=True)
        }
        found = {
            "part": arguments.part,
            "remark": dataset.remark,
            "images": len(images),
            "predictions": len(detections),
        }
        found |= {"figures": figures, "by_class": by_class, "curves": curves}
        found |= {} if matrix is None else {"confusion": {"classes": [*names, "none"], "counts": matrix.tolist()}}
        print(json.dumps(_without_nan(found), indent=1))
        return
    out = console()
    _say(
        out,
        f"{len(detections):,} predictions on the {len(images):,} {arguments.part} images of {directory}, in percent",
    )
    _say(out, dataset.remark)
    table = Table("", "%", box=None, pad_edge=False)
    for name, value in figures.items():
        table.add_row(FIGURES.get(name, name), _percent(value))
    out.print()
    out.print(table)
    table = Table("class", "objects", *CLASS_FIGURES.values(), box=None, pad_edge=False)
    for name, values in by_class.items():
        table.add_row(_escape(name), f"{values['objects']:,}", *(_percent(values[key]) for key in CLASS_FIGURES))
    out.print()
    out.print(table)
    if matrix is not None:
        table = Table("object \\ predicted", *(_escape(name) for name in names), "missed", box=None, pad_edge=False)
        for name, row in zip([*map(_escape, names), "no object"], matrix.tolist(), strict=True):
            table.add_row(name, *map(str, row))
        out.print()
        _say(out, "Predictions with a score of 0.5 or more, matched at an IoU of 0.5")
        out.print(table)


FIGURES = {
    "map_voc07": "mAP (VOC07, 11 points)", "map_area": "mAP (VOC, area)", "map_coco": "AP (COCO, IoU 0.5 to 0.95)",
    "map_50": "AP50 (COCO)", "map_75": "AP75 (COCO)", "map_small": "AP of small objects",
    "map_medium": "AP of medium objects", "map_large": "AP of large objects", "recall": "AR (COCO, 100 detections)",
}  # fmt: skip
CLASS_FIGURES = {"ap_voc07": "VOC07", "ap_area": "VOC area", "ap_coco": "COCO", "ap_50": "AP50"}


def _percent(value: float) -> str:
    return "–" if value != value else f"{100 * value:.2f}"


def _without_nan(value: Any) -> Any:
    """The value with null for NaN, which JSON has not."""
    if isinstance(value, dict):
        return {key: _without_nan(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_nan(inner) for inner in value]
    return None if isinstance(value, float) and value != value else value


def _escape(text: str) -> str:
    """A name for rich, which reads square brackets as markup; names of files may hold anything."""
    from rich.markup import escape

    return escape(one_line(text))


def _say(out: Any, text: str) -> None:
    """A line without markup or highlighting."""
    if text:
        out.print(one_line(text), markup=False, highlight=False, soft_wrap=True)
