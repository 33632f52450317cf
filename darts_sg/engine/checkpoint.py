"""Checkpoints: all that a run needs to continue bit for bit; written atomically, read without running pickled code."""

import errno
import io
import random
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from darts_sg.engine.distributed import fingerprint
from darts_sg.errors import UsageError, first_line
from darts_sg.files import write_atomically

KEPT_CHECKPOINTS = 2  # the newest, and a spare in case it is damaged
NAME = re.compile(r"epoch_(\d+)_step_(\d+)\.pt")
CHECKSUM = "checksum"
"""The entry of a file that holds the fingerprint of all others. Files written before version 0.2 have none."""
BAD_SECTORS = frozenset({errno.EIO, errno.EISDIR})
"""What reading a damaged file answers; other errors (no permission, too many open files) say nothing about the file."""


def save_checkpoint(
    folder: Path, epoch: int, step: int, state: Mapping[str, Any], keep_every: int | None = None
) -> Path:
    """Write the checkpoint of a run that continues at `step` of `epoch` (both from 0), then delete older ones.

    The newest two are kept, and those written after every `keep_every` epochs. Raises OSError if the checkpoint cannot
    be written; the earlier ones are untouched then.
    """
    path = folder / f"epoch_{epoch:04d}_step_{step:06d}.pt"
    write_torch(path, state)
    up_to_this = [old for old in checkpoints(folder) if position(old) <= (epoch, step)]
    for old in up_to_this[:-KEPT_CHECKPOINTS]:
        epochs_done, steps_begun = position(old)
        if keep_every is None or steps_begun or epochs_done % keep_every:
            old.unlink()
    return path


def write_torch(path: Path, state: Mapping[str, Any]) -> None:
    """torch.save with a checksum of the content, atomically."""
    buffer = io.BytesIO()
    torch.save({**state, CHECKSUM: fingerprint(dict(state))}, buffer)
    write_atomically(path, buffer.getvalue())


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a run, oldest first.

    Sorted by number: as text epoch_10000 comes before epoch_9999, because names are padded to four digits only.
    """
    return sorted((path for path in folder.glob("epoch_*_step_*.pt") if NAME.fullmatch(path.name)), key=position)


def position(path: Path) -> tuple[int, int]:
    """The epoch and step that a run continues at from the checkpoint at `path`."""
    found = NAME.fullmatch(path.name)
    assert found is not None, path
    return int(found[1]), int(found[2])


def read_torch(path: Path) -> dict[str, Any]:
    """Read a file of `write_torch`: tensors and plain data only.

    Raises ValueError if the file is damaged, however it is; OSError if it cannot be opened.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        if error.errno not in BAD_SECTORS:
            raise
        raise ValueError(f"{path}: {error.strerror}") from None
    try:
        return _parsed(content)
    except MemoryError:
        raise  # says nothing about the file
    except Exception as error:  # zipfile, pickle and torch raise whatever damage leads them to
        if "allocate memory" in str(error):  # PyTorch's words for it
            raise MemoryError(str(error)) from None
        raise ValueError(f"{path}: {first_line(error)}") from None


def _parsed(content: bytes) -> dict[str, Any]:
    """The content of a checkpoint, verified; raises all kinds of errors if it is damaged."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
            raise ValueError("its members are compressed, which no checkpoint is")
        damaged = archive.testzip()  # torch.load does not verify the checksums of the members
    if damaged is not None:
        raise ValueError(f"checksum of {damaged} is wrong")
    state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    if not isinstance(state, dict):
        raise ValueError(f"it holds a {type(state).__name__}, not the state of a run")
    expected = state.pop(CHECKSUM, None)
    if expected is not None and expected != fingerprint(state):
        raise ValueError("its content does not match its checksum")
    return state


def load_newest(
    folder: Path, warn: Callable[[str], None], check: Callable[[dict[str, Any]], None] = lambda state: None
) -> tuple[Path, dict[str, Any]] | None:
    """The newest intact checkpoint and its path; None if there is no checkpoint at all.

    Skips damaged ones with a warning. `check` raises ValueError for a state that lacks something. Raises UsageError if
    all are damaged.
    """
    found = checkpoints(folder)
    for path in reversed(found):
        try:
            state = read_torch(path)
            check(state)
            return path, state
        except ValueError as error:
            said = str(error)
            warn(f"damaged checkpoint passed over: {said if str(path) in said else f'{path}: {said}'}")
    if found:
        raise UsageError(f"every checkpoint in {folder} is damaged; delete that folder to start the run over")
    return None


def set_aside_later(folder: Path, loaded: Path) -> None:
    """Rename the damaged checkpoints that are later than the one loaded, so that the run does not meet them again."""
    for path in checkpoints(folder):
        if position(path) > position(loaded):
            path.rename(path.with_name(f"{path.name}.damaged"))


def random_state(*, gpus: bool = True) -> dict[str, Any]:
    """The states of all generators that code in this process may draw from; `gpus=False` leaves GPUs uninitialised."""
    name, keys, *rest = np.random.get_state(legacy=True)  # noqa: NPY002 - its state is to be kept, too
    state = {
        "python": random.getstate(),
        "numpy": [name, np.asarray(keys).tolist(), *rest],
        "torch": torch.get_rng_state(),
    }
    if gpus and torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def set_random_state(state: Mapping[str, Any]) -> None:
    """Put all generators back to what `random_state` read."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if "cuda" in state and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])


def seed_everything(seed: int) -> None:
    """Seed all random number generators."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    torch.manual_seed(seed)
