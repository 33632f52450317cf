"""Latency tables: their sums against networks walked module by module, their file, and what they are used for."""

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from scipy.stats import rankdata
from torch import nn

from darts_sg.analysis.compare import Latency, spread_of
from darts_sg.analysis.cost import EdgePlace
from darts_sg.analysis.deriving import derive_genotype
from darts_sg.analysis.latency import (
    Checked,
    DerivedShape,
    LatencyTable,
    agreement,
    random_genotypes,
    read_latency_table,
)
from darts_sg.api import search
from darts_sg.cli.latency_table import _text
from darts_sg.cli.main import run
from darts_sg.config import SearchConfig
from darts_sg.engine.search import SearchJob
from darts_sg.errors import UsageError
from darts_sg.genotype import Cell, Edge, Genotype, load_genotype
from darts_sg.methods.regularizers.size import expected_cost
from darts_sg.networks.derived import DerivedNetwork
from darts_sg.spaces import Space
from tests.analysis.fakes import LATENCY_SHAPE, LATENCY_SPACE, OPERATIONS, made_up_latencies, varied_search
from tests.engine.test_search_step import search_config, setting


def written(table: LatencyTable, path: Path) -> Path:
    path.write_text(_text(table))
    return path


@pytest.mark.parametrize(
    "shape",
    [
        LATENCY_SHAPE,
        DerivedShape(network="imagenet", channels=4, cells=5, nodes=3, image_size=72, num_classes=7, in_channels=1),
    ],
)
def test_a_prediction_is_the_sum_over_the_operations_that_the_network_runs(shape: DerivedShape) -> None:
    table = made_up_latencies(shape=shape)
    for genotype in random_genotypes(LATENCY_SPACE, shape.nodes, 3, seed=1):
        net = DerivedNetwork(
            genotype, network=shape.network, channels=shape.channels, cells=shape.cells,
            num_classes=shape.num_classes, in_channels=shape.in_channels,
        ).eval()  # fmt: skip
        found: list[tuple[str, EdgePlace]] = []

        def note(name: str, found: list[Any]) -> Any:
            def hook(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
                _, C, side, _ = inputs[0].shape
                found.append((name, EdgePlace(C, 1 if output.shape[2] == side else 2, side)))

            return hook

        for cell in net.cells:
            names = [edge.operation for _, edge in cell.cell.edges()]
            for name, module in zip(names, cell.ops, strict=True):
                module.register_forward_hook(note(name, found))
        with torch.no_grad():
            net(torch.zeros(1, shape.in_channels, shape.image_size, shape.image_size))
        assert len(found) == 2 * shape.nodes * shape.cells
        parts = [part.timing.microseconds for part in table.fixed] + [table.choices[key].microseconds for key in found]
        assert table.predict(genotype) == pytest.approx(
            1.25 * sum(parts), abs=0.5 * (4 * shape.nodes + 1)
        )  # rounded once an edge


def test_the_expected_latency_is_the_mean_over_all_genotypes_and_its_gradient_is_right() -> None:
    shape = replace(LATENCY_SHAPE, nodes=1)
    table = made_up_latencies(shape=shape)
    names, costs = LATENCY_SPACE.operations, table.costs(LATENCY_SPACE.operations)
    rng = np.random.default_rng(3)
    weights = [torch.from_numpy(rng.dirichlet(np.ones(len(names)), 2)).requires_grad_() for _ in range(2)]
    drawn = [w.detach().numpy()[:, 1:] for w in weights]  # none is not drawn
    drawn = [w / w.sum(axis=1, keepdims=True) for w in drawn]
    total = 0.0
    for chosen in itertools.product(range(2), repeat=4):  # both edges of the only node in both cells
        cells = [Cell(((Edge(names[1 + a], 0), Edge(names[1 + b], 1)),), (2,)) for a, b in (chosen[:2], chosen[2:])]
        chance = np.prod([drawn[half][edge, chosen[2 * half + edge]] for half in range(2) for edge in range(2)])
        total += chance * table.predict(Genotype("any", "", names, *cells))
    assert expected_cost(*weights, names, costs).item() == pytest.approx(total, rel=1e-12)
    assert torch.autograd.gradcheck(lambda *w: expected_cost(*w, names, costs), weights)


def test_a_table_is_read_as_it_was_written(tmp_path: Path) -> None:
    table = made_up_latencies()
    found = read_latency_table(written(table, tmp_path / "t.yaml"))
    assert replace(found, source=table.source) == table
    assert found.foreign("Abacus", 1) == ""
    assert "was measured on Abacus, 1 thread, and this is Abacus, 2 threads" in found.foreign("Abacus", 2)
    assert "this is Slide rule" in found.foreign("Slide rule")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": "a picture"}, "is no latency table: expected format"),
        ({"shape": None}, "shape: expected a mapping, found None"),
        ({"shape": {"network": "mobile"}}, "network: expected cifar or imagenet"),
        ({"shape": {"network": "cifar", "channels": -4}}, "channels: expected a whole number from 1 to"),
        ({"operations": "sep_conv_3x3"}, "operations: expected a list"),
        ({"choices": [{"operation": "skip_connect", "C": 4}]}, "stride: expected a whole number"),
        (
            {"choices": [{"operation": "x", "C": 4, "stride": 1, "size": 8, "microseconds": ".nan"}]},
            "microseconds: ",
        ),
        ({"factor": "fast"}, "factor: expected a number from 0 to 100"),
        ({"operations": ["sandglass_3x3"]}, "it lacks sandglass_3x3 at C=4, 16×16, stride 1"),
        ({"fixed": [{"part": "stem", "count": 1, "microseconds": 1.0, "spread": 0.0}]}, "expected the stem, 3 cells"),
    ],
)
def test_a_file_that_is_no_table_is_answered_in_one_line(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    path = tmp_path / "t.yaml"
    path.write_text(yaml.safe_dump(made_up_latencies().as_dict() | change))
    with pytest.raises(UsageError) as caught:
        read_latency_table(path)
    assert said in str(caught.value)
    assert str(path) in str(caught.value)


def test_figures_of_a_check_are_spearmans_and_relative_errors() -> None:
    rng = np.random.default_rng(0)
    rows = [Checked(*rng.uniform(1, 9, 2), 0.0, int(macs)) for macs in rng.permutation(9)]
    predicted, measured, _, macs = np.array(rows).T
    found = agreement(rows)
    for values, correlation in ((predicted, found.rank_correlation), (macs, found.rank_correlation_of_macs)):
        assert correlation == pytest.approx(np.corrcoef(rankdata(values), rankdata(measured))[0, 1])
    assert found.mean_absolute_relative_error == pytest.approx(np.mean(np.abs(predicted - measured) / measured))


def test_a_latency_that_scatters_is_doubted() -> None:
    times = [1.0, 1.1, 1.2, 1.5, 2.0]
    lower, upper = np.percentile(times, [25, 75])
    assert spread_of(times) == pytest.approx((upper - lower) / 1.2)
    assert Latency(1, 1.0, 0.9, 1.2, 20, 0.1).doubt == ""
    assert "scatters by 33%" in Latency(1, 1.2, 1.0, 2.0, 5, spread_of(times)).doubt


def test_the_cost_of_a_genotype_warns_of_a_latency_that_scatters(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def scattering(genotypes: Any, batch: int, *shape: Any) -> list[Latency]:
        return [Latency(batch, 1e-3, 1e-3, 1e-2, 20, 0.5 if batch == 1 else 0.01)]

    monkeypatch.setattr("darts_sg.analysis.compare.latency", scattering)
    run(["genotype", "cost", "DARTS_V2", "--channels", "4", "--cells", "3", "--batch-size", "2"])
    assert [line.partition(" (")[0] for line in capsys.readouterr().err.splitlines()] == [
        "warning: the latency at batch 1 scatters by 50%"
    ]


def test_a_table_is_measured_and_checked_by_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, picture = tmp_path / "t.yaml", tmp_path / "check.png"
    small = ["--channels", "2", "--cells", "3", "--nodes", "1", "--image-size", "8", "--rounds", "3"]
    run(["latency-table", "--space", "none+skip_connect+sandglass_3x3", *small, "-o", str(path)])
    table = read_latency_table(path)
    assert table.operations == ("none", "skip_connect", "sandglass_3x3")
    assert {place for _, place in table.choices} == {
        EdgePlace(2, 1, 8), EdgePlace(4, 2, 8), EdgePlace(8, 2, 4),
    }  # fmt: skip
    assert [part.count for part in table.fixed] == [1, 1, 1, 1, 1]
    assert all(timing.microseconds > 0 for timing in table.choices.values())
    assert table.factor > 0
    assert table.machine["batchnorm"] == "running statistics, not folded"
    capsys.readouterr()
    check = ["--check", "3", "--table", str(path), "--rounds", "3", "--picture", str(picture)]
    run(["latency-table", *check])
    out = capsys.readouterr().out
    assert "Spearman's rank correlation" in out
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "Give -o FILE.yaml"),
        (["--table", "t.yaml"], "--table names a table to check: add --check N"),
        (["--table", "t.yaml", "--check", "5", "--channels", "8"], "--channels with --table"),
        (["-o", "t.yaml", "--picture", "t.png"], "--picture is for the figures of a check"),
        (["-o", "t.yaml", "--check", "2"], "--check 2: expected from 3"),
        (["-o", "t.yaml", "--space", "S1", "--nodes", "2"], "give --nodes 4"),
    ],
)
def test_requests_without_a_meaning_are_refused(words: list[str], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        run(["latency-table", *words])


def test_a_genotype_is_derived_within_a_latency(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shape = replace(LATENCY_SHAPE, nodes=3)
    space = Space("darts+sandglass", OPERATIONS)
    path = written(made_up_latencies(space, shape), tmp_path / "t.yaml")
    table, folder = read_latency_table(path), varied_search(tmp_path / "run", epochs=2)
    free = table.predict(derive_genotype(folder))
    most = round(0.8 * free)
    words = ["genotype", "derive", str(folder), "--channels", "4", "--cells", "3", "--latency-table", str(path)]
    run([*words, "--max-latency", f"{most}us", "-o", str(tmp_path / "fast.yaml")])
    fast = load_genotype(tmp_path / "fast.yaml")
    assert table.predict(fast) <= most
    assert fast.provenance["derived"]["max_latency"] == most
    assert fast.provenance["derived"]["latency_table"]["device_name"] == "Abacus"
    assert "predicted latency: " in capsys.readouterr().out
    for more, said in (
        (["--max-latency", "1us"], "has latency at most 1 µs at C=4, 3 cells; loosen a bound"),
        ([], "add --max-latency"),
        (["--max-latency", "fast"], "expected a time such as 12ms"),
        (["--pareto", "--max-latency", "1ms"], "leave --max-latency out"),
        (["--pareto", "--cells", "5"], "give --network cifar --channels 4 --cells 3, or another table"),
        (["--max-latency", "1ms", "--cells", "5"], "give --network cifar --channels 4 --cells 3, or another table"),
    ):
        with pytest.raises(UsageError, match=said):
            run([*words, *more])
    with pytest.raises(UsageError, match="--max-latency needs measured operations: add --latency-table FILE"):
        run([*words[:-2], "--max-latency", "1ms"])
    capsys.readouterr()
    run([*words, "--pareto", "--json", "-o", str(tmp_path / "frontier.svg")])
    points = json.loads(capsys.readouterr().out)
    latencies, shares = ([point[key] for point in points] for key in ("latency_microseconds", "share"))
    assert latencies == sorted(latencies)
    assert shares == sorted(shares)
    assert latencies[-1] == free
    # the genotype of a bound is the last point below it
    assert table.predict(fast) == max(latency for latency in latencies if latency <= most)
    assert "predicted latency, ms" in (tmp_path / "frontier.svg").read_text()


def test_a_search_heads_for_low_latency_and_derives_within_its_target(tmp_path: Path) -> None:
    table = made_up_latencies()
    path = written(table, tmp_path / "t.yaml")
    options = {"space": "none+skip_connect+sep_conv_3x3", "latency_table": path, "kernels": "pytorch"}
    found = []
    job = SearchJob(search_config(penalty="latency:30", alpha_learning_rate=0.05, **options), setting())
    [penalty] = job.regularizers.values()
    for step in range(3):
        mixing = {title: torch.from_numpy(weights) for title, weights in job.mixing().items()}
        found.append(penalty.metrics(mixing)["expected_latency_ms"])
        job.step(0, step % job.steps_per_epoch)
    assert found[2] < 0.98 * found[0]
    genotypes = random_genotypes(LATENCY_SPACE, 2, 40, seed=0)
    most = round(min(map(table.predict, genotypes)))
    job = SearchJob(search_config(target_latency=f"{most}us", **options), setting())
    cells = job.select(job.mixing())
    assert table.predict(Genotype("found", "", LATENCY_SPACE.operations, *cells[:2])) <= most


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"space": "skip_connect+sandglass_3x3"}, "is of the space none+skip_connect+sep_conv_3x3, without sandglass"),
        ({"nodes": 3}, "not of cells of 3 nodes; measure one of that shape"),
        ({"network": "imagenet"}, "not of --network imagenet"),
        ({"target_latency": "1us"}, "--target-latency 1 µs: the fastest network of this space has "),
    ],
)
def test_a_table_of_another_space_or_shape_is_refused(options: dict[str, Any], said: str, tmp_path: Path) -> None:
    path = written(made_up_latencies(), tmp_path / "t.yaml")
    base = {"space": "skip_connect+sep_conv_3x3", "penalty": "latency:1", "latency_table": path, "kernels": "pytorch"}
    with pytest.raises(UsageError) as caught:
        SearchJob(search_config(**base | options), setting())
    assert said in str(caught.value)


def test_a_penalty_and_a_table_need_each_other() -> None:
    with pytest.raises(UsageError, match="add --latency-table FILE"):
        SearchConfig(penalty="latency:0.1")
    with pytest.raises(UsageError, match="--latency-table is for --penalty latency:WEIGHT"):
        SearchConfig(latency_table=Path("t.yaml"))
    with pytest.raises(UsageError, match="expected a time such as 12ms"):
        SearchConfig(target_latency="12M", latency_table=Path("t.yaml"))


def test_a_run_keeps_its_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(made_up_latencies(), tmp_path / "t.yaml")
    folder = tmp_path / "run"
    search(
        space=LATENCY_SPACE.name, nodes=2, channels=2, cells=3, epochs=1, batch_size=8, train_images=8,
        validation_images=8, dataset="synthetic", penalty="latency:0.1", latency_table=path, run_dir=folder,
        kernels="pytorch", device="cpu",
    )  # fmt: skip
    out = capsys.readouterr().out
    assert "note: latency table" in out
    assert "was measured on Abacus" in out
    assert "predicted latency: " in out
    assert (folder / "latency_table.yaml").read_bytes() == path.read_bytes()
    assert "expected_latency_ms" in (folder / "metrics.csv").read_text().splitlines()[0]
