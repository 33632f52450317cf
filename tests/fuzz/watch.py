"""Runs a target on many inputs and watches it: exceptions, time, memory, and whether code in an input is executed."""

import contextlib
import hashlib
import io
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from darts_sg.errors import RunError, UsageError
from darts_sg.files import why
from tests.fuzz.targets import TARGETS, Target

SECONDS = 5.0  # of processor time after which an input hangs
WAITING = 30.0  # seconds after which it hangs without computing anything, on however busy a machine
GROWTH = 500 * 10**6  # bytes of memory that no input may take
LONGEST_MESSAGE = 3000  # characters; a list of all choices has up to 2,000
EVENTS = {"os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "socket.connect", "os.remove", "shutil.rmtree"}
"""What code in a hostile file would do, by Python's audit events."""
HARMLESS = ("git", "/usr/bin/git", "lscpu", "uname", "ldconfig", "/sbin/ldconfig")


class Hang(BaseException):
    """An input takes too long."""


@dataclass
class Tally:
    """What was found."""

    inputs: int = 0
    refused: int = 0
    tracebacks: int = 0
    hangs: int = 0
    growth: int = 0
    executed: int = 0
    crashes: int = 0
    findings: list[str] = field(default_factory=list)


class Watch:
    """Watches this process while it reads an input."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.on = False
        sys.addaudithook(self._heard)

    def _heard(self, event: str, arguments: tuple[object, ...]) -> None:
        if self.on and event in EVENTS and event != "os.remove" and not self._is_harmless(arguments):
            self.events.append(f"{event} {arguments!r}"[:200])

    @staticmethod
    def _is_harmless(arguments: tuple[object, ...]) -> bool:
        return bool(arguments) and str(arguments[0]) in HARMLESS

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        self.events.clear()
        self.on = True
        timers = {signal.ITIMER_REAL: (signal.SIGALRM, WAITING), signal.ITIMER_PROF: (signal.SIGPROF, SECONDS)}
        for timer, (number, seconds) in timers.items():
            signal.signal(number, _too_long)
            signal.setitimer(timer, seconds)
        try:
            yield
        finally:
            for timer in timers:
                signal.setitimer(timer, 0)
            self.on = False


def _too_long(number: int, frame: FrameType | None) -> None:
    raise Hang


def memory() -> int:
    """Bytes of memory that this process has now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def peak_memory() -> int:
    """The most memory that this process had since `forget_peak`, or since its start."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def forget_peak() -> None:
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def check(target: Target, content: bytes, folder: Path, watch: Watch) -> tuple[str, str]:
    """(what is wrong, in words); ("", "") if the input is read, ("refused", message) if it is answered in one line."""
    forget_peak()
    before, start = memory(), time.process_time()
    outcome = "", ""
    here = Path.cwd()
    os.chdir(folder)
    try:
        with watch.watching(), contextlib.redirect_stderr(io.StringIO()):
            target.read(content, folder)
    except (UsageError, RunError, OSError) as error:
        # an OSError is answered with the system's words behind the name of the file
        message = why(error) if isinstance(error, OSError) else str(error)
        fine = len(message.splitlines()) <= 1 and len(message) <= LONGEST_MESSAGE
        outcome = ("refused", message) if fine else ("tracebacks", f"a message of several lines: {message[:300]!r}")
    except Hang:
        outcome = "hangs", f"more than {SECONDS:g} s"
    except SystemExit:
        pass  # --help and the like
    except BaseException as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        outcome = "tracebacks", f"{type(error).__name__}: {str(error)[:200]} ({place.filename}:{place.lineno})"
    finally:
        os.chdir(here)
    if (spent := time.process_time() - start) > SECONDS:  # within a library, which no signal interrupts
        outcome = "hangs", f"{spent:.1f} s"
    if peak_memory() - before > GROWTH:
        outcome = "growth", f"{(peak_memory() - before) / 1e6:.0f} MB"
    if watch.events or (folder / "executed").exists() or Path("executed").exists():
        outcome = "executed", "; ".join(watch.events)
    return outcome


class Judge:
    """Runs a target on inputs, counts what comes of them, and keeps those that are findings."""

    def __init__(self, name: str, folder: Path, watch: Watch, found: Path) -> None:
        self.name, self.target, self.tally = name, TARGETS[name], Tally()
        self.folder, self.watch, self.found = folder, watch, found
        self._known: set[str] = set()

    def judge(self, content: bytes) -> None:
        """Run the target on an input; one of each kind and place goes to `found`."""
        tally = self.tally
        what, said = check(self.target, content, self.folder, self.watch)
        tally.inputs += 1
        if what:
            setattr(tally, what, getattr(tally, what) + 1)
        if what not in ("", "refused") and (kind := what + said.rpartition("(")[2]) not in self._known:
            self._known.add(kind)
            path = self.found / self.name / hashlib.sha256(content).hexdigest()[:12]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            tally.findings.append(f"{what}: {said} [{path.name}]")


def fuzz(name: str, folder: Path, seconds: float, first_seed: int, found: Path) -> Tally:
    """Fuzz a target for some seconds; inputs of findings, one of each kind and place, go to `found`."""
    judge, end, number = Judge(name, folder, Watch(), found), time.monotonic() + seconds, first_seed

    def one(content: bytes) -> None:
        if time.monotonic() <= end:
            judge.judge(content)

    while time.monotonic() < end:
        number += 1
        run_examples(judge.target.inputs(), one, 500, number)
    return judge.tally


def run_examples(inputs: st.SearchStrategy[bytes], one: object, count: int, number: int) -> None:
    """Call `one` on `count` inputs, the same for the same number."""
    quiet = settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
        derandomize=False,
    )
    seed(number)(quiet(given(inputs)(one)))()  # type: ignore[arg-type]
