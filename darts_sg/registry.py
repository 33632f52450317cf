"""Name -> entry registries: duplicates are refused, unknown names are answered with the choices."""

import difflib
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from darts_sg.errors import LONGEST_VALUE, UsageError, quoted

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., object])


class Registry(Generic[T]):
    """An ordered mapping from names to entries of one kind.

    >>> relaxations = Registry("relaxation")
    >>> relaxations.add("softmax", object())
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, T] = {}

    def add(self, name: str, entry: T) -> T:
        """Register `entry` under `name`; ValueError if the name is taken."""
        if name in self._entries:
            raise ValueError(f"{self.kind} {name!r} is registered already")
        self._entries[name] = entry
        return entry

    def __getitem__(self, name: str) -> T:
        """The entry called `name`; UsageError with the choices if there is none."""
        try:
            return self._entries[name]
        except KeyError:
            raise UsageError(unknown_name(self.kind, name, list(self))) from None

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


def unknown_name(kind: str, name: object, choices: list[str]) -> str:
    """One line: `kind` has no entry `name`, the closest choice if there is one, and all choices."""
    return f"unknown {kind} {quoted(name)}{suggestion(name, choices)}; choices: {', '.join(choices)}"


def suggestion(name: object, choices: list[str]) -> str:
    """` (did you mean …?)` with the closest of `choices`; empty if none is close."""
    close = difflib.get_close_matches(str(name)[:LONGEST_VALUE], choices, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
