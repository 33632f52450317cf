"""Every command in the documentation is understood by the real parsers; those marked as small are run."""

import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from darts_sg import api
from darts_sg.cli.jobs import _options
from darts_sg.cli.main import build_parser, run
from darts_sg.cli.parser import Parser
from darts_sg.config import JOBS
from darts_sg.data import synthetic
from tests.docs.blocks import PAGES, ROOT, Command, commands, of_package

# one worker has the rendered images
pytestmark = [pytest.mark.usefixtures("rendered_once"), pytest.mark.xdist_group("documentation")]

ALL = {page: commands(page) for page in PAGES}
RUN = [page for page in PAGES if any(command.run for command in ALL[page])]
SMALL = {
    "search": [
        "--epochs=1",
        "--channels=4",
        "--cells=3",
        "--nodes=2",
        "--train-images=16",
        "--validation-images=16",
        "--space=sandglass_3x3+skip_connect",
    ],
    "augment": ["--epochs=1", "--channels=4", "--cells=3", "--train-images=32", "--validation-images=16"],
}
QUICK = ["--batch-size=16", "--threads=1", "--kernels=pytorch"]
OTHER_PROGRAMS = {"pip", "ssh", "sbatch", "cd", "mkdir", "git", "docker"}
OTHER_MODULES = {"build", "venv"}


@cache
def parser_of(command: str) -> Parser:
    return build_parser(command)


def understood(words: list[str]) -> None:
    """Raises UsageError if the command line does not exist; the options of a job are checked with one another, too."""
    words = [re.sub(r"^(--[\w-]+=)?[A-Z]$", r"\g<1>4", word) for word in words]  # --channels C
    arguments = parser_of(words[0]).parse_args(words)
    if words[0] in JOBS and "plugin" not in arguments:
        given = _options(arguments.command, vars(arguments))
        if not {"resume", "evaluate", "config"} & vars(arguments).keys() and "finetune" not in given:
            if "/" in str(given.get("genotype", "")):
                given["genotype"] = "DARTS_V2"
            api.plan(arguments.command, given)


def known(command: Command) -> None:
    """Fails if a command of another program names a target or module that does not exist."""
    for words in command.variants():
        if (mine := of_package(words)) is not None:
            understood(mine)
        elif words[0] == "make":
            targets = [word for word in words[1:] if "=" not in word]
            makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
            assert all(re.search(rf"^{target}:", makefile, re.M) for target in targets), command.name
        elif words[:2] == ["python", "-m"]:
            module = ROOT / words[2].replace(".", "/")
            assert words[2] in OTHER_MODULES or module.is_dir() or module.with_suffix(".py").is_file(), command.name
        else:
            assert words[0] in OTHER_PROGRAMS or words[:2] == ["python", "docs/site/notebooks.py"], command.name


@pytest.mark.parametrize("page", [page for page in PAGES if ALL[page]], ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_of_a_page_is_understood(page: Path) -> None:
    problems = []
    for command in ALL[page]:
        try:
            known(command)
        except Exception as error:
            problems.append(f"{command.name}: {command.text}: {error}")
    assert not problems, "\n".join(problems)


def test_the_check_finds_a_command_that_does_not_exist(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```bash\ndarts-sg search --epoch 3\n```\n", encoding="utf-8")
    (command,) = commands(page)
    with pytest.raises(Exception, match="unknown option --epoch"):
        known(command)


@pytest.fixture
def in_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[[Path, bool], list[str]]:
    """Runs the marked commands of a page in a new folder; answers what each printed."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)

    def carry_out(page: Path, small: bool) -> list[str]:
        said = []
        if small:  # rendering takes longer than training
            monkeypatch.setattr(synthetic, "NUM_TRAIN", 100)
            monkeypatch.setattr(synthetic, "NUM_TEST", 50)
        for command in ALL[page]:
            if command.run:
                words = of_package(command.variants()[0])
                assert words is not None, command.name
                shrunk = small and command.slow and words[0] in SMALL and not {"--evaluate", "--resume"} & set(words)
                run([*words, *SMALL[words[0]], *QUICK] if shrunk else words)
                said.append(capsys.readouterr().out)
        return said

    return carry_out


@pytest.mark.parametrize("page", RUN, ids=lambda page: str(page.relative_to(ROOT)))
def test_marked_commands_run(page: Path, in_folder: Callable[[Path, bool], list[str]]) -> None:
    assert any(in_folder(page, True))


@pytest.mark.slow
@pytest.mark.parametrize("page", [p for p in RUN if any(c.slow for c in ALL[p])], ids=lambda page: page.stem)
def test_marked_commands_run_as_they_stand(page: Path, in_folder: Callable[[Path, bool], list[str]]) -> None:
    assert any(in_folder(page, False))
