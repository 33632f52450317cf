"""Runs a selection that is a phase of the search: measures the supernet and lets the selection decide.

The phase (`darts_sg.methods.selection.SelectionPhase`) says what to measure; the search trains between its decisions.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from darts_sg.engine.distributed import Ranks
from darts_sg.engine.loop import Piece
from darts_sg.engine.memory import buffers_kept
from darts_sg.engine.steps import evaluate
from darts_sg.methods.selection import SelectionPhase, Trial
from darts_sg.tasks import Batches, Evaluator


def measure(
    network: nn.Module,
    outputs_of: Callable[[Tensor], Any],
    batches: Batches,
    number: int,
    num_batches: int,
    evaluator: Callable[[], Evaluator],
    ranks: Ranks,
) -> dict[str, float]:
    """The measures of `outputs_of` on the first `num_batches` batches of pass `number`, normalised by their own
    statistics.

    The running statistics are of another network, the one before an operation was removed, and say nothing here; they
    are left as they are.
    """
    first = number * len(batches)
    with buffers_kept(network):
        found = (batches[first + i] for i in range(num_batches))
        return evaluate(network, outputs_of, found, evaluator, ranks, batch_statistics=True)


def num_batches(batches: Batches, num_images: int) -> int:
    """Batches that hold `num_images` images, all of a pass for 0 or if there are fewer."""
    return min(len(batches), -(-num_images // batches.batch_size)) if num_images else len(batches)


def run_phase(
    phase: SelectionPhase, due: int, measured: Callable[[Trial], Mapping[str, float]], score: str
) -> Iterator[Piece]:
    """Measure and decide all that is due after `due` epochs of the phase; a piece of work for each measurement."""
    while (trial := phase.next_trial(due)) is not None:
        lines = phase.note(trial, measured(trial), score)
        yield Piece(f"decision {trial.decision + 1}", trial.number + 1, trial.total, tuple(lines))
