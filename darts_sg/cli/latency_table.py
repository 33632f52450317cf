"""darts-sg latency-table: measure the operations of a space on this device, for searches and derivations by latency."""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from darts_sg.cli.genotype import add_shape
from darts_sg.cli.parser import not_negative, picture_kind, positive
from darts_sg.cli.terminal import console, refuse_existing
from darts_sg.errors import UsageError
from darts_sg.invocation import program
from darts_sg.quantity import duration_text

if TYPE_CHECKING:
    import torch

    from darts_sg.analysis.latency import Checked, LatencyTable

FEWEST_CHECKED, MOST_CHECKED, MOST_ROUNDS = 3, 1000, 10_000
OF_THE_TABLE = ("space", "nodes", "channels", "cells", "image_size", "batch_size")
"""Options that a table which is only checked decides by itself."""


def add_parser(commands: Any) -> None:
    """Add `latency-table` to the commands of the package."""
    parser = commands.add_parser(
        "latency-table",
        description="Measure every operation of a space at every place of a derived network on this device, for "
        "search --penalty latency:WEIGHT, --target-latency and genotype derive --max-latency.",
    )
    parser.add_argument("-o", "--output", type=Path, metavar="FILE.yaml", help="file to write")
    parser.add_argument("--space", help="candidate operations (default: darts+sandglass)")
    parser.add_argument("--nodes", type=positive, help="nodes of a cell (default: 4)")
    add_shape(parser)
    parser.add_argument("--image-size", type=positive, help="side of the images in pixels (default: 32, ImageNet 224)")
    parser.add_argument("--batch-size", type=positive, help="images in a batch (default: 1)")
    parser.add_argument("--device", default="cpu", help="device to measure on (default: cpu)")
    parser.add_argument("--threads", type=positive, help="CPU threads (default: one per core)")
    parser.add_argument("--rounds", type=positive, help="rounds in which all take turns (default: 100, of a check 30)")
    parser.add_argument(
        "--check", type=positive, metavar="N", help="then predict and measure the networks of N random genotypes"
    )
    parser.add_argument(
        "--table", type=Path, metavar="FILE.yaml", help="with --check: check this table instead of measuring one"
    )
    parser.add_argument("--seed", type=not_negative, default=0, help="seed of the genotypes of --check (default: 0)")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="with --check: picture, .svg, .png or .pdf")
    parser.add_argument("--json", action="store_true", help="with --check: print its figures as JSON")


def run(arguments: argparse.Namespace) -> None:
    """Measure a table and write it, check it, or both."""
    from darts_sg.analysis.latency import (
        CHECK_ROUNDS,
        NOISY,
        ROUNDS,
        check_table,
        derived_shape,
        measure_table,
        read_latency_table,
    )
    from darts_sg.engine import environment
    from darts_sg.engine.distributed import ALONE
    from darts_sg.files import write_atomically
    from darts_sg.spaces import parse_space

    _refuse_combinations(arguments)
    kind = picture_kind(arguments.picture) if arguments.picture else ""
    device = environment.choose_device(arguments.device)
    environment.prepare_device(device, arguments.threads)
    rounds = arguments.rounds or ROUNDS
    if arguments.table is None:
        space = parse_space(arguments.space or "darts+sandglass")
        nodes = arguments.nodes or space.num_nodes or 4
        if space.num_nodes not in (None, nodes):
            raise UsageError(f"space {space.name} is one of {space.num_nodes} nodes; give --nodes {space.num_nodes}")
        refuse_existing(arguments.output)
        shape = derived_shape(
            arguments.network,
            arguments.channels,
            arguments.cells,
            arguments.image_size,
            nodes=nodes,
            batch_size=arguments.batch_size or 1,
        )
        facts = environment.describe(device, ALONE) | {
            "rounds": rounds, "precision": "float32", "layout": "channels_last", "batchnorm": "running statistics, "
            "not folded",
        }  # fmt: skip
        table = measure_table(space, shape, device, facts, rounds)
        write_atomically(arguments.output, _text(table))
        if not arguments.json:
            print(_summary(table, arguments.output))
    else:
        table = read_latency_table(arguments.table)
        if arguments.network != table.shape.network and arguments.network != "cifar":
            raise UsageError(f"--network {arguments.network}: {table.source} is of the {table.shape.network} shape")
        if warning := table.foreign(environment.device_name(device), _threads(device)):
            print(f"warning: {warning}", file=sys.stderr)
    if noisy := table.noisy:
        parts = len(table.choices) + len(table.fixed)
        print(
            f"warning: the times of {len(noisy)} of {parts} parts scatter by more than {100 * NOISY:.0f}%, such as "
            f"{noisy[0]}; measure again on an idle machine",
            file=sys.stderr,
        )
    if arguments.check:
        checked = check_table(table, arguments.check, arguments.seed, device, arguments.rounds or CHECK_ROUNDS)
        _show(arguments, table, checked, environment.machine(device), kind)


def _refuse_combinations(arguments: argparse.Namespace) -> None:
    if arguments.table is None and arguments.output is None:
        raise UsageError("where to? Give -o FILE.yaml, or --check N --table FILE.yaml to check a table that exists")
    if arguments.table is not None:
        given = [name for name in ("output", *OF_THE_TABLE) if getattr(arguments, name) is not None]
        if given:
            flag = f"--{given[0].replace('_', '-')}"
            raise UsageError(f"{flag} with --table: the table is there already and decides it; leave one of them out")
        if not arguments.check:
            raise UsageError("--table names a table to check: add --check N, such as --check 20")
    for name in ("picture", "json"):
        if getattr(arguments, name) and not arguments.check:
            raise UsageError(f"--{name} is for the figures of a check; add --check N, such as --check 20")
    for name, least, most in (("check", FEWEST_CHECKED, MOST_CHECKED), ("rounds", 3, MOST_ROUNDS)):
        value = getattr(arguments, name)
        if value and not least <= value <= most:
            raise UsageError(f"--{name} {value}: expected from {least} to {most:,}")


def _threads(device: "torch.device") -> int | None:
    """The CPU threads, if it is them that compute."""
    import torch

    return torch.get_num_threads() if device.type == "cpu" else None


def _text(table: "LatencyTable") -> str:
    """The table as YAML, an entry a line."""
    import yaml

    content = table.as_dict()
    lists = {key: content.pop(key) for key in ("fixed", "choices")}
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=110)
    for key, entries in lists.items():
        form: dict[str, Any] = {"sort_keys": False, "allow_unicode": True, "default_flow_style": True, "width": 1000}
        text += f"{key}:\n" + "".join(f"- {yaml.safe_dump(entry, **form).strip()}\n" for entry in entries)
    return text


def _summary(table: "LatencyTable", path: Path) -> str:
    fixed = duration_text(table.fixed_microseconds)
    return (
        f"{path}: {len(table.choices)} operations at their places and {len(table.fixed)} fixed parts, "
        f"{table.shape}, on {table.place}\n{fixed} of a network do not depend on its genotype; whole networks take "
        f"{table.factor:.3f} times the sum of their parts"
    )


def _show(
    arguments: argparse.Namespace, table: "LatencyTable", checked: "list[Checked]", machine: str, kind: str
) -> None:
    """Print the figures of a check and draw its picture."""
    from darts_sg.analysis.draw import save_figure
    from darts_sg.analysis.draw_latency import draw_check
    from darts_sg.analysis.latency import NOISY, agreement

    found = agreement(checked)
    if arguments.json:
        rows = [check._asdict() for check in checked]
        facts = {"shape": str(table.shape), "machine": machine, "seed": arguments.seed, **found._asdict()}
        print(json.dumps({**facts, "genotypes": rows}, indent=1))
    else:
        rows_table = Table("genotype", "predicted", "measured", "error", "spread", box=None, pad_edge=False)
        for i, check in enumerate(checked):
            error = f"{100 * (check.predicted / check.measured - 1):+.1f}%"
            times = duration_text(check.predicted), duration_text(check.measured)
            rows_table.add_row(f"random_{i}", *times, error, f"{100 * check.spread:.1f}%")
        out = console()
        out.print(rows_table)
        out.print(
            f"Spearman's rank correlation {found.rank_correlation:.3f}, of MACs instead "
            f"{found.rank_correlation_of_macs:.3f}; mean absolute relative error "
            f"{100 * found.mean_absolute_relative_error:.1f}%, mean relative error "
            f"{100 * found.mean_relative_error:+.1f}%",
            highlight=False,
        )
        out.print(
            f"{len(checked)} random genotypes of {table.space}, seed {arguments.seed}; {table.shape}; {machine}. "
            f"To search by it: {program('search')} --penalty latency:0.1 --latency-table FILE",
            highlight=False,
        )
    noisy = sum(check.spread > NOISY for check in checked)
    if noisy:
        print(
            f"warning: the times of {noisy} of {len(checked)} networks scatter by more than {100 * NOISY:.0f}%; "
            "check again on an idle machine",
            file=sys.stderr,
        )
    if arguments.picture is not None:
        figure = draw_check(checked, found, f"{table.space}, {table.shape}", machine)
        for path in save_figure(figure, arguments.picture.with_suffix(""), formats=(kind,)):
            print(path, file=sys.stderr if arguments.json else sys.stdout)
