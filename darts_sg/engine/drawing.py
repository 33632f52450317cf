"""What runs draw. Its modules need matplotlib, which is slow to import: they are loaded when a run begins.

A command that draws nothing, such as a dry run or the coordinator of a study, starts without them.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def load() -> None:
    """Import the modules now, so that a run ends with the code that it began with."""
    import darts_sg.analysis.report  # noqa: F401


def write_report(run_dir: Path) -> Path:
    """Write report.md and pictures/ of a run: `analysis.report.write_report`."""
    from darts_sg.analysis import report

    return report.write_report(run_dir)


def draw_mixing_weights(
    weights: Mapping[str, NDArray[np.floating]], operations: Sequence[str], num_nodes: int
) -> "Figure":
    """The mixing weights as a picture: `analysis.curves.draw_mixing_weights`."""
    from darts_sg.analysis import curves

    return curves.draw_mixing_weights(weights, operations, num_nodes)
