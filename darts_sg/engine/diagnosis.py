"""Trained networks side by side: gradient confusion and information loss, measured on the same images."""

import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from darts_sg.analysis.confusion import Gradients, measure_gradients
from darts_sg.analysis.cost import count_params
from darts_sg.analysis.draw_diagnosis import Portrait
from darts_sg.analysis.information import POSITIONS, Retained, measure_information
from darts_sg.data import Dataset, Images, Reading, evaluation_batches, keyed_generator, load_dataset
from darts_sg.engine import environment
from darts_sg.engine.setup import to_device
from darts_sg.engine.weights import Weights, read_weights
from darts_sg.errors import UsageError
from darts_sg.networks.mobile import Model

Batches = Iterable[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Diagnosis:
    """A trained network with what was measured of it."""

    label: str
    """Tells it from the others of the table."""
    weights: Weights
    params: int
    gradients: Gradients
    retained: list[Retained]

    def portrait(self) -> Portrait:
        """What a picture shows of it."""
        trained = self.weights.trained
        block = trained.family.title if isinstance(trained, Model) else ""
        cosines = self.gradients.cosines.numpy()
        return Portrait(self.label, network_name(self.weights), block, self.retained, cosines)

    def r2(self, size: int | None = None) -> float | None:
        """Mean of the R² where features have this side, or of all; None if there are none."""
        found = [site.r2 for site in self.retained if size in (None, site.size)]
        return sum(found) / len(found) if found else None

    def as_dict(self) -> dict[str, Any]:
        """All of it but the tensors; errors in percent."""
        m, cosines = self.weights.metadata, self.gradients.cosines
        network = {"model": m.model} if m.model else {"genotype": self.weights.trained.name}
        sizes = dict.fromkeys(site.size for site in self.retained)
        return {
            "label": self.label,
            "file": str(self.weights.path),
            **network,
            **{key: getattr(m, key) for key in ("network", "channels", "cells", "seed", "epoch", "epochs", "ema")},
            "params": self.params,
            "recorded_test_error": m.test_error,
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
    """Files of weights, and the images that all of their networks are measured on.

    Raises UsageError if a file is none, the files were not trained on the same data, or these are not there.
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
        """What must be known of the figures, in two sentences."""
        described = next((w.data for w in self.files if w.metadata.data_note), self.files[0].data)
        return (
            f"Gradients over all weights of the cross-entropy of {self.num_batches} minibatches of {self.batch_size} "
            f"training images each, without augmentation, normalised by minibatch, dropout and drop path off. "
            f"R² of the linear fit from the features carried on to the pixels of their patch, fitted on the same "
            f"{len(self.train):,} images, measured on {len(self.test):,} test images, at most {POSITIONS} positions "
            f"each. Data: {described}; images chosen by seed {self.seed}; {environment.machine(self.device)}."
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
        return evaluation_batches(images, self.files[0].spec, self.batch_size)

    def _measure(self, label: str, weights: Weights) -> Diagnosis:
        network = to_device(weights.build(), self.device)
        gradients = measure_gradients(network, self._batches(self.train))
        if not gradients.gram.isfinite().all():
            raise UsageError(
                f"{weights.path}: its gradients are not finite, so there is nothing to compare; leave it out"
            )
        train, test = self._batches(self.train), self._batches(self.test)
        retained = measure_information(network, train, test, self.seed)
        return Diagnosis(label, weights, count_params(network), gradients, retained)


def refuse_other_data(files: Sequence[Weights]) -> None:
    """UsageError if the files are not all of one data set, in the same normalisation."""
    first = files[0]
    for other in files[1:]:
        if (other.metadata.data_fingerprint, other.spec) != (first.metadata.data_fingerprint, first.spec):
            raise UsageError(
                f"{other.path} was trained on other images ({other.data}) than {first.path} ({first.data}); "
                "compare networks of the same data"
            )


def load_data(weights: Weights, folder: Path) -> Dataset:
    """The data that a network was trained on, from `folder`; UsageError if they are not there."""
    m = weights.metadata
    data = load_dataset(m.dataset, folder, image_size=m.image_size, seed=m.seed)
    if (found := data.fingerprint()) != m.data_fingerprint:
        raise UsageError(
            f"the images in {folder} are not those that {weights.path} was trained on (fingerprint {found}, then "
            f"{m.data_fingerprint}); give their folder with --data"
        )
    return data.read_by(Reading(environment.usable_cores()))


def network_name(weights: Weights) -> str:
    """Which network it is, in few words."""
    m = weights.metadata
    size = "" if m.model else f", C={m.channels}, {m.cells} cells"
    return f"{weights.trained.name}{size}{', imagenet shape' if m.network == 'imagenet' else ''}"


def labels(files: Sequence[Weights]) -> list[str]:
    """What tells the networks apart in a table: name, seed and epoch; where that is not enough, the file as well."""
    found = []
    for weights in files:
        m = weights.metadata
        ema = "" if m.ema is None else ", EMA"
        found.append(f"{network_name(weights)}, seed {m.seed}, epoch {m.epoch} of {m.epochs}{ema}")
    counts = Counter(found)
    return [
        f"{label} ({weights.path})" if counts[label] > 1 else label for label, weights in zip(found, files, strict=True)
    ]
