"""Printed command lines: quoted, and begun as the user began."""

import shlex
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from darts_sg.config import JOBS, JobName
from darts_sg.invocation import DATA_DEFAULTS, again, argument, evaluate_command, line, program, python, retrain_command

ROOT = Path(__file__).parent.parent


@pytest.fixture
def activated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An activated environment in the current directory: its interpreter and its darts-sg are on the path."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("python", "darts-sg"):
        (folder / name).touch(mode=0o755)
    monkeypatch.setattr(sys, "executable", str(folder / "python"))
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.chdir(tmp_path)
    return folder


@pytest.mark.parametrize(
    ("started", "command", "expected"),
    [
        ("search.py", "augment", "python augment.py"),
        ("search.py", "report", "python -m darts_sg report"),
        ("bin/darts-sg", "augment", "darts-sg augment"),
        ("darts_sg/__main__.py", "search", "python -m darts_sg search"),
        ("ipykernel_launcher.py", "search", "python -m darts_sg search"),
        ("elsewhere/search.py", "augment", "python -m darts_sg augment"),  # no script of ours: it has no sibling
    ],
)
def test_a_command_begins_as_the_one_that_was_typed(
    started: str, command: str, expected: str, activated: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for script in ("search.py", "augment.py"):
        (activated.parent / script).touch()
    monkeypatch.setattr(sys, "argv", [str(activated.parent / started)])
    assert program(command) == expected


def test_an_interpreter_that_the_shell_does_not_find_is_named_by_its_path(
    activated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert python() == "python"
    monkeypatch.setenv("PATH", "/nowhere")
    assert python() == "bin/python"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    assert python() == shlex.quote(str(activated / "python"))


def test_several_processes_are_started_by_their_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["search.py"])
    found = line("search", launcher="torchrun --nproc-per-node 2", resume=Path("my run"))
    assert found == "torchrun --nproc-per-node 2 search.py --resume 'my run'"


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        (["search.py", "--run-dir", "search"], "python search.py --run-dir search"),
        (["bin/darts-sg", "search", "--data", "my pictures"], "darts-sg search --data 'my pictures'"),
        (["darts_sg/__main__.py", "--plugin", "p.py", "search"], "python -m darts_sg search --plugin p.py"),
    ],
)
def test_a_command_is_repeated_with_its_options(
    typed: list[str], expected: str, activated: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (activated.parent / "search.py").touch()
    monkeypatch.setattr(sys, "argv", [str(activated.parent / typed[0]), *typed[1:]])
    assert again("search") == expected


@pytest.mark.parametrize("text", ["my run", "a;b", "it's", "$(rm x)", "naïve", "a\nb"])
def test_values_are_quoted_for_a_shell(text: str) -> None:
    words = shlex.split(line("augment", evaluate=Path(text), run_dir=None))
    assert words[-2:] == ["--evaluate", text]


def test_a_path_is_not_taken_for_an_option() -> None:
    assert argument(Path("-run")) == "./-run"


@pytest.mark.parametrize("job", JOBS)
def test_only_options_of_the_data_that_differ_from_the_defaults_are_repeated(job: JobName) -> None:
    defaults = {f.name: f.default for f in fields(JOBS[job])}
    assert {name: str(value) if isinstance(value, Path) else value for name, value in defaults.items()}.items() >= (
        DATA_DEFAULTS.items()
    )
    assert shlex.split(retrain_command(Path("g.yaml"), DATA_DEFAULTS))[-2:] == ["--genotype", "g.yaml"]
    options = {**DATA_DEFAULTS, "dataset": "folder", "data": "my pictures", "image_size": 40, "split_seed": 3}
    assert shlex.split(retrain_command(Path("g.yaml"), options))[-8:] == [
        "--dataset", "folder", "--data", "my pictures", "--image-size", "40", "--split-seed", "3",
    ]  # fmt: skip
    assert shlex.split(evaluate_command(Path("w"), options))[-4:] == ["--evaluate", "w", "--data", "my pictures"]
