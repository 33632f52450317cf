"""Checkpoints and the meter of the loop."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from darts_sg.engine.checkpoint import (
    checkpoints,
    load_newest,
    random_state,
    read_torch,
    save_checkpoint,
    seed_everything,
    set_random_state,
    write_torch,
)
from darts_sg.engine.loop import Meter, StepResult, clock, stop_signals
from darts_sg.errors import UsageError
from darts_sg.files import write_atomically


def draw() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), torch.rand(1).item()  # noqa: NPY002


def test_random_states_survive_a_file(tmp_path: Path) -> None:
    seed_everything(3)
    draw()
    write_torch(tmp_path / "state.pt", {"random": random_state()})
    expected = draw()
    seed_everything(4)
    set_random_state(read_torch(tmp_path / "state.pt")["random"])
    assert draw() == expected


def test_the_newest_two_are_kept_and_a_damaged_one_is_passed_over(tmp_path: Path) -> None:
    for step in range(4):
        save_checkpoint(tmp_path, 0, step, {"step": step, "w": torch.full((1000,), float(step))})
    older, newest = checkpoints(tmp_path)
    warnings: list[str] = []
    found = load_newest(tmp_path, warnings.append)
    assert found is not None
    assert (found[0], found[1]["step"]) == (newest, 3)
    assert not warnings
    content = bytearray(newest.read_bytes())
    content[1500] ^= 1  # one bit within the tensor
    newest.write_bytes(bytes(content))
    found = load_newest(tmp_path, warnings.append)
    assert found is not None
    assert found[1]["step"] == 2
    assert newest.name in warnings[0]
    older.write_bytes(older.read_bytes()[:700])
    with pytest.raises(UsageError, match="delete that folder"):
        load_newest(tmp_path, warnings.append)
    assert load_newest(tmp_path / "none", warnings.append) is None


@pytest.mark.parametrize(
    "places", [[(9998, 0), (9999, 0), (10000, 0), (10001, 0)], [(3, 999_999), (3, 1_000_000), (3, 1_000_001)]]
)
def test_the_newest_checkpoints_are_kept_however_long_their_names(
    places: list[tuple[int, int]], tmp_path: Path
) -> None:
    for epoch, step in places:
        save_checkpoint(tmp_path, epoch, step, {"place": (epoch, step)})
    assert [read_torch(path)["place"] for path in checkpoints(tmp_path)] == places[-2:]
    found = load_newest(tmp_path, pytest.fail)
    assert found is not None
    assert found[1]["place"] == places[-1]


def test_checkpoints_after_some_epochs_are_kept_for_good(tmp_path: Path) -> None:
    for epoch, step in ((0, 5), (1, 0), (1, 5), (2, 0), (2, 5), (3, 0), (4, 0), (4, 5), (5, 0), (5, 5)):
        save_checkpoint(tmp_path, epoch, step, {"epoch": epoch}, keep_every=2)
    names = [path.name for path in checkpoints(tmp_path)]
    kept = ["epoch_0002_step_000000.pt", "epoch_0004_step_000000.pt"]
    assert names == [*kept, "epoch_0005_step_000000.pt", "epoch_0005_step_000005.pt"]


class Trap:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (Path("sprung"),)  # type: ignore[return-value]


def test_a_checkpoint_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"trap": Trap()}, tmp_path / "trap.pt")
    with pytest.raises(ValueError, match=r"trap\.pt"):
        read_torch(tmp_path / "trap.pt")
    assert not (tmp_path / "sprung").exists()


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomically(path, "old")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda handle: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(OSError, match="No space left"):
            write_atomically(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("call", ["os.fsync", "tempfile.mkstemp"])
def test_an_error_of_a_write_names_the_file_that_was_meant(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(call, full)
    with pytest.raises(OSError, match="No space left") as caught:
        write_atomically(tmp_path / "file", "new")
    assert caught.value.filename == str(tmp_path / "file")


def test_the_meter_weighs_by_images_and_names_the_first_value_that_is_not_finite() -> None:
    meter = Meter()
    meter.add(0, StepResult(3, {"loss": torch.tensor(1.0)}))
    meter.add(1, StepResult(1, {"loss": torch.tensor(5.0)}))
    assert meter.flush() is None
    assert meter.means() == {"loss": 2.0}
    meter.add(2, StepResult(3, {"loss": torch.tensor(1.0), "other": torch.tensor(float("inf"))}))
    meter.add(3, StepResult(3, {"loss": torch.tensor(float("nan"))}))
    assert meter.flush() == (2, "other")


def test_a_second_interrupt_is_not_held_back() -> None:
    import signal

    with stop_signals() as received:
        signal.raise_signal(signal.SIGINT)
        assert received == [signal.SIGINT]
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_clock() -> None:
    assert [clock(s) for s in (0.4, 61, 3600)] == ["0:00:00", "0:01:01", "1:00:00"]
