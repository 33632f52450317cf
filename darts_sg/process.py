"""How long this process has been running, which is what a time budget is measured against."""

import os
import time
from pathlib import Path

IMPORTED = time.monotonic()  # the package imports this module first


def started() -> float:
    """When this process started, on the clock of `time.monotonic`.

    Where the system does not tell (it is not Linux), the time at which the package was imported.
    """
    try:
        # fields of proc(5) from the third on: the second, the name, may hold spaces and brackets
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        since_boot = int(fields[19]) / os.sysconf("SC_CLK_TCK")  # field 22, starttime
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - since_boot
    except (OSError, ValueError, IndexError, AttributeError):
        return IMPORTED
    return min(IMPORTED, time.monotonic() - age)
