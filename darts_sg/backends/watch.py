"""Notices hooks and replaced modules, which kernels and stacked layers would skip."""

from collections.abc import Iterable

from torch import nn
from torch.nn.modules.module import _has_any_global_hook
from torch.nn.utils.parametrize import is_parametrized

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
HOOK_OPTIONS = (
    "_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks_with_kwargs",
    "_is_full_backward_hook",
)  # fmt: skip


def is_changed(module: nn.Module) -> bool:
    """Whether the module or one in it has hooks or is parametrized."""
    return any(is_parametrized(layer) or any(getattr(layer, name) for name in HOOKS) for layer in module.modules())


def carry_over_hooks(old: nn.Module, new: nn.Module) -> None:
    """Give a module that replaces another one its hooks; their handles still remove them."""
    if old is not new:
        for name in (*HOOKS, *HOOK_OPTIONS):
            setattr(new, name, getattr(old, name))


class Watch:
    """Compares modules with what they were when it was made; cheap enough for each forward pass.

    A parametrized module counts as changed, because PyTorch changes its class; so does a pruned one, which gets a hook.
    """

    def __init__(self, parent: nn.Module, modules: Iterable[nn.Module]) -> None:
        """parent: only its children are watched, for its own hooks run in any case."""
        self._modules = list(modules)
        self._types = [type(module) for module in self._modules]
        # lists of the modules' own dictionaries: `any` and `==` go through them without a line of Python
        self._hooks = [getattr(module, name) for module in self._modules for name in HOOKS]
        self._children = [module._modules for module in (parent, *self._modules) if module._modules]
        self._were = [dict(children) for children in self._children]

    def unchanged(self, *, ignore_global: bool = True) -> bool:
        """Whether no module has hooks, another class or other children. ignore_global: of hooks on all modules."""
        return (
            not any(self._hooks)
            and self._children == self._were
            and list(map(type, self._modules)) == self._types
            and (ignore_global or not _has_any_global_hook())
        )
