"""Selection: from the mixing weights of a search to its cells. Each lives in a file of this package and registers
itself.

A selection is a rule (`Selection.__call__`), or a phase of the run (`Selection.phase`): it then works on the trained
supernet, measures it, has it tuned for some epochs and decides step by step.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

from darts_sg.derive import Array, Bound
from darts_sg.genotype import Cell
from darts_sg.methods.parts import import_parts
from darts_sg.networks.supernet import Mixing
from darts_sg.registry import Registry
from darts_sg.spaces import Allowed


class Searched(NamedTuple):
    """What a search has learned so far."""

    mixing: Mapping[str, Array]
    """Expected mixing weights `normal` and `reduce`, (num_edges, num_operations), and with edge normalisation
    `edge_normal` and `edge_reduce`, (num_edges,)."""
    operations: tuple[str, ...]
    bounds: Sequence[Bound] = ()
    """Bounds that the genotype has to keep, such as that of --target-params."""
    allowed: Allowed | None = None
    """Which operations the edges of either cell have; None if every edge has all."""


class Setup(NamedTuple):
    """The search that a selection phase belongs to."""

    operations: tuple[str, ...]
    num_nodes: int
    epochs: int
    """Epochs of the supernet before the phase."""
    seed: int
    allowed: Allowed | None = None
    """Which operations the edges of either cell have; None if every edge has all."""


class Trial(NamedTuple):
    """A changed supernet to be measured."""

    decision: int
    """Number of the decision that asks, from 0. All trials of one decision are measured on the same images."""
    number: int
    """Number of this trial among those of its decision, from 0."""
    total: int
    """Trials of the decision, as far as is known."""
    mixing: Callable[[Mixing], Mixing]
    """From the mixing weights of the search to those to measure with."""


class SelectionPhase(ABC):
    """A selection that goes on after the supernet's epochs: it decides, has the supernet tuned, and decides again.

    `due` epochs of the phase are done when it is asked for trials, 0 right after the supernet's epochs. The engine
    trains the supernet in between as before, under `mixing`. Random choices depend on the seed and the number of the
    decision alone; all other state is in `state_dict`, so that a resumed run decides the same.
    """

    epochs: int
    """Epochs of tuning after those of the supernet."""
    learning_rate: float
    """Of the weights in these epochs, constant."""
    num_images: int = 0
    """Images of a measurement, rounded up to whole batches; 0 for the whole validation part."""
    fixed_alphas: bool = False
    """The alphas are 0 and never learn, also in the supernet's epochs."""

    @abstractmethod
    def mixing(self, mixing: Mixing) -> Mixing:
        """The mixing weights of the search under the decisions so far. Must not read a value back to the CPU."""

    @abstractmethod
    def next_trial(self, due: int) -> Trial | None:
        """What to measure next after `due` epochs of the phase; None once all that is due is decided."""

    @abstractmethod
    def note(self, trial: Trial, measures: Mapping[str, float], score: str) -> list[str]:
        """Take in the measures of `next_trial`, `score` being the main one (higher is better).

        Returns a line for each decision that this makes.
        """

    @abstractmethod
    def cells(self, mixing: Mapping[str, Array]) -> tuple[Cell, Cell]:
        """The (normal, reduction) cell by the decisions so far, and where there are none by the mixing weights."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Plain values and tensors."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None: ...

    def decisions(self) -> list[dict[str, Any]]:
        """The decisions so far as plain values, for the genotype's provenance and the report."""
        return []

    def num_trials(self) -> int:
        """Measurements of the whole phase."""
        return 0

    def facts(self) -> str:
        """What the phase will do, for a dry run."""
        return f"epochs: {self.epochs}, measurements of the supernet: {self.num_trials()}"


class Selection:
    """Base class of the selections: a frozen dataclass whose fields are its options."""

    keeps_bounds: ClassVar[bool] = False
    """Whether it derives within `Searched.bounds`; one that does not is refused beside a target."""
    has_phase: ClassVar[bool] = False
    """Whether `phase` gives one."""

    def __call__(self, searched: Searched) -> tuple[Cell, Cell]:
        """The (normal, reduction) cell; with a phase, that of the supernet's epochs. UsageError if there is none."""
        raise NotImplementedError

    def phase(self, setup: Setup) -> SelectionPhase | None:
        """A new phase of the run that selects; None for a selection that is a rule."""
        return None


SELECTIONS: Registry[type[Selection]] = Registry("selection")

import_parts(__name__)
