"""The notebooks run from top to bottom, and stay small."""

import ast
import importlib
import json
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

from darts_sg.data import synthetic
from tests.plugged import plugins_left_behind

pytestmark = [pytest.mark.usefixtures("rendered_once"), pytest.mark.xdist_group("documentation")]

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
LARGEST = 100_000  # bytes
QUICK = {"own_parts"}  # the shortest one; `make docs-commands` runs the others


def runner() -> ModuleType:
    spec = spec_from_file_location("docs_notebooks", ROOT / "docs" / "site" / "notebooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def code_cells(path: Path) -> list[dict[str, object]]:
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content["nbformat"] == 4
    return [cell for cell in content["cells"] if cell["cell_type"] == "code"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_small_complete_and_imports_what_exists(path: Path) -> None:
    assert path.stat().st_size <= LARGEST
    cells = code_cells(path)
    assert any(cell["outputs"] for cell in cells)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    for cell in cells:
        for node in ast.walk(ast.parse("".join(cell["source"]))):  # type: ignore[arg-type]
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("darts_sg"):
                module = importlib.import_module(str(node.module))
                assert all(hasattr(module, alias.name) for alias in node.names)


@pytest.mark.parametrize(
    "path", [path if path.stem in QUICK else pytest.param(path, marks=pytest.mark.slow) for path in NOTEBOOKS],
    ids=lambda path: path.stem,
)  # fmt: skip
def test_a_notebook_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthetic, "NUM_TRAIN", 150)  # rendering takes longer than training
    monkeypatch.setattr(synthetic, "NUM_TEST", 50)
    with plugins_left_behind():
        ran = runner().run(path, tmp_path)
    then = [cell["outputs"] for cell in code_cells(path)]
    now = [cell["outputs"] for cell in ran["cells"] if cell["cell_type"] == "code"]
    assert [bool(outputs) for outputs in now] == [bool(outputs) for outputs in then]


def test_an_error_in_a_cell_is_not_swallowed(tmp_path: Path) -> None:
    path = tmp_path / "bad.ipynb"
    cell = {"cell_type": "code", "source": ["1 / 0"], "outputs": []}
    path.write_text(json.dumps({"cells": [cell], "nbformat": 4}), encoding="utf-8")
    with pytest.raises(ZeroDivisionError):
        runner().run(path, tmp_path)
