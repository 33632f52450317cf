"""YAML files of options: configs, recipes, studies and the config.yaml of a run folder.

One safe reader for all of them. It executes nothing, bounds size, depth and what aliases expand to, and answers
whatever is wrong with one line. Genotype files have a stricter reader of their own (formats.py), which knows lines.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from darts_sg.errors import UsageError, first_line, quoted
from darts_sg.files import read_bytes, size_text, why

MAX_BYTES = 2**20  # the config.yaml of a run has 4 KiB
MAX_DEPTH = 32  # of lists and mappings in each other; a config.yaml has 4
MAX_NODES = 20_000  # with aliases expanded; a config.yaml has 200


class _Loader(yaml.SafeLoader):
    """Safe YAML with bounded depth."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise ValueError(f"it nests lists and mappings more than {MAX_DEPTH} levels deep")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError, AttributeError, TypeError, OverflowError):
            # malformed scalars: `!!bool foo` is a KeyError of PyYAML's, an integer of 5,000 digits a ValueError
            kind = node.tag.rpartition(":")[2]
            what = quoted(node.value) if isinstance(node, yaml.ScalarNode) else "the value"
            raise yaml.constructor.ConstructorError(None, None, f"{what} is no {kind}", node.start_mark) from None


def read_yaml(path: Path, *, pipe: bool = False) -> Any:
    """The content of a YAML file as plain values. Raises UsageError naming the file, in one line.

    pipe: whether the file may be a pipe, as one that the user names on the command line.
    """
    return parse_yaml(read_yaml_text(path, pipe=pipe), str(path))


def read_yaml_text(path: Path, *, pipe: bool = False) -> str:
    """The text of a YAML file, not parsed yet. Raises UsageError naming the file if it cannot be read or is too large.

    pipe: as in `read_yaml`.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UsageError(f"{path} is larger than {size_text(MAX_BYTES)}, so it is no file of options")
        return read_bytes(path, MAX_BYTES, pipe=pipe).decode("utf-8")
    except OSError as error:
        raise UsageError(f"cannot read {path}: {why(error)}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path} is not YAML: it is not a text file") from None


def parse_yaml(text: str, source: str) -> Any:
    """The content of a YAML text as plain values. Raises UsageError naming `source`, in one line."""
    try:
        loader = _Loader(text)
        tree = loader.get_single_node()
        if tree is None:
            return None
        _expanded_size(tree, {})
        return loader.construct_document(tree)
    except (yaml.YAMLError, ValueError) as error:
        raise UsageError(f"{source} is not YAML: {_problem(error)}") from None


Place = tuple[str | int, ...]
"""Where a value stands in a YAML file: the keys and indices that lead to it."""


def parse_yaml_lines(text: str, source: str) -> tuple[Any, Mapping[Place, int]]:
    """As `parse_yaml`, with the line of each key and list element, counted from 1.

    Raises UsageError, too, if a key stands twice in a mapping: the first value would be lost without a word.
    """
    try:
        loader = _Loader(text)
        tree = loader.get_single_node()
        if tree is None:
            return None, {}
        _expanded_size(tree, {})
        lines = dict(_lines(tree, ()))
        return loader.construct_document(tree), lines
    except (yaml.YAMLError, ValueError) as error:
        raise UsageError(f"{source} is not YAML: {_problem(error)}") from None


def _lines(node: yaml.Node, place: Place) -> Iterator[tuple[Place, int]]:
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key.value!r} stands twice", key.start_mark)
            if isinstance(key, yaml.ScalarNode):
                seen.add(key.value)
            yield (*place, str(key.value)), key.start_mark.line + 1
            yield from _lines(value, (*place, str(key.value)))
    elif isinstance(node, yaml.SequenceNode):
        for i, value in enumerate(node.value):
            yield (*place, i), value.start_mark.line + 1
            yield from _lines(value, (*place, i))


def read_mapping(path: Path, *, pipe: bool = False) -> dict[Any, Any]:
    """The content of a YAML file that holds a mapping of options; UsageError if it holds anything else."""
    content = read_yaml(path, pipe=pipe)
    if not isinstance(content, dict):
        raise UsageError(f"{path}: expected a mapping of options")
    return content


def _expanded_size(node: yaml.Node, known: dict[int, int | None]) -> int:
    """Nodes below `node`, each alias counted as what it stands for. ValueError if they are too many, or endless."""
    if id(node) in known:
        size = known[id(node)]
        if size is None:
            raise ValueError("an alias (*) contains itself")
        return size
    known[id(node)] = None  # in progress
    inner: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        inner = [part for pair in node.value for part in pair]
    elif isinstance(node, yaml.SequenceNode):
        inner = node.value
    size = 1 + sum(_expanded_size(part, known) for part in inner)
    if size > MAX_NODES:
        raise ValueError(f"it has more than {MAX_NODES:,} values, aliases (*) expanded")
    known[id(node)] = size
    return size


def _problem(error: Exception) -> str:
    """What is wrong, with the line where PyYAML knows it."""
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    text = " ".join(str(problem).split()) if problem else first_line(error)
    return text[:200] + (f", line {mark.line + 1}" if mark else "")
