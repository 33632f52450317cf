"""Stages of a search: what the supernet is and what learns, for so many epochs. Each plan lives in a file of this
package and registers itself.

Most searches are one stage. P-DARTS starts each stage with a new, deeper supernet and fewer operations an edge; DrNAS
goes on with the same weights and alphas, prunes operations and widens the partial channels.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import ClassVar, NamedTuple, Protocol

from darts_sg.errors import UsageError, cut, quoted
from darts_sg.methods.parts import import_parts
from darts_sg.registry import Registry
from darts_sg.spaces import parse_space

FEWEST_CELLS = 3
FEWEST_OPERATIONS = 2
"""Operations that an edge keeps at least: `none` may be one of them."""
DROPOUT_DECAY = 5.0
"""Exponent by which the dropout after skip connections falls over a stage: 0.2 an epoch in 25 epochs (P-DARTS)."""


class StageOptions(Protocol):
    """The options of a search that its stages depend on."""

    @property
    def epochs(self) -> int: ...
    @property
    def cells(self) -> int: ...
    @property
    def channels(self) -> int: ...
    @property
    def space(self) -> str: ...
    @property
    def partial_channels(self) -> int: ...
    @property
    def alpha_frozen_epochs(self) -> int: ...


@dataclass(frozen=True)
class Stage:
    """Some epochs of a search with one supernet."""

    epochs: int
    cells: int
    """Number of cells of the supernet."""
    partial_channels: int
    """K: 1/K of the channels pass through the candidate operations (PC-DARTS)."""
    alpha_frozen_epochs: int
    """Epochs at the start of the stage in which only the weights learn."""
    num_operations: int | None = None
    """Operations on each edge, the strongest of those before; None for all of the space."""
    skip_dropout: float = 0.0
    """Probability of dropout after skip connections of stride 1, at the start."""
    is_fresh: bool = True
    """Whether it begins with new weights, alphas and schedules; otherwise it goes on with those of the stage before."""

    def alphas_learn(self, epoch: int) -> bool:
        """Whether the alphas learn in an epoch of the stage, counted from 0."""
        return epoch >= self.alpha_frozen_epochs

    def skip_dropout_at(self, epoch: int) -> float:
        """The probability of dropout after skip connections in an epoch of the stage, counted from 0.

        With E epochs, of which the alphas are frozen in the first F: p · (E - e - 1) / E in these; then again from p
        on, p · exp(-5 · (e - F) / E). The authors' code of P-DARTS, with E = 25 and F = 10.
        """
        if not self.alphas_learn(epoch):
            return self.skip_dropout * (self.epochs - epoch - 1) / self.epochs
        return self.skip_dropout * math.exp(-DROPOUT_DECAY * (epoch - self.alpha_frozen_epochs) / self.epochs)


class Span(NamedTuple):
    """Consecutive epochs of a search."""

    first: int
    epochs: int


class Timeline:
    """Which stage an epoch of the search belongs to. Epochs and stages count from 0."""

    def __init__(self, stages: Sequence[Stage]) -> None:
        self.stages = tuple(stages)
        ends = list(accumulate(stage.epochs for stage in stages))
        self.spans = [Span(end - stage.epochs, stage.epochs) for end, stage in zip(ends, stages, strict=True)]
        self.epochs = ends[-1]

    def number(self, epoch: int) -> int:
        """The stage of an epoch; the last one for epochs after the end, in which a selection goes on."""
        return max(i for i, span in enumerate(self.spans) if span.first <= epoch)

    def within(self, epoch: int) -> int:
        """The epoch counted from the start of its stage."""
        return epoch - self.spans[self.number(epoch)].first

    def alphas_learn(self, epoch: int) -> bool:
        """Whether the alphas learn in an epoch; in those after the end, as in the last one."""
        epoch = min(epoch, self.epochs - 1)
        return self.stages[self.number(epoch)].alphas_learn(self.within(epoch))

    def schedule(self, epoch: int) -> Span:
        """The epochs over which schedules of the search run, such as that of the learning rate: from the fresh stage at
        or before `epoch` up to the next fresh one."""
        fresh = [i for i, stage in enumerate(self.stages) if stage.is_fresh or i == 0]
        begun = max(i for i in fresh if i <= self.number(epoch))
        first = self.spans[begun].first
        end = next((self.spans[i].first for i in fresh if i > begun), self.epochs)
        return Span(first, end - first)


class StagePlan:
    """Base class of the plans: a frozen dataclass whose fields are its options."""

    prunes: ClassVar[bool] = False
    """Whether later stages have fewer operations an edge."""

    def stages(self, options: StageOptions) -> tuple[Stage, ...]:
        """The stages of a search. UsageError if its options leave no room for them, or do not go with the plan."""
        raise NotImplementedError


def stage_epochs(epochs: int, num_stages: int) -> list[int]:
    """--epochs in equal parts, later stages one longer where they cannot be equal. UsageError if they are too few."""
    if epochs < num_stages:
        raise UsageError(f"{num_stages} stages need --epochs {num_stages} or more, found {epochs}")
    return [epochs * (i + 1) // num_stages - epochs * i // num_stages for i in range(num_stages)]


def frozen_epochs(share: float, epochs: int) -> int:
    """The epochs of a stage in which the alphas are frozen, rounded down."""
    return math.floor(share * epochs + 1e-9)


def check_share(share: float) -> None:
    """UsageError unless this is a share of the epochs that leaves some."""
    if not 0 <= share < 1:
        raise UsageError(f"frozen must be from 0 up to, not including, 1: {share}")


def kept_operations(text: str, options: StageOptions, shares: Sequence[tuple[int, int]]) -> list[int]:
    """Operations an edge in each stage: those in `text`, by default these shares (numerator, denominator) of the space.

    Shares are rounded up. UsageError if they do not begin with the whole space, rise, or end below two.
    """
    total = len(parse_space(options.space).operations)
    fewest = min(total, FEWEST_OPERATIONS)
    if not text:
        return [max(fewest, -(-total * part // whole)) for part, whole in shares]
    found = whole_numbers("operations", text, len(shares))
    if found[0] != total or found != sorted(found, reverse=True) or found[-1] < fewest:
        raise UsageError(
            f"operations={text}: expected to begin with the {total} operations of space {cut(options.space)}, never to "
            f"rise, and to end with {fewest} or more"
        )
    return found


def whole_numbers(name: str, text: str, count: int) -> list[int]:
    """`count` numbers from 1 up, joined with /; UsageError for anything else."""
    parts = [part.strip() for part in text.split("/")]
    if len(parts) != count or not all(part.isascii() and part.isdigit() and 0 < int(part) < 2**31 for part in parts):
        raise UsageError(f"{name}: expected {count} numbers from 1 up, joined with /, found {quoted(text)}")
    return [int(part) for part in parts]


def refuse_option(flag: str, value: object, plan: str, way_out: str) -> None:
    """UsageError: an option for searches of one stage beside a plan that sets the same thing by stage."""
    raise UsageError(f"{flag} {value} is for searches of one stage; {plan} sets it by stage: {way_out}")


STAGE_PLANS: Registry[type[StagePlan]] = Registry("plan of stages")

import_parts(__name__)
