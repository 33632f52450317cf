"""The networks of DARTS (Liu et al., ICLR 2019) and PC-DARTS (Xu et al., ICLR 2020), as the papers draw them.

An operation module on every edge, nothing shared, nothing fast, and independent of the package on purpose.
Edges of a cell are numbered node by node; node i takes the states 0 to i+1.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv(C_in: int, C_out: int, kernel: int | tuple[int, int], **options: Any) -> nn.Conv2d:
    """A convolution without bias."""
    return nn.Conv2d(C_in, C_out, kernel, bias=False, **options)


def depthwise(C: int, kernel: int, stride: int = 1, dilation: int = 1) -> nn.Conv2d:
    """One kernel × kernel filter a channel; keeps the size up to the stride."""
    padding = dilation * (kernel - 1) // 2
    return conv(C, C, kernel, stride=stride, padding=padding, dilation=dilation, groups=C)


def relu_conv_bn(C_in: int, C_out: int, affine: bool) -> nn.Sequential:
    """ReLU – 1×1 – BN."""
    return nn.Sequential(nn.ReLU(), conv(C_in, C_out, 1), nn.BatchNorm2d(C_out, affine=affine))


def separable(C: int, kernel: int, stride: int, affine: bool) -> nn.Sequential:
    """(ReLU – k×k depthwise – 1×1 – BN) twice, the first with the stride."""
    halves = []
    for s in (stride, 1):
        halves += [nn.ReLU(), depthwise(C, kernel, s), conv(C, C, 1), nn.BatchNorm2d(C, affine=affine)]
    return nn.Sequential(*halves)


def dilated(C: int, kernel: int, stride: int, affine: bool) -> nn.Sequential:
    """ReLU – k×k depthwise, dilation 2 – 1×1 – BN."""
    return nn.Sequential(
        nn.ReLU(), depthwise(C, kernel, stride, dilation=2), conv(C, C, 1), nn.BatchNorm2d(C, affine=affine)
    )


def seven_by_one(C: int, stride: int, affine: bool) -> nn.Sequential:
    """ReLU – 1×7 – 7×1 – BN."""
    return nn.Sequential(
        nn.ReLU(),
        conv(C, C, (1, 7), stride=(1, stride), padding=(0, 3)),
        conv(C, C, (7, 1), stride=(stride, 1), padding=(3, 0)),
        nn.BatchNorm2d(C, affine=affine),
    )


class Zero(nn.Module):
    """`none`: zeros of the output's shape."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x[:, :, :: self.stride, :: self.stride])


class FactorizedReduce(nn.Module):
    """ReLU – two 1×1 of stride 2, one of them a pixel further – concatenation – BN; odd sizes are padded."""

    def __init__(self, C_in: int, C_out: int, affine: bool) -> None:
        super().__init__()
        self.here = conv(C_in, C_out // 2, 1, stride=2)
        self.shifted = conv(C_in, C_out - C_out // 2, 1, stride=2)
        self.bn = nn.BatchNorm2d(C_out, affine=affine)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        x = F.pad(F.relu(x), (0, width % 2, 0, height % 2))
        return self.bn(torch.cat([self.here(x), self.shifted(x[:, :, 1:, 1:])], dim=1))


class Residual(nn.Module):
    """The block's output, plus the input where the stride is 1."""

    def __init__(self, block: nn.Module, stride: int) -> None:
        super().__init__()
        self.block = block
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return x + self.block(x) if self.stride == 1 else self.block(x)


def sandglass(C: int, kernel: int, reduction: int, stride: int, affine: bool) -> nn.Module:
    """Depthwise – BN – ReLU6 – 1×1 – BN – 1×1 – BN – ReLU6 – depthwise with the stride – BN; the shortcut."""
    hidden = max(1, C // reduction)
    block = nn.Sequential(
        depthwise(C, kernel),
        nn.BatchNorm2d(C, affine=affine),
        nn.ReLU6(),
        conv(C, hidden, 1),
        nn.BatchNorm2d(hidden, affine=affine),
        conv(hidden, C, 1),
        nn.BatchNorm2d(C, affine=affine),
        nn.ReLU6(),
        depthwise(C, kernel, stride),
        nn.BatchNorm2d(C, affine=affine),
    )
    return Residual(block, stride)


def inverted_residual(C: int, expansion: int, stride: int, affine: bool) -> nn.Module:
    """1×1 – BN – ReLU6 – 3×3 depthwise with the stride – BN – ReLU6 – 1×1 – BN, and the shortcut."""
    hidden = expansion * C
    block = nn.Sequential(
        conv(C, hidden, 1),
        nn.BatchNorm2d(hidden, affine=affine),
        nn.ReLU6(),
        depthwise(hidden, 3, stride),
        nn.BatchNorm2d(hidden, affine=affine),
        nn.ReLU6(),
        conv(hidden, C, 1),
        nn.BatchNorm2d(C, affine=affine),
    )
    return Residual(block, stride)


def operation(name: str, C: int, stride: int, affine: bool) -> nn.Module:
    """The operation `name` on C channels, without the BN that follows pools in a supernet."""
    match name:
        case "none":
            return Zero(stride)
        case "max_pool_3x3":
            return nn.MaxPool2d(3, stride, padding=1)
        case "avg_pool_3x3":
            return nn.AvgPool2d(3, stride, padding=1, count_include_pad=False)
        case "skip_connect":
            return nn.Identity() if stride == 1 else FactorizedReduce(C, C, affine)
        case "sep_conv_3x3" | "sep_conv_5x5" | "sep_conv_7x7":
            return separable(C, int(name[-1]), stride, affine)
        case "dil_conv_3x3" | "dil_conv_5x5":
            return dilated(C, int(name[-1]), stride, affine)
        case "conv_7x1_1x7":
            return seven_by_one(C, stride, affine)
        case "sandglass_3x3":
            return sandglass(C, 3, 2, stride, affine)
        case "sandglass_3x3_r4":
            return sandglass(C, 3, 4, stride, affine)
        case "sandglass_3x3_r6":
            return sandglass(C, 3, 6, stride, affine)
        case "sandglass_5x5":
            return sandglass(C, 5, 2, stride, affine)
        case "inverted_residual_3x3":
            return inverted_residual(C, 6, stride, affine)
    raise KeyError(name)


def channel_shuffle(x: Tensor, groups: int) -> Tensor:
    """Channel g·(C/groups) + i goes to i·groups + g."""
    C = x.shape[1]
    order = [g * (C // groups) + i for i in range(C // groups) for g in range(groups)]
    return x[:, order]


class MixedOp(nn.Module):
    """The weighted sum of all operations on the first C/K channels; the rest passes by; all are shuffled."""

    def __init__(self, operations: Sequence[str], C: int, stride: int, partial_channels: int) -> None:
        super().__init__()
        self.K = partial_channels
        self.stride = stride
        self.C_mixed = C // partial_channels
        self.ops = nn.ModuleList()
        for name in operations:
            op = operation(name, self.C_mixed, stride, affine=False)
            if "pool" in name:
                op = nn.Sequential(op, nn.BatchNorm2d(self.C_mixed, affine=False))
            self.ops.append(op)

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        mixed, passed = x[:, : self.C_mixed], x[:, self.C_mixed :]
        out = sum(w * op(mixed) for w, op in zip(weights, self.ops, strict=True))
        if self.K == 1:
            return out
        if self.stride == 2:
            passed = F.max_pool2d(passed, 2, 2, ceil_mode=True)
        return channel_shuffle(torch.cat([out, passed], dim=1), self.K)


def preprocess(C_pp: int, C_p: int, C: int, after_reduction: bool, affine: bool) -> nn.ModuleList:
    """What brings both inputs of a cell to C channels and one size."""
    older = FactorizedReduce(C_pp, C, affine) if after_reduction else relu_conv_bn(C_pp, C, affine)
    return nn.ModuleList([older, relu_conv_bn(C_p, C, affine)])


class SearchCell(nn.Module):
    """Every node takes every earlier state through a mixed operation; all nodes are concatenated."""

    def __init__(
        self,
        operations: Sequence[str],
        C_pp: int,
        C_p: int,
        C: int,
        reduction: bool,
        after_reduction: bool,
        num_nodes: int,
        partial_channels: int,
    ) -> None:
        super().__init__()
        self.reduction = reduction
        self.num_nodes = num_nodes
        self.preprocess = preprocess(C_pp, C_p, C, after_reduction, affine=False)
        self.edges = nn.ModuleList()
        for node in range(num_nodes):
            for state in range(2 + node):
                stride = 2 if reduction and state < 2 else 1
                self.edges.append(MixedOp(operations, C, stride, partial_channels))

    def forward(self, s0: Tensor, s1: Tensor, weights: Tensor, edge_weights: Tensor) -> Tensor:
        states = [self.preprocess[0](s0), self.preprocess[1](s1)]
        edge = 0
        for _ in range(self.num_nodes):
            total = torch.zeros(())
            for state in list(states):
                total = total + edge_weights[edge] * self.edges[edge](state, weights[edge])
                edge += 1
            states.append(total)
        return torch.cat(states[2:], dim=1)


def stems(network: str, in_channels: int, channels: int, multiplier: int) -> tuple[nn.Sequential, nn.Sequential | None]:
    """CIFAR: 3×3 - BN. ImageNet: two 3×3 of stride 2, and after a ReLU a third one for the second input."""
    if network == "cifar":
        C = multiplier * channels
        return nn.Sequential(conv(in_channels, C, 3, padding=1), nn.BatchNorm2d(C)), None
    half = channels // 2
    first = nn.Sequential(
        conv(in_channels, half, 3, stride=2, padding=1),
        nn.BatchNorm2d(half),
        nn.ReLU(),
        conv(half, channels, 3, stride=2, padding=1),
        nn.BatchNorm2d(channels),
    )
    second = nn.Sequential(nn.ReLU(), conv(channels, channels, 3, stride=2, padding=1), nn.BatchNorm2d(channels))
    return first, second


class Supernet(nn.Module):
    """The search network: stem, cells with reductions at 1/3 and 2/3 of the depth, pooling, linear layer."""

    def __init__(
        self,
        operations: Sequence[str],
        *,
        network: str = "cifar",
        channels: int,
        cells: int,
        num_classes: int = 10,
        num_nodes: int = 4,
        stem_multiplier: int = 3,
        in_channels: int = 3,
        partial_channels: int = 1,
    ) -> None:
        super().__init__()
        self.stem0, self.stem1 = stems(network, in_channels, channels, stem_multiplier)
        C_stem = channels if self.stem1 else stem_multiplier * channels
        self.cells = nn.ModuleList()
        C_pp, C_p, C, after_reduction = C_stem, C_stem, channels, self.stem1 is not None
        for i in range(cells):
            reduction = i in (cells // 3, 2 * cells // 3)
            C = 2 * C if reduction else C
            self.cells.append(
                SearchCell(operations, C_pp, C_p, C, reduction, after_reduction, num_nodes, partial_channels)
            )
            C_pp, C_p, after_reduction = C_p, num_nodes * C, reduction
        self.classifier = nn.Linear(C_p, num_classes)

    def forward(
        self,
        x: Tensor,
        normal: Tensor,
        reduce: Tensor,
        edge_normal: Tensor | None = None,
        edge_reduce: Tensor | None = None,
    ) -> Tensor:
        """Logits (N, classes) of x (N, 3, H, W); weights are (edges, operations), edge weights (edges,)."""
        ones = torch.ones(len(normal), dtype=x.dtype)
        edge_normal = ones if edge_normal is None else edge_normal
        edge_reduce = ones if edge_reduce is None else edge_reduce
        s0 = self.stem0(x)
        s1 = s0 if self.stem1 is None else self.stem1(s0)
        for cell in self.cells:
            weights = (reduce, edge_reduce) if cell.reduction else (normal, edge_normal)
            s0, s1 = s1, cell(s0, s1, *weights)
        return self.classifier(s1.mean(dim=(2, 3)))


def softmax_over_operations(alpha: Tensor) -> Tensor:
    """DARTS eq. 2: each row of alpha (edges, operations) becomes a distribution."""
    exponentials = torch.exp(alpha - alpha.max())
    return exponentials / exponentials.sum(dim=1, keepdim=True)


def softmax_over_edges(beta: Tensor) -> Tensor:
    """PC-DARTS eq. 4: a distribution over the edges into each node, from beta (edges,)."""
    parts = []
    start = 0
    for size in node_sizes(len(beta)):
        exponentials = torch.exp(beta[start : start + size])
        parts.append(exponentials / exponentials.sum())
        start += size
    return torch.cat(parts)


def node_sizes(num_edges: int) -> Iterator[int]:
    """2, 3, 4, …: how many edges enter each node."""
    size = 2
    while num_edges > 0:
        yield size
        num_edges -= size
        size += 1


class DerivedCell(nn.Module):
    """The chosen operations of a cell; a node is the sum of its edges, the states in `concat` the output."""

    def __init__(
        self,
        nodes: Sequence[Sequence[tuple[str, int]]],
        concat: Sequence[int],
        C_pp: int,
        C_p: int,
        C: int,
        reduction: bool,
        after_reduction: bool,
    ) -> None:
        super().__init__()
        self.nodes = nodes
        self.concat = concat
        self.preprocess = preprocess(C_pp, C_p, C, after_reduction, affine=True)
        self.ops = nn.ModuleList()
        for node in nodes:
            for name, state in node:
                self.ops.append(operation(name, C, 2 if reduction and state < 2 else 1, affine=True))

    def forward(self, s0: Tensor, s1: Tensor) -> Tensor:
        states = [self.preprocess[0](s0), self.preprocess[1](s1)]
        ops = iter(self.ops)
        for node in self.nodes:
            terms = [next(ops)(states[state]) for _, state in node]
            states.append(torch.stack(terms).sum(dim=0) if terms else None)  # nothing reads a node without edges
        return torch.cat([states[i] for i in self.concat], dim=1)


class AuxiliaryHead(nn.Module):
    """ReLU – 5×5 average pool – 1×1 to 128 – BN – ReLU – 2×2 to 768 – (BN for CIFAR) – ReLU – linear."""

    def __init__(self, C: int, num_classes: int, network: str) -> None:
        super().__init__()
        layers = [
            nn.ReLU(),
            nn.AvgPool2d(5, stride=3 if network == "cifar" else 2),
            conv(C, 128, 1),
            nn.BatchNorm2d(128),
            nn.ReLU(),
            conv(128, 768, 2),
        ]
        if network == "cifar":
            layers.append(nn.BatchNorm2d(768))
        self.features = nn.Sequential(*layers, nn.ReLU())
        self.classifier = nn.Linear(768, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).flatten(1))


class DerivedNetwork(nn.Module):
    """The network of a genotype: CIFAR (one 3×3 stem) or ImageNet (three 3×3 of stride 2 before the cells).

    `genotype` is plain data: normal and reduce are lists of nodes, a node a list of (operation, state);
    normal_concat and reduce_concat are lists of states.
    """

    def __init__(
        self,
        genotype: Mapping[str, Any],
        *,
        network: str,
        channels: int,
        cells: int,
        num_classes: int,
        in_channels: int = 3,
        auxiliary: bool = False,
    ) -> None:
        super().__init__()
        self.stem0, self.stem1 = stems(network, in_channels, channels, 3)
        C_pp = C_p = channels if self.stem1 else 3 * channels
        after_reduction = self.stem1 is not None
        self.cells = nn.ModuleList()
        self.auxiliary_head = None
        self.auxiliary_after = 2 * cells // 3
        C = channels
        for i in range(cells):
            reduction = i in (cells // 3, 2 * cells // 3)
            C = 2 * C if reduction else C
            kind = "reduce" if reduction else "normal"
            concat = genotype[f"{kind}_concat"]
            self.cells.append(DerivedCell(genotype[kind], concat, C_pp, C_p, C, reduction, after_reduction))
            C_pp, C_p, after_reduction = C_p, len(concat) * C, reduction
            if auxiliary and i == self.auxiliary_after:
                self.auxiliary_head = AuxiliaryHead(C_p, num_classes, network)
        self.classifier = nn.Linear(C_p, num_classes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """(logits, auxiliary logits while training and where there is a head) of images x (N, 3, H, W)."""
        s0 = self.stem0(x)
        s1 = s0 if self.stem1 is None else self.stem1(s0)
        auxiliary = None
        for i, cell in enumerate(self.cells):
            s0, s1 = s1, cell(s0, s1)
            if i == self.auxiliary_after and self.auxiliary_head is not None and self.training:
                auxiliary = self.auxiliary_head(s1)
        return self.classifier(s1.mean(dim=(2, 3))), auxiliary


def count(network: nn.Module, image: tuple[int, int, int]) -> tuple[int, int]:
    """(all parameters, multiply-adds of convolutions and linear layers for one image of shape (C, H, W)).

    Measured in a forward pass; an auxiliary head counts where the network has one and is training.
    """
    macs = 0

    def add(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal macs
        # each output element is one dot product with the filter of its channel
        macs += output[0].numel() * module.weight[0].numel()

    layers = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    hooks = [layer.register_forward_hook(add) for layer in layers]
    parameter = next(network.parameters())
    with torch.no_grad():
        network(torch.zeros(2, *image, dtype=parameter.dtype, device=parameter.device))
    for hook in hooks:
        hook.remove()
    return sum(p.numel() for p in network.parameters()), macs
