"""python -m tests.sanitize: the tests of the C++ kernels under AddressSanitizer and UndefinedBehaviorSanitizer.

Compiles the kernels once more with both sanitizers, into a cache of their own, and runs tests/backends on them in a
process that loads the sanitizers' libraries first. The exit code is that of pytest; a finding ends the process with a
report. Needs g++ with its sanitizer libraries; compiling takes some minutes.
"""

import argparse
import os
import subprocess
import sys
import tempfile
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
        environment |= {
            "LD_PRELOAD": " ".join(_library(name) for name in LIBRARIES),
            "ASAN_OPTIONS": "detect_leaks=0",  # of Python, not of the kernels
        }
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", OTHER_COMPILATIONS, *TESTS]
        sys.exit(subprocess.run([*command, *more], cwd=ROOT, env=environment, check=False).returncode)


def _library(name: str) -> str:
    done = subprocess.run([compiler(), f"-print-file-name={name}"], capture_output=True, text=True, check=True)
    path = done.stdout.strip()
    if not Path(path).is_absolute():
        sys.exit(f"sanitize: {compiler()} has no {name}; install the sanitizer libraries of the compiler")
    return path


if __name__ == "__main__":
    main()
