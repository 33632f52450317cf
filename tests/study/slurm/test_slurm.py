"""A study through a real Slurm: runs where `sinfo` shows a node, such as after `bash tests/study/slurm/setup.sh`."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from darts_sg.study.coordinator import stop
from darts_sg.study.folder import StudyFolder
from tests.study.kills import results
from tests.study.small import RETRAIN, SEARCH, SMALL, changed, run_inline

ROOT = Path(__file__).parents[3]
LONG = changed("epochs: 2", "epochs: 150").replace("kernels: pytorch", "kernels: pytorch, checkpoint_minutes: 0.001", 1)
"""A search that lasts long enough to be disturbed, with checkpoints all the time."""
PATIENCE = 240
"""Seconds until a test gives up."""


def why_not() -> str:
    """Why no Slurm is here; empty if there is one."""
    if shutil.which("sbatch") is None:
        return "there is no sbatch on this machine; see tests/study/slurm/setup.sh"
    try:
        done = subprocess.run(["sinfo", "-h", "-o", "%t"], capture_output=True, text=True, timeout=5, check=False)
    except subprocess.TimeoutExpired:
        return "sinfo does not answer"
    return "" if {"idle", "mix", "alloc"} & set(done.stdout.split()) else "no node of a Slurm cluster answers"


@pytest.fixture(scope="module", autouse=True)
def _slurm() -> None:
    pytest.importorskip("submitit", reason="the extra slurm is not installed")
    if reason := why_not():
        pytest.skip(reason)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """The results of the long study, run in this process."""
    path = tmp_path_factory.mktemp("undisturbed") / "S"
    run_inline(path, LONG)
    return results(path)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[StudyFolder]:
    """The folder of a study, whose coordinators and Slurm jobs end with the test."""
    found = StudyFolder(tmp_path / "S")
    yield found
    for path in (found.path / "slurm").glob("*.job"):
        subprocess.run(["scancel", path.read_text().strip()], check=False)


def coordinator(folder: StudyFolder, text: str = LONG) -> "subprocess.Popen[bytes]":
    """A coordinator in a process of its own; what it says goes to a file beside the study."""
    file = folder.path.with_suffix(".yaml")
    file.write_text(text)
    words = ["study", "run", str(file), "--dir", str(folder.path), "--executor", "slurm", "--slurm", "time=10"]
    with folder.path.with_suffix(".out").open("ab") as out:
        return subprocess.Popen(
            [sys.executable, "-m", "darts_sg", *words],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=out,
            stderr=subprocess.STDOUT,
        )


def until(true: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline, f"not within {PATIENCE} s: {what}"
        time.sleep(0.2)


def until_searching(folder: StudyFolder) -> str:
    """Wait until the search has a checkpoint; returns the number of its Slurm job."""
    until(lambda: list(folder.run_dir(SEARCH).glob("checkpoints/*.pt")), "a checkpoint of the search")
    return (folder.path / "slurm" / f"{SEARCH}.job").read_text().strip()


def until_finished(process: "subprocess.Popen[bytes]", folder: StudyFolder) -> None:
    code = process.wait(PATIENCE)
    said = folder.path.with_suffix(".out").read_text()
    assert code == 0, said
    assert {state.state for state in folder.states().values()} == {"done"}, said


def test_a_small_study_comes_to_the_results_of_this_machine(folder: StudyFolder, tmp_path: Path) -> None:
    until_finished(coordinator(folder, SMALL), folder)
    run_inline(tmp_path / "here", SMALL)
    assert results(folder.path) == results(tmp_path / "here")
    shown = subprocess.run(
        ["sacct", "-nXP", "-o", "State", "-j", (folder.path / "slurm" / f"{RETRAIN}.job").read_text().strip()],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert shown.stdout.split() == ["COMPLETED"]


@pytest.mark.parametrize("how", ["scancel", "scancel --signal=KILL", "scontrol requeue", "scancel --signal=USR2"])
def test_a_job_that_slurm_takes_away_is_continued(
    folder: StudyFolder, undisturbed: dict[str, object], how: str
) -> None:
    """Cancelled by hand, killed as by a lack of memory, queued again by an operator, warned before its time limit."""
    process = coordinator(folder)
    number = until_searching(folder)
    subprocess.run([*how.split(), number], check=True)
    until_finished(process, folder)
    assert results(folder.path) == undisturbed


def test_jobs_go_on_without_their_coordinator_and_another_one_finds_them(
    folder: StudyFolder, undisturbed: dict[str, object]
) -> None:
    process = coordinator(folder)
    number = until_searching(folder)
    process.send_signal(signal.SIGKILL)
    process.wait()
    until_finished(coordinator(folder), folder)
    assert (folder.path / "slurm" / f"{SEARCH}.job").read_text().strip() == number  # not submitted again
    assert results(folder.path) == undisturbed


def test_stop_has_slurm_jobs_saved(folder: StudyFolder, undisturbed: dict[str, object]) -> None:
    process = coordinator(folder)
    until_searching(folder)
    stop(folder, say=lambda line: None)
    assert process.wait(PATIENCE) == 0
    assert {state.state for state in folder.states().values()} == {"waiting"}
    until_finished(coordinator(folder), folder)
    assert results(folder.path) == undisturbed
