"""darts-sg export: trained weights as a model for other programs."""

import argparse
from pathlib import Path
from typing import Any

from rich.table import Table

from darts_sg.cli.terminal import console, refuse_existing
from darts_sg.errors import UsageError
from darts_sg.files import write_atomically

SHOWN_CLASSES = 10


def add_parser(commands: Any) -> None:
    """Add `export` to the commands of the package."""
    export = commands.add_parser("export", description="Export trained weights as a model for other programs.")
    export.add_argument(
        "weights", metavar="FILE", type=Path, help="weights.safetensors of an augment run, or its folder"
    )
    export.add_argument("--format", choices=["onnx", "torch"], required=True, help="onnx, or torch: torch.export")
    export.add_argument(
        "--no-nms",
        action="store_true",
        help="a detector's boxes and scores of all prior boxes, without the selection "
        "of objects (non-maximum suppression), which onnx holds by default and torch never",
    )
    export.add_argument("-o", "--output", type=Path, help="file to write (default: NAME.onnx or NAME.pt2)")


def run(arguments: argparse.Namespace) -> None:
    """Write the model, compare its outputs with PyTorch's, and print both latencies."""
    import torch

    from darts_sg.engine.environment import machine
    from darts_sg.engine.export import CHECKED_BATCHES, EXPORT_FORMATS, export
    from darts_sg.engine.weights import read_weights

    weights, format = read_weights(arguments.weights), EXPORT_FORMATS[arguments.format]
    output = arguments.output or Path(weights.trained.name + format.suffix)
    if output.suffix != format.suffix:
        raise UsageError(f"--output {output}: expected a name that ends in {format.suffix}")
    refuse_existing(output)
    task = weights.task
    selecting = task.selecting(weights.build())
    if selecting is None and arguments.no_nms:
        raise UsageError(f"--no-nms is for detectors; {weights.path} is for {task.name}")
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
