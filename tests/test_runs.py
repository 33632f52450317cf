"""Runs in class folders: what they print runs as it stands, and what is missing in their folders is made."""

import dataclasses
import inspect
import io
import json
import re
import shlex
import shutil
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import yaml

from darts_sg import api
from darts_sg.analysis.report import write_report
from darts_sg.analysis.run_folder import read_run
from darts_sg.cli.main import run
from darts_sg.data import DATASETS, SPLIT_DATASETS
from darts_sg.engine import augment, search, setup
from darts_sg.engine.augment import AugmentJob
from darts_sg.engine.checkpoint import checkpoints
from darts_sg.engine.weights import read_weights
from darts_sg.invocation import program
from tests.data.fakes import write_image_folder
from tests.test_command_line import in_process

pytestmark = pytest.mark.xdist_group("runs")  # one worker makes what all share

Capture = pytest.CaptureFixture[str]
DATA = ["--dataset=folder", "--data=my pictures", "--image-size=16", "--split-seed=3"]
SMALL = ["--channels=4", "--cells=3", "--batch-size=8", "--threads=1", "--kernels=pytorch"]
COMMANDS = {
    "search": ["search", *DATA, *SMALL, "--epochs=2", "--nodes=1", "--space=skip_connect+max_pool_3x3"],
    "augment": ["augment", *DATA, *SMALL, "--epochs=3", "--genotype=found it/genotype.yaml", "--keep-every=1"],
}
FOLDERS = {"search": "found it", "augment": "trained it"}
RESULTS = {"search": "genotype.yaml", "augment": "result.json"}
MODULES: dict[str, Any] = {"search": search, "augment": augment}


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What a search and a retraining of its genotype have printed, by job; and by `home` where they lie."""
    home = tmp_path_factory.mktemp("home")
    write_image_folder(home / "my pictures", {"a": 20, "b": 20}, (20, 20))
    found = {"home": str(home)}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        for job, command in COMMANDS.items():
            with redirect_stdout(io.StringIO()) as said:
                run([*command, "--run-dir", FOLDERS[job]])
            found[job] = said.getvalue()
    return found


@pytest.fixture(autouse=True)
def at_home(printed: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(printed["home"])


def printed_command(text: str, title: str) -> list[str]:
    """The words of a command in a line that begins with a title, without the program that it begins with."""
    (found,) = re.findall(rf"^{re.escape(title)}(.*)$", text, re.MULTILINE)
    words = shlex.split(found)
    beginning = shlex.split(program(words[-1] if len(words) == 1 else "augment"))
    assert words[: len(beginning)] == beginning
    return words[len(beginning) - 1 :]


def test_the_command_that_retrains_runs_as_it_stands(printed: dict[str, str], capsys: Capture, tmp_path: Path) -> None:
    words = printed_command(printed["search"], "retrain it: ")
    code, _, err = in_process(capsys, *words, *SMALL, "--epochs=1", "--run-dir", str(tmp_path / "run"))
    assert code == 0, err
    found, expected = (read_run(folder) for folder in (tmp_path / "run", Path("found it")))
    for name in ("dataset", "data", "image_size", "split_seed"):
        assert found.options[name] == expected.options[name]
    assert found.environment["data"]["fingerprint"] == expected.environment["data"]["fingerprint"]


def test_the_command_that_tests_again_runs_as_it_stands(printed: dict[str, str], capsys: Capture) -> None:
    code, out, err = in_process(capsys, *printed_command(printed["augment"], "test it again: "))
    assert code == 0, err
    assert "equals the recorded" in out


def test_the_commands_of_a_report_run_as_they_stand(capsys: Capture, tmp_path: Path) -> None:
    lines = [
        line.partition("   #")[0]
        for folder in FOLDERS.values()
        for line in (Path(folder) / "report.md").read_text().splitlines()
        if line.partition("   #")[1]
    ]
    assert len(lines) == 3
    for line in lines:
        words = shlex.split(line)
        place = next(i for i, word in enumerate(words) if word in ("augment", "export"))
        assert words[: place + 1] == shlex.split(program(words[place]))
        if words[place] == "export":
            assert Path(words[place + 1]).is_file()
            words[-1:] = ["torch", "-o", str(tmp_path / "exported.pt2")]  # onnx is an extra
        elif "--genotype" in words:
            words += [*SMALL, "--dry-run"]
        code, _, err = in_process(capsys, *words[place:])
        assert code == 0, err


@pytest.mark.parametrize("command", [["augment", "--evaluate"], ["export", "--format=torch"]])
def test_a_run_folder_stands_for_the_weights_of_its_last_epoch(
    command: list[str], capsys: Capture, tmp_path: Path
) -> None:
    more = ["--data=my pictures"] if command[0] == "augment" else ["-o", str(tmp_path / "x.pt2")]
    code, out, err = in_process(capsys, *command, "trained it", *more)
    assert code == 0, err
    assert "equals the recorded" in out if command[0] == "augment" else "x.pt2" in out


class Kill(KeyboardInterrupt):
    """As if the process were killed here."""


@pytest.mark.parametrize("job", COMMANDS)
def test_a_run_killed_before_its_report_is_completed_when_resumed(
    job: str, capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    code, _, err = in_process(capsys, *COMMANDS[job], "--run-dir", str(folder), "--time-budget=1e-9")
    assert code == 0, err
    write_report(folder)  # one of the unfinished run, as `darts-sg report` writes it
    assert "**Not finished**" in (folder / "report.md").read_text()
    monkeypatch.setattr(MODULES[job], "write_report", lambda folder: (_ for _ in ()).throw(Kill))
    assert in_process(capsys, job, "--resume", str(folder))[0] == 130
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert (folder / RESULTS[job]).is_file()
    assert not (folder / "report.md").exists()
    before = (folder / RESULTS[job]).read_bytes()
    _, out, _ = in_process(capsys, job, "--resume", str(folder), "--dry-run")
    assert f"would write {folder / 'report.md'}" in out
    assert not (folder / "report.md").exists()
    for _ in range(2):
        code, out, err = in_process(capsys, job, "--resume", str(folder))
        assert code == 0, err
        assert f"is finished: {folder / RESULTS[job]}, {folder / 'report.md'}" in out
        assert "**Finished**" in (folder / "report.md").read_text()
    assert (folder / RESULTS[job]).read_bytes() == before


def test_a_damaged_file_of_an_epoch_is_named_until_the_advice_is_followed(capsys: Capture, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree("found it", folder)
    (folder / "report.md").unlink()
    damaged = folder / "alphas" / "epoch_0001.npz"
    damaged.write_bytes(b"PK")
    for _ in range(2):
        code, _, err = in_process(capsys, "search", "--resume", str(folder))
        assert code == 2
        assert "remove it to go without epoch 1" in err
        assert not (folder / "report.md").exists()
    damaged.unlink()
    code, _, err = in_process(capsys, "search", "--resume", str(folder))
    assert code == 0, err
    assert (folder / "report.md").is_file()


@pytest.mark.parametrize("kept", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_going_back_to_an_older_checkpoint_leaves_nothing_of_later_epochs(
    kept: bool, capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the weights that --keep-every left, and without them."""
    real = AugmentJob._is_best

    def every_epoch_is_better(job: AugmentJob, kind: str, row: Any, epoch: int) -> bool:
        job.best.pop(f"{kind}judged", None)
        return real(job, kind, row, epoch)

    monkeypatch.setattr(AugmentJob, "_is_best", every_epoch_is_better)
    folder, whole = tmp_path / "run", tmp_path / "whole"
    code, _, err = in_process(capsys, *COMMANDS["augment"], "--run-dir", str(whole))
    assert code == 0, err
    shutil.copytree(whole, folder)
    for newer in checkpoints(folder / "checkpoints")[1:]:
        newer.unlink()
    (folder / "result.json").unlink()
    if not kept:
        (folder / "weights_epoch_0001.safetensors").unlink()
    code, _, err = in_process(capsys, "augment", "--resume", str(folder), "--time-budget=1e-9")
    assert code == 0, err
    assert {path.name for path in folder.glob("weights*.safetensors")} == (
        {"weights_best.safetensors", "weights_epoch_0001.safetensors"} if kept else set()
    )
    if kept:
        assert read_weights(folder / "weights_best.safetensors").metadata.epoch == 1
    assert ("weights_best.safetensors was of epoch 3, later than the checkpoint" in err) != kept
    assert not (folder / "report.md").exists()
    assert "**Not finished**: 1 of 3 epochs" in write_report(folder).read_text()
    code, _, err = in_process(capsys, "augment", "--resume", str(folder))
    assert code == 0, err
    result, expected = (json.loads((each / "result.json").read_text()) for each in (folder, whole))
    for name in ("test_error_last", "test_error_best", "best_epoch"):
        assert result[name] == expected[name]
    for name in ("weights", "weights_best", "weights_epoch_0003"):
        first, second = (read_weights(each / f"{name}.safetensors") for each in (folder, whole))
        assert first.checksum == second.checksum


@pytest.mark.parametrize("job", COMMANDS)
def test_a_folder_that_exists_is_refused_before_images_are_read(
    job: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(*arguments: object, **options: object) -> None:
        raise AssertionError("the images are read")

    monkeypatch.setattr(setup, "load_dataset", read)
    code, _, err = in_process(capsys, *COMMANDS[job], "--run-dir", "found it")
    assert code == 2
    assert "run folder found it exists; continue it with --resume 'found it', or choose another --run-dir" in err


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("--train-images=900", "--train-images 900: the training set of folder has 32 images; lower --train-images"),
        ("--train-images=32", "32: the training set of folder has 32 images, which leaves none for the other part"),
        ("--validation-images=40", "--validation-images 40: the training set of folder has 32 images; lower --val"),
    ],
)
def test_more_images_than_there_are_are_named_by_their_option(option: str, expected: str, capsys: Capture) -> None:
    code, _, err = in_process(capsys, *COMMANDS["search"], option)
    assert code == 2
    assert expected in err


def test_a_run_older_than_the_seed_of_the_split_keeps_its_split(capsys: Capture, tmp_path: Path) -> None:
    """It was split by --seed."""
    folder = tmp_path / "run"
    code, _, err = in_process(capsys, *COMMANDS["augment"], "--seed=3", "--run-dir", str(folder), "--time-budget=1e-9")
    assert code == 0, err
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["options"].pop("split_seed") == 3
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    code, _, err = in_process(capsys, "augment", "--resume", str(folder))
    assert code == 0, err
    code, out, err = in_process(capsys, "augment", f"--config={folder}/config.yaml", "--print-config")
    assert code == 0, err
    assert yaml.safe_load(out)["split_seed"] == 3


def test_a_network_is_fine_tuned_on_the_split_that_it_was_trained_on(capsys: Capture, tmp_path: Path) -> None:
    options = ["augment", "--finetune=trained it", *DATA[:3], *SMALL[2:], "--epochs=1", "--seed=5"]
    code, _, err = in_process(capsys, *options, "--run-dir", str(tmp_path / "same"))
    assert code == 0, err
    assert "warning" not in err
    found, before = (read_run(folder) for folder in (tmp_path / "same", Path("trained it")))
    assert found.environment["data"]["fingerprint"] == before.environment["data"]["fingerprint"]
    assert found.options["split_seed"] == found.environment["finetuned_from"]["split_seed"] == 3
    code, _, err = in_process(capsys, *options, "--split-seed=0", "--run-dir", str(tmp_path / "other"))
    assert code == 0, err
    assert "was trained on a class folder split by --split-seed 3, and this one is split by 0" in err


def test_weights_older_than_the_seed_of_the_split_were_split_by_their_seed() -> None:
    weights = read_weights(Path("trained it"))
    older = dataclasses.replace(weights.metadata, split_seed=None, seed=7)
    assert (weights.split_seed, dataclasses.replace(weights, metadata=older).split_seed) == (3, 7)
    elsewhere = dataclasses.replace(older, dataset="cifar10")
    assert dataclasses.replace(weights, metadata=elsewhere).split_seed == 0


@pytest.mark.parametrize("dataset", SPLIT_DATASETS)
def test_every_data_set_that_splits_off_a_test_part_is_tested_on_the_same_split(dataset: str) -> None:
    weights = read_weights(Path("trained it"))
    weights = dataclasses.replace(
        weights, metadata=dataclasses.replace(weights.metadata, dataset=dataset, split_seed=4)
    )
    assert api._weights_split(weights) == {"split_seed": 4}
    assert weights.origin()["split_seed"] == 4
    assert "split_seed" in inspect.signature(DATASETS[dataset]).parameters
