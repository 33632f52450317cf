"""C++ kernels for CPUs: compiled when they are first asked for, and kept for the next time. Triton kernels for GPUs.

They are optional. Whatever they compute, darts_sg computes without them as well, in PyTorch.
"""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

from darts_sg.files import write_atomically

SOURCE = Path(__file__).parent / "chains.cpp"
FLAGS = ("-O3", "-march=native", "-std=c++17", "-fopenmp", "-fno-math-errno", "-Wno-psabi", "-fPIC", "-shared")


class Unavailable(Exception):
    """The kernels cannot be had; says why, in one line."""


def compiler() -> str:
    """The C++ compiler: $CXX, or g++."""
    return os.environ.get("CXX") or "g++"


def compiler_version() -> str:
    """What the C++ compiler says of itself; raises Unavailable if there is none, or it does not answer."""
    found = shutil.which(compiler())
    if found is None:
        raise Unavailable(f"there is no C++ compiler {compiler()!r}: install it (CXX=… names another)")
    try:
        return _output([found, "--version"])
    except (OSError, subprocess.SubprocessError):
        raise Unavailable(f"{compiler()!r} --version fails: choose another C++ compiler (CXX=…)") from None


def kernels(tell: Callable[[str], None] = lambda message: None, real: str = "float") -> ctypes.CDLL:
    """The compiled kernels for numbers of one type of C++; `tell` is called before they are compiled, some 15 s.

    The library lies in $XDG_CACHE_HOME/darts_sg (~/.cache/darts_sg) under a name that stands for the source, the
    compiler and the processor. It appears there whole or not at all, so that processes may compile at the same time.
    Raises Unavailable if there is no compiler, or none that understands them.
    """
    if real not in _loaded:
        try:
            _loaded[real] = _load(tell, real)
        except subprocess.CalledProcessError as error:
            reason = next((line for line in error.stderr.splitlines() if "error" in line), "no reason given")
            raise Unavailable(f"{compiler()} cannot compile the kernels: {reason.strip()}") from None
        except (OSError, RuntimeError, subprocess.SubprocessError) as error:
            raise Unavailable(" ".join(str(error).split())) from None
    return _loaded[real]


def checked(by: str) -> bool:
    """Whether the compiled kernels (float) were found to compute what they should, in this or another process."""
    return _mark(by).exists()


def set_checked(by: str) -> None:
    """Keep in mind that they were. Where that cannot be kept, they will be checked again."""
    with suppress(OSError):
        _mark(by).touch()


def _mark(by: str) -> Path:
    """A file beside the library."""
    return Path(f"{kernels()._name}.{by}.checked")


def triton_missing(capability: tuple[int, int]) -> str | None:
    """Why there are no Triton kernels for a GPU of this compute capability, in one line; None where there are."""
    if find_spec("triton") is None:
        return "Triton is not installed"
    if not any(shutil.which(name) for name in (os.environ.get("CC") or "gcc", "clang")):
        return "Triton needs a C compiler, and there is no gcc or clang: install one (CC=… names another)"
    if capability < (7, 0):
        return "Triton needs a GPU of compute capability 7.0 or higher, and this one has {}.{}".format(*capability)
    return None


_loaded: dict[str, ctypes.CDLL] = {}


def _load(tell: Callable[[str], None], real: str) -> ctypes.CDLL:
    version = compiler_version()
    options = [*FLAGS, f"-DREAL={real}"]
    key = "\n".join([SOURCE.read_text(encoding="utf-8"), *options, version, _processor()])
    name = f"chains-{real}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.so"
    library = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "darts_sg" / name
    if library.is_file():
        return ctypes.CDLL(str(library))
    tell("compiling the C++ kernels for this processor, once (about 15 s)")
    with tempfile.TemporaryDirectory() as folder:
        built = Path(folder) / name
        _output([compiler(), *options, str(SOURCE), "-o", str(built)])
        if not built.is_file():
            raise Unavailable(f"{compiler()!r} compiles nothing: choose another C++ compiler (CXX=…)")
        try:
            write_atomically(library, built.read_bytes())
        except OSError:  # no place to keep it: this process alone has it
            return ctypes.CDLL(str(built))
    return ctypes.CDLL(str(library))


def _output(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, timeout=600, check=True).stdout


def _processor() -> str:
    """What the processor can do, for -march=native means another thing on another machine."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    described = [line for line in lines if line.startswith(("model name", "flags", "Features"))]
    return "\n".join([platform.machine(), *described[:2]])
