"""Published checkpoints as the start of a training: those of MobileNeXt's authors, and torchvision's of MobileNetV2.

A checkpoint is read by PyTorch's reader for tensors only, which executes nothing. Its tensors are mapped by name and
shape, each to one of ours: what is left over on either side is an error.
"""

import hashlib
import pickle
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from darts_sg import remote
from darts_sg.data import DataSpec
from darts_sg.data.imagenet import MEAN, STD
from darts_sg.engine.weights import Weights, read_weights
from darts_sg.errors import UsageError, first_line
from darts_sg.files import refuse_irregular, why
from darts_sg.networks.mobile import MODELS, MobileBlock, MobileNetwork, Model, spelled_model
from darts_sg.ops.primitives import ConvBN
from darts_sg.tasks import Task, task_of

NUM_CLASSES = 1000
SUFFIXES = (".pth", ".pt", ".tar", ".ckpt", ".bin")
PREFIXES = ("module.", "model.", "")
"""Of the names in a checkpoint: those of DataParallel and of some training scripts."""
CONTAINERS = ("state_dict", "model", "state_dict_ema")
"""Entries of a checkpoint that may hold the tensors."""
FAMILIES = ("mobilenext", "mobilenetv2")


@dataclass(frozen=True)
class PublishedWeights:
    """The tensors of a published checkpoint under the names of our network; see `darts_sg.engine.weights.Weights`."""

    path: Path
    trained: Model
    tensors: dict[str, Tensor]
    checksum: str
    split_seed: int = 0

    @property
    def task(self) -> Task:
        return task_of({})

    @property
    def spec(self) -> DataSpec:
        """ImageNet; the classes have no names in a checkpoint."""
        names = tuple(str(number) for number in range(NUM_CLASSES))
        return DataSpec("imagenet", NUM_CLASSES, 224, 3, MEAN, STD, names)

    def options(self) -> dict[str, Any]:
        """The options that make a training use the same network."""
        return {"genotype": "", "model": self.trained.name, "network": "imagenet", "channels": None, "cells": None}

    def origin(self) -> dict[str, Any]:
        """What a training that starts from these weights records of them."""
        return {"file": str(self.path), "checksum": self.checksum, "published": self.trained.name}

    def refuse_other_channels(self, spec: DataSpec) -> None:
        """UsageError if images of `spec` have another number of channels than the network takes."""
        if spec.in_channels != 3:
            raise UsageError(f"{self.path} takes images of 3 channels, those of {spec.name} have {spec.in_channels}")

    def start(self, network: nn.Module, task: Task, spec: DataSpec) -> str:
        """Initialise a network with these weights; returns in words which layers are new."""
        state, changes = task.start_state(network, spec, self.tensors, self.task, self.spec)
        network.load_state_dict(state)
        title = f"published checkpoint of {self.trained.name}, ImageNet"
        return f"starts from {self.path}, {title}: {', '.join(changes) or 'all weights kept'}"


Start = Weights | PublishedWeights
"""What a training can start from."""


def read_start(path: Path, model: str = "") -> Start:
    """The weights file, run folder or published checkpoint to start from, told apart by the name of the file.

    model: the model that is asked for, which a checkpoint does not name. Raises UsageError if it cannot be read.
    """
    if path.suffix in SUFFIXES and not path.is_dir() and not remote.is_address(path):
        return read_published(path, model)
    return read_weights(path)


def read_published(path: Path, wanted: str = "") -> PublishedWeights:
    """Read a checkpoint. wanted: the name of the model it should hold; else the registered one whose shapes it has.

    Raises UsageError if it cannot be read, or has other tensors than such a model.
    """
    try:
        refuse_irregular(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
        checksum = hashlib.sha256(path.read_bytes()).hexdigest()[:32]
    except OSError as error:
        raise UsageError(f"checkpoint {path} cannot be read: {why(error)}") from None
    except (pickle.UnpicklingError, zipfile.BadZipFile, RuntimeError, ValueError, EOFError, LookupError) as error:
        raise UsageError(
            f"{path} is no checkpoint that holds tensors only, or a damaged one ({first_line(error)[:200]})"
        ) from None
    found = _tensors(content, path)
    names = [wanted] if wanted else [name for name in MODELS if name.startswith(FAMILIES)]
    problems = {}
    for name in names:
        model = spelled_model(name)
        if model is None or not name.startswith(FAMILIES):
            raise UsageError(f"{path}: published checkpoints are known of {', '.join(FAMILIES)}, not of {name}")
        mapped, problem = _mapped(model, found)
        if not problem:
            return PublishedWeights(path, model, mapped, checksum)
        problems[name] = problem
    which = f"{wanted}: {problems[wanted]}" if wanted else f"any registered model, such as {names[0]}"
    raise UsageError(f"{path}: its tensors are not those of {which}")


def _tensors(content: Any, path: Path) -> dict[str, Tensor]:
    """The state_dict of a checkpoint, without a prefix that all of its names have."""
    if isinstance(content, Mapping):
        content = next((content[key] for key in CONTAINERS if isinstance(content.get(key), Mapping)), content)
    if not isinstance(content, Mapping) or not content:
        raise UsageError(f"{path} holds no tensors by name")
    if not all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in content.items()):
        raise UsageError(f"{path} holds other things than tensors by name")
    prefix = next(prefix for prefix in PREFIXES if all(name.startswith(prefix) for name in content))
    return {name.removeprefix(prefix): tensor for name, tensor in content.items()}


def _mapped(model: Model, found: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """The tensors under our names, and what does not fit; empty if all does."""
    with torch.device("meta"):
        network = MobileNetwork(model, network="imagenet", num_classes=NUM_CLASSES)
    own = network.state_dict()
    names = dict(_names(network, model))
    mapped = {}
    for name, tensor in own.items():
        layer, _, kind = name.rpartition(".")
        theirs = f"{names[layer]}.{kind}"
        if theirs not in found:
            if kind == "num_batches_tracked":  # missing in checkpoints of PyTorch before 0.4.1
                mapped[name] = torch.zeros((), dtype=torch.int64)
                continue
            return {}, f"{theirs} is missing"
        if found[theirs].shape != tensor.shape:
            return {}, f"{theirs} is {tuple(found[theirs].shape)}, not {tuple(tensor.shape)}"
        mapped[name] = found[theirs].to(tensor.dtype)
    known = {f"{names[name.rpartition('.')[0]]}.{name.rpartition('.')[2]}" for name in own}
    if left := sorted(set(found) - known):
        return {}, f"{left[0]} is not in the network"
    return mapped, ""


def _names(network: MobileNetwork, model: Model) -> Iterator[tuple[str, str]]:
    """(our name, published name) of each layer with weights.

    Both publish stem, blocks and last convolution as features.0, features.1, …. A block of MobileNeXt is a flat chain
    conv.0, conv.1, …, activations counted; one of MobileNetV2 has conv - BN - ReLU6 as groups conv.0.0, conv.0.1, and
    the last convolution and BN as conv.K and conv.K+1.
    """
    yield from (("features.0", "features.0.0"), ("features.1", "features.0.1"))
    number = 0
    layers = list(network.features.named_children())
    for index, layer in layers[3:]:
        if isinstance(layer, MobileBlock):
            number += 1
            prefix, theirs = f"features.{index}.body", f"features.{number}.conv"
            yield from _of_block(prefix, theirs, layer, grouped=model.family.last_conv)
        elif isinstance(layer, ConvBN):  # behind the blocks
            yield from ((f"features.{index}.{k}", f"features.{number + 1}.{k}") for k in (0, 1))
    yield from (("classifier.1", "classifier.1"),)


def _of_block(prefix: str, theirs: str, block: MobileBlock, *, grouped: bool) -> Iterator[tuple[str, str]]:
    flat: list[tuple[str, nn.Module]] = []
    for name, layer in block.body.named_children():
        if isinstance(layer, ConvBN):
            flat += [(f"{name}.{inner}", module) for inner, module in layer.named_children()]
        else:
            flat.append((name, layer))
    group, within = 0, 0
    for place, (name, layer) in enumerate(flat):
        if not grouped:
            published = f"{theirs}.{place}"
        elif place >= len(flat) - 2:  # the last convolution and its BN have no group
            published = f"{theirs}.{group + place - len(flat) + 2}"
        else:
            published = f"{theirs}.{group}.{within}"
        if isinstance(layer, nn.ReLU6):
            group, within = group + 1, 0
            continue
        within += 1
        yield f"{prefix}.{name}", published
