"""Trained weights as one file: safetensors, whose metadata say which network they are of, what for, and how good.

The metadata are texts, those of `Metadata`: texts as they are, all else as JSON. Nothing in a file is executed.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_type_hints

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from darts_sg.analysis.run_folder import described_data
from darts_sg.data import DataSpec
from darts_sg.engine.subject import Network, build_network
from darts_sg.errors import UsageError
from darts_sg.genotype import Genotype, parse_genotype
from darts_sg.networks.derived import NetworkShape
from darts_sg.networks.mobile import Model, find_model
from darts_sg.ops import OPERATIONS

FORMAT = "darts_sg weights 1"
AUXILIARY = "auxiliary_head."  # how the names of the auxiliary head's tensors begin


@dataclass(frozen=True, kw_only=True)
class Metadata:
    """What is known of trained weights; errors in percent."""

    genotype: str = ""
    """The text of the genotype file; empty for a model."""
    model: str = ""
    """Name of the model; empty for a genotype."""
    network: NetworkShape
    channels: int | None = None
    cells: int | None = None
    dataset: str
    num_classes: int
    class_names: tuple[str, ...]
    image_size: int
    in_channels: int
    mean: tuple[float, ...]
    """Per channel, for pixels scaled to 0..1: images are normalised by (pixel / 255 - mean) / std."""
    std: tuple[float, ...]
    data_note: str = ""
    data_remark: str = ""
    data_fingerprint: str
    test_error: float
    test_images: int
    validation_error: float | None = None
    ema: float | None = None
    """Decay of the exponential moving average of the weights that these are; None for the weights themselves."""
    epoch: int
    """After which the weights are these."""
    epochs: int
    """Of the whole training."""
    seed: int
    finetuned_from: Mapping[str, Any] | None = None
    """What `Weights.origin` said of the weights that the training started from."""
    darts_sg: str
    torch: str
    git: str

    def as_texts(self) -> dict[str, str]:
        """The metadata of the file, without those that say nothing."""
        given = {f.name: getattr(self, f.name) for f in fields(self)}
        return {
            name: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            for name, value in given.items()
            if value not in (None, "")
        }

    @classmethod
    def from_texts(cls, texts: Mapping[str, str]) -> "Metadata":
        """The inverse of `as_texts`; KeyError, TypeError or ValueError for texts that are no metadata."""
        hints = get_type_hints(cls)
        found: dict[str, Any] = {}
        for name in hints.keys() & texts.keys():
            value = texts[name] if hints[name] in (str, NetworkShape) else json.loads(texts[name])
            found[name] = tuple(value) if isinstance(value, list) else value
        return cls(**found)


@dataclass(frozen=True)
class Weights:
    """A trained network, as a file holds it."""

    path: Path
    trained: Genotype | Model
    spec: DataSpec
    metadata: Metadata
    tensors: dict[str, Tensor]
    checksum: str

    @property
    def title(self) -> str:
        """Which network they are of, in words."""
        m = self.metadata
        kind = "model" if m.model else "genotype"
        cells = "" if m.model else f", C={m.channels}, {m.cells} cells"
        return f"{kind} {self.trained.name} ({m.network} shape{cells})"

    @property
    def data(self) -> str:
        """The data that they were trained and tested on, as they must stand beside every figure."""
        return described_data(self.metadata.dataset, self.metadata.data_note, self.metadata.data_remark)

    @property
    def history(self) -> str:
        """The training that they come from, in words."""
        m = self.metadata
        ema = "" if m.ema is None else f"EMA of the weights (decay {m.ema:g}) "
        return f"{ema}after epoch {m.epoch} of {m.epochs} on {self.data}, seed {m.seed}, darts_sg {m.darts_sg}"

    def options(self) -> dict[str, Any]:
        """The options of a training that say the network."""
        m = self.metadata
        genotype = "" if m.model else self.trained.name
        return {"genotype": genotype, "model": m.model, "network": m.network, "channels": m.channels, "cells": m.cells}

    def origin(self) -> dict[str, Any]:
        """What a training that starts from them records."""
        m = self.metadata
        facts = {
            "file": self.path.name,
            "checksum": self.checksum,
            "dataset": m.dataset,
            "data_note": m.data_note,
            "data_remark": m.data_remark,
            "num_classes": m.num_classes,
            "ema": "" if m.ema is None else m.ema,
            "epoch": m.epoch,
            "seed": m.seed,
            "test_error": m.test_error,
        }
        return {name: fact for name, fact in facts.items() if fact != ""}

    def refuse_other_channels(self, spec: DataSpec) -> None:
        """UsageError if images of `spec` have another number of channels than the network takes."""
        if spec.in_channels != self.spec.in_channels:
            raise UsageError(
                f"{self.path} takes images of {self.spec.in_channels} channels, those of {spec.name} have "
                f"{spec.in_channels}"
            )

    def build(self) -> Network:
        """The network with these weights in eval mode, without an auxiliary head; raises what `load` raises."""
        m = self.metadata
        network = build_network(self.trained, m.network, m.channels, m.cells, self.spec, auxiliary=False)
        self.load(network)
        return network.eval()

    def load(self, network: Network) -> None:
        """Give a network without an auxiliary head these weights.

        Raises UsageError if the tensors are not those of the network that the metadata tell of.
        """
        self._load(network, {name: t for name, t in self.tensors.items() if not name.startswith(AUXILIARY)})

    def start(self, network: Network, num_classes: int) -> str:
        """Give a network to train for so many classes these weights; says which layers start anew.

        That are the classifiers if the file is for another number of classes, and an auxiliary head that it has not.
        Raises UsageError as `load` does.
        """
        own = network.state_dict()
        wanted, given = ({n for n in state if n.startswith(AUXILIARY)} for state in (own, self.tensors))
        linear = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
        others = num_classes != self.spec.num_classes
        fresh = {f"{name}.{part}" for name in linear for part in ("weight", "bias")} if others else set()
        changes = []
        if others:
            both = " and auxiliary classifier" if wanted and given else ""
            changes.append(f"classifier{both} new, for {num_classes} classes instead of {self.spec.num_classes}")
        if wanted and not given:
            changes.append("auxiliary head new")
        if given and not wanted:
            changes.append("auxiliary head left out")
        kept = {name: t for name, t in self.tensors.items() if name not in fresh | (given - wanted)}
        self._load(network, {name: own[name] for name in fresh | (wanted - given)} | kept)
        return f"starts from {self.path}, {self.title}, {self.history}: {', '.join(changes) or 'all weights kept'}"

    def _load(self, network: Network, state: Mapping[str, Tensor]) -> None:
        try:
            network.load_state_dict(state)
        except RuntimeError as error:
            first = " ".join(str(error).split("\n\t")[1].split())
            raise UsageError(f"{self.path}: its tensors are not those of {self.title}: {first}") from None


def weights_bytes(state: Mapping[str, Tensor], metadata: Metadata) -> bytes:
    """The content of a weights file: the tensors of a state_dict, the metadata, and a checksum over both."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    texts = metadata.as_texts()
    return save(tensors, {"format": FORMAT, **texts, "checksum": _checksum(tensors, texts)})


def read_weights(path: Path) -> Weights:
    """Read a weights file; UsageError if it is none, damaged, or of a network that this version does not know."""
    try:
        with safe_open(path, framework="pt") as file:
            texts = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
    except OSError as error:
        reason = "it is a folder" if path.is_dir() else "it does not exist" if not path.exists() else str(error)
        raise UsageError(f"weights file {path} cannot be read: {reason}") from None
    except SafetensorError as error:
        raise UsageError(
            f"{path} is not a weights file, or a damaged one (safetensors: {error}); expected the weights.safetensors "
            "of a finished augment run"
        ) from None
    if (found := texts.pop("format", None)) != FORMAT:
        what = "" if found is None else f" (its format is {found!r}, known is {FORMAT!r})"
        raise UsageError(f"{path} holds tensors, but not of a darts_sg network{what}: expected a weights.safetensors")
    checksum = texts.pop("checksum", "")
    if checksum != _checksum(tensors, texts):
        raise UsageError(f"{path} is damaged: its content does not match its checksum; get it again")
    try:
        m = Metadata.from_texts(texts)
        spec = DataSpec(m.dataset, m.num_classes, m.image_size, m.in_channels, m.mean, m.std, m.class_names)
        known = list(OPERATIONS)
        trained = find_model(m.model) if m.model else parse_genotype(m.genotype, "yaml", known=known)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{path}: its metadata are not those of this version: {error}") from None
    return Weights(path, trained, spec, m, tensors, checksum)


def _checksum(tensors: Mapping[str, Tensor], texts: Mapping[str, str]) -> str:
    """32 hex digits of a SHA-256 over names, types, shapes and bytes of the tensors, and over the texts."""
    digest = hashlib.sha256(json.dumps(dict(sorted(texts.items()))).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:32]
