"""The pages of the site that are made from options and docstrings. `make docs` builds the site and checks its links."""

import argparse
import html
import importlib
import re
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

from darts_sg.cli.main import COMMANDS

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    pytest.importorskip("mkdocs", reason="needs the extra docs")
    spec = spec_from_file_location("docs_hooks", ROOT / "docs" / "site" / "hooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("command", COMMANDS)
def test_the_page_of_a_command_has_every_option_with_its_help(hooks: ModuleType, command: str) -> None:
    page = hooks.command_page(command)
    parsers = {name: parser for name, parser in hooks.parsers().items() if name.split()[0] == command}
    assert parsers
    for name, parser in parsers.items():
        for action in parser._actions:
            if action.help is argparse.SUPPRESS or (name != command and action.dest in hooks.SHARED):
                continue
            assert all(option in page for option in action.option_strings)
            if action.option_strings:
                first = (action.help or "").replace("%%", "%").split("\n")[0]
                assert html.escape(first) in page


def test_the_python_reference_names_what_exists(hooks: ModuleType) -> None:
    for modules in hooks.PYTHON.values():
        for module, names in modules.items():
            for name in names:
                entry = getattr(importlib.import_module(module), name)
                assert entry.__doc__, f"{module}.{name}"


def test_links_to_files_of_the_repository_lead_to_copies(hooks: ModuleType) -> None:
    text = "[a](../../results/README.md#x) `[b](../../Makefile)` [c](gdas.md) ![d](../../docs/images/darts_v2.svg)"
    assert list(hooks.outside(text, "methods/README.md")) == [("../../results/README.md", "results/README.md")]


def test_a_page_that_loads_from_another_host_is_refused(hooks: ModuleType) -> None:
    class Page:
        class file:  # noqa: N801 - as mkdocs has it
            src_uri = "page.md"

    assert hooks.on_post_page('<a href="https://example.org">x</a>', Page, {})
    for bad in ('<script src="https://a.b/c.js">', '<link rel="stylesheet" href="//fonts.a/b.css">'):
        with pytest.raises(Exception, match="another host"):
            hooks.on_post_page(bad, Page, {})


def test_no_page_has_the_marks_of_an_unfinished_merge() -> None:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "results").rglob("*.md")]
    assert pages
    marked = [page for page in pages if re.search(r"^(<{7}|>{7})( |$)", page.read_text(encoding="utf-8"), re.M)]
    assert not marked
