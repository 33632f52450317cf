"""darts-sg export: trained weights as a model for other programs."""

import argparse
from pathlib import Path
from typing import Any

from rich.table import Table

from darts_sg.cli.parser import positive
from darts_sg.cli.terminal import console, refuse_existing
from darts_sg.errors import UsageError
from darts_sg.files import write_atomically

SHOWN_CLASSES = 10


def add_parser(commands: Any) -> None:
    """Add `export` to the commands of the package."""
    export = commands.add_parser("export", description="Export trained weights as a model for other programs.")
    export.add_argument(
        "weights",
        metavar="FILE",
        type=Path,
        help="weights.safetensors of an augment run, its folder, hf://user/name, or a URL",
    )
    export.add_argument("--format", choices=["onnx", "torch"], help="onnx, or torch: torch.export (with --int8: onnx)")
    export.add_argument(
        "--no-nms",
        action="store_true",
        help="a detector's boxes and scores of all prior boxes, without the selection "
        "of objects (non-maximum suppression), which onnx holds by default and torch never",
    )
    export.add_argument(
        "--int8", action="store_true", help="a classifier in 8-bit integers, calibrated on training images; test error "
        "and latency are measured beside float32"
    )  # fmt: skip
    export.add_argument(
        "--calibration-images", type=positive, metavar="N", help="with --int8: number of training images (default: 256)"
    )
    export.add_argument(
        "--data", type=Path, metavar="DIR", help="with --int8: folder of the data of the training (default: data)"
    )
    export.add_argument(
        "-o", "--output", type=Path, help="file to write (default: NAME.onnx, NAME_int8.onnx or NAME.pt2)"
    )


def run(arguments: argparse.Namespace) -> None:
    """Write the model, compare its outputs with PyTorch's, and print both latencies."""
    import torch

    from darts_sg.engine.environment import machine
    from darts_sg.engine.export import CHECKED_BATCHES, EXPORT_FORMATS, export
    from darts_sg.engine.weights import read_weights

    _check(arguments)
    weights, format = read_weights(arguments.weights), EXPORT_FORMATS[arguments.format]
    output = arguments.output or Path(weights.trained.name + ("_int8" if arguments.int8 else "") + format.suffix)
    if output.suffix != format.suffix:
        raise UsageError(f"--output {output}: expected a name that ends in {format.suffix}")
    refuse_existing(output)
    task = weights.task
    selecting = task.selecting(weights.build())
    if selecting is None and arguments.no_nms:
        raise UsageError(f"--no-nms is for detectors; {weights.path} is for {task.name}")
    if arguments.int8:
        _run_int8(arguments, weights, output)
        return
    if not format.selects or arguments.no_nms:
        selecting = None
    content, sides = export(weights, arguments.format, select=selecting is not None)
    described = task.described_outputs(weights.spec) if selecting is None else selecting.described
    write_atomically(output, content)
    what = "of a logit" if task.output_names == ("logits",) else "of an output"
    out, spec, cpu = console(), weights.spec, torch.device("cpu")
    size = f"{spec.in_channels}, {spec.image_size}, {spec.image_size}"
    out.print(
        f"{output}: {weights.title}, {format.described}\n"
        f"input images: float32 (N, {size}), any N\n"
        f"preprocessing: {task.preprocessing(spec)}\n" + "".join(f"output {line}\n" for line in described),
        highlight=False,
        soft_wrap=True,
    )
    names = ", ".join(spec.class_names[:SHOWN_CLASSES])
    more = "" if spec.num_classes <= SHOWN_CLASSES else f", … ({spec.num_classes} in all)"
    out.print(f"classes, in the order of the outputs: {names}{more}\n", highlight=False, markup=False)
    table = Table("model", "file, MB", f"largest difference {what}", "latency, batch 1", box=None, pad_edge=False)
    for side in sides:
        difference = f"{side.difference:.1e}" if side.difference else "0"
        table.add_row(side.title, f"{side.size / 1e6:.2f}", difference, str(side.latency))
    out.print(table)
    out.print(
        f"\nRun on rendered images, batches of {' and '.join(map(str, CHECKED_BATCHES))}; {machine(cpu)}, "
        "the two taking turns.",
        highlight=False,
    )


def _check(arguments: argparse.Namespace) -> None:
    """Complete the options, or raise UsageError if they do not go together."""
    if arguments.int8:
        if arguments.format == "torch":
            raise UsageError("--int8 is for --format onnx: ONNX Runtime quantises; leave --format torch out")
        arguments.format = "onnx"
    if arguments.format is None:
        raise UsageError("the following arguments are required: --format (onnx or torch), or --int8")
    for name in ("calibration_images", "data"):
        if getattr(arguments, name) is not None and not arguments.int8:
            raise UsageError(f"--{name.replace('_', '-')} is for --int8; add that, or leave it out")


def _run_int8(arguments: argparse.Namespace, weights: Any, output: Path) -> None:
    """Quantise, write the model, and print both precisions with what speaks against INT8."""
    from darts_sg.engine.quantise import quantise

    found = quantise(weights, arguments.data or Path("data"), arguments.calibration_images or 256)
    write_atomically(output, found.content)
    out = console()
    out.print(
        f"{output}: {weights.title}, ONNX with 8-bit weights and activations, calibrated on "
        f"{found.calibration_images} training images",
        highlight=False,
    )
    table = Table("precision", "file, MB", "test error", "latency, batch 1", box=None, pad_edge=False)
    for side in (found.float32, found.int8):
        table.add_row(side.title, f"{side.size / 1e6:.2f}", f"{side.error:.2f}%", str(side.latency))
    out.print(table)
    out.print(
        f"\nAccuracy on {found.test_images:,} test images of {found.data}; latencies on {found.machine}, "
        "the two taking turns. The file's metadata record these figures.",
        highlight=False,
    )
    for line in found.warnings():
        out.print(line, highlight=False)
