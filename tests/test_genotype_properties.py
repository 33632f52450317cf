"""Properties of every genotype: its network trains, its cost is the sum of its parts, no file gives a traceback."""

import contextlib
import io
import time
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from darts_sg.analysis.compare import anatomy
from darts_sg.analysis.cost import choice_costs, derived_cost
from darts_sg.cli.main import PROG, run
from darts_sg.cli.terminal import answer
from darts_sg.formats import NUM_INPUTS
from darts_sg.genotype import Cell, Genotype, load_genotype
from darts_sg.networks.derived import DerivedNetwork
from tests.strategies import damaged, genotypes, joined

SHAPES = st.fixed_dictionaries({"channels": st.integers(2, 5), "cells": st.integers(3, 5)})


def reached(cell: Cell) -> set[int]:
    """The states of a cell on which its output depends."""
    states = {*cell.concat}
    for state, edge in reversed([*cell.edges()]):
        states |= {edge.state} if state in states else set()
    return states


def trained_modules(genotype: Genotype, network: str, num_cells: int) -> set[str]:
    """The modules on which the two outputs of a derived network depend, found by following the states backwards."""
    modules = {"head", "auxiliary_head"}
    outputs = {num_cells - 1, 2 * num_cells // 3}
    for i in reversed(range(num_cells)):
        if i not in outputs:
            continue
        cell = genotype.reduce if i in (num_cells // 3, 2 * num_cells // 3) else genotype.normal
        states = reached(cell)
        modules |= {f"cells.{i}.input_{state}" for state in range(NUM_INPUTS) if state in states}
        modules |= {f"cells.{i}.ops.{j}" for j, (state, _) in enumerate(cell.edges()) if state in states}
        outputs |= {i - NUM_INPUTS + state for state in range(NUM_INPUTS) if state in states}
    if network == "cifar":
        return modules | ({"stem"} if outputs & {-1, -2} else set())
    return modules | ({"stem.stem_0"} if outputs & {-1, -2} else set()) | ({"stem.stem_1"} if -1 in outputs else set())


@pytest.mark.parametrize(("network", "size"), [("cifar", 9), ("imagenet", 37)])
def test_every_genotype_trains(network: str, size: int) -> None:
    @given(genotypes(), SHAPES, st.sampled_from([0.0, 0.3]))
    @settings(max_examples=25)
    def check(genotype: Genotype, shape: dict[str, int], drop_path_prob: float) -> None:
        torch.manual_seed(0)
        model = DerivedNetwork(genotype, network=network, **shape, num_classes=3, auxiliary=True)
        model.set_drop_path_prob(drop_path_prob)
        logits, auxiliary = model(torch.randn(4, 3, size, size))
        assert logits.shape == auxiliary.shape == (4, 3)
        (logits.logsumexp(1).sum() + auxiliary.logsumexp(1).sum()).backward()
        modules = trained_modules(genotype, network, shape["cells"])
        for name, parameter in model.named_parameters():
            trained = any(name.startswith(f"{module}.") for module in modules)
            assert (parameter.grad is not None) == trained, name
            assert not trained or parameter.grad.isfinite().all(), name

    check()


@pytest.mark.parametrize("network", ["cifar", "imagenet"])
def test_every_cost_is_the_sum_of_its_parts(network: str) -> None:
    @given(genotypes(), SHAPES)
    @settings(max_examples=8)
    def check(genotype: Genotype, shape: dict[str, int]) -> None:
        cost = derived_cost(genotype, network, **shape)
        whole = anatomy(genotype, network, **shape)
        for parts in (whole.cells, whole.operations):
            assert (sum(part.params for part in parts), sum(part.macs for part in parts)) == (cost.params, cost.macs)

    check()


@pytest.mark.parametrize("network", ["cifar", "imagenet"])
def test_every_cost_is_that_of_its_choices(network: str) -> None:
    @given(
        st.integers(1, 5).flatmap(lambda num_nodes: genotypes(st.just(2), st.just(num_nodes))).map(joined),
        SHAPES,
    )
    @settings(max_examples=8)
    def check(genotype: Genotype, shape: dict[str, int]) -> None:
        cost, cells = derived_cost(genotype, network, **shape), (genotype.normal, genotype.reduce)
        params, macs = choice_costs(genotype.operations, network, **shape, num_nodes=genotype.normal.num_nodes)
        assert params.of(cells, genotype.operations) == cost.params
        assert macs.of(cells, genotype.operations) == cost.macs

    check()


def answer_to(*arguments: str) -> tuple[int, str]:
    """Exit code and standard error of the console command in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as ended:
        answer(lambda: run(arguments), PROG)
    return int(ended.value.code or 0), err.getvalue()


def test_no_file_brings_a_traceback(tmp_path: Path) -> None:
    good, path = load_genotype("DARTS_V2").to_yaml(), tmp_path / "cell.yaml"

    @given(damaged(good).map(str.encode) | st.binary(max_size=200), st.sampled_from(["validate", "show", "import"]))
    @settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow])
    def check(content: bytes, action: str) -> None:
        path.write_bytes(content)
        shape = ["--channels", "2", "--cells", "3", "--json"] if action == "show" else []
        code, err = answer_to("genotype", action, str(path), *shape)
        assert code == (2 if err else 0)
        assert len(err.splitlines()) == (1 if code else 0), err
        assert not err or str(path) in err

    check()


@pytest.mark.parametrize(
    "bomb",
    [
        "a: &a [x]\n" + "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in pairwise("abcdefghij")),
        "provenance: &a [*a]\n",
        "provenance: {" * 5000,
        "provenance: " + "[" * 20_000 + "]" * 20_000,
        "provenance: " + "1:" * 40_000 + "1",
        "- " * 30_000,
        "? " * 30_000,
        "provenance:\n" + "".join(f"{' ' * i}a:\n" for i in range(300)),
    ],
    ids=["aliases", "cycle", "mappings", "lists", "sexagesimal", "items", "keys", "indentation"],
)
def test_bombs_are_refused_at_once(bomb: str, tmp_path: Path) -> None:
    path = tmp_path / "bomb.yaml"
    path.write_text(load_genotype("DARTS_V2").to_yaml().partition("provenance")[0] + bomb)
    begun = time.perf_counter()
    code, err = answer_to("genotype", "validate", str(path))
    assert (code, len(err.splitlines())) == (2, 1)
    assert time.perf_counter() - begun < 5
