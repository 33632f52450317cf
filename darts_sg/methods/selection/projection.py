"""Selection by perturbation (DARTS-PT): an operation is as strong as the supernet is weak without it.

Wang et al., "Rethinking Architecture Selection in Differentiable NAS", ICLR 2021, section 4 and algorithm 1. The size
of an alpha says little about what an operation contributes; the accuracy of the supernet without it says more.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from darts_sg.derive import Array, derive_cell, num_edges, strengths
from darts_sg.errors import UsageError
from darts_sg.genotype import NUM_INPUTS, Cell, state_name
from darts_sg.methods.selection import SELECTIONS, Searched, Selection, SelectionPhase, Setup, Trial
from darts_sg.networks.supernet import Mixing

EPOCHS_A_TUNING = 10
"""One epoch of tuning for this many of the supernet: 5 for the 50 of the paper."""
NUM_KEPT = 2
"""Edges that are left into each node."""
CELLS = ("normal", "reduce")
DIGITS = 6  # of the scores in the record of decisions


@dataclass(frozen=True)
class Projection(Selection):
    """DARTS-PT: keep on each edge the operation without which the supernet is worst, tuning it in between.

    tuning_epochs: epochs between two decisions (default: a tenth of --epochs, at least 1). learning_rate: of the
    weights in them. images: how many validation images measure a supernet, 0 for all. blank: fixed alphas, all equal.
    """

    has_phase: ClassVar[bool] = True
    tuning_epochs: int | None = None
    learning_rate: float = 0.0025
    images: int = 0
    blank: bool = False

    def __post_init__(self) -> None:
        for name in ("tuning_epochs", "images"):
            if (value := getattr(self, name)) is not None and value < 0:
                raise UsageError(f"{name} must be at least 0, found {value}")
        if not self.learning_rate > 0:
            raise UsageError(f"learning_rate must be above 0, found {self.learning_rate}")

    def __call__(self, searched: Searched) -> tuple[Cell, Cell]:
        normal, reduce = (derive_cell(weights, searched.operations) for weights in strengths(searched.mixing))
        return normal, reduce

    def phase(self, setup: Setup) -> "ProjectionPhase":
        return ProjectionPhase(self, setup)


class ProjectionPhase(SelectionPhase):
    """One edge of each cell type a decision, then one node of each, with epochs of tuning in between.

    A decision about an edge tries to remove each of its operations other than `none`: its mixing weight becomes 0, the
    others stay as they are. The operation whose removal leaves the lowest score is kept: its mixing weight becomes 1,
    that of all others on the edge 0. A decision about a node removes one of its edges after the other, each time the
    one without which the score is highest, until two are left. Nodes with two edges have nothing to decide. Ties go to
    the loss, then to the first. The normal cell decides first, and the reduction cell is measured with that decision.
    """

    def __init__(self, options: Projection, setup: Setup) -> None:
        tuning = options.tuning_epochs
        self.tuning_epochs = max(1, round(setup.epochs / EPOCHS_A_TUNING)) if tuning is None else tuning
        self.learning_rate, self.num_images, self.fixed_alphas = options.learning_rate, options.images, options.blank
        self.operations, self.num_nodes = setup.operations, setup.num_nodes
        self.epochs_before = setup.epochs
        real = np.tile([name != "none" for name in setup.operations], (num_edges(setup.num_nodes), 1))
        tables = [real, real] if setup.allowed is None else [allowed & real for allowed in setup.allowed]
        self.choices = [[np.flatnonzero(edge).tolist() for edge in table] for table in tables]
        """For each cell type, the operations other than `none` of each edge."""
        self.subjects = [_subjects(setup, cell) for cell in range(len(CELLS))]
        self.num_decisions = len(self.subjects[0])
        self.epochs = self.tuning_epochs * (self.num_decisions - 1)
        self.measured: list[tuple[float, float]] = []
        """(score, loss) of each trial of the question that is open: a question is about one cell's edge or node."""
        self.removed: list[int] = []
        """Edges of the node in question that are gone already."""
        self._made: list[dict[str, Any]] = []
        shape = num_edges(setup.num_nodes), len(setup.operations)
        # w · factor + offset are the mixing weights under the decisions: changed in place, for captured CUDA graphs
        self._factors = [torch.ones(shape) for _ in CELLS]
        self._offsets = [torch.zeros(shape) for _ in CELLS]

    # --- the questions, in their order

    @property
    def done(self) -> bool:
        return len(self._made) == self.num_decisions * len(CELLS)

    def _question(self) -> tuple[int, int, str, int]:
        """(decision, cell, edge or node, its number) of the question that is open."""
        decision, cell = divmod(len(self._made), len(CELLS))
        return decision, cell, *self.subjects[cell][decision]

    def _alternatives(self) -> list[int]:
        """What the trials of the open question remove: operations of the edge, or edges of the node."""
        _, cell, kind, subject = self._question()
        if kind == "edge":
            return self.choices[cell][subject]
        return [e for e in range(num_edges(subject), num_edges(subject + 1)) if e not in self.removed]

    def next_trial(self, due: int) -> Trial | None:
        while not self.done:
            decision, cell, kind, subject = self._question()
            if self.tuning_epochs and decision > due // self.tuning_epochs:
                return None
            alternatives, number = self._alternatives(), len(self.measured)
            removed = alternatives[number]
            place = (subject, removed) if kind == "edge" else (removed,)
            return Trial(decision, number, len(alternatives), partial(self._without, cell, place))
        return None

    def _without(self, cell: int, place: tuple[int, ...], mixing: Mixing) -> Mixing:
        """The mixing weights under the decisions with an (edge, operation) or a whole edge of a cell type removed."""
        mixing = self.mixing(mixing)
        table = (mixing.reduce if cell else mixing.normal).clone()
        table[place] = 0.0
        return mixing._replace(reduce=table) if cell else mixing._replace(normal=table)

    def note(self, trial: Trial, measures: Mapping[str, float], score: str) -> list[str]:
        self.measured.append((measures[score], measures.get("loss", 0.0)))
        alternatives = self._alternatives()
        if len(self.measured) < len(alternatives):
            return []
        decision, cell, kind, subject = self._question()
        found, self.measured = self.measured, []
        scores = sorted(score for score, _ in found)

        def strength(number: int) -> tuple[float, float]:
            return found[number][0], -found[number][1]

        if kind == "edge":
            most = alternatives[min(range(len(found)), key=strength)]  # what hurts most when it is removed
            self._keep_operation(cell, subject, most)
            kept, margin = self.operations[most], scores[1] - scores[0] if len(scores) > 1 else 0.0
        else:
            least = alternatives[max(range(len(found)), key=strength)]
            self.removed.append(least)
            self._remove_edge(cell, least)
            left = self._alternatives()
            if len(left) > NUM_KEPT:
                return []
            self.removed = []
            kept, margin = " and ".join(state_name(e - num_edges(subject)) for e in left), scores[-1] - scores[-2]
        self._made.append(
            {
                "decision": decision + 1,
                "after_epoch": self.epochs_before + decision * self.tuning_epochs,
                "cell": CELLS[cell],
                "about": self._title(kind, subject),
                "kept": kept,
                f"lowest_{score}": round(scores[0], DIGITS),
                f"highest_{score}": round(scores[-1], DIGITS),
                "margin": round(margin, DIGITS),
            }
        )
        return [self._line(self._made[-1])]

    def _title(self, kind: str, subject: int) -> str:
        if kind == "node":
            return f"inputs of node {subject}"
        node = next(i for i in range(self.num_nodes) if subject < num_edges(i + 1))
        return f"{state_name(subject - num_edges(node))} to node {node}"

    def _line(self, made: Mapping[str, Any]) -> str:
        return (
            f"decision {made['decision']}/{self.num_decisions}, {made['cell']} cell, {made['about']}: kept "
            f"{made['kept']} (margin {made['margin']:.4f})"
        )

    def _keep_operation(self, cell: int, edge: int, operation: int) -> None:
        self._factors[cell][edge] = 0.0
        self._offsets[cell][edge, operation] = 1.0

    def _remove_edge(self, cell: int, edge: int) -> None:
        self._factors[cell][edge] = 0.0
        self._offsets[cell][edge] = 0.0

    # --- what the rest of the run sees

    def mixing(self, mixing: Mixing) -> Mixing:
        for tables in (self._factors, self._offsets):
            for i, table in enumerate(tables):
                if table.device != mixing.normal.device and mixing.normal.device.type != "meta":
                    tables[i] = table.to(mixing.normal.device)
        normal, reduce = (
            weights * factor.to(weights) + offset.to(weights)
            for weights, factor, offset in zip(
                (mixing.normal, mixing.reduce), self._factors, self._offsets, strict=True
            )
        )
        return mixing._replace(normal=normal, reduce=reduce)

    def cells(self, mixing: Mapping[str, Array]) -> tuple[Cell, Cell]:
        """argmax of the mixing weights under the decisions, which is the decisions once all are made."""
        normal, reduce = (derive_cell(weights, self.operations) for weights in strengths(mixing))
        return normal, reduce

    def decisions(self) -> list[dict[str, Any]]:
        return [dict(made) for made in self._made]

    def num_trials(self) -> int:
        of_edges = sum(len(names) for choices in self.choices for names in choices)
        of_nodes = sum(sum(range(NUM_KEPT + 1, NUM_INPUTS + node + 1)) for node in range(self.num_nodes))
        return of_edges + len(CELLS) * of_nodes

    def facts(self) -> str:
        epochs = "1 epoch" if self.tuning_epochs == 1 else f"{self.tuning_epochs} epochs"
        return (
            f"{self.num_decisions} decisions on each cell with {epochs} between them, {self.num_trials()} measurements "
            "of the supernet"
        )

    def state_dict(self) -> dict[str, Any]:
        tables: list[Tensor] = [*self._factors, *self._offsets]
        return {
            "measured": [list(found) for found in self.measured],
            "removed": list(self.removed),
            "made": self.decisions(),
            "tables": [table.cpu().clone() for table in tables],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.measured = [(score, loss) for score, loss in state["measured"]]
        self.removed, self._made = list(state["removed"]), [dict(made) for made in state["made"]]
        for own, saved in zip([*self._factors, *self._offsets], state["tables"], strict=True):
            own.copy_(saved)


def _subjects(setup: Setup, cell: int) -> list[tuple[str, int]]:
    """What is decided on a cell in turn: its edges, then its nodes with more than two of them, in random orders."""
    generator = np.random.default_rng((setup.seed, cell))
    edges = generator.permutation(num_edges(setup.num_nodes)).tolist()
    nodes = generator.permutation([i for i in range(setup.num_nodes) if NUM_INPUTS + i > NUM_KEPT]).tolist()
    return [*(("edge", edge) for edge in edges), *(("node", int(node)) for node in nodes)]


SELECTIONS.add("projection", Projection)
