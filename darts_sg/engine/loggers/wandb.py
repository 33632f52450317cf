"""Weights & Biases (the extra `wandb`): metrics, figures and result files of a run.

W&B's own environment variables choose the rest: WANDB_PROJECT (default: darts_sg), WANDB_ENTITY, WANDB_MODE=offline, …

A resumed run continues the same W&B run: its id is kept in loggers.json. Offline, W&B cannot continue a run: each
process leaves a folder of its own, with the same id, and the steps count on. `wandb sync RUN/wandb/offline-run-*`
uploads these folders one after the other into one run.
"""

import io
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from darts_sg.engine.distributed import Ranks
from darts_sg.engine.loggers.logger import LoggedRun, Logger, Status
from darts_sg.engine.loggers.optional import optional_package
from darts_sg.records import MetricsRow

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PROJECT = "darts_sg"


class WandbLogger(Logger):
    """Logs to a W&B run. Its step is the number of training steps done, so that steps and epochs share one axis."""

    wants_figures = True

    def __init__(self) -> None:
        self.wandb = optional_package("wandb")
        self.run: Any = None
        self.steps_per_epoch = 0

    def run_started(self, run: LoggedRun) -> None:
        known = run.recall("wandb")
        self.steps_per_epoch = run.steps_per_epoch
        self.run = self.wandb.init(
            id=known.get("id") or uuid.uuid4().hex[:12],  # from the system: no generator of the run is drawn from
            resume="allow",
            project=known.get("project") or os.environ.get("WANDB_PROJECT") or PROJECT,
            entity=known.get("entity"),
            name=run.folder.name,
            job_type=run.job,
            dir=str(run.folder),
            config={"options": dict(run.options), "environment": dict(run.environment)},
            settings=self.wandb.Settings(console="off"),  # leaves stdout alone; log.txt has what was printed
        )
        # an offline run knows no entity: the user's default is found when it is synced
        run.remember("wandb", id=self.run.id, project=self.run.project, entity=self.run.entity or None)

    def step(self, values: Mapping[str, float], number: int) -> None:
        self.run.log({f"step/{name}": value for name, value in values.items()}, step=number)

    def epoch(self, row: MetricsRow, number: int, figures: Mapping[str, "Figure"]) -> None:
        measured: dict[str, Any] = {name: value for name, value in row.items() if value == value}
        pictures = {title: self.wandb.Image(rendered(figure)) for title, figure in figures.items()}
        self.run.log(measured | pictures, step=number * self.steps_per_epoch)

    def artifact(self, path: Path) -> None:
        self.run.save(str(path), base_path=str(path.parent), policy="now")

    def run_ended(self, status: Status) -> None:
        if self.run is not None:
            self.run.finish(exit_code=1 if status == "failed" else 0)
            if Ranks.from_environment().size > 1:
                # W&B's own process writes the rest up to the exit, where it is waited for; ranks leave by os._exit
                self.wandb.teardown()


def rendered(figure: "Figure") -> Image.Image:
    """A figure as an image. W&B itself would render it with pyplot, which our figures do without."""
    content = io.BytesIO()
    figure.savefig(content, format="png")
    return Image.open(content)
