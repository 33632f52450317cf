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
