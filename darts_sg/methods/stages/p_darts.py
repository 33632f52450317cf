"""The stages of P-DARTS: the supernet grows deeper while each edge has fewer operations.

Chen et al., "Progressive Differentiable Architecture Search: Bridging the Depth Gap between Search and Evaluation",
ICCV 2019, sections 3.2 and 3.3. Settings are those of the authors' code.
"""

from dataclasses import dataclass
from typing import ClassVar

from darts_sg.errors import UsageError, quoted
from darts_sg.methods.stages import (
    FEWEST_CELLS,
    STAGE_PLANS,
    Stage,
    StageOptions,
    StagePlan,
    check_share,
    frozen_epochs,
    kept_operations,
    refuse_option,
    stage_epochs,
    whole_numbers,
)

DEPTHS = (5, 11, 17)
"""Cells of the supernets; --cells is the last of them, and the others follow in proportion."""
KEPT = ((8, 8), (5, 8), (3, 8))
"""Operations an edge as shares of the space: 8, 5 and 3 of 8."""


@dataclass(frozen=True)
class PDarts(StagePlan):
    """Three supernets of 5, 11 and 17 cells, with 8, 5 and 3 operations an edge: P-DARTS.

    dropout: after skip connections, its probability at the start of each stage. frozen: the share of the epochs of a
    stage in which the alphas are frozen. cells, operations: for each stage, joined with /, by default in proportion to
    --cells and to the space.
    """

    prunes: ClassVar[bool] = True
    cells: str = ""
    operations: str = ""
    dropout: str = "0.1/0.4/0.7"
    frozen: float = 0.4

    def __post_init__(self) -> None:
        check_share(self.frozen)
        self._dropouts()

    def _dropouts(self) -> list[float]:
        try:
            found = [float(part) for part in self.dropout.split("/")]
        except ValueError:
            found = []
        if len(found) != len(DEPTHS) or not all(0 <= p < 1 for p in found):
            raise UsageError(
                f"dropout: expected {len(DEPTHS)} numbers from 0 up to, not including, 1, joined with /, found "
                f"{quoted(self.dropout)}"
            )
        return found

    def _cells(self, most: int) -> list[int]:
        if not self.cells:
            return [max(FEWEST_CELLS, round(most * depth / DEPTHS[-1])) for depth in DEPTHS]
        found = whole_numbers("cells", self.cells, len(DEPTHS))
        if min(found) < FEWEST_CELLS or found[-1] != most:
            raise UsageError(
                f"cells={self.cells}: expected {FEWEST_CELLS} or more in each stage, and --cells {most} in the last"
            )
        return found

    def stages(self, options: StageOptions) -> tuple[Stage, ...]:
        if options.alpha_frozen_epochs:
            refuse_option("--alpha-frozen-epochs", options.alpha_frozen_epochs, "p-darts", "p-darts:frozen=0.4")
        each = zip(
            stage_epochs(options.epochs, len(DEPTHS)),
            self._cells(options.cells),
            kept_operations(self.operations, options, KEPT),
            self._dropouts(),
            strict=True,
        )
        return tuple(
            Stage(epochs, cells, options.partial_channels, frozen_epochs(self.frozen, epochs), kept, dropout)
            for epochs, cells, kept, dropout in each
        )


STAGE_PLANS.add("p-darts", PDarts)
