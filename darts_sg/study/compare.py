"""`compare_genotypes` for Python users: trainings are pooled by the options that change a result."""

from collections.abc import Sequence
from typing import Any

from darts_sg.analysis import compare
from darts_sg.analysis.run_folder import Run
from darts_sg.config import compared_options
from darts_sg.genotype import Genotype
from darts_sg.networks.derived import NetworkShape


def compare_genotypes(
    genotypes: Sequence[Genotype],
    network: NetworkShape = "cifar",
    channels: int | None = None,
    cells: int | None = None,
    runs: Sequence[Run] = (),
) -> list[dict[str, Any]]:
    """One row for each genotype: the operations it chose, its costs, and its published and measured errors.

    network, channels, cells: the derived network to count; default: the shape of the papers.
    runs: finished runs (see `runs_in`). Those that trained the same cells are pooled into the scores of the field
    `measured_test_error`, one Score for each data set, scale and set of options. Published errors have other fields.
    """
    return compare.compare_genotypes(genotypes, network, channels, cells, runs, compared_options("augment"))
