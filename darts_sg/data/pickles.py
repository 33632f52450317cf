"""Read the pickles of CIFAR without running code from them.

A pickle names the functions that rebuild its objects, so a plain load can run arbitrary code. CIFAR's files hold dicts,
lists, strings, numbers and one array of bytes. The numpy names that the array needs are resolved to inert stand-ins
here; any other name is refused.

The unpickler is the one written in Python. That in C allocates what a pickle asks for: nine bytes with a memo index of
2^28 take 4 GB. Here the memo is a dict, and only the opcodes that dicts, lists, strings, numbers and stand-ins need are
known.
"""

import io
import pickle
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from darts_sg.errors import UsageError, first_line


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


OPCODES = (
    pickle.PROTO, pickle.FRAME, pickle.STOP, pickle.MARK, pickle.POP, pickle.POP_MARK,
    pickle.NONE, pickle.NEWTRUE, pickle.NEWFALSE, pickle.INT, pickle.BININT, pickle.BININT1, pickle.BININT2,
    pickle.LONG1, pickle.STRING, pickle.BINSTRING, pickle.SHORT_BINSTRING, pickle.UNICODE, pickle.BINUNICODE,
    pickle.SHORT_BINUNICODE, pickle.BINUNICODE8, pickle.BINBYTES, pickle.SHORT_BINBYTES, pickle.BINBYTES8,
    pickle.EMPTY_DICT, pickle.DICT, pickle.EMPTY_LIST, pickle.LIST, pickle.EMPTY_TUPLE, pickle.TUPLE, pickle.TUPLE1,
    pickle.TUPLE2, pickle.TUPLE3, pickle.APPEND, pickle.APPENDS, pickle.SETITEM, pickle.SETITEMS,
    pickle.PUT, pickle.BINPUT, pickle.LONG_BINPUT, pickle.MEMOIZE, pickle.GET, pickle.BINGET, pickle.LONG_BINGET,
    pickle.GLOBAL, pickle.STACK_GLOBAL, pickle.REDUCE, pickle.BUILD,
)  # fmt: skip
"""What the published files and those that Python 3 writes in any protocol are made of."""


READERS: dict[int, Any] = pickle._Unpickler.dispatch
"""The methods of Python's unpickler by opcode."""


class ByteArrayUnpickler(pickle._Unpickler):
    """An unpickler that resolves the stand-ins above and nothing else. Keys of dicts are strings or numbers."""

    dispatch: ClassVar[dict[int, Any]] = {opcode[0]: READERS[opcode[0]] for opcode in OPCODES}

    def load_setitem(self) -> None:
        _refuse_keys(self.stack[-2:-1])  # type: ignore[attr-defined]
        READERS[pickle.SETITEM[0]](self)

    dispatch[pickle.SETITEM[0]] = load_setitem

    def load_setitems(self) -> None:
        _refuse_keys(self.stack[::2])  # type: ignore[attr-defined]
        READERS[pickle.SETITEMS[0]](self)

    dispatch[pickle.SETITEMS[0]] = load_setitems

    def load_dict(self) -> None:
        _refuse_keys(self.stack[::2])  # type: ignore[attr-defined]
        READERS[pickle.DICT[0]](self)

    dispatch[pickle.DICT[0]] = load_dict

    def find_class(self, module: str, name: str) -> Any:
        try:
            return STAND_INS[module, name]
        except KeyError:
            raise ForbiddenGlobalError(f"{module}.{name}") from None


def _refuse_keys(keys: list[Any]) -> None:
    """Tuples as keys may be nested so that their hash is never computed to its end."""
    if not all(isinstance(key, bytes | str | int) for key in keys):
        raise pickle.UnpicklingError("a key that is neither a string nor a number")


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
        reason = "it has an unknown opcode" if type(error) is KeyError else first_line(error)[:80]
        raise UsageError(f"{path} is damaged or is no CIFAR file ({reason}): get it again") from None
    if not isinstance(value, dict):
        raise UsageError(f"{path} is no CIFAR file: it holds a {type(value).__name__}, not a dict")
    return value
