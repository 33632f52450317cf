"""A run folder is held by one process at a time."""

import errno
import threading
from pathlib import Path

import pytest

from darts_sg.engine import run_dir
from darts_sg.engine.run_dir import RunDir
from darts_sg.errors import UsageError


def test_a_folder_that_is_held_is_refused_and_can_be_taken_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_dir, "PATIENCE", 0.1)
    holder = RunDir.create(tmp_path)
    with pytest.raises(UsageError, match="another process is running in"):
        RunDir(tmp_path)
    holder.close()
    RunDir(tmp_path).close()


def test_a_folder_whose_holder_is_about_to_end_is_waited_for(tmp_path: Path) -> None:
    """As after `kill -9` of a run and its continuation in one line: a killed process takes a moment to end."""
    holder = RunDir.create(tmp_path)
    ending = threading.Timer(0.3, holder.close)
    ending.start()
    RunDir(tmp_path).close()
    ending.join()


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_lets_a_run_start_with_a_note(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_locks(*arguments: object) -> None:
        raise OSError(number, "not here")

    monkeypatch.setattr("fcntl.flock", no_locks)
    run = RunDir.create(tmp_path)
    run.write("file", "content")
    run.close()
    note = f"the file system of {tmp_path} has no locks: make sure that no other process runs in this folder"
    assert capsys.readouterr().err == f"note: {note}\n"
    assert note in (tmp_path / "log.txt").read_text()


def test_another_error_of_the_lock_is_not_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("fcntl.flock", broken)
    with pytest.raises(OSError, match="Input/output error"):
        RunDir.create(tmp_path)


def test_a_folder_that_another_process_is_starting_in_is_said_to_be_in_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not "exists and is not empty": its config.yaml is about to be written."""
    monkeypatch.setattr(run_dir, "PATIENCE", 0.1)
    holder = RunDir.create(tmp_path / "run")
    with pytest.raises(UsageError, match=r"another process is running in .*, or choose another --run-dir"):
        RunDir.create(tmp_path / "run")
    holder.close()


def test_a_run_killed_before_it_had_a_config_can_be_started_again(tmp_path: Path) -> None:
    first = RunDir.create(tmp_path / "run")
    first.write("genotype.yaml", "half a start")
    (tmp_path / "run" / ".config.yaml.x1y2").write_text("half a file")
    first.close()
    again = RunDir.create(tmp_path / "run")
    again.close()
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [".lock", "log.txt"]
    (tmp_path / "run" / "thesis.tex").write_text("mine")
    with pytest.raises(UsageError, match="exists and is not empty; choose another --run-dir"):
        RunDir.create(tmp_path / "run")
    assert (tmp_path / "run" / "thesis.tex").read_text() == "mine"


def test_files_of_later_epochs_are_removed_and_all_others_kept(tmp_path: Path) -> None:
    kept = [
        "alphas/epoch_0003.npz", "genotypes/epoch_0003.yaml", "weights_epoch_0002.safetensors",
        "weights_best.safetensors", "genotype.yaml", "config.yaml", "alphas/epoch_notes.npz",
    ]  # fmt: skip
    later = [
        "alphas/epoch_0004.npz", "alphas/epoch_10000.npz", "genotypes/epoch_0004.yaml",
        "weights_epoch_0004.safetensors", "weights_ema_epoch_0004.safetensors", "weights.safetensors",
        "weights_ema.safetensors", "report.md", "search.html",
    ]  # fmt: skip
    run = RunDir.create(tmp_path / "run")
    for name in (*kept, *later):
        run.write(name, "content")
    assert sorted(run.remove_later(3, at_end=False)) == sorted(later)
    run.close()
    there = {str(path.relative_to(run.path)) for path in run.path.rglob("*") if path.is_file()}
    assert there == {*kept, ".lock", "log.txt"}


def test_a_report_is_kept_where_no_epoch_is_repeated(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path / "run")
    run.write("report.md", "of epoch 2")
    run.write("metrics.csv", "epoch\n1\n2\n")
    assert run.remove_later(2, at_end=False) == []
    assert run.remove_later(1, at_end=False) == ["report.md"]
    run.close()


def test_temporary_files_that_a_kill_has_left_are_removed_and_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunDir.create(tmp_path / "run")
    names = ["metrics.csv", "checkpoints/epoch_0001_step_000000.pt", "alphas/epoch_0001.npz", "pictures/cells.svg"]

    def killed(handle: int) -> None:
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", killed)
        patch.setattr(Path, "unlink", lambda path, missing_ok=False: None)  # a killed process cleans nothing up
        for name in names:
            with pytest.raises(SystemExit):
                run.write(name, "content")
    (run.path / ".hidden.yaml").touch()
    run.close()
    assert len([path for path in run.path.rglob(".*.*") if path.name != ".hidden.yaml"]) == len(names)
    RunDir(run.path).close()
    there = {path.name for path in run.path.rglob("*") if path.is_file()}
    assert there == {".lock", "log.txt", ".hidden.yaml"}
