"""Weights and genotypes of other machines: hf://user/name[/file] and https URLs, kept in a cache.

Only kinds of files are fetched that nothing in this package executes: safetensors and YAML. Files of the Hugging Face
hub are fetched and cached by huggingface_hub (extra `hub`); those of a URL stay in $XDG_CACHE_HOME/darts_sg/remote.
"""

import hashlib
import os
import re
import sys
import tempfile
import urllib.error
import urllib.parse
import urllib.request
from functools import lru_cache
from http.client import HTTPException
from importlib.util import find_spec
from pathlib import Path
from typing import IO, NamedTuple

from darts_sg.errors import UsageError, first_line, quoted
from darts_sg.files import size_text

TIMEOUT = 20.0  # seconds without an answer
CHUNK = 1 << 18
_ADDRESS = re.compile(r"(hf|https?):/{1,2}(?=[^/])(.*)", re.DOTALL)  # a Path has made one slash of two
_HUB_FILE = re.compile(r"([\w.-]+/[\w.-]+)(?:/(.+))?", re.ASCII)
LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1")


class Kind(NamedTuple):
    """A kind of file that may be fetched."""

    default: str
    """Name of the file in a repository of the hub, unless another is named."""
    suffixes: tuple[str, ...]
    most: int
    """Bytes that are fetched at most."""


WEIGHTS = Kind("weights.safetensors", (".safetensors",), 1 << 33)
GENOTYPE = Kind("genotype.yaml", (".yaml", ".yml"), 1 << 17)


def is_address(place: str | Path) -> bool:
    """Whether this names a file of another machine."""
    return _ADDRESS.fullmatch(str(place)) is not None


def local_file(place: str | Path, kind: Kind) -> Path:
    """The file here: `place` itself, or the cached copy of the file that an address names.

    The SHA-256 of a fetched file is printed to stderr, once in a process. Raises UsageError for another kind of file,
    and if it cannot be fetched.
    """
    return _fetched(address_of(place), kind) if is_address(place) else Path(place)


def address_of(place: str | Path) -> str:
    """An address with both slashes, which a Path loses."""
    found = _ADDRESS.fullmatch(str(place))
    assert found is not None
    return f"{found[1]}://{found[2]}"


def refuse_missing_hub(purpose: str) -> None:
    """UsageError, which says what to install, if huggingface_hub is missing."""
    if find_spec("huggingface_hub") is None:
        raise UsageError(
            f"{purpose} needs huggingface_hub: pip install 'darts_sg[hub]' (in a checkout pip install '.[hub]')"
        )


def hub_failure(error: Exception, repository: str, file: str = "") -> str:
    """What went wrong with a repository of the hub, and the way out, in one line."""
    from huggingface_hub import errors

    known: tuple[tuple[type[Exception] | tuple[type[Exception], ...], str], ...] = (
        (errors.GatedRepoError, f"{repository} is open to some users only: ask there, and log in with hf auth login"),
        (errors.RepositoryNotFoundError, f"no such repository {repository}, or a private one (hf auth login)"),
        (errors.LocalEntryNotFoundError, f"no network, and {file} of {repository} is not in the cache"),
        (errors.EntryNotFoundError, f"{repository} has no file {file}: name another, hf://{repository}/FILE"),
        (errors.HFValidationError, f"{repository} is no name of a repository: expected user/name"),
        (errors.LocalTokenNotFoundError, "not logged in: hf auth login"),
    )
    for kinds, text in known:
        if isinstance(error, kinds):
            return text
    return f"{repository}: {first_line(error)[:200]}"


@lru_cache
def _fetched(address: str, kind: Kind) -> Path:
    scheme, _, rest = address.partition("://")
    path = _from_hub(address, rest, kind) if scheme == "hf" else _from_url(address, kind)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    print(f"{address}: {path}, sha256 {digest}", file=sys.stderr)
    return path


def _refuse_other_kind(address: str, name: str, kind: Kind) -> None:
    if not name.lower().endswith(kind.suffixes):
        raise UsageError(
            f"{address}: only files that end in {' or '.join(kind.suffixes)} are fetched here; name one, or download "
            "it by other means"
        )


def _from_hub(address: str, rest: str, kind: Kind) -> Path:
    found = _HUB_FILE.fullmatch(rest)
    if found is None:
        raise UsageError(f"{quoted(address)}: expected hf://user/name or hf://user/name/file")
    repository, file = found[1], found[2] or kind.default
    _refuse_other_kind(address, file, kind)
    refuse_missing_hub(address)
    from huggingface_hub import hf_hub_download

    try:
        path = Path(hf_hub_download(repository, file))
    except Exception as error:  # of many kinds, from the hub and from its HTTP client
        raise UsageError(f"{address}: {hub_failure(error, repository, file)}") from None
    if path.stat().st_size > kind.most:
        raise UsageError(f"{address} is larger than {size_text(kind.most)}, so it is not such a file")
    return path


def _from_url(address: str, kind: Kind) -> Path:
    parts = urllib.parse.urlsplit(address)
    name = Path(urllib.parse.unquote(parts.path)).name
    _refuse_other_kind(address, name, kind)
    _refuse_open_line(address, address)
    key = hashlib.sha256(address.encode()).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "darts_sg" / "remote"
    path = cache / key / name
    if path.is_file():
        print(f"{address} is in the cache; remove {path} to fetch it anew", file=sys.stderr)
        return path
    try:
        with urllib.request.urlopen(address, timeout=TIMEOUT) as answer:
            _refuse_open_line(address, answer.geturl())
            _save(address, answer, path, kind)
    except urllib.error.HTTPError as error:
        raise UsageError(f"{address}: the server answers {error.code} ({error.reason}); check the address") from None
    except (OSError, HTTPException, ValueError) as error:
        if isinstance(error, UsageError):
            raise
        reason = first_line(error).removeprefix("<urlopen error ").removesuffix(">")
        raise UsageError(
            f"{address} cannot be fetched ({reason}): download it by other means and name the file"
        ) from None
    return path


def _refuse_open_line(address: str, reached: str) -> None:
    """UsageError for a line that others can write to: plain http to another machine."""
    parts = urllib.parse.urlsplit(reached)
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in LOCAL_HOSTS):
        by = "" if reached == address else f" leads to {quoted(reached)}, which"
        raise UsageError(f"{address}{by} is no https address: files are fetched over https only")


def _save(address: str, answer: IO[bytes], path: Path, kind: Kind) -> None:
    """Write an answer to `path`, which appears only once it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    size, temporary = 0, None
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            temporary = Path(file.name)
            while chunk := answer.read(CHUNK):
                size += len(chunk)
                if size > kind.most:
                    raise UsageError(f"{address} is larger than {size_text(kind.most)}, so it is not such a file")
                file.write(chunk)
        length = getattr(answer, "headers", {}).get("Content-Length")
        if length is not None and length.isdigit() and int(length) != size:
            raise OSError(f"it ended after {size:,} of {int(length):,} bytes")
        temporary.replace(path)
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
