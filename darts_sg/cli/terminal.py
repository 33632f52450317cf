"""What all commands share: output, one line for an error, exit codes. Needs no torch."""

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Console

from darts_sg import plugins
from darts_sg.engine.output import discard, open_missing_streams
from darts_sg.errors import RunError, Stopped, UsageError
from darts_sg.files import write_atomically


def refuse_existing(output: Path) -> None:
    """UsageError if `output` exists: no command overwrites a file."""
    if output.exists():
        raise UsageError(f"{output} exists; choose another --output")


def deliver(text: str, output: Path | None) -> None:
    """Print `text`, or write it to a new file and print its name; UsageError if the file exists."""
    if output is None:
        print(text, end="")
        return
    refuse_existing(output)
    write_atomically(output, text)
    print(output)


def machine_fields(device: Any) -> dict[str, Any]:
    """Device and threads, which must stand beside a latency measured on `device`."""
    import torch

    from darts_sg.engine.environment import device_name

    return {"device": f"{device} ({device_name(device)})", "threads": torch.get_num_threads()}


def console() -> Console:
    """A console that wraps at the terminal's width, and not at all when piped."""
    return Console() if sys.stdout.isatty() else Console(width=240)


def answer(command: Callable[[], None], prog: str) -> NoReturn:
    """Run a command and exit: 0 when it is done, 2 with one line for a usage error, 1 with one line for a failure.

    141 if what reads the output ends first, as `| head` does; jobs go on then (see engine/output.py).
    """
    open_missing_streams()
    try:
        speaks, leave, end = _ways_of_torchrun() if "RANK" in os.environ else (lambda: True, lambda: None, sys.exit)
    except UsageError as error:
        print(f"{prog}: {error}", file=sys.stderr)
        sys.exit(2)
    code, problem = 0, ""
    try:
        command()
        sys.stdout.flush()
        leave()
    except Stopped as stopped:
        if speaks():
            with suppress(OSError, ValueError):  # nobody reads it any more
                print(stopped, flush=True)
        code = stopped.exit_code
        leave()
    except UsageError as error:
        code, problem = 2, str(error)
    except RunError as error:
        code, problem = 1, str(error)
    except KeyboardInterrupt:
        code, problem = 130, "interrupted"
    except BrokenPipeError:
        code = 141
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        code, problem = 1, f"{where}{error.strerror or error}"
    except Exception as error:
        code, problem = 1, plugins.blamed(error)
        if not problem:
            raise
    if problem and speaks():
        with suppress(OSError, ValueError):
            print(f"{prog}: {' '.join(problem.splitlines())}", file=sys.stderr)  # a value in it may have several lines
    discard_unread()
    end(code)


def discard_unread() -> None:
    """Flush the standard streams; what cannot be written is discarded, or it would fail again at exit."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            discard(stream)


def _ways_of_torchrun() -> tuple[Callable[[], bool], Callable[[], None], Callable[[int], NoReturn]]:
    """How a rank under torchrun ends: may it print for all, how it leaves the process group, how it exits."""
    from darts_sg.engine.distributed import Ranks, end, leave

    return Ranks.from_environment().speaks, leave, end
