"""python -m darts_sg bench --images DIR: images per second that one core reads from the files in a folder."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch.utils import data as torch_data

from benchmarks.machine import interleave, median
from darts_sg.data import Augment, DataSpec, ImageFiles, Reading, TrainBatches
from darts_sg.data.folder import SUFFIXES
from darts_sg.data.generator import keyed_generator
from darts_sg.data.imagenet import MEAN, SIZE, STD
from darts_sg.data.stream import CROP_TRIES, FileReader, RandomCrops, middle_box, random_box, read_square
from darts_sg.errors import UsageError

BATCH = 100
CROPS = RandomCrops(0, "weights", True)
SPEC = DataSpec("files", 2, SIZE, 3, MEAN, STD, ("a", "b"))


def files_below(folder: Path) -> ImageFiles:
    """All image files below a folder, without labels; UsageError if there are none."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise UsageError(f"--images {folder}: no image files are below it")
    names = np.array([str(path.relative_to(folder)).encode() for path in paths])
    return ImageFiles(folder, names, torch.zeros(len(names), dtype=torch.int64), SIZE)


def draws_of(index: int) -> list[list[float]]:
    """The random numbers that the loader uses for a crop of an image in its first epoch."""
    generator = keyed_generator(CROPS.seed, CROPS.stream, f"crop of {index}", 0)
    return torch.rand(CROP_TRIES, 4, generator=generator).tolist()


def decode(path: str) -> None:
    """Decode the whole file: the lower bound for a loader that decodes whole images."""
    with Image.open(path) as image:
        image.load()


class PlainLoop(torch_data.Dataset[torch.Tensor]):
    """The usual Pillow loop: open, convert, crop, resize, flip, normalised tensor."""

    def __init__(self, paths: list[str]) -> None:
        self.paths = paths

    def __getitem__(self, index: int) -> torch.Tensor:
        with Image.open(self.paths[index]) as opened:
            image = opened.convert("RGB")
        box = random_box(*image.size, draws=draws_of(index))
        image = image.crop(tuple(map(round, box))).resize((SIZE, SIZE), Image.Resampling.BILINEAR)
        if index % 2:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        x = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float().div(255)
        mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
        return (x - mean) / std


def rates(files: ImageFiles, rounds: int) -> dict[str, list[float]]:
    """Images per second on one core in each round, for each way of reading; one after the other, in this process."""
    paths = [str(files.path(index)) for index in range(len(files))]
    plain = PlainLoop(paths)
    whole, reduced = (FileReader(replace(files, reading=Reading(reduced=r)), CROPS) for r in (False, True))
    batches = {s: TrainBatches(files, SPEC, BATCH, Augment(colour_jitter=s), 0, "weights") for s in (0.0, 0.4)}

    def each(do: Callable[[int], Any]) -> Callable[[], None]:
        def run() -> None:
            for index in range(len(files)):
                do(index)

        return run

    steps = {
        "decoding alone": each(lambda index: decode(paths[index])),
        "a plain Pillow loop": each(plain.__getitem__),
        "the loader's worker": each(lambda index: whole[0, index]),
        "the loader's worker, --reduced-decoding": each(lambda index: reduced[0, index]),
        "worker and normalisation in one": lambda: [None for _ in batches[0.0]],
        "the same with colour jitter 0.4": lambda: [None for _ in batches[0.4]],
    }
    return {name: [len(files) / s for s in times] for name, times in interleave(steps, rounds).items()}


def reduced_difference(files: ImageFiles) -> dict[str, dict[str, float]]:
    """The error of decoding at a reduced size, in grey levels of 255, for crops of training and of evaluation."""
    found = {}
    for name in ("evaluation", "training"):
        means, largest, squares, changed = [], 0, [], 0
        for index in range(len(files)):
            box_of = middle_box if name == "evaluation" else partial(random_box, draws=draws_of(index))
            path = str(files.path(index))
            a, b = (read_square(path, SIZE, box_of, reduced=r)[0].astype(int) for r in (False, True))
            difference = np.abs(a - b)
            changed += bool(difference.any())
            means.append(difference.mean())
            squares.append((difference**2).mean())
            largest = max(largest, int(difference.max()))
        error = float(np.mean(squares))
        found[name] = {
            "images": len(files),
            "images_changed": changed,
            "mean": float(np.mean(means)),
            "mean_of_changed": float(np.sum(means) / max(changed, 1)),
            "largest": largest,
            "psnr_db": 10 * math.log10(255**2 / error) if error else math.inf,
        }
    return found


def measure(folder: Path, out: Console, rounds: int = 3) -> dict[str, Any]:
    """Measure, print and return all figures, with one thread."""
    files = files_below(folder)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        found = rates(files, rounds)
    finally:
        torch.set_num_threads(threads)
    limit, plain = (median(found[name]) for name in ("decoding alone", "a plain Pillow loop"))
    table = Table(
        "one core", "images/s", "of the rounds", "of decoding alone", "of the plain loop", box=None, pad_edge=False
    )
    for name, values in found.items():
        middle = median(values)
        spread = f"{min(values):.0f} to {max(values):.0f}"
        table.add_row(name, f"{middle:.0f}", spread, f"{middle / limit:.2f}", f"{middle / plain:.2f}")
    out.print(f"{len(files)} files, crops of {SIZE}×{SIZE}", highlight=False)
    out.print(table)
    differences = reduced_difference(files)
    for name, d in differences.items():
        out.print(
            f"--reduced-decoding, {name} crops: {d['images_changed']} of {d['images']} images differ, by "
            f"{d['mean_of_changed']:.2f} grey levels in the mean, at most {d['largest']}; PSNR of all "
            f"{d['psnr_db']:.1f} dB",
            highlight=False,
        )
    return {"images_a_second": found, "reduced_decoding": differences}
