"""Download published files, and extract known members of published archives."""

import hashlib
import http.client
import shutil
import tarfile
import tempfile
import urllib.request
import zlib
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from darts_sg.errors import UsageError

TIMEOUT_SECONDS = 20.0
CHUNK = 1 << 18
LARGEST_MEMBER = 1 << 29
"""Limit in bytes on an extracted file: far above the size of any that is needed, far below what fills a disk."""


def fetch(url: str, path: Path, md5: str) -> None:
    """Download `url` to `path` with a progress bar, and verify its `md5`.

    `path` appears only once it is complete and verified. Raises UsageError if the download fails.
    """
    by_hand = f"download {url} by other means and put it at {path}"
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    temporary: Path | None = None
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as response:
            path.parent.mkdir(parents=True, exist_ok=True)
            digest = hashlib.md5(usedforsecurity=False)
            with (
                tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file,
                Progress(*columns, console=Console(stderr=True)) as progress,
            ):
                temporary = Path(file.name)
                length = response.headers.get("Content-Length")
                task = progress.add_task(path.name, total=int(length) if length else None)
                while chunk := response.read(CHUNK):
                    file.write(chunk)
                    digest.update(chunk)
                    progress.advance(task, len(chunk))
        if digest.hexdigest() != md5:
            raise UsageError(f"{url} came with md5 {digest.hexdigest()} instead of {md5}; {by_hand}")
        temporary.chmod(0o644)
        temporary.replace(path)
    except (OSError, http.client.HTTPException) as error:
        raise UsageError(f"{path} is not there and could not be downloaded ({error}): {by_hand}") from None
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def unpack(archive: Path, folder: Path, members: Sequence[str]) -> None:
    """Extract the files `members` of the folder `folder.name` in the archive to `folder`.

    Nothing else in the archive is touched, so hostile paths and links in it do no harm. `folder` appears only once it
    is complete. Raises UsageError if the archive is damaged, lacks a member, or cannot be unpacked there.
    """
    temporary: Path | None = None
    try:
        temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
        with tarfile.open(archive, "r:gz") as tar:
            for name in members:
                member = tar.getmember(f"{folder.name}/{name}")
                source = tar.extractfile(member) if member.isfile() else None
                if source is None or member.size > LARGEST_MEMBER:
                    raise UsageError(f"{archive}: {member.name} is no ordinary file of the published size")
                with (temporary / name).open("wb") as target:
                    shutil.copyfileobj(source, target)
        temporary.chmod(0o755)
        if not folder.exists():  # another process may have been faster
            temporary.replace(folder)
    except KeyError:
        raise UsageError(f"{archive} lacks {folder.name}/{name}: get it again") from None
    except (tarfile.TarError, zlib.error, EOFError, OSError) as error:
        raise UsageError(f"{archive} cannot be unpacked into {folder} ({error}): get it again") from None
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def published(content: bytes, md5: str) -> bool:
    """Whether `content` has the `md5` of the published file."""
    return hashlib.md5(content, usedforsecurity=False).hexdigest() == md5
