"""No weight regularizer."""

from dataclasses import dataclass
from typing import ClassVar

from darts_sg.methods.weight_regularizers import WEIGHT_REGULARIZERS, WeightRegularizer


@dataclass(frozen=True)
class NoWeightRegularizer(WeightRegularizer):
    """The weights follow the loss alone."""

    needed: ClassVar[bool] = False


WEIGHT_REGULARIZERS.add("none", NoWeightRegularizer)
