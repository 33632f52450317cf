"""Image classification: one label for each image, cross-entropy, accuracy, a linear classifier."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from darts_sg.data import DataSpec
from darts_sg.data.detection.batches import read_image as read_stored
from darts_sg.data.stream import middle_box
from darts_sg.tasks.columns import FORMATS, PERCENT
from darts_sg.tasks.task import TASKS, Evaluator, Figure, Plot, Prediction, Task

FORMATS.add("accuracy", PERCENT)


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


TASKS.add(Classification.name, Classification)
