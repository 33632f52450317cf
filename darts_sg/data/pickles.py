"""Read the pickles of CIFAR without running code from them.

A pickle names the functions that rebuild its objects, so a plain load can run arbitrary code. CIFAR's files hold dicts,
lists, strings, numbers and one array of bytes. The numpy names that the array needs are resolved to inert stand-ins
here; any other name is refused.
"""

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from darts_sg.errors import UsageError


class PickledBytes:
    """Stand-in for numpy.ndarray: holds the pickled uint8 array as `array`."""

    array: np.ndarray

    def __setstate__(self, state: tuple[int, tuple[int, ...], object, bool, bytes]) -> None:
        _, shape, dtype, fortran_order, raw = state
        if not isinstance(dtype, PickledDtype):
            raise pickle.UnpicklingError("an array without a dtype")
        self.array = np.frombuffer(raw, np.uint8).reshape(shape, order="F" if fortran_order else "C")


class PickledDtype:
    """Stand-in for numpy.dtype: accepts unsigned bytes only."""

    def __init__(self, code: bytes | str, *_: object) -> None:
        if code not in (b"u1", "u1"):
            raise pickle.UnpicklingError(f"an array of {code!r}, not of unsigned bytes")

    def __setstate__(self, state: object) -> None:
        """Ignore byte order and alignment, which do not matter for single bytes."""


def reconstruct(*_: object) -> PickledBytes:
    """Stand-in for numpy's _reconstruct: an empty array, to be filled by its state."""
    return PickledBytes()


def latin1(text: str, encoding: str) -> bytes:
    """Stand-in for _codecs.encode, with which Python 3 writes bytes in protocol 2."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes encoded as {encoding!r}")
    return text.encode("latin1")


STAND_INS: dict[tuple[str, str], object] = {
    ("numpy.core.multiarray", "_reconstruct"): reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): reconstruct,
    ("numpy", "ndarray"): PickledBytes,
    ("numpy", "dtype"): PickledDtype,
    ("_codecs", "encode"): latin1,
}


class ForbiddenGlobalError(pickle.UnpicklingError):
    """The pickle names something that CIFAR's files do not need."""


class ByteArrayUnpickler(pickle.Unpickler):
    """An unpickler that resolves the stand-ins above and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return STAND_INS[module, name]
        except KeyError:
            raise ForbiddenGlobalError(f"{module}.{name}") from None


def load_pickled_dict(content: bytes, path: Path) -> dict[bytes | str, Any]:
    """The dict pickled in `content`, the bytes of the file `path`, with arrays of bytes as `PickledBytes`.

    Strings of Python 2 become bytes. Raises UsageError naming `path` if the pickle needs more than byte arrays, is cut
    short, or holds no dict.
    """
    try:
        value = ByteArrayUnpickler(io.BytesIO(content), encoding="bytes").load()
    except ForbiddenGlobalError as error:
        raise UsageError(
            f"{path} wants to run {error}, which no CIFAR file does, and was refused: get the published file"
        ) from None
    except Exception as error:  # damaged bytes can raise nearly anything while they are interpreted
        reason = str(error) or type(error).__name__
        raise UsageError(f"{path} is damaged or is no CIFAR file ({reason}): get it again") from None
    if not isinstance(value, dict):
        raise UsageError(f"{path} is no CIFAR file: it holds a {type(value).__name__}, not a dict")
    return value
