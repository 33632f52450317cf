"""Packages that come with an extra, imported when their logger is asked for."""

from importlib import import_module
from typing import Any

from darts_sg.errors import UsageError, first_line


def optional_package(name: str) -> Any:
    """The package `name`, which the extra of the same name installs. UsageError with the pip command if it is missing.

    Also if it cannot be imported: a broken installation is answered before the run starts, too.
    """
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        missing = "is not installed" if error.name == name else f"needs {error.name}, which is not installed"
        raise UsageError(f"--logger {name}: {name} {missing}; pip install 'darts_sg[{name}]'") from None
    except Exception as error:
        raise UsageError(
            f"--logger {name}: {name} cannot be imported ({first_line(error)}); pip install -U 'darts_sg[{name}]'"
        ) from None
