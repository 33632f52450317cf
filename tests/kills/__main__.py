"""python -m tests.kills: kill runs at random moments, continue them, and compare with a run that nobody disturbed.

A run is killed with SIGKILL, together with all processes that it has started, at a moment drawn evenly from the time
that an undisturbed run takes: while it starts, while it trains, while it writes its report. Of a study the coordinator
is killed, with or without its workers. A run is continued and killed again, up to three times, and then left to end.
Its genotypes, alphas, metrics, weights, results and set of files must be those of the undisturbed run. The table counts
kills by the moment they met. Exit code 1 if anything differs.
"""

import argparse
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

from tests.kills.runs import KINDS, Kind, Tally, disturbed

COLUMNS = ("runs", "kills", "starting", "running", "finishing", "ended", "different")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.kills", description=__doc__.splitlines()[0])
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"default: all of {', '.join(KINDS)}")
    parser.add_argument("--minutes", type=float, default=10.0, help="for all kinds together (default: 10)")
    parser.add_argument("--kills", type=int, default=0, help="instead of minutes: at least so many kills in all")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if unknown := set(arguments.kinds) - set(KINDS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(KINDS)}")
    kinds = [KINDS[name] for name in arguments.kinds or KINDS]
    draw, tallies = random.Random(arguments.seed), {kind.name: Tally() for kind in kinds}
    with tempfile.TemporaryDirectory() as folder:
        for kind in kinds:
            kind.undisturbed(Path(folder))
        until = time.monotonic() + 60 * arguments.minutes
        while not _enough(tallies, arguments.kills, until):
            for kind in kinds:
                _one(kind, Path(folder), draw, tallies[kind.name])
            total = sum(tallies.values(), Tally())
            print(f"{total.kills} kills, {total.different} different", file=sys.stderr, flush=True)
    print(f"{'run':14}" + "".join(f"{column:>11}" for column in COLUMNS))
    total = Tally()
    for name, tally in tallies.items():
        print(_row(name, tally))
        total += tally
    print(_row("all", total))
    print("starting: before the first checkpoint; finishing: after the last one; ended: the run was faster")
    sys.exit(bool(total.different))


def _enough(tallies: dict[str, Tally], kills: int, until: float) -> bool:
    if kills:
        return sum(tally.kills for tally in tallies.values()) >= kills
    return time.monotonic() > until


def _one(kind: Kind, folder: Path, draw: random.Random, tally: Tally) -> None:
    run = folder / f"{kind.name}_killed"
    found = disturbed(kind, folder, run, draw, tally)
    for text in found:
        print(f"  {kind.name}: {text}", flush=True)
    shutil.rmtree(run, ignore_errors=True)


def _row(name: str, tally: Tally) -> str:
    return f"{name:14}" + "".join(f"{getattr(tally, column):11,}" for column in COLUMNS)


if __name__ == "__main__":
    main()
