"""Quantities as papers write them: 3349342, 2.45M, 600M; durations: 12ms, 850us."""

import math
import re

from darts_sg.errors import UsageError, quoted

SUFFIXES = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9}
MICROSECONDS = {"us": 1, "µs": 1, "ms": 10**3, "s": 10**6}


def parse_quantity(option_flag: str, text: str) -> int:
    """3349342, 2.45M, 600M, … as a number; UsageError naming the option if it is none."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([kMG]?)", text)
    number = math.inf if found is None else float(found[1]) * SUFFIXES[found[2]]
    if not math.isfinite(number):  # digits may overflow a float
        raise UsageError(f"{option_flag}: expected a number such as 2.45M, found {quoted(text)}")
    return round(number)


def parse_duration(option_flag: str, text: str) -> int:
    """12ms, 850us, 1.5s, … in microseconds; UsageError naming the option if it is none."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?(us|µs|ms|s)", text)
    number = math.inf if found is None else float(found[1]) * MICROSECONDS[found[2]]
    if not math.isfinite(number):
        raise UsageError(f"{option_flag}: expected a time such as 12ms or 850us, found {quoted(text)}")
    return round(number)


def duration_text(microseconds: float) -> str:
    """A duration with its unit: 12.3 ms, 850 µs, 1.5 s."""
    unit = next((name for name in ("s", "ms") if microseconds >= MICROSECONDS[name]), "µs")
    return f"{microseconds / MICROSECONDS[unit]:.4g} {unit}"
