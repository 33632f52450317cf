"""Image classification: one label for each image, cross-entropy, accuracy, a linear classifier."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from darts_sg.data import DataSpec, ImageFiles, Images, Reading
from darts_sg.data.detection.batches import read_image as read_stored
from darts_sg.data.stream import DAMAGED, middle_box
from darts_sg.tasks.classification_pictures import figures_of_test, sections_of_test
from darts_sg.tasks.classified import FILE, KEPT_CLASSES, SHOWN_IMAGES, Classified
from darts_sg.tasks.columns import FORMATS, PERCENT
from darts_sg.tasks.task import (
    TASKS,
    Batches,
    Evaluator,
    Figure,
    Plot,
    Prediction,
    Task,
    channels_in_words,
    normalised_in_words,
)

FORMATS.add("accuracy", PERCENT)
THUMBNAIL = 128
"""Pixels a side of the images in predictions.npz, or fewer."""


def accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """Fraction of right answers: logits (N, num_classes), labels (N,), to a scalar.

    Of mixed images the labels are shares of the classes, (N, num_classes): an answer counts by the share of its class.
    """
    best = logits.argmax(dim=1)
    if labels.ndim == 2:
        return labels.gather(1, best[:, None]).mean()
    return (best == labels).float().mean()


def percent_wrong(accuracy: float) -> float:
    """The error in percent, as it is reported."""
    return round(100 * (1 - accuracy), 4)


class Accuracies(Evaluator):
    """Cross-entropy, top-1 accuracy and, where the data set reports it, top-5 accuracy."""

    def __init__(self, top5: bool) -> None:
        self.top5 = top5
        self.totals = torch.zeros(3 if top5 else 2, dtype=torch.float64)

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        """outputs: logits (N, num_classes); targets: labels (N,)."""
        self.totals[0] += F.cross_entropy(outputs, targets, reduction="sum").cpu()
        self.totals[1] += (outputs.argmax(dim=1) == targets).sum().cpu()
        if self.top5:
            best = outputs.topk(min(5, outputs.shape[1])).indices  # (N, 5)
            self.totals[2] += (best == targets[:, None]).sum().cpu()

    def sums(self) -> list[float]:
        return self.totals.tolist()

    def measures(self, sums: Sequence[float], records: Sequence[Any], num_images: int) -> dict[str, float]:
        names = ("loss", "accuracy", "top5_accuracy")[: len(sums)]
        return {name: total / num_images for name, total in zip(names, sums, strict=True)}


class Recorded(Accuracies):
    """The same measures, and what the network said of each image."""

    gathers = True

    def __init__(self, spec: DataSpec) -> None:
        super().__init__(spec.top5)
        self.spec = spec
        self.batches: list[tuple[np.ndarray, ...]] = []
        self.found: Classified | None = None
        """The predictions of all ranks' images in the order of the test, once `measures` has been asked."""

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        super().update(outputs, targets)
        log_p = outputs.float().log_softmax(dim=1)
        best = log_p.topk(min(KEPT_CLASSES, log_p.shape[1]))
        kept = (targets.int(), best.indices.int(), best.values.half(), log_p.gather(1, targets[:, None])[:, 0])
        self.batches.append(tuple(tensor.cpu().numpy() for tensor in kept))

    def records(self) -> list[tuple[np.ndarray, ...]]:
        return self.batches

    def measures(self, sums: Sequence[float], records: Sequence[Any], num_images: int) -> dict[str, float]:
        # the ranks took turns: their first batches come first, then their second ones
        turns = [batch for turn in zip_longest(*records) for batch in turn if batch is not None]
        names = np.array(self.spec.class_names, dtype=np.str_)
        labels, classes, log_p, of_label = (np.concatenate(parts) for parts in zip(*turns, strict=True))
        size = self.spec.image_size
        none, no_pixels = np.empty(0, np.int64), np.empty((0, size, size, self.spec.in_channels), np.uint8)
        self.found = Classified(labels, classes, log_p, of_label, names, none, no_pixels)
        return super().measures(sums, records, num_images)

    def details(self) -> dict[str, Any]:
        assert self.found is not None
        return self.found.details()


class Classification(Task):
    """One of `DataSpec.num_classes` labels for each image. Options: label_smoothing, and those of the augmentation."""

    name = "classification"
    loss_name = "cross-entropy"
    score = "accuracy"
    training_measures = ("accuracy",)
    figures = (
        Figure("error", "test error", "accuracy", percent_wrong, "{:.2f}%", "{:+.4f} points"),
        Figure("top5_error", "top-5 error", "top5_accuracy", percent_wrong, "{:.2f}%", "{:+.4f} points", "top-5"),
    )
    plots = (Plot(f"Loss ({loss_name})", "loss"), Plot("Accuracy", "accuracy", percent=True))
    output_names = ("logits",)
    head_name = "classifier"
    output_unit = "classes"
    own_options = ("rand_augment", "rand_augment_magnitude", "random_erasing", "mixup", "cutmix")

    def __init__(self, options: Mapping[str, Any]) -> None:
        super().__init__(options)
        self.label_smoothing: float = options.get("label_smoothing") or 0.0

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy of logits (N, num_classes) and labels (N,), with label smoothing (Szegedy et al., 2016).

        Mixed images have shares of the classes, (N, num_classes), in place of labels.
        """
        return F.cross_entropy(outputs, targets, label_smoothing=self.label_smoothing)

    def training_metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        return {"accuracy": accuracy(outputs, targets)}

    def searched(self, measured: Mapping[str, float]) -> dict[str, float]:
        return {
            "validation_accuracy_percent": round(100 * measured["accuracy"], 3),
            "validation_loss": round(measured["loss"], 5),
        }

    def evaluator(self, spec: DataSpec) -> Accuracies:
        return Accuracies(spec.top5)

    def final_evaluator(self, spec: DataSpec) -> Recorded:
        return Recorded(spec)

    def pictures(self, batches: Batches, images: Images, evaluator: Evaluator) -> dict[str, bytes]:
        """predictions.npz, with small pictures of the images that the report shows; the report draws the rest."""
        return {FILE: with_pictures(evaluator, images).as_bytes()}

    def test_figures(self, evaluator: Evaluator) -> dict[str, Any]:
        assert isinstance(evaluator, Recorded)
        assert evaluator.found is not None
        return figures_of_test(evaluator.found)

    def sections(self, folder: Path, data: str) -> list[str]:
        return sections_of_test(folder, data)

    def described_outputs(self, spec: DataSpec) -> list[str]:
        return [f"logits: float32 (N, {spec.num_classes})"]

    def num_outputs(self, spec: DataSpec) -> int:
        return spec.num_classes

    def read(self, path: Path, spec: DataSpec) -> np.ndarray:
        """The whole image, uint8 (H, W, 3): as it is stored for a network trained on ImageNet, else upright."""
        return read_stored(str(path))[0] if spec.name == "imagenet" else super().read(path, spec)

    def square(self, pixels: np.ndarray, spec: DataSpec) -> np.ndarray:
        """The middle of the image as in the test, uint8 (S, S, in_channels); grey for a network of one channel."""
        if spec.name == "imagenet":
            size = spec.image_size
            box = middle_box(pixels.shape[1], pixels.shape[0])
            return np.array(Image.fromarray(pixels).resize((size, size), Image.Resampling.BILINEAR, box=box))
        square = super().square(pixels, spec)
        return np.array(Image.fromarray(square).convert("L"))[..., None] if spec.in_channels == 1 else square

    def preprocessing(self, spec: DataSpec) -> str:
        if spec.name != "imagenet":
            return super().preprocessing(spec)
        size = f"{spec.image_size}x{spec.image_size}"
        return (
            f"keep the image as stored (EXIF ignored); crop the middle square of 7/8 of its shorter side and resize "
            f"that to {size} pixels in one step (Pillow: bilinear, antialiased); {channels_in_words(spec)}; "
            f"{normalised_in_words(spec)}"
        )

    def predictions(
        self, outputs: Tensor, spec: DataSpec, images: Sequence[tuple[str, int, int]], least: float | None
    ) -> list[Prediction]:
        """The five most probable classes of each image, without those below the lowest score."""
        best = outputs.float().softmax(dim=1).topk(min(5, outputs.shape[1]))
        found = []
        for (name, width, height), scores, labels in zip(images, best.values.cpu(), best.indices.cpu(), strict=True):
            kept = scores >= (least or 0.0)
            found.append(Prediction(name, width, height, labels[kept].numpy(), scores[kept].numpy(), spec.class_names))
        return found

    def mismatch(self, own: DataSpec, other: DataSpec) -> str:
        if own.num_classes == other.num_classes:
            return ""
        return f"tells {own.num_classes} classes apart ({own.name}), {other.name} has {other.num_classes}"


def with_pictures(evaluator: Evaluator, images: Images) -> Classified:
    """The predictions of `images` that an evaluator has recorded, with pictures of those that the report shows."""
    assert isinstance(evaluator, Recorded)
    assert evaluator.found is not None
    found = evaluator.found
    readable = readable_images(images)
    # a whole batch of damaged images would shift the turns of several ranks: then there are no pictures
    if len(found.labels) == len(readable) and (images.labels[readable].cpu().numpy() == found.labels).all():
        shown = found.shown()
        part = images.select(readable[shown])
        if isinstance(part, ImageFiles):
            part = replace(part, reading=Reading())  # read here: workers take seconds to start
        pixels = np.concatenate([thumbnails(pixels) for pixels, _ in part.parts(SHOWN_IMAGES)])
        if len(pixels) == len(shown):
            found = replace(found, images=shown, pixels=pixels)
    return found


def readable_images(images: Images) -> Tensor:
    """The indices of the images that have not been found damaged, int64 (N,) in order."""
    indices = torch.arange(len(images))
    if not isinstance(images, ImageFiles) or not images.num_damaged:
        return indices
    damaged = {os.fsencode(name) for name, what in images.unusual.items() if what.startswith(DAMAGED)}
    return indices[torch.tensor([name not in damaged for name in images.names.tolist()])]


def thumbnails(pixels: Tensor) -> np.ndarray:
    """Images, uint8 (B, S, S, C), with at most THUMBNAIL pixels a side."""
    side = pixels.shape[1]
    if side > THUMBNAIL:
        x = pixels.permute(0, 3, 1, 2).float()
        x = F.interpolate(x, (THUMBNAIL, THUMBNAIL), mode="bilinear", antialias=True, align_corners=False)
        pixels = x.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
    return pixels.cpu().numpy()


TASKS.add(Classification.name, Classification)
