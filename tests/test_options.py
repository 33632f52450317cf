"""Options from a command line, YAML files and Python: every accepted spelling, and one line for everything else."""

import contextlib
import math
import random
import re
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from darts_sg.cli.jobs import build_parser, main, parse
from darts_sg.config import (
    JOBS,
    AugmentConfig,
    JobName,
    RunConfig,
    SearchConfig,
    default_recipe,
    load_options,
    load_recipe,
    make_config,
    recipe_names,
)
from darts_sg.errors import UsageError, quoted
from darts_sg.options import expected, flag, members, read_value, type_hints
from darts_sg.quantity import parse_quantity
from darts_sg.yaml_files import MAX_BYTES, parse_yaml, read_yaml

Size = int | str | None
TEXTS: list[tuple[Any, str, Any]] = [
    (int, "3", 3), (int, "+3", 3), (int, " 3", 3), (int, "1_000", 1000), (int, "010", 10), (int, "0x10", 16),
    (int, "-1", -1), (int | None, "3", 3), (int | None, "null", None), (int | None, "~", None),
    (int | None, "NULL", None), (float, "1e-3", 1e-3), (float, "1", 1.0), (float, ".5", 0.5), (float, "1_0", 10.0),
    (float | None, "Null", None), (bool, "true", True), (bool, "FALSE", False), (bool, "yes", True),
    (bool, "Off", False), (str, "", ""),
    (str, "null", "null"), (str, "~", "~"), (str, "3", "3"), (str, "true", "true"), (str, "a: b", "a: b"),
    (Path, "null", Path("null")), (Path, "3", Path("3")), (Path, "", Path()), (Path | None, "null", None),
    (Path | None, "None", Path("None")), (Size, "36", 36), (Size, "auto:600M", "auto:600M"), (Size, "null", None),
    (Size, "36.0", "36.0"), (Literal["a", "b"], "b", "b"),
]  # fmt: skip
"""Spellings on a command line."""


@pytest.mark.parametrize(("hint", "text", "value"), TEXTS)
def test_a_command_line_may_spell_a_value_in_many_ways(hint: Any, text: str, value: Any) -> None:
    found = read_value(hint, text, command_line=True)
    assert (type(found), found) == (type(value), value)


PLAIN: list[tuple[Any, Any, Any]] = [
    (int, 3, 3), (int, np.int64(3), 3), (int, "3", 3), (float, 1, 1.0), (float, "1e-3", 1e-3), (float, 0.5, 0.5),
    (float, np.float32(0.5), 0.5), (bool, True, True), (bool, "yes", True), (str, "x", "x"), (str, "null", "null"),
    (Path, "x", Path("x")), (Path, Path("x"), Path("x")), (Path | None, "null", Path("null")), (int | None, None, None),
    (Size, 36, 36), (Size, "auto:600M", "auto:600M"), (Literal["a", "b"], "a", "a"),
]  # fmt: skip
"""Values of a YAML file or of Python. There None is None, and null in quotes is a text."""


@pytest.mark.parametrize(("hint", "given", "value"), PLAIN)
def test_a_file_and_python_give_plain_values(hint: Any, given: Any, value: Any) -> None:
    found = read_value(hint, given)
    assert (type(found), found) == (type(value), value)


HUGE = 10**400
WRONG: dict[Any, list[Any]] = {
    int: [None, "abc", "3.0", 3.0, "1e2", True, "true", "", [1], {}, HUGE, str(HUGE), 10**5000, "9" * 5000, math.nan],
    int | None: ["many", "None", True, 3.5, [None]],
    float: [None, "x", "", True, math.nan, "nan", ".nan", math.inf, ".inf", "-.inf", HUGE, "9" * 400, "1e999", [1.0]],
    float | None: ["None", "x", math.inf, [2]],
    bool: [None, 0, 1, "1", "y", "", "maybe", []],
    str: [None, 3, 0.5, True, ["x"], {"a": 1}, b"x"],
    Path: [None, 3, ["x"], b"x", "a\0b"],
    int | str | None: [3.5, True, ["36"], [], {"a": 1}],
    Literal["skip", "stop"]: [None, "skipp", "", 1, ["skip"]],
}


@pytest.mark.parametrize("hint", WRONG, ids=str)
def test_what_does_not_fit_is_answered_with_the_type_and_the_value(hint: Any) -> None:
    for value in WRONG[hint]:
        with pytest.raises(UsageError) as caught:
            read_value(hint, value)
        message = str(caught.value)
        assert len(message.splitlines()) == 1
        assert f"found {quoted(value)}" in message
        assert message.startswith((f"expected {expected(hint)}", "must be at most"))


def test_infinity_fits_where_it_means_something() -> None:
    for text in (".inf", "inf", "Infinity", "+.Inf", math.inf):
        assert read_value(float, text, infinite=True) == math.inf
    for text in ("-.inf", -math.inf, "nan", math.nan, "9" * 400):
        with pytest.raises(UsageError, match=r"expected a number or \.inf, found"):
            read_value(float, text, infinite=True)
    assert make_config("search", gradient_clip=".inf").gradient_clip == math.inf


def test_a_close_choice_is_suggested() -> None:
    with pytest.raises(
        UsageError, match=r"expected one of float32, bfloat16, found 'bfloat' \(did you mean 'bfloat16'"
    ):
        make_config("search", precision="bfloat")


def test_a_quoted_value_is_one_short_line() -> None:
    values: list[object] = ["x" * 10**6, "a\nb\r\nc", 10**5000, ["y" * 500] * 500, {i: i for i in range(99)}]
    for value in values:
        assert len(quoted(value)) <= 80
        assert quoted(value).isprintable()


@pytest.mark.parametrize(("job", "name"), [(job, f.name) for job in JOBS for f in fields(JOBS[job])])
def test_every_field_has_a_type_that_can_be_read(job: JobName, name: str) -> None:
    hint = type_hints(JOBS[job])[name]
    assert expected(hint)
    for member in members(hint):
        with pytest.raises(UsageError, match="expected"):
            read_value(member, object())


SOURCES = ["command line", "file", "recipe", "config.yaml", "keyword"]


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("epochs", "abc"), ("threads", "many"), ("learning_rate", ".nan"), ("learning_rate", "1e999"),
        ("epochs", "9" * 400), ("compile", "maybe"), ("precision", "float16"), ("weight_decay", "9" * 400),
    ],
)  # fmt: skip
def test_every_source_goes_through_the_same_reader(
    source: str, name: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message names source, option and value. What YAML reads as a number is one there."""
    file = tmp_path / "mine.yaml"
    file = tmp_path / ("config.yaml" if source == "config.yaml" else "mine.yaml")
    where, words = f"{file}: {name}", ["--config", str(file)]
    match source:
        case "command line":
            where, words = flag(name), [f"{flag(name)}={text}"]
        case "file":
            file.write_text(f"{name}: {text}\n")
        case "recipe":
            file.write_text(f"search:\n  {name}: {text}\n")
            monkeypatch.setattr("darts_sg.config.RECIPES", tmp_path)
            where, words = f"recipe mine: {name}", ["--recipe", "mine"]
        case "config.yaml":
            file.write_text(f"job: search\noptions: {{{name}: {text}}}\nenvironment: {{}}\n")
            words = ["--resume", str(tmp_path)]
        case "keyword":
            where = f"search(): {name}"
    read: Any = partial(make_config, "search", **{name: text})
    with pytest.raises(UsageError) as problem:
        read() if source == "keyword" else parse("search", words, "search.py")
    message = str(problem.value)
    assert message.startswith(f"{where}: ")
    assert len(message.splitlines()) == 1
    assert "found" in message
    assert text[:10] in message or "nan" in message or "inf" in message


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("space: ~", "space: expected a text, found None"),
        ("compile: !!bool foo", "is not YAML: 'foo' is no bool, line 1"),
        ("epochs: !!int x", "is not YAML: 'x' is no int, line 1"),
        ("epochs: [1]", r"epochs: expected a whole number, found \[1\]"),
        ("data-note: 2026-11-28", "data-note: expected a text, found .*; put it in quotes"),
        ("epochs: " + "9" * 5000, "is not YAML: .* is no int, line 1"),
        ("epochs: !!timestamp x", "is no timestamp, line 1"),
        ("a: " + "[" * 5000, "more than 32 levels deep"),
        ("a: &a [*a]", r"an alias \(\*\) contains itself"),
        ("\n".join(["x: &a0 [y]", *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12))]),
         "more than 20,000 values"),
        ("? [1]\n: 2", "is not YAML: found unhashable key, line 1"),
        ("epochs: !!python/object/apply:os.system [x]", "could not determine a constructor"),
        ("x\0: 1", "is not YAML"),
        ("x" * 900 + ": 1", "unknown option 'xxx"),
        ("", "expected a mapping of options"),
    ],
    ids=lambda text: text[:20],
)  # fmt: skip
def test_a_yaml_file_is_answered_with_one_line(text: str, problem: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=rf"mine\.yaml.*{problem}") as caught:
        load_options("search", path)
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 2000


def test_files_that_are_no_yaml_of_options_are_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "large.yaml"
    path.write_bytes(b"#" * (MAX_BYTES + 1))
    with pytest.raises(UsageError, match=r"large\.yaml is larger than 1 MiB"):
        read_yaml(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match=r"large\.yaml is not YAML: it is not a text file"):
        read_yaml(path)


def test_aliases_and_merge_keys_still_work() -> None:
    text = "base: &base {epochs: 3}\nsearch:\n  <<: *base\n  nodes: 2\naugment: *base\n"
    assert parse_yaml(text, "mine")["search"] == {"epochs": 3, "nodes": 2}


def test_no_random_bytes_bring_a_traceback(tmp_path: Path) -> None:
    rng, path = random.Random(0), tmp_path / "config.yaml"
    alphabet = "abc:  \n-[]{}&*!|>'\"%@`#?,0123.~<\t\0\x85é"
    for _ in range(500):
        path.write_text("".join(rng.choices(alphabet, k=rng.randint(1, 40))), encoding="utf-8")
        with contextlib.suppress(UsageError):
            load_options("search", path)


@pytest.mark.parametrize("job", JOBS)
def test_the_default_recipe_is_the_defaults(job: JobName) -> None:
    assert load_recipe(job, default_recipe(job)) == {}


NEEDED: dict[JobName, dict[str, Any]] = {"search": {}, "augment": {"genotype": "DARTS_V2"}}


@pytest.mark.parametrize(("job", "recipe"), [(job, recipe) for job in JOBS for recipe in recipe_names(job)])
def test_a_recipe_is_applied_in_python_as_on_the_command_line(job: JobName, recipe: str) -> None:
    words = [f"{flag(name)}={value}" for name, value in NEEDED[job].items()]
    wanted = parse(job, ["--recipe", recipe, *words], "x").config
    assert make_config(job, recipe=recipe, **NEEDED[job]) == wanted
    assert JOBS[job](recipe=recipe, **NEEDED[job]) == wanted
    assert make_config(job, recipe, epochs=7, **NEEDED[job]).epochs == 7
    assert JOBS[job](recipe=recipe, epochs="7", **NEEDED[job]).epochs == 7


def test_a_config_made_directly_is_typed() -> None:
    config = SearchConfig(data="somewhere", run_dir="here", learning_rate=1, threads="2")
    assert (config.data, config.run_dir) == (Path("somewhere"), Path("here"))
    assert (config.learning_rate, config.threads) == (1.0, 2)
    assert AugmentConfig(genotype="DARTS_V2").cells == 20
    assert AugmentConfig(model="mobilenext_1.0").cells is None
    assert RunConfig(epochs=3).epochs == 3
    with pytest.raises(UsageError, match="SearchConfig: epochs: expected a whole number, found 'abc'"):
        SearchConfig(epochs="abc")
    with pytest.raises(UsageError, match=r"unknown option 'epoch' \(did you mean 'epochs'\?\)"):
        make_config("search", epoch=3)
    with pytest.raises(UsageError, match="unknown search recipe 'pcdarts'"):
        SearchConfig(recipe="pcdarts")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--channels=--"], "--channels: expected a value, found '--' (see augment.py --help)"),
        (["--batch_size", "3"], "unknown option --batch_size (did you mean '--batch-size'?) (see augment.py --help)"),
        (["--epoch=3"], "unknown option --epoch (did you mean '--epochs'?) (see augment.py --help)"),
        (["DARTS_V2"], "unexpected argument 'DARTS_V2' (see augment.py --help)"),
        (["--cells"], "--cells: expected one argument (see augment.py --help)"),
    ],
)
def test_the_messages_of_the_parser_are_ours(arguments: list[str], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse("augment", ["--genotype", "DARTS_V2", *arguments], "augment.py")
    assert str(caught.value) == message


def test_long_and_broken_words_are_cut() -> None:
    for word in ("--" + "x" * 10**5, "y" * 10**5, "--epochs=" + "z" * 10**5, "--a\nb", "a\nb"):
        with pytest.raises(UsageError) as caught:
            parse("search", [word], "search.py")
        assert len(str(caught.value)) < 250
        assert str(caught.value).isprintable()


def test_a_quantity_is_finite() -> None:
    for text in ("9" * 400, "few", "9" * 300 + "G" * 500):
        with pytest.raises(UsageError, match=r"expected a number such as 2\.45M") as caught:
            parse_quantity("--target-params", text)
        assert len(str(caught.value)) < 160


def test_the_help_shows_the_defaults_that_the_recipe_gives(capsys: pytest.CaptureFixture[str]) -> None:
    for recipe, default in (("darts-first", 1), ("pc-darts", 4)):
        main("search", ["--recipe", recipe, "--help-all"], "search.py")
        text = " ".join(capsys.readouterr().out.split())
        assert re.search(rf"--partial-channels N [^)]*\(PC-DARTS\)\. \(whole number; default: {default}\)", text)
        assert "--recompute Recompute" in text


def test_loggers_and_regularizers_may_be_given_several_times() -> None:
    words = ["--logger", "wandb", "--logger=mlflow", "--regularizer", "params:0.1", "--regularizer", "macs:0.2"]
    found = vars(build_parser("search", "search.py").parse_args(words))
    assert (found["logger"], found["regularizer"]) == ("wandb+mlflow", "params:0.1+macs:0.2")
