"""Named search spaces and the grammar that joins them: `darts+sandglass`, `darts+sandglass_3x3_r6`, …

A space is a tuple of operation names. To add one: `SPACES.add("mine", ("skip_connect", "sandglass_3x3"))`.
Spaces whose edges have lists of operations of their own are in EDGE_SPACES; they are not joined with others.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from darts_sg.errors import UsageError
from darts_sg.formats import DARTS_OPERATIONS
from darts_sg.genotype import NUM_INPUTS
from darts_sg.ops import OPERATIONS
from darts_sg.registry import PLUGIN_HINT, Registry, unknown_name


def check_space(operations: tuple[str, ...]) -> None:
    """UsageError unless a plug-in's space is a tuple of registered operations; see SPACES."""
    if not isinstance(operations, tuple):
        raise UsageError(f"expected a tuple of operation names, found {operations!r}")
    for name in operations:
        OPERATIONS[name]


SPACES: Registry[tuple[str, ...]] = Registry("space", check=check_space)

SPACES.add("darts", ("none", *DARTS_OPERATIONS))  # DARTS paper, section 3.1.1, in the order of its code
SPACES.add("sandglass", ("sandglass_3x3",))
SPACES.add("ir", ("inverted_residual_3x3",))
# S2 to S4 of Zela et al., "Understanding and Robustifying Differentiable Architecture Search", ICLR 2020, section 3
SPACES.add("S2", ("skip_connect", "sep_conv_3x3"))
SPACES.add("S3", ("none", "skip_connect", "sep_conv_3x3"))
SPACES.add("S4", ("noise", "sep_conv_3x3"))

EdgeLists = tuple[tuple[tuple[str, ...], ...], ...]
"""For each node of a cell, for each of its edges by state from 0: the operations of the edge."""


def check_edge_space(cells: tuple[EdgeLists, EdgeLists]) -> None:
    """UsageError unless a plug-in's space is the lists of the normal and of the reduction cell; see EDGE_SPACES."""
    if not (isinstance(cells, tuple) and len(cells) == 2 and len(cells[0]) == len(cells[1])):
        raise UsageError("expected the lists of a normal and of a reduction cell with as many nodes")
    for lists in cells:
        for i, edges in enumerate(lists):
            if len(edges) != NUM_INPUTS + i:
                raise UsageError(f"node {i} has lists for {len(edges)} edges, and there are {NUM_INPUTS + i}")
            for names in edges:
                check_space(tuple(names))
                if not set(names) - {"none"}:
                    raise UsageError("every edge needs an operation other than none")


EDGE_SPACES: Registry[tuple[EdgeLists, EdgeLists]] = Registry("space of lists by edge", check=check_edge_space)

_SHORT = {
    "s": "skip_connect", "m": "max_pool_3x3", "a": "avg_pool_3x3", "c3": "sep_conv_3x3", "d3": "dil_conv_3x3",
    "d5": "dil_conv_5x5",
}  # fmt: skip


def _edge_lists(*nodes: str) -> EdgeLists:
    """Lists in short names: edges separated by |, their operations by blanks; one text for each node."""
    return tuple(tuple(tuple(_SHORT[name] for name in edge.split()) for edge in node.split("|")) for node in nodes)


# S1 of the same paper: for each edge the two operations that a search of the DARTS space ranked first
EDGE_SPACES.add(
    "S1",
    (
        _edge_lists(
            "s d3 | s d5", "s d5 | s c3 | s d3", "m s | s c3 | s c3 | s d3", "s c3 | m s | s d3 | d3 d5 | d3 d5"
        ),
        _edge_lists("m a | m d3", "m a | m a | s d5", "m a | m c3 | s d3 | s d5", "m a | m a | s d5 | s d5 | s d5"),
    ),
)

Allowed = tuple[NDArray[np.bool_], NDArray[np.bool_]]
"""Which operations the edges of the normal and of the reduction cell have, (num_edges, num_operations) each."""


@dataclass(frozen=True)
class Space:
    """A search space: the text that names it, and its candidate operations, in order."""

    name: str
    operations: tuple[str, ...]
    edge_lists: tuple[EdgeLists, EdgeLists] | None = None
    """The operations of each edge of the normal and of the reduction cell; None if every edge has them all."""

    @property
    def allowed(self) -> Allowed | None:
        """Which operations each edge has; None if every edge has them all."""
        if self.edge_lists is None:
            return None
        normal, reduce = (
            np.array([[name in names for name in self.operations] for edges in lists for names in edges])
            for lists in self.edge_lists
        )
        return normal, reduce

    @property
    def num_nodes(self) -> int | None:
        """Nodes of its cells; None if a cell may have any number."""
        return None if self.edge_lists is None else len(self.edge_lists[0])


def parse_space(text: str) -> Space:
    """Parse a text such as `darts+sandglass_3x3`, whose terms are named spaces and operations.

    Operations keep their order, and repeated ones are dropped. Raises UsageError for an unknown term, or if only
    `none` is left to choose from.
    """
    if text.strip() in EDGE_SPACES:
        return _edge_space(text.strip())
    operations: dict[str, None] = {}
    for term in text.split("+"):
        name = term.strip()
        if name in SPACES:
            operations.update(dict.fromkeys(SPACES[name]))
        elif name in OPERATIONS:
            operations[name] = None
        elif name in EDGE_SPACES:
            raise UsageError(f"space {text!r}: {name} has a list of operations for each edge and stands alone")
        else:
            choices = [*SPACES, *EDGE_SPACES, *OPERATIONS]
            raise UsageError(unknown_name("space or operation", name, choices) + PLUGIN_HINT)
    if not operations.keys() - {"none"}:
        raise UsageError(f"space {text!r} has no operation to choose; add one, such as {text}+skip_connect")
    return Space("+".join(term.strip() for term in text.split("+")), tuple(operations))


def _edge_space(name: str) -> Space:
    cells = EDGE_SPACES[name]
    names = [operation for lists in cells for edges in lists for edge in edges for operation in edge]
    order = [operation for operation in ("none", *DARTS_OPERATIONS) if operation in names]
    return Space(name, tuple(dict.fromkeys([*order, *names])), cells)


def allowed_in(space: str, operations: Sequence[str]) -> Allowed | None:
    """Which operations the edges of a genotype's space have; None if it has no lists by edge, or is not known here."""
    found = parse_space(space) if space in EDGE_SPACES else None
    return found.allowed if found is not None and found.operations == tuple(operations) else None
