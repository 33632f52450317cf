"""Name -> entry registries: duplicates are refused, unknown names are answered with the choices.

A registry is open to plug-ins unless it says otherwise: it knows which plug-in added an entry, and asks for the
installed plug-ins (darts_sg.plugins) before it lists its names or says that one is unknown.
"""

import difflib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

from darts_sg.errors import LONGEST_VALUE, UsageError, quoted

T = TypeVar("T")

PLUGGED = "darts_sg.plugged_"
"""Module names of plug-in files start with this."""
PLUGIN_HINT = "; a plug-in that has it is loaded with --plugin FILE.py"
"""Ends the message about an unknown name where plug-ins can add names."""


class NameTaken(ValueError):
    """A name was registered twice."""


class Registration:
    """What one plug-in registers while it is loaded: (registry, name) of each entry."""

    def __init__(self, origin: str) -> None:
        self.origin = origin
        self.entries: list[tuple[Registry[Any], str]] = []

    def names(self) -> tuple[str, ...]:
        """The entries in words: `operation mbconv_se_3x3`, …"""
        return tuple(f"{registry.kind} {name}" for registry, name in self.entries)

    @property
    def used(self) -> bool:
        """Whether one of the entries was looked up since."""
        return any(name in registry.used for registry, name in self.entries)


class _Hooks:
    """State that all registries share."""

    def __init__(self) -> None:
        self.discover: Callable[[], None] | None = None
        """Loads the installed plug-ins, once in a process; darts_sg.plugins sets it."""
        self.loading: Registration | None = None
        """Takes down what is registered; None while no plug-in is being loaded."""


HOOKS = _Hooks()


class Registry(Generic[T]):
    """An ordered mapping from names to entries of one kind.

    >>> relaxations = Registry("relaxation")
    >>> relaxations.add("softmax", object())
    """

    def __init__(self, kind: str, *, plugged: bool = True, check: Callable[[T], None] | None = None) -> None:
        """plugged: whether plug-ins may add entries. check: raises if an entry of a plug-in breaks the contract."""
        self.kind = kind
        self.plugged = plugged
        self.check = check
        self.used: set[str] = set()
        """Names that were looked up."""
        self._entries: dict[str, T] = {}
        self._origins: dict[str, str] = {}

    def add(self, name: str, entry: T) -> T:
        """Register `entry` under `name`; NameTaken (a ValueError) if the name is registered already."""
        if name in self._entries:
            raise NameTaken(f"{self.kind} {name!r} is registered already, by {self.origin(name) or 'darts_sg'}")
        self._entries[name] = entry
        if HOOKS.loading is not None and not _package_registers():
            self._origins[name] = HOOKS.loading.origin
            HOOKS.loading.entries.append((self, name))
        return entry

    def remove(self, name: str) -> None:
        """Take an entry out again, such as that of a plug-in which failed to load."""
        del self._entries[name]
        self._origins.pop(name, None)
        self.used.discard(name)

    def origin(self, name: str) -> str:
        """The plug-in that registered `name`; empty for an entry of the package."""
        return self._origins.get(name, "")

    def __getitem__(self, name: str) -> T:
        """The entry called `name`; UsageError with the choices if there is none."""
        if name not in self:
            raise UsageError(unknown_name(self.kind, name, list(self)) + (PLUGIN_HINT if self.plugged else ""))
        self.used.add(name)
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        if name not in self._entries:
            self._discover()
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        self._discover()
        return iter(self._entries)

    def __len__(self) -> int:
        self._discover()
        return len(self._entries)

    def _discover(self) -> None:
        if self.plugged and HOOKS.discover is not None:
            HOOKS.discover()


@contextmanager
def registering(origin: str) -> Iterator[Registration]:
    """Within the context all entries come from the plug-in `origin`; if it raises, they are taken out again."""
    before, found = HOOKS.loading, Registration(origin)
    HOOKS.loading = found
    try:
        yield found
    except BaseException:
        for registry, name in found.entries:
            registry.remove(name)
        raise
    finally:
        HOOKS.loading = before


def _package_registers() -> bool:
    """Whether a module of this package registers its own entries, because a plug-in is the first to import it."""
    frame = sys._getframe(2)  # that of whoever called `add`
    while frame is not None:
        name = str(frame.f_globals.get("__name__"))
        if frame.f_code.co_name == "<module>":
            return name.startswith("darts_sg.") and not name.startswith(PLUGGED)
        if name == "darts_sg.plugins":  # it called a function of the plug-in
            return False
        frame = frame.f_back  # type: ignore[assignment]
    return False


def unknown_name(kind: str, name: object, choices: list[str]) -> str:
    """One line: `kind` has no entry `name`, the closest choice if there is one, and all choices."""
    return f"unknown {kind} {quoted(name)}{suggestion(name, choices)}; choices: {', '.join(choices)}"


def suggestion(name: object, choices: list[str], *, least: float = 0.6) -> str:
    """` (did you mean …?)` with the closest of `choices`; empty if none has a similarity of `least`, from 0 to 1."""
    close = difflib.get_close_matches(str(name)[:LONGEST_VALUE], choices, n=1, cutoff=least)
    return f" (did you mean {close[0]!r}?)" if close else ""
