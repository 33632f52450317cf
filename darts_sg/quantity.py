"""Quantities as papers write them: 3349342, 2.45M, 600M."""

import math
import re

from darts_sg.errors import UsageError, quoted

SUFFIXES = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9}


def parse_quantity(option_flag: str, text: str) -> int:
    """3349342, 2.45M, 600M, … as a number; UsageError naming the option if it is none."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([kMG]?)", text)
    number = math.inf if found is None else float(found[1]) * SUFFIXES[found[2]]
    if not math.isfinite(number):  # digits may overflow a float
        raise UsageError(f"{option_flag}: expected a number such as 2.45M, found {quoted(text)}")
    return round(number)
