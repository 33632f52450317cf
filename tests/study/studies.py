"""A made-up study for tests: its file, the states of its jobs, and run folders with known figures."""

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np

from darts_sg.genotype import Genotype, load_genotype, renamed
from darts_sg.study.file import read_study
from darts_sg.study.folder import StudyFolder
from darts_sg.study.plan import StudyJob, jobs_of
from tests.analysis.fakes import varied_search
from tests.analysis.runs import make_run, searched

TEXT = """\
title: Does the block <help>?
data: {dataset: cifar10}
search: {channels: 8, cells: 5, epochs: 3}
retrain: {channels: 16, cells: 8, epochs: 15}
spaces:
  darts: {genotype: "DARTS_{seed}"}
  darts+sandglass: {genotype: "SG_{seed}"}
methods:
  first: {}
seeds: {search: [0, 1], retrain: [0, 1, 2]}
genotypes: {references: [DARTS_V2], random: {count: 1, seeds: [0]}}
compare:
  - [darts+sandglass, darts]
  - [SG_0, DARTS_0]
  - [SG_1, DARTS_V2]
claims:
  smaller:
    of: darts+sandglass
    against: darts
    conditions: {fewer_parameters: {percent: 25, than: DARTS_V2}, no_worse: {points: 2}}
"""
ERRORS = {
    "DARTS_0": (12.4, 11.8, 12.6),
    "DARTS_1": (13.0, 12.8, 13.4),
    "SG_0": (12.0, 11.0, 12.5),
    "SG_1": (12.2, 12.1, 11.9),
    "DARTS_V2": (11.5, 12.1, 11.7),
    "darts_random_0": (14.0,),
    "darts+sandglass_random_0": (13.5,),
}
"""By genotype, at the training seeds 0, 1, …"""
CELLS = {
    "DARTS_0": "PDARTS",
    "DARTS_1": "PC_DARTS_cifar",
    "SG_0": "DARTS_V1",
    "SG_1": "GDAS_V1",
    "darts_random_0": "DrNAS_cifar10",
    "darts+sandglass_random_0": "DrNAS_imagenet",
}
ACCURACIES = {"DARTS_0": 60.0, "DARTS_1": 58.0, "SG_0": 61.0, "SG_1": 59.0}


def made_up_study(folder: Path, without: tuple[str, ...] = (), failed: tuple[str, ...] = ()) -> list[StudyJob]:
    """The folder of a study in which all jobs are done, but those of the ids `without`; returns all jobs of its plan.

    The search of SG_1 has mixing weights, and metrics with a time; `failed` have a state that says so.
    """
    (folder / "genotypes").mkdir(parents=True)
    (folder / "study.yaml").write_text(TEXT)
    jobs = list(jobs_of(read_study(folder / "study.yaml")))
    states = StudyFolder(folder)
    for job in jobs:
        states.add_state(job)
        state = states.state(job.id)
        if job.id in failed:
            states.write_state(
                state.changed(state="failed", attempts=3, seconds=7.0, failure="OSError: the disk is full")
            )
        elif job.id not in without:
            known = states.genotype_file(job.genotype)
            _run(folder / "runs" / job.id, job, load_genotype(known) if known.is_file() else cells_of(job.genotype))
            if not known.is_file():
                renamed(load_genotype(folder / "runs" / job.id / "genotype.yaml"), job.genotype).save(known)
            states.write_state(
                state.changed(
                    state="done",
                    seconds=1800.0,
                    cpu_seconds=3600.0,
                    device="a machine",
                    images_per_second=100.0,
                    gpu_joules=3.6e6,
                )
            )
    return jobs


def cells_of(name: str) -> Genotype:
    """The genotype of that name in the study."""
    return renamed(load_genotype(CELLS.get(name, name)), name)


def _run(folder: Path, job: StudyJob, cells: Genotype) -> None:
    if job.kind == "retrain":
        make_run(folder, cells, ERRORS[job.genotype][job.seed], seed=job.seed)
    elif job.genotype == "SG_1":
        varied_search(folder, 3, nodes=4, seed=job.seed, channels=8, cells=5)
        _with_times(folder)
        found = searched("GDAS_V1", job.space, job.seed, ACCURACIES[job.genotype], channels=8, cells=5, epochs=3)
        last = load_genotype(folder / "genotypes" / "epoch_0003.yaml")
        replace(last, provenance=found.provenance).save(folder / "genotype.yaml")
    else:
        found = searched(cells, job.space, job.seed, ACCURACIES[job.genotype])
        make_run(folder, found, seed=job.seed, epochs=3)


def _with_times(folder: Path) -> None:
    """Metrics whose validation accuracies are 0.4, 0.3 and 0.59, one an hour, with skip connections and eigenvalues."""
    with (folder / "metrics.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        columns = "train_loss", "validation_accuracy", "entropy_normal", "entropy_reduce", "skips_normal", "eigenvalue"
        writer.writerow(["epoch", *columns, "seconds"])
        for epoch, accuracy in enumerate((0.4, 0.3, 0.59), start=1):
            measured = [np.log(4) / epoch, np.log(4), 2 * epoch, 0.25 if epoch == 2 else np.nan]
            writer.writerow([epoch, 2.0, accuracy, *measured, 3600 * epoch])
