"""A logger: metrics.jsonl in the run folder, one JSON object a line.

python search.py --plugin examples/plugins/json_lines.py --logger json_lines
tail -f runs/…/metrics.jsonl | jq .validation_accuracy
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from darts_sg.engine.loggers import LOGGERS, LoggedRun, Logger, Status

FILE = "metrics.jsonl"


class JsonLines(Logger):
    """Lines of three kinds: `run` at each start, `epoch` with the columns of metrics.csv, `end` with the status.

    A resumed run repeats the epochs after its checkpoint. Their old lines stay: of two lines for one epoch the later
    one counts.
    """

    def __init__(self) -> None:
        self.path = Path()

    def run_started(self, run: LoggedRun) -> None:
        self.path = run.folder / FILE
        self._write("run", job=run.job, epochs=run.num_epochs, epochs_done=len(run.rows), options=dict(run.options))

    def epoch(self, row: Mapping[str, float], number: int, figures: Mapping[str, Any]) -> None:
        self._write("epoch", **{name: value for name, value in row.items() if value == value})  # JSON knows no nan

    def run_ended(self, status: Status) -> None:
        self._write("end", status=status)

    def _write(self, kind: str, **facts: Any) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"kind": kind, **facts}) + "\n")


LOGGERS.add("json_lines", JsonLines)
