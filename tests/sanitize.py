"""python -m tests.sanitize: the tests of the kernels with every access to memory checked.

Compiles the C++ kernels once more with AddressSanitizer and UndefinedBehaviorSanitizer, into a cache of their own, and
runs their tests in a process that loads the sanitizers' libraries first; a finding ends the process with a report. Then
runs the tests of the Triton kernels in Triton's interpreter, where each address that a kernel loads or stores must lie
in one of its tensors (tests/backends/bounds.py). Exits with the code of the tests that failed. Needs g++ with its
sanitizer libraries; compiling takes some minutes.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from darts_sg.backends.cpp.build import compiler

ROOT = Path(__file__).resolve().parents[1]
FLAGS = "-O0 -g1 -fsanitize=address,undefined -fno-sanitize-recover=all"
LIBRARIES = ("libasan.so", "libubsan.so", "libstdc++.so")
TESTS = ("tests/backends/test_chains.py", "tests/backends/test_partial.py", "tests/networks/test_supernet.py")
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


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.sanitize", description=__doc__.splitlines()[0])
    parser.add_argument("--cache", type=Path, help="folder that keeps the compiled kernels (default: a temporary one)")
    arguments, more = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as temporary:
        environment = os.environ | {
            "XDG_CACHE_HOME": str(arguments.cache or temporary),
            "DARTS_SG_CXXFLAGS": FLAGS,
            "PYTHONPATH": str(ROOT),
        }
        subprocess.run([sys.executable, "-c", COMPILE], check=True, env=environment)
        sanitized = environment | {
            "LD_PRELOAD": " ".join(_library(name) for name in LIBRARIES),
            "ASAN_OPTIONS": "detect_leaks=0",  # of Python, not of the kernels
        }
        codes = [tested(OTHER_COMPILATIONS, [*TESTS, *more], sanitized)]
        # Triton's kernels: the interpreter is used where no GPU is visible
        checked = os.environ | {"PYTHONPATH": str(ROOT), "CHECK_BOUNDS": "1", "CUDA_VISIBLE_DEVICES": ""}
        codes.append(tested("not compiles", ["tests/backends/test_gpu.py", *more], checked))
        sys.exit(max(codes, key=abs))


def tested(selection: str, words: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run pytest on the tests of that -k; returns its exit code, negative for a signal."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", selection, *words]
    return subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode


def _library(name: str) -> str:
    done = subprocess.run([compiler(), f"-print-file-name={name}"], capture_output=True, text=True, check=True)
    path = done.stdout.strip()
    if not Path(path).is_absolute():
        sys.exit(f"sanitize: {compiler()} has no {name}; install the sanitizer libraries of the compiler")
    return path


if __name__ == "__main__":
    main()
