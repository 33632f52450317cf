"""Loads the C++ kernels: compiled on first use and cached, or those of the wheel. Finds Triton, too.

Kernels are optional: without them PyTorch computes the same. chains.cpp includes the headers beside it, so there is one
translation unit; the cached library's name is a hash of all these files, the flags, the compiler and the processor.
Where none can be compiled, a library that a wheel brings for this level of processors is taken (`prebuilt`); the
compiler's own is a few percent faster, because it is tuned for the very processor.

Environment: CXX names the compiler, XDG_CACHE_HOME the cache, and DARTS_SG_CXXFLAGS adds flags, for instance
"-g -fsanitize=undefined" to look for errors in the kernels, which then are compiled in any case.
"""

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

from darts_sg.backends.cpp import prebuilt
from darts_sg.backends.cpp.prebuilt import LONGEST, MAIN_SOURCE, SOURCES
from darts_sg.files import write_atomically

FLAGS = (prebuilt.OPTIMISATION, "-march=native", *prebuilt.FLAGS)


class Unavailable(Exception):
    """The kernels are not available; the message says why, in one line."""


def compiler() -> str:
    """The C++ compiler: $CXX, or g++."""
    return os.environ.get("CXX") or "g++"


def compiler_version() -> str:
    """The output of the compiler's --version. Raises Unavailable if there is no compiler, or if it fails."""
    found = shutil.which(compiler())
    if found is None:
        raise Unavailable(f"there is no C++ compiler {compiler()!r}: install it (CXX=… names another)")
    try:
        return _output([found, "--version"])
    except (OSError, subprocess.SubprocessError):
        raise Unavailable(f"{compiler()!r} --version fails: choose another C++ compiler (CXX=…)") from None


def kernels(tell: Callable[[str], None] = lambda message: None, real: str = "float") -> ctypes.CDLL:
    """The kernel library for one C++ number type (`real`: float or double): cached, compiled now, or of the wheel.

    tell: called with a message before compiling, which takes about 20 s. The cache is $XDG_CACHE_HOME/darts_sg
    (~/.cache/darts_sg). The library is written atomically, so several processes may compile it at the same time.
    Raises Unavailable if there is no compiler, or it cannot compile the kernels, and the wheel brings none that fit.
    """
    if real not in _loaded:
        try:
            _loaded[real] = _load(tell, real)
        except (Unavailable, OSError, RuntimeError, subprocess.SubprocessError) as error:
            _loaded[real] = _brought(real, _reason(error))
    return _loaded[real]


def checked(by: str) -> bool:
    """Whether these float kernels already passed the check called `by`, in this process or another."""
    return _mark(by).exists()


def set_checked(by: str) -> None:
    """Record that they passed; where nothing can be written they are checked again next time."""
    with suppress(OSError):
        mark = _mark(by)
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()


def _mark(by: str) -> Path:
    """The marker file beside the library; for one of the wheel in the cache, because the check is of this processor."""
    library = Path(kernels()._name)
    if library.parent == prebuilt.FOLDER:
        key = "\n".join([library.name, prebuilt.fingerprint(), _processor()])
        library = _cache() / f"built-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    return Path(f"{library}.{by}.checked")


def triton_missing(capability: tuple[int, int]) -> str | None:
    """Why Triton kernels are not available for a GPU of this compute capability, in one line; None if they are."""
    if find_spec("triton") is None:
        return "Triton is not installed"
    if not any(shutil.which(name) for name in (os.environ.get("CC") or "gcc", "clang")):
        return "Triton needs a C compiler, and there is no gcc or clang: install one (CC=… names another)"
    if capability < (7, 0):
        return "Triton needs a GPU of compute capability 7.0 or higher, and this one has {}.{}".format(*capability)
    return None


_loaded: dict[str, ctypes.CDLL] = {}


def library_path(real: str, version: str) -> Path:
    """Where the cache has the library for one number type, compiled by the compiler of this version."""
    sources = [path for path in sorted(SOURCES.iterdir()) if path.suffix in (".cpp", ".h")]
    texts = [f"{path.name}\n{path.read_text(encoding='utf-8')}" for path in sources]
    key = "\n".join([*texts, *_options(real), version, _processor()])
    name = f"chains-{real}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.so"
    return _cache() / name


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "darts_sg"


def _options(real: str) -> list[str]:
    return [*FLAGS, f"-DREAL={real}", *shlex.split(os.environ.get("DARTS_SG_CXXFLAGS", ""))]


def _load(tell: Callable[[str], None], real: str) -> ctypes.CDLL:
    library = library_path(real, compiler_version())
    if library.is_file():
        return ctypes.CDLL(str(library))
    tell("compiling the C++ kernels for this processor, once (about 20 s)")
    with tempfile.TemporaryDirectory() as folder:
        built = compile_library(real, Path(folder))
        try:
            write_atomically(library, built.read_bytes())
        except OSError:  # nothing can be cached: load it from here, for this process only
            return ctypes.CDLL(str(built))
    return ctypes.CDLL(str(library))


def _reason(error: Exception) -> str:
    """Why the kernels cannot be compiled, in one line."""
    if isinstance(error, subprocess.CalledProcessError):
        reason = next((line for line in error.stderr.splitlines() if "error" in line), "no reason given")
        return f"{compiler()} cannot compile the kernels: {reason.strip()}"
    return " ".join(str(error).split())


def _brought(real: str, reason: str) -> ctypes.CDLL:
    """The wheel's library for this processor, where none can be compiled for the given reason.

    Raises Unavailable with both reasons if a library that is there does not fit, with the given one if there is none.
    """
    try:
        # whoever adds flags wants kernels compiled with them
        found = None if os.environ.get("DARTS_SG_CXXFLAGS") else prebuilt.chosen(real, folder=prebuilt.FOLDER)
        if found is not None:
            return ctypes.CDLL(str(found))
    except (prebuilt.Unsuitable, OSError) as error:  # the latter where a library of the system is missing
        unsuitable = " ".join(str(error).split())
        reason = f"the kernels of this installation do not fit ({unsuitable}), and {reason}"
    raise Unavailable(reason)


def compile_library(real: str, folder: Path) -> Path:
    """Compile the kernels into `folder`; returns the library. Raises Unavailable or a subprocess error."""
    built = folder / library_path(real, compiler_version()).name
    _output([compiler(), *_options(real), str(SOURCES / MAIN_SOURCE), "-o", str(built)])
    if not built.is_file():
        raise Unavailable(f"{compiler()!r} compiles nothing: choose another C++ compiler (CXX=…)")
    return built


def _output(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, timeout=LONGEST, check=True).stdout


def _processor() -> str:
    """The processor's architecture and features, because -march=native depends on them."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    described = [line for line in lines if line.startswith(("model name", "flags", "Features"))]
    return "\n".join([platform.machine(), *described[:2]])
