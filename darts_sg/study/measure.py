"""What a study will take: a dry run of each kind of job, in a process of its own, and the hours that follow."""

import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from darts_sg.config import JOBS, RunConfig
from darts_sg.derive import random_genotype
from darts_sg.errors import RunError
from darts_sg.study.file import StudyFile
from darts_sg.study.genotypes import nodes_of
from darts_sg.study.plan import StudyJob

STEP = re.compile(r"^one step of batch \d+: ([\d.]+) s \(([\d.]+) images/s\)", re.MULTILINE)
WHOLE = re.compile(r"^whole run: (\d+) epochs of (\d+) steps, about (\d+):(\d\d):(\d\d) ", re.MULTILINE)
MEMORY = re.compile(r"^peak memory: (\d+) MiB", re.MULTILINE)
DEVICE = re.compile(r"^device: (.*)$", re.MULTILINE)


@dataclass(frozen=True)
class Shape:
    """What jobs of one kind take, measured by a step."""

    seconds: float
    """Of a whole run, without evaluation."""
    images_per_second: float
    memory: int
    """Peak in bytes, of the GPU where there is one."""
    device: str


def measured(
    study: StudyFile,
    jobs: Sequence[StudyJob],
    configs: Mapping[str, RunConfig],
    threads: int | None,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Shape]:
    """The Shape of each job by id; jobs that differ in seed and genotype only are measured once.

    A retraining is measured with a random genotype of its space, the one of zoo genotypes with itself. say: is told
    what is being measured. Raises RunError if a dry run fails, such as for want of memory.
    """
    found: dict[tuple[Any, ...], Shape] = {}
    shapes = {}
    for job in jobs:
        key = _key(job, configs[job.id])
        if key not in found:
            say(f"measuring a step of {job.id}")
            found[key] = _dry_run(study, job, configs[job.id], threads)
        shapes[job.id] = found[key]
    return shapes


def _key(job: StudyJob, config: RunConfig) -> tuple[Any, ...]:
    """What jobs share that take equally long."""
    options = {name: value for name, value in config.as_dict().items() if name not in ("seed", "genotype")}
    subject = job.genotype if job.genotype_kind in ("reference", "model") else job.space
    return job.kind, subject, *map(str, options.items())


def _dry_run(study: StudyFile, job: StudyJob, config: RunConfig, threads: int | None) -> Shape:
    names = [f.name for f in fields(JOBS[job.name])]
    options = {name: value for name, value in config.as_dict().items() if name in names}
    with tempfile.TemporaryDirectory(prefix="study-") as folder:
        if job.kind == "retrain" and job.genotype_kind != "model":
            options["genotype"] = job.genotype
            if job.genotype_kind != "reference":
                stand_in = random_genotype(study.space(job.space).space, nodes_of(study, job.space), 0, "stand_in")
                path = Path(folder) / "genotype.yaml"
                path.write_text(stand_in.to_yaml(), encoding="utf-8")
                options["genotype"] = str(path)
        options |= {"run_dir": None, "threads": threads}
        file = Path(folder) / "options.yaml"
        file.write_text(yaml.safe_dump(options, allow_unicode=True), encoding="utf-8")
        words = [sys.executable, "-m", "darts_sg", job.name, "--config", str(file), "--dry-run"]
        done = subprocess.run(words, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"ended with code {done.returncode}"]
        raise RunError(f"the dry run of {job.id} failed: {lines[-1].partition(': ')[2] or lines[-1]}")
    return parse_dry_run(done.stdout)


def parse_dry_run(text: str) -> Shape:
    """What the output of `--dry-run` says."""
    step, whole, memory, device = (pattern.search(text) for pattern in (STEP, WHOLE, MEMORY, DEVICE))
    if step is None or whole is None or memory is None or device is None:
        raise RunError(f"a dry run printed no times: {text.strip()[-200:]!r}")
    epochs, steps, hours, minutes, rest = map(int, whole.groups())
    seconds = 3600.0 * hours + 60 * minutes + rest  # not all epochs take equally long
    if seconds < 60:  # whole seconds say little
        seconds = float(step[1]) * epochs * steps
    return Shape(seconds, float(step[2]), int(memory[1]) * 2**20, device[1])


def makespan(jobs: Sequence[StudyJob], seconds: Mapping[str, float], at_a_time: int) -> float:
    """Seconds until the last of `jobs` has ended, started in this order, `at_a_time` of them together."""
    free, ended = [0.0] * at_a_time, dict[str, float]()
    for job in jobs:
        place = min(range(at_a_time), key=lambda i: free[i])
        begin = max([free[place], *(ended.get(each, 0.0) for each in job.depends_on)])
        ended[job.id] = free[place] = begin + seconds[job.id]
    return max(ended.values(), default=0.0)
