"""Stages of a search: what the supernet is and what learns, for so many epochs. Today's searches have one stage."""

from dataclasses import dataclass


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

    def alphas_learn(self, epoch: int) -> bool:
        """Whether the alphas learn in an epoch of the stage, counted from 0."""
        return epoch >= self.alpha_frozen_epochs
