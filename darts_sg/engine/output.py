"""Output that may be lost: a run does not end because nobody reads what it prints any more."""

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from contextvars import ContextVar
from pathlib import Path
from textwrap import TextWrapper
from typing import Any

Report = Callable[[str], None]
_part_of_a_whole = ContextVar("part of a whole", default=False)


def announce(*lines: str) -> None:
    """Print what a job says of itself: its heading, results and next commands; nothing in a job that is a part."""
    if lines and not _part_of_a_whole.get():
        print(*lines, sep="\n")


def tell(text: str) -> None:
    """Print a text at once; in a terminal its long lines are broken between words, and their rest is indented."""
    if sys.stdout.isatty():
        breaks = TextWrapper(
            shutil.get_terminal_size().columns, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
        )
        text = "\n".join(breaks.fill(line) for line in text.split("\n"))
    print(text, flush=True)


@contextmanager
def part_of_a_whole() -> Iterator[None]:
    """Within the context jobs print progress, notes and warnings only. The caller names them, and what follows."""
    token = _part_of_a_whole.set(True)
    try:
        yield
    finally:
        _part_of_a_whole.reset(token)


class LenientStream:
    """A text stream whose writes never fail.

    After the first error, such as a closed pipe (`| head -1`) or a terminal that is gone, the rest of the text is
    dropped and `reports` are told why, once. Characters that the encoding lacks become question marks.
    """

    def __init__(self, stream: Any, name: str) -> None:
        self._stream, self._name = stream, name
        self._error: str | None = None
        self.reports: list[Report] = []

    def write(self, text: str) -> int:
        if self._error is None:
            try:
                self._stream.write(text)
            except UnicodeEncodeError:
                encoding = self._stream.encoding or "ascii"
                self.write(text.encode(encoding, "replace").decode(encoding))
            except (OSError, ValueError) as error:  # ValueError: the stream is closed
                self._lose(error)
        return len(text)

    def flush(self) -> None:
        if self._error is None:
            try:
                self._stream.flush()
            except (OSError, ValueError) as error:
                self._lose(error)

    def listen(self, report: Report) -> None:
        """Tell `report` when the stream is lost; at once if it is lost already."""
        self.reports.append(report)
        if self._error is not None:
            report(self._error)

    def _lose(self, error: Exception) -> None:
        reason = getattr(error, "strerror", None) or str(error)
        self._error = f"{self._name} is lost ({reason}): the run goes on without it"
        discard(self._stream)
        for report in self.reports:
            report(self._error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def lenient_output(report: Report | None = None) -> Iterator[None]:
    """Within the context printing never fails. `report` is told when standard output or standard error is lost.

    Contexts may be nested: the inner one adds its report to the streams of the outer one.
    """
    streams = (_lenient(sys.stdout, "standard output"), _lenient(sys.stderr, "standard error"))
    with redirect_stdout(streams[0]), redirect_stderr(streams[1]):
        for stream in streams:
            if report is not None:
                stream.listen(report)
        try:
            yield
        finally:
            for stream in streams:
                if report is not None:
                    stream.reports.remove(report)


def discard(stream: Any) -> None:
    """Let the null device take the place of a stream's file: what is in its buffer would fail at exit once more."""
    with suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def open_missing_streams() -> None:
    """Open the null device for standard streams that were closed when the process started (`>&-`).

    Otherwise the first file that is opened gets the number of the stream, and whatever libraries print is written into
    that file.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            with suppress(OSError):
                os.fstat(number)
                continue  # taken by a file already
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
            os.set_inheritable(number, True)
            setattr(sys, name, os.fdopen(number, "r" if name == "stdin" else "w", encoding="utf-8"))


def _lenient(stream: Any, name: str) -> LenientStream:
    if isinstance(stream, LenientStream):
        return stream
    return LenientStream(Path(os.devnull).open("w", encoding="utf-8") if stream is None else stream, name)
