"""Baselines: searches that learn no alphas, and scores of untrained networks.

A strategy is a class in STRATEGIES whose dataclass fields are its options, like the parts of a method. It says which
architectures to try; the engine trains, measures and remembers them (`darts_sg.engine.baselines`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from darts_sg.baselines.proxies import PROXIES
from darts_sg.errors import UsageError
from darts_sg.genotype import Cell
from darts_sg.methods.parts import import_parts
from darts_sg.registry import Registry, unknown_name
from darts_sg.spaces import Allowed


class Cells(NamedTuple):
    """An architecture."""

    normal: Cell
    reduce: Cell


class Candidate(NamedTuple):
    """An architecture that was tried, and what was found."""

    cells: Cells
    score: float
    """Higher is better."""
    measures: Mapping[str, float]
    parent: int | None = None
    """Number of the candidate that it was mutated from."""


class Problem(NamedTuple):
    """What a strategy searches in."""

    operations: tuple[str, ...]
    num_nodes: int
    allowed: Allowed | None = None
    """Which operations the edges of the normal and of the reduction cell have; None if every edge has all."""


class Strategy:
    """Base class of the strategies: a frozen dataclass whose fields are its options."""


@dataclass(frozen=True)
class CandidateStrategy(Strategy):
    """A strategy that tries one architecture after the other.

    Each is trained from scratch for some epochs on the images of the weights, and judged on those of the alphas; or it
    is not trained, and judged by a zero-cost proxy.
    """

    candidates: int | None = None
    epochs: int = 1
    score: str = "validation"

    def __post_init__(self) -> None:
        for name in ("candidates", "epochs"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise UsageError(f"{name} must be at least 1, found {value}")
        if self.score != "validation" and self.score not in PROXIES:
            raise UsageError(unknown_name("score", self.score, ["validation", *PROXIES]))
        if self.proxy and self.epochs != 1:
            raise UsageError(
                f"epochs {self.epochs} train a candidate, and score={self.score} does not; leave epochs out"
            )

    @property
    def proxy(self) -> str:
        """The proxy that judges; empty if candidates are trained."""
        return "" if self.score == "validation" else self.score

    def num_candidates(self, budget: int) -> int:
        """How many are tried: as many as `budget` epochs train, unless the option says otherwise."""
        return self.candidates or max(1, budget // self.epochs)

    def propose(
        self, problem: Problem, tried: Sequence[Candidate], generator: np.random.Generator
    ) -> tuple[Cells, int | None]:
        """The next architecture, and the number of its parent if it has one.

        Depends on the arguments alone: the generator is seeded by the number of the candidate.
        """
        raise NotImplementedError


STRATEGIES: Registry[type[Strategy]] = Registry("strategy")


def as_plain(cells: Cells) -> dict[str, Any]:
    """An architecture as plain values, for checkpoints and JSON."""
    return {
        name: [[[edge.operation, edge.state] for edge in node] for node in cell.nodes]
        for name, cell in cells._asdict().items()
    }


import_parts(__name__)
