"""One stage."""

from dataclasses import dataclass

from darts_sg.methods.stages import STAGE_PLANS, Stage, StageOptions, StagePlan


@dataclass(frozen=True)
class Single(StagePlan):
    """One supernet for all epochs."""

    def stages(self, options: StageOptions) -> tuple[Stage, ...]:
        return (Stage(options.epochs, options.cells, options.partial_channels, options.alpha_frozen_epochs),)


STAGE_PLANS.add("single", Single)
