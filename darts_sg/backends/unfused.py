"""Which candidate operations take the generic path of a search, and what that costs.

A chain of known layers is computed for all edges of a batch at once, and by the kernels if they know its layers. Any
other operation runs as it is, layer by layer on every edge: correct, but with more and smaller launches.
"""

import time
from collections.abc import Sequence

import torch
from torch import nn

from darts_sg.backends.batched import chain_of
from darts_sg.genotype import NUM_INPUTS
from darts_sg.networks.skeleton import CellSpec
from darts_sg.networks.supernet import candidate


def unfused_operations(operations: Sequence[str], C: int = 16) -> tuple[str, ...]:
    """Those of `operations` that are no chain of known layers, with stride 1 or 2."""
    found = []
    with torch.device("meta"):
        for name in operations:
            built = [] if name == "none" else [candidate(name, C, stride) for stride in (1, 2)]
            if any(not isinstance(op, nn.Identity) and chain_of(op) is None for op in built):
                found.append(name)
    return tuple(found)


def num_calls(specs: Sequence[CellSpec], num_nodes: int) -> int:
    """Edges of all cells: how often an unfused operation is called in a forward pass."""
    return len(specs) * sum(NUM_INPUTS + node for node in range(num_nodes))


def generic_seconds(
    operations: Sequence[str],
    specs: Sequence[CellSpec],
    num_nodes: int,
    partial_channels: int,
    size: int,
    batch_size: int,
    device: torch.device,
) -> float:
    """Measured seconds of a forward and a backward pass of these operations on all edges of a supernet.

    One edge of each kind (channels, stride, size) is timed and counted as often as it occurs. size: height and width
    at the first cell. Changes no random state.
    """
    edges: dict[tuple[int, int, int], int] = {}  # (C, stride, height and width of the input) -> number of edges
    for spec in specs:
        C, stride, half = spec.C // partial_channels, 2 if spec.reduction else 1, -(-size // 2)
        after = half if spec.reduction else size
        edges[C, stride, size] = edges.get((C, stride, size), 0) + NUM_INPUTS * num_nodes
        edges[C, 1, after] = edges.get((C, 1, after), 0) + num_nodes * (num_nodes - 1) // 2
        size = after
    devices = [] if device.type == "cpu" else [device]
    with torch.random.fork_rng(devices=devices, device_type=device.type if devices else "cuda"):
        return sum(
            count * _seconds(candidate(name, C, stride).to(device), (batch_size, C, side, side), device)
            for (C, stride, side), count in edges.items()
            for name in operations
        )


def _seconds(op: nn.Module, shape: tuple[int, ...], device: torch.device) -> float:
    """Seconds of a forward and a backward pass, after one to warm up."""
    op = op.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x = torch.randn(shape, device=device).to(memory_format=torch.channels_last).requires_grad_()
    begun = 0.0
    for _ in range(2):
        begun = time.perf_counter()
        (gradient, *_) = torch.autograd.grad(op(x).sum(), [x, *op.parameters()])
        gradient.sum().item()  # waits for the device
    return time.perf_counter() - begun


def unfused_line(names: Sequence[str], total: int, calls: int, share: float | None) -> str:
    """What a dry run says of the unfused operations of a space of `total` operations."""
    which = f"operation {names[0]} is" if len(names) == 1 else f"operations {', '.join(names)} are"
    measured = "" if share is None else f", about {100 * min(share, 1.0):.0f}% of the time of a pass"
    return (
        f"{which} computed layer by layer on every edge (not a chain of known layers): {len(names)} of "
        f"{total} operations, {calls} calls each in a forward pass{measured}"
    )
