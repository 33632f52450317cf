"""Export of trained weights to other programs: ONNX, or PyTorch's own exported program.

The exported model maps normalised images to the task's outputs (a classifier's logits; a detector's boxes and scores,
or the objects found), at any batch size. It has no auxiliary head, drop path or dropout, and carries the metadata of
the weights file.
"""

import importlib.metadata
import importlib.util
import io
import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

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
from darts_sg.genotype import Genotype
from darts_sg.ops import OPERATIONS
from darts_sg.registry import Registry

OPSET = 18
TOLERANCE = 1e-4  # by which an output may differ from the original's
CHECKED_BATCHES = (1, 3)

Operators = Mapping[Any, Callable[..., Any]]
"""How a format computes operators that PyTorch's exporter does not know."""
RunModel = Callable[[Tensor], Any]
"""Normalised images (N, in_channels, H, W) to the outputs: a tensor, or a tuple of them."""


@dataclass(frozen=True)
class ExportFormat:
    """A file format: how a model is written, and how the file is run."""

    suffix: str
    described: str
    needs: tuple[str, ...]
    """Packages that the dependency group `export` installs."""
    write: Callable[[nn.Module, Tensor, Sequence[str], dict[str, str], Operators], bytes]
    """(model, a batch of two images, names of the outputs, metadata, operators) to the content of the file."""
    load: Callable[[bytes], RunModel]
    selects: bool = False
    """Whether it can hold the selection of results, see `Task.selecting`."""


class Side(NamedTuple):
    """One side of the comparison: the original or the exported model."""

    title: str
    size: int
    """Size of the file in bytes."""
    difference: float
    """Largest difference of an output from the original's over the checked batches, see `Task.difference`."""
    latency: Latency


def torch_bytes(
    model: nn.Module, images: Tensor, names: Sequence[str], metadata: dict[str, str], operators: Operators
) -> bytes:
    """The model as torch.export saves it; outputs have no names there."""
    program = torch.export.export(model, (images,), dynamic_shapes={"images": {0: torch.export.Dim("batch")}})
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files=dict(metadata))
    return buffer.getvalue()


def load_torch(content: bytes) -> RunModel:
    return torch.export.load(io.BytesIO(content)).module()


def onnx_bytes(
    model: nn.Module, images: Tensor, names: Sequence[str], metadata: dict[str, str], operators: Operators
) -> bytes:
    """The model as ONNX, with a batch of any size."""
    import onnx

    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns that torchvision is missing, which is not needed
    program = torch.onnx.export(
        model,
        (images,),
        input_names=["images"],
        output_names=list(names),
        dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
        opset_version=OPSET,
        dynamo=True,
        verbose=False,
        custom_translation_table=dict(operators) or None,
    )
    assert program is not None
    proto = program.model_proto
    onnx.helper.set_model_props(proto, metadata)
    return proto.SerializeToString()


def load_onnx(content: bytes) -> RunModel:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> Any:
        outputs = tuple(torch.from_numpy(array) for array in session.run(None, {"images": images.numpy()}))
        return outputs[0] if len(outputs) == 1 else outputs

    return run


EXPORT_FORMATS: Registry[ExportFormat] = Registry("export format")
EXPORT_FORMATS.add(
    "onnx",
    ExportFormat(".onnx", f"ONNX, opset {OPSET}", ("onnx", "onnxscript", "onnxruntime"), onnx_bytes, load_onnx, True),
)
EXPORT_FORMATS.add("torch", ExportFormat(".pt2", "torch.export", (), torch_bytes, load_torch))


def missing_packages(name: str) -> list[str]:
    """The packages that a format needs and that are not installed."""
    return [package for package in EXPORT_FORMATS[name].needs if importlib.util.find_spec(package) is None]


def refuse_missing(name: str) -> None:
    """Raise UsageError, which says what to install, if a package that the format needs is missing."""
    if missing := missing_packages(name):
        raise UsageError(
            f"--format {name} needs {', '.join(missing)}: pip install 'darts_sg[export]' (in a checkout "
            "pip install '.[export]'); --format torch needs nothing more"
        )


def drawn_operations(genotype: Genotype) -> list[str]:
    """The operations of a genotype whose outputs are random numbers."""
    names = {edge.operation for _, cell in genotype.cells() for _, edge in cell.edges()}
    return sorted(name for name in names if OPERATIONS[name].is_random)


def export(weights: Weights, name: str, *, select: bool = False) -> tuple[bytes, list[Side]]:
    """Export to the format `name`. Returns the file's content and the comparison: original, then exported model.

    select: with the selection of results inside, such as non-maximum suppression, see `Task.selecting`.

    Both models are run on rendered images. Raises UsageError if a package is missing or the network draws random
    numbers, RunError if an output differs by
    more than TOLERANCE.
    """
    refuse_missing(name)
    if isinstance(weights.trained, Genotype) and (drawn := drawn_operations(weights.trained)):
        raise UsageError(
            f"{weights.trained.name} holds {', '.join(drawn)}, drawn anew in each pass: an exported model could not be "
            "compared with the original"
        )
    format = EXPORT_FORMATS[name]
    task = weights.task
    names, operators = task.output_names, dict[Any, Callable[..., Any]]()
    difference_of: Callable[[Any, Any], Tensor] = task.difference
    network = weights.build()
    model = task.inference(network).eval()
    if select:
        selecting = task.selecting(network)
        if selecting is None or not format.selects:
            raise UsageError(
                f"{weights.path}: the task {task.name} selects nothing" if selecting is None
                else f"--format {name} cannot hold the selection of boxes: add --no-nms, or choose onnx"
            )  # fmt: skip
        model, names, difference_of = selecting.model.eval(), selecting.output_names, selecting.difference
        operators = dict(selecting.onnx_operators())
    batches = [rendered_images(weights.spec, count) for count in CHECKED_BATCHES]
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # PyTorch warns about its own internals
        images = rendered_images(weights.spec, 2)  # with one image torch.export would take the batch size as fixed
        content = format.write(model, images, names, described(weights), operators)
        exported = format.load(content)
    with torch.inference_mode():
        differences = [difference_of(exported(images), model(images)) for images in batches]
        difference = torch.stack(differences).max().item()  # nan if there is any
        if not difference <= TOLERANCE:
            raise RunError(
                f"the exported model's {', '.join(names)} differ by {difference:.1e} from the original's, "
                f"allowed is {TOLERANCE}; nothing was written"
            )
        runs = [lambda run=run: run(batches[0]) for run in (model, exported)]
        latencies = timed(runs, 1, torch.device("cpu"))
    version = f", onnxruntime {importlib.metadata.version('onnxruntime')}" if "onnxruntime" in format.needs else ""
    return content, [
        Side(f"original, PyTorch {torch.__version__}", weights.path.stat().st_size, 0.0, latencies[0]),
        Side(format.described + version, len(content), difference, latencies[1]),
    ]


def described(weights: Weights) -> dict[str, str]:
    """The metadata of an exported model: those of the weights, which in older files lack the preprocessing."""
    return {**weights.metadata.as_texts(), "preprocessing": weights.task.preprocessing(weights.spec)}


def rendered_images(spec: DataSpec, count: int) -> Tensor:
    """Rendered figures as images of `spec`, normalised: float32 (count, in_channels, image_size, image_size)."""
    pixels = render(count, np.random.default_rng(0)).images.permute(0, 3, 1, 2).float()
    pixels = F.interpolate(pixels, (spec.image_size, spec.image_size), mode="bilinear")
    if spec.in_channels == 1:
        pixels = pixels.mean(dim=1, keepdim=True)
    return normalise(pixels.round().to(torch.uint8).permute(0, 2, 3, 1), spec).contiguous()
