"""Help texts of every command, and the answers to unknown commands and options."""

import argparse
from dataclasses import fields

import pytest

from darts_sg.cli.jobs import COMMON, command_options
from darts_sg.cli.main import COMMANDS, PROG, build_parser, every_parser, run
from darts_sg.cli.parser import Parser
from darts_sg.config import JOBS, JobName
from darts_sg.errors import UsageError
from darts_sg.options import flag

PARSERS: dict[str, Parser] = {"": build_parser(), **dict(every_parser())}


def said(words: str) -> str:
    with pytest.raises(UsageError) as caught:
        run(words.split())
    return str(caught.value)


@pytest.mark.parametrize("name", PARSERS)
def test_every_help_fits_80_columns_and_tells_each_option(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    parser = PARSERS[name]
    for everything in (False, True):
        text = parser.format_help(everything=everything)
        assert max(map(len, text.splitlines())) <= 80
        assert text.startswith(f"usage: {parser.prog}")
    for action in parser._actions:
        if action.help is not argparse.SUPPRESS:
            assert action.help or isinstance(action, argparse._SubParsersAction) or action.metavar, action.dest
            assert all(option in text for option in action.option_strings)


@pytest.mark.parametrize("job", JOBS)
def test_the_short_help_of_a_job_shows_common_options_only(job: JobName) -> None:
    shown = PARSERS[job].format_help()
    common = {f.name for f in fields(JOBS[job]) if f.metadata["common"]} | (COMMON & command_options(job).keys())
    for name in [f.name for f in fields(JOBS[job])] + list(command_options(job)):
        assert (f"\n  {flag(name)}" in shown) == (name in common), name
    assert len(common) <= 17
    assert "null" not in shown
    assert f"--help-all shows {len(PARSERS[job]._actions) - len(common) - 2} more options." in shown
    assert shown.count("\n") < 120


def test_every_group_of_options_has_its_place_in_the_help() -> None:
    for job in JOBS:
        titles = {group.title for group in PARSERS[job]._action_groups}
        assert {f.metadata["group"] for f in fields(JOBS[job])} <= titles


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        ("serach", "unknown command 'serach' (did you mean 'search'?)"),
        ("retrain", "unknown command 'retrain': did you mean 'augment'?"),
        ("derive RUN", "unknown command 'derive': did you mean 'genotype derive'?"),
        ("genotype drawn DARTS_V2", "unknown action 'drawn' (did you mean 'draw'?)"),
        (
            "augment --target-params=2M",
            "unknown option --target-params: it is an option of search (see darts-sg augment",
        ),
        ("search --genotype DARTS_V2", "unknown option --genotype: it is an option of augment (see"),
        ("spaces --epochs 3", "unknown option --epochs: it is an option of fit, search and augment (see"),
        ("spaces --pareto", "unknown option --pareto: it is an option of genotype derive (see"),
        ("search --target-parms 2M", "unknown option --target-parms (did you mean '--target-params'?)"),
        ("genotype list --nonsense", "unknown option --nonsense (see darts-sg genotype list --help)"),
    ],
)
def test_unknown_words_are_answered_with_what_may_be_meant(words: str, answer: str) -> None:
    assert answer in said(words)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_all_is_known_to_every_command(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    if command in JOBS:
        run([command, "--help-all"])
    else:
        with pytest.raises(SystemExit) as ended:
            run([command, "--help-all"])
        assert not ended.value.code
    assert f"usage: {PROG} {command}" in capsys.readouterr().out
