"""Is one checkout as fast as another? Steps of both, interleaved one by one on one machine.

    python -m benchmarks.two_checkouts OLD_CHECKOUT NEW_CHECKOUT [--rounds 20]

Each checkout has a process of its own, in which its `benchmarks.subjects` builds the steps that `bench` measures: a
first-order step of batch 16 (`darts+sandglass`, C=16, 8 cells, native kernels), the same of `darts`, and a retraining
step (DARTS_V2, C=36, 20 cells, batch 32). The processes take turns and change the order in every round (A B, B A), so
that a machine whose speed drifts slows both alike. Prints medians and the ratio new / old; below 1 is faster.
"""

import argparse
import os
import statistics
import subprocess
import sys
from pathlib import Path

SUBJECTS = {
    "first-order step, darts+sandglass, batch 16": "own_step(Shape(), native=True)",
    "first-order step, darts, batch 16": "own_step(Shape(space='darts'), native=True)",
    "retraining step, DARTS_V2, batch 32": "retraining_steps('DARTS_V2', 32, native=True)[1]",
}
WORKER = """
import sys, time
from benchmarks.subjects import Shape, own_step, retraining_steps
step = {subject}
for _ in range(2):
    step()
print("ready", flush=True)
for _ in sys.stdin:
    begun = time.perf_counter()
    step()
    print(time.perf_counter() - begun, flush=True)
"""


class Worker:
    """A process in a checkout that runs a step whenever it is asked to."""

    def __init__(self, checkout: Path, subject: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", WORKER.format(subject=subject)],
            cwd=checkout,
            env={**os.environ, "PYTHONPATH": str(checkout)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        while self._line() != "ready":
            pass

    def step(self) -> float:
        """Seconds of one step."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return float(self._line())

    def end(self) -> None:
        self.process.kill()
        self.process.wait()

    def _line(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("two_checkouts: a process ended; its error stands above")
        return line.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description="Is one checkout as fast as another?")
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--rounds", type=int, default=20)
    arguments = parser.parse_args()
    for title, subject in SUBJECTS.items():
        workers = [Worker(checkout.resolve(), subject) for checkout in (arguments.old, arguments.new)]
        times: list[list[float]] = [[], []]
        for round_number in range(arguments.rounds):
            for side in (0, 1) if round_number % 2 == 0 else (1, 0):
                times[side].append(workers[side].step())
        for worker in workers:
            worker.end()
        old, new = (statistics.median(side) for side in times)
        ratios = sorted(b / a for a, b in zip(*times, strict=True))
        low, high = ratios[len(ratios) // 4], ratios[-len(ratios) // 4 - 1]
        print(
            f"{title}: {old:.3f} s old, {new:.3f} s new, ratio {new / old:.3f}; of the rounds "
            f"{statistics.median(ratios):.3f} (middle half {low:.3f} to {high:.3f})",
            flush=True,
        )


if __name__ == "__main__":
    main()
