"""Candidate operations. A new one is a module here that registers itself with `register_operation`."""

from darts_sg.ops import inverted_residual, primitives, sandglass
from darts_sg.ops.operation import OPERATIONS, Operation, register_operation

__all__ = ["OPERATIONS", "Operation", "inverted_residual", "primitives", "register_operation", "sandglass"]
