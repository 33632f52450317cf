"""python -m darts_sg genotype …: look at genotypes, cost, compare, derive, import and export them."""

import argparse
import csv
import json
import sys
from pathlib import Path
from typing import Any

from rich.table import Table

from darts_sg.cli import console, refuse_existing
from darts_sg.config import parse_quantity
from darts_sg.errors import UsageError
from darts_sg.files import write_atomically
from darts_sg.formats import FORMATS, GenotypeError, recognised, shown

SHOWN_POINTS = 25  # of a frontier, in a table


def add_parsers(commands: Any, parser_class: type[argparse.ArgumentParser]) -> None:
    """Add `genotype` with its actions to the commands of the package."""
    genotype = commands.add_parser("genotype", help="look at genotypes")
    actions = genotype.add_subparsers(dest="action", required=True, metavar="ACTION", parser_class=parser_class)
    listing = actions.add_parser("list", help="the genotypes of the zoo")
    listing.set_defaults(run=list_genotypes)
    show = actions.add_parser("show", help="cells, parameters, MACs and provenance of a genotype")
    show.add_argument("genotype", metavar="NAME_OR_PATH")
    show.add_argument("--json", action="store_true", help="as JSON")
    add_shape(show)
    show.set_defaults(run=show_genotype)
    draw = actions.add_parser("draw", help="both cells as a picture")
    draw.add_argument("genotype", metavar="NAME_OR_PATH")
    draw.add_argument("-o", "--output", type=Path, help="FILE.svg, .png or .pdf (default: NAME.svg)")
    draw.set_defaults(run=draw_genotype_file)
    formats = "; ".join(f"{name}: {FORMATS[name].holds}" for name in FORMATS)
    importing = actions.add_parser("import", help="turn a text of another code into a genotype file", epilog=formats)
    importing.add_argument("text", metavar="TEXT_OR_FILE", help="such as Genotype(normal=[…], …), or a file")
    importing.add_argument("--format", choices=list(FORMATS), help="what it is (default: its content tells)")
    importing.add_argument("--name", help="name of the genotype (default: as in the text, or the file's)")
    importing.add_argument("-o", "--output", type=Path, help="file to write (default: print it)")
    importing.set_defaults(run=import_genotype)
    exporting = actions.add_parser("export", help="a genotype as a text for another code", epilog=formats)
    exporting.add_argument("genotype", metavar="NAME_OR_PATH")
    exporting.add_argument("--format", choices=list(FORMATS), default="classic", help="default: classic")
    exporting.add_argument("-o", "--output", type=Path, help="file to write (default: print it)")
    exporting.set_defaults(run=export_genotype)
    validate = actions.add_parser("validate", help="check genotype files; says line and field")
    validate.add_argument("files", metavar="FILE", nargs="+", type=Path)
    validate.set_defaults(run=validate_files)
    derive = actions.add_parser("derive", help="the best genotype of a search within bounds")
    derive.add_argument("run_dir", metavar="RUN_DIR", type=Path, help="folder of a search, finished or not")
    derive.add_argument("--epoch", type=positive, help="after this epoch (default: the last one there is)")
    derive.add_argument("--max-params", type=quantity, metavar="N", help="at most N parameters: 2.45M, 3349342, …")
    derive.add_argument("--max-macs", type=quantity, metavar="N", help="at most N multiply-adds: 600M, …")
    derive.add_argument(
        "--max-skips", type=not_negative, metavar="N", help="at most N skip_connects in the normal cell"
    )
    derive.add_argument("--pareto", action="store_true", help="all best trades of mixing weight kept for parameters")
    derive.add_argument("--json", action="store_true", help="with --pareto: all points as JSON")
    derive.add_argument("--name", help="name of the genotype (default: that of the search, with its bounds)")
    derive.add_argument("-o", "--output", type=Path, help="genotype file, or with --pareto a picture, to write")
    add_shape(derive)
    derive.set_defaults(run=derive_from_run)
    compare = actions.add_parser("compare", help="genotypes side by side")
    compare.add_argument("genotypes", metavar="NAME_OR_PATH", nargs="+")
    compare.add_argument("--json", action="store_true", help="as JSON")
    compare.add_argument("--markdown", action="store_true", help="as a Markdown table")
    compare.add_argument("--csv", action="store_true", help="as CSV")
    add_shape(compare)
    compare.set_defaults(run=compare_genotypes)
    cost = actions.add_parser("cost", help="parameters, MACs, memory and latency, by cell and by operation")
    cost.add_argument("genotype", metavar="NAME_OR_PATH")
    cost.add_argument(
        "--batch-size", type=positive, default=32, help="latency is measured at 1 and at this (default: 32)"
    )
    cost.add_argument("--device", default="cpu", help="device of the latency (default: cpu)")
    cost.add_argument("--json", action="store_true", help="as JSON")
    add_shape(cost)
    cost.set_defaults(run=show_cost)


def add_shape(parser: argparse.ArgumentParser) -> None:
    """The options that say of which network."""
    parser.add_argument("--network", choices=["cifar", "imagenet"], default="cifar", help="shape of the network")
    parser.add_argument("--channels", type=positive, help="channels C (default: 36, ImageNet 48)")
    parser.add_argument("--cells", type=positive, help="number of cells (default: 20, ImageNet 14)")


def not_negative(text: str) -> int:
    """An argument type: a whole number from 0."""
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"expected a whole number from 0, found {text!r}")
    return int(text)


def quantity(text: str) -> int:
    """An argument type: 3349342, 2.45M, 600M, …"""
    try:
        return parse_quantity("bound", text)
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error).partition(": ")[2]) from None


def positive(text: str) -> int:
    """An argument type: a whole number above 0."""
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"expected a whole number above 0, found {text!r}")
    return int(text)


def deliver(text: str, output: Path | None) -> None:
    """Print `text`, or write it to a new file and print its name; UsageError if the file exists."""
    if output is None:
        print(text, end="")
        return
    refuse_existing(output)
    write_atomically(output, text)
    print(output)


def picture_kind(output: Path) -> str:
    """svg, png or pdf, as the name of a picture ends; UsageError for any other."""
    suffix = output.suffix.removeprefix(".")
    if suffix not in {"svg", "png", "pdf"}:
        raise UsageError(f"--output {output}: expected a name that ends in .svg, .png or .pdf")
    return suffix


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
    suffix = picture_kind(output)
    cost = derived_cost(genotype)
    caption = f"{cost.params:,} parameters, {cost.macs / 1e6:.1f}M MACs (CIFAR, C=36, 20 cells)"
    for path in save_figure(draw_genotype(genotype, caption), output.with_suffix(""), formats=(suffix,)):
        print(path)


def import_genotype(arguments: argparse.Namespace) -> None:
    from darts_sg.genotype import load_genotype, parse_genotype, renamed
    from darts_sg.ops import OPERATIONS

    if recognised(arguments.text):
        genotype = parse_genotype(arguments.text, arguments.format, known=list(OPERATIONS))
    else:
        try:
            path = Path(arguments.text).absolute()
            genotype = load_genotype(path, known=list(OPERATIONS), format=arguments.format)
        except OSError as error:  # such as a name that is too long, because it is a text
            wanted = "expected a file, or a text in a known format"
            raise UsageError(f"{shown(arguments.text)}: {error.strerror} ({wanted})") from None
    if arguments.name:
        genotype = renamed(genotype, arguments.name)
    deliver(genotype.to_yaml(), arguments.output)


def export_genotype(arguments: argparse.Namespace) -> None:
    from darts_sg.genotype import load_genotype

    deliver(load_genotype(arguments.genotype).to_text(arguments.format), arguments.output)


def validate_files(arguments: argparse.Namespace) -> None:
    """Say of each file whether it is a genotype; UsageError with all that is wrong if one is not."""
    from darts_sg.genotype import load_genotype
    from darts_sg.ops import OPERATIONS

    wrong = []
    for path in arguments.files:
        try:
            genotype = load_genotype(path.absolute(), known=list(OPERATIONS))
        except GenotypeError as error:
            wrong.append(str(error))
        except OSError as error:
            wrong.append(f"{path}: {error.strerror or error}")
        else:
            print(f"{path}: {genotype.name}, space {genotype.space}")
    if wrong:
        raise UsageError("; ".join(wrong))


def derive_from_run(arguments: argparse.Namespace) -> None:
    from dataclasses import replace
    from types import MappingProxyType

    from darts_sg.analysis.cost import choice_costs, derived_cost
    from darts_sg.analysis.report import read_mixing_weights
    from darts_sg.derive import Bound, derive_bounded, frontier, kept_weight

    found, weights = read_mixing_weights(arguments.run_dir, arguments.epoch)
    shape = (arguments.network, arguments.channels, arguments.cells)
    params, macs = choice_costs(found.operations, *shape, num_nodes=found.normal.num_nodes)
    if arguments.pareto:
        show_frontier(arguments, frontier(*weights, found.operations, params), found.operations, macs)
        return
    asked = {"params": (params, arguments.max_params), "MACs": (macs, arguments.max_macs)}
    bounds = [Bound(name, costs, most) for name, (costs, most) in asked.items() if most is not None]
    cells = derive_bounded(*weights, found.operations, bounds, arguments.max_skips)
    best = derive_bounded(*weights, found.operations)
    limits = {f"max_{name.lower()}": most for name, (_, most) in asked.items() if most is not None}
    limits |= {} if arguments.max_skips is None else {"max_skips": arguments.max_skips}
    name = arguments.name or "_".join([found.name, *(f"{key[4:]}{value}" for key, value in limits.items())])
    share = kept_weight(weights, cells, found.operations) / kept_weight(weights, best, found.operations)
    facts = {**limits, "mixing_weight_kept": round(share, 4)}
    facts |= {"network": arguments.network} | {
        k: getattr(arguments, k) for k in ("channels", "cells") if getattr(arguments, k)
    }
    provenance = MappingProxyType({**found.provenance, "derived": facts})
    genotype = replace(found, name=name, normal=cells[0], reduce=cells[1], provenance=provenance)
    cost = derived_cost(genotype, *shape)
    print(
        f"{genotype.name}: {cost.params:,} parameters, {cost.macs:,} MACs ({arguments.network} network), "
        f"{100 * share:.1f}% of the mixing weight of the unbounded genotype"
    )
    deliver(genotype.to_yaml(), arguments.output)


def show_frontier(arguments: argparse.Namespace, points: Any, operations: Any, macs: Any) -> None:
    """The points as a table (some of many), as JSON (all), and as a picture if there is an --output."""
    from darts_sg.analysis.curves import draw_frontier
    from darts_sg.analysis.draw import save_figure

    picture = arguments.output
    kind = "" if picture is None else picture_kind(picture)
    rows = []
    for point in points:
        cells = point.normal, point.reduce
        chosen = [edge.operation for cell in cells for _, edge in cell.edges()]
        rows.append(
            {
                "params": point.cost,
                "macs": macs.of(cells, operations),
                "mixing_weight": point.weight,
                "share": point.weight / points[-1].weight,
                "operations": {name: chosen.count(name) for name in operations if name in chosen},
            }
        )
    if picture is not None:
        for path in save_figure(draw_frontier(rows), picture.with_suffix(""), formats=(kind,)):
            print(path, file=sys.stderr if arguments.json else sys.stdout)
    if arguments.json:
        print(json.dumps(rows, indent=1))
        return
    step = max(1, -(-len(rows) // SHOWN_POINTS))
    shown = sorted({*range(0, len(rows), step), len(rows) - 1})
    table = Table("parameters", "MACs", "weight kept", "operations", box=None, pad_edge=False)
    for row in (rows[i] for i in shown):
        counts = ", ".join(f"{count} {name}" for name, count in row["operations"].items())
        table.add_row(f"{row['params']:,}", f"{row['macs']:,}", f"{100 * row['share']:.1f}%", counts)
    console().print(table)
    console().print(f"{len(shown)} of {len(rows)} points; all of them with --json", highlight=False)


def compare_genotypes(arguments: argparse.Namespace) -> None:
    from darts_sg.analysis.compare import comparison
    from darts_sg.analysis.report import markdown_table
    from darts_sg.genotype import load_genotype
    from darts_sg.ops import OPERATIONS

    if arguments.json + arguments.markdown + arguments.csv > 1:
        raise UsageError("choose one of --json, --markdown and --csv")
    genotypes = [load_genotype(name, known=list(OPERATIONS)) for name in arguments.genotypes]
    rows = comparison(genotypes, arguments.network, arguments.channels, arguments.cells)
    if arguments.json:
        print(json.dumps(rows, indent=1))
        return

    def text(value: Any) -> str:
        if isinstance(value, dict):
            return ", ".join(f"{count} {name}" for name, count in value.items())
        if value is None:
            return "none known"
        return f"{value:,}" if isinstance(value, int) else f"{value:g}" if isinstance(value, float) else str(value)

    if arguments.csv:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(rows[0])
        for row in rows:
            writer.writerow([text(v) if isinstance(v, dict) else "" if v is None else v for v in row.values()])
        return
    header = ["", *(row["name"] for row in rows)]
    lines = [[key.replace("_", " "), *(text(row[key]) for row in rows)] for key in rows[0] if key != "name"]
    if arguments.markdown:
        print(markdown_table(header, lines))
        return
    table = Table(*header, box=None, pad_edge=False)
    for line in lines:
        table.add_row(*line)
    console().print(table)


def show_cost(arguments: argparse.Namespace) -> None:
    import torch

    from darts_sg.analysis.compare import activation_bytes, anatomy, latency
    from darts_sg.analysis.cost import derived_cost
    from darts_sg.engine.environment import choose_device, device_name
    from darts_sg.genotype import load_genotype
    from darts_sg.ops import OPERATIONS

    genotype = load_genotype(arguments.genotype, known=list(OPERATIONS))
    device = choose_device(arguments.device)
    shape = (arguments.network, arguments.channels, arguments.cells)
    cost, parts, kept = derived_cost(genotype, *shape), anatomy(genotype, *shape), activation_bytes(genotype, *shape)
    times = [latency(genotype, batch, device, *shape) for batch in sorted({1, arguments.batch_size})]
    if arguments.json:
        content = {
            "name": genotype.name,
            "params": cost.params,
            "params_with_auxiliary": cost.params_with_auxiliary,
            "macs": cost.macs,
            "activation_bytes_an_image": kept,
            "by_cell": [part._asdict() for part in parts.cells],
            "by_operation": [part._asdict() for part in parts.operations],
            "device": f"{device} ({device_name(device)})",
            "threads": torch.get_num_threads(),
            "latency_seconds": [time._asdict() for time in times],
        }
        print(json.dumps(content, indent=1))
        return
    out = console()
    out.print(
        f"{genotype.name}, {arguments.network} network: {cost.params:,} parameters "
        f"({cost.params_with_auxiliary:,} with the auxiliary head), {cost.macs:,} MACs, "
        f"{kept / 2**20:.1f} MiB of activations an image kept in training",
        highlight=False,
    )
    for title, list_of_parts in (("by cell", parts.cells), ("by operation, over all cells", parts.operations)):
        table = Table("part", "parameters", "share", "MACs", "share", title=title, title_justify="left", box=None)
        for part in list_of_parts:
            shares = [f"{100 * a / b:.1f}%" for a, b in ((part.params, cost.params), (part.macs, cost.macs))]
            table.add_row(part.name, f"{part.params:,}", shares[0], f"{part.macs:,}", shares[1])
        out.print(table)
    for time in times:
        out.print(
            f"latency, batch {time.batch}: {time} on {device} ({device_name(device)}), "
            f"{torch.get_num_threads()} threads",
            highlight=False,
        )
