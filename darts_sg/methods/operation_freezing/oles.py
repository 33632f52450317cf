"""Operation-level early stopping.

Jiang et al., "Operation-Level Early Stopping for Robustifying Differentiable NAS", NeurIPS 2023.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from darts_sg.errors import UsageError
from darts_sg.methods.operation_freezing import OPERATION_FREEZING, FrozenOperations, OperationFreezing
from darts_sg.methods.operation_freezing.weights import OperationWeights


@dataclass(frozen=True)
class Oles(OperationFreezing):
    """An operation is frozen for good when training and validation gradients of its weights disagree (OLES).

    They disagree if the mean of cos(∇w L_train, ∇w L_val) over `window` steps, one window after the other, is below
    `threshold`. Both gradients are taken at the same weights, over all weights of the operation on one edge of one
    cell. Steps in which either is zero, such as those that do not choose the operation, do not count.
    """

    threshold: float = 0.4
    window: int = 20

    def __post_init__(self) -> None:
        if not -1 <= self.threshold <= 1:
            raise UsageError(f"threshold is one of a cosine, from -1 to 1, found {self.threshold}")
        if self.window < 1:
            raise UsageError(f"window must be at least 1, found {self.window}")

    def watch(self, operations: OperationWeights) -> FrozenOperations:
        return _Watched(operations, self.threshold, self.window)


class _Watched(FrozenOperations):
    def __init__(self, operations: OperationWeights, threshold: float, window: int) -> None:
        super().__init__(operations)
        self._threshold, self._window = threshold, window
        self.sums, self.counts = operations.per_operation(), operations.per_operation(dtype="int")
        """Sum and number of the cosines in the current window."""

    @torch.no_grad()
    def observe(self, train: Sequence[Tensor], validation: Sequence[Tensor]) -> None:
        product = self.operations.dot(train, validation)
        norms = (self.operations.dot(train, train) * self.operations.dot(validation, validation)).sqrt()
        counted = norms > 0
        self.sums += torch.where(counted, product / norms, 0.0)
        self.counts += counted
        full = self.counts >= self._window
        self.frozen |= full & (self.sums < self._threshold * self._window)
        self.sums.masked_fill_(full, 0.0)
        self.counts.masked_fill_(full, 0)


OPERATION_FREEZING.add("oles", Oles)
