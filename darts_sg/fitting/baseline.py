"""The baselines of `fit --compare`: DARTS_V2 and MobileNetV2 at the cost of the searched network."""

from collections.abc import Callable
from typing import NamedTuple

from darts_sg.analysis.cost import model_cost
from darts_sg.fitting.bounds import Size, counted
from darts_sg.fitting.choices import Level
from darts_sg.genotype import Genotype, load_genotype
from darts_sg.networks.mobile import Model, find_model

GENOTYPE, FAMILY = "DARTS_V2", "mobilenetv2"
HUNDREDTHS = 400
"""Widths of a model up to 4.00 are tried."""


class Baseline(NamedTuple):
    """A network to compare with."""

    title: str
    trained: Genotype | Model
    level: Level
    params: int
    macs: int


def baselines(genotype: Genotype, size: Size, level: Level, *, by_params: bool) -> list[Baseline]:
    """Both baselines, each the widest with no more MACs than the searched network, or parameters with `by_params`.

    Where even the narrowest has more, it is taken, and its title says so.
    """
    which = 0 if by_params else 1
    most = counted(genotype, size)[which]
    known = load_genotype(GENOTYPE)

    def derived(half: int) -> tuple[int, int]:
        return counted(known, size._replace(channels=2 * half))

    def mobile(hundredths: int) -> tuple[int, int]:
        model = find_model(f"{FAMILY}_{hundredths / 100:g}")
        cost = model_cost(model, size.network, size.num_classes, size.image_size)
        return cost.params, cost.macs

    half = widest(lambda n: derived(n)[which] <= most, 4096)
    hundredths = widest(lambda n: mobile(n)[which] <= most, HUNDREDTHS)
    model = find_model(f"{FAMILY}_{hundredths / 100:g}")
    narrowest = [", the narrowest" if cost[which] > most else "" for cost in (derived(half), mobile(hundredths))]
    return [
        Baseline(f"{GENOTYPE} at C={2 * half}{narrowest[0]}", known, level._replace(channels=2 * half), *derived(half)),
        Baseline(f"MobileNetV2 of width {hundredths / 100:g}{narrowest[1]}", model, level, *mobile(hundredths)),
    ]


def widest(fits: Callable[[int], bool], most: int) -> int:
    """The largest number from 1 to `most` that fits, where all below it fit, too; 1 if none does."""
    low, high = 1, 2
    while high <= most and fits(high):
        low, high = high, 2 * high
    high = min(high, most + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
