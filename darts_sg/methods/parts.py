"""Parts of a method, chosen by name with their options in one text: `gumbel:temperature=10,hard=true`.

A part is a class in a registry. Its dataclass fields are its options, and the first line of its docstring is its help.
A new part therefore needs no other file, whether it lies in this package or in a plug-in.
"""

import dataclasses
import importlib
import pkgutil
import re
from typing import Any, TypeVar

from darts_sg.errors import UsageError, cut, quoted
from darts_sg.options import read_value, type_hints
from darts_sg.registry import Registry, unknown_name

P = TypeVar("P")


def import_parts(package: str) -> None:
    """Import every module of a package, so that the parts in them register themselves."""
    for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
        importlib.import_module(f"{package}.{module.name}")


def build_part(registry: Registry[type[P]], text: str, flag: str) -> P:
    """The part that `text` names, `NAME` or `NAME:OPTION=VALUE,OPTION=VALUE`, with its options.

    A value without a name belongs to the first option: `params:0.1`. Raises UsageError in one line, naming `flag` and
    the choices, if there is no such part or option, or if a value is not of the option's type.
    """
    name, _, rest = str(text).partition(":")
    try:
        part = registry[name.strip()]
        return part(**_options(part, rest))
    except ValueError as error:  # UsageError is one; a part checks its options in __post_init__
        raise UsageError(f"{flag} {cut(str(text))}: {error}") from None


def build_parts(registry: Registry[type[P]], text: str, flag: str) -> dict[str, P]:
    """The parts of a text that joins several with +, by name; {} for an empty text. UsageError as in `build_part`."""
    found: dict[str, P] = {}
    for term in re.split(r"\+(?=\s*[^\W\d])", text) if text else []:  # not the + of 1e+3
        name = term.partition(":")[0].strip()
        if name in found:
            raise UsageError(f"{flag} {cut(text)}: {cut(name)} is named twice")
        found[name] = build_part(registry, term, flag)
    return found


def describe_parts(registry: Registry[type[P]]) -> str:
    """The choices of a registry with their options and defaults, for a help text."""
    return "; ".join(_described(name, registry[name]) for name in registry)


def _fields(part: type[Any]) -> "list[dataclasses.Field[Any]]":
    """The options of a part; a class that is no dataclass has none."""
    return [f for f in dataclasses.fields(part) if f.init] if dataclasses.is_dataclass(part) else []


def _described(name: str, part: type[Any]) -> str:
    options = ",".join(_shown(f) for f in _fields(part))
    summary = (part.__doc__ or "").strip().split("\n")[0].rstrip(".")
    return f"{name}{':' if options else ''}{options} ({summary})"


def _shown(option: "dataclasses.Field[Any]") -> str:
    """NAME=DEFAULT; a placeholder in the place of no default, in brackets if the option may be left out."""
    default = option.default
    if default is dataclasses.MISSING:
        return f"{option.name}={option.name.upper()}"
    if default in (None, ""):
        return f"[{option.name}={option.name.upper()}]"
    return f"{option.name}={str(default).lower() if isinstance(default, bool) else default}"


def _options(part: type, text: str) -> dict[str, Any]:
    """The options in `text` by name, each of its field's type."""
    hints, names = type_hints(part), [f.name for f in _fields(part)]
    found: dict[str, Any] = {}
    for item in text.split(",") if text.strip() else []:
        key, equals, value = item.partition("=")
        if not equals:
            key, value = (names or [""])[0], item
        key = key.strip().replace("-", "_")
        if not names:
            raise UsageError(f"it has no options, found {quoted(item.strip())}")
        if key not in names:
            raise UsageError(unknown_name("option", key, names))
        if key in found:
            raise UsageError(f"{key} is given twice")
        try:
            found[key] = read_value(hints[key], value.strip(), command_line=True)
        except UsageError as error:
            raise UsageError(f"{key}: {error}") from None
    missing = [
        f.name
        for f in _fields(part)
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING and f.name not in found
    ]
    if missing:
        raise UsageError(f"{missing[0]} is missing, such as {missing[0]}=VALUE")
    return found
