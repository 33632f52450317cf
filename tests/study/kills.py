"""A study whose coordinators and workers are killed at random moments ends with the results of an undisturbed one.

    python -m tests.study.kills --kills 30 --seed 0

Every job's rows, cells and errors and the tables of results.json must be those of the undisturbed study. Takes minutes,
so it is no part of `make test`. Prints the seed of the moments and the kills by victim; raises AssertionError with the
folder of the study if a result differs, or if a job ran in two processes at once.
"""

import argparse
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

from darts_sg.analysis.run_folder import read_metrics
from darts_sg.genotype import load_genotype
from darts_sg.study import claims
from darts_sg.study.folder import StudyFolder
from darts_sg.study.results import write_results

STUDY = """\
title: A study that is killed
data: {dataset: synthetic, kernels: pytorch, checkpoint_minutes: 0.01}
search: {epochs: 3, channels: 4, cells: 3, nodes: 2, batch_size: 16, train_images: 64, validation_images: 64}
retrain: {recipe: demo, epochs: 2, train_images: 128, batch_size: 16, channels: 4, cells: 3}
spaces: [darts]
methods:
  first: {recipe: darts-first}
  gumbel: {recipe: gumbel}
seeds: {search: [0], retrain: [0, 1]}
genotypes: {random: {count: 1}}
compare: [[first, gumbel]]
executor: {losses: 1000, threads: 1}
"""
TIMES = ("seconds", "images_per_second")
MEASURED = ("cost",)
"""Tables that hold times and memory, which a kill changes."""


def run(kills: int = 30, seed: int = 0, folder: Path | None = None) -> None:
    """Kill a study `kills` times, and compare its results with those of one that is left alone.

    A study that ends before has been compared; the kills go on in a new one.
    """
    if folder is None:
        with tempfile.TemporaryDirectory(prefix="kills-") as made:
            return run(kills, seed, Path(made))
    file = folder / "study.yaml"
    file.write_text(STUDY)
    undisturbed = folder / "undisturbed"
    start(file, undisturbed).wait()
    expected, moments = (results(undisturbed), tables(undisturbed)), random.Random(seed)
    met: Counter[str] = Counter()
    studies = 0
    while met.total() < kills:
        killed = folder / f"killed_{studies}"
        disturb(file, killed, moments, met, kills)
        assert results(killed) == expected[0], f"the results differ: {killed}"
        assert tables(killed) == expected[1], f"the tables differ: {killed}"
        studies += 1
    victims = ", ".join(f"{victim} {number}" for victim, number in met.most_common())
    print(f"{met.total()} kills ({victims}) in {studies} studies, seed {seed}")
    print(f"results and tables ({', '.join(expected[1])}) are those of the undisturbed study")


def disturb(file: Path, killed: Path, moments: random.Random, met: Counter[str], kills: int) -> None:
    """Run a study to its end while coordinators and workers are killed, until `met` holds `kills` of them."""
    coordinators = [start(file, killed)]
    while met.total() < kills:
        time.sleep(moments.uniform(0.5, 8.0))
        coordinators = [process for process in coordinators if process.poll() is None]
        if not coordinators:
            if finished(killed):
                return
            coordinators.append(start(file, killed))
            continue
        match victim := moments.choice(["coordinator", "worker", "worker", "all", "second coordinator"]):
            case "second coordinator":
                if len(coordinators) < 2:
                    coordinators.append(start(file, killed))
                continue
            case "coordinator":
                victims = [moments.choice(coordinators).pid]
            case "worker":
                victims = [moments.choice(found)] if (found := workers(killed)) else []
            case "all":
                victims = [*(process.pid for process in coordinators), *workers(killed)]
        for pid in victims:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        met[victim] += bool(victims)
    for process in coordinators:
        process.wait()
    while not finished(killed):
        assert start(file, killed).wait() == 0, f"the study did not end: {killed}"


def start(file: Path, folder: Path) -> "subprocess.Popen[bytes]":
    """A coordinator in a process of its own."""
    words = [sys.executable, "-m", "darts_sg", "study", "run", str(file), "--dir", str(folder), "--jobs", "2"]
    return subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)


def workers(path: Path) -> list[int]:
    """The processes that run jobs now; AssertionError if two of them run one job."""
    alive = []
    for job_id in StudyFolder(path).states():
        owner = claims.owner_of(path / "claims", job_id)
        if owner is not None and not claims.is_gone(owner):
            alive.append(owner.pid)
    assert len(set(alive)) == len(alive), alive
    return alive


def finished(path: Path) -> bool:
    """Whether all jobs are done."""
    states = StudyFolder(path).states().values()
    return bool(states) and all(state.state == "done" for state in states)


def results(path: Path) -> dict[str, Any]:
    """What a study has found, without times and names of folders."""
    folder = StudyFolder(path)
    found: dict[str, Any] = {}
    for job_id, state in folder.states().items():
        run_dir = folder.run_dir(job_id)
        rows = [{k: v for k, v in row.items() if k not in TIMES} for row in read_metrics(run_dir / "metrics.csv")]
        genotype = load_genotype(folder.genotype_file(state.genotype))
        found[job_id] = [rows, genotype.cells()]
        if state.kind == "retrain":
            content = json.loads((run_dir / "result.json").read_text())
            found[job_id] += [content["test_error_last"], content["test_error_best"], content["params"]]
    return {key: re.sub(r"nan", "None", repr(value)) for key, value in found.items()}


def tables(path: Path) -> dict[str, Any]:
    """The tables of results.json without times."""
    content = json.loads(write_results(path).read_text(encoding="utf-8"))
    return {
        name: [{key: value for key, value in row.items() if "hour" not in key} for row in table["rows"]]
        for name, table in content["tables"].items()
        if name not in MEASURED
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="keep the studies here")
    given = parser.parse_args()
    if given.folder is not None:
        given.folder.mkdir(parents=True)
    run(given.kills, given.seed, given.folder)


if __name__ == "__main__":
    main()
