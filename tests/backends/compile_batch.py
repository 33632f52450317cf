"""Compiles the Triton kernels of a batch of edges for an H100 and prints what benchmarks.machine_code finds in them;
test_gpu.py runs it in a process of its own, for Triton either compiles or interprets."""

import torch

from benchmarks.machine_code import compiled, table_of
from darts_sg.backends.batched import EdgeBatch, EdgeWeights
from darts_sg.backends.triton import run as gpu
from darts_sg.backends.triton.cells import TritonKernels
from darts_sg.cli.terminal import console
from darts_sg.networks.supernet import candidate

NAMES = ("sandglass_3x3", "dil_conv_3x3", "max_pool_3x3", "skip_connect")


def passes() -> None:
    batch = EdgeBatch([[candidate(name, 16, 1) for name in NAMES] for _ in range(2)], 1, 16, 1)
    batch.kernels = TritonKernels()
    x = torch.randn(64, 16, 32, 32).contiguous(memory_format=torch.channels_last).requires_grad_()
    mixing = torch.rand(2, len(NAMES), requires_grad=True)
    nodes = batch([x], EdgeWeights(mixing), [])
    torch.autograd.grad(sum(node.sum() for node in nodes), [x, mixing, *batch.parameters()])


if __name__ == "__main__":
    console().print(table_of(*compiled(lambda: gpu.compile_ahead(passes, torch.device("cpu")), 90), "two edges"))
