"""python -m darts_sg, installed as darts-sg: the two jobs, and commands that inspect genotypes, spaces and runs."""

import argparse
import importlib
import json
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, NoReturn

from rich.table import Table

from darts_sg.cli import diagnose as diagnose_command
from darts_sg.cli import genotype as genotype_commands
from darts_sg.cli.terminal import answer, console, refuse_existing
from darts_sg.errors import UsageError
from darts_sg.files import write_atomically

PROG = "darts-sg"
PAPER_PROTOCOL = "sandglass"  # what `report paper` shows


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are UsageErrors: one line, no usage text before it."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see {self.prog} --help)")


def build_parser(bench: bool = False) -> Parser:
    """The parser; the options of `bench` lie in the checkout, and are loaded where they are asked for."""
    parser = Parser(prog=PROG, description="Differentiable architecture search with the sandglass block.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)
    for job, text in (("search", "search for a cell"), ("augment", "train the network of a genotype, or a model")):
        commands.add_parser(job, help=f"{text} ({PROG} {job} --help)", add_help=False)

    demo = commands.add_parser("demo", help="search, derive and retrain on rendered images in a few minutes")
    demo.add_argument("--run-dir", type=Path, help="folder for the two runs (default: a new one under runs/)")
    demo.set_defaults(run=run_demo)

    genotype_commands.add_parsers(commands, Parser)
    spaces = commands.add_parser("spaces", help="every space and operation")
    spaces.set_defaults(run=show_spaces)
    models = commands.add_parser("models", help="what MobileNeXt and MobileNetV2 cost, and their published accuracies")
    models.add_argument("models", metavar="NAME", nargs="*", help="these, of any width (default: the registered ones)")
    models.add_argument(
        "--network", choices=["cifar", "imagenet"], default="imagenet", help="shape (default: imagenet, at 224×224)"
    )
    models.add_argument(
        "--latency", action="store_true", help="measure inference and a training step here, the models taking turns"
    )
    models.add_argument("--batch-size", type=genotype_commands.positive, help="with --latency: images (default: 32)")
    models.add_argument("--device", help="with --latency: where (default: cpu)")
    models.add_argument("--json", action="store_true", help="as JSON")
    models.set_defaults(run=show_models)
    export = commands.add_parser("export", help="trained weights as a model for other programs")
    export.add_argument("weights", metavar="FILE", type=Path, help="weights.safetensors of an augment run")
    export.add_argument("--format", choices=["onnx", "torch"], required=True, help="onnx, or torch: torch.export")
    export.add_argument("-o", "--output", type=Path, help="file to write (default: NAME.onnx or NAME.pt2)")
    export.set_defaults(run=export_weights)
    diagnose_command.add_parser(commands)
    data = commands.add_parser("data", help="prepare data")
    actions = data.add_subparsers(dest="action", required=True, metavar="ACTION", parser_class=Parser)
    subset = actions.add_parser("subset", help="list class-balanced, disjoint parts of ImageNet to search on")
    subset.add_argument("--data", type=Path, required=True, help="folder that holds train/CLASS/* and val/CLASS/*")
    subset.add_argument(
        "--fraction",
        type=float,
        nargs="+",
        default=[0.1, 0.025],
        help="share of the training images in each part: for the weights, for the alphas (default: 0.1 0.025)",
    )
    subset.add_argument("--seed", type=int, default=0, help="seed of the choice (default: 0)")
    subset.add_argument("-o", "--output", type=Path, help="file to write (default: print it)")
    subset.set_defaults(run=write_subset)
    report = commands.add_parser("report", help="write a run's report.md and pictures anew; or the report of a study")
    report.add_argument(
        "run_dir",
        metavar="RUN_DIR",
        type=Path,
        help="a run folder, a study's PROTOCOL.yaml, or `paper`: the experiment of results/sg_darts",
    )
    report.add_argument(
        "--results", type=Path, help="with a study: the folder that holds run folders, at any depth (default: results)"
    )
    report.add_argument(
        "-o",
        "--output",
        type=Path,
        help="with a study: FILE.md for the report, with its picture FILE.svg; or the picture: .svg, .png or .pdf",
    )
    report.add_argument("--json", action="store_true", help="with a study: print it as JSON")
    report.add_argument(
        "--no-animation", action="store_true", help="leave out pictures/search.gif (about 0.2 s an epoch of a search)"
    )
    report.set_defaults(run=rewrite_report)
    measure = commands.add_parser("bench", help="speed and memory against the textbook networks, as ratios of one run")
    if bench:
        benchmarks = checkout_benchmarks()
        benchmarks.add_options(measure)
        measure.set_defaults(run=benchmarks.main)
    return parser


def checkout_benchmarks() -> Any:
    """The module benchmarks.speed of the checkout that this package lies in; UsageError where there is none."""
    root = Path(__file__).resolve().parent.parent
    if not (root / "benchmarks" / "speed.py").is_file() or not (root / "tests" / "reference").is_dir():
        raise UsageError(
            "bench compares with the networks of tests/reference, which an installed package does not hold; "
            "run it in a checkout of the source"
        )
    sys.path.insert(0, str(root))
    return importlib.import_module("benchmarks.speed")


def show_spaces(arguments: argparse.Namespace) -> None:
    from darts_sg.analysis.cost import count_params
    from darts_sg.ops import OPERATIONS
    from darts_sg.spaces import SPACES

    out = console()
    named = Table("space", "operations", box=None, pad_edge=False)
    for name in SPACES:
        named.add_row(name, ", ".join(SPACES[name]))
    out.print(named)
    out.print(
        "\nSpaces and operations are joined with +: darts+sandglass, darts+sandglass_3x3_r6, …\n", highlight=False
    )
    table = Table("operation", "parameters, C=16", "C=36", "layer chain", box=None, pad_edge=False)
    for name in OPERATIONS:
        operation = OPERATIONS[name]
        counts = [f"{count_params(operation.build(C, 1, True)):,}" for C in (16, 36)]
        table.add_row(name, *counts, operation.chain)
    out.print(table)
    out.print(
        "\nParameters of the operation with stride 1 in a derived network (BatchNorm's included).", highlight=False
    )


def show_models(arguments: argparse.Namespace) -> None:
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
            row |= genotype_commands.machine_fields(device)
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
        "To train one: python augment.py --model NAME --recipe mobilenext",
        highlight=False,
    )


def export_weights(arguments: argparse.Namespace) -> None:
    import torch

    from darts_sg.engine.environment import machine
    from darts_sg.engine.export import CHECKED_BATCHES, EXPORT_FORMATS, export
    from darts_sg.engine.weights import read_weights

    weights, format = read_weights(arguments.weights), EXPORT_FORMATS[arguments.format]
    output = arguments.output or Path(weights.trained.name + format.suffix)
    if output.suffix != format.suffix:
        raise UsageError(f"--output {output}: expected a name that ends in {format.suffix}")
    refuse_existing(output)
    content, sides = export(weights, arguments.format)
    write_atomically(output, content)
    out, spec, cpu = console(), weights.spec, torch.device("cpu")
    size = f"{spec.in_channels}, {spec.image_size}, {spec.image_size}"
    out.print(
        f"{output}: {weights.title}, {format.described}\n"
        f"input images: float32 (N, {size}), any N, (pixel / 255 - mean) / std with mean "
        f"{', '.join(map(str, spec.mean))} and std {', '.join(map(str, spec.std))}\n"
        f"output logits: float32 (N, {spec.num_classes})\n",
        highlight=False,
    )
    table = Table("model", "file, MB", "largest difference of a logit", "latency, batch 1", box=None, pad_edge=False)
    for side in sides:
        difference = f"{side.difference:.1e}" if side.difference else "0"
        table.add_row(side.title, f"{side.size / 1e6:.2f}", difference, str(side.latency))
    out.print(table)
    out.print(
        f"\nRun on rendered images, batches of {' and '.join(map(str, CHECKED_BATCHES))}; {machine(cpu)}, "
        "the two taking turns.",
        highlight=False,
    )


def write_subset(arguments: argparse.Namespace) -> None:
    from darts_sg.data import ImageFiles, load_dataset, split_text

    train = load_dataset("imagenet", arguments.data, seed=arguments.seed).train
    assert isinstance(train, ImageFiles)
    genotype_commands.deliver(split_text(train, arguments.fraction, arguments.seed), arguments.output)


def rewrite_report(arguments: argparse.Namespace) -> None:
    from darts_sg.analysis.report import write_report

    target: Path = arguments.run_dir
    if not target.is_dir() and (str(target) == "paper" or target.suffix in {".yaml", ".yml"}):
        report_study(arguments)
    else:
        for name in ("results", "output", "json"):
            if getattr(arguments, name):
                raise UsageError(f"--{name} is for studies (`report paper`); a run's report is written into its folder")
        print(write_report(arguments.run_dir, animate=not arguments.no_animation))


def report_study(arguments: argparse.Namespace) -> None:
    """Print the report of a study or write it; its picture goes beside the report, or into a file alone."""
    from darts_sg.analysis.draw import save_figure
    from darts_sg.study.as_dict import report_dict
    from darts_sg.study.draw import draw_experiment, drawable
    from darts_sg.study.protocol import load_protocol, read_protocol
    from darts_sg.study.read import read_experiment
    from darts_sg.study.report import heading, study_report

    named = str(arguments.run_dir) == "paper"
    protocol = load_protocol(PAPER_PROTOCOL) if named else read_protocol(arguments.run_dir)
    first = heading(protocol.title)
    output: Path | None = arguments.output
    written = output is not None and output.suffix == ".md"
    if output is not None:
        if not written and output.suffix not in {".svg", ".png", ".pdf"}:
            raise UsageError(f"--output {output}: expected a name that ends in .md, .svg, .png or .pdf")
        if written and output.exists() and not output.read_text(encoding="utf-8", errors="replace").startswith(first):
            raise UsageError(f"{output} exists and is no such report; choose another --output")
    found = read_experiment(arguments.results or Path("results"), protocol)
    picture: Path | None = None
    if output is not None and (not written or drawable(found)):
        kind = "svg" if written else output.suffix.removeprefix(".")
        (picture,) = save_figure(draw_experiment(found), output.with_suffix(""), formats=(kind,))
    if output is not None and written:
        write_atomically(output, study_report(found, picture.name if picture else None))
    shown = sys.stdout if written and not arguments.json else sys.stderr
    for path in (output if written else None, picture):
        if path is not None:
            print(path, file=shown)
    if arguments.json:
        print(json.dumps(report_dict(found), indent=1))
    elif not written:
        print(study_report(found), end="")


def run_job(job: Literal["search", "augment"], argv: Sequence[str], prog: str) -> None:
    """The job `search` or `augment`, which needs torch; what only looks at genotypes does without it."""
    from darts_sg.cli.jobs import run_job_command

    run_job_command(job, argv, prog)


def run_demo(arguments: argparse.Namespace) -> None:
    """Search, derive and retrain with the recipe `demo`; ends by naming the run folders and their reports."""
    folder = arguments.run_dir or Path("runs") / f"demo-{datetime.now():%Y%m%d-%H%M%S}"
    if folder.exists():
        raise UsageError(f"{folder} exists; choose another --run-dir")
    searched, trained = folder / "search", folder / "augment"
    options = ["--recipe", "demo", "--run-dir", str(searched)]
    print(f"1. search: python search.py {' '.join(options)}")
    run_job("search", options, PROG)
    options = ["--recipe", "demo", "--genotype", str(searched / "genotype.yaml"), "--run-dir", str(trained)]
    print(f"\n2. retrain: python augment.py {' '.join(options)}")
    run_job("augment", options, PROG)
    print(f"\nsearched:  {searched}, report {searched / 'report.md'}")
    print(f"retrained: {trained}, report {trained / 'report.md'}")


def run(argv: Sequence[str]) -> None:
    """Carry out a command line; raises UsageError for what is wrong with it."""
    if argv and argv[0] == "search":
        run_job("search", argv[1:], f"{PROG} search")
    elif argv and argv[0] == "augment":
        run_job("augment", argv[1:], f"{PROG} augment")
    else:
        arguments = build_parser(bench=list(argv[:1]) == ["bench"]).parse_args(argv)
        arguments.run(arguments)


def main() -> None:
    """The console command."""
    answer(lambda: run(sys.argv[1:]), PROG)


if __name__ == "__main__":
    main()
