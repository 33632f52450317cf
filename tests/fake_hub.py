"""A huggingface_hub without a network: repositories are folders on this machine."""

import shutil
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ERRORS = (
    "GatedRepoError", "RepositoryNotFoundError", "LocalEntryNotFoundError", "EntryNotFoundError", "HFValidationError",
    "LocalTokenNotFoundError",
)  # fmt: skip


def install(patch: pytest.MonkeyPatch, folder: Path) -> Any:
    """Put it in place of huggingface_hub; `user/name` is the folder of this name below `folder`. Returns its errors."""
    hub, errors = ModuleType("huggingface_hub"), ModuleType("huggingface_hub.errors")
    for name in ERRORS:
        setattr(errors, name, type(name, (Exception,), {}))
    error: Any = errors

    def hf_hub_download(repository: str, file: str) -> str:
        if not (folder / repository).is_dir():
            raise error.RepositoryNotFoundError("404\nfor url …")
        if not (folder / repository / file).is_file():
            raise error.EntryNotFoundError("404")
        return str(folder / repository / file)

    class HfApi:
        def create_repo(self, repository: str, *, private: bool, exist_ok: bool) -> None:
            if repository.startswith("nobody/"):
                raise error.LocalTokenNotFoundError("no token")
            (folder / repository).mkdir(parents=True, exist_ok=exist_ok)
            (folder / f"{repository}.private").write_text(str(private))

        def upload_folder(self, *, repo_id: str, folder_path: str, commit_message: str) -> None:
            assert commit_message
            shutil.copytree(folder_path, folder / repo_id, dirs_exist_ok=True)

    vars(hub).update(hf_hub_download=hf_hub_download, HfApi=HfApi, errors=errors)
    hub.__spec__, hub.__path__ = ModuleSpec("huggingface_hub", None, is_package=True), []
    patch.setitem(sys.modules, "huggingface_hub", hub)
    patch.setitem(sys.modules, "huggingface_hub.errors", errors)
    return errors
