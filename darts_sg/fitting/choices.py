"""What a fit chooses, as pure functions of the data's facts and of measured seconds and bytes."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from darts_sg.config import SearchConfig
from darts_sg.errors import UsageError
from darts_sg.networks.derived import NetworkShape
from darts_sg.tasks.columns import clock

SIZES = (32, 48, 64, 96, 128, 160, 192, 224)
LEAST_IMAGENET_SIZE = 64
"""Side from which on the stem that reduces by 8 leaves 8×8 features or more."""
SEARCH_SHARE = 0.4
"""Share of the time that the search gets; the training gets the rest."""
MARGIN = 1.1
"""Epochs are planned as if they took this many times as long as measured."""
LEAST_SEARCH_EPOCHS, LEAST_EPOCHS = 3, 5
MOST_SEARCH_EPOCHS, MOST_EPOCHS = 200, 600
WANTED_ALPHA_STEPS = 300
"""Steps of the alphas from which on a larger network is worth more than more steps."""
WANTED_STEPS, WANTED_EPOCHS = 1500, (15, 60)
"""The same for the training: steps, but epochs within these bounds."""
LEAST_STEPS_AN_EPOCH = 20
BATCHES = (8, 16, 32, 64)
LEARNING_RATE = 0.025
"""Of the training, as in DARTS."""
MOST_ALPHA_LEARNING_RATE = 0.03
CIFAR_TRAIN_IMAGES = 50_000
DARTS_DISTANCE = 19_550 * 3e-4
"""How far an alpha may move in the search of the DARTS paper: 50 epochs of 391 steps, times the learning rate."""
GROWTH = 0.6
"""Exponent by which time is expected to grow with MACs, to choose what to measure next: small networks leave a
processor waiting. A guess that is too low costs a measurement, one that is too high a level."""
FURTHEST = 2
"""Levels that a measurement is ahead of the last one."""
REGULARISED_EPOCHS = 100
"""From this number of epochs on, cutout and drop path help a training more than they slow it down."""
MEMORY_SHARE = 0.6


class Choice(NamedTuple):
    """One decision with its reason."""

    name: str
    value: str
    reason: str

    @property
    def line(self) -> str:
        return f"{self.name}: {self.value} ({self.reason})"


@dataclass(frozen=True)
class DataFacts:
    """What the choices depend on."""

    images: int
    """Readable images of the training part."""
    test: int
    classes: int
    side: int
    """Median of the images' shorter sides in pixels."""


class Level(NamedTuple):
    """A size of the work: images, supernet and network. Levels are ordered by cost."""

    image_size: int
    network: NetworkShape
    search_channels: int
    search_cells: int
    channels: int
    cells: int

    @property
    def text(self) -> str:
        return (
            f"{self.image_size}×{self.image_size} pixels, "
            f"supernet C={self.search_channels}, {self.search_cells} cells, "
            f"network C={self.channels}, {self.cells} cells"
        )


LADDERS: Mapping[NetworkShape, tuple[tuple[int, int, int, int, int], ...]] = {
    "cifar": (
        (32, 8, 5, 8, 5), (32, 8, 5, 16, 5), (32, 8, 8, 16, 8), (32, 16, 8, 24, 8), (48, 16, 8, 24, 11),
        (48, 16, 8, 36, 14), (48, 16, 8, 36, 20),
    ),
    "imagenet": (
        (64, 8, 5, 8, 5), (64, 8, 5, 16, 5), (96, 16, 5, 16, 8), (128, 16, 8, 24, 8), (160, 16, 8, 32, 8),
        (224, 16, 8, 40, 11), (224, 16, 8, 48, 14),
    ),
}  # fmt: skip
"""Side of the images, channels and cells of the supernet, channels and cells of the network: the last ones are those of
the papers."""


class Timing(NamedTuple):
    """Measured seconds of a level."""

    search_step: float
    search_batch: int
    train_step: float
    train_batch: int
    test_image: float
    search_start: float
    """From the call of a search to its first step, and from its last step to its end."""
    train_start: float
    search_epoch: float = 0.0
    """Between the epochs: checkpoint, genotype."""
    train_epoch: float = 0.0


class Plan(NamedTuple):
    """Epochs, and the seconds that they are expected to take, starts included."""

    search_epochs: int
    epochs: int
    search_seconds: float
    train_seconds: float


# --- the data


def natural_size(side: int) -> int:
    """The largest usual side that does not enlarge the images; the smallest one for smaller images."""
    return max((size for size in SIZES if size <= 1.05 * side), default=SIZES[0])


def stem_of(image_size: int) -> NetworkShape:
    """The stem for images of this size."""
    return "imagenet" if image_size >= LEAST_IMAGENET_SIZE else "cifar"


def sizes_in_memory(sizes: Sequence[int], images: int, available: int | None) -> list[int]:
    """The sizes at which all images fit into half of the available memory, as RGB bytes."""
    return [size for size in sizes if available is None or images * size * size * 3 <= available / 2]


def ladder(
    facts: DataFacts,
    available: int | None,
    *,
    image_size: int | None = None,
    network: NetworkShape | None = None,
    search_channels: int | None = None,
    search_cells: int | None = None,
    channels: int | None = None,
    cells: int | None = None,
) -> list[Level]:
    """The levels to choose from, cheapest first, with what the options fix.

    Raises UsageError if the images fill the memory.
    """
    natural = image_size or natural_size(facts.side)
    shape = network or stem_of(natural)
    levels: list[Level] = []
    for size, search_C, search_num, C, num in LADDERS[shape]:
        level = Level(
            image_size or min(size, natural), shape, search_channels or search_C, search_cells or search_num,
            channels or C, cells or num,
        )  # fmt: skip
        if level not in levels:
            levels.append(level)
    fitting = sizes_in_memory([level.image_size for level in levels], facts.images + facts.test, available)
    kept = [level for level in levels if level.image_size in fitting]
    if not kept:
        least = min(level.image_size for level in levels)
        raise UsageError(
            f"{facts.images + facts.test:,} images of {least}×{least} pixels take more than half of the "
            f"{(available or 0) / 2**30:.1f} GiB of memory available: use fewer images, or a smaller --image-size"
        )
    return kept


# --- batches and rates


def batch_size(images: int) -> int:
    """The largest usual batch of which an epoch has LEAST_STEPS_AN_EPOCH; the smallest one for few images.

    Never more than the images, and never one of which a single image remains: BatchNorm cannot normalise it.
    """
    size = max((size for size in BATCHES if images >= LEAST_STEPS_AN_EPOCH * size), default=BATCHES[0])
    return without_single(min(size, max(2, images)), images)


def without_single(size: int, images: int) -> int:
    """`size`, or the next smaller batch of which no single image remains at the end of an epoch."""
    while size > 2 and images % size == 1:
        size -= 1
    return size


def batch_in_memory(size: int, pixels: int, bytes_per_pixel: float | None, available: int | None) -> int:
    """`size`, halved until a batch of images of so many pixels fits into MEMORY_SHARE of the memory; 0 if none does."""
    if bytes_per_pixel is None or available is None:
        return size
    while size > 1 and size * pixels * bytes_per_pixel > MEMORY_SHARE * available:
        size //= 2
    return size if size > 1 else 0


def published_alpha_steps(config: SearchConfig) -> int:
    """Steps of the alphas that a recipe makes on CIFAR-10, where it was published: 19,550 for DARTS."""
    images = CIFAR_TRAIN_IMAGES if config.method().is_single_level else CIFAR_TRAIN_IMAGES // 2
    return max(1, config.epochs - config.alpha_frozen_epochs) * -(-images // config.batch_size)


def alpha_learning_rate(config: SearchConfig, steps: int) -> float:
    """The learning rate of the alphas for a search of so many of their steps.

    Adam divides the gradient by its own size, so that a step moves an alpha by about the learning rate, whatever the
    loss: in n steps of rate r an alpha moves by at most about n · r. That distance is kept: r(n) = distance / n,
    with the distance of DARTS, 19,550 · 3e-4 = 5.9, or that of the recipe on CIFAR-10 if it is longer. Never below the
    recipe's rate, and never above 0.03, with which a step changes no mixing weight p by more than
    p (1 - p) · 0.03 < 0.0075.
    """
    own = config.alpha_learning_rate
    return max(own, min(alpha_distance(config) / max(1, steps), MOST_ALPHA_LEARNING_RATE))


def alpha_distance(config: SearchConfig) -> float:
    """How far an alpha may move in a search: see `alpha_learning_rate`."""
    return max(DARTS_DISTANCE, config.alpha_learning_rate * published_alpha_steps(config))


def frozen_epochs(config: SearchConfig, epochs: int) -> int:
    """Epochs at the start of a search in which the alphas wait: the recipe's share, and never all of them."""
    return min(max(0, epochs - 1), round(config.alpha_frozen_epochs / config.epochs * epochs))


def regularisers(epochs: int, image_size: int) -> dict[str, float | int]:
    """Cutout, drop path and auxiliary head for a training of so many epochs; the papers' are for 600."""
    if epochs < REGULARISED_EPOCHS:
        return {"cutout_length": 0, "drop_path_prob": 0.0, "auxiliary_weight": 0.0}
    share = min(1.0, epochs / MOST_EPOCHS)
    return {
        "cutout_length": image_size // 4,
        "drop_path_prob": round(0.2 * share, 3),
        "auxiliary_weight": 0.4 if share >= 0.5 else 0.0,
    }


# --- epochs


def steps_of(images: int, batch: int) -> int:
    """Steps of an epoch."""
    return -(-images // batch)


def search_epoch_seconds(timing: Timing, images: int) -> float:
    """Expected seconds of an epoch of the search, with `images` for the weights."""
    steps = images / timing.search_batch  # a smaller last batch takes less time
    return MARGIN * (steps * timing.search_step + timing.search_epoch)


def train_epoch_seconds(timing: Timing, facts: DataFacts) -> float:
    """Expected seconds of an epoch of the training, its test included."""
    steps = facts.images / timing.train_batch
    return MARGIN * (steps * timing.train_step + facts.test * timing.test_image + timing.train_epoch)


def plan(
    seconds: float, timing: Timing, facts: DataFacts, searched: int, search_epochs: int | None, epochs: int | None
) -> Plan:
    """The epochs that fit into `seconds`; those that are given are kept, and may take longer.

    searched: images for the weights of the search.
    """
    of_search, of_train = search_epoch_seconds(timing, searched), train_epoch_seconds(timing, facts)
    start, train_start = timing.search_start, timing.train_start
    if search_epochs is not None:
        share = start + search_epochs * of_search
    elif epochs is not None:
        share = seconds - train_start - epochs * of_train
    else:
        share = SEARCH_SHARE * seconds
    found = search_epochs
    if found is None:
        steps = steps_of(searched, timing.search_batch)
        most = max(LEAST_SEARCH_EPOCHS, min(MOST_SEARCH_EPOCHS, 19_550 // steps))
        found = min(most, max(LEAST_SEARCH_EPOCHS, int((share - start) / of_search)))
    search_seconds = start + found * of_search
    if epochs is None:
        epochs = train_epochs(seconds - search_seconds, timing, facts)
    return Plan(found, epochs, search_seconds, train_start + epochs * of_train)


def train_epochs(seconds: float, timing: Timing, facts: DataFacts) -> int:
    """The epochs of a training that fit into `seconds`; LEAST_EPOCHS if fewer do."""
    room = int((seconds - timing.train_start) / train_epoch_seconds(timing, facts))
    return min(MOST_EPOCHS, max(LEAST_EPOCHS, room))


def least_seconds(
    timing: Timing, facts: DataFacts, searched: int, search_epochs: int | None, epochs: int | None
) -> float:
    """Seconds of the shortest search and training that a fit makes, or of those that are asked for."""
    found = plan(0, timing, facts, searched, search_epochs or LEAST_SEARCH_EPOCHS, epochs or LEAST_EPOCHS)
    return found.search_seconds + found.train_seconds


def enough(found: Plan, timing: Timing, facts: DataFacts, searched: int, frozen_share: float) -> bool:
    """Whether a plan trains enough for a larger network to be worth more than more steps."""
    alpha_steps = (1 - frozen_share) * found.search_epochs * steps_of(searched, timing.search_batch)
    low, high = WANTED_EPOCHS
    wanted = min(high, max(low, math.ceil(WANTED_STEPS / steps_of(facts.images, timing.train_batch))))
    return alpha_steps >= WANTED_ALPHA_STEPS and found.epochs >= wanted


def scaled(timing: Timing, search: float, train: float) -> Timing:
    """The timing expected of another level, whose search and training have so many times the MACs."""
    search, train = search**GROWTH, train**GROWTH
    return timing._replace(
        search_step=timing.search_step * search, train_step=timing.train_step * train,
        test_image=timing.test_image * train,
    )  # fmt: skip


def next_level(
    measured: Mapping[int, Timing | None],
    works: Sequence[tuple[float, float]],
    fits: Mapping[int, bool],
    affordable: "Affordable",
) -> int | None:
    """The level to measure next, by its index; None if the choice is made: `chosen_level`.

    measured: timings by level, None for one that does not fit into memory. works: MACs of search and training of each
    level, by which measured times are carried over to others. fits: which measured levels are affordable.
    """
    known = {index: timing for index, timing in measured.items() if timing is not None}
    if not measured:
        return 0
    if not known:
        return None
    broken = min((index for index, timing in measured.items() if timing is None), default=len(works))
    failed = min((index for index, good in fits.items() if not good), default=len(works))
    ahead = max((index for index, good in fits.items() if good), default=0) + FURTHEST
    for index in range(min(broken, failed, len(works), ahead + 1) - 1, -1, -1):
        if index in measured:
            return None
        nearest = min(known, key=lambda other: abs(other - index))
        ratios = (works[index][part] / works[nearest][part] for part in (0, 1))
        if affordable(scaled(known[nearest], *ratios)):
            return index
    return None


class Affordable:
    """Whether a level with this timing leaves time for enough steps."""

    def __init__(
        self,
        seconds: float,
        facts: DataFacts,
        searched: int,
        frozen_share: float,
        search_epochs: int | None,
        epochs: int | None,
    ) -> None:
        self.seconds, self.facts, self.searched, self.frozen_share = seconds, facts, searched, frozen_share
        self.search_epochs, self.epochs = search_epochs, epochs

    def __call__(self, timing: Timing) -> bool:
        found = plan(self.seconds, timing, self.facts, self.searched, self.search_epochs, self.epochs)
        if found.search_seconds + found.train_seconds > self.seconds:
            return False
        if self.search_epochs is not None and self.epochs is not None:
            return True  # asked for: enough is what fits
        return enough(found, timing, self.facts, self.searched, self.frozen_share)


def chosen_level(measured: Mapping[int, Timing | None], fits: Mapping[int, bool]) -> int:
    """The largest affordable level; the smallest one that fits into memory if none is. UsageError if none fits."""
    known = [index for index, timing in measured.items() if timing is not None]
    if not known:
        raise UsageError(
            "not even a batch of two images fits into the memory that is available: free some, or give a smaller "
            "--image-size"
        )
    return max((index for index in known if fits[index]), default=min(known))


def refuse_too_short(least: float, seconds: float, spent: float, budget: float) -> None:
    """UsageError if the least that a fit does takes longer than the `seconds` left of the budget, all in seconds."""
    if least > seconds:
        minutes = math.ceil(10 * (budget + least - seconds) / 60) / 10
        raise UsageError(
            f"--minutes {budget / 60:g} is too little for these images on this machine: looking and measuring took "
            f"{clock(spent)}, and the shortest search and training take {clock(least)} beside the test and the report; "
            f"give --minutes {max(minutes, round(budget / 60 + 0.1, 1)):g} or more"
        )
