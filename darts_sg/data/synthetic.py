"""Ten classes of rendered figures: a data set that needs no files.

Each 32×32 image shows one figure of random colour, place, size, proportions and rotation on a blotchy, noisy background
of another random colour, so that the class can be told by the shape only, not by colours or single pixels. Every figure
is its own mirror image up to a rotation, so a flip keeps the label.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from darts_sg.data.spec import Dataset, DataSpec, ImageSet, refuse_other_size
from darts_sg.data.statistics import channel_statistics

SIZE = 32
NUM_TRAIN = 4000
NUM_TEST = 1000

Form = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Maps coordinates u, v in units of the figure's radius to the distance from its outline, negative inside."""


def disc(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.hypot(u, v) - 0.85


def ring(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.abs(np.hypot(u, v) - 0.72) - 0.18


def beam(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.maximum(np.abs(u) - 0.95, np.abs(v) - 0.22)


def checks(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """A board of four by four squares, every other one filled."""
    field = 0.42
    phases = np.sin(np.pi / field * u) * np.sin(np.pi / field * v)
    return np.maximum(np.maximum(np.abs(u), np.abs(v)) - 1.9 * field, -phases * field / np.pi)


def triangle(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.maximum(-v, np.sqrt(3) / 2 * np.abs(u) + v / 2) - 0.5


def cross(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    long, short = 0.9, 0.27
    u, v = np.abs(u), np.abs(v)
    return np.minimum(np.maximum(u - short, v - long), np.maximum(u - long, v - short))


def dots(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Nine dots in a square."""
    u, v = np.abs(u), np.abs(v)
    return np.hypot(np.minimum(u, np.abs(u - 0.66)), np.minimum(v, np.abs(v - 0.66))) - 0.2


def crescent(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.maximum(np.hypot(u, v) - 0.9, 0.7 - np.hypot(u - 0.5, v))


def pair(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.hypot(np.abs(u) - 0.55, v) - 0.36


def bars(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    u = np.abs(u)
    return np.maximum(np.abs(v) - 0.75, np.minimum(u, np.abs(u - 0.62)) - 0.17)


FORMS: dict[str, Form] = {
    form.__name__: form for form in (disc, ring, beam, triangle, cross, crescent, pair, bars, checks, dots)
}


def load_synthetic(directory: Path, *, image_size: int | None, seed: int, download: bool) -> Dataset:
    """4,000 training and 1,000 test images of ten classes, 32×32 RGB, rendered from `seed` without files."""
    refuse_other_size("synthetic", image_size, SIZE)
    train = render(NUM_TRAIN, np.random.default_rng([seed, 0]))
    test = render(NUM_TEST, np.random.default_rng([seed, 1]))
    mean, std = channel_statistics(train.images)
    spec = DataSpec("synthetic", len(FORMS), SIZE, 3, mean, std, tuple(FORMS))
    return Dataset(spec, train, test, f"rendered from seed {seed}")


def render(num_images: int, rng: np.random.Generator) -> ImageSet:
    """Render `num_images` images, with equal shares of the classes in random order."""
    labels = rng.permutation(np.arange(num_images) % len(FORMS))
    cover = draw_figures(labels, rng)[..., None]  # (N, H, W, 1), 1 inside the figure
    ground, figure = draw_colours(num_images, rng)
    pixels = ground + cover * (figure[:, None, None] - ground)
    pixels += 0.06 * rng.standard_normal(pixels.shape, dtype=np.float32)
    images = (pixels.clip(0, 1) * 255).round().astype(np.uint8)
    return ImageSet(torch.from_numpy(images), torch.from_numpy(labels.astype(np.int64)))


def draw_figures(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The share of each pixel that the figure of each label covers, float32 (N, H, W) in 0..1."""
    num_images = len(labels)

    def uniform(low: float, high: float) -> np.ndarray:
        return rng.uniform(low, high, (num_images, 1, 1)).astype(np.float32)

    radius, aspect, turn = uniform(9, 14), uniform(0.85, 1.15), uniform(0, 2 * np.pi)
    room = SIZE / 2 - 0.8 * radius
    x, y = (SIZE / 2 + uniform(-1, 1) * room for _ in range(2))
    at = np.arange(SIZE, dtype=np.float32) + 0.5
    dx, dy = at[None, None, :] - x, at[None, :, None] - y
    u = (np.cos(turn) * dx + np.sin(turn) * dy) / (radius * aspect)
    v = (np.cos(turn) * dy - np.sin(turn) * dx) / (radius / aspect)
    cover = np.empty_like(u)
    for label, form in enumerate(FORMS.values()):
        chosen = labels == label
        cover[chosen] = form(u[chosen], v[chosen]) * radius[chosen]  # in pixels
    return (0.5 - cover).clip(0, 1)


def draw_colours(num_images: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Blotchy backgrounds, float32 (N, H, W, 3), and the colours of the figures, float32 (N, 3)."""
    colour = rng.random((num_images, 3), dtype=np.float32)
    choices = rng.random((num_images, 4, 3), dtype=np.float32)
    # of four candidates the colour that differs most from the background
    contrast = np.linalg.norm(choices - colour[:, None], axis=-1)
    figure = choices[np.arange(num_images), contrast.argmax(axis=1)]
    knots = 5
    blotches = 0.1 * rng.standard_normal((num_images, knots, knots, 3), dtype=np.float32)
    place = np.linspace(0, knots - 1, SIZE, dtype=np.float32)
    tents = (1 - np.abs(place[:, None] - np.arange(knots, dtype=np.float32))).clip(0)  # (SIZE, knots)
    blotches = np.einsum("hi,nijc->nhjc", tents, blotches)
    ground = np.einsum("wj,nhjc->nhwc", tents, blotches)
    ground += colour[:, None, None]
    return ground, figure
