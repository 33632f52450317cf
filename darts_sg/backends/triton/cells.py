"""Supernet cells whose batches of edges the Triton kernels compute on a GPU."""

from collections.abc import Iterator, Sequence

from torch import Tensor

from darts_sg.backends import ir
from darts_sg.backends.batched import BatchedCell, Kernels
from darts_sg.backends.triton import run as gpu
from darts_sg.networks.supernet import SupernetCell


class TritonKernels:
    """The Triton kernels for a batch of edges."""

    side_by_side = True

    def computes(self, x: Tensor, stages: Sequence[ir.FusedStage]) -> bool:
        return gpu.takes(x) and gpu.supports(stages) and gpu.fits(stages, x)

    def run(
        self, states: Sequence[Tensor], gamma: Tensor, operations: ir.FusedOps, onto: Sequence[Tensor] = ()
    ) -> list[Tensor]:
        return gpu.run(states[0], gamma, operations, onto)


class TritonCell(BatchedCell):
    """A batched cell on the Triton kernels; PyTorch computes the input layers and operations unknown to the kernels."""

    backend = "triton"

    def __init__(self, cell: SupernetCell | BatchedCell) -> None:
        super().__init__(cell)
        gpu.lay_out(self)

    def make_kernels(self) -> Kernels | None:
        return TritonKernels()

    def fused(self) -> Iterator[ir.FusedOps]:
        """Everything that the kernels compute of this cell."""
        for batch in self.edge_batches():
            known = [i for i in batch.known() if gpu.supports(batch.stages(i))]
            if known:
                yield batch.fused(known)
