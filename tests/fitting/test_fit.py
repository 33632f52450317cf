"""`fit` from a folder of images to a report, stopped and continued; and folders that cannot work."""

import errno
from contextlib import redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import darts_sg
from darts_sg import FitResult, RetrainResult
from darts_sg.cli.main import run
from darts_sg.data import load_dataset
from darts_sg.engine import augment as engine_augment
from darts_sg.engine import search as engine_search
from darts_sg.errors import RunError, Stopped, UsageError
from darts_sg.fitting import job as stages
from darts_sg.fitting.bench import Bench
from darts_sg.fitting.choices import Timing
from darts_sg.fitting.look import facts_of, look, notes_of
from darts_sg.fitting.state import State
from darts_sg.fitting.testing import predictions_of, verdict
from darts_sg.tasks.classified import read_classified

pytestmark = pytest.mark.xdist_group("fit")

TINY: dict[str, Any] = {
    "search_epochs": 2, "epochs": 1, "image_size": 16, "channels": 4, "cells": 3, "search_channels": 8,
    "search_cells": 3, "batch_size": 4, "threads": 1, "device": "cpu", "space": "sep_conv_3x3+skip_connect",
}  # fmt: skip


def draw(path: Path, seed: int, *, mode: str = "RGB", size: tuple[int, int] = (20, 16)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)


def folder(root: Path, *counts: int) -> Path:
    """Class folders a, b, … with so many images."""
    for label, count in enumerate(counts):
        for number in range(count):
            draw(root / "abcdefg"[label] / f"{number}.png", 100 * label + number)
    return root


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = folder(tmp_path_factory.mktemp("fit") / "my photos", 9, 8)
    draw(root / "a" / "grey.png", 1000, mode="L", size=(90, 100))
    (root / "b" / "damaged.png").write_bytes(b"no image")
    return root


@pytest.fixture(scope="module")
def finished(data: Path) -> FitResult:
    """A fit that was stopped after an epoch of its search, and continued by the same call."""
    options = TINY | {"run_dir": data.parent / "run"}
    sides = [SimpleNamespace(title="a model", latency="1 ms")] * 2
    with pytest.MonkeyPatch.context() as patch:  # export and reports of the runs have tests of their own: seconds each
        patch.setattr(stages, "export", lambda weights, name: (name.encode(), sides))
        for module in (engine_search, engine_augment):
            patch.setattr(module, "write_report", lambda folder: (folder / "report.md").write_text(""))
        with pytest.raises(Stopped, match=r"fit --resume .*run"):
            darts_sg.fit(data, callbacks=[lambda row: "stop"], **options)
        assert (data.parent / "run" / "search" / "config.yaml").is_file()
        with (data.parent / "printed.txt").open("w") as printed, redirect_stdout(printed):
            found = darts_sg.fit(data, compare=True, output=data.parent / "model.pt2", **options)
    assert isinstance(found, FitResult)
    return found


def test_a_fit_is_a_folder_with_everything(finished: FitResult) -> None:
    assert len(finished.search.metrics) == 2
    assert finished.retrain.result["epochs"] == 1
    assert finished.params == finished.retrain.result["params"]
    assert finished.macs == finished.retrain.result["macs"]
    low, high = finished.interval
    assert 0 <= low <= finished.accuracy <= high <= 1
    assert round(100 * (1 - finished.accuracy), 4) == pytest.approx(finished.retrain.test_error_last)
    assert finished.predictions.confusion().sum() == len(finished.predictions.labels)
    assert finished.weights.read_bytes() == finished.retrain.weights.read_bytes()
    assert (finished.run_dir.parent / "model.pt2").read_bytes() == b"torch"
    assert "test accuracy" in repr(finished)


def test_the_steps_print_their_progress_and_the_end_says_what_follows(finished: FitResult) -> None:
    printed = (finished.run_dir.parent / "printed.txt").read_text()
    for text in ("2. training: 1 epochs", "epoch 1/1: ", "supernet accuracy on the", "test accuracy: "):
        assert text in printed
    for text in ("retrain it:", "test it again:", "derived network at", "run folder", "result: "):
        assert text not in printed
    *_, report, comment, predict, _, other = printed.rstrip().splitlines()
    assert report.startswith("report: ")
    assert comment.startswith("# ")
    assert " predict " in predict
    assert " augment --finetune " in other


def test_a_network_of_an_earlier_epoch_is_tested_as_in_the_training(finished: FitResult, data: Path) -> None:
    images = load_dataset("folder", data, image_size=16)
    (data.parent / "again.npz").write_bytes(predictions_of(finished.weights, images, torch.device("cpu")))
    again = read_classified(data.parent / "again.npz")
    for name in ("labels", "answers", "images", "pixels", "class_names"):
        np.testing.assert_array_equal(getattr(again, name), getattr(finished.predictions, name))
    np.testing.assert_allclose(again.of_label, finished.predictions.of_label, atol=1e-5)


@pytest.mark.parametrize(
    ("points", "p", "cut", "said"),
    [
        (3.0, 0.01, "", "the searched network beats X by 3.00 points (9 images only it"),
        (3.0, 0.2, "", "the searched network is 3.00 points more accurate than X, but on these test images that"),
        (0.0, 1.0, "", "does not beat X: it is as accurate as it"),
        (-1.5, 0.01, "", "does not beat X: it is 1.50 points less accurate than it"),
        (
            3.0,
            0.01,
            "27 of 40 epochs",
            "after 27 of 40 epochs and of an epoch chosen on the test images, differs by +3",
        ),
    ],
)
def test_the_verdict_claims_no_more_than_was_measured(points: float, p: float, cut: str, said: str) -> None:
    found = {"points": points, "p": p, "only_searched_right": 9, "only_other_right": 2}
    assert said in verdict("X", found, cut)


def test_the_report_shows_choices_data_and_comparison(finished: FitResult) -> None:
    report = (finished.run_dir / "report.md").read_text(encoding="utf-8")
    page = (finished.run_dir / "report.html").read_text(encoding="utf-8")
    for text in ("1 image cannot be read", "1 image is grey", "given by --epochs", "95% interval", "DARTS_V2 at C="):
        assert text in report
        assert text in page
    assert {facts["title"].split()[0] for facts in finished.compared.values()} == {"DARTS_V2", "MobileNetV2"}
    for name, facts in finished.compared.items():
        assert facts["macs"] <= finished.macs or facts["title"].endswith("the narrowest")
        trained = RetrainResult(finished.run_dir / "compare" / name).result
        assert (trained["params"], trained["macs"]) == (facts["params"], facts["macs"])
        assert facts["verdict"][:1].upper() + facts["verdict"][1:] in report
    assert 'src="data:image/png;base64,' in page
    for picture in ("data.png", "cells.svg", "confusion.png", "class_accuracy.png", "training_curves.svg"):
        assert (finished.run_dir / "pictures" / picture).is_file()
        assert f"pictures/{picture}" in report


def test_a_finished_fit_is_not_repeated(finished: FitResult, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (finished.run_dir / "retrain" / "result.json").stat().st_mtime_ns
    run(["fit", "--resume", str(finished.run_dir), "--dry-run"])
    assert "done: search, derive, schedule, train, test" in capsys.readouterr().out
    assert (finished.run_dir / "retrain" / "result.json").stat().st_mtime_ns == before
    with pytest.raises(UsageError, match="--seed 1 would change the result of"):
        darts_sg.fit(data, run_dir=finished.run_dir, **TINY, seed=1)
    with pytest.raises(UsageError, match="--max-params 1M would change"):
        darts_sg.fit(resume=finished.run_dir, max_params="1M")


def test_other_images_are_refused_when_a_fit_is_continued(finished: FitResult, data: Path) -> None:
    added = data / "b" / "new.png"
    draw(added, 5)
    try:
        with pytest.raises(UsageError, match="files were added, removed or changed"):
            darts_sg.fit(resume=finished.run_dir)
    finally:
        added.unlink()


def test_a_full_disk_is_said_with_the_way_on(finished: FitResult, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: State, stage: str, **facts: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "fit.json")

    monkeypatch.setattr(State, "finish", full)
    with pytest.raises(RunError, match=r"No space left.*make room, then continue with .*fit --resume"):
        darts_sg.fit(resume=finished.run_dir, compare=True)


def test_ctrl_c_between_the_runs_is_said_with_the_way_on(finished: FitResult, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(self: stages.FitJob) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(stages.FitJob, "report", interrupted)
    with pytest.raises(Stopped, match=r"Continue with: .*fit --resume") as stopped:
        darts_sg.fit(resume=finished.run_dir)
    assert stopped.value.exit_code == 130


@pytest.fixture
def no_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of 0.1 s without taking any."""
    monkeypatch.setattr(Bench, "level", lambda self, level, precision: Timing(0.1, 4, 0.1, 4, 0.01, 2, 2))


@pytest.mark.usefixtures("no_steps")
def test_a_dry_run_prints_choices_and_times_only(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    run(["fit", "--data", str(data), "--minutes", "60", "--dry-run", "--compare"])
    out = capsys.readouterr().out
    for text in ("image size: ", "alpha learning rate: ", "times: ", "two baselines up to", "nothing was written"):
        assert text in out
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("no_steps")
@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"minutes": 0.2}, r"--minutes 0\.2 is too little .* give --minutes"),
        ({"max_params": "100"}, r"no network .* keeps --max-params 100 \(the least is"),
        ({"max_macs": "1k", "channels": 8}, "or lower --channels"),
    ],
)
def test_what_cannot_be_met_is_said_before_the_search(data: Path, options: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        darts_sg.fit(data, run_dir=data.parent / "none", **options)
    assert not (data.parent / "none").exists()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({}, "which images"),
        ({"data": "nowhere"}, "there is no folder"),
        ({"data": ".", "output": "model.h5"}, "expected a name that ends in"),
        ({"data": ".", "minutes": -1}, "--minutes must be above 0"),
        ({"data": ".", "max_params": "many"}, "expected a number such as"),
        ({"data": ".", "recipe": "evolution"}, "a search without alphas"),
        ({"data": ".", "recipe": "p-darts"}, "has several stages"),
        ({"data": ".", "recipe": "darts-pt", "max_params": "1M"}, "which keeps no bounds"),
        ({"data": ".", "space": "nothing"}, "nothing"),
        ({"data": ".", "epoch": 3}, "unknown option"),
    ],
)
def test_wrong_options_are_refused_in_one_line(options: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        darts_sg.fit(**options)


@pytest.mark.parametrize(
    ("counts", "told"),
    [((3, 1), "the class b has 1 image .* needs two"), ((4,), "two or more"), ((3, 0), "no images|two or more")],
)
def test_folders_that_are_no_data_set_are_refused(tmp_path: Path, counts: tuple[int, ...], told: str) -> None:
    root = folder(tmp_path / "data", *counts)
    (root / "b").mkdir(parents=True, exist_ok=True) if len(counts) > 1 else None
    with pytest.raises(UsageError, match=told):
        look(root, 1)


def test_a_folder_with_three_parts_says_which_one_is_not_used(tmp_path: Path) -> None:
    for part, count in (("train", 3), ("val", 2), ("test", 2)):
        folder(tmp_path / part, count, count)
    draw(tmp_path / "train" / "a" / "large.png", 7, size=(400, 400))
    check = look(tmp_path, 1)
    facts = facts_of(check)
    assert (facts.images, facts.test, facts.classes) == (7, 4, 2)
    assert any("val/ is not used" in note for note in notes_of(check))
