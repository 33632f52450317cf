"""No operation is frozen."""

from dataclasses import dataclass
from typing import ClassVar

from darts_sg.methods.operation_freezing import OPERATION_FREEZING, OperationFreezing


@dataclass(frozen=True)
class NoFreezing(OperationFreezing):
    """All weights learn until the end."""

    needed: ClassVar[bool] = False


OPERATION_FREEZING.add("none", NoFreezing)
