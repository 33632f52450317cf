"""Reading the pickles of CIFAR without running anything that they name.

A pickle names the functions that rebuild its objects, so a plain load runs whatever its author wanted. These
files hold dicts, lists, strings, numbers and one array of bytes. The three numpy names that the array takes
are answered here with inert stand-ins, so not even numpy runs on the say-so of a file.
"""

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from darts_sg.errors import UsageError


class PickledBytes:
    """Stands in for numpy.ndarray: keeps the uint8 array that the pickle describes as `array`."""

    array: np.ndarray

    def __setstate__(self, state: tuple[int, tuple[int, ...], object, bool, bytes]) -> None:
        _, shape, dtype, fortran_order, raw = state
        if not isinstance(dtype, PickledDtype):
            raise pickle.UnpicklingError("an array without a dtype")
        self.array = np.frombuffer(raw, np.uint8).reshape(shape, order="F" if fortran_order else "C")


class PickledDtype:
    """Stands in for numpy.dtype: only unsigned bytes are known."""

    def __init__(self, code: bytes | str, *_: object) -> None:
        if code not in (b"u1", "u1"):
            raise pickle.UnpicklingError(f"an array of {code!r}, not of unsigned bytes")

    def __setstate__(self, state: object) -> None:
        """Byte order and alignment, which say nothing about single bytes."""


def reconstruct(*_: object) -> PickledBytes:
    """Stands in for numpy's _reconstruct: an empty array, to be filled by its state."""
    return PickledBytes()


def latin1(text: str, encoding: str) -> bytes:
    """Stands in for _codecs.encode, by which Python 3 writes bytes into protocol 2."""
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
    """The pickle names something that these files have no use for."""


class ByteArrayUnpickler(pickle.Unpickler):
    """An unpickler that knows the stand-ins above and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return STAND_INS[module, name]
        except KeyError:
            raise ForbiddenGlobalError(f"{module}.{name}") from None


def load_pickled_dict(content: bytes, path: Path) -> dict[bytes | str, Any]:
    """The dict pickled in `content`, the bytes of the file `path`, with arrays of bytes as `PickledBytes`.

    Strings of Python 2 come as bytes. Raises UsageError naming `path` when the pickle names anything else
    than byte arrays, is cut short, or holds no dict.
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
