"""What genotypes cost by parts, and how their cells are shaped."""

import pytest
import torch

from darts_sg.analysis.compare import activation_bytes, anatomy, comparison, depth, latency, shared_edges, width
from darts_sg.analysis.cost import derived_cost
from darts_sg.genotype import Cell, Edge, load_genotype, zoo_names

CHAIN = Cell(
    ((Edge("skip_connect", 0), Edge("skip_connect", 1)), (Edge("skip_connect", 2), Edge("skip_connect", 1))), (2, 3)
)


@pytest.mark.parametrize("name", zoo_names())
@pytest.mark.parametrize("network", ["cifar", "imagenet"])
def test_parts_add_up_to_the_network(name: str, network: str) -> None:
    genotype = load_genotype(name)
    cost, parts = derived_cost(genotype, network), anatomy(genotype, network)
    for list_of_parts in parts:
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


def test_published_and_measured_errors_stand_apart() -> None:
    row = comparison([load_genotype("DARTS_V2")])[0]
    assert row["published_cifar10_error"] == 2.76
    assert row["measured_test_error"] is None
    assert row["params"] == 3_349_342


def test_activations_grow_with_the_network_and_latency_is_taken() -> None:
    genotype = load_genotype("DARTS_V2")
    small, large = (activation_bytes(genotype, channels=C, cells=3) for C in (4, 8))
    assert 1.8 * small < large < 2.2 * small
    found = latency(genotype, 2, torch.device("cpu"), channels=4, cells=3)
    assert 0 < found.smallest <= found.median <= found.largest
