"""Hatch's build hook: puts compiled C++ kernels into the wheel, which is tagged for this platform.

DARTS_SG_PREBUILT=1 demands them, 0 makes a pure wheel; without it they are built where there is a compiler ($CXX, or
g++) that can. Editable installs stay as they are: from a checkout the kernels are compiled on first use.
"""

import importlib.util
import os
import shutil
import subprocess
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PACKAGE = "darts_sg/backends/cpp"


class KernelsHook(BuildHookInterface):
    """Compiles the kernels for each level of this machine's processors."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        wish = os.environ.get("DARTS_SG_PREBUILT", "")
        if wish not in ("", "0", "1"):
            raise ValueError(f"DARTS_SG_PREBUILT={wish}: 1 demands compiled kernels, 0 makes a pure wheel")
        compiler = shutil.which(os.environ.get("CXX") or "g++")
        if version == "editable" or wish == "0" or (compiler is None and not wish):
            return
        if compiler is None:
            raise ValueError("DARTS_SG_PREBUILT=1 needs a C++ compiler: install g++, or name another with CXX=…")
        prebuilt = load(Path(self.root, PACKAGE, "prebuilt.py"))
        self.folder = tempfile.TemporaryDirectory()
        try:
            files = prebuilt.compile_all(compiler, Path(self.folder.name))
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            errors = (getattr(error, "stderr", "") or str(error)).splitlines()
            reason = next((line for line in errors if "error" in line), errors[0] if errors else "no reason given")
            if wish:
                raise RuntimeError(f"the kernels cannot be compiled: {reason}") from None
            self.app.display_warning(f"a pure wheel: the kernels cannot be compiled: {reason}")
            return
        build_data["force_include"] |= {str(path): f"{PACKAGE}/built/{path.name}" for path in files}
        build_data["pure_python"] = False
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["tag"] = f"py3-none-{platform}"  # no Python headers are involved: any Python 3 can load them

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        if hasattr(self, "folder"):
            self.folder.cleanup()


def load(path: Path) -> Any:
    """A module from its file alone; its package would need PyTorch."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
