"""Reports and curves from small made-up run folders: finished, unfinished, hardly begun, damaged."""

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from matplotlib.text import Text

from darts_sg.analysis.curves import (
    HEAT,
    augment_panels,
    draw_curves,
    draw_mixing_weights,
    even_weights,
    largest_ratio,
    scale_labels,
    search_panels,
    shades_of,
)
from darts_sg.analysis.report import duration, write_report
from darts_sg.analysis.run_folder import read_metrics
from darts_sg.derive import derive_cell, num_edges
from darts_sg.errors import UsageError
from darts_sg.genotype import Genotype
from darts_sg.invocation import program
from darts_sg.spaces import parse_space
from darts_sg.tasks import Classification

SPACE = "darts+sandglass"
OPERATIONS = parse_space(SPACE).operations
DATA = {
    "name": "cifar10",
    "note": "JPEG q75",
    "remark": "",
    "fingerprint": "0123456789abcdef",
    "train_images": 1000,
    "validation_images": 1000,
    "test_images": 10000,
}
ENVIRONMENT = {
    "darts_sg": "0.1.0",
    "python": "3.11.9",
    "torch": "2.13.0",
    "device": "cpu",
    "device_name": "A Processor",
    "threads": 2,
    "git": "abc1234",
    "command": "python search.py --space darts+sandglass --seed 3",
    "started": "2026-01-02T03:04:05+00:00",
    "data": DATA,
}
SEARCH_COLUMNS = (
    "epoch,learning_rate,train_loss,train_accuracy,validation_loss,validation_accuracy,skips_normal,"
    "skips_reduce,entropy_normal,entropy_reduce,images_per_second,seconds"
)


def mixing_weights(seed: int, num_nodes: int = 4) -> np.ndarray:
    powers = np.exp(np.random.default_rng(seed).normal(size=(num_edges(num_nodes), len(OPERATIONS))))
    return powers / powers.sum(axis=1, keepdims=True)


def genotype(name: str = "found") -> Genotype:
    normal, reduce = (derive_cell(mixing_weights(seed), OPERATIONS) for seed in (1, 2))
    return Genotype(name, SPACE, tuple(OPERATIONS), normal, reduce)


def write_config(folder: Path, job: str, **options: Any) -> None:
    plain = {"job": job, "options": {"dataset": "cifar10", "seed": 3, **options}, "environment": ENVIRONMENT}
    (folder / "config.yaml").write_text(yaml.safe_dump(plain))


def make_search(folder: Path, done: int, epochs: int) -> Path:
    """A search after `done` of `epochs` epochs; epoch 2 has the best validation accuracy."""
    for name in ("alphas", "genotypes"):
        (folder / name).mkdir(parents=True)
    write_config(folder, "search", space=SPACE, epochs=epochs, channels=8, cells=5)
    lines = [SEARCH_COLUMNS]
    for epoch in range(1, done + 1):
        accuracy = 0.4321 if epoch == 2 else 0.2
        lines.append(f"{epoch},0.025,2.1,0.25,2.0,{accuracy},1,2,2.1,2.2,120.5,{epoch * 100}")
        edges = {"edge_normal": np.full(14, 0.2), "edge_reduce": np.full(14, 0.3)}
        weights = {"normal": mixing_weights(1), "reduce": mixing_weights(2)}
        np.savez(folder / "alphas" / f"epoch_{epoch:04}.npz", **weights, **edges)
        genotype().save(folder / "genotypes" / f"epoch_{epoch:04}.yaml")
    (folder / "metrics.csv").write_text("\n".join(lines) + "\n")
    if done == epochs:
        genotype().save(folder / "genotype.yaml")
    return folder


def make_augment(folder: Path, finished: bool, chosen_on: str = "test") -> Path:
    folder.mkdir(parents=True)
    write_config(folder, "augment", genotype="found", epochs=2, channels=16, cells=8)
    genotype().save(folder / "genotype.yaml")
    (folder / "metrics.csv").write_text(
        "epoch,learning_rate,drop_path_prob,train_loss,train_accuracy,test_loss,test_accuracy,"
        "images_per_second,seconds\n1,0.025,0,2.0,0.3,1.9,0.33,50,60\n2,0.01,0.1,1.5,0.5,1.6,0.45,50,7500\n"
    )
    if finished:
        result = {
            "test_error_last": 12.345, "test_error_best": 11.5, "best_epoch": 1, "best_chosen_on": chosen_on,
            "params": 1234567, "params_with_auxiliary": 1765432, "macs": 98765432,
            "epochs": 2, "dataset": "cifar10", "seed": 3, "seconds": 7500,
        }  # fmt: skip
        (folder / "result.json").write_text(json.dumps(result))
    return folder


def written(folder: Path) -> str:
    """The report's text, after a look at its links (relative, to files that are there) and its tables."""
    path = write_report(folder)
    assert path == folder / "report.md"
    text = path.read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert links
    for link in links:
        assert (folder / link).is_file(), link
        if link.endswith(".svg"):
            assert (folder / link).with_suffix(".png").stat().st_size > 1000
    for table in re.findall(r"(?:^\|.*\n?)+", text, flags=re.MULTILINE):
        assert len({line.count("|") for line in table.splitlines()}) == 1, table
    return text


def test_finished_search(tmp_path: Path) -> None:
    folder = make_search(tmp_path / "run", done=4, epochs=4)
    text = written(folder)
    assert "**Finished**: 4 epochs in 7 min." in text
    assert "# Search: darts+sandglass on cifar10 (JPEG q75)" in text
    for fact in (
        "A Processor, 2 threads",
        "torch 2.13.0",
        "abc1234",
        "--seed 3",
        "1,000 validation",
        "0123456789",
    ):
        assert fact in text
    table = [line.split(" | ") for line in text.splitlines() if re.match(r"\| \d+ \|", line)]
    assert [(row[0], row[1]) for row in table] == [
        ("| 1", "first"), ("| 2", "best validation accuracy"), ("| 4", "last"),
    ]  # fmt: skip
    assert "43.21%" in table[1]
    for node, edges in enumerate(genotype().normal.nodes):
        row = " | ".join(f"{edge.operation} of" for edge in edges).split(" | ")
        line = next(line for line in text.splitlines() if line.startswith(f"| node {node} |"))
        assert all(part in line for part in row)
    shown = str(folder)
    assert f"{program('augment')} --genotype {shown}/genotype.yaml" in text
    assert "--resume" not in text
    assert sorted(p.name for p in (folder / "pictures").iterdir()) == [
        f"{name}.{suffix}" for name in ("cells", "curves", "mixing_weights") for suffix in ("png", "svg")
    ]


def test_unfinished_search(tmp_path: Path) -> None:
    folder = make_search(tmp_path / "run", done=3, epochs=50)
    with (folder / "metrics.csv").open("a") as file:
        file.write("4,0.025,2.1,0.2")  # killed, or caught, while writing
    text = written(folder)
    assert "**Not finished**: 3 of 50 epochs in 5 min" in text
    assert "Derived after epoch 3 of an unfinished search" in text
    assert f"{program('search')} --resume {folder}" in text
    assert f"{program('augment')} --genotype {folder}/genotypes/epoch_0003.yaml" in text


@pytest.mark.parametrize("job", ["search", "augment"])
def test_run_before_its_first_epoch(job: str, tmp_path: Path) -> None:
    write_config(tmp_path, job, space=SPACE, genotype="found", epochs=9)
    text = written(tmp_path)
    assert "**Not finished**: 0 of 9 epochs, last written" in text
    assert not (tmp_path / "pictures").exists()


@pytest.mark.parametrize(
    ("chosen_on", "words"),
    [("test", "on the test images themselves"), ("validation", "on the held-out validation images")],
)
def test_finished_retraining(chosen_on: str, words: str, tmp_path: Path) -> None:
    text = written(make_augment(tmp_path / "run", finished=True, chosen_on=chosen_on))
    assert "**Finished**: 2 epochs in 2 h 05 min." in text
    assert "| test error, last epoch | **12.35%** |" in text or "| test error, last epoch | **12.34%** |" in text
    assert re.search(rf"best epoch \(1\) \| 11\.50% \(chosen {words}", text)
    assert "| parameters without auxiliary head | 1,234,567 |" in text
    assert "| parameters with auxiliary head (training only) | 1,765,432 |" in text
    assert "98,765,432" in text
    assert "1,234,567 parameters, 98.8M MACs (as trained: C=16, 8 cells" in text
    assert "2 | best test accuracy, last" in text


def test_training_of_a_model_shows_its_stages_and_no_auxiliary_head(tmp_path: Path) -> None:
    folder = make_augment(tmp_path / "run", finished=True)
    (folder / "genotype.yaml").unlink()
    options = {"genotype": "", "model": "mobilenetv2_1.0_id2", "network": "cifar", "epochs": 2, "cells": None}
    write_config(folder, "augment", **options)
    result = json.loads((folder / "result.json").read_text())
    del result["params_with_auxiliary"]
    (folder / "result.json").write_text(json.dumps(result))
    text = written(folder)
    assert "# Training: mobilenetv2_1.0_id2 on cifar10 (JPEG q75)" in text
    assert "| parameters | 1,234,567 |" in text
    assert "auxiliary" not in text
    assert "options | model mobilenetv2_1.0_id2, network cifar, epochs 2 |" in text
    assert "Shortcuts add the first 1/2 of the channels." in text
    rows = re.findall(r"^\| (3×3 convolution|inverted residual|1×1 convolution) \|(.*) \|$", text, re.MULTILINE)
    numbers = [[int(n) for n in row.replace("|", " ").split()] for _, row in rows]
    assert numbers[0] == [32, 1, 1]
    assert numbers[2:4] == [[6, 24, 2, 1], [6, 32, 3, 2]]
    assert numbers[-1] == [1280, 1, 1]
    assert sum(row[-2] for row in numbers[1:-1]) == 17


def test_unfinished_retraining_has_no_result(tmp_path: Path) -> None:
    folder = make_augment(tmp_path / "run", finished=False)
    text = written(folder)
    assert "**Not finished**" in text
    assert "test error" not in text.split("## What is measured")[0]
    assert f"{program('augment')} --resume {folder}" in text


def test_data_and_remark_stand_beside_every_figure(tmp_path: Path) -> None:
    folder = make_augment(tmp_path / "run", finished=True)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["environment"]["data"]["remark"] = "files differ"
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    label = "cifar10 (JPEG q75; files differ)"
    lines = written(folder).splitlines()
    for heading in ("# Retraining", "| measured on", "## Epochs", "![Curves"):
        line = next(line for line in lines if line.startswith(heading))
        assert label in line


def test_the_title_of_a_run_on_images_of_ones_own_names_their_folder(tmp_path: Path) -> None:
    folder = make_augment(tmp_path / "run", finished=True)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["options"]["data"] = "/data/birds"
    remark = "test part: a fifth of the images, by seed 0"
    config["environment"]["data"] |= {"name": "folder", "note": "", "remark": remark}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    text = written(folder)
    assert text.partition("\n")[0].endswith(" on birds")
    assert f"folder ({remark})" in text  # beside the figures


def damage(folder: Path, case: str) -> None:
    match case:
        case "no folder":
            (folder / "config.yaml").rename(folder.parent / "config.yaml")
            (folder / "metrics.csv").unlink()
        case "config":
            (folder / "config.yaml").write_text("job: [unclosed")
        case "job":
            (folder / "config.yaml").write_text("job: dance\noptions: {}\n")
        case "number":
            (folder / "metrics.csv").write_text("epoch,train_loss\n1,2.0\n2,many\n")
        case "fields":
            (folder / "metrics.csv").write_text("epoch,train_loss\n1\n")
        case "columns":
            (folder / "metrics.csv").write_text("time,place\n1,2\n")
        case "alphas":
            (folder / "alphas" / "epoch_0002.npz").write_bytes(b"PK\x03\x04 half a file")
        case "no weights":
            np.savez(folder / "alphas" / "epoch_0001.npz", normal=mixing_weights(1))
        case "foreign":
            weights = {"normal": mixing_weights(1), "reduce": mixing_weights(2)}
            np.savez(folder / "alphas" / "epoch_0001.npz", **weights)
        case "space":
            np.savez(folder / "alphas" / "epoch_0002.npz", normal=np.ones((14, 3)), reduce=np.ones((14, 3)))


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("no folder", "is not the folder of a run: it has no config.yaml; give the folder"),
        ("config", "config.yaml is not YAML"),
        ("job", "needs job"),
        ("number", "line 3, train_loss: 'many' is not a number"),
        ("fields", "line 2: expected as many fields"),
        ("columns", "no column epoch"),
        ("alphas", "epoch_0002.npz cannot be read"),
        ("no weights", "epoch_0001.npz: 'reduce' has no values"),
        ("foreign", "epochs 1 and 2 are of different searches"),
        ("space", "epoch_0002.npz: 'normal' has shape (14, 3), but 4 nodes and 9 operations need (14, 9)"),
    ],
)
def test_damaged_folders_get_one_clear_line(
    case: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("darts_sg.analysis.report.save_figure", lambda figure, path: [])  # nothing of it is looked at
    folder = make_search(tmp_path / "run", done=2, epochs=2)
    damage(folder, case)
    with pytest.raises(UsageError, match=re.escape(message)) as caught:
        write_report(folder)
    assert "\n" not in str(caught.value)


def test_damaged_result(tmp_path: Path) -> None:
    folder = make_augment(tmp_path / "run", finished=True)
    (folder / "result.json").write_text('{"params": 3}')
    with pytest.raises(UsageError, match=r"result\.json lacks test_error_last"):
        write_report(folder)
    (folder / "result.json").write_text("{")
    with pytest.raises(UsageError, match=r"result\.json is not JSON"):
        write_report(folder)
    with pytest.raises(UsageError, match="there is no such folder"):
        write_report(tmp_path / "nowhere")


def test_read_metrics(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("epoch,train_loss,validation_loss\n1,2.5,\n2,nan,1.5\n3,1.2")
    first, second = read_metrics(path)
    assert (first["epoch"], first["train_loss"]) == (1.0, 2.5)
    assert math.isnan(first["validation_loss"])
    assert math.isnan(second["train_loss"])
    path.write_text("epoch,train_loss\n")
    assert read_metrics(path) == []
    with pytest.raises(UsageError, match="no epoch of this run is finished"):
        read_metrics(tmp_path / "none.csv")


def test_search_curves_show_every_column_and_skip_missing_values() -> None:
    columns = SEARCH_COLUMNS.split(",")
    rows = [dict.fromkeys(columns, float(epoch)) for epoch in (1, 2, 3)]
    rows[1]["validation_loss"] = math.nan
    figure = draw_curves(rows, search_panels(Classification.plots))
    lines = {
        (axes.get_title(loc="left"), line.get_label()): line.get_xydata().tolist()
        for axes in figure.axes
        for line in axes.get_lines()
    }
    assert len(lines) == 8
    assert lines["Loss (cross-entropy)", "validation"] == [[1, 1], [3, 3]]
    assert lines["Accuracy", "train"] == [[1, 1], [2, 2], [3, 3]]
    with pytest.raises(UsageError, match="no finished epoch"):
        draw_curves([], search_panels(Classification.plots))


@pytest.mark.parametrize("value", [math.log(9) - 1e-8, 0.7])
def test_the_entropy_has_a_fixed_axis_without_an_offset(value: float) -> None:
    rows = [{"epoch": e, "entropy_normal": value + 1e-9 * e, "learning_rate": value + 1e-9 * e} for e in (1.0, 2.0)]
    for panel in (search_panels((), 9), augment_panels(())):
        figure = draw_curves(rows, panel)
        figure.draw_without_rendering()
        (axes,) = figure.axes
        assert axes.yaxis.get_offset_text().get_text() == ""
        if axes.get_title(loc="left").startswith("Entropy"):
            assert axes.get_ylim() == pytest.approx((0, 1.05 * math.log(9)))
            labels = [text.get_text() for text in axes.get_legend().get_texts()]
            assert labels == ["normal cell", "even weights: ln 9"]


def test_shades_of_mixing_weights_are_centred_on_even_ones() -> None:
    uniform = np.full((5, 4), 1 / 4)  # two nodes
    few = np.tile([0.25, 0.75, 0.0, 0.0], (5, 1))
    np.testing.assert_array_equal(even_weights(few, 4), 0.5)  # edges of two operations
    np.testing.assert_array_equal(even_weights(np.full((5, 4), 0.9), 4), 0.5)  # independent weights
    with_edges = even_weights(np.column_stack([uniform, np.ones(5)]), 4)
    np.testing.assert_allclose(with_edges[:, -1], [1 / 2, 1 / 2, 1 / 3, 1 / 3, 1 / 3])
    ratios = uniform / even_weights(uniform, 4)
    most = largest_ratio([ratios, few / even_weights(few, 4)])
    assert most == 2
    np.testing.assert_array_equal(shades_of(ratios, most), 0.5)
    np.testing.assert_allclose(shades_of(np.array([0, 0.5, 1, 2, 3]), 3), [0, 0.25, 0.5, 0.75, 1])
    assert scale_labels(np.full(3, 1 / 8), 4.0) == ["0", "even: 1/8", "0.50"]
    assert scale_labels(with_edges.ravel(), 4.0) == ["0", "even: 1/n", "4.0/n"]
    assert HEAT(0.5)[:3] == pytest.approx((1, 1, 1), abs=0.02)  # a uniform map is white


def test_augment_curves_leave_out_what_was_not_measured() -> None:
    rows = [{"epoch": float(e), "train_loss": 1.0, "test_accuracy": 0.5} for e in (1, 2)]
    titles = [axes.get_title(loc="left") for axes in draw_curves(rows, augment_panels(Classification.plots)).axes]
    assert titles == ["Loss (cross-entropy)", "Accuracy"]


@pytest.mark.parametrize("num_nodes", [1, 4, 5])
def test_mixing_weights_are_written_where_they_belong(num_nodes: int) -> None:
    weights = {"normal": mixing_weights(5, num_nodes), "reduce": mixing_weights(6, num_nodes)}
    edge_weights = np.linspace(0.1, 0.9, num_edges(num_nodes))
    figure = draw_mixing_weights({**weights, "edge_normal": edge_weights}, OPERATIONS, num_nodes)
    assert len(figure.axes) == 3  # the last one is the scale of both
    for axes, (title, values) in zip(figure.axes[:2], weights.items(), strict=True):
        shown = {text.get_position(): text for text in axes.texts}
        extra = title == "normal"
        assert len(shown) == values.size + extra * len(values)
        for (i, j), value in np.ndenumerate(values):
            assert float(shown[j, i].get_text()) == pytest.approx(value, abs=5.1e-4)
        chosen = derive_cell(values, OPERATIONS, num_kept=1 + num_nodes)
        bold = {position for position, text in shown.items() if text.get_fontweight() == "bold"}
        starts = np.cumsum([0, *(2 + i for i in range(num_nodes))])
        assert bold == {
            (OPERATIONS.index(edge.operation), starts[state - 2] + edge.state) for state, edge in chosen.edges()
        }
        labels = [label.get_text() for label in axes.get_yticklabels() if isinstance(label, Text)]
        assert labels[:2] == ["node 0 ← cₖ₋₂", "node 0 ← cₖ₋₁"]
        assert labels[-1] == (f"node {num_nodes - 1} ← node {num_nodes - 2}" if num_nodes > 1 else "node 0 ← cₖ₋₁")


def test_durations() -> None:
    assert [duration(s) for s in (5, 59.4, 3599, 3600, 86399)] == [
        "5 s",
        "59 s",
        "1 h 00 min",
        "1 h 00 min",
        "24 h 00 min",
    ]
    assert duration(math.nan) == "unknown time"


def test_weights_files_are_listed_by_epoch_however_long_their_names(tmp_path: Path) -> None:
    names = ["weights", "weights_best", "weights_epoch_9999", "weights_epoch_10000", "weights_ema_epoch_10000"]
    folder = make_augment(tmp_path / "run", finished=True)
    for name in names:
        (folder / f"{name}.safetensors").touch()
    listed = re.findall(r"\]\((weights\w*)\.safetensors\)", written(folder))
    assert sorted(listed) == sorted(names)
    assert listed[0] == "weights"
    assert listed.index("weights_epoch_9999") < listed.index("weights_epoch_10000")
