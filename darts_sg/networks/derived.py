"""Networks built from a genotype, in the CIFAR and the ImageNet shape (DARTS paper, section 3.2 and 3.3)."""

import torch
from torch import Tensor, nn

from darts_sg.errors import UsageError
from darts_sg.genotype import NUM_INPUTS, Cell, Genotype
from darts_sg.networks.skeleton import (
    CellSpec,
    CifarStem,
    Head,
    ImageNetStem,
    NetworkShape,
    State,
    cell_specs,
    edge_stride,
    input_layers,
    join,
    stem_channels,
)
from darts_sg.ops import OPERATIONS
from darts_sg.ops.drop_path import DrawnPaths, drop_path, kept_factors

__all__ = ["AuxiliaryHead", "DerivedCell", "DerivedNetwork", "NetworkShape"]


class DerivedCell(nn.Module):
    """A cell of a genotype: each node is the sum of the operations on its edges; the nodes in `concat` are joined.

    States s0 (N, C_pp, …) and s1 (N, C_p, H, W) to (N, len(concat) · C, H, W), halved by a reduction cell. `ops` has
    one operation an edge, in the order of `Cell.edges`. Nodes without edges are not computed, because nothing reads
    them.
    """

    def __init__(self, cell: Cell, spec: CellSpec) -> None:
        super().__init__()
        self.cell, self.spec = cell, spec
        self.input_0, self.input_1 = input_layers(spec, affine=True)
        self.ops = nn.ModuleList(
            OPERATIONS[edge.operation].build(spec.C, edge_stride(spec.reduction, edge.state), True)
            for _, edge in cell.edges()
        )

    def forward(self, s0: State, s1: State, drop_path_prob: float | Tensor | DrawnPaths | None) -> State:
        x0, x1 = s0.rectified(), s1.rectified()
        return State(join(self.nodes([self.input_0(x0), self.input_1(x1)], drop_path_prob)))

    def nodes(self, states: list[Tensor], drop_path_prob: float | Tensor | DrawnPaths | None) -> list[Tensor]:
        """The joined nodes, from the outputs of the two input layers, (N, C, H, W) each."""
        ops = iter(self.ops)
        found = dict(enumerate(states))
        for number, node in enumerate(self.cell.nodes, start=NUM_INPUTS):
            terms: list[Tensor] = []
            for edge in node:
                op = next(ops)
                terms.append(drop_path(op(found[edge.state]), drop_prob_of(op, drop_path_prob)))
            if terms:
                found[number] = sum(terms[1:], terms[0])
        return [found[i] for i in self.cell.concat]


def drop_prob_of(
    op: nn.Module, drop_path_prob: float | Tensor | DrawnPaths | None
) -> float | Tensor | DrawnPaths | None:
    """The drop path probability of an operation: an identity is never dropped, so that a node always keeps a path."""
    return None if isinstance(op, nn.Identity) else drop_path_prob


class AuxiliaryHead(nn.Module):
    """5×5 average pool - 1×1 to 128 - BN - ReLU - 2×2 to 768 - BN - ReLU - linear; used in training only.

    A rectified state (N, C, H, W) to (N, num_classes). CIFAR shape, on 8×8: pool of stride 3. ImageNet shape, on the
    7×7 that 224×224 images leave: stride 2, and no BN after the 2×2, as in the original code. Features of other sizes
    are averaged to the 2×2 that the convolution needs.
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
        if x.shape[-2:] == (self.expected, self.expected):
            x = nn.functional.avg_pool2d(x, 5, self.stride, count_include_pad=False)
        else:
            x = nn.functional.adaptive_avg_pool2d(x, 2)
        return self.head(self.features(x))


class DerivedNetwork(nn.Module):
    """Stem - cells of the genotype - global pool - linear, with an optional auxiliary head at 2/3 of the depth.

    `forward(x)` maps images (N, in_channels, H, W) to (logits, auxiliary logits); the latter is None in eval mode
    and without an auxiliary head. With num_classes None there is no classifier: a backbone, whose `maps(x)` detectors
    use.
    Raises UsageError for fewer than 3 cells or a network shape that is neither `cifar` nor `imagenet`.
    """

    def __init__(
        self,
        genotype: Genotype,
        *,
        network: NetworkShape = "cifar",
        channels: int = 36,
        cells: int = 20,
        num_classes: int | None = 10,
        in_channels: int = 3,
        auxiliary: bool = False,
    ) -> None:
        super().__init__()
        self._drop_path_prob: Tensor | None = None
        self._held_prob: Tensor | None = None
        self.drops_together = False
        """Whether all masks of drop path of a pass come from one draw: fewer launches, other random bits."""
        if network not in ("cifar", "imagenet"):
            raise UsageError(f"unknown network shape {network!r}; choices: cifar, imagenet")
        large = network == "imagenet"
        C_stem = stem_channels(network, channels)
        self.stem = (ImageNetStem if large else CifarStem)(in_channels, C_stem)

        def cell_of(reduction: bool) -> Cell:
            return genotype.reduce if reduction else genotype.normal

        self.specs = cell_specs(channels, cells, C_stem, lambda r: len(cell_of(r).concat), reduction_before=large)
        self.cells = nn.ModuleList(DerivedCell(cell_of(spec.reduction), spec) for spec in self.specs)
        C_out = [len(cell_of(spec.reduction).concat) * spec.C for spec in self.specs]
        self.auxiliary_after = 2 * cells // 3
        self.auxiliary_head = (
            AuxiliaryHead(C_out[self.auxiliary_after], num_classes, network) if auxiliary and num_classes else None
        )
        last_reduction = max(i for i, spec in enumerate(self.specs) if spec.reduction)
        self.fine_after = last_reduction - 1
        """The cell whose output is the finer map of a detector."""
        self.map_channels = C_out[self.fine_after], C_out[-1], C_out[-1]
        """Channels of the three `maps`."""
        self.head = None if num_classes is None else Head(C_out[-1], num_classes)

    def set_drop_path_prob(self, prob: float) -> None:
        """Drop path with this probability from now on, in train mode; 0 for none.

        It is kept in one tensor on the device, which a captured CUDA graph reads.
        """
        device = next(self.parameters()).device
        if self._held_prob is None or self._held_prob.device != device:
            self._held_prob = torch.zeros((), device=device)
        self._drop_path_prob = self._held_prob.fill_(prob) if prob > 0 else None

    def _drops(self, x: Tensor) -> Tensor | DrawnPaths | None:
        """The probability of drop path in this pass over x, or the factors of all operations; None without it.

        The number of images is asked for only where it is needed: an export would take it as fixed.
        """
        prob = self._drop_path_prob if self.training else None
        if prob is None or not self.drops_together:
            return prob
        dropped = [op for cell in self.cells for op in cell.ops if drop_prob_of(op, prob) is not None]  # type: ignore[union-attr]
        return DrawnPaths(kept_factors(torch.rand(len(dropped), len(x), device=prob.device), prob))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        s0, s1 = self.stem(x)
        drop_path_prob = self._drops(x)
        auxiliary_logits = None
        for i, cell in enumerate(self.cells):
            s0, s1 = s1, cell(s0, s1, drop_path_prob)
            if i == self.auxiliary_after and self.auxiliary_head is not None and self.training:
                last = i == len(self.cells) - 1  # in networks of 3 cells: the classifier needs the state unrectified
                auxiliary_logits = self.auxiliary_head(s1.rectified(keep=last))
        assert self.head is not None, "a backbone has maps only"
        return self.head(s1.joined()), auxiliary_logits

    def maps(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The features of a detector: the state before the last reduction cell, and twice the last state, rectified.

        In the imagenet shape (N, C, H/16, W/16) and (N, C, H/32, W/32). All consumers of a state begin with its ReLU,
        so the detector's heads do too.
        """
        s0, s1 = self.stem(x)
        drop_path_prob = self._drops(x)
        fine = s1
        for i, cell in enumerate(self.cells):
            s0, s1 = s1, cell(s0, s1, drop_path_prob)
            if i == self.fine_after:
                fine = s1
        output = s1.rectified()
        return fine.rectified(), output, output
