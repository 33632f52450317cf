"""Memory that images may take."""

import shutil
from pathlib import Path


def available_memory() -> int | None:
    """Bytes of memory that can be had without swapping; None where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    sizes = dict(line.split(":", 1) for line in lines)
    return int(sizes["MemAvailable"].split()[0]) * 1024 if "MemAvailable" in sizes else None


def shared_memory() -> int | None:
    """Free bytes of the shared memory through which worker processes hand over batches; None where there is none.

    Containers often have no more than 64 MiB of it.
    """
    try:
        return shutil.disk_usage("/dev/shm").free
    except OSError:
        return None
