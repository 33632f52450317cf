"""Jobs of several processes: what the worker starts, and that it comes to what the command by hand comes to."""

import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from darts_sg.study import ranks, worker
from darts_sg.study.folder import StudyFolder
from darts_sg.study.worker import AGAIN, DONE, FAILED, work
from tests.study.small import RETRAIN, SEARCH, SMALL, run_inline, study_in

TWO = SMALL + "executor: {threads: 1, processes: {search: 2}}\n"


def test_the_worker_starts_the_run_and_reads_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, _ = study_in(tmp_path / "study", TWO)
    run_dir, started = folder.run_dir(SEARCH), list[Sequence[str]]()
    ends: list[tuple[int, str, str]] = [
        (1, "out of memory in a step; …", "config.yaml"),
        (1, f"another process is running in {run_dir}; wait for it or stop it", "config.yaml"),
        (0, "", "config.yaml"),  # the time budget is used up
        (0, "", "report.md"),
    ]

    def run(words: Sequence[str], number: int, stop: threading.Event) -> tuple[int, str]:
        assert number == 2
        started.append(words)
        code, problem, left = ends.pop(0)
        run_dir.mkdir(parents=True, exist_ok=True)
        (run_dir / left).write_text("job: search\noptions: {}\nenvironment: {}\n")
        return code, problem

    monkeypatch.setattr(worker, "run_ranks", run)
    monkeypatch.setattr(worker, "write_genotype", lambda *ignored: Path("genotype.yaml"))
    assert [work(folder, SEARCH, threads=1, minutes=2.0) for _ in range(4)] == [FAILED, AGAIN, AGAIN, DONE]
    file = folder.path / "jobs" / f"{SEARCH}.yaml"
    assert started[0] == ["search", "--config", str(file), "--time-budget", "2.0000"]
    assert started[1] == ["search", "--resume", str(run_dir), "--time-budget", "2.0000"]
    options = yaml.safe_load(file.read_text())
    assert {key: options[key] for key in ("seed", "epochs", "threads", "run_dir")} == {
        "seed": 0, "epochs": 2, "threads": 1, "run_dir": str(run_dir),
    }  # fmt: skip
    state = folder.state(SEARCH)
    assert (state.attempts, state.failure, state.out_of_memory) == (1, "out of memory in a step; …", 1)


def test_ranks_are_told_to_stop_and_say_why_they_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for torchrun."""
    torchrun = "import signal, sys; signal.signal(signal.SIGTERM, lambda *_: sys.exit(5)); "
    torchrun += "print('darts-sg: the disk is full', file=sys.stderr, flush=True); signal.pause()"
    popen: Any = subprocess.Popen
    monkeypatch.setattr(
        subprocess, "Popen", lambda words, **options: popen([sys.executable, "-c", torchrun], **options)
    )
    stop = threading.Event()
    threading.Timer(0.3, stop.set).start()
    code, problem = ranks.run_ranks(["search"], 2, stop)
    assert code in (5, -15)  # it may be told before it listens
    assert problem == "the disk is full" or code == -15


@pytest.mark.slow
def test_a_retraining_in_two_processes_is_the_one_by_hand(tmp_path: Path) -> None:
    text = SMALL.replace("kernels: pytorch", "kernels: pytorch, device: cpu")
    run_inline(tmp_path / "study", text + "executor: {threads: 1, processes: {retrain: 2}}\n")
    folder, by_hand = StudyFolder(tmp_path / "study"), tmp_path / "by_hand"
    assert folder.state(RETRAIN).device.endswith("2 processes, 1 thread)")
    words = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "darts_sg"),
        *("augment", "--config", str(folder.path / "jobs" / f"{RETRAIN}.yaml"), "--run-dir", str(by_hand)),
    ]
    subprocess.run(words, check=True, capture_output=True)
    for name in ("weights.safetensors", "weights_best.safetensors"):
        assert (folder.run_dir(RETRAIN) / name).read_bytes() == (by_hand / name).read_bytes()
