"""darts_sg: differentiable architecture search with the sandglass block.

>>> from darts_sg import compare_genotypes, derived_cost, draw_genotype, load_genotype
>>> genotype = load_genotype("DARTS_V2")  # in a notebook, a genotype shows itself as its picture
>>> genotype.normal.num_nodes
4
>>> derived_cost(genotype).params, derived_cost(genotype, "imagenet").params
(3349342, 4718752)
>>> for row in compare_genotypes([load_genotype("DARTS_V1"), genotype]):
...     print(row["name"], row["macs"], row["published_cifar10_error"])
DARTS_V1 500987520 3.0
DARTS_V2 528359040 2.76
>>> draw_genotype(genotype, dark=True).savefig("cells.png")  # doctest: +SKIP

The jobs are functions, too; their options are those of the command line:

>>> from darts_sg import evaluate, retrain, search
>>> found = search(recipe="demo", callbacks=[print])  # doctest: +SKIP
>>> trained = retrain(recipe="demo", genotype=found.run_dir / "genotype.yaml")  # doctest: +SKIP
>>> evaluate(trained.weights).value == trained.test_error_last  # doctest: +SKIP
True

Genotypes need no torch: whatever does is imported on first use.
"""

import tomllib
from importlib import import_module
from pathlib import Path
from typing import Any

from darts_sg import plugins as plugins  # registries ask it for installed plug-ins
from darts_sg import process  # noqa: F401 - first of all: a time budget counts from here where the system tells no more
from darts_sg.genotype import Cell, Edge, Genotype, load_genotype, zoo_names

_LATER = {
    "api": ("RetrainResult", "SearchResult", "evaluate", "predict", "retrain", "search"),
    "analysis.compare": ("activation_bytes", "anatomy", "latency"),
    "analysis.cost": ("derived_cost",),
    "analysis.deriving": ("derive_genotype",),
    "analysis.draw": ("draw_genotype", "draw_genotypes", "save_figure"),
    "analysis.draw_comparison": ("draw_comparison",),
    "analysis.draw_network": ("draw_network", "draw_networks"),
    "analysis.measured": ("runs_in",),
    "fitting.run": ("FitResult", "fit"),
    "networks.derived": ("DerivedNetwork",),
    "study.compare": ("compare_genotypes",),
    "study.run": ("Study",),
}
_HOME = {name: module for module, names in _LATER.items() for name in names}

__all__ = ["Cell", "Edge", "Genotype", "load_genotype", "zoo_names", *_HOME]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return _version()
    if name not in _HOME:
        raise AttributeError(f"module 'darts_sg' has no attribute {name!r}")
    return getattr(import_module(f"darts_sg.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _version() -> str:
    """The version of the checkout that is imported; of the installed package where there is no checkout."""
    project = Path(__file__).resolve().parent.parent / "pyproject.toml"
    if project.is_file():
        found = tomllib.loads(project.read_text(encoding="utf-8")).get("project", {})
        if found.get("name") == "darts_sg":
            return str(found["version"])
    return str(import_module("importlib.metadata").version("darts_sg"))


def _picture(genotype: Genotype) -> str:
    """Both cells with parameters and MACs as SVG, for notebooks."""
    draw = import_module("darts_sg.analysis.draw")
    return draw.picture_svg(draw.draw_genotype(genotype))


# Set here and not in the class: genotype.py stands left of analysis and imports nothing from it. The package is
# imported before any of its modules, so every genotype has its picture.
Genotype._repr_svg_ = _picture  # type: ignore[attr-defined]
