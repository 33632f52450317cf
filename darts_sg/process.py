"""How long this process has been running, which a time budget is measured against, and whether its parent still is."""

import atexit
import ctypes
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

IMPORTED = time.monotonic()  # the package imports this module first
PARENT = os.getppid()
PR_SET_PDEATHSIG = 1  # prctl(2)


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


def end(code: int) -> NoReturn:
    """Exit with `code`; exit handlers run, but the interpreter does not take its objects down one by one.

    For PyTorch and matplotlib that takes most of a second, in which the next job could have begun.
    """
    threading._shutdown()  # type: ignore[attr-defined] # as the interpreter: threads that are not daemons end first
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # closed, or its reader is gone
            stream.flush()
    os._exit(code)


def end_with_parent(parent: int = PARENT) -> None:
    """Have this process get SIGTERM when its parent ends, even by SIGKILL. Only Linux can do that.

    parent: its number, by default that of the parent when the package was imported.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM))
    if os.getppid() != parent:  # it ended before the system knew
        signal.raise_signal(signal.SIGTERM)


def parent_is_gone() -> bool:
    """Whether the process that started this one has ended."""
    return os.getppid() != PARENT
