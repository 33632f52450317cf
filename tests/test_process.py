"""A process that follows its parent."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

CHILD = """
import signal, sys, time
from darts_sg import process
def note(*_):
    print(process.parent_is_gone(), file=open(sys.argv[1] + ".part", "w"), flush=True)
    import os
    os.replace(sys.argv[1] + ".part", sys.argv[1])
    sys.exit()
signal.signal(signal.SIGTERM, note)
process.end_with_parent()
print("ready", flush=True)
time.sleep(60)
"""
PARENT = "import subprocess, sys; subprocess.run([sys.executable, '-c', *sys.argv[1:]], start_new_session=True)"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent has ended")
def test_a_killed_parent_is_a_sigterm_for_its_child(tmp_path: Path) -> None:
    told = tmp_path / "told"
    command = [sys.executable, "-c", PARENT, CHILD, str(told)]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    assert parent.stdout.readline() == "ready\n"
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 60
    while not told.is_file() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert told.read_text() == "True\n"


def test_a_quick_end_waits_for_threads_and_runs_exit_handlers() -> None:
    code = "import atexit, threading, time; from darts_sg import process; atexit.register(lambda: print('handler')); "
    code += "threading.Thread(target=lambda: (time.sleep(0.1), print('thread'))).start(); process.end(7)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (7, "thread\nhandler\n", "")
