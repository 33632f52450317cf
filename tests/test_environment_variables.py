"""Environment variables that hold nonsense are answered in one line."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from darts_sg.engine.environment import usable_cores
from darts_sg.errors import UsageError

ROOT = Path(__file__).parent.parent


def test_a_backend_that_does_not_exist_is_ignored(tmp_path: Path) -> None:
    output = tmp_path / "cells.svg"
    environment = {**os.environ, "MPLBACKEND": "no\nbackend", "PYTHONPATH": str(ROOT)}
    call = [sys.executable, "-m", "darts_sg", "genotype", "draw", "DARTS_V2", "-o", str(output)]
    done = subprocess.run(call, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"{output}\n")
    assert output.is_file()
    assert done.stderr.splitlines() == ["MPLBACKEND='no\\nbackend' is no backend of matplotlib and is ignored"]


def test_the_share_of_the_cores_needs_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "a")
    with pytest.raises(UsageError, match="LOCAL_WORLD_SIZE is 'a'"):
        usable_cores()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "0")
    assert usable_cores() >= 1
