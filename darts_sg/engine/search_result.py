"""What a search leaves: the files of each epoch, and genotypes with their provenance."""

import io
import shlex
from collections.abc import Mapping, Sequence
from datetime import datetime
from types import MappingProxyType
from typing import Any

import numpy as np

from darts_sg import plugins
from darts_sg.config import SearchConfig
from darts_sg.derive import Array
from darts_sg.engine.setup import Setting
from darts_sg.genotype import Cell, Genotype
from darts_sg.methods.early_stopping import EarlyStop
from darts_sg.spaces import Space

NOT_RECORDED = {
    "run_dir",
    "data",
    "time_budget",
    "threads",
    "logger",
    "plugin",
}  # options that say nothing about the genotype


def npz_bytes(arrays: Mapping[str, Array]) -> bytes:
    """The content of an npz file of `arrays`."""
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def searched_genotype(
    cells: tuple[Cell, Cell],
    space: Space,
    config: SearchConfig,
    setting: Setting,
    *,
    run: str,
    epoch: int,
    images: tuple[int, int],
    measured: Mapping[str, Any],
    stopped: EarlyStop | None,
    num_epochs: int,
    decisions: Sequence[Mapping[str, Any]] | None = None,
    candidates: Sequence[Mapping[str, Any]] | None = None,
) -> Genotype:
    """The genotype of the (normal, reduction) cell derived after `epoch`, with its provenance.

    run: the name of the run folder. images: how many trained the weights and the alphas. num_epochs: of the whole
    search. decisions: of a selection phase so far. candidates: the best of a search that compares them.
    """
    provenance = {
        "kind": "searched",
        "run": run,
        "command": f"python search.py --config {shlex.quote(f'{run}/config.yaml')}",
        "epoch": f"{epoch} of {num_epochs}",
        **({} if stopped is None else {"stopped_early": stopped._asdict()}),
        "data": data_line(setting, config.data_note),
        "data_fingerprint": setting.data.fingerprint(),
        "train_images": images[0],
        "validation_images": images[1],
        "seed": config.seed,
        "date": datetime.now().astimezone().date().isoformat(),
        "code": setting.code(),
        **({"plugins": credits} if (credits := plugins.credits()) else {}),
        "measured": dict(measured),
        **({} if decisions is None else {"decisions": [dict(made) for made in decisions]}),
        **({} if candidates is None else {"candidates": [dict(each) for each in candidates]}),
        "options": {name: value for name, value in config.as_dict().items() if name not in NOT_RECORDED},
    }
    name = "".join(c if c.isalnum() or c in "_.+-" else "_" for c in f"{space.name}_seed{config.seed}")
    return Genotype(name, space.name, space.operations, *cells, MappingProxyType(provenance))


def data_line(setting: Setting, note: str) -> str:
    """The data set, with the remarks that belong to every figure measured on it."""
    return "; ".join(part for part in (setting.data.spec.name, note, setting.data.remark) if part)
