"""What the supernet and the derived networks share: the channel plan, the state between cells, stems and head."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from darts_sg.errors import UsageError
from darts_sg.genotype import NUM_INPUTS
from darts_sg.ops.primitives import ConvBN, HalvingConvBN

NetworkShape = Literal["cifar", "imagenet"]
MOST_CELLS, MOST_CHANNELS = 300, 2**16
"""Far above what papers train (20 cells, C=36); without them a slip of the keyboard takes all memory, or for ever."""
STEM_MULTIPLIER = 3
"""The CIFAR stem has this many times C channels (DARTS paper, appendix A.1)."""


def stem_channels(network: NetworkShape, channels: int, multiplier: int = STEM_MULTIPLIER) -> int:
    """Channels of the stem's two outputs in a network of width C = `channels`; UsageError if that is too wide."""
    refuse_size(channels)
    return multiplier * channels if network == "cifar" else channels


def edge_stride(reduction: bool, state: int) -> int:
    """Stride of the edges that leave a state: a reduction cell halves the resolution on those from its two inputs."""
    return 2 if reduction and state < NUM_INPUTS else 1


def refuse_size(channels: int, cells: int = 3) -> None:
    """UsageError for more cells or channels than any machine has memory for."""
    if cells > MOST_CELLS or channels > MOST_CHANNELS:
        raise UsageError(
            f"{cells} cells of C={channels}: a network has at most {MOST_CELLS:,} cells and {MOST_CHANNELS:,} channels"
        )


@dataclass(frozen=True)
class CellSpec:
    """Channels of a cell: of its input states c_{k-2} (`C_pp`) and c_{k-1} (`C_p`), and of its nodes (`C`)."""

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
    Raises UsageError if there are fewer than 3 cells, or more cells or channels than any machine has memory for.
    """
    refuse_size(C, num_cells)
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
    """The layers that bring c_{k-2} and c_{k-1} to C channels and to the size of c_{k-1}: 1×1 - BN.

    The papers' ReLU - 1×1 - BN without the ReLU, which `State.rectified` computes once for all consumers of a state.
    """
    older = HalvingConvBN if spec.reduction_before else ConvBN
    return older(spec.C_pp, spec.C, affine=affine), ConvBN(spec.C_p, spec.C, affine=affine)


class State:
    """What passes between cells: a tensor (N, C, H, W), or its parts, whose channels follow each other.

    A state holds values before the ReLU with which every consumer begins: the two following cells and the auxiliary
    head. PyTorch cells take `rectified()`, which computes that ReLU once and in place. Kernels that fuse the ReLU with
    their first convolution take `parts`, and spare joining the nodes of the cell before. Only the classifier takes
    `joined()` values without a ReLU, those of the last cell.
    """

    def __init__(self, *parts: Tensor) -> None:
        self._parts = parts
        self._read = False  # whether a consumer holds the values before the ReLU, so that they must stay
        self._rectified: Tensor | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, C, H, W), C being that of all parts."""
        N, _, H, W = self._parts[0].shape
        return N, sum(part.shape[1] for part in self._parts), H, W

    @property
    def first(self) -> Tensor:
        """The first part, to ask for its device and dtype."""
        return self._parts[0]

    @property
    def parts(self) -> Sequence[Tensor]:
        """The parts before the ReLU, for a consumer that computes its own. A single part may be rectified already,
        which changes nothing for such a consumer: relu(relu(x)) = relu(x), and so are the gradients."""
        self._read = True
        return self._parts

    def pass_on(self, parts: Sequence[Tensor]) -> None:
        """Let later consumers take these parts, which equal those of today.

        A kernel graph returns the states that it reads, so that the gradient of all later consumers reaches it as one
        and is added to its own within the kernels.
        """
        self._parts = tuple(parts)

    def joined(self) -> Tensor:
        """The state as one tensor before the ReLU."""
        self._read = True
        return join(self._parts)

    def rectified(self, keep: bool = False) -> Tensor:
        """The ReLU of the joined state, computed once.

        It overwrites the joined tensor to save memory, except where the values before the ReLU are still needed
        (`keep`, or another consumer has read them) or PyTorch forbids it: a view, such as the only node of a batched
        cell, is a piece of a split tensor; a leaf that requires a gradient is the caller's.
        """
        if self._rectified is None:
            joined, single = join(self._parts), len(self._parts) == 1
            held = single and (keep or self._read or (joined.is_leaf and joined.requires_grad))
            if held or joined._base is not None:
                self._rectified = joined.relu()
            else:
                self._rectified = joined.relu_()
                if single:
                    self._parts = (self._rectified,)
        return self._rectified


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


def join(states: Sequence[Tensor]) -> Tensor:
    """Concatenate states (N, C, H, W) to (N, len(states) · C, H, W); a single one is returned as it is.

    The backward pass makes the gradient of each state contiguous. That of torch.cat is a view with gaps, on which the
    backward passes of BatchNorm and of the pools take up to 30 times as long on a CPU.
    """
    return states[0] if len(states) == 1 else _Join.apply(*states)


class CifarStem(nn.Module):
    """3×3 - BN: (N, in_channels, H, W) to one state (N, C_out, H, W), which serves as both c_{k-2} and c_{k-1}."""

    def __init__(self, in_channels: int, C_out: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(in_channels, C_out, 3, padding=1, bias=False), nn.BatchNorm2d(C_out))

    def forward(self, x: Tensor) -> tuple[State, State]:
        s = State(self.body(x))
        return s, s


class ImageNetStem(nn.Module):
    """s0: 3×3 /2 to C/2 - BN - ReLU - 3×3 /2 to C - BN; s1: ReLU - 3×3 /2 - BN of s0.

    (N, in_channels, H, W) to states (N, C, H/4, W/4) and (N, C, H/8, W/8).
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

    def forward(self, x: Tensor) -> tuple[State, State]:
        s0 = State(self.stem_0(x))
        return s0, State(self.stem_1(s0.rectified()))


class Head(nn.Module):
    """Global average pool - linear: (N, C, H, W) to (N, num_classes)."""

    def __init__(self, C: int, num_classes: int) -> None:
        super().__init__()
        self.classifier = nn.Linear(C, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.mean(x, dim=(2, 3)))
