"""Mobile networks that the C++ kernels compute on a CPU, each block in one call a pass."""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from darts_sg.backends import ir
from darts_sg.backends.cpp.cells import run_ops, takes
from darts_sg.backends.cpp.inference import infer
from darts_sg.backends.watch import Watch
from darts_sg.networks.mobile import MobileBlock
from darts_sg.ops.primitives import ConvBN

NORM_CHANNELS = 16  # a BatchNorm alone is computed for multiples of so many channels: whole vectors


def flattened(layers: Sequence[nn.Module] | nn.Sequential) -> list[nn.Module]:
    """The layers of a chain, those of chains within it in their place."""
    found: list[nn.Module] = []
    for layer in layers:
        found += flattened(layer) if isinstance(layer, nn.Sequential) else [layer]
    return found


class Chain:
    """Layers that are one call of the kernels: perhaps a BatchNorm, then stages, and an activation at the end.

    The kernels compute all but the last activation. adds_input: add the chain's input to its output.
    """

    def __init__(self, owner: nn.Module, layers: Sequence[nn.Module], *, adds_input: bool = False) -> None:
        """owner: the module whose children are watched for changes."""
        rest = flattened(layers)
        self.activation = rest.pop() if type(rest[-1]) in ir.ACTIVATIONS else None
        first: list[ir.FusedStage] = []
        norm = rest[0]
        if isinstance(norm, nn.BatchNorm2d) and norm.momentum is not None and norm.num_features % NORM_CHANNELS == 0:
            first = [ir.FusedStage(norm)]
            del rest[0]
        stages = ir.stages_of(rest, 1)
        self.operations: ir.FusedOps | None = None
        """None if a layer is unknown to the kernels."""
        if stages:
            each = [ir.FusedOp([*first, *stages]), *([ir.FusedOp()] if adds_input else [])]
            self.operations = ir.FusedOps(1, 1, each)
        watched = [module for layer in layers for module in layer.modules()]
        self._watch = Watch(owner, watched)

    def computes(self, x: Tensor) -> bool:
        """True if the kernels compute the chain for x as its layers are now."""
        return self.operations is not None and takes(x) and self._watch.unchanged(ignore_global=False)

    def __call__(self, x: Tensor) -> Tensor:
        assert self.operations is not None
        found = infer([x], self.operations.alone)
        [y] = found or run_ops([x], x.new_ones(len(self.operations.each), 1), self.operations)
        # the output is a view of the kernels' memory, in which autograd allows no change in place
        if self.activation is None:
            return y
        return F.relu6(y) if isinstance(self.activation, nn.ReLU6) else F.relu(y)


class CppMobileBlock(MobileBlock):
    """A block on the C++ kernels, which shares the plain block's modules.

    The shortcut is an identity beside the chain of layers, if it adds all channels; PyTorch adds a part of them. For
    other devices and types, layers unknown to the kernels, and once a module is replaced or hooked, PyTorch computes
    all of the block.
    """

    backend = "cpp"

    def __init__(self, block: MobileBlock) -> None:
        nn.Module.__init__(self)
        self.body, self.num_shared = block.body, block.num_shared
        norms = [layer for layer in flattened(self.body) if isinstance(layer, nn.BatchNorm2d)]
        ends_with_norm = isinstance(flattened(self.body)[-1], nn.BatchNorm2d)
        self.adds_all = ends_with_norm and self.num_shared == norms[-1].num_features
        self.chain = Chain(self, [self.body], adds_input=self.adds_all)
        self.training = block.training

    def plain(self) -> MobileBlock:
        """A plain block with the same modules."""
        block = MobileBlock([], self.num_shared)
        block.body, block.training = self.body, self.training
        return block

    def fused(self) -> Iterator[ir.FusedOps]:
        """Everything that the kernels compute of this block."""
        if self.chain.operations is not None:
            yield self.chain.operations

    def forward(self, x: Tensor) -> Tensor:
        if not self.chain.computes(x):
            return super().forward(x)
        y = self.chain(x)
        if self.adds_all or not self.num_shared:
            return y
        return self.with_shortcut(x, y if self.num_shared == y.shape[1] else y.clone())


class CppFeatures(nn.Sequential):
    """The layers of a mobile network, or some of them in a row. What stands between two blocks is computed with one:

    the BatchNorm and the activation of the stem with the first block, the last 1×1 convolution with its BatchNorm.
    """

    def __init__(self, layers: "OrderedDict[str, nn.Module]") -> None:
        super().__init__(layers)
        self._chains: dict[nn.Module, Chain] = {}  # cache, by the first layer

    def __getitem__(self, index: Any) -> Any:
        found = super().__getitem__(index)
        if isinstance(found, CppFeatures):  # a slice shares the chains, which are expensive to make
            found._chains = self._chains
        return found

    def plain(self) -> nn.Sequential:
        """The same layers on PyTorch alone."""
        each = self._modules.items()
        return nn.Sequential(
            OrderedDict((name, layer.plain() if isinstance(layer, CppMobileBlock) else layer) for name, layer in each)
        )

    def segments(self) -> Iterator[slice]:
        """The places of the layers that are computed together."""
        layers, start = list(self), 0
        while start < len(layers):
            count, _ = self._next(layers[start:])
            yield slice(start, start + count)
            start += count

    def fused(self) -> Iterator[ir.FusedOps]:
        """Everything that the kernels compute of these layers."""
        layers = list(self)
        for place in self.segments():
            _, chain = self._next(layers[place])
            first = layers[place.start]
            chain = first.chain if isinstance(first, CppMobileBlock) else chain
            if chain is not None and chain.operations is not None:
                yield chain.operations

    def forward(self, x: Tensor) -> Tensor:
        layers = list(self)
        while layers:
            count, chain = self._next(layers)
            if chain is not None and chain.computes(x):
                x = chain(x)
            else:
                count = 1
                x = layers[0](x)
            del layers[:count]
        return x

    def _next(self, layers: Sequence[nn.Module]) -> tuple[int, Chain | None]:
        """How many of the first layers make up a chain of their own, and that chain."""
        first, *others = layers[:3]
        if len(others) < 1 or type(others[0]) not in ir.ACTIVATIONS:
            return 1, None
        if isinstance(first, ConvBN):
            return 2, self._chain(first, [first, others[0]])
        block = others[-1]
        if type(first) is nn.BatchNorm2d and isinstance(block, CppMobileBlock) and not block.num_shared:
            return 3, self._chain(first, [first, others[0], block.body])
        return 1, None

    def _chain(self, key: nn.Module, layers: Sequence[nn.Module]) -> Chain:
        if key not in self._chains:
            self._chains[key] = Chain(nn.ModuleList(layers), layers)
        return self._chains[key]
