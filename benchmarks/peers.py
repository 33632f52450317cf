"""Measures other implementations of the search from a checkout; none of their code is included here.

A checkout must run on today's PyTorch. Its calls to `.cuda()` are ignored, so that it runs on a CPU.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from benchmarks.subjects import Shape, Step, alternating_step
from darts_sg.errors import UsageError


@dataclass(frozen=True)
class Peer:
    """An implementation, and the folder of its checkout."""

    name: str
    folder: Path

    def shape(self, shape: Shape) -> Shape:
        """The shape of what it computes, for our own step beside it: PC-DARTS has partial channels."""
        return replace(shape, partial_channels=4) if self.name == "pc-darts" else shape

    def step(self, shape: Shape) -> Step:
        """Its first-order step. Raises UsageError if it cannot be built."""
        try:
            with on_cpu(self.folder):
                return PEERS[self.name](self.shape(shape))
        except Exception as error:  # foreign code may raise anything
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise UsageError(f"--peer {self.name}={self.folder} does not run here: {reason}") from error


def load(text: str) -> Peer:
    """Parse NAME=DIR; UsageError for an unknown name or a missing folder."""
    name, _, folder = text.partition("=")
    if name not in PEERS or not folder:
        raise UsageError(f"--peer {text}: expected NAME=DIR with NAME one of {', '.join(PEERS)}")
    if not Path(folder).is_dir():
        raise UsageError(f"--peer {text}: {folder} is no folder")
    return Peer(name, Path(folder))


@contextmanager
def on_cpu(folder: Path) -> Iterator[None]:
    """Within the context modules are imported from the folder, its `cnn` or its `src`; `.cuda()` does nothing."""
    places = [str(path) for path in (folder / "cnn", folder / "src", folder) if path.is_dir()]
    before = list(sys.path), set(sys.modules), Tensor.cuda, nn.Module.cuda
    sys.path[:0] = places
    Tensor.cuda = nn.Module.cuda = lambda self, *args, **kwargs: self  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        sys.path[:] = before[0]
        for name in set(sys.modules) - before[1]:
            if any(str(getattr(sys.modules[name], "__file__", "")).startswith(place) for place in places):
                del sys.modules[name]
        Tensor.cuda, nn.Module.cuda = before[2], before[3]  # type: ignore[method-assign]


def quark0(shape: Shape) -> Step:
    """The original DARTS code: model_search.Network, whose alphas are arch_parameters().

    That of the PC-DARTS authors has the same names, and K = 4 written into it.
    """
    from model_search import Network  # type: ignore[import-not-found]

    criterion = nn.CrossEntropyLoss()
    net: Any = Network(shape.channels, 10, shape.cells, criterion)
    x, y = shape.images()
    return alternating_step(lambda: criterion(net(x), y), list(net.parameters()), list(net.arch_parameters()))


def confopt(shape: Shape) -> Step:
    """confopt: the supernet DARTSSearchSpace, whose own sampler is a softmax; a forward pass ends with the logits."""
    from confopt.searchspace import DARTSSearchSpace  # type: ignore[import-not-found]

    net: Any = DARTSSearchSpace(C=shape.channels, num_classes=10, layers=shape.cells)
    x, y = shape.images()
    criterion = nn.CrossEntropyLoss()
    return alternating_step(
        lambda: criterion(net(x)[-1], y), list(net.model_weight_parameters()), list(net.arch_parameters)
    )


def pt_darts(shape: Shape) -> Step:
    """pt.darts: models.search_cnn.SearchCNNController with weights() and alphas()."""
    from models.search_cnn import SearchCNNController  # type: ignore[import-not-found]

    net: Any = SearchCNNController(3, shape.channels, 10, shape.cells, nn.CrossEntropyLoss(), device_ids=[0])
    x, y = shape.images()
    return alternating_step(lambda: net.criterion(net(x), y), list(net.weights()), list(net.alphas()))


PEERS: dict[str, Callable[[Shape], Step]] = {
    "quark0": quark0,
    "pt.darts": pt_darts,
    "pc-darts": quark0,
    "confopt": confopt,
}
