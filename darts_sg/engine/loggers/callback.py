"""A Python callback as a logger: a function called after every epoch, or an object with methods of a logger."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from darts_sg.engine.loggers.logger import LoggedRun, Logger, Status
from darts_sg.errors import UsageError
from darts_sg.records import MetricsRow

if TYPE_CHECKING:
    from matplotlib.figure import Figure

METHODS = ("run_started", "step", "epoch", "artifact", "run_ended")
STOP = "stop"
"""A callback that returns this ends the run: it saves a checkpoint and can be resumed."""


class CallbackLogger(Logger):
    """Passes events on to a callback.

    callback: a function of the row of metrics.csv, a dict, called after each epoch; or any object with some of the
    methods of `Logger`. If `step` or `epoch`, or the function, returns "stop", the run ends as with Ctrl-C.
    Raises UsageError if it is neither.
    """

    def __init__(self, callback: Any) -> None:
        self.methods: dict[str, Callable[..., Any]] = {
            name: getattr(callback, name) for name in METHODS if callable(getattr(callback, name, None))
        }
        if not self.methods and not callable(callback):
            names = ", ".join(METHODS)
            raise UsageError(f"callback {callback!r} is neither a function nor has one of the methods {names}")
        if not self.methods:
            self.methods["epoch"] = lambda row, number, figures: callback(row)
        self.wants_figures = bool(getattr(callback, "wants_figures", False))

    def run_started(self, run: LoggedRun) -> None:
        self._call("run_started", run)

    def step(self, values: Mapping[str, float], number: int) -> None:
        self._call("step", dict(values), number)

    def epoch(self, row: MetricsRow, number: int, figures: Mapping[str, "Figure"]) -> None:
        self._call("epoch", dict(row), number, figures)  # a copy: the loop keeps its rows to itself

    def artifact(self, path: Path) -> None:
        self._call("artifact", path)

    def run_ended(self, status: Status) -> None:
        self._call("run_ended", status)

    def _call(self, name: str, *arguments: Any) -> None:
        if name in self.methods:
            answer = self.methods[name](*arguments)
            self.stop_requested |= isinstance(answer, str) and answer == STOP
