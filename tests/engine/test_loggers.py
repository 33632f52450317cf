"""Loggers: each hears of the run, none can end or change it, and a resumed run continues where it was logged before."""

import json
import random
import struct
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from darts_sg.engine.loggers import ALWAYS_ON, LOGGERS, LoggedRun, Logger, Loggers, chosen_loggers
from darts_sg.engine.loggers.callback import CallbackLogger
from darts_sg.engine.loggers.csv import CsvLogger
from darts_sg.errors import UsageError

ROWS = [{"epoch": 1.0, "loss": 2.5, "accuracy": float("nan")}, {"epoch": 2.0, "loss": 1.25, "accuracy": 0.5}]


def about(folder: Path, rows: list[dict[str, float]] | None = None) -> LoggedRun:
    folder.mkdir(exist_ok=True)
    options = {"epochs": 2, "dataset": "synthetic", "split": None}
    environment = {"torch": "2", "data": {"name": "x"}}
    return LoggedRun(folder, "search", options, environment, 2, 10, tuple(rows or ()), resumed=rows is not None)


def figure() -> Figure:
    drawn = Figure(figsize=(1, 1))
    drawn.add_subplot().plot([0, 1])
    return drawn


def play(loggers: Loggers, run: LoggedRun, *, status: Any = "stopped") -> None:
    """The events of one epoch and the end."""
    number = len(run.rows) + 1
    loggers.run_started(run)
    loggers.step({"loss": 3.0}, 10 * number - 5)
    loggers.epoch(ROWS[number - 1], number, {"mixing weights": figure()})
    (run.folder / "result.json").write_text("{}")
    loggers.artifacts([run.folder / "result.json"])
    loggers.run_ended(status)


class Recorder(Logger):
    """Keeps the events; fails in one of them if asked to."""

    def __init__(self, fails_in: str = "") -> None:
        self.events: list[str] = []
        self.fails_in = fails_in

    def _hear(self, event: str) -> None:
        self.events.append(event)
        if event == self.fails_in:
            raise ConnectionError("no network\nsecond line")

    def run_started(self, run: LoggedRun) -> None:
        self._hear("run_started")

    def step(self, values: Mapping[str, float], number: int) -> None:
        self._hear("step")

    def epoch(self, row: Mapping[str, float], number: int, figures: Mapping[str, Any]) -> None:
        self._hear("epoch")

    def artifact(self, path: Path) -> None:
        self._hear("artifact")

    def run_ended(self, status: str) -> None:
        self._hear("run_ended")


EVENTS = ["run_started", "step", "epoch", "artifact", "run_ended"]


@pytest.mark.parametrize("event", EVENTS)
def test_a_logger_that_fails_is_reported_once_and_dropped(event: str, tmp_path: Path) -> None:
    broken, sound, said = Recorder(event), Recorder(), []
    play(Loggers({"broken": broken, "sound": sound}, said.append), about(tmp_path))
    assert sound.events == EVENTS
    assert broken.events == EVENTS[: EVENTS.index(event) + 1]
    assert said == [f"the logger broken failed in {event} and is dropped, the run goes on: ConnectionError: no network"]


def test_a_logger_cannot_change_the_random_numbers_of_a_run(tmp_path: Path) -> None:
    class Drawing(Logger):
        def epoch(self, *arguments: Any) -> None:
            random.random()
            np.random.rand()  # noqa: NPY002
            torch.rand(3)
            torch.manual_seed(7)
            raise ValueError

    def draws() -> tuple[float, float, float]:
        return random.random(), np.random.rand(), torch.rand(()).item()  # noqa: NPY002

    found = []
    for logger in (Logger(), Drawing()):
        random.seed(1)
        np.random.seed(1)  # noqa: NPY002
        torch.manual_seed(1)
        play(Loggers({"it": logger}, lambda text: None), about(tmp_path))
        found.append(draws())
    assert found[0] == found[1]


def test_an_end_is_told_only_to_loggers_that_were_started() -> None:
    recorder = Recorder()
    Loggers({"it": recorder}, pytest.fail).run_ended("failed")
    assert recorder.events == []


def test_csv_and_tensorboard_are_always_on_and_unknown_names_are_answered() -> None:
    assert list(chosen_loggers("")) == list(chosen_loggers("csv")) == list(ALWAYS_ON)
    assert set(ALWAYS_ON) < set(LOGGERS)
    with pytest.raises(UsageError, match=r"unknown logger 'wand' \(did you mean 'wandb'\?\); choices: csv, "):
        chosen_loggers("wand")


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_missing_package_is_answered_with_the_pip_command(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UsageError) as caught:
        chosen_loggers(name)
    assert "\n" not in str(caught.value)
    assert f"pip install 'darts_sg[{name}]'" in str(caught.value) or "pip install -U" in str(caught.value)


def test_csv_holds_the_rows_of_the_checkpoint_from_the_start_of_a_resumed_run(tmp_path: Path) -> None:
    path, logger = tmp_path / "metrics.csv", CsvLogger()
    logger.run_started(about(tmp_path))
    for number, row in enumerate(ROWS, 1):
        logger.epoch(row, number, {})
    assert path.read_text() == "epoch,loss,accuracy\n1,2.5,\n2,1.25,0.5\n"
    CsvLogger().run_started(about(tmp_path, ROWS[:1]))
    assert path.read_text() == "epoch,loss,accuracy\n1,2.5,\n"


def test_a_callback_is_a_function_or_an_object_with_some_methods(tmp_path: Path) -> None:
    rows: list[Any] = []

    class Epochs:
        def epoch(self, row: dict[str, float], number: int, figures: object) -> str | None:
            rows.append(number)
            return "stop" if number == 2 else None

    loggers = Loggers({"function": CallbackLogger(rows.append), "object": CallbackLogger(Epochs())}, pytest.fail)
    run = about(tmp_path)
    loggers.run_started(run)
    loggers.epoch(ROWS[0], 1, {})
    assert not loggers.stop_requested
    loggers.epoch(ROWS[1], 2, {})
    assert loggers.stop_requested
    assert (rows[0], rows[1], rows[3]) == (ROWS[0] | {"accuracy": rows[0]["accuracy"]}, 1, 2)
    rows[2]["loss"] = 0.0
    assert ROWS[1]["loss"] == 1.25  # callbacks get a copy
    assert not loggers.want_figures
    with pytest.raises(UsageError, match="is neither a function nor"):
        chosen_loggers("", [3])


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> Any:
    """W&B without its server."""
    wandb = pytest.importorskip("wandb", reason="needs the extra wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    for name in ("WANDB_PROJECT", "WANDB_ENTITY", "WANDB_RUN_ID", "WANDB_DIR"):
        monkeypatch.delenv(name, raising=False)
    return wandb


def wandb_records(folder: Path) -> list[Any]:
    """The records in the file of an offline run, which is in LevelDB's log format after a header of 7 bytes."""
    from wandb.proto import wandb_internal_pb2

    (path,) = folder.glob("*.wandb")
    content, at, found, parts = path.read_bytes(), 7, [], b""
    while at + 7 <= len(content):
        if 32768 - at % 32768 < 7:  # no record header crosses the end of a block
            at += 32768 - at % 32768
            continue
        _, length, kind = struct.unpack_from("<IHB", content, at)
        parts += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # the whole record, or its last part
            found.append(wandb_internal_pb2.Record.FromString(parts))
            parts = b""
    return found


def test_a_resumed_run_has_the_same_id_at_wandb_and_its_steps_count_on(offline: Any, tmp_path: Path) -> None:
    said: list[str] = []
    for rows in (None, ROWS[:1]):
        play(Loggers({"wandb": LOGGERS["wandb"]()}, said.append), about(tmp_path / "run", rows))
    assert not said
    offline.teardown()  # as at the end of a process: up to then W&B may not have written everything
    known = json.loads((tmp_path / "run" / "loggers.json").read_text())["wandb"]
    parts = sorted((tmp_path / "run" / "wandb").glob(f"offline-run-*-{known['id']}*"))
    assert len(parts) == 2
    steps, losses = [], []
    for part in parts:
        records = wandb_records(part)
        (run,) = (record.run for record in records if record.WhichOneof("record_type") == "run")
        assert (run.run_id, run.project, run.display_name) == (known["id"], "darts_sg", "run")
        assert {item.key for item in run.config.update} >= {"options", "environment"}
        for record in records:
            if record.WhichOneof("record_type") == "history":
                values = {"/".join(item.nested_key) or item.key: item.value_json for item in record.history.item}
                steps.append(int(values["_step"]))
                losses.append(values.get("loss"))
                assert ("mixing weights/path" in values) == ("loss" in values)
        assert (part / "files" / "result.json").exists()
    assert steps == [5, 10, 15, 20]
    assert losses == [None, "2.5", None, "1.25"]


def test_a_resumed_run_continues_the_same_mlflow_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason="needs the extra mlflow")
    pytest.importorskip("sqlalchemy", reason="needs the extra mlflow, not mlflow-skinny")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    monkeypatch.chdir(tmp_path)
    said: list[str] = []
    for rows, status in ((None, "stopped"), (ROWS[:1], "finished")):
        play(Loggers({"mlflow": LOGGERS["mlflow"]()}, said.append), about(tmp_path / "run", rows), status=status)
    assert not said
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'run' / 'mlflow' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("darts_sg")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_id == json.loads((tmp_path / "run" / "loggers.json").read_text())["mlflow"]["run_id"]
    assert run.info.status == "FINISHED"
    assert run.data.params == {"epochs": "2", "dataset": "synthetic", "environment/torch": "2"}
    history = {
        name: [(each.step, each.value) for each in client.get_metric_history(run.info.run_id, name)]
        for name in ("loss", "accuracy", "step/loss")
    }
    assert history == {"loss": [(1, 2.5), (2, 1.25)], "accuracy": [(2, 0.5)], "step/loss": [(5, 3.0), (15, 3.0)]}
    names = {each.path for each in client.list_artifacts(run.info.run_id)}
    assert names == {"result.json", "mixing_weights"}
    assert len(client.list_artifacts(run.info.run_id, "mixing_weights")) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["run"]  # nothing beside the run folder


def test_a_store_chosen_by_the_environment_is_remembered_without_its_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow", reason="needs the extra mlflow")
    pytest.importorskip("sqlalchemy", reason="needs the extra mlflow, not mlflow-skinny")
    for name, kept in (("plain", True), ("user@home", False)):
        uri = f"sqlite:///{tmp_path / name}.db"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        monkeypatch.chdir(tmp_path)  # where MLflow keeps artifacts of a database, unless told otherwise
        play(Loggers({"mlflow": LOGGERS["mlflow"]()}, pytest.fail), about(tmp_path / f"run {name}"))
        found = json.loads((tmp_path / f"run {name}" / "loggers.json").read_text())["mlflow"]["tracking_uri"]
        assert found == (uri if kept else None)


def test_no_logger_is_imported_before_it_is_asked_for() -> None:
    packages = "{'wandb', 'mlflow', 'tensorboard'}"
    code = f"import sys, darts_sg.engine.loggers; sys.exit(bool({packages} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_tensorboard_has_one_chart_for_all_parts_and_goes_on_in_an_older_folder(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    row = {"epoch": 1.0, "train_loss": 2.0, "validation_loss": 3.0, "ema_test_accuracy": 0.5, "seconds": 4.0}
    for folder in (tmp_path, tmp_path / "tensorboard"):
        logger = LOGGERS["tensorboard"]()
        logger.run_started(about(tmp_path))
        logger.epoch(row, 1, {})
        logger.run_ended("finished")
        (tmp_path / "tensorboard").mkdir(exist_ok=True)
        assert len(list(folder.glob("events.out.tfevents.*"))) == 1
        events = EventAccumulator(str(folder))
        events.Reload()
        scalars = {name: events.Scalars(name)[0].value for name in events.Tags()["scalars"]}
        assert scalars == {"loss/train": 2, "loss/validation": 3, "accuracy/ema_test": 0.5, "seconds": 4}
        layout = events.summary_metadata["custom_scalars__config__"]
        assert layout.plugin_data.plugin_name == "custom_scalars"
