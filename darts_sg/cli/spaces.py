"""darts-sg spaces: every space and operation."""

import argparse
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from darts_sg.cli.terminal import console

if TYPE_CHECKING:
    from darts_sg.spaces import Space


def add_parser(commands: Any) -> None:
    """Add `spaces` to the commands of the package."""
    commands.add_parser("spaces", description="List every space, and every operation with its parameters.")


def run(arguments: argparse.Namespace) -> None:
    """Print the named spaces and the operations."""
    from darts_sg.analysis.cost import count_params
    from darts_sg.ops import OPERATIONS
    from darts_sg.spaces import EDGE_SPACES, SPACES, parse_space

    out = console()
    plugged = any(registry.origin(name) for registry in (SPACES, OPERATIONS) for name in registry)
    origin_column = ["plug-in"] if plugged else []
    named = Table("space", "operations", *origin_column, box=None, pad_edge=False)
    for name in SPACES:
        named.add_row(name, ", ".join(SPACES[name]), *([SPACES.origin(name)] if plugged else []))
    out.print(named)
    for name in EDGE_SPACES:
        _print_edge_lists(parse_space(name), out)
    out.print(
        "\nSpaces and operations are joined with +: darts+sandglass, darts+sandglass_3x3_r6, …\n", highlight=False
    )
    columns = ("operation", "parameters, C=16", "C=36", "layer chain", *origin_column)
    table = Table(*columns, box=None, pad_edge=False)
    for name in OPERATIONS:
        operation = OPERATIONS[name]
        counts = [f"{count_params(operation.build(C, 1, True)):,}" for C in (16, 36)]
        table.add_row(name, *counts, operation.chain, *([OPERATIONS.origin(name)] if plugged else []))
    out.print(table)
    out.print(
        "\nParameters of the operation with stride 1 in a derived network (BatchNorm's included).", highlight=False
    )


def _print_edge_lists(space: "Space", out: Console) -> None:
    """The operations of each edge: a row for each node, a column for each state."""
    out.print(f"\n{space.name}: cells of {space.num_nodes} nodes whose edges have lists of their own", highlight=False)
    for title, cell in zip(("normal cell", "reduction cell"), space.edge_lists or (), strict=True):
        states = ("c_{k-2}", "c_{k-1}", *(f"node {i}" for i in range(len(cell) - 1)))
        table = Table(title, *(f"from {state}" for state in states), box=None, pad_edge=False)
        for i, edges in enumerate(cell):
            table.add_row(f"node {i}", *(", ".join(edge) for edge in edges))
        out.print(table)
