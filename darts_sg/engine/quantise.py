"""Post-training quantisation of a classifier to INT8: ONNX Runtime's static quantisation of the exported float32 model.

Weights and activations become 8-bit integers, weights with a scale for each output channel (Jacob et al., CVPR 2018).
The ranges of activations are those seen on calibration images, which come from the training part, so that the test
images judge a model that never saw them. The file holds pairs of QuantizeLinear and DequantizeLinear (format QDQ).
"""

import json
import logging
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from darts_sg.analysis.compare import Latency, timed
from darts_sg.data import Dataset, Images
from darts_sg.engine.diagnosis import load_data
from darts_sg.engine.environment import machine
from darts_sg.engine.export import EXPORT_FORMATS, RunModel, described, export, refuse_missing, rendered_images
from darts_sg.engine.weights import Weights
from darts_sg.errors import RunError, UsageError, first_line
from darts_sg.tasks import DEFAULT_TASK

BATCH = 50
METADATA_ENTRY = "quantisation"
"""Name of the entry in the model's metadata that holds `Quantised.as_dict` as JSON."""
ACCEPTED_LOSS = 1.0  # points of test error; more is said in a warning


@dataclass(frozen=True)
class Precision:
    """One precision of the model: what it costs and what it gets right."""

    title: str
    size: int
    """Size of the file in bytes."""
    error: float
    """The task's main figure on the test images: the test error, in percent."""
    latency: Latency
    """The latency of one image."""


@dataclass(frozen=True)
class Quantised:
    """An INT8 model beside the float32 model that it was made of, both run by ONNX Runtime."""

    content: bytes
    """The file, whose metadata hold `as_dict`."""
    float32: Precision
    int8: Precision
    calibration_images: int
    test_images: int
    data: str
    """The data set, with the remarks that have to stand beside a figure."""
    machine: str
    """Where the latencies were measured."""

    def as_dict(self) -> dict[str, Any]:
        """The facts as plain values, for JSON."""
        facts = {name: value for name, value in asdict(self).items() if name != "content"}
        for side in ("float32", "int8"):
            facts[side].pop("size")  # the file's size is known only after this text is in it
        return facts

    def warnings(self) -> list[str]:
        """Reasons against the INT8 model: more errors, less speed."""
        found = []
        lost = self.int8.error - self.float32.error
        if lost > ACCEPTED_LOSS:
            found.append(
                f"warning: INT8 adds {lost:.2f} points of test error, more than {ACCEPTED_LOSS:g}; try more "
                "--calibration-images, or keep float32"
            )
        ratio = self.int8.latency.median / self.float32.latency.median
        if ratio > 1:
            found.append(f"warning: INT8 takes {ratio:.2f} times as long as float32 on this machine")
        return found


class CalibrationImages:
    """Batches of normalised images under the input's name, as ONNX Runtime's calibration asks for them."""

    def __init__(self, batches: Iterator[Tensor]) -> None:
        self.batches = batches

    def get_next(self) -> dict[str, np.ndarray] | None:
        images = next(self.batches, None)
        return None if images is None else {"images": images.numpy()}


def refuse_quantisation(weights: Weights) -> None:
    """UsageError if the network is of another task than classification, or a package is missing."""
    if weights.metadata.task != DEFAULT_TASK:
        raise UsageError(
            f"{weights.path}: --int8 is for classifiers: the boxes of a task such as {weights.metadata.task} need more "
            "than 8 bits, and nothing here measures what they lose; leave it out"
        )
    refuse_missing("onnx")


def calibration_part(data: Dataset, weights: Weights, count: int) -> Images:
    """`count` training images, class-balanced, chosen by the seed of the training."""
    if count > len(data.train):
        raise UsageError(
            f"--calibration-images {count}: the training part of {data.spec.name} has {len(data.train):,} images; "
            "lower it"
        )
    return weights.task.split(data.train, [count], weights.metadata.seed)[0]


def quantise(weights: Weights, folder: Path, calibration_images: int) -> Quantised:
    """Export to ONNX, quantise, and measure both models on the test images of the data in `folder`.

    Raises UsageError for another task than classification, if a package or the data are missing or others than those of
    the training, and for more calibration images than there are; RunError as `export` does, and if ONNX Runtime cannot
    quantise the model.
    """
    refuse_quantisation(weights)
    data = load_data(weights, folder)
    chosen = calibration_part(data, weights, calibration_images)
    content, _ = export(weights, "onnx")
    try:
        quantised = _quantised(content, _images(weights, chosen))
    except Exception as error:  # of many kinds, from ONNX and ONNX Runtime
        raise RunError(f"ONNX Runtime cannot quantise {weights.path}: {first_line(error)[:200]}") from error
    contents = (content, quantised)
    runs = [EXPORT_FORMATS["onnx"].load(each) for each in contents]
    one = rendered_images(weights.spec, 1)
    latencies = timed([partial(run, one) for run in runs], 1, torch.device("cpu"))
    float32, int8 = (
        Precision(title, len(each), error_of(run, weights, data.test), latency)
        for title, each, run, latency in zip(("float32", "INT8"), contents, runs, latencies, strict=True)
    )
    found = Quantised(
        quantised, float32, int8, calibration_images, len(data.test), weights.data, machine(torch.device("cpu"))
    )  # fmt: skip
    return _with_facts(found, described(weights))


def error_of(run: RunModel, weights: Weights, images: Images) -> float:
    """The task's main figure of a model on images: the test error, in percent."""
    task = weights.task
    evaluator, count = task.evaluator(weights.spec), 0
    for batch, labels in task.evaluation_batches(images, weights.spec, BATCH):
        evaluator.update(run(batch), labels)
        count += len(labels)
    if not count:
        raise UsageError(f"the test part of {weights.spec.name} has no image that can be read")
    return task.figures[0].of(evaluator.measures(evaluator.sums(), [], count))


def _images(weights: Weights, images: Images) -> Iterator[Tensor]:
    return (batch for batch, _ in weights.task.evaluation_batches(images, weights.spec, BATCH))


def _quantised(content: bytes, batches: Iterator[Tensor]) -> bytes:
    """The float32 model in 8 bits: the graph is folded (BatchNorm into convolutions), calibrated and rewritten."""
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.registry import QDQRegistry
    from onnxruntime.quantization.shape_inference import quant_pre_process

    logging.getLogger().addFilter(_is_no_advice)
    try:
        with tempfile.TemporaryDirectory() as name:
            given, folded, written = (Path(name) / f"{step}.onnx" for step in ("float32", "folded", "int8"))
            given.write_bytes(content)
            # the model's shapes are known but for the batch, so the symbolic inference has nothing to add
            quant_pre_process(given, folded, skip_symbolic_shape=True)
            quantize_static(
                folded,
                written,
                CalibrationImages(batches),
                quant_format=QuantFormat.QDQ,
                # a BatchNorm that no convolution takes in stays float32: its vectors have no axis of output channels
                op_types_to_quantize=sorted(set(QDQRegistry) - {"BatchNormalization"}),
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
            )
            return written.read_bytes()
    finally:
        logging.getLogger().removeFilter(_is_no_advice)


def _is_no_advice(record: logging.LogRecord) -> bool:
    """False for what ONNX Runtime logs about its own preprocessing, which is done here."""
    return "pre-processing" not in record.getMessage()


def _with_facts(found: Quantised, metadata: dict[str, str]) -> Quantised:
    """The same model with the weights' metadata and the facts about the quantisation inside."""
    import onnx

    proto = onnx.load_from_string(found.content)
    del proto.metadata_props[:]
    onnx.helper.set_model_props(proto, metadata | {METADATA_ENTRY: json.dumps(found.as_dict(), ensure_ascii=False)})
    content = proto.SerializeToString()
    return replace(found, content=content, int8=replace(found.int8, size=len(content)))
