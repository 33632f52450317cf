"""Runs a job of a study in several processes: torchrun, started by the worker as a user starts it by hand."""

import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from functools import partial
from typing import IO

from darts_sg import process

PROGRAM = "darts-sg: "
"""What the line of an error begins with."""
LOOKED = 0.2
"""Seconds between two looks whether the job is to stop."""


def run_ranks(words: Sequence[str], number: int, stop: threading.Event) -> tuple[int, str]:
    """Run `darts-sg WORDS` in `number` processes of this machine; returns torchrun's exit code and the ranks' error.

    stop: has the ranks save and end once it is set. They also do so if this process is killed.
    """
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(number)]
    torchrun = subprocess.Popen(
        [*launcher, "-m", "darts_sg", *words],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        preexec_fn=partial(process.end_with_parent, os.getpid()),
    )
    assert torchrun.stderr is not None
    errors: list[str] = []
    reader = threading.Thread(target=_pass_on, args=(torchrun.stderr, errors), daemon=True)
    reader.start()
    while torchrun.poll() is None and not stop.wait(LOOKED):
        pass
    torchrun.terminate()  # which tells the ranks; nothing happens if it has ended
    code = torchrun.wait()
    reader.join()
    return code, errors[-1] if errors else ""


def _pass_on(lines: IO[str], errors: list[str]) -> None:
    """Print what the ranks print, and keep the lines that say why one of them ended."""
    for line in lines:
        print(line, end="", file=sys.stderr, flush=True)
        if line.startswith(PROGRAM):
            errors.append(line.removeprefix(PROGRAM).strip())
