"""Trained networks side by side: gradient confusion and information loss, measured on the same images."""

import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from darts_sg.analysis.confusion import Gradients, measure_gradients
from darts_sg.analysis.cost import count_params
from darts_sg.analysis.draw_diagnosis import Portrait
from darts_sg.analysis.information import POSITIONS, Retained, measure_information
from darts_sg.data import Dataset, Images, Reading, keyed_generator, load_dataset
from darts_sg.engine import environment
from darts_sg.engine.setup import to_device
from darts_sg.engine.weights import Weights, read_weights
from darts_sg.errors import UsageError
from darts_sg.networks.derived import DerivedNetwork
from darts_sg.networks.mobile import MobileNetwork, Model

Batches = Iterable[tuple[Tensor, Any]]


@dataclass(frozen=True)
class Diagnosis:
    """A trained network and its measurements."""

    label: str
    """Unique within the table."""
    weights: Weights
    params: int
    gradients: Gradients
    retained: list[Retained]

    @property
    def recorded(self) -> str:
        """The figure that the weights file says, as text."""
        return self.weights.task.headline.text.format(self.weights.recorded)

    def portrait(self) -> Portrait:
        """The part of it that pictures show."""
        trained = self.weights.trained
        block = trained.family.title if isinstance(trained, Model) else ""
        cosines = self.gradients.cosines.numpy()
        return Portrait(self.label, network_name(self.weights), block, self.retained, cosines)

    def r2(self, size: int | None = None) -> float | None:
        """Mean R² of the features with this side, by default of all; None if there are none."""
        found = [site.r2 for site in self.retained if size in (None, site.size)]
        return sum(found) / len(found) if found else None

    def as_dict(self) -> dict[str, Any]:
        """All figures as plain values, without the tensors."""
        m, cosines = self.weights.metadata, self.gradients.cosines
        network = {"model": m.model} if m.model else {"genotype": self.weights.trained.name}
        sizes = dict.fromkeys(site.size for site in self.retained)
        return {
            "label": self.label,
            "file": str(self.weights.path),
            **network,
            **{key: getattr(m, key) for key in ("network", "channels", "cells", "seed", "epoch", "epochs", "ema")},
            "params": self.params,
            f"recorded_{self.weights.task.headline.key('test')}": self.weights.recorded,
            "train_loss": self.gradients.loss,
            "cosine_minimum": cosines.min().item(),
            "cosine_mean": cosines.mean().item(),
            "cosine_deviation": cosines.std(correction=0).item(),
            "cosine_negative": (cosines < 0).double().mean().item(),
            "confusion_bound": self.gradients.bound,
            "r2_by_size": {str(size): self.r2(size) for size in sizes},
            "r2_mean": self.r2(),
            "features": [site._asdict() for site in self.retained],
        }


class Comparison:
    """Weights files, and the images that all their networks are measured on.

    Raises UsageError if a file is not a weights file, the networks were trained on different data or for different
    tasks, or the data are missing.
    """

    def __init__(
        self, paths: Sequence[Path], data: Path, *, batches: int, batch_size: int, seed: int, device: str = "auto"
    ) -> None:
        self.files = [read_weights(path) for path in paths]
        refuse_other_data(self.files)
        self.num_batches, self.batch_size, self.seed = batches, batch_size, seed
        self.device = environment.choose_device(device)
        environment.prepare_device(self.device, None)
        self.train, self.test = self._choose(load_data(self.files[0], data))
        self.labels = labels(self.files)

    def __iter__(self) -> Iterator[Diagnosis]:
        for label, weights in zip(self.labels, self.files, strict=True):
            if sys.stderr.isatty():
                print(f"measuring {label} …", file=sys.stderr)
            yield self._measure(label, weights)

    def setting(self) -> str:
        """How the figures were measured, in a few sentences."""
        described = next((w.data for w in self.files if w.metadata.data_note), self.files[0].data)
        return (
            f"Gradients over all weights of the {self.files[0].task.loss_name} of {self.num_batches} minibatches of "
            f"{self.batch_size} training images each, without augmentation, normalised by minibatch, dropout and drop "
            f"path off. R² of the linear fit from the features carried on to the pixels of their patch, fitted on the "
            f"same {len(self.train):,} images, measured on {len(self.test):,} test images, at most {POSITIONS} "
            f"positions each. Data: {described}; images chosen by seed {self.seed}; "
            f"{environment.machine(self.device)}."
        )

    def _choose(self, data: Dataset) -> tuple[Images, Images]:
        """The training and the test images to measure on."""
        count = self.num_batches * self.batch_size
        if count > len(data.train):
            raise UsageError(
                f"{self.num_batches} batches of {self.batch_size} are {count:,} images, and the training set of "
                f"{data.spec.name} has {len(data.train):,}; lower --batches or --batch-size"
            )
        parts = []
        for name, images in (("train", data.train), ("test", data.test)):
            order = torch.randperm(len(images), generator=keyed_generator(self.seed, "diagnose", name, 0))
            parts.append(images.select(order[:count]).to(self.device))
        return parts[0], parts[1]

    def _batches(self, images: Images) -> Batches:
        return self.files[0].task.evaluation_batches(images, self.files[0].spec, self.batch_size)

    def _measure(self, label: str, weights: Weights) -> Diagnosis:
        network = to_device(weights.build(), self.device)
        backbone = _backbone(weights, network)
        gradients = measure_gradients(network, self._batches(self.train), weights.task.loss)
        if not gradients.gram.isfinite().all():
            raise UsageError(
                f"{weights.path}: its gradients are not finite, so there is nothing to compare; leave it out"
            )
        train, test = self._batches(self.train), self._batches(self.test)
        retained = measure_information(backbone, train, test, self.seed)
        return Diagnosis(label, weights, count_params(network), gradients, retained)


def _backbone(weights: Weights, network: nn.Module) -> DerivedNetwork | MobileNetwork:
    """The part of a task's network whose features are known; UsageError if there is none."""
    for module in network.modules():
        output = module.head if isinstance(module, DerivedNetwork) else getattr(module, "classifier", None)
        if isinstance(module, DerivedNetwork | MobileNetwork) and output is not None:
            return module
    raise UsageError(f"{weights.path}: a network for {weights.metadata.task} has no features to look into")


def refuse_other_data(files: Sequence[Weights]) -> None:
    """Raise UsageError unless all networks were trained for one task, on one data set with one normalisation."""
    first = files[0]
    for other in files[1:]:
        if other.metadata.task != first.metadata.task:
            raise UsageError(
                f"{other.path} was trained for {other.metadata.task}, {first.path} for {first.metadata.task}; compare "
                "networks of the same task"
            )
        if (other.metadata.data_fingerprint, other.spec) != (first.metadata.data_fingerprint, first.spec):
            raise UsageError(
                f"{other.path} was trained on other images, {other.data}, than {first.path}, {first.data}; compare "
                "networks of the same data"
            )


def load_data(weights: Weights, folder: Path) -> Dataset:
    """Load the data that a network was trained on from `folder`; UsageError if they are missing or others."""
    m = weights.metadata
    data = load_dataset(m.dataset, folder, image_size=m.image_size, seed=m.seed, split_seed=weights.split_seed)
    if (found := data.fingerprint()) != m.data_fingerprint:
        raise UsageError(
            f"the images in {folder} are not those that {weights.path} was trained on (fingerprint {found}, then "
            f"{m.data_fingerprint}); give their folder with --data"
        )
    return data.read_by(Reading(environment.usable_cores()))


def network_name(weights: Weights) -> str:
    """The network in a few words."""
    m = weights.metadata
    size = "" if m.model else f", C={m.channels}, {m.cells} cells"
    return f"{weights.trained.name}{size}{', imagenet shape' if m.network == 'imagenet' else ''}"


def labels(files: Sequence[Weights]) -> list[str]:
    """Unique labels of the networks for a table: name, seed and epoch, and the file where these are the same."""
    found = []
    for weights in files:
        m = weights.metadata
        ema = "" if m.ema is None else ", EMA"
        found.append(f"{network_name(weights)}, seed {m.seed}, epoch {m.epoch} of {m.epochs}{ema}")
    counts = Counter(found)
    return [
        f"{label} ({weights.path})" if counts[label] > 1 else label for label, weights in zip(found, files, strict=True)
    ]
