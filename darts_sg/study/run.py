"""Studies for scripts, notebooks and the command line: `Study`, and what `study run` does."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from darts_sg.errors import UsageError
from darts_sg.study.check import check_study
from darts_sg.study.coordinator import Coordinator, prepare_folder
from darts_sg.study.executors import Settings, make_executor
from darts_sg.study.file import StudyFile, read_study, study_of
from darts_sg.study.folder import JobState, StudyFolder
from darts_sg.study.plan import StudyJob, jobs_of


def run_study(
    study: StudyFile,
    directory: str | Path,
    *,
    executor: str = "local",
    jobs: int | None = None,
    time_budget: float | None = None,
    address: str | None = None,
    slurm: Mapping[str, str | int] | None = None,
    started: float | None = None,
    say: Callable[[str], None] = print,
) -> StudyFolder:
    """Run a study in a folder, new or continued, until each job is done or has failed.

    executor: local, ray or slurm. jobs: most jobs at a time. time_budget: minutes after which jobs save and Stopped is
    raised, from `started` on the clock of time.monotonic. address: of a Ray cluster. slurm: settings such as partition.
    say: is given each line of progress.

    Raises UsageError, before the first job starts, for anything in the study that cannot work; RunError if a job fails
    for good, after all others have ended; Stopped after a signal, `study stop`, or the end of the time budget.
    """
    started = time.monotonic() if started is None else started
    path = Path(directory)
    states = StudyFolder(path).states() if path.is_dir() else {}
    done = [state.id for state in states.values() if state.state == "done"]
    configs = check_study(study, here=executor == "local", done=done)
    devices = sorted({config.device for config in configs.values()})
    if len(devices) > 1:
        raise UsageError(f"{study.source.name}: jobs ask for several devices, {' and '.join(devices)}; choose one")
    settings = Settings(
        jobs=jobs,
        threads=study.executor.threads,
        processes=study.executor.most_processes,
        device=devices[0],
        address=address,
        slurm={**study.executor.slurm, **(slurm or {})},
        minutes=study.executor.minutes,
    )
    folder = prepare_folder(path, study)
    runs_in = make_executor(executor, path, settings)
    folder.stop_file.unlink(missing_ok=True)
    deadline = None if time_budget is None else started + 60 * time_budget
    Coordinator(folder, study, runs_in, deadline=deadline, started=started, say=say).run()
    return folder


class Study:
    """A study from a YAML file, or from a mapping with the same keys.

    >>> study = Study("examples/studies/demo.yaml")  # doctest: +SKIP
    >>> [job.id for job in study.plan()]  # doctest: +SKIP
    >>> study.run("studies/demo")  # doctest: +SKIP
    >>> study.results("studies/demo")["genotypes"]  # doctest: +SKIP

    Raises UsageError, with the line of the file, for what is wrong with it.
    """

    def __init__(self, source: str | Path | Mapping[str, Any]) -> None:
        self.file: StudyFile = study_of(source) if isinstance(source, Mapping) else read_study(source)

    def plan(self) -> tuple[StudyJob, ...]:
        """The jobs in their order, after everything that can be checked without running one was checked."""
        check_study(self.file)
        return jobs_of(self.file)

    def run(self, directory: str | Path, **options: Any) -> dict[str, JobState]:
        """Run all jobs in a folder, or continue there; returns their states by id.

        options: executor, jobs, time_budget and the others of `run_study`.
        """
        return run_study(self.file, directory, **options).states()

    def results(self, directory: str | Path) -> Mapping[str, Any]:
        """The content of results.json; UsageError if the study has not got that far."""
        import json

        path = StudyFolder.open(directory).path / "results.json"
        if not path.is_file():
            raise UsageError(f"{directory} has no results.json yet; see `study status` for its jobs")
        content: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return content

    def __repr__(self) -> str:
        return f"Study({self.file.title!r}, {len(jobs_of(self.file))} jobs)"
