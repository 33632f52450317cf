"""python -m benchmarks.bare PART …: a part of benchmarks/gpu.sh (gpu_parts.py) on a machine that lacks packages.

Those that only draw, read or store files get stand-ins, because no part uses them.
"""

import importlib.machinery
import importlib.util
import sys
from types import ModuleType
from typing import Any

NOT_NEEDED = ("matplotlib", "scipy", "PIL", "tensorboard", "safetensors")


class Names(type):
    """The type of all names in missing packages: classes whose attributes are such classes again."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return made(f"{cls.__module__}.{cls.__qualname__}", name)


def made(package: str, name: str) -> Any:
    """A class of that name; its objects have no attributes."""
    return Names(name, (Exception,), {"__module__": package})


class StandIn(ModuleType):
    """A package without content: any name in it is a class."""

    __path__: list[str] = []  # noqa: RUF012 - as packages have it

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        setattr(self, name, made(self.__name__, name))
        return getattr(self, name)


class Finder:
    """Finds the missing packages and any module in them."""

    def __init__(self, missing: set[str]) -> None:
        self.missing = missing

    def find_spec(self, name: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if name.partition(".")[0] not in self.missing:
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)  # type: ignore[arg-type]

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return StandIn(spec.name)

    def exec_module(self, module: ModuleType) -> None: ...


def lacking() -> list[str]:
    """The packages that have stand-ins, or need them."""
    found = {name: importlib.util.find_spec(name) for name in NOT_NEEDED}
    return [name for name, spec in found.items() if spec is None or isinstance(spec.loader, Finder)]


def main() -> None:
    """Run a part, with stand-ins for what is missing."""
    if missing := lacking():
        sys.meta_path.append(Finder(set(missing)))  # type: ignore[arg-type]
    from benchmarks import gpu_parts  # imports the package, and with it the missing ones

    gpu_parts.main()


if __name__ == "__main__":
    main()
