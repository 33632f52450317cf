"""Compile Triton kernels for an H100, which need not be there, and print their names; `test_gpu.py` runs this."""

import sys
from collections import Counter
from unittest.mock import patch

import torch
import triton
from triton.backends.compiler import GPUTarget

from darts_sg.native import chains, gpu
from darts_sg.networks.edges import EdgeBatch, EdgeWeights
from darts_sg.networks.skeleton import join
from darts_sg.networks.supernet import candidate


class Hopper:
    """What Triton asks its driver for before it compiles."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def main(names: list[str], C: int) -> None:
    batch = EdgeBatch([[candidate(name, C, 1) for name in names] for _ in range(2)], 1, C, 1)
    batch.native = True
    x = torch.randn(2, C, 8, 8).contiguous(memory_format=torch.channels_last).requires_grad_()
    mixing = torch.rand(2, len(names), requires_grad=True)

    def passes() -> None:
        nodes = batch([x], EdgeWeights(mixing), [])
        torch.autograd.grad(sum(node.sum() for node in nodes), [x, mixing, *batch.parameters()])

    compiled: Counter[str] = Counter()
    warmup = triton.JITFunction.warmup

    def count(kernel: triton.JITFunction, *arguments: object, **sizes: object) -> None:
        assert warmup(kernel, *arguments, **sizes).asm["cubin"]
        compiled[kernel.__name__] += 1

    triton.runtime.driver.set_active(Hopper())
    with (
        patch.object(chains, "computes", lambda x, stages: gpu.supports(stages)),
        patch.object(chains, "run", lambda states, *others: gpu.run(join(states), *others)),
        patch.object(torch.cuda, "set_device", lambda device: None),
        patch.object(triton.JITFunction, "warmup", count),
    ):
        gpu.compile_ahead(passes, torch.device("cuda", 0))
    print(*sorted(compiled.elements()))


if __name__ == "__main__":
    main(sys.argv[2:], int(sys.argv[1]))
