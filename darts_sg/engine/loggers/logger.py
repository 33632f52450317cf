"""What a logger is: it hears of a run, and the run does not depend on it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from darts_sg.files import write_atomically
from darts_sg.records import MetricsRow

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Status = Literal["finished", "stopped", "failed"]
"""How a run ended: with its result; early, saved, to be resumed; or by an error."""
MEMORY = "loggers.json"


@dataclass(frozen=True)
class LoggedRun:
    """What a logger is told at the start of a run, and of each continuation of it."""

    folder: Path
    job: str
    """search or augment."""
    options: Mapping[str, Any]
    """All options as plain values, as in config.yaml."""
    environment: Mapping[str, Any]
    """Versions, device and code state, as in config.yaml."""
    num_epochs: int
    steps_per_epoch: int
    rows: Sequence[MetricsRow] = field(default=())
    """Epochs that are done: empty for a new run; for a resumed one, those of the checkpoint it continues from."""
    resumed: bool = False

    def recall(self, logger: str) -> dict[str, Any]:
        """What `logger` remembered of this run in an earlier process; empty if nothing."""
        return dict(self._memory().get(logger, {}))

    def remember(self, logger: str, **facts: Any) -> None:
        """Keep `facts` (JSON) in the run folder, so that a resumed run finds its counterpart elsewhere again."""
        content = self._memory() | {logger: facts}
        write_atomically(self.folder / MEMORY, json.dumps(content, indent=2) + "\n")

    def _memory(self) -> dict[str, Any]:
        path = self.folder / MEMORY
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        return found


class Logger:
    """A logger overrides the events it cares for; the others do nothing. Only rank 0 has loggers.

    Every method may raise: the exception is reported once, the logger is dropped, and the run goes on. Events come in
    the order of the methods below; `epoch` and `step` count from 1, over the whole run. Register a class (or another
    function without arguments that makes a logger) in LOGGERS, and --logger NAME turns it on. Its constructor raises
    UsageError if it cannot work at all, for instance because a package is missing: that is before the run starts.
    """

    wants_figures = False
    """Whether `epoch` gets the figures of the job. They are not drawn if nobody wants them."""
    stop_requested = False
    """Set it to True to end the run, saved, at the next step."""

    def run_started(self, run: LoggedRun) -> None:
        """The first step is about to be taken."""

    def step(self, values: Mapping[str, float], number: int) -> None:
        """The means over the epoch so far, after `number` steps. Every SYNC_STEPS steps and at the end of an epoch."""

    def epoch(self, row: MetricsRow, number: int, figures: Mapping[str, "Figure"]) -> None:
        """A row of metrics.csv is complete: `number` epochs are done. `figures` are matplotlib's, by title."""

    def artifact(self, path: Path) -> None:
        """A file of the result is in the run folder."""

    def run_ended(self, status: Status) -> None:
        """The run is over, at least in this process. Called whenever `run_started` was, also after an error."""
