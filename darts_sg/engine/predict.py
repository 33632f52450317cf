"""What trained networks say of single images, by the preprocessing that their weights file describes."""

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from darts_sg.data.batches import normalise
from darts_sg.data.folder import SUFFIXES
from darts_sg.data.stream import UNREADABLE
from darts_sg.engine.setup import to_device
from darts_sg.engine.weights import Weights
from darts_sg.errors import UsageError, first_line
from darts_sg.files import why
from darts_sg.tasks import Prediction

BATCH = 16


@dataclass(frozen=True)
class Predictions:
    """The predictions of several images, in their order, and how long they took."""

    found: list[Prediction]
    unreadable: list[str]
    """Files that could not be read, with the reason."""
    seconds: float
    """From the first file to the last prediction, reading included."""
    network_seconds: float
    """Of them, network, decoding and selection."""

    @property
    def speed(self) -> str:
        """Images a second in words."""
        n = len(self.found)
        whole, network = (n / max(seconds, 1e-9) for seconds in (self.seconds, self.network_seconds))
        return f"{n:,} image{'s' * (n != 1)}: {whole:.1f} images/s with reading, {network:.1f} images/s without"


def image_files(paths: Sequence[Path]) -> list[Path]:
    """The image files that are named, and those in folders that are named, sorted; UsageError if there are none."""
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES and p.name[0] != ".")
            if not inside:
                raise UsageError(f"{path} has no images ({', '.join(sorted(SUFFIXES))}); name a folder with some")
            found += inside
        elif path.exists():
            found.append(path)
        else:
            raise UsageError(f"{path} does not exist: name an image or a folder of images")
    return found


def predict_images(
    weights: Weights,
    images: Sequence[Path | np.ndarray],
    device: torch.device,
    *,
    least: float | None = None,
    batch_size: int = BATCH,
) -> Predictions:
    """The predictions of image files or arrays, uint8 (H, W, 3). Files that cannot be read are left out.

    least: the lowest score that counts. Raises UsageError if no image can be read, or an array is no image.
    """
    network = to_device(weights.build(), device)
    task, spec = weights.task, weights.spec
    found: list[Prediction] = []
    unreadable: list[str] = []
    begun, network_seconds = time.perf_counter(), 0.0
    for names, sizes, squares in _batches(weights, images, unreadable, batch_size):
        started = time.perf_counter()
        with torch.inference_mode():
            x = normalise(torch.from_numpy(np.stack(squares)).to(device), spec)
            # the last step copies to the CPU, and so waits for a GPU
            described = [(name, *size) for name, size in zip(names, sizes, strict=True)]
            found += task.predictions(network(x)[0], spec, described, least)
        network_seconds += time.perf_counter() - started
    if not found:
        raise UsageError(f"none of the images can be read: {unreadable[0]}" if unreadable else "no images were given")
    return Predictions(found, unreadable, time.perf_counter() - begun, network_seconds)


def _batches(
    weights: Weights, images: Sequence[Path | np.ndarray], unreadable: list[str], batch_size: int
) -> Iterator[tuple[list[str], list[tuple[int, int]], list[np.ndarray]]]:
    """Names, (width, height) and squares of the images that can be read, in batches; notes the others."""
    task, spec = weights.task, weights.spec
    names: list[str] = []
    sizes: list[tuple[int, int]] = []
    squares: list[np.ndarray] = []
    for image in images:
        if isinstance(image, np.ndarray):
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
                raise UsageError(f"an array of an image is uint8 (H, W, 3), this one is {image.dtype} {image.shape}")
            pixels = image
        else:
            try:
                pixels = task.read(image, spec)
            except UNREADABLE as error:
                reason = why(error) if isinstance(error, OSError) and error.errno else first_line(error)
                unreadable.append(f"{image}: {reason}")
                print(f"warning: {image} cannot be read: {reason}", file=sys.stderr)
                continue
        names.append("" if isinstance(image, np.ndarray) else str(image))
        sizes.append((pixels.shape[1], pixels.shape[0]))
        squares.append(task.square(pixels, spec))
        if len(names) == batch_size:
            yield names, sizes, squares
            names, sizes, squares = [], [], []
    if names:
        yield names, sizes, squares
