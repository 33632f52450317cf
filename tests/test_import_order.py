"""The import order of the package: each module imports only what stands to its left."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import darts_sg

PACKAGE = Path(darts_sg.__file__).parent
LEFTMOST = (
    "errors",
    "registry",
    "files",
    "remote",
    "records",
    "process",
    "invocation",
    "quantity",
    "options",
    "yaml_files",
    "plugins",
    "formats",
    "genotype",
)
ORDER = (
    *LEFTMOST,
    "boxes",
    "ops",
    "spaces",
    "derive",
    "networks",
    "backends",
    "methods",
    "baselines",
    "tasks",
    "config",
    "engine",
    "api",
    "fitting",
    "study",
    "cli",
    "__main__",
    "timm_models",
)
ALLOWED = {layer: {*ORDER[: ORDER.index(layer)], layer} for layer in ORDER}
ALLOWED["__init__"] = {*LEFTMOST}  # it is imported before all others
ALLOWED["data"] = {"errors", "files", "registry", "records", "data"}
ALLOWED["analysis"] = {*ORDER[: ORDER.index("config")], "analysis"}
for right_of_methods in ORDER[ORDER.index("tasks") :]:
    ALLOWED[right_of_methods] |= {"data"} if right_of_methods in ("tasks", "config") else {"data", "analysis"}

MODULES = {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in sorted(PACKAGE.rglob("*.py"))}


def imported(path: Path, package: tuple[str, ...]) -> Iterator[str]:
    """The full names that a file imports anywhere in it, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = [*above, *([node.module] if node.module else [])]
            yield from (".".join([*base, alias.name]) for alias in node.names)


def layers_imported(module: str) -> set[str]:
    """The layers of this package that a module imports from."""
    path = MODULES[module]
    package = ("darts_sg", *path.relative_to(PACKAGE).parent.parts)
    names = (name.split(".") for name in imported(path, package))
    return {name[1] for name in names if name[0] == "darts_sg" and name[1] != "__version__"}


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_what_stands_to_its_left(module: str) -> None:
    layer = module.split(".")[0]
    assert layer in ALLOWED, f"{module} has no place in the import order"
    assert layers_imported(module) <= ALLOWED[layer]


def test_the_leftmost_modules_need_no_torch() -> None:
    names = ", ".join(f"darts_sg.{name}" for name in LEFTMOST)
    code = f"import sys, {names}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("command", [["genotype", "list"], ["--help"], ["genotype", "--help"], ["--version"]])
def test_what_only_looks_at_genotypes_needs_no_torch(command: list[str]) -> None:
    code = (
        "import contextlib, sys; from darts_sg.cli.main import run\n"
        f"with contextlib.suppress(SystemExit): run({command!r})\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, stdout=subprocess.DEVNULL).returncode == 0


def test_the_textbook_knows_nothing_of_the_package() -> None:
    for path in (Path(__file__).parent / "reference").glob("*.py"):
        assert not [name for name in imported(path, ("tests", "reference")) if name.startswith("darts_sg")]
