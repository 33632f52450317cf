"""Weight regularizers: gradients that are added to those of the weights' step. Each lives in a file of this package and
registers itself.

A constant multiple of the weights themselves is --weight-decay.
"""

from collections.abc import Callable, Sequence
from typing import ClassVar

from torch import Tensor

from darts_sg.methods.parts import import_parts
from darts_sg.networks.supernet import Mixing
from darts_sg.registry import Registry


class WeightRegularizer:
    """Base class of the weight regularizers: a frozen dataclass whose fields are its options."""

    needed: ClassVar[bool] = True
    """False if it adds nothing."""
    min_normal_cells: ClassVar[int] = 0
    """The fewest normal cells that it is defined for."""

    def prepared(self, mixing: Mixing, num_normal_cells: int) -> Mixing:
        """The mixing weights of the weights' step in the form that `gradients` needs: others of the same values.

        mixing: those of the relaxation after the perturbation, without gradient. Tensors that require a gradient get
        the one of the loss in their `grad`.
        """
        return mixing

    def gradients(
        self,
        mixing: Mixing,
        loss: Callable[[Mixing], Tensor],
        weights: Sequence[Tensor],
        growth: Tensor,
        mean: Callable[[Sequence[Tensor]], Sequence[Tensor]],
    ) -> Sequence[Tensor]:
        """The gradients to add to those of this process's share of the loss, one for each weight.

        Called after the backward pass, before the mean over processes and the clipping.

        mixing: what `prepared` returned. loss: the loss of the training batch under other mixing weights. growth: 0 in
        the first epoch, 1 in the last, a scalar tensor on the device. mean: the mean of gradients over all processes.
        """
        raise NotImplementedError


WEIGHT_REGULARIZERS: Registry[type[WeightRegularizer]] = Registry("weight regularizer")

import_parts(__name__)
