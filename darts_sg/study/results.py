"""Collects what the folder of a study holds so far, as records that pandas takes, and writes results.json."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from darts_sg.analysis.run_folder import Run
from darts_sg.study.anytime import anytime_curve
from darts_sg.study.chart import Chart, Series
from darts_sg.study.run_records import Record, operations_by_epoch

DONE, FAILED, RUNNING, MISSING = "done", "failed", "running", "missing"
"""States of a job: finished; given up after its retries; begun; not begun."""


@dataclass(frozen=True)
class StudyResults:
    """What a study has measured so far. All records are plain dicts: `pandas.DataFrame(results.trainings)` works."""

    folder: Path
    title: str
    jobs: Sequence[Record] = ()
    """One for each job of the plan: id, kind, state, attempts, seconds, device and the last line of a failed one."""
    searches: Sequence[Record] = ()
    """One for each search that has begun: space, method, seed, beliefs, derived cell and cost."""
    trainings: Sequence[Record] = ()
    """One for each training that has begun: genotype, where it comes from, seed, error and cost."""
    published: Sequence[Record] = ()
    """Figures of publications, which no other record holds."""
    pairs: Sequence[tuple[str, str]] = ()
    """What the study compares."""
    correct: bool = True
    """Whether it asks for Holm's correction."""
    claims: Sequence[Record] = ()
    """Each claim with its verdict and its conditions as evaluated."""
    curves: Sequence[Record] = ()
    """An anytime curve for each run that has an epoch."""
    runs: Mapping[str, Run] = field(default_factory=dict)
    """The run folders, by job."""

    @property
    def counts(self) -> dict[str, int]:
        """Number of jobs in each state that occurs."""
        states = [job["state"] for job in self.jobs]
        return {state: states.count(state) for state in (DONE, RUNNING, FAILED, MISSING) if state in states}

    @property
    def is_complete(self) -> bool:
        return all(job["state"] == DONE for job in self.jobs)

    @property
    def state(self) -> str:
        """How far the study is, in words: `Finished: all 12 jobs are done.`"""
        if self.is_complete:
            return f"Finished: all {len(self.jobs)} jobs are done."
        words = {DONE: "done", RUNNING: "running", FAILED: "failed", MISSING: "not begun"}
        parts = [f"{number} {words[state]}" for state, number in self.counts.items()]
        return f"Not finished: of {len(self.jobs)} jobs {', '.join(parts)}."

    def search_charts(self) -> list[Chart]:
        """Entropy of the mixing weights over the epochs, one curve for each search."""
        charts = []
        arms = list(dict.fromkeys((one["space"], one["method"]) for one in self.searches))
        for cell, title in (("normal", "normal cell"), ("reduce", "reduction cell")):
            series, seen, seeds = [], set[int](), []
            for one in self.searches:
                run = self.runs.get(one["id"])
                points = [
                    (row["epoch"], row[f"entropy_{cell}"])
                    for row in (run.rows if run else ())
                    if row.get(f"entropy_{cell}", float("nan")) == row.get(f"entropy_{cell}")
                ]
                if points:
                    arm = arms.index((one["space"], one["method"]))
                    name = " · ".join(filter(None, (one["space"], one["method"])))
                    series.append(Series(name, points, arm, "line", [one["id"]], in_legend=arm not in seen))
                    seen.add(arm)
                    seeds.append(one["seed"])
            if series:
                settings = "; ".join(dict.fromkeys(str(one["setting"]) for one in self.searches if one.get("setting")))
                machines = "; ".join(dict.fromkeys(str(one["machine"]) for one in self.searches if one.get("machine")))
                caption = f"{settings}; seeds {', '.join(map(str, sorted(set(seeds))))}; {machines}."
                label = "entropy, averaged over the edges"
                charts.append(
                    Chart(f"entropy_{cell}", f"Entropy of the mixing weights, {title}", caption, "epoch", label, series)
                )
        return charts
