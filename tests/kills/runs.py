"""Runs that are killed: how each kind is started and continued, and what must be equal in the end."""

import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field, fields
from pathlib import Path

from benchmarks.same_bits import compared
from darts_sg.engine.checkpoint import checkpoints

ROOT = Path(__file__).resolve().parents[2]
LONGEST = 600  # seconds that a run may take before it counts as hanging
MOST_KILLS = 3  # of one run
VARYING = {"log.txt", "loggers.json", "tensorboard", "checkpoints"}
"""Files whose names or number depend on when a run was stopped."""
SEARCH = (
    "search --dataset synthetic --channels 4 --cells 3 --nodes 2 --epochs 3 --batch-size 8 "
    "--train-images 24 --validation-images 24 --space sep_conv_3x3+sandglass_3x3+skip_connect --threads 1 "
    "--checkpoint-minutes 1e-9"
)
TRAINING = (
    "augment --dataset synthetic --epochs 3 --batch-size 8 --train-images 24 --threads 1 --checkpoint-minutes 1e-9"
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
    seconds: float = field(default=0.0, init=False)
    """How long the undisturbed run took."""
    expected: dict[str, object] = field(default_factory=dict, init=False)
    files: set[str] = field(default_factory=set, init=False)
    last: str = field(default="", init=False)
    """The checkpoint at the end of the undisturbed run."""

    def start(self, words: list[str], folder: Path) -> "subprocess.Popen[str]":
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
            start_new_session=True,  # a group of its own, so that its workers can be killed with it
        )

    def undisturbed(self, folder: Path) -> None:
        run, begun = folder / self.name, time.monotonic()
        process = self.start([*self.command.split(), "--run-dir", str(run)], folder)
        out, _ = process.communicate(timeout=LONGEST)
        if process.returncode:
            raise SystemExit(f"kills: {self.name} ended with {process.returncode}: {out.strip().splitlines()[-1]}")
        self.seconds = time.monotonic() - begun
        self.expected, self.files = dict(compared(run)), names(run)
        self.last = checkpoints(run / "checkpoints")[-1].name


def names(run: Path) -> set[str]:
    """The files of a run folder that do not depend on when it was stopped."""
    return {
        str(path.relative_to(run))
        for path in run.rglob("*")
        if path.is_file()
        and path.relative_to(run).parts[0] not in VARYING
        and not path.name.startswith("events.out.tfevents.")
    }


KINDS = {
    kind.name: kind
    for kind in (
        Kind("search", SEARCH),
        Kind("second-order", f"{SEARCH} --hypergradient unrolled --eigenvalue-every 1"),
        Kind("pc-darts", f"{SEARCH} --partial-channels 2 --edge-normalization --alpha-frozen-epochs 1"),
        Kind("p-darts", f"{SEARCH} --stages p-darts:cells=3/3/4"),
        Kind("darts-pt", f"{SEARCH} --epochs 1 --selection projection:tuning_epochs=1,images=8"),
        Kind("oles, skip", f"{SEARCH} --freeze-operations oles:window=2 --auxiliary-skip linear"),
        Kind("evolution", f"{SEARCH} --strategy evolution:candidates=4,population=2,sample=2"),
        Kind("retraining", f"{TRAINING} {NETWORK}"),
        Kind("mobile", f"{TRAINING} --model mobilenext_0.1_id2"),
        Kind("two ranks", f"{SEARCH}", ranks=2),
    )
}


def disturbed(kind: Kind, folder: Path, run: Path, draw: random.Random, tally: Tally) -> list[str]:
    """Kill a run up to `MOST_KILLS` times and let it end; returns what is not as in the undisturbed run."""
    tally.runs += 1
    for _ in range(draw.randint(1, MOST_KILLS)):
        process = kind.start(next_command(kind, run), folder)
        try:
            begun = time.monotonic()
            process.communicate(timeout=draw.uniform(0, kind.seconds))
            kind.seconds = min(kind.seconds, time.monotonic() - begun)  # the first run also compiled and rendered
            tally.ended += 1
            break
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
        tally.kills += 1
        saved = {path.name for path in run.glob("checkpoints/*.pt")}
        tally.starting += not saved
        tally.finishing += kind.last in saved
        tally.running += bool(saved) and kind.last not in saved
    process = kind.start(next_command(kind, run), folder)
    try:
        out, _ = process.communicate(timeout=LONGEST)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, _ = process.communicate()
    found = []
    if process.returncode:
        found.append(f"ended with {process.returncode}: {(out.strip() or 'no output').splitlines()[-1]}")
    else:
        here = dict(compared(run))
        found += [name for name in kind.expected if here.get(name) != kind.expected[name]]
        found += [f"{name} is missing" for name in sorted(kind.files - names(run))]
        found += [f"{name} is too much" for name in sorted(names(run) - kind.files)]
    tally.different += bool(found)
    return found


def next_command(kind: Kind, run: Path) -> list[str]:
    """Continue a run that has begun; one that was killed before it wrote config.yaml is started again as it was."""
    if (run / "config.yaml").is_file():
        return [kind.command.split()[0], "--resume", str(run)]
    return [*kind.command.split(), "--run-dir", str(run)]
