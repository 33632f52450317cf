"""Atomic writes: a kill or a full disk never leaves half a file."""

import os
import tempfile
from pathlib import Path


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write `content` to `path` through a temporary file in the same folder.

    `path` holds either the old or the new content, complete. Raises OSError (disk full, no permission, …), which names
    `path`, and then leaves nothing behind.
    """
    data = content.encode() if isinstance(content, str) else content
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        _write_and_move(handle, Path(name), path, data)
    except OSError as error:
        error.filename = str(path)  # not the temporary file, or none at all
        raise


def _write_and_move(handle: int, temporary: Path, path: Path, data: bytes) -> None:
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
