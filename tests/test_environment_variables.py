"""Environment variables that hold nonsense are answered in one line."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from darts_sg.engine.distributed import TORCHRUN, Ranks
from darts_sg.engine.environment import usable_cores
from darts_sg.errors import UsageError

ROOT = Path(__file__).parent.parent


def command(words: list[str], **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **variables, "PYTHONPATH": str(ROOT)}
    call = [sys.executable, "-m", "darts_sg", *words]
    return subprocess.run(call, env=environment, capture_output=True, text=True, check=False)


def test_a_backend_that_does_not_exist_is_ignored(tmp_path: Path) -> None:
    output = tmp_path / "cells.svg"
    done = command(["genotype", "draw", "DARTS_V2", "-o", str(output)], MPLBACKEND="no\nbackend")
    assert (done.returncode, done.stdout) == (0, f"{output}\n")
    assert output.is_file()
    assert "Traceback" not in done.stderr


def test_a_rank_that_is_no_number_is_one_line() -> None:
    sound = dict.fromkeys(TORCHRUN, "0")
    done = command(["search", "--print-config"], **{**sound, "RANK": "a"})
    assert done.returncode == 2
    assert done.stderr == "darts-sg: the environment variable RANK is 'a', not a number; unset it, or start torchrun\n"


@pytest.mark.parametrize(("name", "value"), [("RANK", "2"), ("WORLD_SIZE", "0"), ("LOCAL_RANK", "9"), ("RANK", "-1")])
def test_ranks_that_cannot_be_are_refused(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, text in zip(TORCHRUN, ("1", "2", "1", "2"), strict=True):
        monkeypatch.setenv(variable, text)
    assert Ranks.from_environment() == Ranks(1, 2, 1, 2)
    monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=r"no such process|not a number"):
        Ranks.from_environment()


def test_the_share_of_the_cores_needs_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "a")
    with pytest.raises(UsageError, match="LOCAL_WORLD_SIZE is 'a', not a number"):
        usable_cores()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "0")
    assert usable_cores() >= 1
