"""The overhead of a study, from a folder whose times are known."""

from pathlib import Path

import pytest

from benchmarks.study_overhead import overhead_of, text_of
from darts_sg.errors import UsageError
from darts_sg.study.folder import StudyFolder
from tests.study.small import RETRAIN, SEARCH, study_in


def test_the_overhead_is_what_remains_beside_the_jobs(tmp_path: Path) -> None:
    """Two places: the search from 2 to 32 s after the start of the command, the retraining from 12 s to 52 s."""
    folder, _ = study_in(tmp_path / "study")
    for job_id, started, ended in ((SEARCH, 4.0, 32.0), (RETRAIN, 14.0, 52.0)):
        state = folder.state(job_id).changed(state="done", started=started, ended=ended, startup=2.0)
        folder.write_state(state.changed(seconds=ended - started))
    folder.log("coordinator: 2 jobs on this machine, 2 jobs at a time (CPU, 1 thread each), 1.5 s after its start")
    folder.log("coordinator: 2 jobs done, 0 failed, 55.0 s after its start")
    found = overhead_of(folder)
    assert (found.num_jobs, found.places, found.wall, found.before) == (2, 2, 55.0, 1.5)
    assert (found.jobs, found.startup, found.idle) == (70.0, 4.0, 20.0)
    assert found.share == pytest.approx((55.0 * 2 - 20.0) / 70.0 - 1)
    assert "28.57%" in text_of(folder)


def test_a_study_that_was_interrupted_has_no_overhead(tmp_path: Path) -> None:
    folder, _ = study_in(tmp_path / "study")
    with pytest.raises(UsageError, match="was not done at once; run the study in a new folder"):
        overhead_of(StudyFolder.open(folder.path))
