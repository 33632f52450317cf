"""The genotype: which operations a cell chose and how its nodes are wired. This module needs no torch.

States of a cell are numbered as in the DARTS paper (section 2.1): 0 is the output of the cell before the
previous one, c_{k-2}; 1 that of the previous cell, c_{k-1}; 2 and up are the nodes, in order.
"""

import ast
import re
import reprlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

from darts_sg.errors import UsageError
from darts_sg.files import write_atomically
from darts_sg.registry import unknown_name

SCHEMA = 1
NUM_INPUTS = 2  # states 0 and 1
NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*")


class GenotypeError(UsageError):
    """A genotype that is not one: the message says in which file, line and field."""


@dataclass(frozen=True)
class Edge:
    """One incoming edge of a node: `operation` applied to `state`."""

    operation: str
    state: int


@dataclass(frozen=True)
class Cell:
    """A cell: the incoming edges of each node, and the states joined (concatenated) at its output."""

    nodes: tuple[tuple[Edge, ...], ...]
    concat: tuple[int, ...]

    @property
    def num_nodes(self) -> int:
        return len(self.nodes)

    @property
    def num_states(self) -> int:
        return NUM_INPUTS + len(self.nodes)

    def edges(self) -> Iterator[tuple[int, Edge]]:
        """(state number of the node, edge) for every edge, nodes in order."""
        for i, node in enumerate(self.nodes):
            for edge in node:
                yield NUM_INPUTS + i, edge


@dataclass(frozen=True)
class Genotype:
    """A normal and a reduction cell, the space they were chosen from, and where they come from."""

    name: str
    space: str
    operations: tuple[str, ...]
    """The candidate operations of the space, in order: the set itself, not only its name."""
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
        """How often `operation` stands in the (normal, reduction) cell."""
        normal, reduce = (sum(e.operation == operation for _, e in c.edges()) for _, c in self.cells())
        return normal, reduce

    def as_dict(self) -> dict[str, Any]:
        """The plain form that the YAML file holds."""
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

    def to_yaml(self) -> str:
        """The text of the genotype file."""
        plain = self.as_dict()
        lines = [f"schema: {SCHEMA}"]
        for key in ("name", "space", "operations"):
            lines.append(_flow(key, plain[key]))
        for title in ("normal", "reduce"):
            lines.append(f"{title}:")
            lines += ["- " + _flow_value(node) for node in plain[title]]
            lines.append(_flow(f"{title}_concat", plain[f"{title}_concat"]))
        text = yaml.safe_dump({"provenance": plain["provenance"]}, sort_keys=False, allow_unicode=True, width=110)
        return "\n".join(lines) + "\n" + text

    def to_classic(self) -> str:
        """The one-line text of the original DARTS code."""
        parts = []
        for title, cell in self.cells():
            pairs = [(edge.operation, edge.state) for _, edge in cell.edges()]
            parts.append(f"{title}={pairs!r}, {title}_concat={list(cell.concat)!r}")
        return f"Genotype({', '.join(parts)})"

    def save(self, path: Path) -> None:
        """Write the genotype file, atomically: `path` holds either the old or the new text, never a part."""
        write_atomically(path, self.to_yaml())


def load_genotype(name_or_path: str | Path, zoo: Path | None = None, known: Collection[str] | None = None) -> Genotype:
    """Read a genotype by its name in the zoo or from a file (YAML, or the classic one-line text).

    `zoo` is the folder that names are looked up in, `known` the operations that exist; a genotype using any
    other is refused. Raises GenotypeError naming file, line and field. Nothing in the file is executed.
    """
    folder = zoo or zoo_folder()
    path = Path(name_or_path)
    if not path.is_file():
        in_zoo = folder / f"{path.name}.yaml"
        looks_like_path = len(path.parts) > 1 or path.suffix in {".yaml", ".yml", ".txt"}
        if looks_like_path:
            what = "is a folder" if path.is_dir() else "does not exist"
            hint = "; did you mean its genotype.yaml?" if (path / "genotype.yaml").is_file() else ""
            raise GenotypeError(f"genotype file {path} {what}{hint}")
        if not in_zoo.is_file():
            raise GenotypeError(
                unknown_name("genotype", str(name_or_path), zoo_names(folder)) + ", or the path of a file"
            )
        path = in_zoo
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise GenotypeError(f"{path}: not a text file") from None
    try:
        if CLASSIC_START.match(text):
            return parse_classic(text, name=path.stem, known=known)
        return parse_yaml(text, known=known)
    except GenotypeError as error:
        raise GenotypeError(f"{path}: {error}") from None


def zoo_folder() -> Path:
    """The folder of the genotype zoo: inside an installed package, or at the top of a checkout."""
    packaged = Path(__file__).parent / "genotypes"
    return packaged if packaged.is_dir() else Path(__file__).parent.parent / "genotypes"


def zoo_names(folder: Path | None = None) -> list[str]:
    """The names of the genotypes in the zoo, sorted."""
    return sorted((path.stem for path in (folder or zoo_folder()).glob("*.yaml")), key=str.lower)


def parse_yaml(text: str, known: Collection[str] | None = None) -> Genotype:
    """Build a genotype from the text of a YAML file; GenotypeError says line and field."""
    try:
        tree = yaml.compose(text, Loader=yaml.SafeLoader)
        plain = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, RecursionError) as error:  # all are raised by it
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}: " if mark else ""
        reason = getattr(error, "problem", None) or (str(error).splitlines() or [type(error).__name__])[0]
        raise GenotypeError(f"{where}not YAML: {reason}") from None
    try:
        return from_dict(plain, known=known)
    except GenotypeError as error:
        line = _line_of(tree, str(error).partition(":")[0])
        raise GenotypeError(f"line {line}: {error}" if line else str(error)) from None


def from_dict(plain: Any, known: Collection[str] | None = None) -> Genotype:
    """Build a genotype from its plain form (see Genotype.as_dict); GenotypeError starts with the field."""
    if not isinstance(plain, dict):
        raise GenotypeError("file: a genotype is a mapping with schema, name, space, normal, reduce, …")
    fields = ("schema", "name", "space", "operations", "normal", "normal_concat", "reduce", "reduce_concat")
    for key in plain:
        if key not in (*fields, "provenance"):
            where = key if isinstance(key, str) and key.isidentifier() else "file"
            raise GenotypeError(f"{where}: " + unknown_name("field", key, [*fields, "provenance"]))
    for key in fields:
        if key not in plain:
            raise GenotypeError(f"{key}: missing")
    if type(plain["schema"]) is not int or plain["schema"] != SCHEMA:
        raise GenotypeError(f"schema: {_shown(plain['schema'])} is not known to this version, which reads {SCHEMA}")
    for key in ("name", "space"):
        if not isinstance(plain[key], str):
            raise GenotypeError(f"{key}: expected a text, found {_shown(plain[key])}")
    operations = plain["operations"]
    if not isinstance(operations, list) or not all(isinstance(op, str) for op in operations):
        raise GenotypeError(f"operations: expected a list of names, found {_shown(operations)}")
    if known is not None:
        for i, op in enumerate(operations):
            if op not in known:
                raise GenotypeError(f"operations[{i}]: " + unknown_name("operation", op, list(known)))
    provenance = plain.get("provenance") or {}
    if not isinstance(provenance, dict):
        raise GenotypeError(f"provenance: expected a mapping, found {_shown(provenance)}")
    return Genotype(
        name=plain["name"],
        space=plain["space"],
        operations=tuple(operations),
        normal=_cell_from_lists("normal", plain["normal"], plain["normal_concat"]),
        reduce=_cell_from_lists("reduce", plain["reduce"], plain["reduce_concat"]),
        provenance=MappingProxyType(provenance),
    )


CLASSIC_START = re.compile(r"\s*(?:(?P<name>\w+)\s*=\s*)?Genotype\s*\(")


def parse_classic(text: str, name: str | None = None, known: Collection[str] | None = None) -> Genotype:
    """Build a genotype from the classic text `[NAME =] Genotype(normal=[…], normal_concat=…, …)`.

    The text is parsed, never evaluated. Its operations, in order of first use after `none`, become the space.
    Raises GenotypeError.
    """
    start = CLASSIC_START.match(text)
    if start is None:
        raise GenotypeError("file: expected Genotype(normal=[…], normal_concat=[…], reduce=[…], reduce_concat=[…])")
    try:
        statement = ast.parse(text.strip()).body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        where = f"line {error.lineno}: " if isinstance(error, SyntaxError) else ""
        raise GenotypeError(f"{where}not a Genotype(…) text: {error}") from None
    call = getattr(statement[0], "value", None) if len(statement) == 1 else None
    if not isinstance(call, ast.Call) or call.args or not isinstance(call.func, ast.Name):
        raise GenotypeError("file: expected one Genotype(…) with keyword arguments only")
    values = {keyword.arg: _literal(str(keyword.arg), keyword.value) for keyword in call.keywords}
    expected = {"normal", "normal_concat", "reduce", "reduce_concat"}
    for key in sorted(expected ^ values.keys(), key=str):
        raise GenotypeError(f"{key}: " + ("missing" if key in expected else "unknown field"))
    used: dict[str, None] = {"none": None}
    for title in ("normal", "reduce"):
        pairs = values[title]
        if not isinstance(pairs, list | tuple) or len(pairs) % 2:
            raise GenotypeError(f"{title}: expected two (operation, state) pairs a node")
        for pair in pairs:
            if isinstance(pair, list | tuple) and pair and isinstance(pair[0], str):
                used[pair[0]] = None
    plain = {
        "schema": SCHEMA,
        "name": start["name"] or name or "imported",
        "space": "+".join(op for op in used if op != "none"),
        "operations": list(used),
        "provenance": {"kind": "imported", "source": "classic text"},
    }
    for title in ("normal", "reduce"):
        pairs = list(values[title])
        plain[title] = [pairs[i : i + 2] for i in range(0, len(pairs), 2)]
        concat = values[f"{title}_concat"]
        plain[f"{title}_concat"] = list(concat) if isinstance(concat, tuple) else concat
    return from_dict(plain, known=known)


def state_name(state: int) -> str:
    """A state as the papers call it: c_{k-2}, c_{k-1}, node 0, …"""
    return ("c_{k-2}", "c_{k-1}")[state] if state < NUM_INPUTS else f"node {state - NUM_INPUTS}"


def renamed(genotype: Genotype, name: str) -> Genotype:
    """The same genotype under another name."""
    return replace(genotype, name=name)


def _literal(title: str, node: ast.expr) -> Any:
    """A literal, or range(a[, b]) of two small integers, as the original code writes concat."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "range":
        bounds = [_literal(title, arg) for arg in node.args]
        if all(isinstance(b, int) and abs(b) < 1000 for b in bounds) and 1 <= len(bounds) <= 2:
            return list(range(*bounds))
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        raise GenotypeError(f"{title}: expected lists of literals, found {ast.unparse(node)[:60]}") from None


def _check_cell(title: str, cell: Cell, operations: tuple[str, ...]) -> None:
    if not cell.nodes:
        raise GenotypeError(f"{title}: a cell has at least one node")
    for i, node in enumerate(cell.nodes):
        if not node:
            raise GenotypeError(f"{title}[{i}]: a node has at least one edge")
        for j, edge in enumerate(node):
            where = f"{title}[{i}][{j}]"
            if edge.operation not in operations:
                raise GenotypeError(f"{where}: " + unknown_name("operation", edge.operation, list(operations)))
            if edge.operation == "none":
                raise GenotypeError(f"{where}: 'none' cannot be chosen")
            if not 0 <= edge.state < NUM_INPUTS + i:
                takes = f"node {i} takes states 0 to {NUM_INPUTS + i - 1}"
                raise GenotypeError(f"{where}: {takes}, found {_shown(edge.state)}")
    if not cell.concat or len(set(cell.concat)) != len(cell.concat):
        raise GenotypeError(f"{title}_concat: expected different states, found {_shown(list(cell.concat))}")
    for state in cell.concat:
        if not NUM_INPUTS <= state < cell.num_states:
            raise GenotypeError(
                f"{title}_concat: states {NUM_INPUTS} to {cell.num_states - 1} can be joined, found {_shown(state)}"
            )


def _cell_as_lists(cell: Cell) -> list[list[list[str | int]]]:
    return [[[edge.operation, edge.state] for edge in node] for node in cell.nodes]


def _cell_from_lists(title: str, nodes: Any, concat: Any) -> Cell:
    if not isinstance(nodes, list):
        raise GenotypeError(f"{title}: expected a list of nodes, found {_shown(nodes)}")
    built = []
    for i, node in enumerate(nodes):
        if not isinstance(node, list):
            raise GenotypeError(f"{title}[{i}]: expected a list of [operation, state], found {_shown(node)}")
        edges = []
        for j, pair in enumerate(node):
            match pair:
                case [str(operation), int(state)] if not isinstance(state, bool):
                    edges.append(Edge(operation, state))
                case _:
                    raise GenotypeError(f"{title}[{i}][{j}]: expected [operation, state], found {_shown(pair)}")
        built.append(tuple(edges))
    if not isinstance(concat, list) or not all(isinstance(s, int) and not isinstance(s, bool) for s in concat):
        raise GenotypeError(f"{title}_concat: expected a list of states, found {_shown(concat)}")
    return Cell(tuple(built), tuple(concat))


_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxlist, _SHORT.maxdict, _SHORT.maxstring = 3, 3, 3, 60


def _shown(value: Any) -> str:
    """A value in one short line, however large or nested it is."""
    try:
        return _SHORT.repr(value)
    except ValueError:  # an integer too long to be printed
        return "a number of thousands of digits"


def _flow_value(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=10**6).strip().removesuffix("...").strip()


def _flow(key: str, value: Any) -> str:
    return f"{key}: {_flow_value(value)}"


def _line_of(tree: yaml.Node | None, path: str) -> int | None:
    """The line (from 1) of a field such as `normal[2][0]` in a composed YAML tree."""
    node: yaml.Node | None = tree
    line = None
    for step in re.findall(r"[^\[\].]+", path):
        if isinstance(node, yaml.MappingNode):
            found = [(k, v) for k, v in node.value if getattr(k, "value", None) == step]
            if not found:
                break
            line, node = found[0][0].start_mark.line + 1, found[0][1]
        elif isinstance(node, yaml.SequenceNode) and step.isdigit() and int(step) < len(node.value):
            node = node.value[int(step)]
            line = node.start_mark.line + 1
        else:
            break
    return line
