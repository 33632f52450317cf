"""`fit` for scripts, notebooks and the command line, and its result."""

import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from darts_sg.api import RetrainResult, SearchResult, left_as_found
from darts_sg.engine.distributed import Ranks
from darts_sg.errors import UsageError
from darts_sg.fitting.choices import Choice
from darts_sg.fitting.job import run_fit
from darts_sg.fitting.state import State
from darts_sg.genotype import Genotype, load_genotype
from darts_sg.tasks.classified import FILE, Classified, read_classified


class FitResult:
    """A finished fit, read from its folder when asked for."""

    def __init__(self, run_dir: str | Path) -> None:
        self.run_dir = Path(run_dir)
        """The folder, with report.html, report.md and pictures/."""
        self._state = State.read(self.run_dir)

    @property
    def accuracy(self) -> float:
        """Share of the test images whose class is right."""
        return float((self._state.done("test") or {})["accuracy"])

    @property
    def interval(self) -> tuple[float, float]:
        """The 95% interval of the accuracy by the choice of the test images (Wilson)."""
        low, high = (self._state.done("test") or {})["interval"]
        return low, high

    @property
    def choices(self) -> list[Choice]:
        """What was chosen: name, value and reason."""
        return [Choice(*each) for each in self._state["choices"]]

    @property
    def genotype(self) -> Genotype:
        """The cells of the network."""
        return load_genotype(self.run_dir / "genotype.yaml")

    @property
    def doubt(self) -> str:
        """Why the cells cannot be told from random ones; empty if the search chose them."""
        return str((self._state.done("derive") or {})["doubt"])

    @property
    def params(self) -> int:
        """Parameters of the network, without auxiliary head."""
        return int((self._state.done("derive") or {})["params"])

    @property
    def macs(self) -> int:
        """Multiply-adds of the network for one image."""
        return int((self._state.done("derive") or {})["macs"])

    @property
    def weights(self) -> Path:
        """The weights file, for `evaluate` and `predict`."""
        return self.run_dir / "weights.safetensors"

    @property
    def predictions(self) -> Classified:
        """The classes and the most probable answers of the test images, with `confusion()` and `calibration()`."""
        return read_classified(self.run_dir / FILE)

    @property
    def compared(self) -> dict[str, dict[str, Any]]:
        """The comparison with each baseline, by name; empty without `compare`."""
        return dict(self._state.done("compare") or {})

    @property
    def search(self) -> SearchResult:
        """The run folder of the search."""
        return SearchResult(self.run_dir / "search")

    @property
    def retrain(self) -> RetrainResult:
        """The run folder of the training."""
        return RetrainResult(self.run_dir / "retrain")

    def __repr__(self) -> str:
        low, high = self.interval
        return (
            f"FitResult(test accuracy: {self.accuracy:.1%} ({low:.1%} to {high:.1%}), parameters: {self.params:,}, "
            f"MACs: {self.macs:,}, folder: {self.run_dir})"
        )


def fit(
    data: str | Path | None = None,
    *,
    resume: str | Path | None = None,
    dry_run: bool = False,
    callbacks: Iterable[Any] = (),
    stop: threading.Event | None = None,
    started: float | None = None,
    **options: Any,
) -> FitResult | None:
    """Search, train, test and report a network for a folder of images; returns the result, None for a dry run.

    data: a folder with a folder of images for each class. `options` are those of `darts-sg fit --help`, with
    underscores: minutes, max_params, max_macs, output, compare, run_dir, … resume: the folder of a fit to continue.
    callbacks, stop: as in `search`, for both runs. started: when the time begins, on the clock of time.monotonic;
    default: this call.

    Raises UsageError for what cannot be done as asked, RunError for a run that fails, Stopped for one that was stopped.
    """
    started = time.monotonic() if started is None else started
    if Ranks.from_environment().size > 1:
        raise UsageError("fit runs in one process; start it without torchrun")
    given = options if data is None else {"data": str(data), **options}
    with left_as_found():
        folder = run_fit(
            given, resume=None if resume is None else Path(resume), dry=dry_run, callbacks=list(callbacks), stop=stop,
            started=started,
        )  # fmt: skip
    return None if folder is None else FitResult(folder)
