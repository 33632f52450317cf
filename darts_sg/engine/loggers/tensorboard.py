"""TensorBoard: the columns of metrics.csv as scalars, and the job's figures as images, in the run folder.

A measure that several parts of the data have is named MEASURE/PART, such as loss/train and loss/validation, and has one
chart for all parts on the page "Custom scalars". The events are in the run folder itself, so that TensorBoard calls the
run by its name; an older run that has a folder tensorboard/ goes on there.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from darts_sg.engine.loggers.logger import LoggedRun, Logger, Status
from darts_sg.records import MetricsRow

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PARTS = ("train", "validation", "test", "ema_validation", "ema_test")


def tag(column: str) -> str:
    """The name of a column of metrics.csv in TensorBoard: train_loss is loss/train."""
    for part in PARTS:
        if column.startswith(f"{part}_"):
            return f"{column.removeprefix(f'{part}_')}/{part}"
    return column


class TensorBoardLogger(Logger):
    """Writes event files. Those of a resumed run hide the epochs after its checkpoint, which are run again."""

    wants_figures = True

    def __init__(self) -> None:
        self.writer: Any = None
        self.has_layout = False

    def run_started(self, run: LoggedRun) -> None:
        from torch.utils.tensorboard import SummaryWriter  # slow to import

        older = run.folder / "tensorboard"
        self.writer = SummaryWriter(str(older if older.is_dir() else run.folder), purge_step=len(run.rows) + 1)

    def epoch(self, row: MetricsRow, number: int, figures: Mapping[str, "Figure"]) -> None:
        tags = {name: tag(name) for name in row if name != "epoch"}
        if not self.has_layout:
            self._lay_out([each for each in tags.values() if "/" in each])
        for name, shown in tags.items():
            self.writer.add_scalar(shown, row[name], number)
        for title, figure in figures.items():
            self.writer.add_figure(title, figure, number, close=False)
        self.writer.flush()

    def _lay_out(self, tags: Sequence[str]) -> None:
        """One chart for each measure, with all parts of the data."""
        charts: dict[str, list[str]] = {}
        for each in tags:
            charts.setdefault(each.partition("/")[0], []).append(each)
        if charts:
            self.writer.add_custom_scalars(
                {"all parts": {name: ["Multiline", found] for name, found in charts.items()}}
            )
        self.has_layout = True

    def run_ended(self, status: Status) -> None:
        self.writer.close()
