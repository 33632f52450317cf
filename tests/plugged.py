"""Helpers for tests that load plug-ins into this process."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from darts_sg import plugins
from darts_sg.registry import PLUGGED


@contextmanager
def plugins_left_behind() -> Iterator[None]:
    """Afterwards the plug-ins loaded within the context are gone, for the tests that follow."""
    before, searched, modules = list(plugins.STATE.loaded), plugins.STATE.searched, set(sys.modules)
    try:
        yield
    finally:
        for plugin in plugins.STATE.loaded:
            if plugin not in before:
                for registry, name in plugin.registration.entries:
                    registry.remove(name)
        plugins.STATE.loaded[:], plugins.STATE.searched = before, searched
        for name in set(sys.modules) - modules:
            if name.startswith(PLUGGED):
                del sys.modules[name]
