"""Text formats of genotypes: readers into, and writers from, the plain form. Needs no torch.

The plain form is the mapping that the genotype file holds: `schema`, `name`, `space`, `operations`, `provenance` and,
for each cell, its nodes as lists of [operation, state] (`normal`, `reduce`) and the states concatenated at its output
(`normal_concat`, `reduce_concat`). States 0 and 1 are the inputs of a cell, 2 and up its nodes.

A text is parsed, never executed. Fields of the plain form are named like `normal[2][1][0]`: the operation of the second
edge into the third node. Formats that hold only the cells get defaults from `_imported`: the name defaults to the
file's, the space to the operations used (or those of DARTS), the provenance to the format.
"""

import ast
import json
import keyword
import re
import reprlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import yaml

from darts_sg.errors import UsageError, first_line
from darts_sg.registry import Registry, unknown_name

SCHEMA = 1
NUM_INPUTS = 2  # states 0 and 1
MAX_DEPTH = 32  # nesting levels of lists and mappings; a genotype file has 5
TITLES = ("normal", "reduce")
DARTS_OPERATIONS = (
    "max_pool_3x3",
    "avg_pool_3x3",
    "skip_connect",
    "sep_conv_3x3",
    "sep_conv_5x5",
    "dil_conv_3x3",
    "dil_conv_5x5",
)
"""The operations of the DARTS space without `none`, in the order of the original code, of NNI and of NASLib."""

Plain = dict[str, Any]
Places = dict[str, tuple[int, str]]
"""For each field of the plain form its line, and its name in the text ("" if the same)."""


class GenotypeError(UsageError):
    """An invalid genotype: the message names file, line and field."""


@dataclass(frozen=True)
class Reading:
    """The plain form of a text, and the line of each of its fields."""

    plain: Any
    places: Places

    def place(self, field: str) -> str:
        """The place of a field in the text, `line 7: normal/op_4_1`; without one of its own, that of its container."""
        outer = field
        while outer and outer not in self.places:
            outer = outer[: max(outer.rfind("["), outer.rfind("."), 0)]
        line, name = self.places.get(outer, (0, ""))
        return f"line {line}: {name or field}" if line else field


@dataclass(frozen=True)
class Format:
    """A text format: how to recognise, read and write it.

    `read(text, name)` uses `name` if the text has none. Both directions raise GenotypeError that starts with the field.
    """

    holds: str
    """The content in a few words, for the help."""
    recognise: Callable[[str], bool]
    read: Callable[[str, str], Reading]
    write: Callable[[Plain], str]


FORMATS: Registry[Format] = Registry("format", plugged=False)


def recognised(text: str) -> list[str]:
    """The formats that `text` may have; empty for YAML and for an unknown format."""
    return [name for name in FORMATS if FORMATS[name].recognise(text)]


def name_from(text: str) -> str:
    """Turn the name of a file or of a variable into a valid name of a genotype."""
    return re.sub(r"[^A-Za-z0-9_.+-]+", "_", text).lstrip("_.+-") or "imported"


_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxlist, _SHORT.maxtuple, _SHORT.maxdict, _SHORT.maxstring = 3, 3, 3, 3, 60


def shown(value: Any) -> str:
    """Print a value in one short line, however large or nested it is."""
    try:
        return _SHORT.repr(value)
    except ValueError:  # Python refuses to print an integer of thousands of digits
        return "a number of thousands of digits"


# --- YAML, the genotype file ------------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """Safe YAML without aliases (which make YAML bombs), repeated keys or deep nesting: a genotype needs none of them.

    Raises GenotypeError with the line.
    """

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        self.depth += 1
        if isinstance(event, yaml.AliasEvent) or self.depth > MAX_DEPTH:
            what = "an alias (*)" if isinstance(event, yaml.AliasEvent) else f"more than {MAX_DEPTH} nested levels"
            raise GenotypeError(f"line {event.start_mark.line + 1}: file: a genotype cannot contain {what}")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                field = key.value if key.value.isidentifier() else shown(key.value)
                raise GenotypeError(f"line {key.start_mark.line + 1}: {field}: repeated")
            seen.add(key.value)
        return node


class _Dumper(yaml.SafeDumper):
    """YAML that _Loader reads: without aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_text(self, text: str) -> yaml.ScalarNode:
        # PyYAML writes U+0085 as it is, but reads it as a line break unless it is in double quotes
        return self.represent_scalar("tag:yaml.org,2002:str", text, style='"' if "\x85" in text else None)


_Dumper.add_representer(str, _Dumper.represent_text)


def _read_yaml(text: str, name: str) -> Reading:
    try:
        loader = _Loader(text)
        tree = loader.get_single_node()
        plain = None if tree is None else loader.construct_document(tree)
    except GenotypeError:
        raise
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError) as error:  # PyYAML raises all of these
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}: " if mark else ""
        reason = getattr(error, "problem", None) or first_line(error)
        raise GenotypeError(f"{where}not YAML: {reason}") from None
    places: Places = {}
    _note_yaml(places, "", tree)
    return Reading(plain, places)


def _note_yaml(places: Places, field: str, node: yaml.Node | None) -> None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            inner = f"{field}.{key.value}" if field else str(key.value)
            _note_yaml(places, inner, value)
            places[inner] = key.start_mark.line + 1, ""
    elif isinstance(node, yaml.SequenceNode):
        for i, value in enumerate(node.value):
            places[f"{field}[{i}]"] = value.start_mark.line + 1, ""
            _note_yaml(places, f"{field}[{i}]", value)


def _write_yaml(plain: Plain) -> str:
    """Write one node per line, so that a diff of two files shows the edges that differ."""
    lines = []
    for key, value in plain.items():
        if key in TITLES:
            lines += [f"{key}:", *(f"- {_flow(node)}" for node in value)]
        elif key != "provenance":
            lines.append(f"{key}: {_flow(value)}")
    provenance = {"provenance": plain["provenance"]}
    text = yaml.dump(provenance, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)
    return "\n".join(lines) + "\n" + text


def _flow(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=10**6).strip().removesuffix("...").strip()


FORMATS.add("yaml", Format("the genotype file: everything", lambda text: False, _read_yaml, _write_yaml))


# --- Python and JSON literals -----------------------------------------------------------------------------------------


def _expression(text: str, expected: str) -> tuple[str | None, ast.expr]:
    """Parse `[NAME =] expression` into (NAME or None, expression)."""
    stripped = text.lstrip()
    above = text[: len(text) - len(stripped)].count("\n")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the compiler warns about code that is never run
            tree = ast.increment_lineno(ast.parse(stripped), above)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line = getattr(error, "lineno", None)
        where = f"line {line + above}: " if line else ""
        reason = getattr(error, "msg", None) or first_line(error, "it is too deeply nested")
        raise GenotypeError(f"{where}not {expected}: {reason}") from None
    match tree.body:
        case [ast.Expr(value=value)]:
            return None, value
        case [ast.Assign(targets=[ast.Name(id=name)], value=value)]:
            return name, value
    raise GenotypeError(f"file: expected one {expected}")


def _note(places: Places, field: str, node: ast.expr) -> None:
    places[field] = node.lineno, ""
    if isinstance(node, ast.List | ast.Tuple):
        for i, inner in enumerate(node.elts):
            _note(places, f"{field}[{i}]", inner)


def _elements(field: str, node: ast.expr, expected: str) -> list[ast.expr]:
    if not isinstance(node, ast.List | ast.Tuple):
        raise GenotypeError(f"line {node.lineno}: {field}: expected {expected}")
    return node.elts


def _literal(field: str, node: ast.expr) -> Any:
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        raise GenotypeError(
            f"line {node.lineno}: {field}: expected names, numbers and lists of them; nothing is executed"
        ) from None


def _imported(
    name: str, source: str, cells: Mapping[str, list[Any]], concat: Mapping[str, Any], places: Places, darts: bool
) -> Reading:
    """Complete the plain form of a text that holds only the cells.

    The space becomes the operations that the cells use, in order of first use after `none`; or DARTS, if `darts` is set
    and all of them belong to it.
    """
    used: dict[str, str] = {}
    for title in TITLES:
        for i, node in enumerate(cells[title]):
            for j, pair in enumerate(node):
                if isinstance(pair, list | tuple) and pair and isinstance(pair[0], str):
                    used.setdefault(pair[0], f"{title}[{i}][{j}][0]")
    space = "+".join(op for op in used if op != "none")
    operations = list(dict.fromkeys(["none", *used]))
    if darts and used.keys() <= {*DARTS_OPERATIONS, "none"}:
        space, operations = "darts", ["none", *DARTS_OPERATIONS]
    for i, operation in enumerate(operations):
        first = used.get(operation, "")
        if first in places:
            line, called = places[first]
            places[f"operations[{i}]"] = line, called or first
    plain = {"schema": SCHEMA, "name": name, "space": space, "operations": operations}
    for title in TITLES:
        plain |= {title: cells[title], f"{title}_concat": concat[title]}
    return Reading(plain | {"provenance": {"kind": "imported", "source": source}}, places)


def _checked_nodes(plain: Plain, title: str, num_edges: int | None = None) -> list[list[list[Any]]]:
    """The nodes of a cell; GenotypeError unless all have `num_edges` edges (default: those of the first with any)."""
    wanted = num_edges or next(len(node) for node in plain[title] if node)
    for i, node in enumerate(plain[title]):
        if len(node) != wanted:
            raise GenotypeError(f"{title}[{i}]: in this format each node has {wanted} edges, found {len(node)}")
    return plain[title]


# --- the classic text -------------------------------------------------------------------------------------------------

_CLASSIC = re.compile(r"\s*(?:\w+\s*=\s*)?Genotype\s*\(")
_CLASSIC_FIELDS = ("normal", "normal_concat", "reduce", "reduce_concat")


def _read_classic(text: str, name: str) -> Reading:
    """Read `[NAME =] Genotype(normal=[…], normal_concat=…, reduce=[…], reduce_concat=…)`, two pairs for each node.

    Source: quark0/darts, cnn/genotypes.py; NASLib's Genotype (see below) prints the same.
    """
    expected = "Genotype(normal=[…], normal_concat=[…], reduce=[…], reduce_concat=[…])"
    own, call = _expression(text, expected)
    if not isinstance(call, ast.Call) or call.args or not isinstance(call.func, ast.Name) or call.func.id != "Genotype":
        raise GenotypeError(f"file: expected {expected}, with keyword arguments only")
    values: dict[str, ast.expr] = {}
    for argument in call.keywords:
        field = argument.arg or "**"
        if field not in _CLASSIC_FIELDS or field in values:
            problem = "repeated" if field in values else "unknown field"
            raise GenotypeError(f"line {argument.lineno}: {field}: {problem}")
        values[field] = argument.value
    for field in _CLASSIC_FIELDS:
        if field not in values:
            raise GenotypeError(f"{field}: missing")
    places: Places = {}
    cells: dict[str, list[Any]] = {}
    concat: dict[str, Any] = {}
    for title in TITLES:
        pairs = _elements(title, values[title], "a list of (operation, state) pairs")
        if len(pairs) % 2:
            raise GenotypeError(
                f"line {values[title].lineno}: {title}: expected two (operation, state) pairs for each node"
            )
        for k, pair in enumerate(pairs):
            _note(places, f"{title}[{k // 2}][{k % 2}]", pair)
        read = [_literal(f"{title}[{k // 2}][{k % 2}]", pair) for k, pair in enumerate(pairs)]
        cells[title] = [read[k : k + 2] for k in range(0, len(read), 2)]
        field = f"{title}_concat"
        _note(places, field, values[field])
        places[title] = values[title].lineno, ""
        joined = _literal_or_range(field, values[field])
        concat[title] = list(joined) if isinstance(joined, tuple) else joined
    return _imported(name_from(own or name), "classic text", cells, concat, places, darts=False)


def _literal_or_range(field: str, node: ast.expr) -> Any:
    """Evaluate a literal, or range(a[, b]) of small integers, which the original code uses for concat."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "range":
        bounds = [_literal(field, argument) for argument in node.args]
        if all(isinstance(b, int) and abs(b) < 1000 for b in bounds) and 1 <= len(bounds) <= 2:
            return list(range(*bounds))
    return _literal(field, node)


def _write_classic(plain: Plain) -> str:
    parts = []
    for title in TITLES:
        pairs = [tuple(edge) for node in _checked_nodes(plain, title, 2) for edge in node]
        parts.append(f"{title}={pairs!r}, {title}_concat={plain[f'{title}_concat']!r}")
    variable = re.sub(r"[^A-Za-z0-9_]", "_", plain["name"])
    if variable[0].isdigit() or keyword.iskeyword(variable):
        variable = f"_{variable}"
    return f"{variable} = Genotype({', '.join(parts)})\n"


FORMATS.add(
    "classic",
    Format(
        "the one-line text of the original DARTS code: name and cells, two edges per node",
        lambda text: bool(_CLASSIC.match(text)),
        _read_classic,
        _write_classic,
    ),
)


# --- NNI's dictionary -------------------------------------------------------------------------------------------------

_DICTIONARY = re.compile(r"\s*(?:\w+\s*=\s*)?\{")
_NNI_KEY = re.compile(r"(normal|reduce)/(op|input)_([0-9]{1,3})_([0-9]{1,3})")
_NNI_MODEL = ("width", "depth")  # choices for the whole model, not for a cell


def _is_nni(text: str, node: str) -> bool:
    """Tell whether `text` is a dictionary with a key of a node that matches the pattern `node`."""
    return bool(_DICTIONARY.match(text) and re.search(rf"""["'](?:normal|reduce)/(?:op|input)_{node}_""", text))


def _read_nni(text: str, name: str, loose_ends: bool) -> Reading:
    """Read `{"normal/op_2_0": "sep_conv_3x3", "normal/input_2_0": [0], …}`, in JSON or Python.

    `op_4_1` is the operation of the second edge into node 4, `input_4_1` its input state (newer versions write it as a
    list of one); nodes are numbered from 2. All nodes of a cell have the same number of edges. The dictionary does not
    say which states are concatenated: that is a property of the space, NNI's `merge_op`.
    Source: microsoft/nni, nni/nas/nn/pytorch/cell.py (labels, merge_op) and nni/nas/hub/pytorch/nasnet.py (the spaces
    DARTS and PNAS concatenate all nodes; NASNet, AmoebaNet and ENAS only loose ends; the dictionary of darts-v2).
    """
    expected = 'dictionary {"normal/op_2_0": "sep_conv_3x3", "normal/input_2_0": [0], …}'
    own, node = _expression(text, expected)
    if not isinstance(node, ast.Dict):
        raise GenotypeError(f"file: expected one {expected}")
    found: dict[str, Any] = {}
    lines: dict[str, int] = {}
    for key_node, value in zip(node.keys, node.values, strict=True):
        key = None if key_node is None else _literal("file", key_node)
        line = value.lineno if key_node is None else key_node.lineno
        if not isinstance(key, str) or not (key in _NNI_MODEL or _NNI_KEY.fullmatch(key)):
            raise GenotypeError(f"line {line}: {shown(key)}: expected keys such as normal/op_2_0 and normal/input_2_0")
        if key in found:
            raise GenotypeError(f"line {line}: {key}: repeated")
        found[key], lines[key] = _literal(key, value), line
    places: Places = {}
    cells: dict[str, list[Any]] = {}
    for title in TITLES:
        keys = [match for key in found if (match := _NNI_KEY.fullmatch(key)) and match[1] == title]
        num_nodes = max((int(key[3]) + 1 - NUM_INPUTS for key in keys), default=1)
        num_edges = max((int(key[4]) + 1 for key in keys), default=1)
        cells[title] = []
        for i in range(num_nodes):
            edges = []
            for j in range(num_edges):
                names = [f"{title}/{kind}_{i + NUM_INPUTS}_{j}" for kind in ("op", "input")]
                for k, key in enumerate(names):
                    if key not in found:
                        raise GenotypeError(f"{key}: missing")
                    places[f"{title}[{i}][{j}][{k}]"] = lines[key], key
                operation, state = (found.pop(key) for key in names)
                if isinstance(state, list | tuple) and len(state) == 1:
                    state = state[0]
                if not isinstance(operation, str):
                    raise GenotypeError(f"line {lines[names[0]]}: {names[0]}: expected an operation's name")
                if type(state) is not int:
                    raise GenotypeError(f"line {lines[names[1]]}: {names[1]}: expected a state, or a list of one")
                edges.append([operation, state])
            cells[title].append(edges)
    for key in found:
        if key not in _NNI_MODEL:
            raise GenotypeError(f"line {lines[key]}: {key}: nodes are numbered from {NUM_INPUTS}")
    joined = "loose ends" if loose_ends else "all nodes"
    concat = {title: _joined(cells[title], loose_ends) for title in TITLES}
    source = f"dictionary of NNI, {joined} joined"
    return _imported(name_from(own or name), source, cells, concat, places, darts=not loose_ends)


def _joined(nodes: Sequence[Sequence[Sequence[Any]]], loose_ends: bool) -> list[int]:
    """The states that NNI concatenates: all nodes, or only those that no other node takes (loose ends)."""
    taken = {state for node in nodes for _, state in node} if loose_ends else set()
    return [state for state in range(NUM_INPUTS, NUM_INPUTS + len(nodes)) if state not in taken]


def _write_nni(plain: Plain, loose_ends: bool) -> str:
    lines = []
    for title in TITLES:
        nodes = _checked_nodes(plain, title)
        joined, concat = _joined(nodes, loose_ends), plain[f"{title}_concat"]
        if concat != joined:
            what = "the loose ends" if loose_ends else "all nodes"
            raise GenotypeError(f"{title}_concat: this format concatenates {what}, {joined}, found {concat}")
        for i, node in enumerate(nodes, NUM_INPUTS):
            lines += [f'"{title}/op_{i}_{j}": {json.dumps(edge[0])}' for j, edge in enumerate(node)]
            lines += [f'"{title}/input_{i}_{j}": [{edge[1]}]' for j, edge in enumerate(node)]
    return "{\n  " + ",\n  ".join(lines) + "\n}\n"


FORMATS.add(
    "nni",
    Format(
        "NNI's dictionary for a space that concatenates all nodes (DARTS, PNAS): cells",
        partial(_is_nni, node="[0-9]+"),
        partial(_read_nni, loose_ends=False),
        partial(_write_nni, loose_ends=False),
    ),
)
FORMATS.add(
    "nni-loose-ends",
    Format(
        "the same for a space that concatenates loose ends (NASNet, AmoebaNet, ENAS)",
        partial(_is_nni, node="6"),  # all of these spaces have cells of five nodes
        partial(_read_nni, loose_ends=True),
        partial(_write_nni, loose_ends=True),
    ),
)


# --- NASLib's compact form --------------------------------------------------------------------------------------------

_NASLIB = re.compile(r"\s*(?:\w+\s*=\s*)?[(\[]\s*[(\[]\s*[(\[]\s*\d+\s*,")
_NASLIB_NODES, _NASLIB_EDGES = 4, 2
_NASLIB_CONCAT = list(range(NUM_INPUTS, NUM_INPUTS + _NASLIB_NODES))


def _read_naslib(text: str, name: str) -> Reading:
    """Read `(((0, 3), (1, 3), …), (…))`: normal and reduction cell, each with 8 pairs (state, index of the operation).

    Tuples or lists; four nodes of two edges, all concatenated. Indices count from 0 in DARTS_OPERATIONS.
    Source: automl/NASLib, naslib/search_spaces/nasbench301/conversions.py, "compact". (The older
    naslib/search_spaces/darts/ counts from 0 in one direction and from 1 in the other. NASLib's "genotype" is the
    classic text.)
    """
    expected = "pair of cells, each a list of 8 pairs (state, index of the operation)"
    own, pair = _expression(text, expected)
    both = _elements("file", pair, f"one {expected}")
    if len(both) != len(TITLES):
        raise GenotypeError(f"line {pair.lineno}: file: expected one {expected}, found {len(both)} cells")
    places: Places = {}
    cells: dict[str, list[Any]] = {}
    for c, (title, cell) in enumerate(zip(TITLES, both, strict=True)):
        pairs = _elements(f"[{c}]", cell, "a list of pairs (state, index of the operation)")
        if len(pairs) != _NASLIB_NODES * _NASLIB_EDGES:
            raise GenotypeError(f"line {cell.lineno}: [{c}]: expected 8 pairs, two for each node, found {len(pairs)}")
        cells[title] = [[] for _ in range(_NASLIB_NODES)]
        for k, inner in enumerate(pairs):
            i, j = divmod(k, _NASLIB_EDGES)
            value = _literal(f"[{c}][{k}]", inner)
            match value:
                case [int(state), int(index)] if not isinstance(state, bool) and not isinstance(index, bool):
                    if not 0 <= index < len(DARTS_OPERATIONS):
                        problem = f"expected an index from 0 to {len(DARTS_OPERATIONS) - 1}, found {shown(index)}"
                        raise GenotypeError(f"line {inner.lineno}: [{c}][{k}][1]: {problem}")
                    places[f"{title}[{i}][{j}]"] = inner.lineno, f"[{c}][{k}]"
                    cells[title][i].append([DARTS_OPERATIONS[index], state])
                case _:
                    problem = f"expected (state, index of the operation), found {shown(value)}"
                    raise GenotypeError(f"line {inner.lineno}: [{c}][{k}]: {problem}")
    concat = {title: _NASLIB_CONCAT for title in TITLES}
    return _imported(name_from(own or name), "compact form of NASLib", cells, concat, places, darts=True)


def _write_naslib(plain: Plain) -> str:
    cells = []
    for title in TITLES:
        nodes, concat = _checked_nodes(plain, title, _NASLIB_EDGES), plain[f"{title}_concat"]
        if len(nodes) != _NASLIB_NODES or concat != _NASLIB_CONCAT:
            field, wrong = (title, len(nodes)) if len(nodes) != _NASLIB_NODES else (f"{title}_concat", concat)
            raise GenotypeError(f"{field}: this format has four nodes, all concatenated, found {wrong}")
        pairs = []
        for i, node in enumerate(nodes):
            for j, (operation, state) in enumerate(node):
                if operation not in DARTS_OPERATIONS:
                    problem = unknown_name("operation", operation, list(DARTS_OPERATIONS))
                    raise GenotypeError(f"{title}[{i}][{j}][0]: {problem}")
                pairs.append((state, DARTS_OPERATIONS.index(operation)))
            if node[0][1] == node[1][1]:
                raise GenotypeError(f"{title}[{i}]: this format allows one edge from a state to a node, found two")
        cells.append(tuple(pairs))
    return f"{tuple(cells)!r}\n"


FORMATS.add(
    "naslib",
    Format(
        "NASLib's compact form: cells of the DARTS space, four nodes of two edges, all concatenated",
        lambda text: bool(_NASLIB.match(text)),
        _read_naslib,
        _write_naslib,
    ),
)
