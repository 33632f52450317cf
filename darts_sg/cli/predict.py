"""darts-sg predict: what a trained network says of images."""

import argparse
import csv
import io
import json
from pathlib import Path
from typing import Any

from rich.table import Table

from darts_sg.cli.parser import positive
from darts_sg.cli.terminal import console, refuse_existing
from darts_sg.errors import UsageError
from darts_sg.files import write_atomically

SHOWN, MOST_FOUND = 30, 8  # images in the table of the terminal, and objects of each


def add_parser(commands: Any) -> None:
    """Add `predict` to the commands of the package."""
    predict = commands.add_parser(
        "predict", description="Objects, or the five most probable classes, of images, by trained weights."
    )
    predict.add_argument(
        "weights",
        metavar="WEIGHTS",
        type=Path,
        help="weights.safetensors of an augment run, its folder, hf://user/name, or a URL",
    )
    predict.add_argument("images", metavar="IMAGE|FOLDER", type=Path, nargs="+", help="image files, or folders of them")
    predict.add_argument(
        "--score", type=float, help="lowest score that counts, 0 to 1 (default: 0.3 for boxes, 0 for classes)"
    )
    predict.add_argument("--json", type=Path, metavar="FILE", help="write all predictions as JSON")
    predict.add_argument("--csv", type=Path, metavar="FILE", help="write all predictions as CSV, one a row")
    predict.add_argument("-o", "--output", type=Path, metavar="DIR", help="new folder for the images with boxes drawn")
    predict.add_argument("--batch-size", type=positive, default=16, help="images in a batch (default: 16)")
    predict.add_argument("--device", default="auto", help="cpu, cuda, …; auto takes a GPU if there is one")


def run(arguments: argparse.Namespace) -> None:
    """Predict, write what was asked for, and print the first predictions and the speed."""
    from darts_sg.engine import environment
    from darts_sg.engine.predict import image_files, predict_images
    from darts_sg.engine.weights import read_weights
    from darts_sg.tasks.drawing import png

    if arguments.score is not None and not 0 <= arguments.score <= 1:
        raise UsageError(f"--score {arguments.score:g}: a score is from 0 to 1")
    for output in (arguments.json, arguments.csv, arguments.output):
        if output is not None:
            refuse_existing(output)
    weights, files = read_weights(arguments.weights), image_files(arguments.images)
    device = environment.choose_device(arguments.device)
    environment.prepare_device(device, None)
    result = predict_images(weights, files, device, least=arguments.score, batch_size=arguments.batch_size)
    found = result.found
    if arguments.output is not None:
        if found[0].boxes is None:
            raise UsageError(f"-o {arguments.output}: {weights.path} finds no boxes to draw; use --json or --csv")
        for one, name in zip(found, _names([one.image for one in found]), strict=True):
            picture = drawn(weights.task.read(Path(one.image), weights.spec), one)
            write_atomically(arguments.output / name, png(picture))
    if arguments.json is not None:
        content = {"weights": str(weights.path), "classes": list(weights.spec.class_names)}
        images = [one.as_dict() for one in found]
        text = json.dumps({**content, "images": images, "unreadable": result.unreadable}, ensure_ascii=False, indent=1)
        write_atomically(arguments.json, text + "\n")
    if arguments.csv is not None:
        write_atomically(arguments.csv, _as_csv(found))
    out = console()
    table = Table("image", "found", box=None, pad_edge=False)
    for one in found[:SHOWN]:
        texts = [f"{name} {score:.2f}" for name, score in zip(one.names, one.scores, strict=True)]
        if len(texts) > MOST_FOUND:
            texts[MOST_FOUND:] = [f"and {len(texts) - MOST_FOUND} more"]
        table.add_row(one.image, ", ".join(texts) or "–")
    out.print(table)
    if len(found) > SHOWN:
        out.print(f"… and {len(found) - SHOWN} more images")
    written = [str(path) for path in (arguments.output, arguments.json, arguments.csv) if path is not None]
    if written:
        out.print(f"written: {', '.join(written)}", highlight=False)
    left_out = f"; {len(result.unreadable)} left out, which cannot be read" if result.unreadable else ""
    out.print(f"{result.speed} ({environment.machine(device)}){left_out}", highlight=False)


def drawn(pixels: Any, prediction: Any) -> Any:
    """An image with the boxes of its prediction, the best on top."""
    from darts_sg.tasks.drawing import Drawn, class_colour, draw_boxes

    texts = [f"{name} {score:.2f}" for name, score in zip(prediction.names, prediction.scores, strict=True)]
    colours = [class_colour(int(label)) for label in prediction.labels]
    boxes = [Drawn(*one) for one in zip(prediction.boxes.tolist(), texts, colours, strict=True)]
    return draw_boxes(pixels, boxes[::-1])


def _names(images: list[str]) -> list[str]:
    """File names for the pictures: that of the image, with a number where two folders have the same."""
    names: dict[str, int] = {}
    found = []
    for image in images:
        stem = Path(image).stem
        names[stem] = names.get(stem, 0) + 1
        found.append(f"{stem}.png" if names[stem] == 1 else f"{stem}-{names[stem]}.png")
    return found


def _as_csv(found: list[Any]) -> str:
    """One row for each object or class: image, class, score, and the box in pixels where there is one."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    boxes = found[0].boxes is not None
    writer.writerow(["image", "class", "score", *(("x1", "y1", "x2", "y2") if boxes else ())])
    for one in found:
        for entry in one.as_dict()["found"]:
            writer.writerow([one.image, entry["class"], entry["score"], *entry.get("box", ())])
    return text.getvalue()
