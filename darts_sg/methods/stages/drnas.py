"""The two stages of the progressive search of DrNAS: fewer operations an edge, each on more channels.

Chen et al., "DrNAS: Dirichlet Neural Architecture Search", ICLR 2021, section 4. Settings are those of the authors'
code.
"""

from dataclasses import dataclass
from typing import ClassVar

from darts_sg.errors import UsageError
from darts_sg.methods.stages import (
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

PARTIAL_CHANNELS = (6, 4)
"""K of the stages; where --channels cannot be split so, the next smaller number that divides them."""
KEPT = ((7, 7), (4, 7))
"""Operations an edge as shares of the space: 7 and 4 of 7."""


@dataclass(frozen=True)
class DrnasProgressive(StagePlan):
    """One supernet that goes from 7 to 4 operations an edge and from K = 6 to 4: DrNAS.

    frozen: the share of the epochs of a stage in which the alphas are frozen. operations, partial_channels: for each
    stage, joined with /, by default in proportion to the space, and 6/4 where --channels allows it.
    """

    prunes: ClassVar[bool] = True
    operations: str = ""
    partial_channels: str = ""
    frozen: float = 0.4

    def __post_init__(self) -> None:
        check_share(self.frozen)

    def _partial_channels(self, channels: int) -> list[int]:
        if not self.partial_channels:
            return [
                max(k for k in range(1, most + 1) if k == 1 or (channels % k == 0 and channels // k >= 2))
                for most in PARTIAL_CHANNELS
            ]
        found = whole_numbers("partial_channels", self.partial_channels, len(PARTIAL_CHANNELS))
        if found != sorted(found, reverse=True):
            raise UsageError(f"partial_channels={self.partial_channels}: K must not rise, weights only get wider")
        if wrong := [k for k in found if channels % k or channels // k < 2]:
            raise UsageError(
                f"partial_channels={self.partial_channels}: --channels {channels} cannot be split into {wrong[0]} "
                "parts of at least 2 channels"
            )
        return found

    def stages(self, options: StageOptions) -> tuple[Stage, ...]:
        if options.alpha_frozen_epochs:
            refuse_option(
                "--alpha-frozen-epochs", options.alpha_frozen_epochs, "drnas-progressive",
                "drnas-progressive:frozen=0.4",
            )  # fmt: skip
        if options.partial_channels != 1:
            refuse_option(
                "--partial-channels", options.partial_channels, "drnas-progressive",
                "drnas-progressive:partial_channels=6/4",
            )  # fmt: skip
        each = zip(
            stage_epochs(options.epochs, len(PARTIAL_CHANNELS)),
            self._partial_channels(options.channels),
            kept_operations(self.operations, options, KEPT),
            strict=True,
        )
        return tuple(
            Stage(epochs, options.cells, k, frozen_epochs(self.frozen, epochs), kept, is_fresh=i == 0)
            for i, (epochs, k, kept) in enumerate(each)
        )


STAGE_PLANS.add("drnas-progressive", DrnasProgressive)
