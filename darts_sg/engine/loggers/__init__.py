"""Loggers by name, and all loggers of a run as one."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from darts_sg.engine.checkpoint import random_state, set_random_state
from darts_sg.engine.loggers.callback import CallbackLogger
from darts_sg.engine.loggers.csv import CsvLogger
from darts_sg.engine.loggers.logger import LoggedRun, Logger, Status
from darts_sg.engine.loggers.mlflow import MlflowLogger
from darts_sg.engine.loggers.tensorboard import TensorBoardLogger
from darts_sg.engine.loggers.wandb import WandbLogger
from darts_sg.errors import first_line
from darts_sg.records import MetricsRow
from darts_sg.registry import Registry

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["LOGGERS", "CallbackLogger", "LoggedRun", "Logger", "Loggers", "Status", "chosen_loggers"]

LOGGERS: Registry[Callable[[], Logger]] = Registry("logger")
LOGGERS.add("csv", CsvLogger)
LOGGERS.add("tensorboard", TensorBoardLogger)
LOGGERS.add("wandb", WandbLogger)
LOGGERS.add("mlflow", MlflowLogger)

ALWAYS_ON = ("csv", "tensorboard")


def chosen_loggers(names: str, callbacks: Sequence[Any] = ()) -> dict[str, Logger]:
    """The loggers of a run: those that are always on, those of --logger (joined with +), and the callbacks.

    Raises UsageError for an unknown name, a missing package, or a callback that is none.
    """
    wanted = dict.fromkeys([*ALWAYS_ON, *(name.strip() for name in names.split("+") if name.strip())])
    found = {name: LOGGERS[name]() for name in wanted}
    return found | {f"callback {number}": CallbackLogger(each) for number, each in enumerate(callbacks, 1)}


class Loggers:
    """All loggers of a run, called one after the other.

    One that raises is reported once and dropped. None of them can change the bits of a run: the random number
    generators on the CPU are put back after each call, in case a logger or a callback draws from them.
    """

    def __init__(self, loggers: Mapping[str, Logger], warn: Callable[[str], None]) -> None:
        self.loggers, self.warn = dict(loggers), warn
        self.started: set[str] = set()

    @property
    def want_figures(self) -> bool:
        return any(logger.wants_figures for logger in self.loggers.values())

    @property
    def stop_requested(self) -> bool:
        return any(logger.stop_requested for logger in self.loggers.values())

    def run_started(self, run: LoggedRun) -> None:
        self.started = set(self.loggers)
        self._tell("run_started", run)

    def step(self, values: Mapping[str, float], number: int) -> None:
        self._tell("step", values, number)

    def epoch(self, row: MetricsRow, number: int, figures: Mapping[str, "Figure"]) -> None:
        self._tell("epoch", row, number, figures)

    def artifacts(self, paths: Iterable[Path]) -> None:
        for path in paths:
            self._tell("artifact", path)

    def run_ended(self, status: Status) -> None:
        """Let go of all loggers that have been started, and tell each of them how the run ended."""
        self.loggers = {name: logger for name, logger in self.loggers.items() if name in self.started}
        self._tell("run_ended", status)
        self.loggers = {}

    def _tell(self, event: str, *arguments: Any) -> None:
        for name, logger in list(self.loggers.items()):
            try:
                with unchanged_random_state():
                    getattr(logger, event)(*arguments)
            except Exception as error:
                del self.loggers[name]
                self.warn(
                    f"the logger {name} failed in {event} and is dropped, the run goes on: "
                    f"{type(error).__name__}: {first_line(error)}"
                )


@contextmanager
def unchanged_random_state() -> Iterator[None]:
    """Put the generators on the CPU back to where they were at the beginning of the context."""
    state = random_state(gpus=False)
    try:
        yield
    finally:
        set_random_state(state)
