"""What genotypes cost by parts, and how their cells are shaped."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from darts_sg.analysis.compare import (
    activation_bytes,
    anatomy,
    compare_genotypes,
    depth,
    latency,
    shared_edges,
    width,
)
from darts_sg.analysis.cost import derived_cost
from darts_sg.analysis.measured import runs_in
from darts_sg.genotype import Cell, Edge, load_genotype, zoo_names
from darts_sg.study.compare import compare_genotypes as public_compare
from tests.analysis.runs import make_run

CHAIN = Cell(
    ((Edge("skip_connect", 0), Edge("skip_connect", 1)), (Edge("skip_connect", 2), Edge("skip_connect", 1))), (2, 3)
)


@pytest.mark.parametrize("name", zoo_names())
@pytest.mark.parametrize("network", ["cifar", "imagenet"])
def test_parts_add_up_to_the_network(name: str, network: str) -> None:
    genotype = load_genotype(name)
    shape = (network, 8, 3)  # small, for this counts layer by layer
    cost, parts = derived_cost(genotype, *shape), anatomy(genotype, *shape)
    for list_of_parts in (parts.cells, parts.operations):
        assert sum(part.params for part in list_of_parts) == cost.params
        assert sum(part.macs for part in list_of_parts) == cost.macs


def test_depth_and_width_of_a_cell() -> None:
    assert (depth(CHAIN), width(CHAIN)) == (2, 1.5)
    normal = load_genotype("DARTS_V2").normal
    assert (depth(normal), width(normal)) == (2, 3.5)


def test_edges_are_shared_where_node_state_and_operation_agree() -> None:
    v1, v2 = load_genotype("DARTS_V1"), load_genotype("DARTS_V2")
    assert shared_edges(v1, v1) == 16
    assert shared_edges(v1, v2) == shared_edges(v2, v1) == 11


@pytest.mark.parametrize(("network", "C", "num_cells", "sizes"), [("cifar", 36, 20, 32), ("imagenet", 48, 14, 28)])
def test_stages_have_the_channels_and_sizes_of_the_papers(network: str, C: int, num_cells: int, sizes: int) -> None:
    stages = anatomy(load_genotype("NASNet"), network).stages
    assert [stage.kind for stage in (stages[0], stages[-1])] == ["stem", "head"]
    assert stages[-1].shape == ({"cifar": 10, "imagenet": 1000}[network], 1)
    for i, stage in enumerate(stages[1:-1]):
        halved = (i >= num_cells // 3) + (i >= 2 * num_cells // 3)
        kind, joined = ("reduction", 3) if i in (num_cells // 3, 2 * num_cells // 3) else ("normal", 5)
        assert (stage.kind, stage.C, stage.shape) == (kind, C * 2**halved, (joined * C * 2**halved, sizes // 2**halved))


def test_published_and_measured_errors_stand_apart(tmp_path: Path) -> None:
    v2 = load_genotype("DARTS_V2")
    make_run(tmp_path / "a", replace(v2, name="mine"), 14.0)
    make_run(tmp_path / "b", load_genotype("DARTS_V1"), 9.0)
    row = public_compare([v2], runs=runs_in(tmp_path))[0]
    assert (row["published_cifar10_error"], row["published_cifar10_error_deviation"]) == (2.76, 0.09)
    assert row["published_imagenet_top1_error"] == 26.7
    assert [score.errors for score in row["measured_test_error"]] == [(14.0,)]
    assert row["params"] == 3_349_342
    assert public_compare([v2])[0]["measured_test_error"] == []
    with pytest.raises(ValueError, match="give compared"):
        compare_genotypes([v2], runs=runs_in(tmp_path))


def test_activations_grow_with_the_network_and_latency_is_taken() -> None:
    genotype = load_genotype("DARTS_V2")
    small, large = (activation_bytes(genotype, channels=C, cells=3) for C in (4, 8))
    assert 1.8 * small < large < 2.2 * small
    found = latency([genotype, load_genotype("NASNet")], 2, torch.device("cpu"), channels=4, cells=3)
    assert len(found) == 2
    for times in found:
        assert 0 < times.smallest <= times.median <= times.largest
