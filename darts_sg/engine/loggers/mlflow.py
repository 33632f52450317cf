"""MLflow (the extra `mlflow`): options as parameters, metrics, figures and result files of a run.

MLFLOW_TRACKING_URI chooses the server or store, MLFLOW_EXPERIMENT_NAME the experiment (default: darts_sg). Without a
tracking URI the store is a SQLite file in the run folder: mlflow ui --backend-store-uri sqlite:///RUN/mlflow/mlflow.db

A resumed run continues the same MLflow run: its id and the store are kept in loggers.json.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from darts_sg.engine.loggers.logger import LoggedRun, Logger, Status
from darts_sg.engine.loggers.optional import optional_package
from darts_sg.records import MetricsRow

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EXPERIMENT = "darts_sg"
STATUSES: dict[Status, str] = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
OWN_STORE = "run folder"
LONGEST_VALUE = 500
"""Characters of a parameter that every MLflow store takes."""


class MlflowLogger(Logger):
    """Logs through MLflow's client: the module's own functions would share a global active run with the user's code."""

    wants_figures = True

    def __init__(self) -> None:
        self.mlflow = optional_package("mlflow")
        self.client: Any = None
        self.id = ""
        self.steps_per_epoch = 0

    def run_started(self, run: LoggedRun) -> None:
        known = run.recall("mlflow")
        self.steps_per_epoch = run.steps_per_epoch
        store = run.folder.resolve() / "mlflow"
        # a resumed run stays in the store it began in: a store in the run folder (OWN_STORE), or a server
        uri = known.get("tracking_uri") or os.environ.get("MLFLOW_TRACKING_URI") or OWN_STORE
        own = uri == OWN_STORE
        if own:
            store.mkdir(exist_ok=True)
            uri = f"sqlite:///{store / 'mlflow.db'}"
        # without a registry URI the client would look for a registry of models in ./mlruns
        self.client = self.mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri)
        if known:
            self.id = known["run_id"]
            self.client.update_run(self.id, status="RUNNING")
            return
        artifacts = (store / "artifacts").as_uri() if own else None
        experiment = self._experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT, artifacts)
        self.id = self.client.create_run(experiment, run_name=run.folder.name, tags={"job": run.job}).info.run_id
        # not by its path, for the folder may be moved; and no URI with a password, which has to be given again
        kept = OWN_STORE if own else None if "@" in uri else uri
        run.remember("mlflow", run_id=self.id, tracking_uri=kept)
        environment = {f"environment/{name}": value for name, value in run.environment.items()}
        params = [
            self.mlflow.entities.Param(name, str(value)[:LONGEST_VALUE])
            for name, value in (*run.options.items(), *environment.items())
            if value not in (None, "") and not isinstance(value, dict)
        ]
        self.client.log_batch(self.id, params=params)

    def step(self, values: Mapping[str, float], number: int) -> None:
        self._log({f"step/{name}": value for name, value in values.items()}, number)

    def epoch(self, row: MetricsRow, number: int, figures: Mapping[str, "Figure"]) -> None:
        self._log(row, number)
        for title, figure in figures.items():
            self.client.log_figure(self.id, figure, f"{title.replace(' ', '_')}/epoch_{number:04d}.png")

    def artifact(self, path: Path) -> None:
        self.client.log_artifact(self.id, str(path))

    def run_ended(self, status: Status) -> None:
        if self.id:
            self.client.set_terminated(self.id, STATUSES[status])

    def _experiment(self, name: str, artifacts: str | None) -> str:
        found = self.client.get_experiment_by_name(name)
        identifier: str = found.experiment_id if found else self.client.create_experiment(name, artifacts)
        return identifier

    def _log(self, values: Mapping[str, float], number: int) -> None:
        now = self.mlflow.utils.time.get_current_time_millis()
        metrics = [
            self.mlflow.entities.Metric(name, value, now, number) for name, value in values.items() if value == value
        ]
        self.client.log_batch(self.id, metrics=metrics)
