"""What the baselines try: mutations, tournaments, and paths of a supernet against the textbook one."""

from collections import deque

import numpy as np
import pytest
import torch

from darts_sg.baselines import STRATEGIES, Candidate, Cells, Problem, as_plain
from darts_sg.baselines.architectures import from_plain, mutate, random_cells
from darts_sg.baselines.evolution import Evolution
from darts_sg.baselines.rsps import Rsps, path_outputs
from darts_sg.errors import UsageError
from darts_sg.genotype import Genotype
from darts_sg.methods.parts import build_part
from tests.engine.test_search_step import search_config
from tests.networks.test_supernet import pair
from tests.reference.transfer import assert_equal_tensors

NAMES = ("none", "skip_connect", "sep_conv_3x3", "max_pool_3x3")
PROBLEM = Problem(NAMES, 3)


def edges(cells: Cells) -> set[tuple[str, int, str, int]]:
    return {(name, s, e.operation, e.state) for name, cell in cells._asdict().items() for s, e in cell.edges()}


def test_a_mutation_changes_one_edge_in_every_way_that_there_is() -> None:
    rng = np.random.default_rng(0)
    parent = random_cells(PROBLEM, rng)
    before, kinds, places = as_plain(parent), {"operation": 0, "state": 0}, set()
    for _ in range(400):
        child = mutate(PROBLEM, parent, rng)
        Genotype("child", "", NAMES, *child)  # checks it
        [gone], [come] = edges(parent) - edges(child), edges(child) - edges(parent)
        assert gone[:2] == come[:2]
        assert (gone[2] == come[2]) != (gone[3] == come[3])
        kinds["state" if gone[2] == come[2] else "operation"] += 1
        places.add(gone)
        for node in (*child.normal.nodes, *child.reduce.nodes):
            assert len({edge.state for edge in node}) == 2
    assert as_plain(parent) == before
    assert places == edges(parent)
    assert 150 < kinds["state"] < 250


def test_where_one_kind_of_mutation_is_impossible_the_other_is_taken() -> None:
    rng = np.random.default_rng(0)
    one_operation, one_node = Problem(("skip_connect",), 2), Problem(NAMES, 1)
    for problem in (one_operation, one_node):
        cells = random_cells(problem, rng)
        for _ in range(10):
            assert len(edges(cells) - edges(mutate(problem, cells, rng))) == 1
    with pytest.raises(UsageError, match="one architecture only"):
        mutate(Problem(("skip_connect",), 1), random_cells(Problem(("skip_connect",), 1), rng), rng)


def test_evolution_is_the_algorithm_with_a_queue() -> None:
    """Against algorithm 1 of the paper, with a queue that the oldest leaves, and a tournament over what is in it."""
    strategy, tried = Evolution(population=4, sample=2), []
    alive: deque[int] = deque()
    scores = np.random.default_rng(5).permutation(30).tolist()
    for number in range(30):
        cells, parent = strategy.propose(PROBLEM, tried, np.random.default_rng(number))
        if number < 4:
            assert parent is None
        else:
            rng = np.random.default_rng(number)
            drawn = [alive[i] for i in rng.integers(4, size=2)]
            best = sorted(drawn, key=lambda each: scores[each])[-1]
            assert parent == best
            assert cells == mutate(PROBLEM, tried[best].cells, rng)
            alive.popleft()
        alive.append(number)
        tried.append(Candidate(cells, float(scores[number]), {}, parent))


def test_random_search_draws_different_candidates_that_go_through_plain_values() -> None:
    strategy = build_part(STRATEGIES, "random:candidates=3", "--strategy")
    found = [strategy.propose(PROBLEM, [], np.random.default_rng(i))[0] for i in range(20)]  # type: ignore[attr-defined]
    assert len({str(cells) for cells in found}) == 20
    assert [from_plain(as_plain(cells)) for cells in found] == found


@pytest.mark.parametrize("train", [True, False])
def test_a_path_is_the_supernet_with_one_hot_mixing_weights(train: bool) -> None:
    net, expected = pair("darts", False, channels=4, cells=4, num_classes=7, num_nodes=3)
    net.train(train)
    expected.train(train)
    problem = Problem(net.operations, 3)
    x = torch.randn(3, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    for seed in range(2):
        cells = random_cells(problem, np.random.default_rng(seed))
        tables = []
        for cell in cells:
            table = torch.zeros(9, len(net.operations), dtype=torch.float64)
            for state, edge in cell.edges():
                table[sum(range(2, state)) + edge.state, net.operations.index(edge.operation)] = 1
            tables.append(table)
        assert_equal_tensors([path_outputs(net, x, cells)], [expected(x, *tables)])


def test_a_step_of_a_path_touches_no_other_operation() -> None:
    net, _ = pair("darts", False, channels=4, cells=3, num_classes=7, num_nodes=2)
    cells = random_cells(Problem(net.operations, 2), np.random.default_rng(0))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    x = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    path_outputs(net, x, cells).sum().backward()
    chosen = {
        (cell.reduction, sum(range(2, state)) + edge.state, net.operations.index(edge.operation) - 1)
        for cell in net.cells
        for state, edge in (cells.reduce if cell.reduction else cells.normal).edges()
    }
    for name, value in net.state_dict().items():
        parts = name.split(".")
        if parts[0] == "cells" and parts[2] == "edges":
            place = (net.cells[int(parts[1])].reduction, int(parts[3]), int(parts[5]))
            if "running" in name:
                assert torch.equal(value, before[name]) == (place not in chosen)
    for name, parameter in net.named_parameters():
        parts = name.split(".")
        if len(parts) > 5 and parts[2] == "edges":
            place = (net.cells[int(parts[1])].reduction, int(parts[3]), int(parts[5]))
            assert (parameter.grad is None) == (place not in chosen)


def test_budgets_are_epochs_unless_candidates_are_given() -> None:
    def of(text: str) -> int:
        strategy = build_part(STRATEGIES, text, "--strategy")
        return strategy.num_candidates(50)  # type: ignore[attr-defined]

    assert of("random") == of("evolution") == of("random:score=snip") == 50
    assert of("random:epochs=5") == 10
    assert of("random:epochs=60") == 1
    assert of("evolution:candidates=7,epochs=5") == 7
    assert [Rsps().num_rounds(steps) for steps in (10, 19_600, 20_000)] == [1, 1, 2]
    assert Rsps(rounds=3).num_rounds(10) == 3


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"strategy": "randm"}, "unknown strategy 'randm' (did you mean 'random'?)"),
        ({"strategy": "random:candidates=0"}, "candidates must be at least 1, found 0"),
        ({"strategy": "random:score=snipp"}, "unknown score 'snipp' (did you mean 'snip'?)"),
        ({"strategy": "random:score=snip,epochs=3"}, "epochs 3 train a candidate, and score=snip does not"),
        ({"strategy": "evolution:sample=0"}, "sample must be at least 1, found 0"),
        ({"strategy": "rsps:samples=2,finalists=3"}, "finalists 3 are more than the 2 samples"),
        ({"strategy": "rsps", "partial_channels": 2}, "--partial-channels 2 is for a search by gradient"),
        ({"strategy": "random", "selection": "projection"}, "--selection projection is for a search by gradient"),
        ({"strategy": "rsps", "edge_normalization": True}, "--edge-normalization true is for a search by gradient"),
        ({"strategy": "gradient:epochs=3"}, "it has no options"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(options: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        search_config(**options)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
