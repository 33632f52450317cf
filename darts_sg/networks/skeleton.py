"""What the supernet and the derived networks share: the channel plan with one CellSpec a cell, stems, head, joints."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from darts_sg.backends import ir
from darts_sg.errors import UsageError
from darts_sg.ops.primitives import ConvBN, HalvingConvBN

Parts = Sequence[Tensor]  # a state, in one or more parts whose channels follow each other


@dataclass(frozen=True)
class CellSpec:
    """Channels of a cell: of the states c_{k-2} (`C_pp`) and c_{k-1} (`C_p`) it is given, and of its nodes (`C`)."""

    C_pp: int
    C_p: int
    C: int
    reduction: bool
    """Whether this cell halves the resolution (its edges from the two inputs have stride 2)."""
    reduction_before: bool
    """Whether the previous cell halved it, so that c_{k-2} is twice the size of c_{k-1}."""


def cell_specs(
    C: int, num_cells: int, C_stem: int, num_joined: Callable[[bool], int], reduction_before: bool = False
) -> list[CellSpec]:
    """The specs of all cells: C doubles at the reductions, the cells num_cells // 3 and 2 · num_cells // 3.

    C_stem: channels of the stem's outputs; num_joined(reduction): states joined at a cell's output;
    reduction_before: the stem's second output is half the size of its first (ImageNet).
    Raises UsageError if there are fewer than 3 cells.
    """
    if num_cells < 3:
        raise UsageError(f"{num_cells} cells: two of them are reductions, so at least 3 are needed")
    specs = []
    C_pp = C_p = C_stem
    for i in range(num_cells):
        reduction = i in (num_cells // 3, 2 * num_cells // 3)
        C *= 2 if reduction else 1
        specs.append(CellSpec(C_pp, C_p, C, reduction, reduction_before))
        C_pp, C_p, reduction_before = C_p, num_joined(reduction) * C, reduction
    return specs


def input_layers(spec: CellSpec, affine: bool) -> tuple[nn.Module, nn.Module]:
    """The layers that bring c_{k-2} and c_{k-1} to C channels and to the size of c_{k-1}: ReLU - 1×1 - BN.

    Their ReLU is not in them: every state between cells is looked at through a ReLU only, by the two cells that
    follow and by the auxiliary head, so `between_cells` takes it once and in place; but see `CellGraphs`.
    """
    older = HalvingConvBN if spec.reduction_before else ConvBN
    return older(spec.C_pp, spec.C, affine=affine), ConvBN(spec.C_p, spec.C, affine=affine)


class CellGraphs:
    """A cell as the kernels for CPUs compute it, in one call for each pass, if they can.

    Between cells a state goes in parts, whose channels follow each other: neither are the nodes joined nor their
    gradients taken apart. The first ReLU of either input is part of the cell, so that its states are given as they are
    before it (see `between_cells`).
    """

    def __init__(self, layers: Sequence[nn.Module], steps: Sequence[ir.Step] | None, outputs: Sequence[int]) -> None:
        """layers: the two input layers. steps: those after them, None if the kernels cannot compute one. outputs: those
        of the cell's states that are. Its states are numbered from those on that the input layers give."""
        stages = [ir.stages_of([nn.ReLU(), *(layer if isinstance(layer, ConvBN) else [layer])], 1) for layer in layers]
        self.layers = list(layers)
        self.input_operations = [None if of is None else ir.Operations(1, 1, [ir.Operation(of)]) for of in stages]
        self.steps, self.outputs = steps or (), outputs
        self.known = steps is not None and None not in self.input_operations
        self.graphs: dict[tuple[int, int], ir.Graph] = {}  # by the number of parts of either input

    def run(self, s0: Parts, s1: Parts, gammas: Sequence[Tensor]) -> tuple[Parts, Parts]:
        """The output and s1, in parts. gammas: for each step after the input layers."""
        sizes = len(s0), len(s1)
        if sizes not in self.graphs:
            self.graphs[sizes] = self._graph(*sizes)
        one = s0[0].new_ones(1, 1)
        found = ir.run_graph([*s0, *s1], [one, one, *gammas], self.graphs[sizes])
        return found[: len(self.outputs)], found[len(self.outputs) :]

    def inputs(self, *states: Tensor) -> list[Tensor]:
        """What the input layers give, from states as they are before their ReLU, where the rest of the cell is computed
        in another way: by the kernels if they can."""
        found: list[Tensor] = []
        for state, layer, operations in zip(states, self.layers, self.input_operations, strict=True):
            if operations is not None and ir.takes(state):
                found += ir.run([state], state.new_ones(1, 1), operations)
            else:
                found.append(layer(torch.relu(state)))
        return found

    def _graph(self, *sizes: int) -> ir.Graph:
        given = sum(sizes)
        inputs = range(sizes[0]), range(sizes[0], given)
        steps = []
        for i, (operations, parts, numbers) in enumerate(zip(self.input_operations, sizes, inputs, strict=True)):
            assert operations is not None
            steps.append(ir.Step(replace(operations, parts=parts), numbers, [given + i]))
        for step in self.steps:
            states, nodes = ([given + i for i in numbers] for numbers in (step.states, step.nodes))
            steps.append(ir.Step(step.operations, states, nodes))
        return ir.Graph(given, steps, [given + state for state in self.outputs], passed_on=inputs[1])


def between_cells(state: Tensor) -> Tensor:
    """The ReLU with which the following cells begin, taken once for all of them; overwrites `state`, unless that is a
    view, such as the only node of a cell: PyTorch refuses to overwrite pieces of a tensor that was split."""
    return state.relu_() if state._base is None else state.relu()


class _Join(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *states: Tensor) -> Tensor:
        joined = torch.cat(states, dim=1)
        ctx.channels = [state.shape[1] for state in states]
        last = joined.is_contiguous(memory_format=torch.channels_last)
        ctx.memory_format = torch.channels_last if last else torch.contiguous_format
        return joined

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        return tuple(part.contiguous(memory_format=ctx.memory_format) for part in gradient.split(ctx.channels, dim=1))


def join(states: Parts) -> Tensor:
    """The output of a cell: its states (N, C, H, W), concatenated to (N, len(states) · C, H, W); a single one as it is.

    The gradient of each state is made contiguous on the way back. That of torch.cat is a view with gaps, on which
    the backward of BatchNorm and of the pools takes up to 30 times as long on a CPU.
    """
    return states[0] if len(states) == 1 else _Join.apply(*states)


class CifarStem(nn.Module):
    """3×3 - BN - ReLU: (N, in_channels, H, W) to (N, C_out, H, W), given out twice as c_{k-2} and c_{k-1}.

    The ReLU is that of the cells' input layers (see `input_layers`).
    """

    def __init__(self, in_channels: int, C_out: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(in_channels, C_out, 3, padding=1, bias=False), nn.BatchNorm2d(C_out))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        s = between_cells(self.body(x))
        return s, s


class ImageNetStem(nn.Module):
    """s0: 3×3 /2 to C/2 - BN - ReLU - 3×3 /2 to C - BN - ReLU; s1: 3×3 /2 - BN - ReLU of s0.

    (N, in_channels, H, W) to (N, C, H/4, W/4) and (N, C, H/8, W/8). The last ReLU of either is that of the cells'
    input layers (see `input_layers`).
    """

    def __init__(self, in_channels: int, C: int) -> None:
        super().__init__()

        def halving(C_in: int, C_out: int) -> nn.Conv2d:
            return nn.Conv2d(C_in, C_out, 3, stride=2, padding=1, bias=False)

        self.stem_0 = nn.Sequential(
            halving(in_channels, C // 2),
            nn.BatchNorm2d(C // 2),
            nn.ReLU(),
            halving(C // 2, C),
            nn.BatchNorm2d(C),
        )
        self.stem_1 = nn.Sequential(halving(C, C), nn.BatchNorm2d(C))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        s0 = between_cells(self.stem_0(x))
        return s0, between_cells(self.stem_1(s0))


class Head(nn.Module):
    """Global average pool - linear: (N, C, H, W) to (N, num_classes)."""

    def __init__(self, C: int, num_classes: int) -> None:
        super().__init__()
        self.classifier = nn.Linear(C, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.mean(x, dim=(2, 3)))
