"""The options of both jobs, with their help and validation, and the named recipes.

The text under a field is its help. Values come, weakest first, from the defaults here, from a recipe, from a
YAML file, and from the command line.
"""

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import docstring_parser
import yaml

from darts_sg.errors import UsageError
from darts_sg.methods.hypergradient import HYPERGRADIENTS
from darts_sg.methods.relaxation import RELAXATIONS
from darts_sg.networks.derived import NetworkShape
from darts_sg.networks.mobile import find_model
from darts_sg.quantity import parse_quantity
from darts_sg.registry import unknown_name
from darts_sg.spaces import parse_space

RECIPES = Path(__file__).parent / "recipes"
MOST_THREADS = 1024  # more than any machine has cores; the system may end a process that asks for too many


def option(default: Any, group: str, *, free: bool = False) -> Any:
    """A field with its help group; `free` options do not change the result and may differ when a run is resumed."""
    return field(default=default, metadata={"group": group, "free": free})


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What search and augment have in common."""

    recipe: str = option("", "Run")
    """Named set of options to start from; other options override it."""
    run_dir: Path | None = option(None, "Run", free=True)
    """Folder of this run, which must not exist yet; with torchrun --max-restarts a run of the same options there is
    continued. Default: a new folder under runs/."""
    seed: int = option(0, "Run")
    """Random seed: the same seed gives the same bits on the same machine."""
    device: str = option("auto", "Run", free=True)
    """Device to run on: cpu, cuda, cuda:1, mps, …; auto takes a GPU if there is one. With torchrun each process takes a
    GPU of its own."""
    threads: int | None = option(None, "Run", free=True)
    """CPU threads per process. Default: one per core, with torchrun one. The last bits of a result depend on it, so a
    resumed run keeps its own."""
    time_budget: float | None = option(None, "Run", free=True)
    """Minutes after the start of the process at which the run saves a checkpoint and ends, to be continued with
    --resume."""
    checkpoint_minutes: float = option(10.0, "Run", free=True)
    """Minutes between checkpoints within an epoch; there is one at the end of each epoch anyway."""
    logger: str = option("", "Run", free=True)
    """Loggers beside metrics.csv and TensorBoard, which are always on: wandb (Weights & Biases), mlflow, or several
    joined with +. Each needs its package: pip install 'darts_sg[wandb]'. A logger that fails does not end the run."""

    dataset: str = option("cifar10", "Data")
    """Data set: cifar10, cifar100, fashion_mnist, folder (class folders of your own images), imagenet or synthetic."""
    data: Path = option(Path("data"), "Data", free=True)
    """Folder that holds the data set, and that it is downloaded to."""
    data_note: str = option("", "Data")
    """Remark to print with every result measured on this data, such as 'CIFAR-10 (JPEG q75)'."""
    image_size: int | None = option(None, "Data")
    """Side in pixels to which images of --dataset folder or imagenet are resized. Default: chosen from the images of
    folder; 224 for imagenet."""
    workers: int | None = option(None, "Data", free=True)
    """Processes that read the files of --dataset imagenet ahead, for each stream of batches; 0 for none. Fewer are
    started where their batches would take more than 1/8 of the memory available. Default: one a core."""
    damaged: Literal["skip", "stop"] = option("skip", "Data", free=True)
    """What to do about an image of --dataset imagenet that cannot be decoded. skip: warn, train on the next one, leave
    it out of tests. stop: name it and end the run."""
    reduced_decoding: bool = option(False, "Data")
    """Decode JPEGs of --dataset imagenet at 1/2, 1/4 or 1/8 of their size if that is large enough for --image-size:
    faster, with slightly different pixels."""
    train_images: int | None = option(None, "Data")
    """Number of training images: a seeded, class-balanced subset."""
    validation_images: int | None = option(None, "Data")
    """Number of images taken out of the training set for validation, class-balanced."""
    cutout_length: int = option(0, "Data")
    """Side in pixels of the square cut out of each training image; 0 for none."""
    colour_jitter: float = option(0.0, "Data")
    """Strength s of the colour jitter of training images: brightness, contrast and saturation change by factors within
    1 ± s, the hue by up to s/2 turns, in random order; 0 for none."""

    epochs: int = option(1, "Training")
    """Number of epochs."""
    batch_size: int = option(64, "Training")
    """Images in a batch, the unit of a step; the last one of an epoch has those that are left. Of several processes
    (torchrun) each computes its share, so that neither this nor the learning rate depends on their number."""
    learning_rate: float = option(0.025, "Training")
    """Learning rate of the weights in the first epoch."""
    learning_rate_min: float = option(0.0, "Training")
    """Learning rate that the schedule ends at."""
    momentum: float = option(0.9, "Training")
    """Momentum of the weights' SGD."""
    weight_decay: float = option(3e-4, "Training")
    """Weight decay of the weights."""
    gradient_clip: float = option(5.0, "Training")
    """Largest norm of the weights' gradient; .inf for any."""

    precision: Literal["float32", "bfloat16"] = option("float32", "Training")
    """Precision of the training steps: float32, or bfloat16 where PyTorch's autocast allows it (for GPUs; a CPU gains
    nothing). Weights, losses and evaluation stay in float32."""
    compile: bool = option(False, "Training")
    """Have torch.compile make faster code: the network of augment in a minute or so; in a search each batch of edges,
    which on a CPU takes long and gains nothing. The last bits of the result differ from those without it."""

    kernels: Literal["auto", "native", "pytorch"] = option("auto", "Training", free=True)
    """What computes the operations of cells: native (C++ kernels on a CPU, Triton kernels in a search on a CUDA GPU,
    both compiled at the first run, and compared with PyTorch's before they are used) or pytorch. The last bits of a
    result depend on it. Default: native where there is a C++ compiler, or Triton; a resumed run keeps its own."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "image_size", "train_images", "validation_images", "threads"):
            self._at_least(name, 1)
        for name in (
            "cutout_length", "colour_jitter", "workers", "seed", "learning_rate_min", "momentum", "weight_decay",
        ):  # fmt: skip
            self._at_least(name, 0)
        for name, most in (("threads", MOST_THREADS), ("seed", 2**63 - 1)):
            value = getattr(self, name)
            if value is not None and value > most:
                raise UsageError(f"{flag(name)} must be at most {most}, found {value}")
        for name in ("learning_rate", "gradient_clip", "time_budget", "checkpoint_minutes"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UsageError(f"{flag(name)} must be above 0, found {value}")

    def _at_least(self, name: str, least: float) -> None:
        value = getattr(self, name)
        if value is not None and not value >= least:
            raise UsageError(f"{flag(name)} must be at least {least}, found {value}")

    def as_dict(self) -> dict[str, Any]:
        """The options as plain values, in order."""
        plain = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: str(v) if isinstance(v, Path) else v for name, v in plain.items()}


@dataclass(frozen=True, kw_only=True)
class SearchConfig(RunConfig):
    """Options of the search (defaults: DARTS paper, appendix A.1.1, first order)."""

    recipe: str = option("darts-first", "Run")
    train_images: int | None = option(None, "Data")
    """Images the weights are trained on: a seeded, class-balanced part. Default: what --validation-images leaves,
    or half of the training set."""
    validation_images: int | None = option(None, "Data")
    """Images the alphas are trained on, disjoint from the others. Default: as many as --train-images, or half."""
    split: Path | None = option(None, "Data", free=True)
    """File with the images of --dataset imagenet for the weights and for the alphas (see python -m darts_sg data
    subset). The run keeps a copy."""
    epochs: int = option(50, "Training")
    learning_rate_min: float = option(0.001, "Training")
    network: NetworkShape = option("cifar", "Network")
    """Shape of the supernet, and of the derived network whose size is meant below. cifar: stem at full resolution.
    imagenet: stem of three convolutions that reduces by 8, as PC-DARTS searches on ImageNet."""
    channels: int = option(16, "Network")
    """Channels C of the first cells."""
    cells: int = option(8, "Network")
    """Number of cells; those at 1/3 and 2/3 of the depth are reduction cells."""

    space: str = option("darts+sandglass", "Search")
    """Candidate operations: named spaces and single operations joined with + (see python -m darts_sg spaces)."""
    nodes: int = option(4, "Search")
    """Nodes of a cell."""
    stem_multiplier: int = option(3, "Search")
    """Channels of the stem of the cifar shape, in units of --channels."""
    hypergradient: str = option("first_order", "Search")
    """Gradient of the alphas: first_order, or unrolled (second order)."""
    penalty: str = option("", "Search")
    """Penalty on the expected size of the derived network (CIFAR, C=36, 20 cells; ImageNet, C=48, 14 cells), added to
    the loss of the alphas: params:0.1 or macs:0.1. The weight multiplies the expected size in units of that of even
    mixing weights, or with a target what is above it, in units of the target."""
    target_params: str = option("", "Search")
    """Parameters that the derived network (of that size) may have at most, such as 2.45M: a penalty of weight 1,
    unless --penalty says otherwise, and the genotype is derived within the bound."""
    target_macs: str = option("", "Search")
    """The same for multiply-adds, such as 600M."""
    recompute: bool = option(False, "Search", free=True)
    """Compute each cell again in the backward pass instead of keeping what is in it: a fraction of the memory, the
    same bits, somewhat more time."""
    capture: bool = option(True, "Search", free=True)
    """On a CUDA GPU, capture the launches of a step once, as a CUDA graph, and replay them: the same bits, without
    waiting for Python. Not with several processes, penalties or --compile, which run launch by launch."""
    relaxation: str = option("softmax", "Search")
    """How alphas become mixing weights: softmax."""
    partial_channels: int = option(1, "Search")
    """K: only 1/K of the channels pass through the candidate operations (PC-DARTS)."""
    edge_normalization: bool = option(False, "Search")
    """Learn a weight for each edge beside those of its operations (PC-DARTS)."""
    alpha_learning_rate: float = option(3e-4, "Search")
    """Learning rate of the alphas' Adam."""
    alpha_weight_decay: float = option(1e-3, "Search")
    """Weight decay of the alphas."""
    alpha_frozen_epochs: int = option(0, "Search")
    """Epochs at the start in which only the weights learn."""
    eigenvalue_every: int = option(0, "Search", free=True)
    """Measure the dominant eigenvalue of the validation loss's Hessian in the alphas after every so many epochs, and
    after the last; 0 for never. Where it grows, a search is about to collapse (RobustDARTS). On one fixed batch of at
    most 64 validation images, in float64; changes nothing else of the run. Takes as long as about 10 steps of the same
    batch size with the native kernels, several times longer with --kernels pytorch on a CPU."""
    stop_eigenvalue: float | None = option(None, "Search")
    """End the search once the eigenvalue, averaged over 5 epochs, was less than this many times as large 5 epochs
    before, and return the genotype of then, but none before epoch 11. RobustDARTS: 0.75. Needs --eigenvalue-every 1.
    Default: never."""
    stop_skips: int | None = option(None, "Search")
    """End the search once the normal cell derived after an epoch has more skip connections than this, and return the
    last genotype that has not. A search that has more from the start goes on. Default: never."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("channels", "nodes", "stem_multiplier", "partial_channels"):
            self._at_least(name, 1)
        if self.split is not None and (self.train_images or self.validation_images):
            raise UsageError("--split says which images are used: leave --train-images and --validation-images out")
        self._at_least("cells", 3)
        for name in (
            "alpha_frozen_epochs", "alpha_learning_rate", "alpha_weight_decay", "eigenvalue_every", "stop_skips",
        ):  # fmt: skip
            self._at_least(name, 0)
        if self.stop_eigenvalue is not None:
            if not 0 < self.stop_eigenvalue < 1:
                raise UsageError(f"--stop-eigenvalue must be between 0 and 1, such as 0.75: {self.stop_eigenvalue}")
            if self.eigenvalue_every != 1:
                raise UsageError(
                    f"--stop-eigenvalue {self.stop_eigenvalue} needs the eigenvalue of every epoch: add "
                    "--eigenvalue-every 1"
                )
        parse_space(self.space)
        self.penalties()
        HYPERGRADIENTS[self.hypergradient]
        RELAXATIONS[self.relaxation]

    def penalties(self) -> dict[str, tuple[float, int | None]]:
        """(weight, target) of the penalty on either size, params and macs, that is asked for; UsageError if unclear."""
        found: dict[str, tuple[float, int | None]] = {}
        for name in PENALTIES:
            target = getattr(self, f"target_{name}")
            if target:
                found[name] = 1.0, parse_quantity(flag(f"target_{name}"), target)
        if self.penalty:
            name, _, weight = self.penalty.partition(":")
            if name not in PENALTIES or not re.fullmatch(r"\d+(\.\d+)?(e-?\d+)?", weight):
                raise UsageError(f"--penalty {self.penalty}: expected params:WEIGHT or macs:WEIGHT, such as params:0.1")
            found[name] = float(weight), found.get(name, (0.0, None))[1]
        return found


@dataclass(frozen=True, kw_only=True)
class AugmentConfig(RunConfig):
    """Options of the training of the network of a genotype, or of a model (defaults: DARTS paper, appendix A.1.2).

    The options in CELL_DEFAULTS are of the cells of a genotype: None for a model.
    """

    recipe: str = option("darts", "Run")
    genotype: str = option("", "Network")
    """Genotype to train: a name of the zoo (see python -m darts_sg genotype list) or the path of a file."""
    model: str = option("", "Network")
    """Model to train instead of a genotype: mobilenext_1.0, mobilenetv2_0.5, … (see python -m darts_sg models). It has
    no cells, no auxiliary head and no drop path."""
    finetune: str = option("", "Network")
    """Weights file (weights.safetensors of an earlier run) to start from, on another data set or with other options:
    the network is that of the file, with a new classifier where the number of classes is another."""
    network: NetworkShape = option("cifar", "Network")
    """Shape of the network. cifar: stem at full resolution, a model ends at 1/8 of it. imagenet: stem of cells reduces
    by 8, a model ends at 1/32 of the resolution."""
    channels: int | str | None = option(None, "Network")
    """Channels C of the first cells of a genotype; auto:600M takes as many as 600M multiply-adds allow. Default: 36."""
    cells: int | None = option(None, "Network")
    """Number of cells of a genotype; those at 1/3 and 2/3 of the depth are reduction cells. Default: 20."""
    epochs: int = option(600, "Training")
    batch_size: int = option(96, "Training")
    cutout_length: int = option(16, "Data")
    validation_images: int | None = option(None, "Data")
    """Images held out of the training set, to choose the best epoch on. Default: none; then the best epoch is
    chosen on the test set, and said to be."""
    schedule: Literal["cosine", "linear", "exponential"] = option("cosine", "Training")
    """How the learning rate goes from --learning-rate to --learning-rate-min over the epochs: as half a cosine, on a
    line, or by the same factor each epoch."""
    warmup_epochs: int = option(0, "Training")
    """Epochs at the start over which the learning rate rises linearly to --learning-rate, before the schedule goes
    on."""
    learning_rate_batch: int | None = option(None, "Training")
    """Batch size that the learning rates are meant for: with another --batch-size they are scaled in proportion.
    Default: they are meant for any."""
    keep_every: int | None = option(None, "Run", free=True)
    """Keep weights and checkpoint after every so many epochs, too: weights_epoch_0010.safetensors and so on, and
    checkpoints/epoch_0010_step_000000.pt. --resume goes on from the newest checkpoint there is: take newer ones away,
    and result.json, to go back to one. Default: weights of the last and of the best epoch, and the newest two
    checkpoints."""
    label_smoothing: float = option(0.0, "Training")
    """Share of each label that is spread over all classes in the training loss, also in the one that is reported."""
    auxiliary_weight: float | None = option(None, "Training")
    """Weight of the loss of a genotype's auxiliary head; 0 for no auxiliary head. Default: 0.4."""
    sync_batchnorm: bool = option(False, "Training")
    """Normalise by the statistics of the whole batch instead of each process' share of it (on several GPUs)."""
    ema: float = option(0.0, "Training")
    """Decay of an exponential moving average (EMA) of the weights and of BatchNorm's statistics, updated after each
    step and tested beside the weights themselves: 0.9999 averages over about the last 10,000 steps. 0 for none."""
    drop_path_prob: float | None = option(None, "Training")
    """Probability of drop path in the cells of a genotype in the last epoch; it grows linearly from 0. Default: 0.2."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.genotype and self.model:
            raise UsageError(f"--genotype {self.genotype} and --model {self.model}: give one of them")
        if self.model:
            find_model(self.model)
        elif not self.genotype:
            raise UsageError(
                "which network? Give --genotype NAME_OR_PATH (python -m darts_sg genotype list), --model NAME "
                "(python -m darts_sg models) or --finetune FILE"
            )
        for name, default in CELL_DEFAULTS.items():
            value = getattr(self, name)
            if self.model and value is not None:
                way_out = "choose another recipe" if name in load_recipe("augment", self.recipe) else "leave it out"
                raise UsageError(f"{flag(name)} {value} is for genotypes, --model {self.model} has no cells; {way_out}")
            if not self.model and value is None:
                object.__setattr__(self, name, default)
        if self.max_macs() is None:
            self._at_least("channels", 1)
        if self.schedule == "exponential" and not self.learning_rate_min:
            raise UsageError("--schedule exponential never gets to 0: give --learning-rate-min, such as 1e-4")
        for name, least in (
            ("cells", 3), ("keep_every", 1), ("learning_rate_batch", 1), ("auxiliary_weight", 0), ("warmup_epochs", 0),
        ):  # fmt: skip
            self._at_least(name, least)
        for name in ("drop_path_prob", "label_smoothing", "ema"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1:
                raise UsageError(f"{flag(name)} must be from 0 up to, not including, 1: {value}")

    @property
    def num_channels(self) -> int | None:
        """--channels where it is a number; None for a model."""
        return self.channels if isinstance(self.channels, int) else None

    def max_macs(self) -> int | None:
        """The bound that --channels auto:BOUND sets; None for a number of channels. UsageError if it is neither."""
        if not isinstance(self.channels, str):
            return None
        word, _, bound = self.channels.partition(":")
        try:
            return parse_quantity("", bound if word == "auto" else "")
        except UsageError:
            raise UsageError(
                f"--channels {self.channels}: expected a number, or auto:600M for the widest network of 600M MACs"
            ) from None


CELL_DEFAULTS = {"channels": 36, "cells": 20, "auxiliary_weight": 0.4, "drop_path_prob": 0.2}
PENALTIES = ("params", "macs")


JOBS: dict[str, type[RunConfig]] = {"search": SearchConfig, "augment": AugmentConfig}
Job = Literal["search", "augment"]


def flag(name: str) -> str:
    """The option that sets the field `name`."""
    return "--" + name.replace("_", "-")


def help_texts(config: type[RunConfig]) -> dict[str, str]:
    """The help of each field: the text under it, in the class or in the one it inherits from."""
    texts: dict[str, str] = {}
    for cls in reversed(config.__mro__):
        if dataclasses.is_dataclass(cls):
            for parameter in docstring_parser.parse_from_object(cls).params:
                texts[parameter.arg_name] = " ".join((parameter.description or "").split())
    return texts


def recipe_names(job: Job) -> list[str]:
    """The recipes that have a section for `job`."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml") if job in _read_mapping(path))


def default_recipe(job: Job) -> str:
    """The recipe of a job for which none was asked."""
    return str(JOBS[job].__dataclass_fields__["recipe"].default)


def load_recipe(job: Job, name: str) -> dict[str, Any]:
    """The options that a named recipe sets for `job`; UsageError with the choices if there is none."""
    names = recipe_names(job)
    if name not in names:
        raise UsageError(unknown_name(f"{job} recipe", name, names))
    return known_options(job, _read_mapping(RECIPES / f"{name}.yaml")[job] or {}, f"recipe {name}")


def load_options(job: Job, path: Path) -> dict[str, Any]:
    """The options that a YAML file sets for `job`: a mapping of options, or one with a section for each job.

    The config.yaml of a run folder serves as well. Raises UsageError naming file and option.
    """
    content = _read_mapping(path)
    if "job" in content and "options" in content:
        if content["job"] != job:
            raise UsageError(f"{path} is the config of a {content['job']} run, not of {job}")
        content = content["options"]
    elif content.keys() <= JOBS.keys():
        content = content.get(job) or {}
    return known_options(job, content, str(path))


def known_options(job: Job, options: Any, source: str) -> dict[str, Any]:
    """`options` with field names as keys; UsageError naming `source` if one is unknown."""
    if not isinstance(options, Mapping):
        raise UsageError(f"{source}: expected a mapping of options, found {options!r}")
    names = [f.name for f in fields(JOBS[job])]
    found = {}
    for key, value in options.items():
        name = str(key).replace("-", "_")
        if name not in names:
            raise UsageError(f"{source}: " + unknown_name("option", key, [n.replace("_", "-") for n in names]))
        found[name] = value
    return found


def _read_mapping(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    except (yaml.YAMLError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"{path} is not YAML: {reason}") from None
    if not isinstance(content, dict):
        raise UsageError(f"{path}: expected a mapping of options")
    return content
