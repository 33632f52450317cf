"""How commands speak and end: one clear line for what went wrong, and an exit code. Needs no torch."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from rich.console import Console

from darts_sg import plugins
from darts_sg.errors import RunError, Stopped, UsageError


def refuse_existing(output: Path) -> None:
    """UsageError if there is something at `output`: no command overwrites a file."""
    if output.exists():
        raise UsageError(f"{output} exists; choose another --output")


def console() -> Console:
    """A console that wraps at the terminal's width, and not at all when piped."""
    return Console() if sys.stdout.isatty() else Console(width=240)


def answer(command: Callable[[], None], prog: str) -> NoReturn:
    """Run a command and exit: 0 when it is done, 2 with one line when it cannot be done as asked, 1 when it failed."""
    speaks, leave, end = _ways_of_torchrun() if "RANK" in os.environ else (lambda: True, lambda: None, sys.exit)
    code, problem = 0, ""
    try:
        command()
        sys.stdout.flush()
        leave()
    except Stopped as stopped:
        if speaks():
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
        sys.stderr.close()
        code = 141
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        code, problem = 1, f"{where}{error.strerror or error}"
    except Exception as error:
        code, problem = 1, plugins.blamed(error)
        if not problem:
            raise
    if problem and speaks():
        print(f"{prog}: {problem}", file=sys.stderr)
    end(code)


def _ways_of_torchrun() -> tuple[Callable[[], bool], Callable[[], None], Callable[[int], NoReturn]]:
    """Whether this rank speaks for all, and how it leaves the others and ends; one process alone has none of that."""
    from darts_sg.engine.distributed import Ranks, end, leave

    return Ranks.from_environment().speaks, leave, end
