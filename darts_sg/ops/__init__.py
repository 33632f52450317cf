"""Candidate operations. A module of this folder that calls `register_operation` adds its operations by being here."""

import pkgutil
from importlib import import_module

from darts_sg.ops.operation import OPERATIONS, Operation, register_operation

__all__ = ["OPERATIONS", "Operation", "register_operation"]

_FIRST = ("primitives", "sandglass", "inverted_residual")  # the order in which names are listed
for _name in dict.fromkeys((*_FIRST, *sorted(module.name for module in pkgutil.iter_modules(__path__)))):
    import_module(f"{__name__}.{_name}")
