"""The errors a user sees as one clear line, without a traceback."""

import re
import reprlib
from typing import Any

LONGEST_VALUE = 80  # characters of a value in a message
LONGEST_MESSAGE = 4000  # characters; lists of all choices have up to 2,000
LONGEST_WORD = 300  # characters between spaces, such as those of a path
_ENDLESS = re.compile(rf"\S{{{LONGEST_WORD},}}")

_SHORT = reprlib.Repr()
_SHORT.maxlevel = 3
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = LONGEST_VALUE


class UsageError(ValueError):
    """The request cannot be fulfilled; the message names the problem and the way out (exit code 2).

    It is one line, whatever names of files and values are in it: a message of several lines can pass for others, and
    pasted into a shell its lines are commands.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(one_line(message))


class RunError(RuntimeError):
    """A run that has started cannot go on; the message says what happened and how to continue (exit code 1)."""


class Stopped(RunError):
    """The run has ended early on request, with everything saved."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def first_line(error: BaseException, otherwise: str = "") -> str:
    """The first non-blank line of another library's error message; without one, `otherwise` or the error's class."""
    lines = (line.strip() for line in str(error).splitlines())
    return next(filter(None, lines), otherwise or type(error).__name__)


def one_line(text: str, longest: int = LONGEST_MESSAGE) -> str:
    """A text with its line breaks and control characters replaced, its endless words and itself cut."""
    if not text.isprintable():
        text = "".join(c if c.isprintable() else " " if c.isspace() else "?" for c in text)
    text = _ENDLESS.sub(lambda found: f"{found[0][: LONGEST_WORD // 2]}…{found[0][-LONGEST_WORD // 3 :]}", text)
    return text if len(text) <= longest else text[: longest - 1] + "…"


def cut(text: str) -> str:
    """A text on one line, cut to 80 characters."""
    return one_line(" ".join(text[: 10 * LONGEST_VALUE].split()), LONGEST_VALUE)


def quoted(value: Any) -> str:
    """A user's value for a message: its repr on one line, cut to 80 characters."""
    try:
        text = " ".join(_SHORT.repr(value).split())
    except ValueError:  # Python does not print integers of more than 4,300 digits
        text = "a number of thousands of digits"
    return text if len(text) <= LONGEST_VALUE else text[: LONGEST_VALUE - 1] + "…"
