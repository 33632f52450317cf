"""metrics.csv: one row an epoch, in the run folder."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from darts_sg.engine.loggers.logger import LoggedRun, Logger
from darts_sg.files import write_atomically
from darts_sg.records import MetricsRow

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class CsvLogger(Logger):
    """Rewrites the file after every epoch, so that it never holds epochs that a resumed run is about to repeat."""

    def __init__(self) -> None:
        self.path = Path()
        self.rows: list[MetricsRow] = []

    def run_started(self, run: LoggedRun) -> None:
        self.path = run.folder / "metrics.csv"
        self.rows = list(run.rows)
        if self.rows:
            write_atomically(self.path, table(self.rows))
        else:
            self.path.unlink(missing_ok=True)

    def epoch(self, row: MetricsRow, number: int, figures: Mapping[str, "Figure"]) -> None:
        self.rows.append(row)
        write_atomically(self.path, table(self.rows))


def table(rows: Sequence[MetricsRow]) -> str:
    """The rows as CSV text, with all their columns in order of appearance. NaN and a missing column are left blank."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({name: f"{value:.10g}" for name, value in row.items() if value == value})
    return text.getvalue()
