"""A run outlives whoever reads what it prints."""

import io
import os
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest

from darts_sg.engine.loop import Display
from darts_sg.engine.output import LenientStream, announce, lenient_output, part_of_a_whole, tell
from tests.engine.test_loop import CountingJob, Runner, runner
from tests.test_command_line import MODEL, ROOT

__all__ = ["runner"]  # the fixture


def closed_pipe() -> Any:
    """A text stream whose reader is gone."""
    reader, writer = os.pipe()
    os.close(reader)
    return os.fdopen(writer, "w", buffering=1)


@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_a_run_goes_on_without_its_output_and_says_so_in_the_log(
    name: str, runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = CountingJob(lambda number: print("step", number, file=getattr(sys, name), flush=True))
    monkeypatch.setattr(sys, name, closed_pipe())
    runner(job)
    assert job.steps == 6
    log = (runner.folder / "log.txt").read_text()
    stream = {"stdout": "standard output", "stderr": "standard error"}[name]
    assert log.count(f"{stream} is lost (Broken pipe): the run goes on without it") == 1
    assert "epoch 2/2: train loss" in log
    print("what is still in the buffer is discarded", file=getattr(sys, name), flush=True)


def test_a_loss_before_the_folder_exists_is_logged_as_soon_as_there_is_a_log(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(sys, "stdout", closed_pipe())
    with lenient_output():
        print("preparing")
        with lenient_output(told.append):
            assert len(told) == 1
            print("running")
    assert len(told) == 1


def test_a_stream_that_was_never_there_or_is_closed_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = io.StringIO()
    closed.close()
    for stream in (None, closed):
        monkeypatch.setattr(sys, "stdout", stream)
        with lenient_output():
            print("text", flush=True)
            if stream is None:
                Display(CountingJob()).line("text")


def test_characters_that_the_encoding_lacks_are_replaced() -> None:
    raw = io.BytesIO()
    stream = LenientStream(io.TextIOWrapper(raw, encoding="ascii"), "standard output")
    with redirect_stdout(stream):
        print("1×1 pixels", flush=True)
        print("and on", flush=True)
    assert raw.getvalue().decode() == "1?1 pixels\nand on\n"


@pytest.mark.parametrize("way", ["reader gone", pytest.param("closed", marks=pytest.mark.slow)])
def test_a_command_whose_output_nobody_reads_finishes(way: str, tmp_path: Path) -> None:
    """As `| head -1` and `>&-` in a shell."""
    script, *options = MODEL
    command = [sys.executable, "-u", str(ROOT / script), *options, "--epochs=1", "--kernels=pytorch", "--run-dir=run"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    if way == "closed":
        command = ["sh", "-c", 'exec "$@" >&-', "sh", *command]
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stderr is not None
    if way == "reader gone":
        process.stdout.readline()
    process.stdout.close()
    err = process.stderr.read()
    assert process.wait(timeout=240) == 0, err
    assert err == ""
    assert (tmp_path / "run" / "report.md").is_file()
    log = (tmp_path / "run" / "log.txt").read_text()
    assert ("standard output is lost" in log) == (way == "reader gone")


def test_long_lines_are_broken_between_words_in_a_terminal_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "a choice: " + "word " * 30 + "/a/path/that/is/not/broken-anywhere"
    tell(text)
    assert capsys.readouterr().out == text + "\n"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "40")
    tell("one\n" + text)
    first, second, *rest = capsys.readouterr().out.splitlines()
    assert (first, second[:9]) == ("one", "a choice:")
    assert all(line.startswith("  ") and len(line) <= 40 for line in rest)
    assert " ".join([second, *map(str.strip, rest)]) == text


def test_a_part_of_a_whole_announces_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with part_of_a_whole():
        announce("a result")
    announce("two", "lines")
    announce()
    assert capsys.readouterr().out == "two\nlines\n"
