"""Spaces whose edges have lists of operations of their own: S1, and noise as an operation (S4)."""

from pathlib import Path

import numpy as np
import pytest
import torch

from darts_sg.api import search
from darts_sg.backends import accelerate, pytorch_backend
from darts_sg.baselines import Problem
from darts_sg.baselines.architectures import mutate, random_cells
from darts_sg.config import SearchConfig
from darts_sg.derive import Bound, Costs, derive_bounded, num_edges
from darts_sg.engine.checkpoint import checkpoints, read_torch
from darts_sg.errors import Stopped, UsageError
from darts_sg.genotype import NUM_INPUTS, Cell, load_genotype
from darts_sg.methods.mixing import draw_noise, expected_mixing, restricted, sampled_mixing
from darts_sg.methods.perturbations.random import UniformNoise
from darts_sg.methods.relaxations import RELAXATIONS
from darts_sg.networks.supernet import MixedOp, Mixing, Supernet
from darts_sg.spaces import parse_space

S1 = parse_space("S1")
SHAPE = {"channels": 4, "cells": 3, "num_classes": 3}
TINY = {
    "dataset": "synthetic", "channels": 4, "cells": 3, "epochs": 2, "batch_size": 8, "train_images": 16,
    "validation_images": 16, "threads": 1,
}  # fmt: skip


def of_lists(cell: Cell, lists: tuple[tuple[tuple[str, ...], ...], ...]) -> bool:
    return all(edge.operation in lists[state - NUM_INPUTS][edge.state] for state, edge in cell.edges())


def test_s1_is_that_of_its_paper() -> None:
    assert S1.num_nodes == 4
    assert S1.edge_lists is not None
    normal, reduce = S1.edge_lists
    assert normal[0] == (("skip_connect", "dil_conv_3x3"), ("skip_connect", "dil_conv_5x5"))
    assert normal[3][3:] == (("dil_conv_3x3", "dil_conv_5x5"),) * 2
    assert reduce[2][:2] == (("max_pool_3x3", "avg_pool_3x3"), ("max_pool_3x3", "sep_conv_3x3"))
    assert {len(edge) for lists in S1.edge_lists for edges in lists for edge in edges} == {2}
    assert [len(edges) for edges in normal] == [2, 3, 4, 5]


def test_a_supernet_of_edge_lists_is_the_whole_one_with_other_operations_at_zero() -> None:
    torch.manual_seed(0)
    own = Supernet(S1.operations, **SHAPE, allowed=S1.allowed).double()
    whole = Supernet(S1.operations, **SHAPE).double()
    accelerate(own, pytorch_backend(own))
    state = {name: tensor for name, tensor in own.state_dict().items() if ".edges." not in name}
    whole.load_state_dict(state, strict=False)
    for mine, cell in zip(own.cells, whole.cells, strict=True):
        for one, other in zip(mine.edges, cell.edges, strict=True):
            assert isinstance(one, MixedOp)
            assert isinstance(other, MixedOp)
            for column, op in zip(one.columns, one.ops, strict=True):
                other.ops[other.columns.index(column)].load_state_dict(op.state_dict())
    assert S1.allowed is not None
    tables = []
    for alpha, allowed in zip((whole.alpha_normal, whole.alpha_reduce), S1.allowed, strict=True):
        rows = []
        for row, names in zip(alpha, allowed, strict=True):  # a softmax over the operations of the edge, by hand
            powers = [row[i].exp() if names[i] else row.new_zeros(()) for i in range(len(names))]
            rows.append(torch.stack([power / sum(powers) for power in powers]))
        tables.append(torch.stack(rows))
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    outputs = own(x, expected_mixing(own, RELAXATIONS["softmax"]())), whole(x, Mixing(*tables))
    losses = [each.square().sum() for each in outputs]
    torch.testing.assert_close(*losses, rtol=1e-12, atol=0)
    found, wanted = (
        torch.autograd.grad(loss, [net.alpha_normal, net.alpha_reduce])
        for loss, net in zip(losses, (own, whole), strict=True)
    )
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", RELAXATIONS)
def test_every_relaxation_gives_an_operation_that_an_edge_lacks_no_weight(name: str) -> None:
    uneven = np.zeros((2, 3), bool)
    uneven[0, :2], uneven[1] = True, True  # two operations on one edge, three on the other
    names = ("none", "skip_connect", "max_pool_3x3")
    net = Supernet(names, **SHAPE, num_nodes=1, allowed=(uneven, np.ones_like(uneven)))
    relaxation, generator = RELAXATIONS[name](), torch.Generator().manual_seed(0)
    progress = torch.tensor(0.5)
    drawn = draw_noise(net, relaxation, progress, generator)
    for mixing in (expected_mixing(net, relaxation), sampled_mixing(net, relaxation, progress, drawn)):
        assert mixing.normal[0, 2] == 0
        assert torch.isfinite(mixing.normal).all()
        if relaxation.sums_to_one:
            torch.testing.assert_close(mixing.normal.sum(dim=1), torch.ones(2))
        gradient = torch.autograd.grad((mixing.normal * torch.randn(2, 3)).sum(), net.alpha_normal)[0]
        assert gradient[0, 2] == 0
        assert torch.isfinite(gradient).all()


def test_perturbed_weights_stay_with_the_operations_of_an_edge() -> None:
    net = Supernet(S1.operations, **SHAPE, allowed=S1.allowed)
    mixing = expected_mixing(net, RELAXATIONS["softmax"]())
    moved = UniformNoise(0.3)(mixing, lambda m: m.normal.sum(), torch.tensor(1.0), torch.Generator().manual_seed(0))
    assert S1.allowed is not None
    for table, allowed in zip(restricted(net, moved)[:2], S1.allowed, strict=True):
        assert not table[~torch.from_numpy(allowed)].any()
        torch.testing.assert_close(table.sum(dim=1), torch.ones(14))


def test_bounds_random_cells_and_mutations_keep_the_lists() -> None:
    assert S1.allowed is not None
    assert S1.edge_lists is not None
    rng = np.random.default_rng(0)
    table = (num_edges(4), len(S1.operations))
    weights = [rng.random(table) * allowed for allowed in S1.allowed]
    costs = Costs(*(rng.integers(0, 9, table) for _ in range(2)), fixed=0)
    cells = derive_bounded(*weights, S1.operations, [Bound("params", costs, 60)], 1, S1.allowed)
    assert all(map(of_lists, cells, S1.edge_lists))
    problem = Problem(S1.operations, 4, S1.allowed)
    architecture = random_cells(problem, rng)
    for _ in range(20):
        architecture = mutate(problem, architecture, rng)
        assert all(map(of_lists, architecture, S1.edge_lists))


@pytest.mark.parametrize(
    ("space", "options"),
    [
        ("S1", {"nodes": 4, "perturbation": "random", "regularizer": "beta-decay", "target_params": "9M"}),
        pytest.param("S4", {"nodes": 2, "hypergradient": "unrolled"}, marks=pytest.mark.slow),
    ],
)
def test_a_search_of_such_a_space_ends_with_a_genotype_of_it(
    space: str, options: dict[str, object], tmp_path: Path
) -> None:
    found = search(**TINY, space=space, run_dir=tmp_path / "run", **options)
    genotype = load_genotype(found.run_dir / "genotype.yaml")
    assert genotype.space == space
    lists = parse_space(space).edge_lists
    assert lists is None or all(map(of_lists, (genotype.normal, genotype.reduce), lists))
    if space == "S4":  # the noise of a resumed run is that of an undisturbed one
        with pytest.raises(Stopped):
            search(**TINY, space=space, run_dir=tmp_path / "cut", time_budget=1e-9, **options)
        search(resume=tmp_path / "cut")
        states = [read_torch(checkpoints(tmp_path / name / "checkpoints")[-1]) for name in ("run", "cut")]
        for one, other in zip(*(state["state"]["supernet"].values() for state in states), strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"space": "S1", "nodes": 3}, "--nodes 3: space S1 has lists for the edges of 4 nodes; give --nodes 4"),
        ({"space": "S1+sandglass"}, "S1 has a list of operations for each edge and stands alone"),
        ({"space": "S4", "recompute": True}, "--recompute would draw the noise of an operation a second time"),
    ],
)
def test_what_has_no_meaning_is_refused(options: dict[str, object], told: str) -> None:
    with pytest.raises(UsageError, match=told.replace("+", r"\+")):
        SearchConfig(**options)


def test_an_auxiliary_skip_is_on_every_edge() -> None:
    net = Supernet(S1.operations, **SHAPE, allowed=S1.allowed, auxiliary_skip=True)
    for cell in net.cells:
        assert all(edge.columns[-1] == len(S1.operations) and len(edge.columns) == 3 for edge in cell.edges)
