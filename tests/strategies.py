"""Random genotypes over random spaces and damaged texts, for the property tests."""

from collections.abc import Sequence
from dataclasses import replace

from hypothesis import strategies as st

from darts_sg.formats import NUM_INPUTS, GenotypeError
from darts_sg.genotype import NAME_PATTERN, Cell, Edge, Genotype, parse_genotype
from darts_sg.ops import OPERATIONS

CHOICES = tuple(name for name in OPERATIONS if name != "none" and not OPERATIONS[name].is_random)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]))
PLAIN_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)
EDGES = st.integers(0, 3)
NODES = st.integers(1, 5)


@st.composite
def cells(draw: st.DrawFn, names: Sequence[str], edges: st.SearchStrategy[int], nodes: st.SearchStrategy[int]) -> Cell:
    """A random cell over operations, with as many nodes, and edges into each, as the strategies say.

    Nothing reads a node without edges. If no node has any, the last one gets an edge.
    """
    drawn: list[tuple[Edge, ...]] = []
    readable = list(range(NUM_INPUTS))
    num_nodes = draw(nodes)
    for state in range(NUM_INPUTS, NUM_INPUTS + num_nodes):
        edge = st.builds(Edge, st.sampled_from(names), st.sampled_from(readable))
        last = len(drawn) + 1 == num_nodes and len(readable) == NUM_INPUTS
        num_edges = max(draw(edges), int(last))
        drawn.append(tuple(draw(st.lists(edge, min_size=num_edges, max_size=num_edges))))
        readable += [state] if num_edges else []
    concat = draw(st.lists(st.sampled_from(readable[NUM_INPUTS:]), min_size=1, unique=True))
    return Cell(tuple(drawn), tuple(concat))


@st.composite
def genotypes(
    draw: st.DrawFn,
    edges: st.SearchStrategy[int] = EDGES,
    nodes: st.SearchStrategy[int] = NODES,
    choices: Sequence[str] = CHOICES,
    facts: bool = False,
) -> Genotype:
    """A random genotype over a random part of `choices`; with random space name and provenance if `facts`."""
    names = draw(st.lists(st.sampled_from(choices), min_size=1, max_size=8, unique=True))
    return Genotype(
        name=draw(st.from_regex(NAME_PATTERN, fullmatch=True)) if facts else "random",
        space=draw(TEXTS) if facts else "random",
        operations=draw(st.permutations(["none", *names]).map(tuple)),
        normal=draw(cells(names, edges, nodes)),
        reduce=draw(cells(names, edges, nodes)),
        provenance=draw(st.dictionaries(TEXTS, PLAIN_VALUES, max_size=3)) if facts else {},
    )


def joined(genotype: Genotype, loose_ends: bool = False) -> Genotype:
    """The same genotype with all nodes joined, or those that no other node takes."""

    def join(cell: Cell) -> Cell:
        taken = {edge.state for _, edge in cell.edges()} if loose_ends else set()
        taken |= {state for state, node in enumerate(cell.nodes, start=NUM_INPUTS) if not node}
        return replace(cell, concat=tuple(s for s in range(NUM_INPUTS, cell.num_states) if s not in taken))

    return replace(genotype, normal=join(genotype.normal), reduce=join(genotype.reduce))


YAML_PIECES = (
    "!!python/object/apply:os.abort []",
    "!!int ",
    "!!binary ",
    "&a ",
    "*a",
    "<<: ",
    "? ",
    "- ",
    "{",
    "2020-01-01",
)
PYTHON_PIECES = ("(", ")", "'", "**", "10**10**10", "1e999", "__import__('os').abort()", "True", "-1", "#")
PIECES = ("", " ", "\n", ":", "[", "]", ",", "0", '"', "\0", "9" * 5000, "[" * 300, *YAML_PIECES, *PYTHON_PIECES)


@st.composite
def damaged(draw: st.DrawFn, text: str) -> str:
    """`text` with some of its lines left out, repeated or swapped, and some of its characters replaced."""
    lines = text.splitlines(keepends=True)
    places = st.integers(0, len(lines) - 1)
    for kind in draw(st.lists(st.sampled_from(("left out", "repeated", "swapped")), max_size=2)):
        i, j = draw(places) % len(lines), draw(places) % len(lines)
        if kind == "swapped":
            lines[i], lines[j] = lines[j], lines[i]
        else:
            lines[i : i + 1] = [] if kind == "left out" and len(lines) > 1 else [lines[i], lines[i]]
    text = "".join(lines)
    for _ in range(draw(st.integers(0, 3))):
        start = draw(st.integers(0, len(text)))
        stop = draw(st.integers(start, min(len(text), start + 12)))
        text = text[:start] + draw(st.sampled_from(PIECES) | TEXTS) + text[stop:]
    return text


def refused_or_read(text: str, format: str | None = None) -> None:
    """A genotype that can be written and read again comes out, or a GenotypeError of one line."""
    try:
        genotype = parse_genotype(text, format)
    except GenotypeError as error:
        message = str(error)
    else:
        message = "read" if parse_genotype(genotype.to_yaml()) == genotype else "changed by\nits round trip"
    assert len(message.splitlines()) == 1, message
