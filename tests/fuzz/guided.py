"""Fuzzing guided by coverage, with atheris: which inputs are changed further is decided by the lines that they reach.

For readers of bytes. atheris is optional: `pip install atheris` (Python 3.11 to 3.13 on Linux). It has to be imported
before the package, whose modules it instruments.
"""

import hashlib
import json
import os
import sys
import time
from importlib.util import find_spec
from pathlib import Path

STRUCTURED = ("options", "commands", "actions", "run_folders", "resumed", "reports", "study_folders", "plugin")
"""Targets whose inputs are made for them: words, a damaged file and its name, programs."""
SEEDS = 200
"""Inputs of the target's own strategy to begin with."""
LONGEST = 2**14


def available() -> bool:
    """Whether atheris is installed."""
    return find_spec("atheris") is not None


def fuzz(name: str, folder: Path, seconds: float, seed: int, found: Path) -> None:
    """Fuzz a target for some seconds, print its tally as a line of JSON, and end this process."""
    import atheris

    with atheris.instrument_imports(include=["darts_sg"]):
        from tests.fuzz.targets import TARGETS
    from tests.fuzz.watch import Judge, Watch, run_examples

    corpus, reader = folder / "corpus", folder / "read"
    corpus.mkdir()
    reader.mkdir()

    def keep(content: bytes) -> None:
        (corpus / hashlib.sha256(content).hexdigest()[:16]).write_bytes(content)

    run_examples(TARGETS[name].inputs(), keep, SEEDS, seed)
    judge, end = Judge(name, reader, Watch(), found), time.monotonic() + seconds

    def one(content: bytes) -> None:
        if time.monotonic() > end:  # libFuzzer ends a process by itself, without a word of ours
            print("\n" + json.dumps(judge.tally.__dict__), flush=True)
            os._exit(0)
        judge.judge(content)

    options = [f"-seed={seed + 1}", f"-max_len={LONGEST}", "-handle_alrm=0", "-rss_limit_mb=0", "-verbosity=0"]
    atheris.Setup([sys.argv[0], *options, str(corpus)], one)
    atheris.Fuzz()
