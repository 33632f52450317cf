"""Memory that images may take."""

import shutil
from pathlib import Path

MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")


def available_memory() -> int | None:
    """Bytes of memory that can be had without swapping, within the limit of a container; None where unknown."""
    found = [size for size in (_of_the_machine(), _of_the_container()) if size is not None]
    return min(found, default=None)


def _of_the_machine() -> int | None:
    try:
        lines = MEMINFO.read_text().splitlines()
    except OSError:
        return None
    sizes = dict(line.split(":", 1) for line in lines)
    return int(sizes["MemAvailable"].split()[0]) * 1024 if "MemAvailable" in sizes else None


def _of_the_container() -> int | None:
    """What a limit of control groups, version 2, leaves; pages of files can be given up, so they do not count."""
    try:
        limit = (CGROUP / "memory.max").read_text().strip()
        used = int((CGROUP / "memory.current").read_text())
        statistics = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return None
    files = int(statistics.get("inactive_file", 0))
    return None if limit == "max" else max(0, int(limit) - used + files)


def shared_memory() -> int | None:
    """Free bytes of the shared memory through which worker processes hand over batches; None where there is none.

    Containers often have no more than 64 MiB of it.
    """
    try:
        return shutil.disk_usage("/dev/shm").free
    except OSError:
        return None
