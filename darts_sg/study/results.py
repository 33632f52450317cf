"""Collects what the folder of a study holds so far, as records that pandas takes, and writes results.json."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from darts_sg.analysis.cost import derived_counts
from darts_sg.analysis.measured import distinctions, setting
from darts_sg.analysis.run_folder import Run, read_run
from darts_sg.config import compared_options
from darts_sg.files import write_atomically
from darts_sg.genotype import load_genotype
from darts_sg.study.anytime import anytime_curve
from darts_sg.study.collected import DONE, RUNNING, WAITING, StudyResults
from darts_sg.study.contents import Section, contents
from darts_sg.study.file import StudyFile
from darts_sg.study.folder import StudyFolder, read_state
from darts_sg.study.plan import StudyJob, jobs_of
from darts_sg.study.run_records import (
    Record,
    any_seed,
    arm_name,
    group_name,
    search_record,
    training_record,
    training_setting,
)

NOTED = (
    "attempts", "losses", "failure", "seconds", "cpu_seconds", "device", "images_per_second", "peak_memory",
    "cpu_joules", "gpu_joules", "out_of_memory", "owner", "started", "ended",
)  # fmt: skip
"""What a job's record takes over from jobs/ID.json; see JobState."""


def collect(folder: str | Path) -> StudyResults:
    """Read everything that the folder of a study holds so far, finished or not.

    Raises UsageError if `folder` is not the folder of a study, or if a file in it is damaged.
    """
    opened = StudyFolder.open(folder)
    study = opened.study()
    return collect_jobs(opened, study, jobs_of(study))


def collect_jobs(folder: StudyFolder, study: StudyFile, jobs: Sequence[StudyJob]) -> StudyResults:
    """Read the files and run folders of these jobs. Raises UsageError if one of them is damaged."""
    runs = {job.id: run for job in jobs if (run := _run(folder.run_dir(job.id))) is not None}
    states = [_job_record(folder.state_file(job.id), job, runs.get(job.id)) for job in jobs]
    searches: list[Record] = []
    trainings: list[Record] = []
    for job, state in zip(jobs, states, strict=True):
        run = runs.get(job.id)
        if run is None:
            continue
        known = {key: state[key] for key in ("id", "state", "seed", "space", "method")}
        if job.kind == "search":
            searches.append({**known, **search_record(run), "genotype": job.genotype})
        else:
            trainings.append({**known, **_origin(job), **training_record(run)})
    _name_settings(trainings, runs)
    curves = [curve for record in (*searches, *trainings) for curve in _curve(record, runs[record["id"]])]
    return StudyResults(
        folder=folder.path,
        title=study.title,
        jobs=states,
        searches=searches,
        trainings=trainings,
        published=_published(study),
        asked=tuple((one.a, one.b, one.subject) for one in study.comparisons),
        correct=study.correction == "holm",
        claims_asked=study.claims,
        curves=curves,
        params=_params(folder, jobs),
        runs=runs,
    )


def write_results(folder: str | Path) -> Path:
    """Write STUDY/results.json: the state, all records, tables and verdicts as data; return its path.

    The same folder gives the same bytes. Raises UsageError as `collect` does.
    """
    results = collect(folder)
    path = results.folder / "results.json"
    write_atomically(path, results_text(results, contents(results)))
    return path


def results_text(results: StudyResults, sections: Sequence[Section]) -> str:
    """The text of results.json."""
    content = {
        "title": results.title,
        "complete": results.is_complete,
        "state": results.state,
        "counts": results.counts,
        "open_jobs": [job for job in results.jobs if job["state"] != DONE],
        "claims": results.claims,
        "genotypes": [
            {**vars(one), "mean": one.spread.mean, "deviation": one.spread.deviation}
            for one in results.findings.genotypes
        ],
        "tables": {
            table.name: {
                "title": table.title,
                "note": table.note,
                "rows": table.records(),
                "markdown": table.markdown(),
            }
            for section in sections
            for table in section.tables
        },
        "jobs": results.jobs,
        "searches": results.searches,
        "trainings": results.trainings,
        "published": results.published,
    }
    return json.dumps(_finite(content), indent=1, ensure_ascii=False, allow_nan=False, default=str) + "\n"


def _finite(value: Any) -> Any:
    """A value for JSON, with None instead of NaN and infinities."""
    if isinstance(value, Mapping):
        return {str(key): _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return value


def _run(folder: Path) -> Run | None:
    """The run in a folder; None while it is not begun."""
    return read_run(folder) if (folder / "config.yaml").is_file() else None


def _job_record(path: Path, job: StudyJob, run: Run | None) -> Record:
    """What is known of a job. A finished run counts as done, whatever its job file says: the folder is the truth."""
    planned = {
        "id": job.id, "kind": job.kind, "space": job.space, "method": job.method, "genotype": job.genotype,
        "genotype_kind": job.genotype_kind, "seed": job.seed,
    }  # fmt: skip
    noted = asdict(read_state(path)) if path.is_file() else {"state": WAITING if run is None else RUNNING}
    state = DONE if run is not None and run.finished else noted["state"]
    return {**planned, **{name: noted.get(name) for name in NOTED}, "state": state}


def _params(folder: StudyFolder, jobs: Iterable[StudyJob]) -> dict[str, int]:
    """Parameters at C=36, 20 cells of the genotypes that are known: their files are written once they are final."""
    names = dict.fromkeys(job.genotype for job in jobs)
    there = {name: path for name in names if (path := folder.genotype_file(name)).is_file()}
    counts = derived_counts([load_genotype(path) for path in there.values()])
    return {name: params for name, (params, _) in zip(there, counts, strict=True)}


def _origin(job: StudyJob) -> Record:
    """The genotype of a training, and the search that it comes from."""
    return {
        "genotype": job.genotype,
        "kind": job.genotype_kind,
        "search": job.depends_on[0] if job.depends_on else None,
        "search_seed": job.found.seed if job.found is not None and job.depends_on else None,
    }


def _published(study: StudyFile) -> list[Record]:
    """What the sources of the references report of them."""
    records = []
    for name in study.wanted.references:
        provenance = load_genotype(name).provenance
        figures = provenance.get("published") or {}
        source = str(provenance.get("source", ""))
        records.append(
            {
                "title": name,
                "error": figures.get("cifar10_error"),
                "deviation": figures.get("cifar10_error_deviation"),
                "params": figures.get("params_millions"),
                "source": source,
            }
        )
    return [one for one in records if one["error"] is not None]


def _name_settings(trainings: Iterable[Record], runs: Mapping[str, Run]) -> None:
    """Give each training its setting: data and scale, and what tells it from others of the same data and scale.

    Which model is trained is what a study compares, no part of the setting.
    """
    compared = {name: default for name, default in compared_options("augment").items() if name != "model"}
    settings = {record["id"]: setting(runs[record["id"]], compared) for record in trainings}
    keys = {name: (any_seed(key[0]), *key[1:]) for name, key in settings.items()}
    apart = distinctions(set(keys.values()), compared)
    for record in trainings:
        record["setting"] = training_setting(runs[record["id"]]) + apart[keys[record["id"]]]


def _curve(record: Record, run: Run) -> Iterable[Record]:
    """The anytime curve of a run, on the held-out images if it has any."""
    for part in ("validation", "test"):
        if curve := anytime_curve(run.rows, f"{part}_accuracy"):
            kind = "search" if run.job == "search" else "training"
            group = arm_name(record["space"], record["method"]) if kind == "search" else group_name(record)
            yield {
                "id": record["id"], "kind": kind, "group": group, "seed": record["seed"], "part": part, "curve": curve,
                "setting": record["setting"], "machine": record["machine"],
            }  # fmt: skip
            return
