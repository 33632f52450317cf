"""TensorBoard: the columns of metrics.csv as scalars, and the job's figures as images, under tensorboard/."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from darts_sg.engine.loggers.logger import LoggedRun, Logger, Status
from darts_sg.records import MetricsRow

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class TensorBoardLogger(Logger):
    """Writes event files. Those of a resumed run hide the epochs after its checkpoint, which are run again."""

    wants_figures = True

    def __init__(self) -> None:
        self.writer: Any = None

    def run_started(self, run: LoggedRun) -> None:
        from torch.utils.tensorboard import SummaryWriter  # slow to import

        self.writer = SummaryWriter(str(run.folder / "tensorboard"), purge_step=len(run.rows) + 1)

    def epoch(self, row: MetricsRow, number: int, figures: Mapping[str, "Figure"]) -> None:
        for name, value in row.items():
            if name != "epoch":
                self.writer.add_scalar(name, value, number)
        for title, figure in figures.items():
            self.writer.add_figure(title, figure, number, close=False)
        self.writer.flush()

    def run_ended(self, status: Status) -> None:
        self.writer.close()
