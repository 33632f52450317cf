"""How help texts look: a short usage line, options in groups, lines that fit a terminal of 80 columns.

`--help` shows the options that people use most, `--help-all` all of them. A parser knows the others as `rare`.
"""

import argparse
import shutil
import textwrap
from collections.abc import Callable
from typing import Any

WIDEST = 100  # columns; longer lines are hard to read
HELP_ALL = "--help-all"


class Formatter(argparse.HelpFormatter):
    """Keeps the line breaks of help texts, and says no more of an option than its name and the kind of its value."""

    def __init__(self, prog: str, **settings: Any) -> None:
        settings.setdefault("width", min(shutil.get_terminal_size().columns, WIDEST) - 2)
        super().__init__(prog, **settings)

    def _split_lines(self, text: str, width: int) -> list[str]:
        lines: list[str] = []
        for line in text.splitlines():
            inner = line[: len(line) - len(line.lstrip())]
            lines += textwrap.wrap(
                " ".join(line.split()), width, initial_indent=inner, subsequent_indent=f"{inner}  " if inner else ""
            )
        return lines

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n".join(f"{indent}{line}" for line in self._split_lines(text, width - len(indent)))

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if action.option_strings and action.nargs == "?":  # a switch, whose value is hardly ever given
            return ", ".join(action.option_strings)
        if action.option_strings and action.nargs != 0:  # `-o, --output FILE`, not `-o FILE, --output FILE`
            value = self._format_args(action, self._get_default_metavar_for_optional(action))
            return f"{', '.join(action.option_strings)} {value}"
        return super()._format_action_invocation(action)

    def _get_default_metavar_for_optional(self, action: argparse.Action) -> str:
        word = action.dest.rsplit("_", 1)[-1].upper()
        return str(
            getattr(action.type, "placeholder", {"OUTPUT": "FILE", "RESULTS": "DIR", "DATA": "DIR"}.get(word, word))
        )


class ShowAll(argparse.Action):
    """--help-all: print the help with every option, and exit."""

    def __init__(self, option_strings: list[str], dest: str, **settings: Any) -> None:
        super().__init__(option_strings, dest, nargs=0, default=argparse.SUPPRESS, **settings)

    def __call__(self, parser: argparse.ArgumentParser, *ignored: Any) -> None:
        print(parser.format_help(everything=True), end="")  # type: ignore[call-arg]
        parser.exit()


def usage(prog: str, actions: list[argparse.Action]) -> str:
    """`PROG [OPTION …] --needed NAME ARGUMENT`: options that may be left out are not listed a second time."""
    words = [prog]
    options = [action for action in actions if action.option_strings]
    if any(not action.required for action in options):
        words.append("[OPTION …]")
    for action in options:
        if action.required:
            value = action.metavar or ("{" + ",".join(map(str, action.choices)) + "}" if action.choices else "")
            words.append(f"{action.option_strings[-1]} {value or action.dest.upper()}")
    for action in actions:
        if not action.option_strings:
            name = str(action.metavar or action.dest.upper())
            many: dict[Any, str] = {"+": f"{name} […]", "*": f"[{name} …]", argparse.PARSER: f"{name} …"}
            words.append(many.get(action.nargs, name))
    return " ".join(words)


def placeholder(text: str) -> Callable[[Any], Any]:
    """Decorates the `type` of an argument: the word that stands for its value in help texts."""

    def mark(read: Any) -> Any:
        read.placeholder = text
        return read

    return mark
