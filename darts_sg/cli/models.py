"""darts-sg models: costs and published accuracies of MobileNeXt and MobileNetV2."""

import argparse
import json
import sys
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
        "--network",
        choices=["cifar", "imagenet", "voc"],
        default="imagenet",
        help="shape: imagenet at 224×224, cifar at 32×32, voc: the detector SSDLite at 320×320 (default: imagenet)",
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
    from darts_sg.analysis.cost import DETECTOR, IMAGE_SIZE, NUM_CLASSES, model_cost
    from darts_sg.engine import environment
    from darts_sg.networks import ssdlite
    from darts_sg.networks.mobile import MODELS, find_model

    if not arguments.latency and (arguments.batch_size or arguments.device):
        raise UsageError("--batch-size and --device are those of the latency; add --latency")
    if arguments.batch_size == 1:
        raise UsageError("--batch-size 1: BatchNorm in training needs two images or more")
    device = environment.choose_device(arguments.device or "cpu")
    found = [find_model(name) for name in arguments.models or MODELS]
    costs = [model_cost(model, arguments.network) for model in found]
    detectors = arguments.network == DETECTOR
    published = [ssdlite.PUBLISHED.get(model.name) if detectors else model.published for model in found]
    batch, times = arguments.batch_size or 32, []
    if arguments.latency:
        environment.prepare_device(device, None)
        times = model_latency(found, batch, device, arguments.network)
        for model, pair in zip(found, times, strict=True):
            for doubt in filter(None, (time.doubt for time in pair)):
                print(f"warning: {model.name}: {doubt}", file=sys.stderr)
    if arguments.json:
        rows = [
            {
                "name": model.name,
                "network": arguments.network,
                "params": cost.params,
                "macs": cost.macs,
                "published": None if known is None else known._asdict(),
            }
            for model, cost, known in zip(found, costs, published, strict=True)
        ]
        for row, (inference, training) in zip(rows, times, strict=False):
            row |= {"inference_seconds": inference._asdict(), "training_seconds": training._asdict()}
            row |= machine_fields(device)
        print(json.dumps(rows, indent=1))
        return
    out, size = console(), IMAGE_SIZE[arguments.network]
    columns = ("mAP on VOC07", "mAP on COCO") if detectors else ("top-1", "parameters", "MACs")
    titles = [*(f"published: {column}" for column in columns), "published by"]
    table = Table("model", "block", "parameters", "MACs", *titles, box=None, pad_edge=False)
    for model, cost, known in zip(found, costs, published, strict=True):
        cells = [model.name, model.family.title, f"{cost.params:,}", f"{cost.macs:,}"]
        if isinstance(known, ssdlite.Published):
            cells += [f"{known.map_voc07:g}", f"{known.map_coco:g}", known.source]
        elif known is not None:
            cells += [f"{known.accuracy:g}%", f"{known.params:g}M", f"{known.macs:g}M", known.source]
        table.add_row(*cells)
    out.print(table)
    if times:
        speed = Table("model", "inference", "training step", box=None, pad_edge=False)
        for model, (inference, training) in zip(found, times, strict=True):
            speed.add_row(model.name, str(inference), str(training))
        out.print(f"\nTime of {batch} images on {environment.machine(device)}:", highlight=False)
        out.print(speed)
    classes = f"{NUM_CLASSES[arguments.network]} classes{' and the background' if detectors else ''}"
    source = "Published mAP is in percent, trained on VOC07+12" if detectors else "Published accuracies are on ImageNet"
    out.print(
        f"\nParameters and MACs (convolutions and linear layers) are counted here, {arguments.network} shape: "
        f"{size}×{size} pixels, {classes}. {source}.\n"
        "Any width does: mobilenext_0.9; with _idM the shortcuts add 1/M of the channels.\n"
        f"To train one: {program('augment')} --model NAME --recipe {'voc' if detectors else 'mobilenext'}",
        highlight=False,
    )
