"""A typed reader for study files, whose errors name the line and the key of what is wrong."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from darts_sg.errors import UsageError, quoted
from darts_sg.genotype import NAME_PATTERN
from darts_sg.quantity import parse_quantity
from darts_sg.registry import unknown_name
from darts_sg.yaml_files import Place

LARGEST_NUMBER = 2**63


class Source:
    """Where a study was read from: a file with the lines of its keys, or a mapping from Python."""

    def __init__(self, name: str, lines: Mapping[Place, int] | None = None) -> None:
        self.name = name
        self.lines = lines or {}

    def where(self, place: Place) -> str:
        """`FILE, line 12: methods.gdas: `, to begin a message with; the line of the closest key that stands there."""
        line = next((self.lines[place[:n]] for n in range(len(place), 0, -1) if place[:n] in self.lines), None)
        key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).removeprefix(".")
        return f"{self.name}{f', line {line}' if line else ''}: {f'{key}: ' if key else ''}"

    def error(self, place: Place, problem: object) -> UsageError:
        """The error of what stands at `place`."""
        return UsageError(f"{self.where(place)}{problem}")


class Node:
    """A value of the file with its place."""

    def __init__(self, value: Any, source: Source, place: Place = ()) -> None:
        self.value, self.source, self.place = value, source, place

    def wrong(self, problem: object) -> UsageError:
        """The error that something is wrong with this value."""
        return self.source.error(self.place, problem)

    def expected(self, what: str) -> UsageError:
        """The error that this value is not what was expected."""
        return self.wrong(f"expected {what}, found {'nothing' if self.value is None else quoted(self.value)}")

    @property
    def given(self) -> bool:
        """Whether there is a value; a key without one counts as absent."""
        return self.value is not None

    def at(self, key: str) -> "Node":
        """The value under `key`; a missing one is None."""
        return Node(self.value.get(key), self.source, (*self.place, key))

    def mapping(self, required: Sequence[str], optional: Sequence[str] = ()) -> "Node":
        """Check that this is a mapping with these keys and no others."""
        keys = [*required, *optional]
        if not isinstance(self.value, Mapping):
            raise self.expected(f"a mapping with {', '.join(keys)}")
        for key in self.value:
            if key not in keys:
                raise Node(key, self.source, (*self.place, str(key))).wrong(unknown_name("key", key, keys))
        for key in required:
            if self.value.get(key) is None:
                raise self.wrong(f"{key} is missing")
        return self

    def items(self, what: str) -> Iterator[tuple[str, "Node"]]:
        """The entries of a mapping whose keys are free; `what` describes it for messages."""
        if not isinstance(self.value, Mapping) or not all(isinstance(key, str) for key in self.value):
            raise self.expected(what)
        for key in self.value:
            yield key, self.at(key)

    def elements(self, what: str) -> list["Node"]:
        """The elements of a list that is not empty."""
        if not isinstance(self.value, list | tuple) or not self.value:
            raise self.expected(what)
        return [Node(value, self.source, (*self.place, i)) for i, value in enumerate(self.value)]

    def text(self, what: str = "a text") -> str:
        """A text that is not blank."""
        if not isinstance(self.value, str) or not self.value.strip():
            raise self.expected(what)
        return self.value

    def name(self) -> str:
        """A name that can be part of the names of files and genotypes."""
        if not isinstance(self.value, str) or not NAME_PATTERN.fullmatch(self.value):
            raise self.expected("a name (letters, digits and _ . + -)")
        return self.value

    def one_of(self, kind: str, choices: Sequence[str]) -> str:
        """One of `choices`, which are names of that kind."""
        if self.value not in choices:
            raise self.wrong(unknown_name(kind, self.value, list(choices)))
        return str(self.value)

    def boolean(self) -> bool:
        """true or false."""
        if not isinstance(self.value, bool):
            raise self.expected("true or false")
        return self.value

    def number(self) -> float:
        """A finite number of at least 0."""
        value = self.value
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < LARGEST_NUMBER:
            raise self.expected("a number of at least 0")
        return float(value)

    def count(self, least: int = 0) -> int:
        """A whole number of at least `least`."""
        value = self.value
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value < LARGEST_NUMBER:
            raise self.expected(f"a whole number of at least {least}")
        return value

    def quantity(self) -> int:
        """A count above 0: 2450000 or 2.45M."""
        value = self.value
        if isinstance(value, bool) or not isinstance(value, int | str) or not 0 < len(str(value)) < 20:
            raise self.expected("a number such as 2.45M")
        try:
            found = parse_quantity("", str(value))
        except UsageError:
            found = 0
        if not found:
            raise self.expected("a number above 0, such as 2.45M")
        return found

    def seeds(self) -> tuple[int, ...]:
        """A list of seeds without repetition."""
        found = tuple(node.count() for node in self.elements("a list of seeds"))
        if len(set(found)) < len(found):
            raise self.wrong("a seed stands twice")
        return found
