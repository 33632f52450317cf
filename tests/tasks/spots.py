"""Two tasks defined outside of the package, for the tests. Importing this module registers them.

`parity` is a classification with other labels. `spots` is unlike classification: as in detection the targets are a list
with any number of objects for each image (here the bright pixels of a row), the outputs are a dictionary, the network
has heads of its own on a backbone, the loss is a mean over objects instead of images, the measure is a median and so no
sum over images, and the predictions are a file of the run.
"""

import json
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from darts_sg.data import DataSpec, Images
from darts_sg.networks.build import NetworkPlan, build_network
from darts_sg.tasks import TASKS, Batches, Classification, Evaluator, Figure, Plot, Task
from darts_sg.tasks.columns import FORMATS, ColumnFormat

FEATURES = 6
FORMATS.add("closeness", ColumnFormat("{name} {value:.3f}", "{value:.3f}"))


def spots(images: Tensor) -> list[dict[str, Tensor]]:
    """The targets of images (N, 3, H, W): mean colour, and columns of the pixels of the middle row above the mean."""
    rows = images[:, 0, images.shape[2] // 2]
    return [
        {"colour": image.mean(dim=(1, 2)), "columns": (row > row.mean() + 1).nonzero().flatten()}
        for image, row in zip(images, rows, strict=True)
    ]


class RelabelledBatches:
    """Ordinary training batches, with targets made of the images and their labels."""

    def __init__(self, plain: Batches, targets_of: Callable[[Tensor, Tensor], Any]) -> None:
        self.plain, self.targets_of = plain, targets_of
        self.images, self.spec, self.batch_size = plain.images, plain.spec, plain.batch_size

    def __len__(self) -> int:
        return len(self.plain)

    def num_images(self, position: int) -> int:
        return self.plain.num_images(position)

    def __getitem__(self, position: int) -> tuple[Tensor, Any]:
        x, labels = self.plain[position]
        return x, self.targets_of(x, labels)


class SpotNetwork(nn.Module):
    """A backbone with one head for the colour, (N, 3), and one for the number of spots, (N,)."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.colour, self.count = nn.Linear(FEATURES, 3), nn.Linear(FEATURES, 1)

    def heads(self, features: Tensor) -> dict[str, Tensor]:
        return {"colour": self.colour(features), "count": self.count(features).squeeze(1)}

    def forward(self, x: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor] | None]:
        features, auxiliary = self.backbone(x)
        return self.heads(features), None if auxiliary is None else self.heads(auxiliary)


class SpotEvaluator(Evaluator):
    gathers = True

    def __init__(self, scale: float) -> None:
        self.scale, self.loss = scale, 0.0
        self.errors: list[float] = []
        self.all_errors: list[float] = []

    def update(self, outputs: dict[str, Tensor], targets: list[dict[str, Tensor]]) -> None:
        colours = self.scale * torch.stack([target["colour"] for target in targets])
        errors = (outputs["colour"] - colours).abs().mean(dim=1)
        self.loss += errors.sum().item()
        self.errors += errors.tolist()

    def sums(self) -> list[float]:
        return [self.loss]

    def records(self) -> list[float]:
        return self.errors

    def measures(self, sums: Sequence[float], records: Sequence[list[float]], num_images: int) -> dict[str, float]:
        self.all_errors = [error for part in records for error in part]
        assert len(self.all_errors) == num_images
        return {"loss": sums[0] / num_images, "closeness": -100 * statistics.median(self.all_errors)}

    def details(self) -> dict[str, Any]:
        return {"worst": {"image": self.all_errors.index(max(self.all_errors)), "error": max(self.all_errors)}}

    def files(self) -> dict[str, str]:
        return {"predictions.json": json.dumps([{"error": error} for error in self.all_errors])}


class Spots(Task):
    name = "spots"
    loss_name = "distance"
    score = "closeness"
    figures = (Figure("closeness", "test closeness", "closeness", lambda value: round(value, 6), "{:.4f}", "{:+.6f}"),)
    plots = (Plot("Distance", "loss"), Plot("Loss of the count", "count_loss"), Plot("Closeness", "closeness"))
    output_names = ("colour", "count")
    head_name = "heads"

    def __init__(self, options: Mapping[str, Any]) -> None:
        super().__init__(options)
        self.smoothing = options.get("label_smoothing") or 0.0  # stands for an option that outputs depend on

    def losses(self, outputs: dict[str, Tensor], targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        colours = (1 - self.smoothing) * torch.stack([target["colour"] for target in targets])
        counts = torch.tensor([float(len(target["columns"])) for target in targets], device=outputs["count"].device)
        terms = self.num_terms(targets)
        colour = F.l1_loss(outputs["colour"], colours, reduction="sum") / terms
        count = F.smooth_l1_loss(outputs["count"], counts, reduction="sum") / terms
        return {"loss": colour + 0.1 * count, "count_loss": count}

    def loss(self, outputs: dict[str, Tensor], targets: list[dict[str, Tensor]]) -> Tensor:
        return self.losses(outputs, targets)["loss"]

    def num_terms(self, targets: list[dict[str, Tensor]]) -> int:
        return max(1, sum(len(target["columns"]) for target in targets))

    def evaluator(self, spec: DataSpec) -> SpotEvaluator:
        return SpotEvaluator(1 - self.smoothing)

    def train_batches(self, *arguments: Any, **options: Any) -> Batches:
        return RelabelledBatches(super().train_batches(*arguments, **options), lambda x, labels: spots(x))

    def evaluation_batches(
        self, images: Images, spec: DataSpec, batch_size: int, rank: int = 0, num_ranks: int = 1
    ) -> Iterator[tuple[Tensor, Any]]:
        for x, _ in super().evaluation_batches(images, spec, batch_size, rank, num_ranks):
            yield x, spots(x)

    def num_outputs(self, spec: DataSpec) -> int:
        return FEATURES

    def build(self, plan: NetworkPlan, spec: DataSpec) -> SpotNetwork:
        return SpotNetwork(build_network(plan, FEATURES, spec.in_channels))

    def network_options(self) -> dict[str, Any]:
        return {"label_smoothing": self.smoothing} if self.smoothing else {}

    def start_state(
        self, network: nn.Module, spec: DataSpec, tensors: Mapping[str, Tensor], of: Task, of_spec: DataSpec
    ) -> tuple[dict[str, Tensor], list[str]]:
        """A classifier's file becomes the backbone, but for the layers whose size is another."""
        if of.name == self.name:
            return super().start_state(network, spec, tensors, of, of_spec)
        own = network.state_dict()
        given = {f"backbone.{name}": tensor for name, tensor in tensors.items()}
        taken = {name: t for name, t in given.items() if name in own and own[name].shape == t.shape}
        return own | taken, ["heads new"]

    def difference(self, found: Any, expected: Any) -> Tensor:
        return torch.stack([(found[name] - expected[name]).abs().max() for name in self.output_names]).max()

    def sections(self, folder: Path, data: str) -> list[str]:
        predictions = json.loads((folder / "predictions.json").read_text())
        return [f"Predictions of {len(predictions)} test images of {data} are in [predictions.json](predictions.json)."]


class Parity(Classification):
    """Whether the label is odd."""

    name = "parity"

    def train_batches(self, *arguments: Any, **options: Any) -> Batches:
        return RelabelledBatches(super().train_batches(*arguments, **options), lambda x, labels: labels % 2)

    def evaluation_batches(self, *arguments: Any, **options: Any) -> Iterator[tuple[Tensor, Any]]:
        return ((x, labels % 2) for x, labels in super().evaluation_batches(*arguments, **options))

    def num_outputs(self, spec: DataSpec) -> int:
        return 2


TASKS.add(Spots.name, Spots)
TASKS.add(Parity.name, Parity)
