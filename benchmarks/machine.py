"""Roofline: the machine's measured peaks, and the arithmetic and memory traffic of a step."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F

from benchmarks.subjects import LAST, Shape, Step
from darts_sg.analysis.cost import count_macs, saved_bytes
from darts_sg.methods.mixing import softmax
from darts_sg.networks.supernet import Supernet
from darts_sg.spaces import parse_space

FORWARDS = 5  # forward passes that a first-order step costs: alpha step 1 + 1, weight step 1 + 2


class Roofline(NamedTuple):
    """Peaks of the machine, and the work of one first-order step."""

    gflops: float
    gigabytes_a_second: float
    step_gflop: float
    step_gigabytes: float

    @property
    def arithmetic_seconds(self) -> float:
        return self.step_gflop / self.gflops

    @property
    def traffic_seconds(self) -> float:
        return self.step_gigabytes / self.gigabytes_a_second

    @property
    def bound_seconds(self) -> float:
        """The larger of the two bounds: no step can be faster."""
        return max(self.arithmetic_seconds, self.traffic_seconds)


def best_seconds(run: Callable[[], object], repetitions: int = 7) -> float:
    times = []
    for _ in range(repetitions):
        begun = time.perf_counter()
        run()
        times.append(time.perf_counter() - begun)
    return min(times)


def measured_peaks() -> tuple[float, float]:
    """Measure (GFLOPS of a float32 matrix product of side 2048, GB/s of copying 256 MiB, read plus written)."""
    a, b = torch.randn(2, 2048, 2048)
    gflops = 2 * 2048**3 / best_seconds(lambda: a @ b) / 1e9
    source, target = torch.ones(2, 2**26)
    return gflops, 2 * source.nbytes / best_seconds(lambda: target.copy_(source)) / 1e9


def step_gflop(shape: Shape) -> float:
    """GFLOP of a first-order step: the MACs of convolutions and linear layers, at 2 FLOPs each."""
    with torch.device("meta"), torch.no_grad():
        net = Supernet(parse_space(shape.space).operations, channels=shape.channels, cells=shape.cells).eval()
        macs = count_macs(net, torch.empty(1, 3, shape.size, shape.size), softmax(net))
    return 2 * FORWARDS * macs * shape.batch / 1e9


def roofline(shape: Shape, native: bool) -> Roofline:
    """The bound on a first-order step of `shape`.

    Arithmetic: the MACs of convolutions and linear layers, at 2 FLOPs each. A backward pass costs one forward pass for
    the gradients of the activations, and another for those of the weights.
    Traffic (a lower bound): in both steps every saved tensor is written once and read twice, by the next layer and by
    the backward pass.
    """
    x, y = shape.images()
    x = x.contiguous(memory_format=LAST)
    net = shape.supernet(native)
    kept = saved_bytes(net, lambda: F.cross_entropy(net(x, softmax(net)), y))
    gflops, bandwidth = measured_peaks()
    return Roofline(gflops, bandwidth, step_gflop(shape), 2 * 3 * kept / 1e9)


def median(values: list[float]) -> float:
    return statistics.median(values)


def interleave(steps: Mapping[str, Step], rounds: int) -> dict[str, list[float]]:
    """Seconds of each step in each round, in turns (A B A B), after one warm-up round."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(rounds + 1):
        for name, step in steps.items():
            begun = time.perf_counter()
            step()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if turn:
                times[name].append(time.perf_counter() - begun)
    return times
