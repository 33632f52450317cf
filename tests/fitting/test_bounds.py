"""Bounds on the network of a fit, at its own size."""

import numpy as np
import pytest

from darts_sg.analysis.cost import choice_costs, derived_cost
from darts_sg.derive import derive_bounded, random_cell
from darts_sg.errors import UsageError
from darts_sg.fitting.baseline import baselines, widest
from darts_sg.fitting.bounds import KINDS, Limits, Size, counted, least_cost, mean_cost
from darts_sg.fitting.choices import Level
from darts_sg.genotype import Genotype, load_genotype
from darts_sg.spaces import parse_space

SPACE = parse_space("darts")
SIZE = Size("imagenet", 72, 8, 3, 5)


def drawn(seed: int) -> Genotype:
    generator = np.random.default_rng(seed)
    cells = [random_cell(4, SPACE.operations, generator) for _ in range(2)]
    return Genotype("drawn", SPACE.name, SPACE.operations, *cells)


@pytest.mark.parametrize("network", ["cifar", "imagenet"])
@pytest.mark.parametrize("side", [32, 70])
def test_the_tables_are_exact_at_any_size(network: str, side: int) -> None:
    tables = choice_costs(SPACE.operations, network, 8, 3, num_classes=7, image_size=side)  # type: ignore[arg-type]
    genotype = drawn(0)
    cost = derived_cost(genotype, network, 8, 3, 7, side)  # type: ignore[arg-type]
    found = [table.of((genotype.normal, genotype.reduce), SPACE.operations) for table in tables]
    assert found == [cost.params, cost.macs]


def test_the_least_cost_is_that_of_the_cheapest_network() -> None:
    for kind in KINDS.values():
        costs = kind.costs(SPACE.operations, 4, SIZE)
        cells = derive_bounded(-costs.normal.astype(float), -costs.reduce.astype(float), SPACE.operations)
        assert least_cost(costs, SPACE) == costs.of(cells, SPACE.operations)
        genotypes = [drawn(seed) for seed in range(100)]
        drawn_costs = [costs.of((each.normal, each.reduce), SPACE.operations) for each in genotypes]
        assert drawn_costs[0] == kind.of(genotypes[0], SIZE)
        assert abs(np.mean(drawn_costs) / mean_cost(costs, SPACE) - 1) < 0.1


def test_widths_keep_the_bounds() -> None:
    limits = Limits({"max_params": 60_000})
    width = limits.widest(SPACE, 4, SIZE._replace(channels=48))
    assert width is not None
    assert limits.roomy(SPACE, 4, SIZE._replace(channels=width))
    assert not limits.roomy(SPACE, 4, SIZE._replace(channels=width + 2))
    assert Limits({"max_params": 10}).widest(SPACE, 4, SIZE) is None


def test_an_impossible_bound_is_refused_with_the_least() -> None:
    size = SIZE._replace(channels=4)
    least = least_cost(KINDS["max_macs"].costs(SPACE.operations, 4, size), SPACE)
    Limits({"max_macs": least}).refuse_impossible(SPACE, 4, size, fixed=False)
    with pytest.raises(UsageError, match=rf"--max-macs .* \(the least is {least:,}\)"):
        Limits({"max_macs": least - 1}).refuse_impossible(SPACE, 4, size, fixed=False)


def test_baselines_are_the_widest_that_cost_no_more() -> None:
    level = Level(72, "imagenet", 8, 3, 24, 3)
    size = Size("imagenet", 72, 24, 3, 5)
    most = counted(load_genotype("DARTS_V1"), size)[1]
    darts, mobile = baselines(load_genotype("DARTS_V1"), size, level, by_params=False)
    assert darts.macs <= most
    assert counted(load_genotype("DARTS_V2"), size._replace(channels=darts.level.channels + 2))[1] > most
    assert mobile.macs <= most
    assert [widest(bound.__ge__, 50) for bound in (0, 1, 7, 50, 99)] == [1, 1, 7, 50, 50]
