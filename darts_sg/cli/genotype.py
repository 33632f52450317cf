"""darts-sg genotype ACTION: show, draw, compare, derive, import and export genotypes."""

import argparse
import csv
import json
import sys
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from darts_sg.cli.parser import Parser, duration, not_negative, picture_kind, positive, quantity
from darts_sg.cli.terminal import console, deliver, machine_fields
from darts_sg.errors import UsageError, cut
from darts_sg.formats import FORMATS, GenotypeError, recognised, shown

SHOWN_POINTS = 25  # rows of the table of a frontier
RESULT_FOLDERS = ("results", "runs")  # searched for measured errors, if they exist


def add_parser(commands: Any) -> None:
    """Add `genotype` with its actions to the commands of the package."""
    genotype = commands.add_parser("genotype", description="Show, draw, compare, derive, import and export genotypes.")
    actions = genotype.add_subparsers(dest="action", required=True, metavar="ACTION", parser_class=Parser)
    # looking at genotypes
    listing = actions.add_parser("list", help="list the genotypes of the zoo")
    listing.set_defaults(act=list_genotypes)
    show = actions.add_parser("show", help="show the cells, parameters, MACs and provenance of a genotype")
    show.add_argument("genotype", metavar="NAME_OR_PATH")
    show.add_argument("--json", action="store_true", help="print JSON")
    add_shape(show)
    show.set_defaults(act=show_genotype)
    draw = actions.add_parser("draw", help="draw the cells of genotypes, or their whole networks, as one picture")
    draw.add_argument("genotypes", metavar="NAME_OR_PATH", nargs="+")
    draw.add_argument(
        "-o", "--output", type=Path, help="FILE.svg, .png or .pdf (default: NAME.svg; genotypes.svg for several)"
    )
    draw.add_argument(
        "--whole", action="store_true", help="draw the stacked network with channels, sizes and shares of the cost"
    )
    draw.add_argument("--dark", action="store_true", help="draw light on dark, for dark screens")
    add_shape(draw)
    draw.set_defaults(act=draw_genotype_files)
    # converting them, and checking files
    formats = "; ".join(f"{name}: {FORMATS[name].holds}" for name in FORMATS)
    importing = actions.add_parser(
        "import", help="convert the genotype text of another code into a genotype file", epilog=formats
    )
    importing.add_argument("text", metavar="TEXT_OR_FILE", help="a text such as Genotype(normal=[…], …), or a file")
    importing.add_argument("--format", choices=list(FORMATS), help="format of the text (default: auto-detected)")
    importing.add_argument("--name", help="name of the genotype (default: the name in the text, or the file's)")
    importing.add_argument("-o", "--output", type=Path, help="file to write (default: print it)")
    importing.set_defaults(act=import_genotype)
    exporting = actions.add_parser("export", help="convert a genotype into a text for another code", epilog=formats)
    exporting.add_argument("genotype", metavar="NAME_OR_PATH")
    exporting.add_argument(
        "--format", choices=list(FORMATS), default="classic", help="format of the text (default: classic)"
    )
    exporting.add_argument("-o", "--output", type=Path, help="file to write (default: print it)")
    exporting.set_defaults(act=export_genotype)
    validate = actions.add_parser("validate", help="check genotype files; errors name line and field")
    validate.add_argument("files", metavar="FILE", nargs="+", type=Path)
    validate.set_defaults(act=validate_files)
    # deriving them from a search, and a random baseline
    derive = actions.add_parser("derive", help="derive the best genotype of a search within bounds")
    derive.add_argument("run_dir", metavar="RUN_DIR", type=Path, help="run folder of a search, finished or not")
    derive.add_argument(
        "--epoch", type=positive, help="epoch to derive after (default: the one of the search's genotype, or the last)"
    )
    derive.add_argument("--max-params", type=quantity, metavar="N", help="at most N parameters: 2.45M, 3349342, …")
    derive.add_argument("--max-macs", type=quantity, metavar="N", help="at most N multiply-adds: 600M, …")
    derive.add_argument("--max-latency", type=duration, metavar="TIME", help="at most this latency: 12ms, 850us, …")
    derive.add_argument(
        "--latency-table",
        type=Path,
        metavar="FILE",
        help="measured latencies for --max-latency or --pareto (see latency-table)",
    )
    derive.add_argument(
        "--max-skips", type=not_negative, metavar="N", help="at most N skip_connects in the normal cell"
    )
    derive.add_argument(
        "--pareto",
        action="store_true",
        help="list the Pareto frontier of parameters, or with --latency-table of latency, and mixing weight kept",
    )
    derive.add_argument("--json", action="store_true", help="with --pareto: print all points as JSON")
    derive.add_argument("--name", help="name of the genotype (default: the search's, with the bounds)")
    derive.add_argument(
        "-o", "--output", type=Path, help="genotype file to write, with --pareto a picture (default: print)"
    )
    add_shape(derive)
    derive.set_defaults(act=derive_from_run)
    random = actions.add_parser("random", help="draw a genotype uniformly from a space, as a baseline for a search")
    random.add_argument("--space", default="darts+sandglass", help="candidate operations (default: darts+sandglass)")
    random.add_argument("--seed", type=not_negative, default=0, help="seed of the draw (default: 0)")
    random.add_argument("--nodes", type=positive, default=4, help="nodes of a cell (default: 4)")
    random.add_argument("--name", help="name of the genotype (default: random_SPACE_SEED)")
    random.add_argument("-o", "--output", type=Path, help="file to write (default: print it)")
    random.set_defaults(act=draw_at_random)
    # comparing what they cost and reach
    compare = actions.add_parser("compare", help="compare genotypes side by side")
    compare.add_argument("genotypes", metavar="NAME_OR_PATH", nargs="+")
    compare.add_argument("--json", action="store_true", help="print JSON")
    compare.add_argument("--markdown", action="store_true", help="print a Markdown table")
    compare.add_argument("--csv", action="store_true", help="print CSV")
    compare.add_argument("-o", "--output", type=Path, help="also write a picture: FILE.svg, .png or .pdf")
    compare.add_argument(
        "--results",
        type=Path,
        metavar="DIR",
        help="folder of run folders with measured errors (default: results and runs)",
    )
    compare.add_argument("--latency", action="store_true", help="measure latency on this machine (takes a while)")
    compare.add_argument("--batch-size", type=positive, help="with --latency: images in a batch (default: 1)")
    compare.add_argument("--device", help="with --latency: device to measure on (default: cpu)")
    add_shape(compare)
    compare.set_defaults(act=show_comparison)
    add_score(actions)
    cost = actions.add_parser("cost", help="show parameters, MACs, memory and latency, by cell and by operation")
    cost.add_argument("genotype", metavar="NAME_OR_PATH")
    cost.add_argument(
        "--batch-size",
        type=positive,
        default=32,
        help="measure latency at batch 1 and at this batch size (default: 32)",
    )
    cost.add_argument("--device", default="cpu", help="device of the latency (default: cpu)")
    cost.add_argument("--json", action="store_true", help="print JSON")
    add_shape(cost)
    cost.set_defaults(act=show_cost)


def add_score(actions: Any) -> None:
    """Add `score`, which compares genotypes by zero-cost proxies."""
    scoring = actions.add_parser("score", help="score genotypes by zero-cost proxies, without any training")
    scoring.add_argument("genotypes", metavar="NAME_OR_PATH", nargs="+")
    scoring.add_argument(
        "--proxy", default="synflow,naswot,params,macs", metavar="NAME,NAME",
        help="proxies, the first of which orders the table; all for every one (default: synflow,naswot,params,macs)",
    )  # fmt: skip
    scoring.add_argument("--image-size", type=positive, help="side of the images in pixels (default: 32, ImageNet 224)")
    scoring.add_argument("--batch-size", type=positive, default=16, help="images in the batch (default: 16)")
    scoring.add_argument("--seed", type=not_negative, default=0, help="seed of weights and images (default: 0)")
    scoring.add_argument(
        "--data", type=Path, metavar="DIR", help="folder of --dataset to take the batch from (default: random images)"
    )
    scoring.add_argument("--dataset", help="data set to take the batch from (default with --data: cifar10)")
    scoring.add_argument("--json", action="store_true", help="print JSON")
    add_shape(scoring)
    scoring.set_defaults(act=show_scores)


def add_shape(parser: argparse.ArgumentParser) -> None:
    """Add the options for the shape of the network that is stacked from the cells."""
    parser.add_argument("--network", choices=["cifar", "imagenet"], default="cifar", help="shape of the network")
    parser.add_argument("--channels", type=positive, help="channels C (default: 36, ImageNet 48)")
    parser.add_argument("--cells", type=positive, help="number of cells (default: 20, ImageNet 14)")


def run(arguments: argparse.Namespace) -> None:
    """Carry out the action."""
    arguments.act(arguments)


def list_genotypes(arguments: argparse.Namespace) -> None:
    from darts_sg.genotype import load_genotype, zoo_names

    table = Table(box=None, pad_edge=False)
    for title in ("name", "space", "CIFAR-10 error", "source"):
        table.add_column(title, no_wrap=title != "source")
    shortened: dict[str, Any] = {"no_wrap": True, "overflow": "ellipsis"}  # one line an entry in a narrow terminal
    for name in zoo_names():
        genotype = load_genotype(name)
        error = genotype.provenance.get("published", {}).get("cifar10_error")
        table.add_row(
            name, genotype.space, "" if error is None else f"{error:.2f}%", Text(genotype.origin, **shortened)
        )
    console().print(table)


def show_genotype(arguments: argparse.Namespace) -> None:
    from darts_sg.analysis.cost import CELLS, CHANNELS, derived_cost
    from darts_sg.genotype import load_genotype, state_name
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


def draw_genotype_files(arguments: argparse.Namespace) -> None:
    from darts_sg.analysis.cost import cost_caption
    from darts_sg.analysis.draw import draw_genotypes, save_figure
    from darts_sg.analysis.draw_network import draw_networks
    from darts_sg.genotype import load_genotype
    from darts_sg.ops import OPERATIONS

    genotypes = [load_genotype(name, known=list(OPERATIONS)) for name in arguments.genotypes]
    output = arguments.output or Path(f"{genotypes[0].name if len(genotypes) == 1 else 'genotypes'}.svg")
    suffix = picture_kind(output)
    shape = (arguments.network, arguments.channels, arguments.cells)
    if arguments.whole:
        figure = draw_networks(genotypes, *shape, dark=arguments.dark)
    else:
        captions = [cost_caption(genotype, *shape) for genotype in genotypes]
        figure = draw_genotypes(genotypes, captions, dark=arguments.dark)
    for path in save_figure(figure, output.with_suffix(""), formats=(suffix,)):
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
    """Print name and space of each genotype file; UsageError with every problem if a file is none."""
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
    from darts_sg.analysis.cost import choice_costs, derived_cost
    from darts_sg.analysis.deriving import derive_genotype, refuse_other_shape
    from darts_sg.analysis.latency import read_latency_table
    from darts_sg.analysis.run_folder import read_search_epoch
    from darts_sg.derive import frontier, strengths
    from darts_sg.quantity import duration_text
    from darts_sg.spaces import allowed_in

    shape = (arguments.network, arguments.channels, arguments.cells)
    if arguments.pareto:
        if arguments.max_latency is not None:
            raise UsageError("--pareto lists the genotypes of all bounds; leave --max-latency out")
        record = read_search_epoch(arguments.run_dir, arguments.epoch)
        found, weights = record.genotype, strengths(record.weights)
        params, macs = choice_costs(found.operations, *shape, num_nodes=found.normal.num_nodes)
        costs = {"params": params, "macs": macs}
        traded = "params"
        if arguments.latency_table is not None:
            table = read_latency_table(arguments.latency_table)
            refuse_other_shape(table, found.normal.num_nodes, *shape)
            costs = {"latency_microseconds": table.costs(found.operations), **costs}
            traded = "latency_microseconds"
        allowed = allowed_in(found.space, found.operations)
        points = frontier(*weights, found.operations, costs[traded], allowed)
        show_frontier(arguments, points, found.operations, costs, traded)
        return
    options = ("epoch", "max_params", "max_macs", "max_latency", "latency_table", "max_skips", "name")
    asked = {key: getattr(arguments, key) for key in options}
    genotype = derive_genotype(arguments.run_dir, *shape, **asked)
    cost, share = derived_cost(genotype, *shape), genotype.provenance["derived"]["mixing_weight_kept"]
    print(
        f"{genotype.name}: {cost.params:,} parameters, {cost.macs:,} MACs ({arguments.network} network), "
        f"{100 * share:.1f}% of the mixing weight of the unbounded genotype"
    )
    if arguments.latency_table is not None:
        measured = read_latency_table(arguments.latency_table)
        print(f"predicted latency: {duration_text(measured.predict(genotype))}, {measured.shape}, on {measured.place}")
    deliver(genotype.to_yaml(), arguments.output)


def draw_at_random(arguments: argparse.Namespace) -> None:
    from darts_sg.derive import random_genotype
    from darts_sg.spaces import parse_space

    name = arguments.name or f"random_{parse_space(arguments.space).name}_{arguments.seed}"
    genotype = random_genotype(arguments.space, arguments.nodes, arguments.seed, name)
    deliver(genotype.to_yaml(), arguments.output)


def show_frontier(arguments: argparse.Namespace, points: Any, operations: Any, costs: Any, traded: str) -> None:
    """Print the points as a table of at most about 25 or all as JSON; draw them if there is an --output.

    costs: those of the choices by name. `traded` is the one that the frontier trades mixing weight for.
    """
    from darts_sg.analysis.curves import draw_frontier
    from darts_sg.analysis.draw import save_figure
    from darts_sg.quantity import duration_text

    picture = arguments.output
    kind = "" if picture is None else picture_kind(picture)
    rows = []
    for point in points:
        cells = point.normal, point.reduce
        chosen = [edge.operation for cell in cells for _, edge in cell.edges()]
        rows.append(
            {
                **{name: int(table.of(cells, operations)) for name, table in costs.items()},
                "mixing_weight": point.weight,
                "share": point.weight / points[-1].weight,
                "operations": {name: chosen.count(name) for name in operations if name in chosen},
            }
        )
    if picture is not None:
        for path in save_figure(draw_frontier(rows, traded), picture.with_suffix(""), formats=(kind,)):
            print(path, file=sys.stderr if arguments.json else sys.stdout)
    if arguments.json:
        print(json.dumps(rows, indent=1))
        return
    step = max(1, -(-len(rows) // SHOWN_POINTS))
    shown = sorted({*range(0, len(rows), step), len(rows) - 1})
    forms = {
        "latency_microseconds": ("latency", duration_text),
        "params": ("parameters", "{:,}".format),
        "macs": ("MACs", "{:,}".format),
    }
    table = Table(*(forms[name][0] for name in costs), "weight kept", "operations", box=None, pad_edge=False)
    for row in (rows[i] for i in shown):
        counts = ", ".join(f"{count} {name}" for name, count in row["operations"].items())
        table.add_row(*(forms[name][1](row[name]) for name in costs), f"{100 * row['share']:.1f}%", counts)
    console().print(table)
    console().print(f"{len(shown)} of {len(rows)} points; all of them with --json", highlight=False)


def show_comparison(arguments: argparse.Namespace) -> None:
    from darts_sg.analysis.compare import Latency, latency
    from darts_sg.analysis.cost import shape_text
    from darts_sg.analysis.draw import save_figure
    from darts_sg.analysis.draw_comparison import draw_comparison
    from darts_sg.analysis.measured import runs_in
    from darts_sg.engine.environment import choose_device
    from darts_sg.genotype import load_genotype
    from darts_sg.ops import OPERATIONS
    from darts_sg.study.compare import compare_genotypes
    from darts_sg.tasks.columns import markdown_table

    if arguments.json + arguments.markdown + arguments.csv > 1:
        raise UsageError("choose one of --json, --markdown and --csv")
    if not arguments.latency and (arguments.batch_size or arguments.device):
        raise UsageError("--batch-size and --device are those of the latency; add --latency")
    kind = "" if arguments.output is None else picture_kind(arguments.output)
    device = choose_device(arguments.device or "cpu")
    genotypes = [load_genotype(name, known=list(OPERATIONS)) for name in arguments.genotypes]
    shape = (arguments.network, arguments.channels, arguments.cells)
    folders = [arguments.results] if arguments.results else [f for f in map(Path, RESULT_FOLDERS) if f.is_dir()]
    rows = compare_genotypes(genotypes, *shape, runs=[run for folder in folders for run in runs_in(folder)])
    if arguments.latency:
        times = latency(genotypes, arguments.batch_size or 1, device, *shape)
        for row, found in zip(rows, times, strict=True):
            row |= {"latency": found, "latency_batch": found.batch, **machine_fields(device)}
            if found.doubt:
                print(f"warning: {row['name']}: {found.doubt}", file=sys.stderr)
    if arguments.output is not None:
        figure = draw_comparison(rows, shape_text(*shape), arguments.network)
        for path in save_figure(figure, arguments.output.with_suffix(""), formats=(kind,)):
            print(path, file=sys.stderr if arguments.json or arguments.markdown or arguments.csv else sys.stdout)
    if arguments.json:
        for row in rows:
            row["measured_test_error"] = [score.as_dict() for score in row["measured_test_error"]]
            row |= {"latency_seconds": row.pop("latency")._asdict()} if arguments.latency else {}
        print(json.dumps(rows, indent=1))
        return

    def text(value: Any) -> str:
        match value:
            case None:
                return "none known"
            case dict():
                return ", ".join(f"{count} {name}" for name, count in value.items())
            case list():
                return "; ".join(map(str, value)) or "not measured"
            case int():
                return f"{value:,}"
            case float():
                return f"{value:g}"
        return str(value)

    if arguments.csv:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(rows[0])
        for row in rows:
            values = ["" if value in (None, []) else value for value in row.values()]
            writer.writerow([text(v) if isinstance(v, dict | list | Latency) else v for v in values])
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


def show_scores(arguments: argparse.Namespace) -> None:
    from darts_sg.analysis.cost import shape_text
    from darts_sg.baselines.proxies import PROXIES
    from darts_sg.engine.scoring import score_genotypes
    from darts_sg.genotype import load_genotype
    from darts_sg.ops import OPERATIONS

    names = list(PROXIES) if arguments.proxy == "all" else [name.strip() for name in arguments.proxy.split(",")]
    for name in names:
        PROXIES[name]
    if len(set(names)) < len(names):
        raise UsageError(f"--proxy {cut(arguments.proxy)} names a proxy twice")
    genotypes = [load_genotype(name, known=list(OPERATIONS)) for name in arguments.genotypes]
    shape = (arguments.network, arguments.channels, arguments.cells)
    data = arguments.dataset or ("cifar10" if arguments.data else None)
    rows, batch = score_genotypes(
        genotypes, names, shape, image_size=arguments.image_size, batch_size=arguments.batch_size, seed=arguments.seed,
        dataset=data, folder=arguments.data or Path("data"),
    )  # fmt: skip
    rows.sort(key=lambda row: -row["scores"][names[0]])
    if arguments.json:
        setting = {
            "batch": batch,
            "batch_size": arguments.batch_size,
            "seed": arguments.seed,
            "shape": shape_text(*shape),
        }
        print(json.dumps({**setting, "genotypes": rows}, indent=1))
        return
    table = Table("genotype", *names, box=None, pad_edge=False)
    for row in rows:
        table.add_row(row["name"], *(f"{row['scores'][name]:.6g}" for name in names))
    console().print(table)
    console().print(
        f"{shape_text(*shape)}; batch of {arguments.batch_size}, {batch}; seed {arguments.seed}", highlight=False
    )


def show_cost(arguments: argparse.Namespace) -> None:
    from darts_sg.analysis.compare import activation_bytes, anatomy, latency
    from darts_sg.analysis.cost import derived_cost
    from darts_sg.engine.environment import choose_device, machine
    from darts_sg.genotype import load_genotype
    from darts_sg.ops import OPERATIONS

    genotype = load_genotype(arguments.genotype, known=list(OPERATIONS))
    device = choose_device(arguments.device)
    shape = (arguments.network, arguments.channels, arguments.cells)
    cost, parts, kept = derived_cost(genotype, *shape), anatomy(genotype, *shape), activation_bytes(genotype, *shape)
    times = [latency([genotype], batch, device, *shape)[0] for batch in sorted({1, arguments.batch_size})]
    for doubt in filter(None, (time.doubt for time in times)):
        print(f"warning: {doubt}", file=sys.stderr)
    if arguments.json:
        content = {
            "name": genotype.name,
            "params": cost.params,
            "params_with_auxiliary": cost.params_with_auxiliary,
            "macs": cost.macs,
            "activation_bytes_an_image": kept,
            "by_cell": [
                {**stage.whole._asdict(), "output_channels": stage.shape[0], "output_size": stage.shape[1]}
                for stage in parts.stages
            ],
            "by_operation": [part._asdict() for part in parts.operations],
            **machine_fields(device),
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
        out.print(f"latency, batch {time.batch}: {time} on {machine(device)}", highlight=False)
