"""Candidate operations. A new one is a module here that registers itself with `register_operation`."""

from darts_sg.ops import primitives, sandglass, inverted_residual  # isort: skip (the order of the registry)
from darts_sg.ops.operation import OPERATIONS, Operation, register_operation

__all__ = ["OPERATIONS", "Operation", "inverted_residual", "primitives", "register_operation", "sandglass"]
