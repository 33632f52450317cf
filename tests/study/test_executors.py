"""Executors start workers where there is room and tell how they ended; each with a stand-in for the worker."""

import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from darts_sg.errors import UsageError
from darts_sg.study import executors
from darts_sg.study.executors import Ended, Executor, Request, Settings, last_line, make_executor, worker_words
from darts_sg.study.executors import local as local_executor
from darts_sg.study.executors.local import Local, slots_of
from darts_sg.study.executors.remote import WorkerTask

WAITS = """
import signal, sys
signal.signal(signal.SIGTERM, lambda *ignored: sys.exit(75))
print("up", flush=True)
signal.pause()
"""
"""A worker that runs until it is told to save."""


@pytest.fixture
def worker_does(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Replaces the worker by a Python program."""
    return lambda code: monkeypatch.setattr(executors, "WORKER", (sys.executable, "-c", code))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "jobs").mkdir()
    return tmp_path


def requested(*names: str, memory: int | None = None) -> list[Request]:
    return [Request(name, "", None, memory) for name in names]


PATIENCE = 900.0
"""Seconds after which a test that waits fails: far more than starting Ray's processes takes on a loaded machine."""


def until(reached: Callable[[], bool]) -> None:
    """Wait for a state, however long the machine takes to come to it."""
    deadline = time.monotonic() + PATIENCE
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def until_ended(executor: Executor, number: int) -> list[Ended]:
    found: list[Ended] = []

    def enough() -> bool:
        found.extend(executor.ended())
        return len(found) >= number

    until(enough)
    return sorted(found)


def until_up(path: Path) -> None:
    until(lambda: last_line(path) == "up")


def test_local_workers_share_the_cores(folder: Path, worker_does: Callable[[str], None]) -> None:
    worker_does("import os, sys; print(os.environ['OMP_NUM_THREADS'], *sys.argv[2:]); sys.exit(len(sys.argv[2]))")
    local = Local(folder, Settings(jobs=2, threads=3, device="cpu"))
    assert local.start(requested("a", "bb", "c")) == ["a", "bb"]  # two slots
    assert local.running() == {"a", "bb"}
    words = "3 {} --threads 3"
    assert until_ended(local, 2) == [Ended("a", 1, words.format("a")), Ended("bb", 2, words.format("bb"))]
    assert local.start(requested("c"), busy=2) == []  # another coordinator has the machine
    assert local.describe() == "this machine, 2 jobs at a time (CPU, 3 threads each)"


def test_local_workers_respect_the_memory(
    folder: Path, worker_does: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    worker_does("")
    monkeypatch.setattr(local_executor, "available_memory", lambda: 100)
    local = Local(folder, Settings(jobs=3, threads=1, device="cpu"))
    assert local.start(requested("a", memory=60) + requested("b", memory=60) + requested("c", memory=30)) == ["a", "c"]
    until_ended(local, 2)
    assert local.start(requested("large", memory=1000) + requested("b", memory=1)) == ["large"]  # alone
    until_ended(local, 1)


def test_local_workers_save_when_told_to(folder: Path, worker_does: Callable[[str], None]) -> None:
    worker_does(WAITS)
    local = Local(folder, Settings(jobs=2, threads=1, device="cpu"))
    local.start(requested("a", "b"))
    for name in "ab":
        until_up(folder / "jobs" / f"{name}.out")
    local.stop()
    assert [ended.code for ended in until_ended(local, 2)] == [75, 75]
    local.start(requested("a"))
    local.kill()
    assert [ended.code for ended in local.ended()] == [-9]


def test_each_gpu_takes_one_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_executor.torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(local_executor, "usable_cores", lambda: 12)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,7")
    assert [slot.gpu for slot in slots_of(Settings())[1]] == ["4", "5", "7"]
    assert slots_of(Settings(jobs=2))[0] == 6
    assert [slot.gpu for slot in slots_of(Settings(device="cuda:1"))[1]] == ["5"]
    assert [slot.gpu for slot in slots_of(Settings(device="cpu", jobs=2))[1]] == [None, None]
    with pytest.raises(UsageError, match=r"device 'cuda:3' is not available; there is: cpu, cuda:0"):
        slots_of(Settings(device="cuda:3"))


def test_a_job_of_several_processes_takes_as_many_places(
    folder: Path, worker_does: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_executor.torch.cuda, "device_count", lambda: 4)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    worker_does("import os; print(os.environ['CUDA_VISIBLE_DEVICES'])")
    local = Local(folder, Settings(processes=2, threads=1))
    wide, narrow = (Request(name, "", None, None, number) for name, number in (("wide", 2), ("narrow", 1)))
    others = [each._replace(job_id=each.job_id * 2) for each in (wide, narrow)]
    assert local.start([wide, narrow, *others]) == ["wide", "narrow"]  # a place is left, too few for the next
    assert "at most 4 jobs at a time (GPUs, up to 2 processes a job)" in local.describe()
    ended = until_ended(local, 2)
    assert {(each.job_id, each.text) for each in ended} == {("wide", "4,5"), ("narrow", "6")}
    assert len(Local(folder, Settings(jobs=1, processes=2, threads=1)).start([narrow, wide])) == 1
    assert len(slots_of(Settings(device="cpu", processes=2, jobs=3))[1]) == 6


def test_a_job_on_a_cpu_has_one_thread_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_executor, "usable_cores", lambda: 8)
    monkeypatch.setattr(local_executor, "gpus_of", lambda device: [])
    for settings, expected in (
        (Settings(), (1, 8)),
        (Settings(threads=4), (4, 2)),
        (Settings(jobs=2), (4, 2)),
        (Settings(jobs=3, threads=1), (1, 3)),
    ):
        threads, slots = slots_of(settings)
        assert (threads, len(slots)) == expected


def test_the_words_of_a_worker() -> None:
    words = worker_words(Path("/s"), Request("a", "token", 1.5, None), 2, 30.0)
    assert words == ["/s", "a", "--over", "token", "--threads", "2", "--minutes", "1.5", "--patience", "30.0"]


def test_an_unknown_executor_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"unknown executor 'locl' \(did you mean 'local'\?\)"):
        make_executor("locl", tmp_path, Settings())


def test_a_remote_worker_saves_when_its_task_is_cancelled(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = WorkerTask([sys.executable, "-c", WAITS], folder / "out", folder, {})

    def cancelled(seconds: float) -> None:
        monkeypatch.undo()
        until_up(folder / "out")
        raise KeyboardInterrupt

    monkeypatch.setattr("darts_sg.study.executors.remote.time.sleep", cancelled)
    with pytest.raises(KeyboardInterrupt):
        task()
    assert task._process is not None
    assert task._process.returncode == 75


def test_slurm_jobs_are_submitted_as_an_array(folder: Path, worker_does: Callable[[str], None]) -> None:
    pytest.importorskip("submitit", reason="the extra slurm is not installed")
    worker_does("import sys; print(*sys.argv[2:]); sys.exit(3)")
    settings = Settings(threads=2, slurm={"cluster": "debug", "time": 60})
    slurm = make_executor("slurm", folder, settings)
    assert slurm.describe() == "Slurm, arrays of jobs of 60 minutes"
    assert slurm.start(requested("a", "b", memory=3 * 2**30)) == ["a", "b"]
    assert slurm.running() == {"a", "b"}
    words = "{} --threads 2 --minutes 54.0 --patience 240.0"  # a tenth of the limit is for saving
    assert until_ended(slurm, 2) == [Ended("a", 3, words.format("a")), Ended("b", 3, words.format("b"))]


def test_slurm_settings_are_passed_through() -> None:
    pytest.importorskip("submitit", reason="the extra slurm is not installed")
    from darts_sg.study.executors.slurm import parameters

    given: dict[str, str | int] = {"partition": "gpu", "account": "me", "reservation": "night"}
    assert parameters(given, Settings(jobs=4, threads=8, device="cuda"), 30) == {
        "name": "study",
        "timeout_min": 30,
        "cpus_per_task": 8,
        "gpus_per_node": 1,
        "slurm_array_parallelism": 4,
        "slurm_signal_delay_s": 90,
        "slurm_partition": "gpu",
        "slurm_account": "me",
        "slurm_additional_parameters": {"reservation": "night"},
    }


def test_slurm_needs_sbatch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("submitit", reason="the extra slurm is not installed")
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(UsageError, match="there is no sbatch on this machine"):
        make_executor("slurm", tmp_path, Settings())
    with pytest.raises(UsageError, match="time=1h: expected the time limit of a job in minutes"):
        make_executor("slurm", tmp_path, Settings(slurm={"cluster": "debug", "time": "1h"}))


def test_a_slurm_job_that_is_preempted_saves_and_is_queued_again(folder: Path) -> None:
    pytest.importorskip("submitit", reason="the extra slurm is not installed")
    import pickle
    import threading

    from darts_sg.study.executors.slurm import SlurmTask

    task = SlurmTask([sys.executable, "-c", WAITS], folder / "out", folder, {})
    codes: list[tuple[int, str]] = []
    thread = threading.Thread(target=lambda: codes.append(task()))
    thread.start()
    until_up(folder / "out")
    again = task.checkpoint()
    thread.join()
    assert codes == [(75, "up")]
    assert pickle.loads(pickle.dumps(again.function)).command == task.command


@pytest.mark.parametrize(("name", "package"), [("ray", "ray"), ("slurm", "submitit")])
def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UsageError, match=rf"needs the package {package}: pip install 'darts_sg\[{name}\]'"):
        make_executor(name, tmp_path, Settings())


def test_ray_runs_workers_as_tasks(folder: Path, worker_does: Callable[[str], None]) -> None:
    pytest.importorskip("ray", reason="the extra ray is not installed")
    worker_does("import sys; print(*sys.argv[2:]); sys.exit(3)")
    ray = make_executor("ray", folder, Settings(jobs=2, threads=1, device="cpu"))
    try:
        assert ray.start(requested("a", "b", "c")) == ["a", "b"]
        assert until_ended(ray, 2) == [Ended("a", 3, "a --threads 1"), Ended("b", 3, "b --threads 1")]
        worker_does(WAITS)
        ray.start(requested("c"))
        until_up(folder / "jobs" / "c.out")
        ray.stop()
        [ended] = until_ended(ray, 1)
        assert ended.code is None  # Ray does not tell; the worker has saved
    finally:
        ray.close()
