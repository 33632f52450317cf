"""Object detection: boxes and classes of the objects in each image, by SSDLite (`darts_sg.networks.ssdlite`).

The loss is that of SSD (`darts_sg.tasks.matching`), the measures are mean average precisions
(`darts_sg.tasks.average_precision`).
"""

import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn

from darts_sg.data import DataSpec, Images
from darts_sg.data.batches import sent
from darts_sg.data.detection.augment import BOX_AUGMENTS, warp
from darts_sg.data.detection.batches import DetectionBatches, detection_evaluation_batches, read_image
from darts_sg.data.detection.objects import DetectionImages, Objects, ObjectTable
from darts_sg.data.detection.predictions import Detections, join_detections, predictions_text
from darts_sg.errors import UsageError
from darts_sg.networks.build import NetworkPlan
from darts_sg.networks.ssdlite import DetectorOutputs, PriorStyle, SSDLite, prior_boxes
from darts_sg.options import flag
from darts_sg.tasks.average_precision import Precision, average_precision
from darts_sg.tasks.columns import FORMATS, PERCENT
from darts_sg.tasks.detection_pictures import (
    SHOWN_SCORE,
    confusion_matrix,
    precision_recall,
    predictions,
    training_batch,
)
from darts_sg.tasks.detections import (
    SELECTIONS,
    DecodingModel,
    FoundObjects,
    SelectingModel,
    decoded,
    onnx_operators,
    select_objects,
    selection_difference,
)
from darts_sg.tasks.matching import Matched, match, multibox_losses
from darts_sg.tasks.task import (
    TASKS,
    Batches,
    Evaluator,
    Figure,
    Plot,
    Prediction,
    Selecting,
    Task,
    channels_in_words,
    normalised_in_words,
)

TRAINING_PICTURE = "pictures/training_batch.png"
CURVES_PICTURE, CONFUSION_PICTURE = "pictures/precision_recall.png", "pictures/confusion.png"
MEASURES = {"map_voc07": "mAP (VOC07)", "map_area": "mAP (area)", "map_50": "AP50", "map_coco": "mAP (COCO)"}
for _measure in MEASURES:
    FORMATS.add(_measure, PERCENT)


@dataclass(frozen=True)
class MatchedObjects:
    """The targets of some images: their objects, and what each prior box has to predict."""

    objects: Sequence[Objects]
    """Boxes as shares of the sides."""
    matched: Matched
    num_positives: int | Tensor
    """Prior boxes of all images that are matched with an object; a tensor in a captured step."""

    def __len__(self) -> int:
        return len(self.objects)

    def to(self, device: torch.device) -> "MatchedObjects":
        """The same targets with their tensors for the loss on `device`; the copy waits for no earlier step."""
        return replace(self, matched=Matched(*(sent(part, device) for part in self.matched)))


def match_objects(objects: Sequence[Objects], style: PriorStyle, image_size: int) -> MatchedObjects:
    """Match objects, boxes as shares of the sides, with the prior boxes, on the CPU.

    Objects marked difficult or a crowd and those without an area match none.
    """
    priors, found = prior_boxes(style, image_size), []
    for one in objects:
        boxes, labels = one.boxes.cpu(), one.labels.cpu()
        wanted = ~(one.difficult | one.crowd).cpu() & (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
        found.append(match(boxes[wanted], labels[wanted], priors))
    matched = Matched(*(torch.stack(parts) for parts in zip(*found, strict=True)))
    return MatchedObjects(objects, matched, int((matched.labels > 0).sum()))


class MatchedBatches:
    """Training batches with the objects matched; see `Batches`."""

    def __init__(self, plain: Batches, style: PriorStyle) -> None:
        self.plain, self.style = plain, style
        self.images, self.spec, self.batch_size = plain.images, plain.spec, plain.batch_size

    def __len__(self) -> int:
        return len(self.plain)

    def num_images(self, position: int) -> int:
        return self.plain.num_images(position)

    def __getitem__(self, position: int) -> tuple[Tensor, MatchedObjects]:
        x, objects = self.plain[position]
        return x, match_objects(objects, self.style, self.spec.image_size).to(x.device)


class ImageResult(NamedTuple):
    """What was found in one test image, and what is in it; boxes in pixels of the original."""

    truth: Objects
    boxes: np.ndarray
    """float32 (n, 4)."""
    labels: np.ndarray
    """int64 (n,)."""
    scores: np.ndarray
    """float32 (n,), falling."""


def in_pixels(boxes: Tensor, width: int, height: int) -> Tensor:
    """Boxes as shares of the sides, (n, 4), in pixels of an image of this size."""
    return boxes * boxes.new_tensor([width, height, width, height])


def original(truth: Objects) -> Objects:
    """The objects of an evaluation batch with boxes in pixels, on the CPU.

    Rounded to a thousandth, which undoes the rounding of the shares where annotations have up to three decimals:
    measures are then those of `data score`.
    """
    boxes = in_pixels(truth.boxes.cpu().double(), truth.width, truth.height).round(decimals=3).float()
    return replace(truth.to("cpu"), boxes=boxes)


class TestResults(NamedTuple):
    """All that was found in a test."""

    names: list[str]
    """Of the images, sorted."""
    objects: ObjectTable
    found: Detections
    precision: Precision


class DetectionEvaluator(Evaluator):
    """The loss of SSD and the mean average precisions of the objects found."""

    gathers = True

    def __init__(self, spec: DataSpec, style: PriorStyle) -> None:
        self.spec, self.style = spec, style
        self.losses = torch.zeros(2, dtype=torch.float64)
        self.num_positives = 0
        self.own: list[ImageResult] = []
        self.results: TestResults | None = None
        """Of the images of all ranks, after `measures`."""

    def update(self, outputs: DetectorOutputs, targets: Sequence[Objects]) -> None:
        size = self.spec.image_size
        matched = match_objects(targets, self.style, size).to(outputs.offsets.device)
        priors = prior_boxes(self.style, size, outputs.offsets.device)
        losses = multibox_losses(outputs, matched.matched, 1)
        self.losses += torch.stack(losses).double().cpu()
        self.num_positives += int(matched.num_positives)
        for boxes, scores, truth in zip(*decoded(outputs, priors), targets, strict=True):
            found = select_objects(boxes, scores, SELECTIONS[self.style])
            pixels = in_pixels(found.boxes, truth.width, truth.height)
            parts = (part.cpu().numpy() for part in (pixels, found.labels, found.scores))
            self.own.append(ImageResult(original(truth), *parts))

    def sums(self) -> list[float]:
        return [*self.losses.tolist(), self.num_positives]

    def records(self) -> list[ImageResult]:
        return self.own

    def measures(self, sums: Sequence[float], records: Sequence[Any], num_images: int) -> dict[str, float]:
        class_loss, box_loss, num_positives = sums
        # by name: then the order, which decides between equal scores, does not depend on the number of ranks
        images = sorted((one for part in records for one in part), key=lambda one: one.truth.image)
        objects = table_of([one.truth for one in images])
        found = join_detections(
            [
                Detections(np.full(len(one.scores), i), one.boxes.astype(np.float64), one.labels, one.scores)
                for i, one in enumerate(images)
            ]
        )
        precision = average_precision(objects, found, self.spec.num_classes)
        self.results = TestResults([one.truth.image for one in images], objects, found, precision)
        figures = precision.figures()
        loss = (class_loss + box_loss) / max(1, num_positives)
        return {"loss": loss, **{name: figures[name] for name in MEASURES}}

    def details(self) -> dict[str, Any]:
        """Further figures in percent, and those of each class; null where there are no objects."""
        assert self.results is not None
        precision = self.results.precision
        more = {name: percent(value) for name, value in precision.figures().items() if name not in MEASURES}
        by_class = {
            name: {key: int(value) if key == "objects" else percent(value) for key, value in figures.items()}
            for name, figures in zip(self.spec.class_names, precision.by_class(), strict=True)
        }
        return {"test_details": more, "by_class": by_class}

    def files(self) -> dict[str, str]:
        """predictions.json: all objects found, see `darts_sg.data.detection.predictions`."""
        assert self.results is not None
        return {"predictions.json": predictions_text(self.results.found, self.results.names, self.spec.class_names)}


def table_of(images: Sequence[Objects]) -> ObjectTable:
    """The objects of several images as one table."""
    starts = np.concatenate([[0], np.cumsum([len(one) for one in images], dtype=np.int64)]).astype(np.int64)

    def joined(name: str, empty: np.ndarray) -> np.ndarray:
        return np.concatenate([empty, *(getattr(one, name).numpy() for one in images)])

    return ObjectTable(
        starts,
        joined("boxes", np.empty((0, 4), np.float32)),
        joined("labels", np.empty(0, np.int64)),
        joined("difficult", np.empty(0, np.bool_)),
        joined("crowd", np.empty(0, np.bool_)),
        joined("area", np.empty(0, np.float32)),
    )


def percent(share: float) -> float | None:
    """A share in percent, as it is reported; None for NaN."""
    return None if share != share else round(100 * share, 4)


class Detection(Task):
    """Objects in boxes. Options: detector, freeze_backbone, and box_augment for the training images."""

    name = "detection"
    loss_name = "multibox loss"
    score = "map_voc07"
    figures = tuple(
        Figure(name, f"test {title}", name, lambda value: round(100 * value, 4), "{:.2f}%", "{:+.4f} points", title)
        for name, title in MEASURES.items()
    )
    plots = (
        Plot(f"Loss ({loss_name})", "loss"),
        Plot("Cross-entropy of the classes", "class_loss"),
        Plot("Smooth L1 of the boxes", "box_loss"),
        Plot("mAP (VOC07)", "map_voc07", percent=True),
        Plot("mAP (COCO)", "map_coco", percent=True),
    )
    output_names = ("boxes", "scores")
    head_name = "class heads"
    output_unit = "classes"
    layers_after = "Four extra levels and the heads of SSDLite follow, on maps at 1/16 and 1/32 and on the levels."
    searchable = False
    has_auxiliary = False
    is_mobile = False
    own_options = ("detector", "freeze_backbone", "box_augment")

    def __init__(self, options: Mapping[str, Any]) -> None:
        super().__init__(options)
        for name, way_out in (
            ("cutout_length", "--cutout-length 0"), ("colour_jitter", "--colour-jitter 0"),
            ("label_smoothing", "--label-smoothing 0"), ("auxiliary_weight", "--auxiliary-weight 0"),
        ):  # fmt: skip
            if options.get(name):
                raise UsageError(
                    f"{flag(name)} {options[name]} is for classification: give {way_out}, or --recipe voc, which has it"
                )
        self.style: PriorStyle = options.get("detector") or "authors"
        self.freeze_backbone = bool(options.get("freeze_backbone"))
        self.box_augment = BOX_AUGMENTS[options.get("box_augment") or "ssd"]

    # --- training and evaluation

    def prepare(self, network: nn.Module) -> None:
        """Freeze the backbone, if asked to."""
        if self.freeze_backbone:
            assert isinstance(network, SSDLite)
            network.freeze_backbone()

    def losses(self, outputs: DetectorOutputs, targets: MatchedObjects) -> dict[str, Tensor]:
        class_loss, box_loss = multibox_losses(outputs, targets.matched, targets.num_positives)
        return {"loss": class_loss + box_loss, "class_loss": class_loss, "box_loss": box_loss}

    def loss(self, outputs: DetectorOutputs, targets: MatchedObjects) -> Tensor:
        """Cross-entropy + smooth L1, means over the positive prior boxes of the batch (SSD, equation 1)."""
        return self.losses(outputs, targets)["loss"]

    def num_terms(self, targets: MatchedObjects) -> int | Tensor:
        return targets.num_positives

    def as_tensors(self, targets: MatchedObjects) -> tuple[Tensor, ...]:
        return tuple(targets.matched)

    def from_tensors(self, tensors: Sequence[Tensor]) -> MatchedObjects:
        """Without the objects, which the loss does not read; their positives are counted on the device."""
        matched = Matched(*tensors)
        return MatchedObjects((), matched, (matched.labels > 0).sum())

    def evaluator(self, spec: DataSpec) -> DetectionEvaluator:
        return DetectionEvaluator(spec, self.style)

    # --- data

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
        augment = BOX_AUGMENTS["none"] if plain else self.box_augment
        batches = DetectionBatches(with_boxes(images, spec), spec, batch_size, augment, seed, stream, rank, num_ranks)
        return MatchedBatches(batches, self.style)

    def evaluation_batches(
        self, images: Images, spec: DataSpec, batch_size: int, rank: int = 0, num_ranks: int = 1
    ) -> Iterator[tuple[Tensor, Any]]:
        return detection_evaluation_batches(with_boxes(images, spec), spec, batch_size, rank, num_ranks)

    # --- single images

    def read(self, path: Path, spec: DataSpec) -> np.ndarray:
        return read_image(str(path))[0]

    def square(self, pixels: np.ndarray, spec: DataSpec) -> np.ndarray:
        return warp(pixels, spec.image_size)

    def preprocessing(self, spec: DataSpec) -> str:
        return (
            f"keep the image as stored (EXIF ignored); resize the whole image to {spec.image_size}x{spec.image_size} "
            f"pixels, whatever its aspect ratio (Pillow: bilinear, antialiased); {channels_in_words(spec)}; "
            f"{normalised_in_words(spec)}"
        )

    def predictions(
        self, outputs: DetectorOutputs, spec: DataSpec, images: Sequence[tuple[str, int, int]], least: float | None
    ) -> list[Prediction]:
        """The objects found in each image; the default of the lowest score is 0.3."""
        selection = replace(SELECTIONS[self.style], score=SHOWN_SCORE if least is None else least)
        found = []
        priors = prior_boxes(self.style, spec.image_size, outputs.offsets.device)
        parts = zip(*decoded(outputs, priors), images, strict=True)
        for boxes, scores, (name, width, height) in parts:
            objects = FoundObjects(*(part.cpu() for part in select_objects(boxes, scores, selection)))
            found.append(
                Prediction(
                    name, width, height, objects.labels.numpy(), objects.scores.numpy(), spec.class_names,
                    in_pixels(objects.boxes, width, height).numpy(),
                )
            )  # fmt: skip
        return found

    # --- results

    def pictures(self, batches: Batches, images: Images, evaluator: Evaluator) -> dict[str, bytes]:
        """A training batch, images with objects and predictions, curves of precision and recall, confusion matrix."""
        assert isinstance(evaluator, DetectionEvaluator)
        assert evaluator.results is not None
        spec, results = batches.spec, evaluator.results
        x, matched = batches[0]
        priors = prior_boxes(self.style, spec.image_size)
        found = {TRAINING_PICTURE: training_batch(x, matched, priors, spec)}
        shown = predictions(with_boxes(images, spec), results.names, results.objects, results.found)
        found |= {f"pictures/predictions_{which}.png": picture for which, picture in shown.items()}
        found[CURVES_PICTURE] = precision_recall(results.precision.voc, spec.class_names)
        found[CONFUSION_PICTURE] = confusion_matrix(results.objects, results.found, spec.class_names)
        return found

    def sections(self, folder: Path, data: str) -> list[str]:
        """The figures by class, and the pictures that are there."""
        result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        paragraphs = _by_class(result)
        if (folder / "predictions.json").is_file():
            paragraphs.append("All objects found in the test images are in [predictions.json](predictions.json).")
        captions = {
            CURVES_PICTURE: "Precision and recall of each class, IoU 0.5",
            CONFUSION_PICTURE: f"Classes that were found as others; boxes with a score of {SHOWN_SCORE} or more",
            **{
                f"pictures/predictions_{which}.png": f"{title}: objects in green (above), predictions with a score of "
                f"{SHOWN_SCORE} or more (below), right ones in blue, wrong ones in red"
                for which, title in (
                    ("best", "The best images"), ("worst", "The worst images"), ("random", "Random images"),
                )
            },
            TRAINING_PICTURE: "Images of the first training batch after augmentation: objects in green, prior boxes "
            "that are matched with them in orange",
        }  # fmt: skip
        for name, caption in captions.items():
            if (folder / name).is_file():
                paragraphs += [f"{caption}, {data}:", f"![{caption}]({name})"]
        return paragraphs

    # --- network

    def num_outputs(self, spec: DataSpec) -> int:
        """Classes without the background."""
        return spec.num_classes

    def build(self, plan: NetworkPlan, spec: DataSpec) -> SSDLite:
        return SSDLite(
            plan, num_classes=spec.num_classes, style=self.style, image_size=spec.image_size,
            in_channels=spec.in_channels,
        )  # fmt: skip

    def network_options(self) -> dict[str, Any]:
        return {} if self.style == "authors" else {"detector": self.style}

    def output_layers(self, network: nn.Module) -> list[str]:
        """The last 1×1 convolution of each class head."""
        heads = network.get_submodule("class_heads")
        last: dict[str, str] = {}
        for name, module in heads.named_modules(prefix="class_heads"):
            if isinstance(module, nn.Conv2d):
                last[name.split(".")[1]] = name
        return list(last.values())

    def start_state(
        self, network: nn.Module, spec: DataSpec, tensors: Mapping[str, Tensor], of: Task, of_spec: DataSpec
    ) -> tuple[dict[str, Tensor], list[str]]:
        """A detector goes on, with new class heads for other classes; a classifier becomes the backbone."""
        if of.name == self.name:
            return super().start_state(network, spec, tensors, of, of_spec)
        own = network.state_dict()
        given = {f"backbone.{name}": tensor for name, tensor in tensors.items()}
        return own | {name: t for name, t in given.items() if name in own}, ["extra levels and heads new"]

    def inference(self, network: nn.Module) -> nn.Module:
        """Boxes, corners as shares of the sides (N, P, 4), and scores of the classes (N, P, num_classes)."""
        return DecodingModel(cast(SSDLite, network))

    def selecting(self, network: nn.Module) -> Selecting:
        """With non-maximum suppression inside."""
        selection = SELECTIONS[self.style]
        described = [
            "image: int64 (M,), the image of each of the M objects found in all N images; the best of an image first",
            "boxes: float32 (M, 4), x1, y1, x2, y2 as shares of the image's sides",
            "labels: int64 (M,), classes from 0",
            f"scores: float32 (M,), above {selection.score:g}; overlaps above {selection.iou:g} of boxes of a class "
            f"are suppressed, at most {selection.most} objects an image",
            "all_boxes, all_scores: boxes (N, P, 4) and class probabilities (N, P, C) of all prior boxes, before that",
        ]
        names = ("image", "boxes", "labels", "scores", "all_boxes", "all_scores")
        difference = functools.partial(selection_difference, selection=selection)
        return Selecting(SelectingModel(cast(SSDLite, network)), names, described, difference, onnx_operators)

    def described_outputs(self, spec: DataSpec) -> list[str]:
        num_priors = len(prior_boxes(self.style, spec.image_size))
        return [
            f"boxes: float32 (N, {num_priors}, 4), x1, y1, x2, y2 of each prior box as shares of the image's sides",
            f"scores: float32 (N, {num_priors}, {spec.num_classes}), probabilities of the classes without background",
        ]

    def difference(self, found: Any, expected: Any) -> Tensor:
        """The largest difference of a score, or of a box's coordinate as a share of the side."""
        return torch.stack([(a - b).abs().max() for a, b in zip(found, expected, strict=True)]).max()


def _by_class(result: Mapping[str, Any]) -> list[str]:
    """The table of the figures by class, from result.json."""
    rows = result.get("by_class")
    if not isinstance(rows, dict):
        return []
    columns = {"ap_voc07": "AP (VOC07)", "ap_area": "AP (area)", "ap_50": "AP50", "ap_coco": "AP (COCO)"}
    lines = [f"| class | objects | {' | '.join(columns.values())} |", "| --- " * (2 + len(columns)) + "|"]
    for name, figures in rows.items():
        texts = ["–" if figures.get(key) is None else f"{figures[key]:.2f}%" for key in columns]
        lines.append(f"| {name.replace('|', '¦')} | {figures.get('objects', 0):,} | {' | '.join(texts)} |")
    return ["**By class, after the last epoch**", "\n".join(lines)]


def with_boxes(images: Images, spec: DataSpec) -> DetectionImages:
    """The images, if they have boxes; UsageError for images with one label each."""
    if not isinstance(images, DetectionImages):
        raise UsageError(
            f"--task detection: the images of {spec.name} have no boxes; choose --dataset voc, coco or yolo"
        )
    return images


TASKS.add(Detection.name, Detection)
