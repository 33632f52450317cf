"""Runs that are killed: how each kind is started and continued, and what must be equal in the end."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from benchmarks.same_bits import compared
from darts_sg.engine.checkpoint import checkpoints
from tests.data.detection_fakes import write_voc
from tests.study import kills as killed_study
from tests.study.small import SMALL as SMALL_STUDY

ROOT = Path(__file__).resolve().parents[2]
LONGEST = 600  # seconds that a run may take before it counts as hanging
MOST_KILLS = 3  # of one run
VARYING = {"log.txt", "loggers.json", "tensorboard", "checkpoints", "claims"}
"""Files and folders whose names or number depend on when a run was stopped."""
SEARCH = (
    "search --dataset synthetic --channels 4 --cells 3 --nodes 2 --epochs 3 --batch-size 8 "
    "--train-images 24 --validation-images 24 --space sep_conv_3x3+sandglass_3x3+skip_connect --threads 1 "
    "--checkpoint-minutes 1e-9"
)
TRAINING = (
    "augment --dataset synthetic --epochs 3 --batch-size 8 --train-images 24 --threads 1 --checkpoint-minutes 1e-9"
)
DETECTOR = (
    "augment --recipe voc-small --data voc --model mobilenetv2_0.1 --image-size 64 --batch-size 3 --epochs 3 "
    "--warmup-epochs 0 --ema 0.5 --workers 0 --threads 1 --checkpoint-minutes 1e-9"
)
NETWORK = "--genotype DARTS_V2 --channels 4 --cells 3 --ema 0.9 --drop-path-prob 0.2"


@dataclass
class Tally:
    """Counts of what the runs of a kind met."""

    runs: int = 0
    kills: int = 0
    starting: int = 0
    running: int = 0
    finishing: int = 0
    ended: int = 0
    different: int = 0

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


@dataclass
class Kind:
    """A job with its options; `ranks` processes share it."""

    name: str
    command: str
    ranks: int = 1
    prepare: Callable[[Path], object] = lambda folder: None
    """Writes to the folder of all runs what the command needs there."""
    seconds: float = field(default=0.0, init=False)
    """How long the undisturbed run took."""
    expected: dict[str, Any] = field(default_factory=dict, init=False)
    files: set[str] = field(default_factory=set, init=False)
    last: str = field(default="", init=False)
    """The checkpoint at the end of the undisturbed run."""

    def start(self, words: Sequence[str], folder: Path) -> "subprocess.Popen[str]":
        launcher = ["-m", "darts_sg"]
        if self.ranks > 1:
            launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(self.ranks), *launcher]
        return subprocess.Popen(
            [sys.executable, *launcher, *words],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def words(self, run: Path) -> list[str]:
        """Continue a run that has begun; one that was killed before it wrote config.yaml is started again as it was."""
        if (run / "config.yaml").is_file():
            return [self.command.split()[0], "--resume", str(run)]
        return [*self.command.split(), "--run-dir", str(run)]

    def kill(self, process: "subprocess.Popen[str]", run: Path, draw: random.Random) -> None:
        """Kill the run with all processes that it has started, the parent first: it would start its children again.

        The parent is halted while its children are listed, so that it starts no further one meanwhile."""
        with suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGSTOP)
        victims = [process.pid, *descendants(process.pid)]
        for pid in victims:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.communicate()

    def moment(self, run: Path) -> str:
        """What a run had come to when it was killed: starting, running or finishing."""
        saved = {path.name for path in run.glob("checkpoints/*.pt")}
        return "starting" if not saved else "finishing" if self.last in saved else "running"

    def result(self, run: Path) -> dict[str, Any]:
        """What must be equal in the end."""
        return dict(compared(run))

    def names(self, run: Path) -> set[str]:
        """The files that do not depend on when the run was stopped."""
        found = (path.relative_to(run) for path in run.rglob("*") if path.is_file())
        fixed = (path for path in found if not VARYING & set(path.parts))
        return {str(path) for path in fixed if not path.name.startswith("events.out.tfevents.")}

    def undisturbed(self, folder: Path) -> None:
        """Run to the end, and note what came out."""
        self.prepare(folder)
        run, begun = folder / self.name, time.monotonic()
        process = self.start(self.words(run), folder)
        out, _ = process.communicate(timeout=LONGEST)
        if process.returncode:
            raise SystemExit(f"kills: {self.name} ended with {process.returncode}: {out.strip().splitlines()[-1]}")
        self.seconds = time.monotonic() - begun
        self.expected, self.files = self.result(run), self.names(run)
        self.last = next((path.name for path in reversed(checkpoints(run / "checkpoints"))), "")


@dataclass
class StudyKind(Kind):
    """A study with its coordinator and workers, in which a kill meets the coordinator, or both."""

    def words(self, run: Path) -> list[str]:
        return [*self.command.split(), "--dir", str(run)]

    def kill(self, process: "subprocess.Popen[str]", run: Path, draw: random.Random) -> None:
        """Kill the coordinator; and one of two times its workers, which else go on without it."""
        victims = killed_study.workers(run) if draw.random() < 0.5 else []
        process.kill()
        for pid in victims:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.communicate()

    def moment(self, run: Path) -> str:
        """Starting: no job has a checkpoint; finishing: all jobs are done."""
        if killed_study.finished(run):
            return "finishing"
        return "running" if list(run.glob("runs/*/checkpoints/*.pt")) else "starting"

    def names(self, run: Path) -> set[str]:
        """Without temporary files beside those of the jobs, which the coordinator removes once they are old."""
        hidden = {str(path.relative_to(run)) for part in ("jobs", "genotypes") for path in run.glob(f"{part}/.*")}
        return super().names(run) - hidden

    def result(self, run: Path) -> dict[str, Any]:
        return {**killed_study.results(run), **killed_study.tables(run)}


def descendants(pid: int) -> list[int]:
    """The processes that a process has started, and those that these have, also in sessions of their own."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has just ended
            parent = path.read_text().rpartition(")")[2].split()[1]  # after the name, which may hold anything
            children.setdefault(int(parent), []).append(int(path.parent.name))
    found, new = list[int](), [pid]
    while new:
        new = [child for each in new for child in children.get(each, ())]
        found += new
    return found


def write_study(folder: Path) -> None:
    """The study file of the kind `study`."""
    (folder / "study.yaml").write_text(SMALL_STUDY + "executor: {threads: 1, losses: 1000}\n")


KINDS = {
    kind.name: kind
    for kind in (
        Kind("search", SEARCH),
        Kind("second-order", f"{SEARCH} --hypergradient unrolled --eigenvalue-every 1"),
        Kind("pc-darts", f"{SEARCH} --partial-channels 2 --edge-normalization --alpha-frozen-epochs 1"),
        Kind("p-darts", f"{SEARCH} --cells 4 --stages p-darts:cells=3/3/4"),
        Kind("darts-pt", f"{SEARCH} --epochs 1 --selection projection:tuning_epochs=1,images=8"),
        Kind("oles, skip", f"{SEARCH} --freeze-operations oles:window=2 --auxiliary-skip linear"),
        Kind("evolution", f"{SEARCH} --strategy evolution:candidates=4,population=2,sample=2"),
        Kind("retraining", f"{TRAINING} {NETWORK}"),
        Kind("mobile", f"{TRAINING} --model mobilenext_0.1_id2"),
        Kind("detection", DETECTOR, prepare=lambda folder: write_voc(folder / "voc")),
        Kind("two ranks", SEARCH, ranks=2),
        StudyKind("study", "study run study.yaml --jobs 2", prepare=write_study),
    )
}


def disturbed(kind: Kind, folder: Path, run: Path, draw: random.Random, tally: Tally) -> list[str]:
    """Kill a run up to `MOST_KILLS` times and let it end; returns what is not as in the undisturbed run."""
    tally.runs += 1
    for _ in range(draw.randint(1, MOST_KILLS)):
        process = kind.start(kind.words(run), folder)
        try:
            begun = time.monotonic()
            process.communicate(timeout=draw.uniform(0, kind.seconds))
            kind.seconds = min(kind.seconds, time.monotonic() - begun)  # the first run also compiled and rendered
            tally.ended += 1
            break
        except subprocess.TimeoutExpired:
            kind.kill(process, run, draw)
        tally.kills += 1
        moment = kind.moment(run)
        setattr(tally, moment, getattr(tally, moment) + 1)
    process = kind.start(kind.words(run), folder)
    try:
        out, _ = process.communicate(timeout=LONGEST)
    except subprocess.TimeoutExpired:
        kind.kill(process, run, draw)
        out = f"hung for {LONGEST} s"
    found = []
    if process.returncode:
        found.append(f"ended with {process.returncode}: {(out.strip() or 'no output').splitlines()[-1]}")
    else:
        here = kind.result(run)
        found += [name for name in kind.expected if here.get(name) != kind.expected[name]]
        found += [f"{name} is missing" for name in sorted(kind.files - kind.names(run))]
        found += [f"{name} is too much" for name in sorted(kind.names(run) - kind.files)]
    tally.different += bool(found)
    return found
