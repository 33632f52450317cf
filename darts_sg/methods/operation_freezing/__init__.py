"""Operation freezing: operations of a supernet whose weights stop learning while they go on computing. Each lives in a
file of this package and registers itself."""

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor

from darts_sg.methods.operation_freezing.weights import OperationWeights
from darts_sg.methods.parts import import_parts
from darts_sg.registry import Registry


class FrozenOperations:
    """The frozen operations of one supernet. All its tensors are state.

    Everything is computed on the device, without waiting for it. Lists of tensors have one for each weight of the
    supernet.
    """

    def __init__(self, operations: OperationWeights) -> None:
        self.operations = operations
        self.frozen = operations.per_operation(dtype="bool")
        """bool (num_operations,), in the order of the operations' names in the plain supernet."""

    def observe(self, train: Sequence[Tensor], validation: Sequence[Tensor]) -> None:
        """Take in the gradients of both losses in the weights, before they are clipped, and freeze operations."""
        raise NotImplementedError

    def clear(self, gradients: Sequence[Tensor]) -> None:
        """Take the gradients of frozen operations away, so that they do not count in the clipping."""
        parts = self.operations.of(gradients)
        self.operations.select(self.frozen, parts, [0.0] * len(parts))

    def restore(self, weights: Sequence[Tensor], before: Sequence[Tensor], buffers: Sequence[Tensor | None]) -> None:
        """Undo a step of the frozen operations' weights, and stop their momentum.

        before: the weights of operations before the step, as `operations.of` returns them. buffers: those of the
        momentum, None where there is none.
        """
        self.operations.select(self.frozen, self.operations.of(weights), before)
        moving = self.operations.of(buffers)
        self.operations.select(self.frozen, moving, [0.0] * len(moving))

    def num_frozen(self) -> int:
        return int(self.frozen.sum())

    def state_dict(self) -> dict[str, Tensor]:
        return {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for name, value in self.state_dict().items():
            value.copy_(state[name])


class OperationFreezing:
    """Base class of the rules for freezing: a frozen dataclass whose fields are its options."""

    needed: ClassVar[bool] = True
    """False if it never freezes anything, and so needs no gradients of the validation loss in the weights."""

    def watch(self, operations: OperationWeights) -> FrozenOperations:
        """The state of the rule for one supernet, updated by each step."""
        raise NotImplementedError


OPERATION_FREEZING: Registry[type[OperationFreezing]] = Registry("rule for freezing operations")

import_parts(__name__)
