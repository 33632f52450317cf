"""A study of seconds for tests, and an executor that runs its jobs in the process of the test."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from darts_sg.study.coordinator import Coordinator, prepare_folder
from darts_sg.study.executors import Ended, Request
from darts_sg.study.file import StudyFile, parse_study
from darts_sg.study.folder import StudyFolder
from darts_sg.study.worker import work

SMALL = """\
title: Small
data: {dataset: synthetic, kernels: pytorch}
search: {epochs: 2, channels: 2, cells: 3, nodes: 1, batch_size: 8, train_images: 16, validation_images: 16}
retrain: {recipe: demo, epochs: 1, train_images: 16, batch_size: 8, channels: 2, cells: 3, auxiliary_weight: 0}
spaces: [skip_connect+max_pool_3x3]
methods:
  first: {recipe: darts-first}
seeds: {search: [0], retrain: [0]}
genotypes: {name: "{method}_{seed}"}
"""
SEARCH = "search_skip_connect+max_pool_3x3_first_s0"
RETRAIN = "retrain_first_0_s0"


class Inline:
    """Runs a job at once, in this process."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.started = StudyFolder(folder), list[str]()
        self._ended: list[Ended] = []

    def start(self, requests: Sequence[Request], busy: int = 0) -> list[str]:
        for request in requests[:1]:
            self.started.append(request.job_id)
            code = work(self.folder, request.job_id, over=request.over, threads=1, minutes=request.minutes)
            self._ended.append(Ended(request.job_id, code))
        return [request.job_id for request in requests[:1]]

    def running(self) -> set[str]:
        return {ended.job_id for ended in self._ended}

    def ended(self) -> list[Ended]:
        found, self._ended = self._ended, []
        return found

    def wait(self, seconds: float) -> None:
        """All jobs have ended when `start` returns."""

    def stop(self) -> None:
        """Nothing runs beside this process."""

    kill = close = stop

    def describe(self) -> str:
        return "this process"


def changed(old: str, new: str) -> str:
    """The text of the small study with a change."""
    assert old in SMALL
    return SMALL.replace(old, new, 1)


def study_in(path: Path, text: str = SMALL) -> tuple[StudyFolder, StudyFile]:
    """The folder of a study that has not begun, or goes on with the file `text`."""
    study = parse_study(text)
    return prepare_folder(path, study), study


def run_inline(path: Path, text: str = SMALL, **options: Any) -> Inline:
    """Run a study in this process; returns the executor, which knows what it started."""
    folder, study = study_in(path, text)
    executor = Inline(path)
    Coordinator(folder, study, executor, say=lambda line: None, **options).run()
    return executor
