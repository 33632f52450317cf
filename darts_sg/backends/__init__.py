"""Backends execute networks: each replaces the cells by ones that compute the same function faster.

Networks know no backend: a network calls its cells with States, whatever they are.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import nn

from darts_sg.backends.batched import BatchedCell
from darts_sg.backends.watch import carry_over_hooks
from darts_sg.errors import UsageError
from darts_sg.networks.derived import DerivedCell, DerivedNetwork
from darts_sg.networks.supernet import Supernet, SupernetCell
from darts_sg.registry import Registry

__all__ = ["BACKENDS", "Backend", "accelerate", "backend_of", "pytorch_backend", "pytorch_cell"]


class Backend(NamedTuple):
    """Functions that adopt the cells of a network; None if the backend does not execute that kind."""

    supernet: Callable[[Any], nn.Module] | None = None
    derived: Callable[[Any], nn.Module] | None = None


BACKENDS: Registry[Backend] = Registry("backend")


def accelerate(network: Supernet | DerivedNetwork, backend: str) -> None:
    """Execute the network's cells by a backend from now on, whichever executes them now.

    Weights keep their values and their names in `state_dict()`. Backends that stack the edges of a supernet have
    parameters of their own: make the optimizer afterwards. Hooks on cells stay. An operation that is hooked, or
    replaced on some edges, is not stacked: it keeps a module for each edge.
    Raises UsageError for an unknown backend, for one that executes no such networks, and for hooked edges and foreign
    cells, which it would have to ignore.
    """
    is_supernet = isinstance(network, Supernet)
    adopt = BACKENDS[backend].supernet if is_supernet else BACKENDS[backend].derived
    if adopt is None:
        kind = "supernets" if is_supernet else "derived networks"
        able = [name for name in BACKENDS if (BACKENDS[name].supernet if is_supernet else BACKENDS[name].derived)]
        raise UsageError(f"the backend {backend!r} executes no {kind}; choices: {', '.join(able)}")
    for i, cell in enumerate(network.cells):
        if type(cell) not in (SupernetCell, DerivedCell) and not hasattr(type(cell), "backend"):
            raise UsageError(f"cell {i} is of the class {type(cell).__name__}, which no backend executes")
    for i, cell in enumerate(network.cells):
        network.cells[i] = adopt(cell)
        carry_over_hooks(cell, network.cells[i])


def backend_of(network: Supernet | DerivedNetwork) -> str:
    """The backend that executes the network's cells."""
    [name] = {getattr(cell, "backend", "eager") for cell in network.cells}
    return str(name)


def pytorch_backend(network: Supernet | DerivedNetwork) -> str:
    """The backend that executes such a network fastest without kernels of our own."""
    return "batched" if isinstance(network, Supernet) and network.choices is None else "eager"


def pytorch_cell(cell: Any) -> nn.Module:
    """A cell on PyTorch alone that adopts the modules of this one, which must not be used any more."""
    return BatchedCell(cell) if isinstance(cell, BatchedCell) else _eager(cell)


def _eager(cell: Any) -> nn.Module:
    plain: nn.Module = cell if type(cell) in (SupernetCell, DerivedCell) else cell.plain()
    return plain


def _cpp_supernet(cell: Any) -> nn.Module:
    from darts_sg.backends.cpp.cells import CppCell

    return CppCell(cell)


def _cpp_derived(cell: Any) -> nn.Module:
    from darts_sg.backends.cpp.cells import CppDerivedCell

    return CppDerivedCell(cell)


def _triton(cell: Any) -> nn.Module:
    from darts_sg.backends.triton.cells import TritonCell  # Triton is installed where there is a GPU

    return TritonCell(cell)


BACKENDS.add("eager", Backend(_eager, _eager))
BACKENDS.add("batched", Backend(BatchedCell))
BACKENDS.add("cpp", Backend(_cpp_supernet, _cpp_derived))
BACKENDS.add("triton", Backend(_triton))
