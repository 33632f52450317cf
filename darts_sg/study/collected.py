"""Everything that the folder of a study holds so far, as records that pandas takes, with their statistics."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from darts_sg.analysis.run_folder import Run
from darts_sg.study.findings import ASKED, Findings, compute
from darts_sg.study.run_records import Record
from darts_sg.study.statistics import counted
from darts_sg.study.verdicts import evaluate_claims

DONE, RUNNING, FAILED, WAITING = STATES = ("done", "running", "failed", "waiting")
"""States of a job: finished; in the hands of a process; given up after its retries; not begun, or to be continued."""


@dataclass(frozen=True)
class StudyResults:
    """What a study has measured so far. All records are plain dicts: `pandas.DataFrame(results.trainings)` works."""

    folder: Path
    title: str
    jobs: Sequence[Record] = ()
    """One for each job of the plan: what jobs/ID.json says of it, such as state, seconds, device and failure."""
    searches: Sequence[Record] = ()
    """One for each search that has begun: space, method, seed, beliefs, derived cell and cost."""
    trainings: Sequence[Record] = ()
    """One for each training that has begun: genotype, where it comes from, seed, error and cost."""
    published: Sequence[Record] = ()
    """Figures of publications, which no other record holds."""
    asked: Sequence[ASKED] = ()
    """What the study compares."""
    correct: bool = True
    """Whether it asks for Holm's correction."""
    claims_asked: Sequence[Any] = ()
    """The claims of the study file."""
    curves: Sequence[Record] = ()
    """An anytime curve for each run that has an epoch."""
    params: Mapping[str, int] = field(default_factory=dict)
    """Parameters at C=36, 20 cells of the genotypes that are known."""
    runs: Mapping[str, Run] = field(default_factory=dict)
    """The run folders, by job."""

    @cached_property
    def findings(self) -> Findings:
        """The statistics."""
        return compute(self.searches, self.trainings, self.asked, self.correct)

    @cached_property
    def claims(self) -> list[Record]:
        """Each claim with its verdict and its conditions as evaluated."""
        return evaluate_claims(self.claims_asked, self.findings, self.jobs, self.params)

    @property
    def counts(self) -> dict[str, int]:
        """Number of jobs in each state that occurs."""
        states = [job["state"] for job in self.jobs]
        return {state: states.count(state) for state in STATES if state in states}

    @property
    def is_complete(self) -> bool:
        return all(job["state"] == DONE for job in self.jobs)

    @property
    def state(self) -> str:
        """How far the study is, in words: `Not finished: 8 done, 1 running, 3 waiting of 12 jobs.`"""
        if self.is_complete:
            return f"Finished: {counted(self.jobs, 'job')} done."
        parts = [f"{number} {state}" for state, number in self.counts.items()]
        return f"Not finished: {', '.join(parts)} of {counted(self.jobs, 'job')}."
