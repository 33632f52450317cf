"""The package as it is used in Python and in a notebook."""

import doctest
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

import darts_sg
from darts_sg import load_genotype

README = Path(__file__).parent.parent / "README.md"


def test_the_examples_of_the_package_hold() -> None:
    failed, tried = doctest.testmod(darts_sg)
    assert tried > 0
    assert not failed


def test_the_example_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (example,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)
    exec(example, {})
    assert (tmp_path / "network.svg").is_file()


@pytest.mark.parametrize("name", darts_sg.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(darts_sg, name).__name__ == name
    assert name in dir(darts_sg)


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
