"""Networks built from a genotype, in the CIFAR and the ImageNet shape (DARTS paper, section 3.2 and 3.3)."""

from typing import Literal, cast

import torch
from torch import Tensor, nn

from darts_sg.backends import ir
from darts_sg.errors import UsageError
from darts_sg.genotype import NUM_INPUTS, Cell, Genotype
from darts_sg.networks.skeleton import (
    CellGraphs,
    CellSpec,
    CifarStem,
    Head,
    ImageNetStem,
    Parts,
    between_cells,
    cell_specs,
    input_layers,
    join,
)
from darts_sg.ops import OPERATIONS
from darts_sg.ops.drop_path import drop_path, kept_paths
from darts_sg.ops.operation import Residual

NetworkShape = Literal["cifar", "imagenet"]
STEM_MULTIPLIER = 3


class DerivedCell(nn.Module):
    """A cell of a genotype: s0 (N, C_pp, …), s1 (N, C_p, H, W) to (N, len(concat) · C, H, W), halved by a reduction."""

    def __init__(self, cell: Cell, spec: CellSpec) -> None:
        super().__init__()
        self.cell = cell
        self.input_0, self.input_1 = input_layers(spec, affine=True)
        self.ops = nn.ModuleList(
            OPERATIONS[edge.operation].build(spec.C, 2 if spec.reduction and edge.state < NUM_INPUTS else 1, True)
            for _, edge in cell.edges()
        )
        self.native = False  # whether the kernels of darts_sg.backends compute it, if they can
        self.graphs = CellGraphs((self.input_0, self.input_1), self._steps(), cell.concat)

    def _steps(self) -> list[ir.Step] | None:
        """See CellGraphs."""
        steps: list[ir.Step] = []
        ops = iter(self.ops)
        for number, node in enumerate(self.cell.nodes, start=NUM_INPUTS):
            inputs = list(dict.fromkeys(edge.state for edge in node))
            each: list[ir.Operation] = []
            for edge in node:
                op, place = next(ops), inputs.index(edge.state)
                stages = stages_of(op)
                if stages is None:
                    return None
                each.append(ir.Operation(stages, place))
                if _adds_input(op):
                    each.append(ir.Operation([], place))
            steps.append(ir.Step(ir.Operations(1, 1, each), inputs, [number]))
        return steps

    def in_one(self, state: Tensor) -> bool:
        """Whether it is computed in one call of the kernels."""
        return self.native and self.graphs.known and ir.takes(state)

    def in_parts(self, s0: Parts, s1: Parts, drop_path_prob: float | Tensor | None) -> tuple[Parts, Parts]:
        """What `forward` gives, in parts, and s1, to be used instead of s1 from now on."""
        if not self.in_one(s0[0]):
            return [self(join(s0), join(s1), drop_path_prob)], s1
        return self.graphs.run(s0, s1, self._kept(s0[0], drop_path_prob))

    def forward(self, s0: Tensor, s1: Tensor, drop_path_prob: float | Tensor | None) -> Tensor:
        """With `native` the states are given as they are before the ReLU between cells."""
        if self.in_one(s0):
            return join(self.in_parts([s0], [s1], drop_path_prob)[0])
        states = self.graphs.inputs(s0, s1) if self.native else [self.input_0(s0), self.input_1(s1)]
        ops = iter(self.ops)
        for node in self.cell.nodes:
            terms: list[Tensor] = []
            for edge in node:
                op = next(ops)
                terms.append(drop_path(op(states[edge.state]), _prob_of(op, drop_path_prob)))
            states.append(sum(terms[1:], terms[0]))
        return join([states[i] for i in self.cell.concat])

    def _kept(self, like: Tensor, drop_path_prob: float | Tensor | None) -> list[Tensor]:
        """For each node what drop path multiplies its terms with: (terms, 1, N)."""
        ones = like.new_ones(len(like))
        ops = iter(self.ops)
        gammas = []
        for node in self.cell.nodes:
            factors: list[Tensor] = []
            for _ in node:
                op = next(ops)
                kept = kept_paths(like, _prob_of(op, drop_path_prob))
                factors += [ones if kept is None else kept.flatten()] * (2 if _adds_input(op) else 1)
            gammas.append(torch.stack(factors)[:, None])
        return gammas


def _prob_of(op: nn.Module, drop_path_prob: float | Tensor | None) -> float | Tensor | None:
    """An identity is never dropped, so that a node always keeps a path."""
    return None if isinstance(op, nn.Identity) else drop_path_prob


def _adds_input(op: nn.Module) -> bool:
    return isinstance(op, Residual) and op.shortcut


def stages_of(op: nn.Module) -> list[ir.Stage] | None:
    """An operation as the kernels of darts_sg.backends compute it: no stages for the identity, None if they cannot."""
    if isinstance(op, nn.Identity):
        return []
    if isinstance(op, Residual):
        op = op.body
    if isinstance(op, nn.Sequential):
        return ir.stages_of(list(op), 1)
    pool = ir.pool_of([op])
    return None if pool is None else [pool]


class AuxiliaryHead(nn.Module):
    """ReLU - 5×5 average pool - 1×1 to 128 - BN - ReLU - 2×2 to 768 - BN - ReLU - linear; used in training only.

    (N, C, H, W) to (N, num_classes). CIFAR shape, on 8×8: pool of stride 3. ImageNet shape, on the 7×7 that 224×224
    images leave: stride 2, and no BN after the 2×2, as in the original code. Other sizes are averaged to the 2×2
    that the convolution takes.
    """

    def __init__(self, C: int, num_classes: int, network: NetworkShape) -> None:
        super().__init__()
        self.expected, self.stride = (8, 3) if network == "cifar" else (7, 2)
        self.features = nn.Sequential(
            nn.Conv2d(C, 128, 1, bias=False),
            nn.BatchNorm2d(128),
            nn.ReLU(),
            nn.Conv2d(128, 768, 2, bias=False),
            nn.BatchNorm2d(768) if network == "cifar" else nn.Identity(),
            nn.ReLU(),
        )
        self.head = Head(768, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(x)  # taken already unless the state is the last one
        if x.shape[-2:] == (self.expected, self.expected):
            x = nn.functional.avg_pool2d(x, 5, self.stride, count_include_pad=False)
        else:
            x = nn.functional.adaptive_avg_pool2d(x, 2)
        return self.head(self.features(x))


class DerivedNetwork(nn.Module):
    """Stem - cells of the genotype - global pool - linear, with an auxiliary head at 2/3 of the depth if asked.

    `forward(x)` maps images (N, in_channels, H, W) to (logits, auxiliary logits); the latter is None in eval mode
    and without an auxiliary head.
    Raises UsageError for fewer than 3 cells or a network shape that is neither `cifar` nor `imagenet`.
    """

    def __init__(
        self,
        genotype: Genotype,
        *,
        network: NetworkShape = "cifar",
        channels: int = 36,
        cells: int = 20,
        num_classes: int = 10,
        in_channels: int = 3,
        auxiliary: bool = False,
    ) -> None:
        super().__init__()
        self._drop_path_prob: Tensor | None = None
        if network == "cifar":
            C_stem = STEM_MULTIPLIER * channels
            self.stem: nn.Module = CifarStem(in_channels, C_stem)
        elif network == "imagenet":
            C_stem = channels
            self.stem = ImageNetStem(in_channels, C_stem)
        else:
            raise UsageError(f"unknown network shape {network!r}; choices: cifar, imagenet")

        def cell_of(reduction: bool) -> Cell:
            return genotype.reduce if reduction else genotype.normal

        self.specs = cell_specs(
            channels, cells, C_stem, lambda r: len(cell_of(r).concat), reduction_before=network == "imagenet"
        )
        self.cells = nn.ModuleList(DerivedCell(cell_of(spec.reduction), spec) for spec in self.specs)
        C_out = [len(cell_of(spec.reduction).concat) * spec.C for spec in self.specs]
        self.auxiliary_after = 2 * cells // 3
        self.auxiliary_head = AuxiliaryHead(C_out[self.auxiliary_after], num_classes, network) if auxiliary else None
        self.head = Head(C_out[-1], num_classes)
        self.native = False

    def use_native(self, on: bool) -> None:
        """Whether the kernels of darts_sg.backends compute what they can of the cells, on a CPU.

        They must be there (darts_sg.backends.kernels) by the first forward pass.
        """
        self.native = on
        for cell in self._cells():
            cell.native = on

    def set_drop_path_prob(self, prob: float) -> None:
        """Drop path with this probability from now on, in train mode; 0 for none."""
        device = self.head.classifier.weight.device
        self._drop_path_prob = torch.tensor(prob, device=device) if prob > 0 else None

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        s0: Parts
        s1: Parts
        s0, s1 = ([state] for state in self.stem(x))
        drop_path_prob = self._drop_path_prob if self.training else None
        auxiliary_logits = None
        last = len(self.cells) - 1
        for i, cell in enumerate(self._cells()):
            output, s1 = cell.in_parts(s0, s1, drop_path_prob)
            if not self.native and i < last:  # the kernels take the ReLU with what follows it
                output = [between_cells(state) for state in output]
            s0, s1 = s1, output
            if i == self.auxiliary_after and self.auxiliary_head is not None and self.training:
                auxiliary_logits = self.auxiliary_head(join(s1))
        return self.head(join(s1)), auxiliary_logits

    def _cells(self) -> list[DerivedCell]:
        return [cast(DerivedCell, cell) for cell in self.cells]
