"""The argument parser of all commands: argparse with our own one-line messages, and the types of arguments."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from darts_sg import plugins
from darts_sg.errors import UsageError, quoted
from darts_sg.options import read_value
from darts_sg.quantity import parse_duration, parse_quantity
from darts_sg.registry import suggestion, unknown_name

LONGEST_MESSAGE = 400  # characters of a message of argparse


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are UsageErrors: one line, and no usage text before it.

    Unknown options, commands and choices are answered with the closest one.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(exit_on_error=False, **settings)
        if self.add_help:  # the jobs have both, --help and --plugin, of their own
            option: dict[str, Any] = {"metavar": "FILE", "action": "append", "default": argparse.SUPPRESS}
            self.add_argument("--plugin", help=plugins.HELP, **option)

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{' '.join(message.split())[:LONGEST_MESSAGE]} (see {self.prog} --help)")

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Parse, and refuse whatever is unknown here, where the options that may be meant are known.

        The parser of a command is called through this method, too, by that of all commands.
        """
        words = list(sys.argv[1:] if args is None else args)
        for word in words:
            name, _, value = word.partition("=")
            if word.startswith("--") and value == "--":  # argparse takes it for the end of the options
                self.error(f"{quoted_name(name)}: expected a value, found '--'")
        try:
            found, unknown = super().parse_known_args(words, namespace)
        except argparse.ArgumentError as error:
            self.error(f"{error.argument_name}: {error.message}" if error.argument_name else error.message)
        if unknown:
            self._refuse(unknown[0])
        return found, unknown

    def _refuse(self, word: str) -> NoReturn:
        name = word.partition("=")[0]
        if not name.startswith("-") or name == "--":
            self.error(f"unexpected argument {quoted(word)}")
        known = [option for action in self._actions for option in action.option_strings]
        self.error(f"unknown option {quoted_name(name)}{suggestion(name, known)}")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Refuse an unknown choice in our own words; argparse's list all choices and repeat the value at any length."""
        if action.choices is None or value in action.choices:
            return
        choices = [str(choice) for choice in action.choices]
        if not action.option_strings:
            kind = str(action.metavar or action.dest).lower()
            self.error(unknown_name(kind, value, choices))
        what = f"expected one of {', '.join(choices)}, found {quoted(value)}{suggestion(value, choices)}"
        raise argparse.ArgumentError(action, what)


def quoted_name(name: str) -> str:
    """The name of an option for a message; quoted and cut if it is no plain word."""
    return name if len(name) < 40 and name.isprintable() else quoted(name)


def argument_type(hint: Any, *, infinite: bool = False) -> Callable[[str], Any]:
    """The `type` of an argument: reads a text as `hint` says, such as float or `int | None`."""

    def read(text: str) -> Any:
        try:
            return read_value(hint, text, command_line=True, infinite=infinite)
        except UsageError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return read


def whole_number(text: str) -> int:
    """A whole number."""
    return int(argument_type(int)(text))


def not_negative(text: str) -> int:
    """A whole number from 0."""
    return _from(0, text, "a whole number from 0")


def positive(text: str) -> int:
    """A whole number above 0."""
    return _from(1, text, "a whole number above 0")


def two_or_more(text: str) -> int:
    """A whole number from 2."""
    return _from(2, text, "2 or more")


def quantity(text: str) -> int:
    """A quantity as papers write it: 3349342, 2.45M, 600M."""
    try:
        return parse_quantity("bound", text)
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error).partition(": ")[2]) from None


def duration(text: str) -> int:
    """A time in microseconds: 12ms, 850us."""
    try:
        return parse_duration("bound", text)
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error).partition(": ")[2]) from None


def picture_kind(output: Path) -> str:
    """svg, png or pdf, from the ending of a picture's name; UsageError for any other."""
    suffix = output.suffix.removeprefix(".")
    if suffix not in {"svg", "png", "pdf"}:
        raise UsageError(f"--output {output}: expected a name that ends in .svg, .png or .pdf")
    return suffix


def _from(least: int, text: str, wanted: str) -> int:
    try:
        number: int = read_value(int, text)
    except UsageError:
        number = least - 1
    if number < least:
        raise argparse.ArgumentTypeError(f"expected {wanted}, found {quoted(text)}")
    return number
