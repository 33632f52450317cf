"""python -m tests.sanitize [address] [threads] [bounds]: the tests of the kernels under sanitizers, by default all.

address: compiles the C++ kernels once more with AddressSanitizer and UndefinedBehaviorSanitizer, into a cache of their
own, and runs their tests in a process that loads the sanitizers' libraries first.

threads: compiles them with ThreadSanitizer and runs the tests whose passes take several threads, with three threads in
every pass. GCC's OpenMP library hides from the sanitizer that a region waits for its threads, so the kernels are linked
with tests/openmp_threads.cpp instead. PyTorch is not instrumented, and what it does is ignored. First a planted race
must be found (tests/planted_race.cpp).

bounds: runs the tests of the Triton kernels in Triton's interpreter, where each address that a kernel loads or stores
must lie in one of its tensors (tests/backends/bounds.py).

A finding ends the process with a report. Exits with the code of the tests that failed. Needs g++ with its sanitizer
libraries; compiling takes some minutes.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from darts_sg.backends.cpp.build import SOURCES, compiler

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent
KERNEL_TESTS = ("tests/backends/test_chains.py", "tests/backends/test_partial.py", "tests/networks/test_supernet.py")
COMPILE = """
from darts_sg.backends.cpp.build import compile_library, compiler_version, library_path
for real in ("float", "double"):
    library = library_path(real, compiler_version())
    library.parent.mkdir(parents=True, exist_ok=True)
    if not library.is_file():
        compile_library(real, library.parent)
"""
"""Run without the sanitizers' libraries, which such a library needs to be loaded and which slow the compiler."""
OTHER_COMPILATIONS = "not compile and not kept and not reach and not any_width"
"""All but the tests that compile kernels with flags of their own."""
OPENMP = TESTS / "openmp_threads.cpp"
FOUND = 66
"""ThreadSanitizer's exit code of a process with a finding."""
THREADS = "3"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.sanitize", description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)} (default: all of them)")
    parser.add_argument("--cache", type=Path, help="folder that keeps the compiled kernels (default: a temporary one)")
    arguments, more = parser.parse_known_args()
    if unknown := set(arguments.parts) - PARTS.keys():
        parser.error(f"there is no part {min(unknown)}; choose from {', '.join(PARTS)}")
    with tempfile.TemporaryDirectory() as temporary:
        cache = arguments.cache or Path(temporary)
        sys.exit(max((PARTS[part](cache, more) for part in arguments.parts or PARTS), key=abs))


def address(cache: Path, more: Sequence[str]) -> int:
    """The tests of the C++ kernels under AddressSanitizer and UndefinedBehaviorSanitizer."""
    environment = compiled(cache, "-O0 -g1 -fsanitize=address,undefined -fno-sanitize-recover=all")
    libraries = [_library(name) for name in ("libasan.so", "libubsan.so", "libstdc++.so")]
    leaks = "detect_leaks=0"  # of Python, not of the kernels
    sanitized = environment | {"LD_PRELOAD": " ".join(libraries), "ASAN_OPTIONS": leaks}
    return run_pytest([*KERNEL_TESTS, "-k", OTHER_COMPILATIONS, *more], sanitized)


def threads(cache: Path, more: Sequence[str]) -> int:
    """The tests of the C++ kernels under ThreadSanitizer, with several threads in every pass."""
    options = {"TSAN_OPTIONS": f"ignore_noninstrumented_modules=1 halt_on_error=1 exitcode={FOUND}"}
    _find_planted_race(os.environ | options)
    environment = compiled(cache, f"-O1 -g1 -fsanitize=thread {OPENMP}")
    loaded = " ".join(_library(name) for name in ("libtsan.so", "libstdc++.so"))
    words = [*KERNEL_TESTS, "-k", OTHER_COMPILATIONS, *more]
    return run_pytest(
        words, environment | options | {"TEST_THREADS": THREADS, "LD_PRELOAD": loaded}, _fixed_addresses()
    )


def bounds(cache: Path, more: Sequence[str]) -> int:
    """The tests of the Triton kernels with checked addresses: the interpreter is used where no GPU is visible."""
    checked = os.environ | {"PYTHONPATH": str(ROOT), "CHECK_BOUNDS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return run_pytest(["tests/backends/test_gpu.py", "-k", "not compiles", *more], checked)


PARTS: Mapping[str, Callable[[Path, Sequence[str]], int]] = {"address": address, "threads": threads, "bounds": bounds}


def compiled(cache: Path, flags: str) -> dict[str, str]:
    """Compile the kernels with more flags; returns an environment in which they are used."""
    environment = os.environ | {"XDG_CACHE_HOME": str(cache), "DARTS_SG_CXXFLAGS": flags, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", COMPILE], check=True, env=environment)
    return environment


def run_pytest(words: Sequence[str], environment: Mapping[str, str], launcher: Sequence[str] = ()) -> int:
    """Run pytest with these arguments; returns its exit code, negative for a signal. launcher: words before Python."""
    command = [*launcher, sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *words]
    return subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode


def _find_planted_race(environment: Mapping[str, str]) -> None:
    """Exit with a message if ThreadSanitizer misses a race of the kernels' threads, or sees one that is none."""
    with tempfile.TemporaryDirectory() as folder:
        program, sources = str(Path(folder) / "planted_race"), [str(TESTS / "planted_race.cpp"), str(OPENMP)]
        flags = ["-O1", "-g1", "-std=c++17", "-fopenmp", "-fsanitize=thread", f"-I{SOURCES}"]
        subprocess.run([compiler(), *flags, *sources, "-o", program], check=True)
        for words, expected in (([], 0), (["race"], FOUND)):
            command = [*_fixed_addresses(), program, *words]
            done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
            if done.returncode != expected or ("data race" in done.stderr) != bool(words):
                what = "misses a planted race" if words else "reports a race where there is none"
                sys.exit(f"sanitize: ThreadSanitizer {what} (exit code {done.returncode}): {done.stderr}")
    print("ThreadSanitizer finds a planted race, and none beside it", flush=True)


def _fixed_addresses() -> list[str]:
    """A launcher without random addresses, which older versions of ThreadSanitizer do not bear."""
    return ["setarch", "-R"] if shutil.which("setarch") else []


def _library(name: str) -> str:
    done = subprocess.run([compiler(), f"-print-file-name={name}"], capture_output=True, text=True, check=True)
    path = done.stdout.strip()
    if not Path(path).is_absolute():
        sys.exit(f"sanitize: {compiler()} has no {name}; install the sanitizer libraries of the compiler")
    return path


if __name__ == "__main__":
    main()
