"""The package as it is used in Python and in a notebook."""

import _thread
import doctest
import json
import random
import re
import subprocess
import sys
import threading
import tomllib
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import darts_sg
from darts_sg import RetrainResult, SearchResult, evaluate, load_genotype, retrain, search
from darts_sg.cli.main import run
from darts_sg.engine.checkpoint import checkpoints, read_torch
from darts_sg.engine.weights import read_weights
from darts_sg.errors import Stopped, UsageError

pytestmark = [pytest.mark.usefixtures("rendered_once"), pytest.mark.xdist_group("api")]

README = Path(__file__).parent.parent / "README.md"


def test_the_examples_of_the_package_hold() -> None:
    failed, tried = doctest.testmod(darts_sg)
    assert tried > 0
    assert not failed


def test_the_example_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it stands, but with smaller runs."""
    monkeypatch.chdir(tmp_path)
    (example,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)
    tiny = "epochs=1, batch_size=8, train_images=16, channels=4, cells=3"
    found: dict[str, Any] = {}
    exec(example.replace('recipe="demo"', f'recipe="demo", {tiny}'), found)
    assert len(found["found"].metrics) == 1
    assert found["trained"].result["epochs"] == 1


def test_the_examples_of_the_api_page_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = (README.parent / "docs" / "api.md").read_text(encoding="utf-8")
    *_, networks = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    exec(networks, {})
    assert (tmp_path / "network.svg").is_file()


@pytest.mark.parametrize("name", darts_sg.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(darts_sg, name).__name__ == name
    assert name in dir(darts_sg)


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    project = tomllib.loads((README.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert darts_sg.__version__ == project["version"]
    with pytest.raises(SystemExit) as ended:
        run(["--version"])
    assert (ended.value.code or 0, capsys.readouterr().out) == (0, f"darts-sg {project['version']}\n")


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'draw_genotyp'"):
        darts_sg.draw_genotyp  # noqa: B018


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = "import sys, darts_sg; sys.exit(bool({'torch', 'matplotlib', 'numpy'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_genotype_shows_itself_as_its_picture() -> None:
    picture = load_genotype("DARTS_V2")._repr_svg_()  # type: ignore[attr-defined]
    ids = {element.get("id") for element in ElementTree.fromstring(picture).iter()}
    assert ids >= {"normal:edge:7", "reduce:state:3"}


TINY: dict[str, Any] = {
    "dataset": "synthetic", "batch_size": 8, "train_images": 24, "channels": 4, "cells": 3, "threads": 1, "epochs": 2,
}  # fmt: skip
SEARCH: dict[str, Any] = {**TINY, "nodes": 2, "validation_images": 24, "space": "sandglass+skip_connect"}


@pytest.fixture(scope="module")
def found(rendered_once: None, tmp_path_factory: pytest.TempPathFactory) -> SearchResult:
    """A search, and what its callbacks heard beside it in heard.json."""
    folder, heard = tmp_path_factory.mktemp("api"), []

    def failing(row: dict[str, float]) -> None:
        raise ValueError("no such server")

    result = search(**SEARCH, run_dir=str(folder / "search"), callbacks=[failing, heard.append])
    (folder / "heard.json").write_text(json.dumps(heard))
    return result


def state_of(run_dir: Path) -> dict[str, torch.Tensor]:
    return dict(read_torch(checkpoints(run_dir / "checkpoints")[-1])["state"]["supernet"])  # type: ignore[index]


def assert_same_search(a: Path, b: Path) -> None:
    """Equal to the bit."""
    first, second = state_of(a), state_of(b)
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


def test_a_search_returns_what_its_folder_holds(found: SearchResult) -> None:
    assert found.genotype == load_genotype(found.run_dir / "genotype.yaml")
    E, num_ops = 5, len(found.genotype.operations)
    assert {name: alpha.shape for name, alpha in found.alphas.items()} == {
        "alpha_normal": (E, num_ops),
        "alpha_reduce": (E, num_ops),
    }
    mixing = found.mixing_weights
    for name in ("normal", "reduce"):
        softmax = np.exp(found.alphas[f"alpha_{name}"])
        np.testing.assert_allclose(softmax / softmax.sum(1, keepdims=True), mixing[name], rtol=1e-6)
    assert [row["epoch"] for row in found.metrics] == [1, 2]
    assert found.stopped_early is None
    assert found.options["space"] == "sandglass+skip_connect"
    assert str(found.run_dir) in repr(found)
    page = found._repr_html_()
    assert found.genotype.name in page
    assert "<svg" in page


def test_callbacks_hear_each_epoch_and_one_that_fails_is_dropped(found: SearchResult) -> None:
    heard = json.loads((found.run_dir.parent / "heard.json").read_text())
    assert [row["epoch"] for row in heard] == [1, 2]
    for told, written in zip(heard, found.metrics, strict=True):
        assert told.keys() == written.keys()
        assert told["train_loss"] == pytest.approx(written["train_loss"])
    log = (found.run_dir / "log.txt").read_text()
    assert len(re.findall("failed.*no such server", log)) == 1


def test_a_callback_that_cannot_be_called_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="callback 'print' is neither a function"):
        search(**SEARCH, run_dir=tmp_path / "run", callbacks=["print"])  # type: ignore[list-item]
    assert not (tmp_path / "run").exists()


def test_the_command_line_gives_the_same_bits(found: SearchResult, tmp_path: Path) -> None:
    options = [f"--{name.replace('_', '-')}={value}" for name, value in SEARCH.items()]
    run(["search", *options, f"--run-dir={tmp_path / 'run'}"])
    assert_same_search(found.run_dir, tmp_path / "run")


def test_twice_in_one_process_leaves_the_process_as_it_was(found: SearchResult, tmp_path: Path) -> None:
    """Threads, generators and deterministic algorithms are the user's; the second run gives the bits of the first."""
    random.seed(5), np.random.seed(5), torch.manual_seed(5)  # noqa: NPY002
    wanted = random.random(), np.random.rand(), torch.rand(1).item()  # noqa: NPY002
    random.seed(5), np.random.seed(5), torch.manual_seed(5)  # noqa: NPY002
    torch.set_num_threads(2)
    try:
        again = search(**SEARCH, run_dir=tmp_path / "run")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert not torch.are_deterministic_algorithms_enabled()
    assert (random.random(), np.random.rand(), torch.rand(1).item()) == wanted  # noqa: NPY002
    assert_same_search(found.run_dir, again.run_dir)


def test_a_run_in_a_thread_gives_the_same_bits(found: SearchResult, tmp_path: Path) -> None:
    """Signal handlers can be set in the main thread only."""
    outcome: list[object] = []

    def work() -> None:
        try:
            outcome.append(search(**SEARCH, run_dir=tmp_path / "run"))
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    (result,) = outcome
    assert isinstance(result, SearchResult), result
    assert_same_search(found.run_dir, result.run_dir)


def test_ctrl_c_saves_and_raises_and_resume_comes_to_the_same_bits(found: SearchResult, tmp_path: Path) -> None:
    def press_ctrl_c(row: dict[str, float]) -> None:
        _thread.interrupt_main()

    with pytest.raises(Stopped, match=r"stopped by SIGINT; saved at epoch 2 of 2"):
        search(**SEARCH, run_dir=tmp_path / "run", callbacks=[press_ctrl_c])
    with pytest.raises(UsageError, match="--epochs 9 would change the result"):
        search(resume=tmp_path / "run", epochs=9)
    resumed = search(resume=str(tmp_path / "run"))
    assert_same_search(found.run_dir, resumed.run_dir)


def test_retrain_and_evaluate(found: SearchResult, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    heard: list[dict[str, float]] = []
    genotype = found.run_dir / "genotype.yaml"
    trained = retrain(**TINY, genotype=str(genotype), run_dir=tmp_path / "run", callbacks=[heard.append])
    assert isinstance(trained, RetrainResult)
    assert trained.result == json.loads((tmp_path / "run" / "result.json").read_text())
    assert trained.test_error_last == trained.result["test_error_last"] == read_weights(trained.weights).recorded
    assert trained.test_error_best <= trained.test_error_last
    assert trained.genotype == found.genotype
    assert len(heard) == len(trained.metrics) == 2
    assert f"{trained.test_error_last:.2f}%" in repr(trained)
    tested = evaluate(trained.weights, threads=1)
    assert tested.value == tested.recorded == trained.test_error_last
    assert (tested.same_data, tested.num_images) == (True, 1000)
    with pytest.raises(UsageError, match="--epochs is for training"):
        evaluate(str(trained.weights), epochs=3)
    capsys.readouterr()
    assert retrain(**TINY, genotype=genotype, run_dir=tmp_path / "dry", dry_run=True) is None
    assert "dry run: nothing was written" in capsys.readouterr().out
    assert not (tmp_path / "dry").exists()


def test_a_recipe_a_file_and_keywords_add_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As on the command line: a keyword overrides the file, which overrides the recipe."""
    path = tmp_path / "mine.yaml"
    path.write_text("channels: 8\nepochs: 3\n")
    options = {**SEARCH, "epochs": "5"}
    del options["channels"]
    search(**options, recipe="pc-darts", config=str(path), run_dir=tmp_path / "dry", dry_run=True)
    out = capsys.readouterr().out
    assert "(C=8, 3 cells)" in out
    assert "whole run: 5 epochs" in out


def test_bad_keywords_get_one_line() -> None:
    for options, problem in (
        ({"epoch": 3}, r"search\(\): unknown option 'epoch' \(did you mean 'epochs'\?\)"),
        ({"epochs": "abc"}, r"search\(\): epochs: expected a whole number, found 'abc'"),
        ({"resume": 3}, "--resume: expected a path or null, found 3"),
        ({"config": "nowhere.yaml"}, "cannot read nowhere.yaml"),
    ):
        with pytest.raises(UsageError, match=problem) as caught:
            search(**options)  # type: ignore[arg-type]
        assert len(str(caught.value).splitlines()) == 1
