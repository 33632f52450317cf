"""A slice of the fuzz suite, the same in each run, and every input that once was a finding."""

from pathlib import Path

import pytest

from tests.fuzz.targets import TARGETS
from tests.fuzz.watch import Watch, check, run_examples

CORPUS = Path(__file__).parent / "corpus"
KEPT = sorted(path for path in CORPUS.glob("*/*") if path.is_file())
COUNTS = {"reports": 1, "study_folders": 2, "actions": 5}
"""Inputs of a target in the slice; default 10."""


@pytest.fixture(scope="module")
def watch() -> Watch:
    return Watch()


@pytest.mark.parametrize("name", TARGETS)
def test_hostile_input_is_answered_in_one_line(name: str, tmp_path: Path, watch: Watch) -> None:
    problems = []

    def one(content: bytes) -> None:
        what, said = check(TARGETS[name], content, tmp_path, watch)
        if what not in ("", "refused"):
            problems.append(f"{what}: {said}: {content[:200]!r}")

    run_examples(TARGETS[name].inputs(), one, COUNTS.get(name, 10), 0)
    assert not problems


@pytest.mark.parametrize("path", KEPT, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_an_input_that_was_a_finding_is_answered_in_one_line(path: Path, tmp_path: Path, watch: Watch) -> None:
    what, said = check(TARGETS[path.parent.name], path.read_bytes(), tmp_path, watch)
    assert what in ("", "refused"), said
