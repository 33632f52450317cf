"""A task from outside the package is trained, resumed, tested, finetuned and exported by the ordinary commands."""

import ast
import csv
import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

import darts_sg
from darts_sg.__main__ import run
from darts_sg.analysis.measured import runs_in
from darts_sg.analysis.report import write_report
from darts_sg.config import AugmentConfig
from darts_sg.data import evaluation_batches
from darts_sg.engine.augment import AugmentJob
from darts_sg.engine.distributed import Ranks
from darts_sg.engine.export import export
from darts_sg.engine.steps import evaluate_all
from darts_sg.engine.weights import read_weights, weights_bytes
from darts_sg.errors import UsageError
from darts_sg.genotype import load_genotype
from darts_sg.tasks import task_of
from tests.engine.test_search_step import setting
from tests.tasks.spots import spots
from tests.test_command_line import assert_same, newest_state

pytestmark = [pytest.mark.usefixtures("rendered_once"), pytest.mark.xdist_group("tasks")]

ENGINE = Path(darts_sg.__file__).parent / "engine"
SHORT = [
    "--dataset=synthetic",
    "--batch-size=8",
    "--train-images=40",
    "--threads=1",
    "--kernels=pytorch",
    "--device=cpu",
]
TINY = [*SHORT, "--genotype=DARTS_V1", "--channels=4", "--cells=3"]
SPOTS = ["augment", *TINY, "--task=spots", "--label-smoothing=0.25", "--ema=0.5"]


@pytest.fixture(scope="module")
def trained(rendered_once: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that holds `plain`, a short training of the task with an auxiliary head."""
    folder = tmp_path_factory.mktemp("spots")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run([*SPOTS, "--epochs=2", "--validation-images=40", "--run-dir=plain"])
    return folder


def rows(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "metrics.csv").read_text().splitlines()))


def test_metrics_result_and_report_hold_the_measures_of_the_task(trained: Path) -> None:
    folder = trained / "plain"
    assert list(rows(folder)[0]) == [
        "epoch", "learning_rate", "drop_path_prob", "train_loss", "train_count_loss",
        "validation_loss", "validation_closeness", "ema_validation_loss", "ema_validation_closeness",
        "test_loss", "test_closeness", "ema_test_loss", "ema_test_closeness", "images_per_second", "seconds",
    ]  # fmt: skip
    result = json.loads((folder / "result.json").read_text())
    assert list(result)[:13] == [
        "task", "genotype", "network", "channels", "cells",
        "test_closeness_last", "test_closeness_best", "ema_test_closeness_last", "ema_test_closeness_best",
        "worst", "ema_worst", "best_epoch", "ema_best_epoch",
    ]  # fmt: skip
    for kind in ("", "ema_"):
        judged = [float(row[f"{kind}validation_closeness"]) for row in rows(folder)]
        best = judged.index(max(judged))
        assert result[f"{kind}best_epoch"] == best + 1
        for which, row in (("last", rows(folder)[-1]), ("best", rows(folder)[best])):
            assert result[f"{kind}test_closeness_{which}"] == pytest.approx(
                float(row[f"{kind}test_closeness"]), abs=1e-6
            )
        predictions = json.loads((folder / f"{kind}predictions.json").read_text())
        assert len(predictions) == 1000
        assert result[f"{kind}worst"]["error"] == max(predicted["error"] for predicted in predictions)
    report = (folder / "report.md").read_text()
    assert "error" not in report.replace("predictions", "").lower().replace("test_error", "")
    for text in (
        "| task | spots |", "| test closeness, last epoch | **-", "best validation closeness", "Predictions of 1000",
        "# repeats the test closeness", "the closeness of one training",
    ):  # fmt: skip
        assert text in report
    log = (folder / "log.txt").read_text()
    assert f"test closeness {float(rows(folder)[-1]['test_closeness']):.3f}, " in log


def test_a_resumed_run_comes_to_the_same_bits(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(trained)
    shutil.copytree("plain", "resumed")
    for name in ("result.json", "predictions.json", "checkpoints/epoch_0002_step_000000.pt"):
        Path("resumed", name).unlink()
    run(["augment", "--resume=resumed"])
    assert_same(newest_state(Path("resumed"))["state"], newest_state(Path("plain"))["state"])
    assert Path("resumed", "predictions.json").read_text() == Path("plain", "predictions.json").read_text()
    Path("resumed", "result.json").unlink()  # as if the process had ended after the last checkpoint
    run(["augment", "--resume=resumed"])
    results = [json.loads(Path(name, "result.json").read_text()) for name in ("plain", "resumed")]
    assert_same(*results)


def test_a_weights_file_is_enough_to_test_and_to_export(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(trained)
    weights = read_weights(Path("plain/weights.safetensors"))
    assert (weights.metadata.task, weights.metadata.task_options) == ("spots", {"label_smoothing": 0.25})
    figures = weights.metadata.figures
    assert list(figures) == ["test_closeness", "validation_closeness"]
    run(["augment", "--evaluate=plain/weights.safetensors", "--device=cpu", "--threads=1"])
    out = capsys.readouterr().out
    assert f"test closeness on synthetic (rendered from seed 0), 1,000 images: {figures['test_closeness']:.4f}" in out
    assert "equals the recorded" in out or "by +0.000" in out or "by -0.000" in out  # other kernels than in training
    content, (_, exported) = export(weights, "torch")
    assert exported.size == len(content)


def test_a_classifier_becomes_a_backbone(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(trained)
    run(["augment", *TINY, "--epochs=1", "--auxiliary-weight=0", "--run-dir=classifier"])
    start = ["augment", *SHORT, "--finetune=classifier/weights.safetensors", "--epochs=1", "--auxiliary-weight=0"]
    capsys.readouterr()
    run([*start, "--task=spots", "--learning-rate=1e-30", "--learning-rate-min=1e-30", "--run-dir=finetuned"])
    assert ": heads new\n" in capsys.readouterr().out
    before, after = (read_weights(Path(name, "weights.safetensors")).tensors for name in ("classifier", "finetuned"))
    for name in ("stem.body.0.weight", "cells.0.input_1.1.weight"):
        torch.testing.assert_close(after[f"backbone.{name}"], before[name], rtol=1e-6, atol=0)
    options = yaml.safe_load(Path("finetuned/config.yaml").read_text())["options"]
    assert (options["task"], options["channels"]) == ("spots", 4)


def test_runs_of_other_tasks_are_no_scores_of_a_genotype(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert [found.task.name for found in runs_in(trained) if found.folder.name == "plain"] == ["spots"]
    monkeypatch.chdir(trained)
    shutil.copytree("plain", "compared/plain")
    run(["genotype", "compare", "DARTS_V1", "--results=compared", "--json"])
    assert json.loads(capsys.readouterr().out)[0]["measured_test_error"] == []


def test_a_search_learns_the_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    small = ["--space=skip_connect+max_pool_3x3+none", "--nodes=2", "--channels=4", "--cells=3", "--epochs=1"]
    run(["search", *SHORT, *small, "--task=parity", "--run-dir=run"])
    (row,) = rows(Path("run"))
    assert float(row["train_loss"]) < 1.2  # of two classes: with ten it begins at 2.3
    assert {"train_accuracy", "validation_loss", "validation_accuracy"} <= row.keys()
    provenance = load_genotype("run/genotype.yaml").provenance
    assert 20 < provenance["measured"]["validation_accuracy_percent"] < 80
    assert "| task | parity |" in Path("run/report.md").read_text()


def test_a_dry_run_names_the_losses(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run([*SPOTS, "--dry-run"])
    assert ", train loss " in (out := capsys.readouterr().out)
    assert ", train count loss " in out


class Joined:
    """One of two ranks, which is told what the other one has."""

    def __init__(self, sums: list[float], records: Any) -> None:
        self.others = sums, records

    def sum(self, *values: float) -> list[float]:
        return [a + b for a, b in zip(values, self.others[0], strict=True)]

    def gather(self, content: Any) -> list[Any]:
        return [content, self.others[1]]


def test_measures_that_are_no_sums_are_those_of_all_ranks() -> None:
    made = setting()
    task, images, spec = task_of({"task": "spots"}), made.data.test, made.data.spec
    job = AugmentJob(
        AugmentConfig(task="spots", genotype="DARTS_V1", channels=4, cells=3, batch_size=8, kernels="pytorch"),
        load_genotype("DARTS_V1"), made,
    )  # fmt: skip
    models = {job.network: lambda x: job.network(x)[0]}
    (alone,) = evaluate_all(models, task.evaluation_batches(images, spec, 7), lambda: task.evaluator(spec))
    other = task.evaluator(spec)
    job.network.eval()
    with torch.no_grad():
        for x, targets in task.evaluation_batches(images, spec, 7, 1, 2):
            other.update(job.network(x)[0], targets)
    ranks: Any = Joined([*other.sums(), len(other.records())], other.records())
    batches = task.evaluation_batches(images, spec, 7, 0, 2)
    (joined,) = evaluate_all(models, batches, lambda: task.evaluator(spec), ranks)
    assert joined.measures == pytest.approx(alone.measures, rel=1e-5)
    assert len(json.loads(joined.evaluator.files()["predictions.json"])) == len(images)


def test_ranks_weigh_their_gradients_by_the_terms_of_the_loss() -> None:
    weighed: list[int] = []

    class Noting(Ranks):
        def mean(self, tensors: Any, num_images: int) -> list[Tensor]:
            weighed.append(num_images)
            return super().mean(tensors, num_images)

    made = setting()
    config = AugmentConfig(task="spots", genotype="DARTS_V1", channels=4, cells=3, batch_size=8, kernels="pytorch")
    job = AugmentJob(config, load_genotype("DARTS_V1"), type(made)(made.device, made.data, {}, {}, Noting()))
    x, targets = job.train[0]
    job.step(0, 0)
    assert len(targets) == len(x) == 8
    assert weighed == [sum(len(target["columns"]) for target in spots(x))] * 2
    assert weighed[0] != 8


def test_an_unknown_task_is_answered_with_the_choices(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"unknown task 'detektion'.*classification, detection, spots"):
        AugmentConfig(task="detektion", genotype="DARTS_V1")
    weights = read_weights(trained / "plain" / "weights.safetensors")
    path = tmp_path / "w.safetensors"
    path.write_bytes(weights_bytes(weights.tensors, dataclasses.replace(weights.metadata, task="spot")))
    with pytest.raises(UsageError, match=r"w\.safetensors: unknown task 'spot' \(did you mean 'spots'\?\)"):
        read_weights(path)


def test_a_file_without_a_task_is_a_classifier(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(trained)
    if not Path("old").is_dir():
        run(["augment", *TINY, "--epochs=1", "--auxiliary-weight=0", "--run-dir=old"])
    weights = read_weights(Path("old/weights.safetensors"))
    path = tmp_path / "w.safetensors"
    monkeypatch.setattr(type(weights.metadata), "as_texts", without_task(type(weights.metadata).as_texts))
    path.write_bytes(weights_bytes(weights.tensors, weights.metadata))
    assert read_weights(path).metadata == weights.metadata
    assert read_weights(path).task.name == "classification"
    config = yaml.safe_load(Path("old/config.yaml").read_text())
    del config["options"]["task"]
    Path("old/config.yaml").write_text(yaml.safe_dump(config))
    assert "| test error, last epoch |" in write_report(Path("old")).read_text()


def without_task(as_texts: Any) -> Any:
    return lambda metadata: {name: text for name, text in as_texts(metadata).items() if name != "task"}


WORDS = ("cross_entropy", "accuracy", "test_error", "validation_error", "top5", "classes apart")


@pytest.mark.parametrize("module", sorted(str(path.relative_to(ENGINE)) for path in ENGINE.rglob("*.py")))
def test_the_engine_names_nothing_of_classification(module: str) -> None:
    tree = ast.parse((ENGINE / module).read_text(encoding="utf-8"))
    said = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    said |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    said |= {node.arg for node in ast.walk(tree) if isinstance(node, ast.keyword) and node.arg}
    said |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}
    said |= {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    assert not [text for text in said for word in WORDS if word in text]


def test_the_targets_of_the_task_are_lists() -> None:
    made = setting()
    x, _ = next(evaluation_batches(made.data.test, made.data.spec, 8))
    assert len({len(target["columns"]) for target in spots(x)}) > 1
