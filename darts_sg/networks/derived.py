"""Networks built from a genotype, in the CIFAR and the ImageNet shape (DARTS paper, section 3.2 and 3.3)."""

from collections.abc import Sequence
from typing import Literal, cast

import torch
from torch import Tensor, nn

from darts_sg.errors import UsageError
from darts_sg.genotype import NUM_INPUTS, Cell, Genotype
from darts_sg.native import chains as native
from darts_sg.networks.skeleton import (
    CellSpec,
    CifarStem,
    Head,
    ImageNetStem,
    between_cells,
    cell_specs,
    input_layers,
    input_operations,
    join,
    through_input,
)
from darts_sg.ops import OPERATIONS
from darts_sg.ops.drop_path import drop_path, kept_paths
from darts_sg.ops.operation import Residual

NetworkShape = Literal["cifar", "imagenet"]
STEM_MULTIPLIER = 3
Sums = dict[tuple[int, ...], native.Operations]  # by the number of a sum, then those of its terms' inputs


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
        self.native = False  # whether the kernels of darts_sg.native compute what they know
        self.sums: Sums = {}

    def use_native(self, on: bool) -> None:
        """See DerivedNetwork.use_native."""
        self.native = on
        self.sums.clear()
        self.input_operations = [input_operations(layer) for layer in (self.input_0, self.input_1)]
        self.op_stages = [stages_of(op) for op in self.ops]

    def forward(self, s0: Tensor, s1: Tensor, drop_path_prob: float | Tensor | None) -> Tensor:
        """With `native` the states are given as they are before the ReLU between cells."""
        states = [self._input(0, s0), self._input(1, s1)]
        ops = iter(range(len(self.ops)))
        for number, node in enumerate(self.cell.nodes):
            terms: list[Tensor] = []
            chains: list[tuple[Tensor, Sequence[native.Stage], Tensor | None]] = []
            for edge in node:
                i, x = next(ops), states[edge.state]
                op = self.ops[i]
                # an identity is never dropped, so that a node always keeps a path
                prob = None if isinstance(op, nn.Identity) else drop_path_prob
                stages = self.op_stages[i] if self.native and native.takes(x) else None
                if stages is None:
                    terms.append(drop_path(op(x), prob))
                    continue
                kept = kept_paths(x, prob)
                chains.append((x, stages, kept))
                if isinstance(op, Residual) and op.shortcut:
                    chains.append((x, [], kept))
            if chains:
                terms.append(sum_of(chains, self.sums, number))
            states.append(sum(terms[1:], terms[0]))
        return join([states[i] for i in self.cell.concat])

    def _input(self, number: int, state: Tensor) -> Tensor:
        layer = self.get_submodule(f"input_{number}")
        if not self.native:
            return cast(Tensor, layer(state))
        return through_input(state, layer, self.input_operations[number] if native.takes(state) else None)


def stages_of(op: nn.Module) -> list[native.Stage] | None:
    """An operation as the kernels of darts_sg.native compute it: no stages for the identity, None if they cannot."""
    if isinstance(op, nn.Identity):
        return []
    if isinstance(op, Residual):
        op = op.body
    if isinstance(op, nn.Sequential):
        return native.stages_of(list(op), 1)
    pool = native.pool_of([op])
    return None if pool is None else [pool]


def sum_of(
    terms: Sequence[tuple[Tensor, Sequence[native.Stage], Tensor | None]],
    known: Sums,
    number: int,
) -> Tensor:
    """The sum of stages of inputs (N, C, H, W), each with a factor for each image or none, to (N, C', H', W').

    known: where what the stages are to the kernels is kept, under their number; they are the same each time.
    """
    inputs = list({id(x): x for x, *_ in terms}.values())
    place = {id(x): i for i, x in enumerate(inputs)}
    ones = inputs[0].new_ones(len(inputs[0]))
    factors = torch.stack([ones if kept is None else kept.flatten() for *_, kept in terms])
    key = number, *(place[id(x)] for x, *_ in terms)
    if key not in known:
        known[key] = native.Operations(1, 1, [native.Operation(stages, place[id(x)]) for x, stages, _ in terms])
    return native.run(inputs, factors[:, None], known[key])[0]


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
        """Whether the kernels of darts_sg.native compute what they can of the cells, on a CPU.

        They must be there (darts_sg.native.kernels) by the first forward pass.
        """
        self.native = on
        for cell in self.cells:
            cast(DerivedCell, cell).use_native(on)

    def set_drop_path_prob(self, prob: float) -> None:
        """Drop path with this probability from now on, in train mode; 0 for none."""
        device = self.head.classifier.weight.device
        self._drop_path_prob = torch.tensor(prob, device=device) if prob > 0 else None

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        s0, s1 = self.stem(x)
        drop_path_prob = self._drop_path_prob if self.training else None
        auxiliary_logits = None
        for i, cell in enumerate(self.cells):
            output = cell(s0, s1, drop_path_prob)
            as_it_is = self.native or i == len(self.cells) - 1  # the kernels take the ReLU with what follows it
            s0, s1 = s1, output if as_it_is else between_cells(output)
            if i == self.auxiliary_after and self.auxiliary_head is not None and self.training:
                auxiliary_logits = self.auxiliary_head(s1)
        return self.head(s1), auxiliary_logits
