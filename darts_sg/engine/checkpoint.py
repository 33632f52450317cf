"""Checkpoints: everything a run needs to continue to the same bits, written atomically, read as plain data."""

import io
import pickle
import random
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from darts_sg.errors import UsageError
from darts_sg.files import write_atomically

KEPT = 2  # the newest, and the one before it should that be damaged


def save_checkpoint(
    folder: Path, epoch: int, step: int, state: Mapping[str, Any], keep_every: int | None = None
) -> Path:
    """Write the state at `step` of `epoch` (both counted from 0: what comes next) and drop older ones.

    Kept are the newest two, and that after each epoch which `keep_every` divides. Raises OSError if it cannot be
    written; the earlier checkpoints are untouched then.
    """
    path = folder / f"epoch_{epoch:04d}_step_{step:06d}.pt"
    write_torch(path, state)
    for old in checkpoints(folder)[:-KEPT]:
        done, begun = map(int, re.findall(r"\d+", old.stem))
        if keep_every is None or begun or done % keep_every:
            old.unlink()
    return path


def write_torch(path: Path, state: Mapping[str, Any]) -> None:
    """torch.save, atomically."""
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    write_atomically(path, buffer.getvalue())


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    return sorted(folder.glob("epoch_*_step_*.pt"))


def read_torch(path: Path) -> dict[str, Any]:
    """Read what `write_torch` wrote; plain data and tensors only. ValueError if the file is damaged."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()  # compares the checksum of every member
        if damaged is not None:
            raise ValueError(f"{path}: checksum of {damaged} is wrong")
        return torch.load(path, map_location="cpu", weights_only=True)
    except (zipfile.BadZipFile, RuntimeError, EOFError, KeyError, pickle.UnpicklingError) as error:
        raise ValueError(f"{path}: {' '.join(str(error).split())}") from None


def load_newest(folder: Path, warn: Callable[[str], None]) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint that is whole, with its path; None if there is no checkpoint at all.

    A damaged one is passed over with a warning. UsageError if none is whole.
    """
    found = checkpoints(folder)
    for path in reversed(found):
        try:
            return path, read_torch(path)
        except ValueError as error:
            warn(f"damaged checkpoint passed over: {error}")
    if found:
        raise UsageError(f"every checkpoint in {folder} is damaged; delete that folder to start the run over")
    return None


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
    """Seed all generators."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    torch.manual_seed(seed)
