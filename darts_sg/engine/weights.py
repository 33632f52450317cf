"""Weights files: trained weights as safetensors, with metadata that describe the network, its training and its score.

The metadata are the fields of `Metadata` as texts: strings as they are, everything else as JSON. Nothing in a file is
executed when it is read.
"""

import hashlib
import json
import re
import warnings
from collections import abc
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from darts_sg import remote
from darts_sg.analysis.run_folder import described_data
from darts_sg.data import SPLIT_DATASETS, DataSpec
from darts_sg.errors import UsageError, first_line, quoted
from darts_sg.files import refuse_irregular, why
from darts_sg.genotype import MAX_BYTES, Genotype, parse_genotype
from darts_sg.networks.build import NetworkPlan, is_auxiliary
from darts_sg.networks.derived import NetworkShape
from darts_sg.networks.mobile import Model, find_model
from darts_sg.ops import OPERATIONS
from darts_sg.options import members, read_value
from darts_sg.tasks import DEFAULT_TASK, Task, task_of

FORMAT = "darts_sg weights 1"
MOST_EDGES = 20_000  # of all cells of a network; one of 20 cells with 4 nodes has 160
LARGEST_IMAGE = 2**13  # pixels of a side


@dataclass(frozen=True, kw_only=True)
class Metadata:
    """What a weights file says of its weights."""

    task: str = DEFAULT_TASK
    task_options: Mapping[str, Any] | None = None
    """The options of the task that change the network or the meaning of its outputs; None if there are none."""
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
    preprocessing: str = ""
    """How an image becomes an input of the network, in words; empty in older files."""
    data_note: str = ""
    data_remark: str = ""
    data_fingerprint: str
    figures: Mapping[str, float]
    """The task's main figure, as result.json has it: of the test, and of the validation where images were held out.
    Each becomes an entry of the file under its own name."""
    test_images: int
    ema: float | None = None
    """Decay, if these are an exponential moving average of the weights; None for the weights themselves."""
    epoch: int
    """The weights were saved after this epoch, counted from 1."""
    epochs: int
    """Epochs of the whole training."""
    seed: int
    split_seed: int | None = None
    """Seed that a class folder was split by; None in older files, where it is the seed."""
    finetuned_from: Mapping[str, Any] | None = None
    """`Weights.origin` of the weights that the training started from."""
    darts_sg: str
    torch: str
    git: str

    def as_texts(self) -> dict[str, str]:
        """The metadata of the file; empty ones are left out, and each figure is an entry of its own."""
        given = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "figures"} | dict(self.figures)
        return {
            name: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            for name, value in given.items()
            if value not in (None, "")
        }

    @classmethod
    def from_texts(cls, texts: Mapping[str, str]) -> "Metadata":
        """The inverse of `as_texts`. Raises KeyError, TypeError or ValueError for texts that are no metadata."""
        hints = get_type_hints(cls)
        known = task_of({"task": texts.get("task")}).headline.name
        figures = {
            name: _read_json(name, texts[name], Mapping[str, float])
            for name in (f"test_{known}", f"validation_{known}")
            if name in texts
        }
        if f"test_{known}" not in figures:
            raise KeyError(f"test_{known}")
        found: dict[str, Any] = {"figures": figures}
        for name, hint in hints.items():
            if name in texts and name != "figures":
                is_text = hint in (str, NetworkShape)
                found[name] = read_value(hint, texts[name]) if is_text else _read_json(name, texts[name], hint)
        made = cls(**found)
        made._check()
        return made

    def _check(self) -> None:
        """ValueError for sizes that no network and no image has."""
        least = {"num_classes": 1, "in_channels": 1, "image_size": 1, "test_images": 0, "epoch": 0, "epochs": 0}
        if not self.model:
            least |= {"channels": 1, "cells": 3}
        for name, smallest in least.items():
            if (getattr(self, name) or 0) < smallest:
                raise ValueError(f"{name} is {getattr(self, name)}")
        if self.image_size > LARGEST_IMAGE:
            raise ValueError(f"image_size is {self.image_size}")
        if not all(deviation > 0 for deviation in self.std):
            raise ValueError(f"std is {quoted(self.std)}")


def _read_json(name: str, text: str, hint: Any) -> Any:
    """A value of the metadata that is written as JSON, of the type that `hint` says; ValueError if it is another."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name} is not JSON: {first_line(error)[:200]}") from None
    if hint == Mapping[str, float]:  # a single figure, which may be NaN
        fits = isinstance(value, int | float) and not isinstance(value, bool)
    elif get_origin(hint) is tuple:
        (member, _) = get_args(hint)
        if fits := isinstance(value, list):
            value = tuple(_typed(name, member, entry) for entry in value)
    elif any(get_origin(part) is abc.Mapping for part in members(hint)):
        fits = value is None or isinstance(value, dict)
    else:
        value, fits = _typed(name, hint, value), True
    if not fits:
        raise ValueError(f"{name} is {quoted(value)}")
    return value


def _typed(name: str, hint: Any, value: Any) -> Any:
    try:
        return read_value(hint, value)
    except UsageError as error:
        raise ValueError(f"{name}: {error}") from None


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
        """The network in words."""
        m = self.metadata
        kind = "model" if m.model else "genotype"
        cells = "" if m.model else f", C={m.channels}, {m.cells} cells"
        return f"{kind} {self.trained.name} ({m.network} shape{cells})"

    @property
    def data(self) -> str:
        """The data of training and test, with the remarks that have to stand beside every figure."""
        return described_data(self.metadata.dataset, self.metadata.data_note, self.metadata.data_remark)

    @property
    def history(self) -> str:
        """The training in words."""
        m = self.metadata
        ema = "" if m.ema is None else f"EMA of the weights (decay {m.ema:g}) "
        return f"{ema}after epoch {m.epoch} of {m.epochs} on {self.data}, seed {m.seed}, darts_sg {m.darts_sg}"

    @property
    def split_seed(self) -> int:
        """The seed that a test part was split off by; 0 for data that bring one."""
        m = self.metadata
        if m.split_seed is not None:
            return m.split_seed
        return m.seed if m.dataset == "folder" else 0

    def options(self) -> dict[str, Any]:
        """The options that make a training use the same network."""
        m = self.metadata
        genotype = "" if m.model else self.trained.name
        return {"genotype": genotype, "model": m.model, "network": m.network, "channels": m.channels, "cells": m.cells}

    def origin(self) -> dict[str, Any]:
        """What a training that starts from these weights records of them."""
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
            "split_seed": self.split_seed if m.dataset in SPLIT_DATASETS else "",
            self.task.headline.key("test"): self.recorded,
        }
        if m.task != DEFAULT_TASK:
            facts["task"] = m.task
        return {name: fact for name, fact in facts.items() if fact != ""}

    @property
    def task(self) -> Task:
        """The task that the network was trained for."""
        return task_of({"task": self.metadata.task, **(self.metadata.task_options or {})})

    @property
    def recorded(self) -> float:
        """The task's main figure on the test images, as the file says."""
        return self.metadata.figures[self.task.headline.key("test")]

    def refuse_other_channels(self, spec: DataSpec) -> None:
        """UsageError if images of `spec` have another number of channels than the network takes."""
        if spec.in_channels != self.spec.in_channels:
            raise UsageError(
                f"{self.path} takes images of {self.spec.in_channels} channels, those of {spec.name} have "
                f"{spec.in_channels}"
            )

    def build(self) -> nn.Module:
        """The network with these weights, in eval mode and without an auxiliary head. Raises what `load` raises."""
        m = self.metadata
        plan = NetworkPlan(trained=self.trained, shape=m.network, channels=m.channels, cells=m.cells)
        network = self.task.build(plan, self.spec)
        self.load(network)
        return network.eval()

    def refuse_other_tensors(self) -> None:
        """UsageError unless names and shapes of the tensors are those of the network that the metadata describe.

        It is built on PyTorch's meta device, where weights take no memory: metadata may claim 100,000 channels. Its
        cells are counted before, for those take time.
        """
        m = self.metadata
        if isinstance(self.trained, Genotype) and m.cells is not None:
            numbers = {found[1] for name in self.tensors if (found := re.search(r"(?:^|\.)cells\.(\d{1,9})\.", name))}
            if len(numbers) != m.cells:
                raise UsageError(
                    f"{self.path}: its tensors are not those of {self.title}: they are of {len(numbers)} cells"
                )
            edges = sum(1 for _, cell in self.trained.cells() for _ in cell.edges())
            if edges * m.cells > MOST_EDGES:
                raise UsageError(f"{self.path}: {m.cells} cells of its genotype have more than {MOST_EDGES:,} edges")
        plan = NetworkPlan(trained=self.trained, shape=m.network, channels=m.channels, cells=m.cells)
        try:
            with torch.device("meta"):
                network = self.task.build(plan, self.spec)
        except (UsageError, RuntimeError, TypeError, OverflowError) as error:  # such as sizes beyond 64 bits
            reason = first_line(error)[:200]
            raise UsageError(f"{self.path}: there is no network such as {self.title}: {reason}") from None
        shapes = {name: t.to("meta") for name, t in self.tensors.items() if not is_auxiliary(name)}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that nothing is copied to tensors without values, which is meant
            self._load(network, shapes)

    def load(self, network: nn.Module) -> None:
        """Load these weights into a network without an auxiliary head.

        Raises UsageError if the tensors do not fit the network that the metadata describe.
        """
        self._load(network, {name: t for name, t in self.tensors.items() if not is_auxiliary(name)})

    def start(self, network: nn.Module, task: Task, spec: DataSpec) -> str:
        """Initialise a network, to be trained for `task` on images of `spec`, with these weights.

        Returns in words which layers are new, see `Task.start_state`. Raises UsageError as `load` does.
        """
        state, changes = task.start_state(network, spec, self.tensors, self.task, self.spec)
        self._load(network, state)
        return f"starts from {self.path}, {self.title}, {self.history}: {', '.join(changes) or 'all weights kept'}"

    def _load(self, network: nn.Module, state: Mapping[str, Tensor]) -> None:
        try:
            network.load_state_dict(state)
        except RuntimeError as error:
            # PyTorch's first line names the class, each other one a tensor
            first = " ".join([*str(error).split("\n\t"), str(error)][1].split())[:300]
            raise UsageError(f"{self.path}: its tensors are not those of {self.title}: {first}") from None


def weights_bytes(state: Mapping[str, Tensor], metadata: Metadata) -> bytes:
    """The content of a weights file: the tensors of a state_dict, the metadata, and a checksum over both.

    The same tensors and metadata give the same bytes.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    texts = metadata.as_texts()
    return _ordered(save(tensors, {"format": FORMAT, **texts, "checksum": _checksum(tensors, texts)}))


def _ordered(content: bytes) -> bytes:
    """A safetensors file with its metadata sorted by name; the library writes them in a random order.

    The file is the length of the header in 8 bytes, the header as JSON, padded to a multiple of 8, and the tensors.
    """
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    metadata = dict(sorted(header.pop("__metadata__").items()))
    tensors = dict(sorted(header.items(), key=lambda item: (item[1]["data_offsets"], item[0])))
    text = json.dumps({"__metadata__": metadata, **tensors}, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return b"".join((len(text).to_bytes(8, "little"), text, memoryview(content)[end:]))


def weights_file(path: Path) -> Path:
    """The weights file that is meant: of a run folder, that of its last epoch. UsageError if the folder has none."""
    if not path.is_dir():
        return path
    if (last := path / "weights.safetensors").is_file():
        return last
    found = sorted(each.name for each in path.glob("weights*.safetensors"))
    if found:
        raise UsageError(f"{path} has no weights of a last epoch yet; give one of its files: {', '.join(found)}")
    raise UsageError(f"{path} is a folder without weights.safetensors: expected the folder of a finished augment run")


def read_weights(path: Path) -> Weights:
    """Read a weights file, that of a run folder, or one of another machine: hf://user/name[/file] or an https URL.

    Raises UsageError if it is not one, damaged, or of a network or task unknown here.
    """
    path = weights_file(remote.local_file(path, remote.WEIGHTS))
    try:
        refuse_irregular(path)
        with safe_open(path, framework="pt") as file:
            texts = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
    except OSError as error:
        kinds = {IsADirectoryError: "it is a folder", FileNotFoundError: "it does not exist"}
        reason = kinds.get(type(error)) or why(error)
        raise UsageError(f"weights file {path} cannot be read: {reason}") from None
    except SafetensorError as error:
        raise UsageError(
            f"{path} is not a weights file, or a damaged one (safetensors: {error}); expected the weights.safetensors "
            "of a finished augment run"
        ) from None
    if (found := texts.pop("format", None)) != FORMAT:
        what = "" if found is None else f" (its format is {quoted(found)}, known is {FORMAT!r})"
        raise UsageError(f"{path} holds tensors, but not of a darts_sg network{what}: expected a weights.safetensors")
    checksum = texts.pop("checksum", "")
    if checksum != _checksum(tensors, texts):
        raise UsageError(f"{path} is damaged: its content does not match its checksum; get it again")
    try:
        m = Metadata.from_texts(texts)
        if len(m.genotype) > MAX_BYTES:
            raise ValueError(f"its genotype is larger than {MAX_BYTES // 1024} KiB")
        spec = DataSpec(m.dataset, m.num_classes, m.image_size, m.in_channels, m.mean, m.std, m.class_names)
        known = list(OPERATIONS)
        trained = find_model(m.model) if m.model else parse_genotype(m.genotype, "yaml", known=known)
        weights = Weights(path, trained, spec, m, tensors, checksum)
        _ = weights.task  # made of the options of the metadata
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = first_line(error)[:200]
        raise UsageError(f"{path}: its metadata are not those of this version: {reason}") from None
    weights.refuse_other_tensors()
    return weights


def _checksum(tensors: Mapping[str, Tensor], texts: Mapping[str, str]) -> str:
    """32 hex digits of a SHA-256 over the texts and over names, types, shapes and bytes of the tensors."""
    digest = hashlib.sha256(json.dumps(dict(sorted(texts.items()))).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:32]
