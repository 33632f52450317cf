"""python -m darts_sg, installed as darts-sg: the two jobs, and commands that inspect genotypes, spaces and runs."""

import argparse
import importlib
import json
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Console
from rich.table import Table

from darts_sg.cli import answer, run_job_command
from darts_sg.errors import UsageError

PROG = "darts-sg"


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are UsageErrors: one line, no usage text before it."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see {self.prog} --help)")


def build_parser(bench: bool = False) -> Parser:
    """The parser; the options of `bench` lie in the checkout, and are loaded where they are asked for."""
    parser = Parser(prog=PROG, description="Differentiable architecture search with the sandglass block.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)
    for job, text in (("search", "search for a cell"), ("augment", "train the network of a genotype")):
        commands.add_parser(job, help=f"{text} ({PROG} {job} --help)", add_help=False)

    demo = commands.add_parser("demo", help="search, derive and retrain on rendered images in a few minutes")
    demo.add_argument("--run-dir", type=Path, help="folder for the two runs (default: a new one under runs/)")
    demo.set_defaults(run=run_demo)

    genotype = commands.add_parser("genotype", help="look at genotypes")
    actions = genotype.add_subparsers(dest="action", required=True, metavar="ACTION", parser_class=Parser)
    listing = actions.add_parser("list", help="the genotypes of the zoo")
    listing.set_defaults(run=list_genotypes)
    show = actions.add_parser("show", help="cells, parameters, MACs and provenance of a genotype")
    show.add_argument("genotype", metavar="NAME_OR_PATH")
    show.add_argument("--json", action="store_true", help="as JSON")
    show.add_argument("--network", choices=["cifar", "imagenet"], default="cifar", help="shape of the network")
    show.add_argument("--channels", type=positive, help="channels C (default: 36, ImageNet 48)")
    show.add_argument("--cells", type=positive, help="number of cells (default: 20, ImageNet 14)")
    show.set_defaults(run=show_genotype)
    draw = actions.add_parser("draw", help="both cells as a picture")
    draw.add_argument("genotype", metavar="NAME_OR_PATH")
    draw.add_argument("-o", "--output", type=Path, help="FILE.svg, .png or .pdf (default: NAME.svg)")
    draw.set_defaults(run=draw_genotype_file)
    importing = actions.add_parser("import", help="turn the classic one-line text into a genotype file")
    importing.add_argument("text", metavar="TEXT_OR_FILE", help="Genotype(normal=[…], …), or a file that holds it")
    importing.add_argument("--name", help="name of the genotype (default: as in the text)")
    importing.add_argument("-o", "--output", type=Path, help="file to write (default: print it)")
    importing.set_defaults(run=import_genotype)

    spaces = commands.add_parser("spaces", help="every space and operation")
    spaces.set_defaults(run=show_spaces)
    report = commands.add_parser("report", help="write a run's report.md and pictures anew")
    report.add_argument("run_dir", metavar="RUN_DIR", type=Path)
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


def positive(text: str) -> int:
    """An argument type: a whole number above 0."""
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"expected a whole number above 0, found {text!r}")
    return int(text)


def list_genotypes(arguments: argparse.Namespace) -> None:
    from darts_sg.genotype import load_genotype, zoo_names

    table = Table("name", "space", "error on CIFAR-10, published", "source", box=None, pad_edge=False)
    for name in zoo_names():
        genotype = load_genotype(name)
        error = genotype.provenance.get("published", {}).get("cifar10_error")
        source = genotype.provenance.get("source", genotype.provenance.get("kind", ""))
        table.add_row(name, genotype.space, "" if error is None else f"{error:.2f}%", source)
    console().print(table)


def show_genotype(arguments: argparse.Namespace) -> None:
    from darts_sg.analysis.cost import CELLS, CHANNELS, derived_cost
    from darts_sg.analysis.report import state_name
    from darts_sg.genotype import load_genotype
    from darts_sg.ops import OPERATIONS

    genotype = load_genotype(arguments.genotype, known=list(OPERATIONS))
    shape = {
        "network": arguments.network,
        "channels": arguments.channels or CHANNELS[arguments.network],
        "cells": arguments.cells or CELLS[arguments.network],
    }
    cost = derived_cost(genotype, **shape)
    if arguments.json:
        plain = genotype.as_dict()
        del plain["schema"]
        counts = {
            "params": cost.params,
            "params_with_auxiliary": cost.params_with_auxiliary,
            "macs": cost.macs,
            **shape,
        }
        print(json.dumps({**plain, **counts, "provenance": plain.pop("provenance")}, indent=2, default=str))
        return
    out = console()
    out.print(f"{genotype.name}  (space {genotype.space}: {', '.join(genotype.operations)})", highlight=False)
    for title, cell in genotype.cells():
        table = Table("node", "input", "operation", title=f"{title} cell", title_justify="left", box=None)
        for state, edge in cell.edges():
            table.add_row(str(state - 2), state_name(edge.state), edge.operation)
        table.add_row("output", "concatenation of", "nodes " + ", ".join(str(s - 2) for s in cell.concat))
        out.print(table)
    out.print(
        f"{arguments.network} network, C={shape['channels']}, {shape['cells']} cells: {cost.params:,} parameters "
        f"({cost.params_with_auxiliary:,} with the auxiliary head), {cost.macs:,} MACs "
        "(convolutions and linear layers, auxiliary head excluded)",
        highlight=False,
    )
    import yaml

    out.print("provenance:", highlight=False)
    text = yaml.safe_dump(dict(genotype.provenance), sort_keys=False, allow_unicode=True, width=100)
    out.print("  " + text.strip().replace("\n", "\n  "), highlight=False, markup=False)


def draw_genotype_file(arguments: argparse.Namespace) -> None:
    from darts_sg.analysis.cost import derived_cost
    from darts_sg.analysis.draw import draw_genotype, save_figure
    from darts_sg.genotype import load_genotype
    from darts_sg.ops import OPERATIONS

    genotype = load_genotype(arguments.genotype, known=list(OPERATIONS))
    output = arguments.output or Path(f"{genotype.name}.svg")
    suffix = output.suffix.removeprefix(".")
    if suffix not in {"svg", "png", "pdf"}:
        raise UsageError(f"--output {output}: expected a name that ends in .svg, .png or .pdf")
    cost = derived_cost(genotype)
    caption = f"{cost.params:,} parameters, {cost.macs / 1e6:.1f}M MACs (CIFAR, C=36, 20 cells)"
    for path in save_figure(draw_genotype(genotype, caption), output.with_suffix(""), formats=(suffix,)):
        print(path)


def import_genotype(arguments: argparse.Namespace) -> None:
    from darts_sg.genotype import CLASSIC_START, load_genotype, parse_classic, renamed
    from darts_sg.ops import OPERATIONS

    if CLASSIC_START.match(arguments.text):
        genotype = parse_classic(arguments.text, known=list(OPERATIONS))
    else:
        genotype = load_genotype(Path(arguments.text).absolute(), known=list(OPERATIONS))
    if arguments.name:
        genotype = renamed(genotype, arguments.name)
    if arguments.output is None:
        print(genotype.to_yaml(), end="")
        return
    if arguments.output.exists():
        raise UsageError(f"{arguments.output} exists; choose another --output")
    genotype.save(arguments.output)
    print(arguments.output)


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


def rewrite_report(arguments: argparse.Namespace) -> None:
    from darts_sg.analysis.report import write_report

    print(write_report(arguments.run_dir))


def run_demo(arguments: argparse.Namespace) -> None:
    """Search, derive and retrain with the recipe `demo`; ends by naming the run folders and their reports."""
    folder = arguments.run_dir or Path("runs") / f"demo-{datetime.now():%Y%m%d-%H%M%S}"
    if folder.exists():
        raise UsageError(f"{folder} exists; choose another --run-dir")
    searched, trained = folder / "search", folder / "augment"
    options = ["--recipe", "demo", "--run-dir", str(searched)]
    print(f"1. search: python search.py {' '.join(options)}")
    run_job_command("search", options, PROG)
    options = ["--recipe", "demo", "--genotype", str(searched / "genotype.yaml"), "--run-dir", str(trained)]
    print(f"\n2. retrain: python augment.py {' '.join(options)}")
    run_job_command("augment", options, PROG)
    print(f"\nsearched:  {searched}, report {searched / 'report.md'}")
    print(f"retrained: {trained}, report {trained / 'report.md'}")


def console() -> Console:
    """A console that wraps at the terminal's width, and not at all when piped."""
    return Console() if sys.stdout.isatty() else Console(width=240)


def run(argv: Sequence[str]) -> None:
    """Carry out a command line; raises UsageError for what is wrong with it."""
    if argv and argv[0] == "search":
        run_job_command("search", argv[1:], f"{PROG} search")
    elif argv and argv[0] == "augment":
        run_job_command("augment", argv[1:], f"{PROG} augment")
    else:
        arguments = build_parser(bench=list(argv[:1]) == ["bench"]).parse_args(argv)
        arguments.run(arguments)


def main() -> None:
    """The console command."""
    answer(lambda: run(sys.argv[1:]), PROG)


if __name__ == "__main__":
    main()
