"""Random search with parameter sharing (Li and Talwalkar, "Random Search and Reproducibility for NAS", UAI 2019)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from darts_sg.baselines import STRATEGIES, Cells, Strategy
from darts_sg.derive import num_edges
from darts_sg.errors import UsageError
from darts_sg.genotype import Cell
from darts_sg.networks.skeleton import State, join
from darts_sg.networks.supernet import MixedOp, Supernet, SupernetCell

STEPS_A_ROUND = 10_000


@dataclass(frozen=True)
class Rsps(Strategy):
    """Random search with shared weights: each step trains one random path of a supernet; then paths are compared.

    A round compares `samples` random paths on `batches` validation batches, and the best `finalists` of them on all
    validation images. The answer is the best of all rounds, by default one for 10,000 steps of training.
    """

    samples: int = 1000
    batches: int = 10
    finalists: int = 10
    rounds: int | None = None

    def __post_init__(self) -> None:
        for name in ("samples", "batches", "finalists", "rounds"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise UsageError(f"{name} must be at least 1, found {value}")
        if self.finalists > self.samples:
            raise UsageError(f"finalists {self.finalists} are more than the {self.samples} samples; lower finalists")

    def num_rounds(self, steps: int) -> int:
        """Rounds after so many steps of training."""
        return self.rounds or max(1, steps // STEPS_A_ROUND)


STRATEGIES.add("rsps", Rsps)


def path_outputs(supernet: Supernet, images: Tensor, cells: Cells) -> Tensor:
    """Outputs of the path of an architecture through a plain supernet: (N, C, H, W) to (N, num_outputs).

    Computes the chosen operations only, so that the statistics of no other are touched.
    """
    s0, s1 = supernet.stem(images)
    for cell in supernet.cells:
        assert isinstance(cell, SupernetCell)
        s0, s1 = s1, _cell_outputs(cell, s0, s1, cells.reduce if cell.reduction else cells.normal)
    logits: Tensor = supernet.head(s1.joined())
    return logits


def _cell_outputs(cell: SupernetCell, s0: State, s1: State, chosen: Cell) -> State:
    x0, x1 = s0.rectified(), s1.rectified()
    states = [cell.input_0(x0), cell.input_1(x1)]
    for node, edges in enumerate(chosen.nodes):
        terms: Sequence[Tensor] = [
            _operation(cell.edges[num_edges(node) + edge.state], cell.operations.index(edge.operation))(
                states[edge.state]
            )
            for edge in edges
        ]
        states.append(torch.stack(list(terms)).sum(dim=0) if len(terms) > 2 else sum(terms[1:], terms[0]))
    return State(join([states[i] for i in chosen.concat]))


def _operation(edge: torch.nn.Module, column: int) -> torch.nn.Module:
    assert isinstance(edge, MixedOp)
    return edge.ops[edge.columns.index(column)]
