"""Typed options: one reader for values from a command line, a YAML file, Python keywords or a resumed run.

The type hint of a dataclass field says what is expected: str, int, float, bool, Path, a Literal, or a union of them
with None. Text is parsed (`--epochs 3`, `1e-3`, which YAML leaves a text), plain values are checked and converted.
What does not fit raises UsageError naming source, option, expected type and value.
"""

import functools
import math
import os
import re
import types
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from darts_sg.errors import UsageError, quoted
from darts_sg.registry import suggestion, unknown_name

NULLS = {"~", "null", "Null", "NULL"}  # how a command line says None
BOOLEANS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
INFINITY = {".inf", "inf", "infinity"}
LARGEST = 2**63 - 1


class _Mismatch(Exception):
    """The value is not of the type that a reader reads."""


def flag(name: str) -> str:
    """The command-line option that sets the field `name`."""
    return "--" + name.replace("_", "-")


@functools.cache
def type_hints(cls: type) -> Mapping[str, Any]:
    """The resolved type hint of each field of a dataclass."""
    return types.MappingProxyType(get_type_hints(cls))


def members(hint: Any) -> tuple[Any, ...]:
    """The alternatives of a union; a type alone is its own only one."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def type_name(hint: Any) -> str:
    """A type hint in the words of a help text: `whole number`. That a value may be null goes without saying."""
    words = {str: "text", int: "whole number", float: "number", bool: "true or false", Path: "path"}
    kinds = [member for member in members(hint) if member is not type(None)]
    return " or ".join("one of the above" if get_origin(kind) is Literal else words[kind] for kind in kinds)


def expected(hint: Any, *, infinite: bool = False) -> str:
    """A type hint in the words of a message: `a whole number or null`."""
    words = {str: "a text", int: "a whole number", bool: "true or false", Path: "a path", type(None): "null"}
    words[float] = "a number or .inf" if infinite else "a finite number"

    def of(member: Any) -> str:
        if get_origin(member) is Literal:
            return f"one of {', '.join(map(str, get_args(member)))}"
        return words[member]

    return " or ".join(of(member) for member in members(hint))


def read_value(hint: Any, value: Any, *, command_line: bool = False, infinite: bool = False) -> Any:
    """`value` as the type that `hint` says; a text is parsed.

    `command_line`: None is spelled null or ~. `infinite`: a float may be infinite (nan never fits). Raises UsageError
    with the expected type and the value, and without a source, which the caller knows.
    """
    alternatives = members(hint)
    if type(None) in alternatives and (value is None or (command_line and value in NULLS)):
        return None
    # `int | str` reads "36" as a number: whatever parses comes before plain text
    for member in sorted(alternatives, key=lambda member: member is str):
        try:
            return _reader(member, infinite)(value)
        except _Mismatch:
            continue
    raise UsageError(f"expected {expected(hint, infinite=infinite)}, found {quoted(value)}{_hint(hint, value)}")


def read_option(cls: type, name: str, value: Any, *, command_line: bool = False) -> Any:
    """`value` as the field `name` of the dataclass `cls` holds it; UsageError as in `read_value`."""
    infinite = bool(cls.__dataclass_fields__[name].metadata.get("infinite"))  # type: ignore[attr-defined]
    return read_value(type_hints(cls)[name], value, command_line=command_line, infinite=infinite)


def read_options(cls: type, given: Any, source: str) -> dict[str, Any]:
    """A mapping of options as typed values by field name; dashes in names count as underscores.

    Raises UsageError naming `source` and the option that is unknown or has a value that does not fit.
    """
    if not isinstance(given, Mapping):
        raise UsageError(f"{source}: expected a mapping of options, found {quoted(given)}")
    names = [f.name for f in fields(cls)]
    found = {}
    for key, value in given.items():
        name = str(key).replace("-", "_")
        if name not in names:
            raise UsageError(f"{source}: " + unknown_name("option", key, [n.replace("_", "-") for n in names]))
        try:
            found[name] = read_option(cls, name, value)
        except UsageError as error:
            raise UsageError(f"{source}: {key}: {error}") from None
    return found


def _hint(hint: Any, value: Any) -> str:
    """The way out of a mismatch, where there is an obvious one."""
    choices = [str(choice) for member in members(hint) if get_origin(member) is Literal for choice in get_args(member)]
    if choices:
        return suggestion(value, choices)
    scalar = value is not None and not isinstance(value, str | list | tuple | dict | set)
    return "; put it in quotes" if str in members(hint) and scalar else ""


def _reader(member: Any, infinite: bool) -> Callable[[Any], Any]:
    if get_origin(member) is Literal:
        return functools.partial(_read_choice, get_args(member))
    if member is float:
        return functools.partial(_read_number, infinite)
    return _READERS[member]


def _read_choice(choices: tuple[Any, ...], value: Any) -> Any:
    for choice in choices:
        if type(value) is type(choice) and value == choice:
            return choice
    raise _Mismatch


def _read_text(value: Any) -> str:
    text = os.fspath(value) if isinstance(value, os.PathLike) else value  # a genotype may be named by its path
    if not isinstance(text, str):
        raise _Mismatch
    return text


def _read_whole(value: Any) -> int:
    if isinstance(value, str):
        text = value.strip()
        try:
            number = int(text, 16) if re.fullmatch(r"[+-]?0[xX][0-9a-fA-F_]+", text) else int(text)
        except ValueError:
            raise _Mismatch from None
    elif isinstance(value, bool) or not hasattr(value, "__index__"):
        raise _Mismatch
    else:
        try:
            number = int(value.__index__())
        except (TypeError, ValueError, RuntimeError):  # an array of several
            raise _Mismatch from None
    if abs(number) > LARGEST:
        raise UsageError(f"must be at most {LARGEST}, found {quoted(value)}")
    return number


def _read_number(infinite: bool, value: Any) -> float:
    if isinstance(value, str) and value.strip().lower().lstrip("+-") in INFINITY:
        number = -math.inf if value.strip().startswith("-") else math.inf
        named = True
    elif isinstance(value, bool) or (not isinstance(value, str | float) and not hasattr(value, "__float__")):
        raise _Mismatch
    else:
        try:
            number = float(value)
        except (ValueError, OverflowError, TypeError, RuntimeError):
            raise _Mismatch from None
        named = not isinstance(value, str)  # digits that overflow do not mean infinity
    if not math.isfinite(number) and not (infinite and named and number > 0):
        raise _Mismatch
    return number


def _read_boolean(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.strip().lower() in BOOLEANS:
        return BOOLEANS[value.strip().lower()]
    raise _Mismatch


def _read_path(value: Any) -> Path:
    path = os.fspath(value) if isinstance(value, str | os.PathLike) else None
    if not isinstance(path, str) or "\0" in path:
        raise _Mismatch
    return Path(path)


_READERS: dict[Any, Callable[[Any], Any]] = {
    str: _read_text,
    int: _read_whole,
    bool: _read_boolean,
    Path: _read_path,
    type(None): lambda value: _read_choice((None,), value),
}
