"""A run folder is held by one process at a time."""

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
