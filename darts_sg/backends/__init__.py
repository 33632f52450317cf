"""Backends execute networks: each replaces the cells or blocks by ones that compute the same function faster.

Networks know no backend: a network calls its cells with States, whatever they are, and its blocks with tensors.
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple, cast

from torch import nn

from darts_sg.backends.batched import BatchedCell
from darts_sg.backends.watch import carry_over_hooks
from darts_sg.errors import UsageError
from darts_sg.networks.derived import DerivedCell, DerivedNetwork
from darts_sg.networks.mobile import MobileBlock, MobileNetwork
from darts_sg.networks.supernet import Supernet, SupernetCell
from darts_sg.registry import Registry

__all__ = ["BACKENDS", "Backend", "Network", "accelerate", "backend_of", "pytorch_backend", "pytorch_cell"]


class Backend(NamedTuple):
    """Functions that adopt the cells or blocks of a network; None if the backend does not execute that kind."""

    supernet: Callable[[Any], nn.Module] | None = None
    derived: Callable[[Any], nn.Module] | None = None
    mobile: Callable[[Any], nn.Module] | None = None
    """Adopts the blocks of a mobile network, and its list of layers."""


BACKENDS: Registry[Backend] = Registry("backend")
Network = Supernet | DerivedNetwork | MobileNetwork
KINDS: dict[str, tuple[type[nn.Module], type[nn.Module], str]] = {
    "supernet": (Supernet, SupernetCell, "supernets"),
    "derived": (DerivedNetwork, DerivedCell, "derived networks"),
    "mobile": (MobileNetwork, MobileBlock, "mobile networks"),
}
"""For each field of Backend the class of the network, of its plain cells, and what such networks are called."""


def kind_of(network: nn.Module) -> str:
    """The field of Backend for a network."""
    return next(kind for kind, (of, *_) in KINDS.items() if isinstance(network, of))


def parts_of(network: Network) -> tuple[nn.ModuleList | nn.Sequential, list[int]]:
    """The list that holds a network's cells or blocks, and their places in it."""
    if isinstance(network, MobileNetwork):
        places = [i for i, layer in enumerate(network.features) if isinstance(layer, MobileBlock)]
        return network.features, places
    return network.cells, list(range(len(network.cells)))


def accelerate(network: Network, backend: str) -> None:
    """Execute the network's cells or blocks by a backend from now on, whichever executes them now.

    Weights keep their values and their names in `state_dict()`. Backends that stack the edges of a supernet have
    parameters of their own: make the optimizer afterwards. Hooks on cells stay. An operation that is hooked, or
    replaced on some edges, is not stacked: it keeps a module for each edge.
    Raises UsageError for an unknown backend, for one that executes no such networks, and for hooked edges and foreign
    cells, which it would have to ignore.
    """
    kind = kind_of(network)
    _, plain, called = KINDS[kind]
    adopt = getattr(BACKENDS[backend], kind)
    if adopt is None:
        able = [name for name in BACKENDS if getattr(BACKENDS[name], kind)]
        raise UsageError(f"the backend {backend!r} executes no {called}; choices: {', '.join(able)}")
    parts, places = parts_of(network)
    for i in places:
        if type(parts[i]) is not plain and not hasattr(type(parts[i]), "backend"):
            raise UsageError(f"cell {i} is of the class {type(parts[i]).__name__}, which no backend executes")
    for i in places:
        part = parts[i]
        parts[i] = adopt(part)
        carry_over_hooks(part, parts[i])
    if isinstance(network, MobileNetwork):
        network.features = cast(nn.Sequential, adopt(parts))
        carry_over_hooks(parts, network.features)


def backend_of(network: Network) -> str:
    """The backend that executes the network's cells or blocks."""
    parts, places = parts_of(network)
    [name] = {getattr(parts[i], "backend", "eager") for i in places}
    return str(name)


def pytorch_backend(network: Network) -> str:
    """The backend that executes such a network fastest without kernels of our own."""
    return "batched" if isinstance(network, Supernet) and network.choices is None else "eager"


def pytorch_cell(cell: Any) -> nn.Module:
    """A cell or block on PyTorch alone that adopts the modules of this one, which must not be used any more."""
    return BatchedCell(cell) if isinstance(cell, BatchedCell) else _eager(cell)


def _eager(cell: Any) -> nn.Module:
    plain: nn.Module = cell if type(cell) in (SupernetCell, DerivedCell, MobileBlock) else cell.plain()
    return plain


def _cpp_supernet(cell: Any) -> nn.Module:
    from darts_sg.backends.cpp.cells import CppCell

    return CppCell(cell)


def _cpp_derived(cell: Any) -> nn.Module:
    from darts_sg.backends.cpp.cells import CppDerivedCell

    return CppDerivedCell(cell)


def _cpp_mobile(part: Any) -> nn.Module:
    from darts_sg.backends.cpp.mobile import CppFeatures, CppMobileBlock

    return CppFeatures(OrderedDict(part._modules)) if isinstance(part, nn.Sequential) else CppMobileBlock(part)


def _eager_mobile(part: Any) -> nn.Module:
    return nn.Sequential(OrderedDict(part._modules)) if isinstance(part, nn.Sequential) else _eager(part)


def _triton(cell: Any) -> nn.Module:
    from darts_sg.backends.triton.cells import TritonCell  # Triton is installed where there is a GPU

    return TritonCell(cell)


BACKENDS.add("eager", Backend(_eager, _eager, _eager_mobile))
BACKENDS.add("batched", Backend(BatchedCell))
BACKENDS.add("cpp", Backend(_cpp_supernet, _cpp_derived, _cpp_mobile))
BACKENDS.add("triton", Backend(_triton))
