"""Trained weights as a model for other programs: ONNX, or PyTorch's own exported program.

The exported model maps normalised images to logits, at any batch size. It has no auxiliary head, drop path or
dropout, and carries the metadata of the weights file.
"""

import importlib.metadata
import importlib.util
import io
import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from darts_sg.analysis.compare import Latency, timed
from darts_sg.data import DataSpec
from darts_sg.data.batches import normalise
from darts_sg.data.synthetic import render
from darts_sg.engine.weights import Weights
from darts_sg.errors import RunError, UsageError
from darts_sg.registry import Registry

OPSET = 18
TOLERANCE = 1e-4  # of the logits
CHECKED_BATCHES = (1, 3)

Run = Callable[[Tensor], Tensor]
"""Images (N, in_channels, H, W), normalised, to logits (N, num_classes)."""


class Logits(nn.Module):
    """The network without what is used in training only: images (N, in_channels, H, W) to logits (N, num_classes)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images)[0]


@dataclass(frozen=True)
class ExportFormat:
    """A way to write a model, and to run what was written."""

    suffix: str
    described: str
    needs: tuple[str, ...]
    """Packages that the dependency group `export` installs."""
    write: Callable[[nn.Module, Tensor, dict[str, str]], bytes]
    """(model, images of a batch of two, metadata) to the content of the file."""
    load: Callable[[bytes], Run]


class Side(NamedTuple):
    """The original or the exported model in the comparison."""

    title: str
    size: int
    """Bytes of its file."""
    difference: float
    """Largest absolute difference of a logit from the original's, over the checked batches."""
    latency: Latency


def torch_bytes(model: nn.Module, images: Tensor, metadata: dict[str, str]) -> bytes:
    program = torch.export.export(model, (images,), dynamic_shapes={"images": {0: torch.export.Dim("batch")}})
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files=dict(metadata))
    return buffer.getvalue()


def load_torch(content: bytes) -> Run:
    return torch.export.load(io.BytesIO(content)).module()


def onnx_bytes(model: nn.Module, images: Tensor, metadata: dict[str, str]) -> bytes:
    import onnx

    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns of a lack of torchvision
    program = torch.onnx.export(
        model,
        (images,),
        input_names=["images"],
        output_names=["logits"],
        dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
        opset_version=OPSET,
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    proto = program.model_proto
    onnx.helper.set_model_props(proto, metadata)
    return proto.SerializeToString()


def load_onnx(content: bytes) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])


EXPORT_FORMATS: Registry[ExportFormat] = Registry("export format")
EXPORT_FORMATS.add(
    "onnx",
    ExportFormat(".onnx", f"ONNX, opset {OPSET}", ("onnx", "onnxscript", "onnxruntime"), onnx_bytes, load_onnx),
)
EXPORT_FORMATS.add("torch", ExportFormat(".pt2", "torch.export", (), torch_bytes, load_torch))


def refuse_missing(name: str) -> None:
    """UsageError that says what to install if a package that the format needs is not there."""
    missing = [package for package in EXPORT_FORMATS[name].needs if importlib.util.find_spec(package) is None]
    if missing:
        raise UsageError(
            f"--format {name} needs {', '.join(missing)}: pip install 'darts_sg[export]' (in a checkout "
            "pip install '.[export]'); --format torch needs nothing more"
        )


def export(weights: Weights, name: str) -> tuple[bytes, list[Side]]:
    """The model in the format `name`, and the comparison with the original: its side, then the exported one's.

    The exported model is run on rendered images. Raises UsageError if a package is missing, RunError if a logit
    differs by more than TOLERANCE.
    """
    refuse_missing(name)
    format = EXPORT_FORMATS[name]
    model = Logits(weights.build()).eval()
    batches = [rendered_images(weights.spec, count) for count in CHECKED_BATCHES]
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of PyTorch, about its own internals
        content = format.write(model, rendered_images(weights.spec, 2), weights.metadata.as_texts())
        exported = format.load(content)
    with torch.inference_mode():
        differences = [(exported(images) - model(images)).abs().max() for images in batches]
        difference = torch.stack(differences).max().item()  # nan if there is any
        if not difference <= TOLERANCE:
            raise RunError(
                f"the exported model's logits differ by {difference:.1e} from the original's, allowed is {TOLERANCE}; "
                "nothing was written"
            )
        runs = [lambda run=run: run(batches[0]) for run in (model, exported)]
        latencies = timed(runs, 1, torch.device("cpu"))
    version = f", onnxruntime {importlib.metadata.version('onnxruntime')}" if "onnxruntime" in format.needs else ""
    return content, [
        Side(f"original, PyTorch {torch.__version__}", weights.path.stat().st_size, 0.0, latencies[0]),
        Side(format.described + version, len(content), difference, latencies[1]),
    ]


def rendered_images(spec: DataSpec, count: int) -> Tensor:
    """Rendered figures as images of `spec`, normalised: float32 (count, in_channels, image_size, image_size)."""
    pixels = render(count, np.random.default_rng(0)).images.permute(0, 3, 1, 2).float()
    pixels = F.interpolate(pixels, (spec.image_size, spec.image_size), mode="bilinear")
    if spec.in_channels == 1:
        pixels = pixels.mean(dim=1, keepdim=True)
    return normalise(pixels.round().to(torch.uint8).permute(0, 2, 3, 1), spec).contiguous()
