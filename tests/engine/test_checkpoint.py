"""Checkpoints and the meter of the loop."""

import errno
import io
import pickle
import random
import zipfile
from collections.abc import Callable
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
    set_aside_later,
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


def with_pickle(content: bytes, instructions: bytes) -> bytes:
    """A checkpoint with other pickle instructions, all of whose checksums of the archive are right."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(buffer, "w") as new:
        for member in old.infolist():
            new.writestr(member, instructions if member.filename.endswith("data.pkl") else old.read(member))
    return buffer.getvalue()


def torch_saved(state: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "512 bytes cut out of the middle": lambda content: (
        content[: len(content) // 2] + content[len(content) // 2 + 512 :]
    ),
    "the beginning cut off": lambda content: content[512:],
    "the end cut off": lambda content: content[:-100],
    "empty": lambda content: b"",
    "zeros": lambda content: bytes(len(content)),
    "an operand that is cut off (struct.error)": lambda content: with_pickle(content, b"\x80\x02J\x01."),
    "nothing on the stack (IndexError)": lambda content: with_pickle(content, b"\x80\x020."),
    "a memo that is empty (KeyError)": lambda content: with_pickle(content, b"\x80\x02h\x07."),
    "a list": lambda content: torch_saved([1, 2]),
    "a number": lambda content: with_pickle(content, pickle.dumps(3, protocol=2)),
    "a compressed archive": lambda content: _compressed(content),
}


def _compressed(content: bytes) -> bytes:
    buffer = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(content)) as old,
        zipfile.ZipFile(buffer, "w", compression=zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))
    return buffer.getvalue()


@pytest.mark.parametrize("damage", DAMAGE)
def test_whatever_is_wrong_with_the_newest_the_one_before_is_taken(damage: str, tmp_path: Path) -> None:
    for step in (1, 2):
        save_checkpoint(tmp_path, 0, step, {"step": step, "w": torch.arange(5000.0)})
    older, newest = checkpoints(tmp_path)
    newest.write_bytes(DAMAGE[damage](newest.read_bytes()))
    warnings: list[str] = []
    found = load_newest(tmp_path, warnings.append)
    assert found is not None
    assert (found[0], found[1]["step"]) == (older, 1)
    assert len(warnings) == 1
    assert f"damaged checkpoint passed over: {newest}: " in warnings[0]
    assert "\n" not in warnings[0]


def test_the_checksum_covers_the_content_and_old_files_do_without(tmp_path: Path) -> None:
    state = {"step": 3, "w": torch.arange(6.0), "list": [(1, 2.5), None]}
    path = save_checkpoint(tmp_path, 0, 3, state)
    assert read_torch(path).keys() == state.keys()
    content = torch.load(path, weights_only=True)
    old = {name: value for name, value in content.items() if name != "checksum"}
    for changed in (
        {"w": torch.arange(6.0) + 1}, {"w": torch.arange(6.0).view(2, 3)}, {"w": torch.arange(6.0).view(torch.int32)},
        {"step": 4}, {"list": [(1, 2.5), 0]}, {"more": 1},
    ):  # fmt: skip
        path.write_bytes(torch_saved(content | changed))
        with pytest.raises(ValueError, match="does not match its checksum"):
            read_torch(path)
    path.write_bytes(torch_saved(old))
    assert read_torch(path)["step"] == 3


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EACCES, errno.ENOMEM])
def test_a_checkpoint_that_cannot_be_opened_now_is_not_taken_for_damaged(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_checkpoint(tmp_path, 0, 1, {})
    save_checkpoint(tmp_path, 0, 2, {})

    def fail(path: Path) -> bytes:
        raise OSError(number, "not now", str(path))

    monkeypatch.setattr(Path, "read_bytes", fail)
    with pytest.raises(OSError, match="not now"):
        load_newest(tmp_path, pytest.fail)


def test_a_bad_sector_is_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    older, newest = (save_checkpoint(tmp_path, 0, step, {"step": step}) for step in (1, 2))
    read = Path.read_bytes

    def fail(path: Path) -> bytes:
        if path == newest:
            raise OSError(errno.EIO, "Input/output error", str(path))
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", fail)
    found = load_newest(tmp_path, lambda warning: None)
    assert found is not None
    assert found[0] == older


def test_damaged_later_checkpoints_do_not_push_out_the_new_ones(tmp_path: Path) -> None:
    """A run that goes on from an older checkpoint keeps what it saves, also before it reaches the damaged ones."""
    for epoch in (2, 4, 5):
        save_checkpoint(tmp_path, epoch, 0, {"epoch": epoch}, keep_every=2)
    for damaged in checkpoints(tmp_path)[1:]:
        damaged.write_bytes(b"")
    found = load_newest(tmp_path, lambda warning: None)
    assert found is not None
    set_aside_later(tmp_path, found[0])
    for step in (1, 2, 3):
        path = save_checkpoint(tmp_path, 2, step, {"step": step}, keep_every=2)
        assert path.is_file()
        newest = load_newest(tmp_path, pytest.fail)
        assert newest is not None
        assert newest[1]["step"] == step
    assert [path.name for path in checkpoints(tmp_path)] == [f"epoch_0002_step_{step:06d}.pt" for step in (0, 2, 3)]
    assert len(list(tmp_path.glob("*.damaged"))) == 2


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
