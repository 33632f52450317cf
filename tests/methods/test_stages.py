"""Plans of stages, pruning between stages, dropout after skip connections, and wider operations."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from darts_sg.config import SearchConfig, load_recipe
from darts_sg.errors import UsageError
from darts_sg.methods.growth import ChannelCopies, _joined_halves, widened
from darts_sg.methods.pruning import strongest
from darts_sg.methods.selection import Searched
from darts_sg.methods.selection.skip_limit import SkipLimit
from darts_sg.methods.skip_dropout import SkipDropout, add_skip_dropout, silence
from darts_sg.methods.stages import STAGE_PLANS, Stage, Timeline
from darts_sg.networks.supernet import MixedOp, Supernet, candidate
from darts_sg.ops import OPERATIONS
from darts_sg.ops.primitives import FactorizedReduce

DRNAS_SPACE = "max_pool_3x3+avg_pool_3x3+skip_connect+sep_conv_3x3+sep_conv_5x5+dil_conv_3x3+dil_conv_5x5"


def test_the_recipes_have_the_stages_of_their_papers() -> None:
    p_darts = SearchConfig(recipe="p-darts").method()
    assert p_darts.stages == (
        Stage(25, 5, 1, 10, 8, 0.1, True), Stage(25, 11, 1, 10, 5, 0.4, True), Stage(25, 17, 1, 10, 3, 0.7, True),
    )  # fmt: skip
    assert p_darts.selection == SkipLimit(2)
    drnas = SearchConfig(recipe="drnas-progressive").method()
    assert drnas.stages == (Stage(25, 20, 6, 10, 7, 0.0, True), Stage(25, 20, 4, 10, 4, 0.0, False))
    assert load_recipe("augment", "p-darts") == {"drop_path_prob": 0.3}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        # --cells, --epochs and the space scale what the plan leaves open
        ({"stages": "p-darts", "cells": 8, "epochs": 10, "space": "darts+sandglass"},
         [(3, 3, 1, 1, 9), (3, 5, 1, 1, 6), (4, 8, 1, 1, 4)]),
        ({"stages": "p-darts:cells=4/4/6,operations=3/3/2,frozen=0", "cells": 6, "epochs": 3, "space": "S3",
          "partial_channels": 2}, [(1, 4, 2, 0, 3), (1, 4, 2, 0, 3), (1, 6, 2, 0, 2)]),
        ({"stages": "drnas-progressive", "channels": 16, "epochs": 5, "space": "S3"},
         [(2, 8, 4, 0, 3), (3, 8, 4, 1, 2)]),
        ({"stages": "drnas-progressive", "channels": 12, "epochs": 2, "space": DRNAS_SPACE},
         [(1, 8, 6, 0, 7), (1, 8, 4, 0, 4)]),
        ({"stages": "drnas-progressive:partial_channels=4/2", "epochs": 2, "space": "S2"},
         [(1, 8, 4, 0, 2), (1, 8, 2, 0, 2)]),
    ],
)  # fmt: skip
def test_plans_scale_with_small_options(options: dict[str, object], expected: list[tuple[int, ...]]) -> None:
    stages = SearchConfig(**options).method().stages
    found = [(s.epochs, s.cells, s.partial_channels, s.alpha_frozen_epochs, s.num_operations) for s in stages]
    assert found == expected


P, D = {"stages": "p-darts", "epochs": 3}, {"stages": "drnas-progressive", "epochs": 2}


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({**P, "stages": "p-dart"}, "--stages p-dart: unknown plan of stages 'p-dart'"),
        ({**P, "epochs": 2}, "--stages p-darts: 3 stages need --epochs 3 or more, found 2"),
        ({**P, "space": "S1"}, "space S1: it has a list of operations for each edge"),
        ({**P, "stop_skips": 3}, "with --stop-skips: it would end the search before its last stage"),
        ({**P, "stop_eigenvalue": 0.7, "eigenvalue_every": 1}, "--stop-eigenvalue: it compares eigenvalues of one"),
        ({**P, "selection": "projection"}, "--selection projection: it decides on a supernet of one stage"),
        ({**P, "freeze_operations": "oles"}, "--freeze-operations oles: it freezes operations for good"),
        ({**D, "target_params": "3M"}, "a target: it may be out of reach once operations are pruned"),
        ({**P, "hypergradient": "unrolled"}, "unrolled: it takes the difference of passes"),
        ({**P, "weight_regularizer": "alignment", "cells": 17}, "alignment: it takes the difference of passes"),
        ({**P, "stages": "p-darts:dropout=0/0/0", "weight_regularizer": "alignment"}, "in 3 cells: it compares"),
        ({**P, "recompute": True}, "--recompute would draw the dropout of --stages p-darts a second time"),
        ({**P, "alpha_frozen_epochs": 4}, "--alpha-frozen-epochs 4 is for searches of one stage"),
        ({**D, "partial_channels": 4}, "--partial-channels 4 is for searches of one stage"),
        ({**P, "stages": "p-darts:cells=5/11"}, "cells: expected 3 numbers from 1 up, joined with /, found '5/11'"),
        ({**P, "stages": "p-darts:cells=5/11/17"}, "cells=5/11/17: expected 3 or more in each stage, and --cells 8"),
        ({**P, "stages": "p-darts:operations=9/5/1"}, "operations=9/5/1: expected to begin with the 9 operations"),
        ({**P, "stages": "p-darts:dropout=0/0/1"}, "dropout: expected 3 numbers from 0 up to, not including, 1"),
        ({**D, "stages": "drnas-progressive:partial_channels=2/4"}, "partial_channels=2/4: K must not rise"),
        ({**D, "stages": "drnas-progressive:partial_channels=6/4"}, "--channels 16 cannot be split into 6 parts"),
        ({**D, "stages": "drnas-progressive:frozen=1"}, "frozen must be from 0 up to, not including, 1: 1.0"),
        ({**P, "strategy": "random"}, "--stages p-darts is for a search by gradient"),
    ],
)  # fmt: skip
def test_what_has_no_meaning_is_refused_in_one_line(options: dict[str, object], told: str) -> None:
    with pytest.raises(UsageError) as refused:
        SearchConfig(**options)
    assert told in str(refused.value)
    assert "\n" not in str(refused.value)


def test_each_epoch_belongs_to_a_stage_and_to_a_schedule() -> None:
    stages = [
        Stage(2, 3, 1, 1),
        Stage(3, 3, 1, 1, is_fresh=False),
        Stage(1, 3, 1, 0),
        Stage(2, 3, 1, 2, is_fresh=False),
    ]
    time = Timeline(stages)
    assert time.epochs == 8
    assert [time.number(e) for e in range(9)] == [0, 0, 1, 1, 1, 2, 3, 3, 3]
    assert [time.within(e) for e in range(8)] == [0, 1, 0, 1, 2, 0, 0, 1]
    assert [time.alphas_learn(e) for e in range(9)] == [False, True, False, True, True, True, False, False, False]
    assert [tuple(time.schedule(e)) for e in range(8)] == [(0, 5)] * 5 + [(5, 3)] * 3


@pytest.mark.parametrize("masked", [False, True])
def test_pruning_drops_the_smallest_weights_one_by_one(masked: bool) -> None:
    rng = np.random.default_rng(0)
    weights = rng.integers(0, 6, (14, 8)) / 6  # with ties
    allowed = np.ones((14, 8), bool)
    if masked:
        for row in allowed:
            row[rng.choice(8, 3, replace=False)] = False
    for num_kept in (1, 3, 5):
        found = strongest(weights, num_kept, allowed if masked else None)
        for row, names, kept in zip(weights, allowed, found, strict=True):
            left = [i for i in range(8) if names[i]]
            while len(left) > num_kept:  # of equal ones the later goes first
                left.remove(min(reversed(left), key=lambda i: row[i]))
            assert np.flatnonzero(kept).tolist() == left


def test_the_skip_limit_chooses_no_pruned_operation() -> None:
    names = ("none", "skip_connect", "sep_conv_3x3")
    allowed = np.array([[True, True, False], [False, True, True]])
    normal = np.array([[0.1, 0.9, 0.0], [0.0, 0.6, 0.4]])
    searched = Searched({"normal": normal, "reduce": normal}, names, allowed=(allowed, allowed))
    for most, expected in ((2, ["skip_connect"] * 2), (1, ["skip_connect", "sep_conv_3x3"])):
        cell = SkipLimit(most)(searched)[0]
        assert [edge.operation for _, edge in cell.edges()] == expected
    assert [e.operation for _, e in SkipLimit(0)(searched)[0].edges()] == ["skip_connect", "sep_conv_3x3"]


def test_the_dropout_schedule_is_that_of_the_authors_code() -> None:
    stage = Stage(25, 17, 1, 10, 3, 0.7)
    found = [stage.skip_dropout_at(epoch) for epoch in range(25)]
    expected = [0.7 * (25 - e - 1) / 25 for e in range(10)] + [0.7 * math.exp(-0.2 * (e - 10)) for e in range(10, 25)]
    assert found == pytest.approx(expected, rel=1e-12)


def test_dropout_follows_skip_connections_of_stride_1_only() -> None:
    probability = torch.tensor(0.75)
    net = Supernet(("none", "skip_connect"), channels=4, cells=3, num_nodes=1, auxiliary_skip=True)
    add_skip_dropout(net, probability)
    for cell in net.cells:
        for edge in cell.edges:
            assert isinstance(edge, MixedOp)
            assert isinstance(edge.ops[0], FactorizedReduce if cell.reduction else SkipDropout)
            assert isinstance(edge.ops[1], FactorizedReduce if cell.reduction else nn.Identity)
    skip = net.cells[0].edges[0].ops[0]
    x = torch.rand(4, 8, 16, 16) + 1
    torch.manual_seed(0)
    dropped = skip(x)
    kept = dropped != 0
    assert kept.float().mean().item() == pytest.approx(0.25, abs=0.02)
    torch.testing.assert_close(dropped[kept], 4 * x[kept])
    probability.fill_(0.0)
    assert torch.equal(skip(x), x)
    probability.fill_(0.5)
    assert skip.eval()(x) is x
    silence(net.train())
    state = torch.get_rng_state()
    assert skip(x) is x
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("name", sorted(set(OPERATIONS) - {"none", "noise"}))
def test_a_widened_operation_computes_the_same_of_copied_channels(name: str, stride: int, training: bool) -> None:
    torch.manual_seed(0)
    old, new = (candidate(name, C, stride).double() for C in (6, 9))
    for norm in old.modules():
        if isinstance(norm, nn.BatchNorm2d):
            assert norm.running_mean is not None
            norm.running_mean.normal_()
    copies = ChannelCopies(torch.Generator().manual_seed(1))
    found = widened(old, new.state_dict(), copies)
    new.load_state_dict(found)
    inputs = copies.sources(6, 9)
    assert inputs[:6].tolist() == list(range(6))
    outputs = _joined_halves(old[1], 9, copies) if isinstance(old, FactorizedReduce) else inputs
    x = torch.randn(2, 6, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(new.train(training)(x[:, inputs]), old.train(training)(x)[:, outputs])


def test_every_plan_is_an_option_with_a_first_line_of_help() -> None:
    assert {"single", "p-darts", "drnas-progressive"} <= set(STAGE_PLANS)
    for name in STAGE_PLANS:
        assert STAGE_PLANS[name]().__doc__
