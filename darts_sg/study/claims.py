"""Claims: which process runs a job. Needs no lock of the file system, so it works on NFS.

The claims on a job are the files claims/ID.1, claims/ID.2, …; the one with the highest number counts. A claim is taken
by creating the next number, which succeeds for one process only (link(2) is atomic, on NFS too), and only when the
owner of the present one has released it or is gone. An owner that was given up wrongly, such as a suspended machine,
finds a higher number at its next heartbeat and stops.

An owner is gone if its process has ended, which is known on its own machine only; elsewhere, if its heartbeat has not
moved for LOST_AFTER seconds by the observer's clock. The clocks of two machines are never compared.
"""

import errno
import json
import os
import socket
import tempfile
import time
import uuid
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from darts_sg.files import read_text, write_atomically

BEAT = 10.0
"""Seconds between two heartbeats."""
LOST_AFTER = 120.0
"""Seconds without a heartbeat after which an owner on another machine is given up."""
MAX_BYTES = 4096


@dataclass(frozen=True)
class Owner:
    """A process, as others see it."""

    token: str
    """Unique to the claim."""
    host: str
    pid: int
    started: str
    """When the process was started, in ticks since boot: a pid is used again."""
    machine: str
    """Boot and pid namespace: two containers of one host may have equal names and pids."""
    beat: int = 0
    """Grows with each heartbeat."""
    released: bool = False

    @property
    def title(self) -> str:
        """HOST:PID."""
        return f"{self.host}:{self.pid}"


def this_process() -> Owner:
    """This process as the owner of a new claim."""
    return Owner(uuid.uuid4().hex, socket.gethostname(), os.getpid(), _start_of(os.getpid()) or "", _machine())


def is_gone(owner: Owner) -> bool:
    """Whether the owner has released its claim, or its process is known to have ended.

    False for one on another machine, which only its heartbeat tells.
    """
    if owner.released:
        return True
    return is_here(owner) and _start_of(owner.pid) != owner.started


def is_here(owner: Owner) -> bool:
    """Whether the owner's process is on this machine, where its pid means something."""
    return owner.machine == _machine()


def _machine() -> str:
    parts = [socket.gethostname()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
    with suppress(OSError):
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    return " ".join(parts)


def _start_of(pid: int) -> str | None:
    """When a process was started; None if it has ended, empty where the system does not tell."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass  # somebody else's process
    try:
        # fields of proc(5) from the third on: the second, the name, may hold spaces and brackets
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        return None if Path("/proc/self/stat").exists() else ""
    except OSError:
        return ""
    return None if fields[0] in "ZX" else fields[19]  # a zombie has ended; field 22, starttime


class Claim:
    """The right of this process to run a job."""

    def __init__(self, path: Path, owner: Owner) -> None:
        self.path, self.owner = path, owner

    def beat(self) -> bool:
        """Tell others that this process is alive; False if the claim was given up and belongs to another now."""
        if not self.holds():
            return False
        self.owner = replace(self.owner, beat=self.owner.beat + 1)
        write_atomically(self.path, _json(self.owner))
        return True

    def holds(self) -> bool:
        """Whether no other process has taken the job over."""
        return max(_numbers(self.path), default=0) <= _number(self.path)

    def release(self) -> None:
        """Let others take the job. Does nothing if they have."""
        if self.holds():
            self.owner = replace(self.owner, released=True)
            write_atomically(self.path, _json(self.owner))


def take(folder: Path, job_id: str, *, over: str = "") -> Claim | None:
    """Claim a job; None if another process has it.

    folder: that of the claims. over: the token of a claim whose owner the caller has found to be gone (see Watch).
    """
    folder.mkdir(parents=True, exist_ok=True)
    stem = folder / f"{job_id}.0"
    numbers = _numbers(stem)
    top = max(numbers, default=0)
    if top:
        present = folder / f"{job_id}.{top}"
        owner = _read(present)
        gone = _is_old(present) if owner is None else is_gone(owner) or owner.token == over
        if not gone:
            return None
    path = folder / f"{job_id}.{top + 1}"
    owner = this_process()
    if not _create(path, _json(owner)):
        return None
    claim = Claim(path, owner)
    if not claim.holds():  # the numbers were read while others went on
        path.unlink(missing_ok=True)
        return None
    for number in numbers:
        (folder / f"{job_id}.{number}").unlink(missing_ok=True)
    return claim


def owner_of(folder: Path, job_id: str) -> Owner | None:
    """Who has the job, or had it last; None if nobody ever had."""
    top = max(_numbers(folder / f"{job_id}.0"), default=0)
    return _read(folder / f"{job_id}.{top}") if top else None


class Watch:
    """Watches owners from this process and tells which of them are gone."""

    def __init__(self, folder: Path, lost_after: float = LOST_AFTER) -> None:
        self.folder, self.lost_after = folder, lost_after
        self._seen: dict[str, tuple[tuple[str, int], float]] = {}

    def lost(self, job_id: str) -> str | None:
        """None while the owner of a job may be alive; otherwise the token of the claim to take over, or an empty text.

        A heartbeat counts from when this process first saw it.
        """
        owner = owner_of(self.folder, job_id)
        if owner is None or is_gone(owner):
            return "" if owner is None else owner.token
        heartbeat, now = (owner.token, owner.beat), time.monotonic()
        last, since = self._seen.get(job_id, (None, now))
        if last != heartbeat:
            self._seen[job_id] = (heartbeat, now)
            return None
        return owner.token if now - since > self.lost_after else None


def _numbers(path: Path) -> list[int]:
    """The numbers of all claims on the job of a claim's path."""
    stem = path.name.rpartition(".")[0]
    found = []
    try:
        names = os.listdir(path.parent)  # noqa: PTH208 - names alone, of thousands of files
    except FileNotFoundError:
        return []
    for name in names:
        before, _, number = name.rpartition(".")
        if before == stem and number.isdecimal():
            found.append(int(number))
    return found


def _number(path: Path) -> int:
    return int(path.name.rpartition(".")[2])


def _create(path: Path, content: str) -> bool:
    """Create a file with its content; False if it exists."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".claim.")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(content)
        temporary.chmod(0o644)
        try:
            os.link(temporary, path)
        except FileExistsError:
            # NFS may repeat a request whose answer was lost, and then says so of our own link
            return temporary.stat().st_nlink == 2
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EMLINK):
                raise
            return _create_plainly(path, content)  # a file system without hard links
        return True
    finally:
        temporary.unlink(missing_ok=True)


def _create_plainly(path: Path, content: str) -> bool:
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(content)
    except FileExistsError:
        return False
    return True


def _read(path: Path) -> Owner | None:
    """The owner in a claim; None if the file is gone or being written."""
    try:
        return Owner(**json.loads(read_text(path, MAX_BYTES)))
    except (OSError, ValueError, TypeError):
        return None


def _is_old(path: Path) -> bool:
    """Whether a claim that cannot be read, such as one that a power cut has emptied, is not just being written."""
    with suppress(OSError):
        return time.time() - path.stat().st_mtime > LOST_AFTER
    return False


def _json(owner: Owner) -> str:
    return json.dumps(asdict(owner)) + "\n"
