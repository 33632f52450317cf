"""What a network is trained for, as one object: targets, loss, metrics, output layer, and how figures are shown.

Loop, checkpoints, EMA, ranks, run folder, report and weights files know no task; they ask the one that `--task` names.
A new task is a subclass of `Task`, registered in `TASKS` under its name. It defines `loss`, `evaluator`, `num_outputs`
and a few class attributes, and overrides what it does unlike image classification with integer labels:

- the data: `split`, `train_batches`, `evaluation_batches`, for targets that are no integer labels, such as boxes;
- the network: `build`, `start_state` and `inference`, for a head other than the output layer of a classifier;
- the results: `results`, `sections` and `Evaluator.files`, for what does not fit into single figures.

A network's `forward` gives (outputs, auxiliary outputs or None). Outputs may be any structure of tensors: only the task
looks into them. Targets may be anything with a length, one entry for each image.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
from PIL import Image
from torch import Tensor, nn

from darts_sg.data import Augment, DataSpec, Images, TrainBatches, balanced_split, evaluation_batches
from darts_sg.data.folder import fitted, read_upright
from darts_sg.errors import UsageError
from darts_sg.networks.build import NetworkPlan, build_network, is_auxiliary
from darts_sg.registry import Registry

DEFAULT_TASK = "classification"
"""The task of runs and weights files that name none: those from before there were others."""


@dataclass(frozen=True)
class Figure:
    """A number that is reported of a trained network, computed from a measure of its test.

    result.json has it as test_NAME_last and test_NAME_best.
    """

    name: str
    title: str
    """As a line of results begins, such as "test error"."""
    measure: str
    """The evaluator's measure that it is computed from."""
    value: Callable[[float], float]
    """From the measure to the figure."""
    text: str = "{:.4g}"
    """Format string of the figure."""
    difference: str = "{:+.4g}"
    """Format string of a difference of two of them."""
    short: str = ""
    """Title where it stands behind the first figure of a line."""

    def key(self, part: str) -> str:
        """Its name for a part of the data, test or validation."""
        return f"{part}_{self.name}"

    def of(self, measured: Mapping[str, float]) -> float:
        return self.value(measured[self.measure])

    @property
    def noun(self) -> str:
        """Title without the part of the data: "error"."""
        return self.title.removeprefix("test ")


@dataclass(frozen=True)
class Plot:
    """Curves of one measure over the epochs: of the training, the validation and the test, each where it is."""

    title: str
    measure: str
    percent: bool = False
    """Whether the axis shows shares in percent."""


class Batches(Protocol):
    """Batches of a training, by their position from 0 through all passes; see `darts_sg.data.TrainBatches`.

    A batch depends on its position alone, so that a resumed run and each of several ranks get the same bits.
    """

    @property
    def images(self) -> Any:
        """The images they are made of; has a length."""

    @property
    def spec(self) -> DataSpec: ...

    @property
    def batch_size(self) -> int: ...

    def __len__(self) -> int:
        """Batches in one pass."""

    def num_images(self, position: int) -> int:
        """Images in the batch at `position`, over all ranks."""

    def __getitem__(self, position: int) -> tuple[Tensor, Any]:
        """This rank's share: images, float32 (B, C, H, W), normalised, and their targets."""


class Evaluator(ABC):
    """Accumulates what an evaluation measures, batch by batch, on one rank; then all ranks' parts become columns."""

    gathers: ClassVar[bool] = False
    """Whether `records` are collected from all ranks, as those of a measure that is no sum over images."""

    @abstractmethod
    def update(self, outputs: Any, targets: Any) -> None:
        """Take in a batch; called without gradients."""

    def sums(self) -> list[float]:
        """Numbers that are added over the ranks; the same count of them on each."""
        return []

    def records(self) -> Any:
        """What `gathers` asks for: any picklable object."""
        return None

    @abstractmethod
    def measures(self, sums: Sequence[float], records: Sequence[Any], num_images: int) -> dict[str, float]:
        """The measures by name, from the sums over all ranks, all ranks' records in their order, and the number of
        images, at least 1.

        Column names of metrics.csv are these names behind train_, validation_ or test_.
        """

    def files(self) -> dict[str, str]:
        """Files of the run folder that describe the test, by name, such as all predictions.

        Asked for after `measures`, of the test after the last epoch.
        """
        return {}

    def details(self) -> dict[str, Any]:
        """Entries of result.json beside the task's figures, as plain values, such as figures by class.

        Asked for after `measures`, of the test after the last epoch.
        """
        return {}


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a network says of one image, the most probable first."""

    image: str
    """Path of the file; empty for an array."""
    width: int
    """Of the original image, in pixels."""
    height: int
    labels: np.ndarray
    """int64 (n,): classes, from 0."""
    scores: np.ndarray
    """float32 (n,): probabilities."""
    class_names: tuple[str, ...]
    """Of all classes that the network knows."""
    boxes: np.ndarray | None = None
    """float32 (n, 4): x1, y1, x2, y2 in pixels of the original; None for a task without boxes."""

    @property
    def names(self) -> list[str]:
        """The classes by name, (n,)."""
        return [self.class_names[label] for label in self.labels]

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        boxes = [None] * len(self.labels) if self.boxes is None else self.boxes.astype(np.float64).round(2).tolist()
        found = [
            {"class": name, "score": round(float(score), 5), **({} if box is None else {"box": box})}
            for name, score, box in zip(self.names, self.scores, boxes, strict=True)
        ]
        return {"image": self.image, "width": self.width, "height": self.height, "found": found}


class InferenceModel(nn.Module):
    """A network as it is used: images (N, in_channels, H, W) to its outputs, without the auxiliary ones."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Any:
        return self.network(images)[0]


class Selecting(NamedTuple):
    """A model that selects its results, such as the objects found."""

    model: nn.Module
    output_names: tuple[str, ...]
    described: list[str]
    """The outputs with their shapes, a line each."""
    difference: Callable[[Any, Any], Tensor]
    """How far two of its outputs are apart, a scalar."""
    onnx_operators: Callable[[], Mapping[Any, Callable[..., Any]]]
    """How ONNX computes operators that PyTorch's exporter does not know."""


class Task(ABC):
    """A task with its options. See the head of this module for what a new one has to define."""

    name: ClassVar[str]
    """As --task and weights files have it."""
    loss_name: ClassVar[str]
    """The loss in words, such as "cross-entropy"."""
    score: ClassVar[str]
    """The measure whose highest value marks the best epoch; never NaN."""
    training_measures: ClassVar[tuple[str, ...]] = ()
    """Measures beside the loss that `training_metrics` gives."""
    figures: ClassVar[tuple[Figure, ...]]
    """Reported of a test, the most important one first. Figures whose measure a data set does not have are left out."""
    plots: ClassVar[tuple[Plot, ...]]
    """The curves of this task in report.md and search.html."""
    output_names: ClassVar[tuple[str, ...]] = ("outputs",)
    """Names of what `inference` gives, in exported models."""
    head_name: ClassVar[str] = "output layer"
    output_unit: ClassVar[str] = "outputs"
    """What `num_outputs` counts."""
    layers_after: ClassVar[str] = "Pooling, dropout and a linear layer follow."
    """The layers behind the stages of a model, as a sentence."""
    searchable: ClassVar[bool] = True
    """Whether a supernet can be trained for it."""
    has_auxiliary: ClassVar[bool] = True
    """Whether its networks of cells can have an auxiliary head."""
    is_mobile: ClassVar[bool] = True
    """Whether the limit of the mobile setting (600M MACs at 224×224) is for its networks."""
    own_options: ClassVar[tuple[str, ...]] = ()
    """The options of a run that are for this task alone."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        """`options`: those of a run by field name; options that are missing have their defaults."""
        growing = options.get("cutout_schedule") == "linear"
        self.augment = Augment(
            cutout_length=options.get("cutout_length") or 0,
            cutout_growth=options["epochs"] if growing else 0,
            colour_jitter=options.get("colour_jitter") or 0.0,
            rand_augment=options.get("rand_augment") or 0,
            rand_augment_magnitude=options.get("rand_augment_magnitude", 9),
            random_erasing=options.get("random_erasing") or 0.0,
            mixup=options.get("mixup") or 0.0,
            cutmix=options.get("cutmix") or 0.0,
        )

    # --- training and evaluation

    def prepare(self, network: nn.Module) -> None:  # noqa: B027
        """Make a network ready for training, after it has its first weights. Called once, before the first step."""

    @abstractmethod
    def loss(self, outputs: Any, targets: Any) -> Tensor:
        """The training loss, a scalar: a mean over `num_terms(targets)` terms, by default the images of the batch."""

    def losses(self, outputs: Any, targets: Any) -> dict[str, Tensor]:
        """`loss`, and the parts that are reported beside it, by measure; the first entry is minimised."""
        return {"loss": self.loss(outputs, targets)}

    def num_terms(self, targets: Any) -> int | Tensor:
        """Terms that the loss is a mean over, a tensor if they are counted on the device. Ranks weigh their losses and
        gradients by it."""
        return len(targets)

    def as_tensors(self, targets: Any) -> tuple[Tensor, ...] | None:
        """All that the training loss reads of `targets`, as tensors on the device: the inputs of a captured step.

        None if the loss reads anything else, or shapes that change from batch to batch: steps are then not captured.
        """
        return (targets,) if isinstance(targets, Tensor) else None

    def from_tensors(self, tensors: Sequence[Tensor]) -> Any:
        """Targets for the training loss from `as_tensors`."""
        return tensors[0]

    def training_metrics(self, outputs: Any, targets: Any) -> dict[str, Tensor]:
        """Scalars that are reported of a training step, by the names in `training_measures`."""
        return {}

    @abstractmethod
    def evaluator(self, spec: DataSpec) -> Evaluator:
        """A new evaluator for images of `spec`."""

    def final_evaluator(self, spec: DataSpec) -> Evaluator:
        """The evaluator of the test after the last epoch, which may keep more than the others: the same measures."""
        return self.evaluator(spec)

    # --- data

    def split(self, images: Images, sizes: Sequence[int], seed: int) -> list[Images]:
        """Disjoint parts of the images with these sizes: here class-balanced."""
        return [images.select(indices) for indices in balanced_split(images.labels, list(sizes), seed)]

    def train_batches(
        self,
        images: Images,
        spec: DataSpec,
        batch_size: int,
        seed: int,
        stream: str,
        rank: int = 0,
        num_ranks: int = 1,
        *,
        plain: bool = False,
    ) -> Batches:
        """Random training batches with the augmentation that the options ask for; `plain`: with the default one."""
        augment = Augment() if plain else self.augment
        return TrainBatches(images, spec, batch_size, augment, seed, stream, rank, num_ranks)

    def evaluation_batches(
        self, images: Images, spec: DataSpec, batch_size: int, rank: int = 0, num_ranks: int = 1
    ) -> Iterator[tuple[Tensor, Any]]:
        """Every image once, in order, not augmented; the ranks take turns."""
        return evaluation_batches(images, spec, batch_size, rank, num_ranks)

    # --- network

    @abstractmethod
    def num_outputs(self, spec: DataSpec) -> int:
        """Outputs of the last layer for images of `spec`."""

    def build(self, plan: NetworkPlan, spec: DataSpec) -> nn.Module:
        """The network of a plan with this task's output layer, newly initialised."""
        return build_network(plan, self.num_outputs(spec), spec.in_channels)

    def network_options(self) -> dict[str, Any]:
        """The options of this task that change the network or the meaning of its outputs: weights files keep them."""
        return {}

    def mismatch(self, own: DataSpec, other: DataSpec) -> str:
        """Why a network for the data `own` cannot be tested on `other`; empty if it can."""
        has, needs = self.num_outputs(own), self.num_outputs(other)
        return "" if has == needs else f"has {has} {self.output_unit} ({own.name}), {other.name} needs {needs}"

    def output_layers(self, network: nn.Module) -> list[str]:
        """Names of the layers whose size `num_outputs` decides: here all linear ones."""
        return [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]

    def start_state(
        self, network: nn.Module, spec: DataSpec, tensors: Mapping[str, Tensor], of: "Task", of_spec: DataSpec
    ) -> tuple[dict[str, Tensor], list[str]]:
        """The state_dict that `network`, for images of `spec`, starts from, and what is new in it, in words.

        `tensors` are the trained weights of the same network for the task `of` and images of `of_spec`. The output
        layers start anew for another task or another number of outputs, and so does an auxiliary head that the trained
        network has not.
        """
        own = network.state_dict()
        wanted, given = ({name for name in state if is_auxiliary(name)} for state in (own, tensors))
        has, needs = of.num_outputs(of_spec), self.num_outputs(spec)
        changed = of.name != self.name or has != needs
        layers = self.output_layers(network) if changed else []
        fresh = {f"{layer}.{part}" for layer in layers for part in ("weight", "bias")}
        changes = []
        if changed:
            both = f" and auxiliary {self.head_name}" if wanted and given else ""
            purpose = (
                f"for {needs} {self.output_unit} instead of {has}"
                if of.name == self.name
                else f"for {self.name} instead of {of.name}"
            )
            changes.append(f"{self.head_name}{both} new, {purpose}")
        if wanted and not given:
            changes.append("auxiliary head new")
        if given and not wanted:
            changes.append("auxiliary head left out")
        kept = {name: tensor for name, tensor in tensors.items() if name not in fresh | (given - wanted)}
        return {name: own[name] for name in fresh | (wanted - given)} | kept, changes

    def inference(self, network: nn.Module) -> nn.Module:
        """The network as exported models compute it; its outputs are named by `output_names`."""
        return InferenceModel(network)

    def selecting(self, network: nn.Module) -> "Selecting | None":
        """The network with the selection of its results inside, for formats that can compute it; None if the task
        selects nothing."""
        return None

    def described_outputs(self, spec: DataSpec) -> list[str]:
        """The outputs of `inference` with their shapes, a line each."""
        return list(self.output_names)

    def difference(self, found: Any, expected: Any) -> Tensor:
        """How far two outputs of `inference` are apart, a scalar: here the largest absolute difference."""
        return (found - expected).abs().max()

    # --- single images

    def read(self, path: Path, spec: DataSpec) -> np.ndarray:
        """A file as the network's data set reads it: the whole image, uint8 (H, W, 3); raises one of UNREADABLE."""
        return np.array(read_upright(path))

    def square(self, pixels: np.ndarray, spec: DataSpec) -> np.ndarray:
        """An image, uint8 (H, W, 3), brought to the network's size as in its test: uint8 (S, S, in_channels)."""
        return fitted(Image.fromarray(pixels), spec.image_size)

    def preprocessing(self, spec: DataSpec) -> str:
        """What `read`, `square` and the normalisation do, in words, for those who rebuild it elsewhere."""
        return f"{UPRIGHT}{FITTED.format(spec=spec)}; {channels_in_words(spec)}; {normalised_in_words(spec)}"

    def predictions(
        self, outputs: Any, spec: DataSpec, images: Sequence[tuple[str, int, int]], least: float | None
    ) -> list[Prediction]:
        """What the outputs of `network(x)[0]` say of images, each with its name, width and height.

        least: the lowest score that counts; None for the task's default. UsageError for a task without predictions.
        """
        raise UsageError(f"the task {self.name} has no predictions of single images")

    # --- results

    def results(self, last: Mapping[str, float], best: Mapping[str, float]) -> dict[str, Any]:
        """The entries of result.json, given the measures of the test after the last and after the best epoch."""
        return {
            f"{figure.key('test')}_{which}": figure.of(measured)
            for figure in self.figures
            if figure.measure in last
            for which, measured in (("last", last), ("best", best))
        }

    def searched(self, measured: Mapping[str, float]) -> dict[str, float]:
        """What a genotype's provenance says of the supernet at the end of the search, from its measures."""
        return {f"validation_{name}": round(value, 5) for name, value in measured.items()}

    @property
    def headline(self) -> Figure:
        """The figure that stands for a network where there is room for one."""
        return self.figures[0]

    def recorded(self, test: Mapping[str, float], validation: Mapping[str, float]) -> dict[str, float]:
        """What weights files say of how good they are: the headline figure of the test, and where some images were
        held out that of the validation."""
        return {
            self.headline.key(part): self.headline.of(measured)
            for part, measured in (("test", test), ("validation", validation))
            if measured
        }

    def pictures(self, batches: Batches, images: Images, evaluator: Evaluator) -> dict[str, bytes]:
        """Pictures of the training batches and of the test of `images`, by path in the run folder, for `sections`.

        Asked for on rank 0 after the last epoch, when `evaluator` has measured the test.
        """
        return {}

    def test_figures(self, evaluator: Evaluator) -> dict[str, Any]:
        """Pictures (matplotlib) of the test after the last epoch for the loggers, by title."""
        return {}

    def sections(self, folder: Path, data: str) -> list[str]:
        """Markdown paragraphs for report.md below the table of results, about the run in `folder` on `data`; pictures
        go to its folder pictures/."""
        return []


UPRIGHT = "turn the image as its EXIF orientation says; "
FITTED = (
    "crop its middle square and resize that to {spec.image_size}x{spec.image_size} pixels (Pillow: ImageOps.fit, "
    "bicubic, antialiased)"
)


def channels_in_words(spec: DataSpec) -> str:
    return "one grey channel" if spec.in_channels == 1 else "channels red, green, blue"


def normalised_in_words(spec: DataSpec) -> str:
    mean, std = (", ".join(f"{value:g}" for value in values) for values in (spec.mean, spec.std))
    return f"(pixel / 255 - mean) / std with mean {mean} and std {std}; float32 (N, channels, height, width)"


TASKS: Registry[Callable[[Mapping[str, Any]], Task]] = Registry("task")


def task_of(options: Mapping[str, Any]) -> Task:
    """The task of a run, given its options by field name; UsageError with the choices if there is no such task."""
    return TASKS[options.get("task") or DEFAULT_TASK](options)
