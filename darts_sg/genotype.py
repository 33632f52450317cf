"""The genotype: the operations of a normal and a reduction cell, and how their nodes are wired. Needs no torch.

States of a cell are numbered as in the DARTS paper (section 2.1): 0 is c_{k-2}, the output of the cell before the
previous one; 1 is c_{k-1}, the output of the previous cell; 2 and up are the nodes, in order.
"""

import os
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from darts_sg import remote
from darts_sg.files import write_atomically
from darts_sg.formats import FORMATS, NUM_INPUTS, SCHEMA, GenotypeError, recognised, shown
from darts_sg.registry import PLUGIN_HINT, unknown_name

NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*")
MOST_NODES = 32  # of a cell; papers have 4 to 7. More take minutes to draw
MOST_EDGES = 100  # of a cell; papers have 8. More take many seconds to count
MAX_BYTES = 2**17  # a genotype file has about 2 KiB; anything larger is some other file


@dataclass(frozen=True)
class Edge:
    """An incoming edge of a node: `operation` applied to `state`."""

    operation: str
    state: int


@dataclass(frozen=True)
class Cell:
    """A cell: the incoming edges of each node, and the states that are concatenated at its output.

    A node may have any number of edges. One without edges is not part of the cell: nothing reads it.
    """

    nodes: tuple[tuple[Edge, ...], ...]
    concat: tuple[int, ...]

    @property
    def num_nodes(self) -> int:
        return len(self.nodes)

    @property
    def num_states(self) -> int:
        return NUM_INPUTS + len(self.nodes)

    def edges(self) -> Iterator[tuple[int, Edge]]:
        """Yield (state number of the node, edge) for every edge, node by node."""
        for i, node in enumerate(self.nodes):
            for edge in node:
                yield NUM_INPUTS + i, edge


@dataclass(frozen=True)
class Genotype:
    """A normal and a reduction cell, the space that they were chosen from, and their provenance."""

    name: str
    space: str
    operations: tuple[str, ...]
    """The candidate operations of the space, in order. The name of the space alone would not fix them."""
    normal: Cell
    reduce: Cell
    provenance: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}), compare=False)

    def __post_init__(self) -> None:
        if not NAME_PATTERN.fullmatch(self.name):
            raise GenotypeError(f"name: {self.name!r} is not a name (letters, digits and _ . + -)")
        for title, cell in (("normal", self.normal), ("reduce", self.reduce)):
            _check_cell(title, cell, self.operations)

    def cells(self) -> tuple[tuple[str, Cell], tuple[str, Cell]]:
        """The two cells with their names, normal first."""
        return ("normal", self.normal), ("reduce", self.reduce)

    def count(self, operation: str) -> tuple[int, int]:
        """Count `operation` in the (normal, reduction) cell."""
        normal, reduce = (sum(e.operation == operation for _, e in c.edges()) for _, c in self.cells())
        return normal, reduce

    @property
    def origin(self) -> str:
        """The origin in one line: the publication, or the seed, data and size of the search."""
        known = self.provenance
        if known.get("kind") != "searched":
            return str(known.get("source", known.get("kind", "")))
        seed = "" if known.get("seed") is None else f" of seed {known['seed']}"
        limits = {"max_params", "max_macs", "max_latency", "max_skips"}
        bounded = " within bounds" if limits & (known.get("derived") or {}).keys() else ""
        return f"our own search{seed}{bounded}: {self.search_size}"

    @property
    def search_size(self) -> str:
        """Data and size of the search, in words."""
        known, options = self.provenance, self.provenance.get("options") or {}
        weights, alphas = (
            f"{known[key]:,}" if isinstance(known.get(key), int) else "?"
            for key in ("train_images", "validation_images")
        )
        return (
            f"{known.get('data')}, C={options.get('channels')}, {options.get('cells')} cells, {weights} images for the "
            f"weights and {alphas} for the alphas, {options.get('epochs')} epochs"
        )

    def as_dict(self) -> dict[str, Any]:
        """The plain form: the mapping that the YAML file holds (see formats.py)."""
        return {
            "schema": SCHEMA,
            "name": self.name,
            "space": self.space,
            "operations": list(self.operations),
            "normal": _cell_as_lists(self.normal),
            "normal_concat": list(self.normal.concat),
            "reduce": _cell_as_lists(self.reduce),
            "reduce_concat": list(self.reduce.concat),
            "provenance": dict(self.provenance),
        }

    def to_text(self, format: str) -> str:
        """Write the genotype in one of the FORMATS; GenotypeError if the format cannot hold it."""
        try:
            return FORMATS[format].write(self.as_dict())
        except GenotypeError as error:
            raise GenotypeError(f"{self.name} cannot be written as {format}: {error}") from None

    def to_yaml(self) -> str:
        """The text of the genotype file."""
        return self.to_text("yaml")

    def save(self, path: Path) -> None:
        """Write the genotype file atomically: `path` holds either the old or the new text, never a part of one."""
        write_atomically(path, self.to_yaml())


def load_genotype(
    name_or_path: str | Path, zoo: Path | None = None, known: Collection[str] | None = None, format: str | None = None
) -> Genotype:
    """Read a genotype of the zoo by name, or from a file in any of the FORMATS. Nothing in the file is executed.

    The file may be on another machine: hf://user/name[/file], or an https URL (see `darts_sg.remote`).

    zoo: the folder of the zoo; default: the one of this package.
    known: the operations that exist; a genotype with any other is refused.
    format: default: detected from the content.
    Raises GenotypeError that names file, line and field.
    """
    folder = zoo or zoo_folder()
    path = remote.local_file(name_or_path, remote.GENOTYPE)
    if not os.path.isfile(path):  # noqa: PTH113 - Path.is_file raises OSError for a name that is too long
        in_zoo = folder / f"{path.name}.yaml"
        looks_like_path = len(path.parts) > 1 or path.suffix in {".yaml", ".yml", ".txt", ".json", ".py"}
        if looks_like_path:
            what = "is a folder" if path.is_dir() else "does not exist"
            hint = "; did you mean its genotype.yaml?" if (path / "genotype.yaml").is_file() else ""
            raise GenotypeError(f"genotype file {path} {what}{hint}")
        if not os.path.isfile(in_zoo):  # noqa: PTH113
            raise GenotypeError(
                unknown_name("genotype", str(name_or_path), zoo_names(folder)) + ", or the path of a file"
            )
        path = in_zoo
    if path.stat().st_size > MAX_BYTES:
        raise GenotypeError(f"{path}: larger than {MAX_BYTES // 1024} KiB, so it is not a genotype file")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise GenotypeError(f"{path}: not a text file") from None
    try:
        return parse_genotype(text, format, name=path.stem, known=known)
    except GenotypeError as error:
        raise GenotypeError(f"{path}: {error}") from None


def zoo_folder() -> Path:
    """Find the genotype zoo: inside an installed package, or at the top of a checkout."""
    packaged = Path(__file__).parent / "genotypes"
    return packaged if packaged.is_dir() else Path(__file__).parent.parent / "genotypes"


def zoo_names(folder: Path | None = None) -> list[str]:
    """The names of the genotypes in the zoo, sorted."""
    return sorted((path.stem for path in (folder or zoo_folder()).glob("*.yaml")), key=str.lower)


def parse_genotype(
    text: str, format: str | None = None, name: str = "imported", known: Collection[str] | None = None
) -> Genotype:
    """Parse a text in one of the FORMATS. Nothing in it is executed.

    The format is auto-detected unless given (YAML if no other matches); `name` is the default for a text that has none.
    Raises GenotypeError with line and field.
    """
    if format is None:
        candidates = recognised(text) or ["yaml"]
        if len(candidates) > 1:
            raise GenotypeError(f"file: ambiguous, may be {' or '.join(candidates)}; import it with --format")
        format = candidates[0]
    reading = FORMATS[format].read(text, name)
    try:
        return from_dict(reading.plain, known=known)
    except GenotypeError as error:
        place, _, problem = str(error).partition(": ")
        raise GenotypeError(f"{reading.place(place)}: {problem}") from None


def from_dict(plain: Any, known: Collection[str] | None = None) -> Genotype:
    """Build a genotype from its plain form (see Genotype.as_dict); a GenotypeError starts with the field."""
    if not isinstance(plain, dict):
        raise GenotypeError("file: expected a mapping with schema, name, space, normal, reduce, …")
    fields = ("schema", "name", "space", "operations", "normal", "normal_concat", "reduce", "reduce_concat")
    for key in plain:
        if key not in (*fields, "provenance"):
            where = key if isinstance(key, str) and key.isidentifier() else "file"
            raise GenotypeError(f"{where}: " + unknown_name("field", key, [*fields, "provenance"]))
    for key in fields:
        if key not in plain:
            raise GenotypeError(f"{key}: missing")
    if type(plain["schema"]) is not int or plain["schema"] != SCHEMA:
        raise GenotypeError(f"schema: this version reads {SCHEMA}, found {shown(plain['schema'])}")
    for key in ("name", "space"):
        if not isinstance(plain[key], str):
            raise GenotypeError(f"{key}: expected a text, found {shown(plain[key])}")
    operations = plain["operations"]
    if not isinstance(operations, list):
        raise GenotypeError(f"operations: expected a list of names, found {shown(operations)}")
    for i, op in enumerate(operations):
        if not isinstance(op, str):
            raise GenotypeError(f"operations[{i}]: expected a name, found {shown(op)}")
        if op in operations[:i]:
            raise GenotypeError(f"operations[{i}]: {shown(op)} is repeated")
        if known is not None and op not in known:
            raise GenotypeError(f"operations[{i}]: " + unknown_name("operation", op, list(known)) + PLUGIN_HINT)
    provenance = plain.get("provenance")
    provenance = {} if provenance is None else provenance
    if not isinstance(provenance, dict):
        raise GenotypeError(f"provenance: expected a mapping, found {shown(provenance)}")
    _check_provenance("provenance", provenance)
    return Genotype(
        name=plain["name"],
        space=plain["space"],
        operations=tuple(operations),
        normal=_cell_from_lists("normal", plain["normal"], plain["normal_concat"]),
        reduce=_cell_from_lists("reduce", plain["reduce"], plain["reduce_concat"]),
        provenance=MappingProxyType(provenance),
    )


def state_name(state: int) -> str:
    """The name of a state in the papers: c_{k-2}, c_{k-1}, node 0, …"""
    return ("c_{k-2}", "c_{k-1}")[state] if state < NUM_INPUTS else f"node {state - NUM_INPUTS}"


def renamed(genotype: Genotype, name: str) -> Genotype:
    """The same genotype under another name."""
    return replace(genotype, name=name)


def _check_cell(title: str, cell: Cell, operations: tuple[str, ...]) -> None:
    if not cell.nodes:
        raise GenotypeError(f"{title}: a cell needs at least one node")
    if cell.num_nodes > MOST_NODES or sum(map(len, cell.nodes)) > MOST_EDGES:
        raise GenotypeError(f"{title}: a cell has at most {MOST_NODES} nodes and {MOST_EDGES} edges")
    for i, node in enumerate(cell.nodes):
        for j, edge in enumerate(node):
            where = f"{title}[{i}][{j}]"
            if edge.operation not in operations:
                raise GenotypeError(f"{where}[0]: " + unknown_name("operation", edge.operation, list(operations)))
            if edge.operation == "none":
                raise GenotypeError(f"{where}[0]: 'none' cannot be chosen")
            if not 0 <= edge.state < NUM_INPUTS + i:
                takes = f"node {i} takes states 0 to {NUM_INPUTS + i - 1}"
                raise GenotypeError(f"{where}[1]: {takes}, found {shown(edge.state)}")
            if edge.state >= NUM_INPUTS and not cell.nodes[edge.state - NUM_INPUTS]:
                raise GenotypeError(f"{where}[1]: node {edge.state - NUM_INPUTS} has no edges, so nothing can read it")
    if not cell.concat:
        raise GenotypeError(f"{title}_concat: a cell concatenates at least one state")
    for i, state in enumerate(cell.concat):
        where = f"{title}_concat[{i}]"
        if not NUM_INPUTS <= state < cell.num_states:
            can_be = f"states {NUM_INPUTS} to {cell.num_states - 1} can be concatenated"
            raise GenotypeError(f"{where}: {can_be}, found {shown(state)}")
        if not cell.nodes[state - NUM_INPUTS]:
            raise GenotypeError(f"{where}: node {state - NUM_INPUTS} has no edges, so it cannot be concatenated")
        if state in cell.concat[:i]:
            raise GenotypeError(f"{where}: state {state} is repeated")


def _check_provenance(where: str, value: Any) -> None:
    """Refuse values that JSON cannot hold, and any `published` or `measured` that is not a mapping."""
    if where in {"provenance.published", "provenance.measured"} and not isinstance(value, dict | None):
        raise GenotypeError(f"{where}: expected a mapping, found {shown(value)}")
    match value:
        case dict():
            for key, inner in value.items():
                if not isinstance(key, str):
                    raise GenotypeError(f"{where}: expected a text as the key, found {shown(key)}")
                _check_provenance(f"{where}.{key}" if key.isidentifier() else where, inner)
        case list():
            for i, inner in enumerate(value):
                _check_provenance(f"{where}[{i}]", inner)
        case None | bool() | float() | str():
            pass
        case int() if value.bit_length() < 1000:
            pass
        case _:
            raise GenotypeError(f"{where}: expected texts, numbers, lists and mappings, found {shown(value)}")


def _cell_as_lists(cell: Cell) -> list[list[list[str | int]]]:
    return [[[edge.operation, edge.state] for edge in node] for node in cell.nodes]


def _cell_from_lists(title: str, nodes: Any, concat: Any) -> Cell:
    if not isinstance(nodes, list):
        raise GenotypeError(f"{title}: expected a list of nodes, found {shown(nodes)}")
    built = []
    for i, node in enumerate(nodes):
        if not isinstance(node, list):
            raise GenotypeError(f"{title}[{i}]: expected a list of [operation, state], found {shown(node)}")
        edges = []
        for j, pair in enumerate(node):
            match pair:
                case [str(operation), int(state)] if not isinstance(state, bool):
                    edges.append(Edge(operation, state))
                case _:
                    raise GenotypeError(f"{title}[{i}][{j}]: expected [operation, state], found {shown(pair)}")
        built.append(tuple(edges))
    if not isinstance(concat, list):
        raise GenotypeError(f"{title}_concat: expected a list of states, found {shown(concat)}")
    for i, state in enumerate(concat):
        if type(state) is not int:
            raise GenotypeError(f"{title}_concat[{i}]: expected a state, found {shown(state)}")
    return Cell(tuple(built), tuple(concat))
