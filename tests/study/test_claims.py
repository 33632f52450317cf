"""Claims: one process at a time has a job, and a job of a process that is gone is taken over."""

import json
import subprocess
import sys
import threading
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from darts_sg.study import claims
from darts_sg.study.claims import Owner, Watch, is_gone, owner_of, take, this_process


def write(path: Path, owner: Owner) -> None:
    path.write_text(json.dumps(asdict(owner)))


def test_a_claim_excludes_others_until_it_is_released(tmp_path: Path) -> None:
    first = take(tmp_path, "a")
    assert first is not None
    assert take(tmp_path, "a") is None
    assert take(tmp_path, "b") is not None
    first.release()
    second = take(tmp_path, "a")
    assert second is not None
    assert not first.holds()
    assert not first.beat()
    assert [path.name for path in tmp_path.glob("a.*")] == ["a.2"]


def test_one_of_many_threads_gets_a_claim(tmp_path: Path) -> None:
    found: list[bool] = []
    barrier = threading.Barrier(8)

    def race() -> None:
        barrier.wait()
        found.append(take(tmp_path, "a") is not None)

    threads = [threading.Thread(target=race) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found.count(True) == 1


def test_a_claim_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*ignored: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(claims.os, "link", no_links)
    assert take(tmp_path, "a") is not None
    assert take(tmp_path, "a") is None


def test_a_process_that_has_ended_is_gone(tmp_path: Path) -> None:
    code = "from darts_sg.study.claims import take; from pathlib import Path; import sys; take(Path(sys.argv[1]), 'a')"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    owner = owner_of(tmp_path, "a")
    assert owner is not None
    assert is_gone(owner)
    assert take(tmp_path, "a") is not None


def test_a_pid_that_is_used_again_is_another_process() -> None:
    here = this_process()
    assert not is_gone(here)
    assert is_gone(replace(here, started="1"))
    assert not is_gone(replace(here, started="1", machine="another"))
    assert is_gone(replace(here, machine="another", released=True))


def test_an_owner_elsewhere_is_lost_when_its_heartbeat_stands_still(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim = take(tmp_path, "a")
    assert claim is not None
    elsewhere = replace(claim.owner, machine="another")
    write(claim.path, elsewhere)
    clock = [0.0]
    monkeypatch.setattr(claims.time, "monotonic", lambda: clock[0])
    watch = Watch(tmp_path, lost_after=100.0)
    assert watch.lost("a") is None
    clock[0] = 90.0
    write(claim.path, replace(elsewhere, beat=1))
    assert watch.lost("a") is None
    clock[0] = 189.0
    assert watch.lost("a") is None
    clock[0] = 191.0
    assert watch.lost("a") == elsewhere.token
    assert take(tmp_path, "a") is None  # only with the token
    assert take(tmp_path, "a", over=elsewhere.token) is not None


def test_nobody_has_a_job_that_was_never_claimed(tmp_path: Path) -> None:
    assert Watch(tmp_path / "none").lost("a") == ""
    assert owner_of(tmp_path / "none", "a") is None


def test_a_slow_claim_loses_against_one_that_went_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers read before others took, released and removed several claims lead to none."""
    for _ in range(3):
        claim = take(tmp_path, "a")
        assert claim is not None
        claim.release()
    numbers = [[], [1, 3]]
    monkeypatch.setattr(claims, "_numbers", lambda path: numbers.pop(0) if len(numbers) > 1 else numbers[0])
    assert take(tmp_path, "a") is None
    monkeypatch.undo()
    assert [path.name for path in tmp_path.glob("a.*")] == ["a.3"]


def test_a_damaged_claim_does_not_hold_a_job_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.1").write_text("")
    assert take(tmp_path, "a") is None  # it may be just being written
    monkeypatch.setattr(claims, "LOST_AFTER", -1.0)
    assert take(tmp_path, "a") is not None
