"""darts-sg models: costs and published accuracies of MobileNeXt and MobileNetV2."""

import argparse
import json
from typing import Any

from rich.table import Table

from darts_sg.cli.parser import positive
from darts_sg.cli.terminal import console, machine_fields
from darts_sg.errors import UsageError
from darts_sg.invocation import program


def add_parser(commands: Any) -> None:
    """Add `models` to the commands of the package."""
    models = commands.add_parser("models", description="Costs and published accuracies of MobileNeXt and MobileNetV2.")
    models.add_argument("models", metavar="NAME", nargs="*", help="models of any width (default: the registered ones)")
    models.add_argument(
        "--network", choices=["cifar", "imagenet"], default="imagenet", help="shape (default: imagenet, at 224×224)"
    )
    models.add_argument(
        "--latency", action="store_true", help="measure inference and a training step here, interleaving the models"
    )
    models.add_argument("--batch-size", type=positive, help="with --latency: images in a batch (default: 32)")
    models.add_argument("--device", help="with --latency: device to measure on (default: cpu)")
    models.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> None:
    """Print the models with their counts, and measure their latency if asked to."""
    from darts_sg.analysis.compare import model_latency
    from darts_sg.analysis.cost import IMAGE_SIZE, NUM_CLASSES, model_cost
    from darts_sg.engine import environment
    from darts_sg.networks.mobile import MODELS, find_model

    if not arguments.latency and (arguments.batch_size or arguments.device):
        raise UsageError("--batch-size and --device are those of the latency; add --latency")
    if arguments.batch_size == 1:
        raise UsageError("--batch-size 1: BatchNorm in training needs two images or more")
    device = environment.choose_device(arguments.device or "cpu")
    found = [find_model(name) for name in arguments.models or MODELS]
    costs = [model_cost(model, arguments.network) for model in found]
    batch, times = arguments.batch_size or 32, []
    if arguments.latency:
        environment.prepare_device(device, None)
        times = model_latency(found, batch, device, arguments.network)
    if arguments.json:
        rows = [
            {
                "name": model.name,
                "network": arguments.network,
                "params": cost.params,
                "macs": cost.macs,
                "published": None if model.published is None else model.published._asdict(),
            }
            for model, cost in zip(found, costs, strict=True)
        ]
        for row, (inference, training) in zip(rows, times, strict=False):
            row |= {"inference_seconds": inference._asdict(), "training_seconds": training._asdict()}
            row |= machine_fields(device)
        print(json.dumps(rows, indent=1))
        return
    out, size = console(), IMAGE_SIZE[arguments.network]
    published = ("published: top-1", "published: parameters", "published: MACs", "published by")
    table = Table("model", "block", "parameters", "MACs", *published, box=None, pad_edge=False)
    for model, cost in zip(found, costs, strict=True):
        cells = [model.name, model.family.title, f"{cost.params:,}", f"{cost.macs:,}"]
        if known := model.published:
            cells += [f"{known.accuracy:g}%", f"{known.params:g}M", f"{known.macs:g}M", known.source]
        table.add_row(*cells)
    out.print(table)
    if times:
        speed = Table("model", "inference", "training step", box=None, pad_edge=False)
        for model, (inference, training) in zip(found, times, strict=True):
            speed.add_row(model.name, str(inference), str(training))
        out.print(f"\nTime of {batch} images on {environment.machine(device)}:", highlight=False)
        out.print(speed)
    out.print(
        f"\nParameters and MACs (convolutions and linear layers) are counted here, {arguments.network} shape: "
        f"{size}×{size} pixels, {NUM_CLASSES[arguments.network]} classes. Published accuracies are on ImageNet.\n"
        "Any width does: mobilenext_0.9; with _idM the shortcuts add 1/M of the channels.\n"
        f"To train one: {program('augment')} --model NAME --recipe mobilenext",
        highlight=False,
    )
