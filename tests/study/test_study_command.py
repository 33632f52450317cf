"""The command `study`: its actions on small folders, and one line for whatever is wrong."""

import functools
import json
from pathlib import Path

import pytest

from darts_sg.__main__ import run
from darts_sg.data import load_dataset
from darts_sg.errors import UsageError
from darts_sg.study import coordinator
from darts_sg.study.folder import StudyFolder
from tests.study.small import RETRAIN, SEARCH, SMALL, study_in


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(SMALL)
    return path


def test_new_writes_a_file_and_overwrites_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    run(["study", "new", "mine"])
    assert "study plan mine.yaml" in capsys.readouterr().out
    assert "title: mine\n" in (tmp_path / "mine.yaml").read_text()
    with pytest.raises(UsageError, match=r"mine.yaml exists"):
        run(["study", "new", "mine"])


def test_plan_lists_the_jobs(file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("darts_sg.study.check.load_dataset", functools.cache(load_dataset))
    run(["study", "plan", str(file), "--no-measure"])
    printed = capsys.readouterr().out
    assert f"| 2 | {RETRAIN} | {SEARCH} |" in printed
    assert "2 jobs: 1 searches, 1 retrainings" in printed
    run(["study", "plan", str(file), "--no-measure", "--json"])
    jobs = json.loads(capsys.readouterr().out)["jobs"]
    assert [job["id"] for job in jobs] == [SEARCH, RETRAIN]
    assert jobs[0]["options"]["seed"] == 0


def test_status_shows_states_and_failures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, _ = study_in(tmp_path / "S")
    folder.write_state(folder.state(SEARCH).changed(state="failed", failure="out of paper", attempts=3))
    run(["study", "status", str(folder.path)])
    printed = capsys.readouterr().out
    assert "out of paper" in printed
    assert "1 failed, 1 waiting" in printed
    run(["study", "status", str(folder.path), "--json"])
    states = {state["id"]: state for state in json.loads(capsys.readouterr().out)}
    assert states[SEARCH]["attempts"] == 3
    run(["study", "retry", str(folder.path)])
    assert f"1 job will start again: {SEARCH}; continue with" in capsys.readouterr().out
    assert folder.state(SEARCH).state == "waiting"
    run(["study", "retry", str(folder.path)])
    assert capsys.readouterr().out == "no job has failed\n"


def test_stop_waits_until_nothing_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(coordinator, "POLL", 0.0)
    folder, _ = study_in(tmp_path / "S")
    run(["study", "stop", str(folder.path)])
    assert folder.stop_file.exists()
    assert "nothing runs in" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run", "FILE", "--executor", "locl"], "expected one of local, ray, slurm, found 'locl'"),
        (["run", "FILE", "--partition", "gpu"], "--slurm and --partition are for --executor slurm"),
        (["run", "FILE", "--address", "auto"], "--address is for --executor ray"),
        (["run", "FILE", "--time-budget", "0"], "--time-budget must be above 0"),
        (["run", "FILE", "--executor", "slurm", "--slurm", "gpu"], "--slurm gpu: expected KEY=VALUE"),
        (["run", "FILE", "--dir", "FILE"], "is no folder; choose another --dir"),
        (["run", "nothing.yaml"], "cannot read nothing.yaml"),
        (["status", "nowhere"], "nowhere is not the folder of a study"),
        (["stat", "nowhere"], "unknown action 'stat'"),
        ([], "required: ACTION"),
    ],
)
def test_one_line_for_what_is_wrong(file: Path, words: list[str], message: str) -> None:
    with pytest.raises(UsageError) as error:
        run(["study", *(str(file) if word == "FILE" else word for word in words)])
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "is damaged: it is not JSON"),
        ("[]", "is damaged: expected a mapping"),
        ("{}", "is damaged: id is missing"),
        ('{"state": "sleeping"}', "is damaged: state is 'sleeping'"),
        ('{"seconds": "many"}', "is damaged: seconds is 'many'"),
        ('{"depends_on": 3}', "is damaged: depends_on is 3"),
    ],
)
def test_a_damaged_state_is_named(tmp_path: Path, content: str, words: str) -> None:
    folder, _ = study_in(tmp_path / "S")
    folder.state_file(SEARCH).write_text(content)
    with pytest.raises(UsageError) as error:
        folder.states()
    assert words in str(error.value)
    assert str(folder.state_file(SEARCH)) in str(error.value)


def test_unknown_fields_of_a_later_version_are_ignored(tmp_path: Path) -> None:
    folder, _ = study_in(tmp_path / "S")
    path = folder.state_file(SEARCH)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"colour": "blue"}))
    assert StudyFolder(tmp_path / "S").state(SEARCH).id == SEARCH
