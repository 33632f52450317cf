"""Measures the overhead of a study beside its jobs.

    python -m benchmarks.study_overhead STUDY [STUDY …]

Reads the folders of finished studies, each run from start to end by one `study run`. The overhead is

    (wall time x jobs at a time - idle places at the end) / (sum of the jobs' own wall times) - 1

where the wall time is that of `study run` from the start of its process to its last line, and a job's own wall time is
that of its process: Python and PyTorch are loaded for it as they would be by hand. The idle places, while the last
jobs run and none is left to start, depend on the lengths of the jobs, so they are shown apart.
"""

import argparse
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from darts_sg.errors import UsageError
from darts_sg.study.folder import JobState, StudyFolder

BEGUN = re.compile(r"coordinator: \d+ jobs on .*?(\d+) jobs? at a time.*, ([\d.]+) s after its start$")
ENDED = re.compile(r"coordinator: (\d+) jobs done, 0 failed, ([\d.]+) s after its start$")


@dataclass(frozen=True)
class Overhead:
    """Seconds of a study, all but `wall` and `before` summed over the places for jobs."""

    num_jobs: int
    places: int
    """Jobs at a time."""
    wall: float
    """Seconds of the whole command."""
    before: float
    """Seconds until the first job could be started: imports, checks of the study, the start of Ray."""
    jobs: float
    """The jobs' own wall times."""
    startup: float
    """Part of `jobs`: until the processes of the jobs began to work."""
    idle: float
    """Places without a job while the last jobs ran."""

    @property
    def share(self) -> float:
        """The overhead, as a share of the jobs."""
        return (self.wall * self.places - self.idle) / self.jobs - 1


def overhead_of(folder: StudyFolder) -> Overhead:
    """The overhead of a finished study; UsageError if it was interrupted, or ran in several coordinators."""
    lines = list(folder.log_lines())
    begun = [found for text in lines if (found := BEGUN.search(text))]
    ended = [found for text in lines if (found := ENDED.search(text))]
    jobs = list(folder.states().values())
    disturbed = next((job.id for job in jobs if job.state != "done" or job.attempts or job.losses), "")
    if len(begun) != 1 or len(ended) != 1 or disturbed:
        reason = f"job {disturbed} was not done at once" if disturbed else "it did not run from start to end at once"
        raise UsageError(f"{folder.path}: {reason}; run the study in a new folder, undisturbed")
    return Overhead(
        num_jobs=len(jobs),
        places=int(begun[0][1]),
        wall=float(ended[0][2]),
        before=float(begun[0][2]),
        jobs=sum(job.startup + job.seconds for job in jobs),
        startup=sum(job.startup for job in jobs),
        idle=_idle(jobs, int(begun[0][1])),
    )


def _idle(jobs: Sequence[JobState], places: int) -> float:
    """Seconds that places were empty between the start of the last job and the end of the last."""
    starts = [(job.started or 0.0) - job.startup for job in jobs]
    ends = [job.ended or 0.0 for job in jobs]
    last_start, last_end = max(starts), max(ends)
    running = [end for end in ends if end > last_start]
    return sum(last_end - end for end in running) + (places - len(running)) * (last_end - last_start)


def text_of(folder: StudyFolder) -> str:
    """A few lines about a study's overhead."""
    found = overhead_of(folder)
    total = found.wall * found.places
    rest = total - found.jobs - found.idle - found.before * found.places
    return (
        f"{folder.path}: {found.num_jobs} jobs, {found.places} at a time, {found.wall:.1f} s\n"
        f"  the jobs' own wall times  {found.jobs:9.1f} s, {found.startup:.1f} s of it until they began to work\n"
        f"  before the first job      {found.before * found.places:9.1f} s\n"
        f"  between jobs, results     {rest:9.1f} s\n"
        f"  idle at the end           {found.idle:9.1f} s, left out\n"
        f"  overhead                  {100 * found.share:9.2f}%"
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.study_overhead", description=__doc__.splitlines()[0])
    parser.add_argument("studies", nargs="+", metavar="STUDY")
    try:
        print("\n".join(text_of(StudyFolder.open(path)) for path in parser.parse_args().studies))
    except UsageError as error:
        sys.exit(f"study_overhead: {error}")


if __name__ == "__main__":
    main()
