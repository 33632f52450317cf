"""python -m tests.fuzz: fuzz every reader for some minutes and print a table; exit code 1 if anything was found.

Each target runs in a process of its own, so that a crash of a library is a finding, too. New findings are written to
tests/fuzz/found/TARGET/; those that have been mended are kept in tests/fuzz/corpus/TARGET/, which `make test` reads.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from tests.fuzz import guided

if TYPE_CHECKING:
    from tests.fuzz.watch import Tally

HERE = Path(__file__).parent
COLUMNS = ("inputs", "refused", "tracebacks", "hangs", "growth", "executed", "crashes")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__.splitlines()[0])
    parser.add_argument("targets", nargs="*", metavar="TARGET", help="default: all")
    parser.add_argument("--minutes", type=float, default=5.0, help="for all targets together (default: 5)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--engine", choices=("hypothesis", "atheris"), default="hypothesis",
        help="atheris: guided by coverage, for the readers of bytes (needs the package atheris)",
    )  # fmt: skip
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        with tempfile.TemporaryDirectory() as folder:
            if arguments.engine == "atheris":
                guided.fuzz(arguments.child, Path(folder), arguments.minutes * 60, arguments.seed, HERE / "found")
            from tests.fuzz.watch import fuzz

            tally = fuzz(arguments.child, Path(folder), arguments.minutes * 60, arguments.seed, HERE / "found")
        print("\n" + json.dumps(tally.__dict__))
        return
    from tests.fuzz.targets import TARGETS

    names = arguments.targets or list(TARGETS)
    if arguments.engine == "atheris":
        if not guided.available():
            sys.exit("fuzz: --engine atheris needs the package atheris: pip install atheris, or leave --engine out")
        names = [name for name in names if name not in guided.STRUCTURED]
    total = dict.fromkeys(COLUMNS, 0)
    print(f"{'target':14}" + "".join(f"{column:>11}" for column in COLUMNS))
    for name in names:
        tally = in_process_of_its_own(name, arguments.minutes / len(names), arguments.seed, arguments.engine)
        print(f"{name:14}" + "".join(f"{getattr(tally, column):11,}" for column in COLUMNS), flush=True)
        for text in tally.findings:
            print(f"  {text}")
        for column in COLUMNS:
            total[column] += getattr(tally, column)
    print(f"{'all':14}" + "".join(f"{count:11,}" for count in total.values()))
    print("hangs: above 5 s; growth: above 500 MB; executed: code in an input was run; crashes: the process ended")
    sys.exit(any(total[column] for column in COLUMNS[2:]))


def in_process_of_its_own(name: str, minutes: float, seed: int, engine: str = "hypothesis") -> "Tally":
    """Fuzz a target; a process that ends before its time is a crash."""
    from tests.fuzz.watch import Tally

    command = [sys.executable, "-m", "tests.fuzz", "--child", name, "--engine", engine]
    command += ["--minutes", str(minutes), "--seed", str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = done.stdout.splitlines()
    if done.returncode == 0 and lines:
        return Tally(**json.loads(lines[-1]))
    last = " ".join(line.strip() for line in done.stderr.splitlines() if "Error" in line)
    return Tally(crashes=1, findings=[f"exit code {done.returncode}: {last[-300:]}"])


if __name__ == "__main__":
    main()
