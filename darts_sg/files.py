"""Files: atomic writes (a kill or a full disk never leaves half a file), and reads that no file can make hang.

A folder of data or of a run may hold anything: a pipe that nobody writes to, a device without an end, a file of
terabytes. Readers of the package open regular files only, and bound the size before they read.
"""

import errno
import os
import stat
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
    except UnicodeEncodeError as error:
        raise OSError(errno.EINVAL, "no file can have this name", str(path)) from error
    except OSError as error:
        error.filename = str(path)  # not the temporary file, or none at all
        raise


def refuse_irregular(path: str | Path) -> None:
    """OSError without an errno unless `path` is a regular file; the system's own OSError if there is none.

    Pipes, sockets and devices are refused before they are opened: opening a pipe waits for somebody to write to it.
    """
    mode = os.stat(path).st_mode  # noqa: PTH116 - called for each image of a data set
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        raise OSError("it is no regular file, but a pipe, socket or device")


def read_bytes(path: Path, most: int, *, pipe: bool = False) -> bytes:
    """The content of a regular file of at most `most` bytes; `pipe`: or of a pipe, such as that of `<(command)`.

    Raises OSError if it cannot be read, is larger, or is anything else; `why` says it in a few words.
    """
    if not (pipe and path.is_fifo()):
        refuse_irregular(path)
    with path.open("rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise OSError(f"it is larger than {size_text(most)}")
    return content


def read_text(path: Path, most: int, *, pipe: bool = False) -> str:
    """The UTF-8 text in a file, as `read_bytes` reads it; OSError if it is no text, too."""
    try:
        # line ends as Path.read_text gives them
        return read_bytes(path, most, pipe=pipe).decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError:
        raise OSError("it is no text (UTF-8)") from None


def why(error: OSError) -> str:
    """The reason of an OSError: the system's words, or the message where it is our own."""
    return error.strerror or str(error) or type(error).__name__


def size_text(size: int) -> str:
    """A number of bytes for a message: 64 KiB, 1.5 GiB."""
    for exponent, unit in ((30, "GiB"), (20, "MiB"), (10, "KiB")):
        if size >= 1 << exponent:
            return f"{size / (1 << exponent):.4g} {unit}"
    return f"{size} bytes"


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
