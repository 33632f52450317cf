"""The environment of a run: device, versions, machine, code state, command line."""

import ctypes
import gc
import os
import platform
import shlex
import subprocess
import sys
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from darts_sg.backends.cpp.memory import POOL
from darts_sg.backends.triton.levers import chosen
from darts_sg.engine.distributed import ALONE, Ranks
from darts_sg.errors import UsageError, quoted


def choose_device(name: str, ranks: Ranks = ALONE) -> torch.device:
    """The device called `name`, `auto` being a GPU if there is one; of several ranks each gets its own.

    UsageError if the device is not available.
    """
    if name == "auto":
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return ranks.device(accelerator or torch.device("cpu"))
    try:
        device = torch.device(name)
        torch.ones(1, device=device).item()  # fails on meta, a device without values
    except (RuntimeError, AssertionError, NotImplementedError):
        there = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
        raise UsageError(f"device {name!r} is not available; there is: {', '.join(there)}") from None
    return ranks.device(device)


def prepare_device(device: torch.device, threads: int | None) -> None:
    """Set the CPU threads, keep freed memory, make a GPU current, and have it choose the same algorithms each time."""
    if threads is not None:
        torch.set_num_threads(threads)
    if device.type == "cpu":
        keep_freed_memory()
    if device.type == "cuda":
        make_current(device)
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cudnn.benchmark = False
        torch.use_deterministic_algorithms(True, warn_only=True)
        # filling memory that nobody reads costs a launch each time
        setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)  # noqa: B010 - typed as a module


def make_current(device: torch.device) -> None:
    """Make a GPU chosen by number the current device: Triton launches and new streams are on that one."""
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)


def keep_freed_memory() -> None:
    """Let glibc keep large freed blocks for the next step, which needs blocks of the same sizes.

    By default glibc returns them to the system and gets new ones, zeroed page by page: 75,000 page faults in a step of
    DARTS_V2 at C=16, batch 96, a tenth to a quarter of its time. Does nothing with another C library.
    """
    if platform.libc_ver()[0] == "glibc":
        M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 0)  # take large blocks from the heap, too
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        libc.mallopt(M_TOP_PAD, 2**28)


def return_freed_memory() -> None:
    """Return freed memory to the system: that kept by the allocators of the GPU, of the C++ kernels and of glibc."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    POOL.release()
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def usable_cores() -> int:
    """CPU cores that this process may use; under torchrun, its share of those of the machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = os.environ.get("LOCAL_WORLD_SIZE", "1")
    if not (share.isascii() and share.isdecimal() and len(share) < 10):
        raise UsageError(f"expected a number from torchrun, found: LOCAL_WORLD_SIZE is {quoted(share)}; unset it")
    return max(1, cores // max(1, int(share)))


def package_version() -> str:
    """The version of the darts_sg that runs: that of a checkout, even if another one is installed."""
    from darts_sg import __version__  # read from a file: only where it is needed

    return __version__


def triton_version() -> str:
    """The version of Triton, which compiles the kernels for GPUs."""
    try:
        return version("triton")
    except PackageNotFoundError:
        return "not installed"


def git_state() -> str:
    """The commit of the code, with `+changes` if tracked files differ from it; `no git` outside a checkout."""
    folder = Path(__file__).parent

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=20, check=True)
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)
        return git("rev-parse", "--short=12", "HEAD") + ("+changes" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.SubprocessError):
        return "no git"


def device_name(device: torch.device) -> str:
    """The model of the GPU; or of the processor, with its widest vector instructions (AVX2, AVX512)."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    vectors = torch.backends.cpu.get_cpu_capability()
    return name if vectors == "DEFAULT" else f"{name}, {vectors}"


def machine(device: torch.device) -> str:
    """The model of the device and the number of CPU threads, to be given with any time measured on it."""
    number = torch.get_num_threads()
    return f"{device_name(device)}, {number} {'thread' if number == 1 else 'threads'}"


def command_line(ranks: Ranks = ALONE) -> str:
    """The command that started this process, without the folders of the interpreter and the script."""
    script = Path(sys.argv[0])
    what = "-m darts_sg" if script.name in {"__main__.py", "darts-sg"} else script.name
    return " ".join([ranks.launcher, what, *map(shlex.quote, sys.argv[1:])])


def describe(device: torch.device, ranks: Ranks = ALONE) -> dict[str, Any]:
    """The environment as config.yaml records it."""
    return {
        "darts_sg": package_version(),
        "git": git_state(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "device": str(device),
        "device_name": device_name(device),
        **({"triton": triton_version()} if device.type == "cuda" else {}),
        **({"triton_levers": levers} if device.type == "cuda" and (levers := chosen()) else {}),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "processes": ranks.size,
        "command": command_line(ranks),
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
    }
