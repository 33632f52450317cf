"""Two processes on CPUs, started by the real torchrun, against one."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from darts_sg.cli.jobs import parse
from darts_sg.data import count_unusual
from darts_sg.engine.checkpoint import checkpoints
from darts_sg.engine.distributed import ALONE, RankLost, Ranks, needing_all
from darts_sg.engine.loop import stop_signals
from darts_sg.errors import UsageError
from tests.data.fakes import write_imagenet
from tests.engine.ranks import outcomes
from tests.test_command_line import AUGMENT, EVERY_STEP, ROOT, SEARCH, assert_same, finish, in_process, newest_state

pytestmark = pytest.mark.xdist_group("ranks")  # one worker makes what all share

IMAGES = [
    "augment.py", "--dataset=imagenet", "--data=images", "--image-size=16", "--genotype=DARTS_V2", "--channels=4",
    "--cells=3", "--batch-size=8", "--epochs=3", "--threads=1", "--workers=0", "--drop-path-prob=0.3", "--ema=0.9",
]  # fmt: skip
CONTINUE = "torchrun --nproc-per-node 2 {} --resume run"


def torchrun(command: list[str], cwd: Path, *options: str) -> subprocess.Popen[str]:
    """A script of this package in two processes."""
    script, *arguments = command
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
            *(*options, str(ROOT / script), *arguments),
        ],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(pattern: str, folder: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not list(folder.glob(pattern)):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def process_of_rank(rank: int, launcher: int) -> int:
    """The number of the process that torchrun, the process `launcher`, has started as `rank`."""
    for status in Path("/proc").glob("[0-9]*/stat"):
        parent = status.read_text().rpartition(")")[2].split()[1]
        if parent == str(launcher) and f"\0RANK={rank}\0" in "\0" + (status.parent / "environ").read_text():
            return int(status.parent.name)
    raise AssertionError(f"torchrun has no rank {rank}")


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the steps in ranks.py come to in two processes."""
    folder = tmp_path_factory.mktemp("ranks")
    write_imagenet(folder / "images", 3, 6, odd=True)
    code, _, err = finish(torchrun(["tests/engine/ranks.py", str(folder)], ROOT))
    assert code == 0, err
    return folder


@pytest.fixture(scope="module")
def alone(two_ranks: Path) -> dict[str, Any]:
    """What they come to in one."""
    return outcomes(ALONE, two_ranks / "images")


def test_two_ranks_take_the_steps_of_one_process_and_hold_the_same_bits(two_ranks: Path, alone: dict[str, Any]) -> None:
    first, second = (torch.load(two_ranks / f"{rank}.pt") for rank in (0, 1))
    for name in ("first_order", "unrolled", "gumbel", "hard", "adversarial", "augment", "mixed"):
        torch.testing.assert_close(first[name], alone[name], rtol=1e-6, atol=1e-9)
        assert_same(first[name], second[name])
    assert first["eigenvalue"] == second["eigenvalue"] == pytest.approx(alone["eigenvalue"], rel=1e-3)
    assert not torch.equal(first["random"], second["random"])


def test_image_files_are_read_by_two_ranks_as_by_one(two_ranks: Path, alone: dict[str, Any]) -> None:
    first, second, whole = (
        dict(found["files"]) for found in (*(torch.load(two_ranks / f"{rank}.pt") for rank in (0, 1)), alone)
    )
    assert_same(first["batches"], whole["batches"])
    assert [len(y) for _, y in whole["batches"]] == [9, 9, 9, 9]
    here, there, unusual = (found.pop("unusual") for found in (first, second, whole))
    assert count_unusual(unusual["met"]) == {"JPEG CMYK": 1, "JPEG L": 1, "PNG RGB": 1, "damaged": 1}
    assert count_unusual(unusual["in_the_end"]) == {"JPEG CMYK": 2, "JPEG L": 2, "PNG RGB": 2, "damaged": 2}
    assert here["in_the_end"] == there["in_the_end"] == unusual["in_the_end"]
    assert here["met"] == there["met"] == unusual["met"] == here["met_here"] | there["met_here"]
    assert min(len(found["met"]) - len(found["met_here"]) for found in (here, there)) > 0
    torch.testing.assert_close(first, whole, rtol=1e-6, atol=1e-9)
    assert_same(first, second)


def test_the_running_mean_is_that_of_the_whole_batch_on_all_ranks(two_ranks: Path, alone: dict[str, Any]) -> None:
    first, second = (torch.load(two_ranks / f"{rank}.pt")["statistics"]["state"]["network"] for rank in (0, 1))
    whole = alone["statistics"]["state"]["network"]
    assert_same(first, second)
    mean, variance = "stem.body.1.running_mean", "stem.body.1.running_var"
    torch.testing.assert_close(first[mean], whole[mean], rtol=1e-9, atol=1e-12)
    assert not torch.equal(first[variance], whole[variance])


def test_ranks_that_differ_in_one_bit_end_the_run_with_one_line(two_ranks: Path) -> None:
    for rank in (0, 1):
        told = (two_ranks / f"{rank}.txt").read_text()
        assert re.fullmatch(r"the processes disagree on network: \w+ in process 1, \w+ in process 0; start over", told)


def test_a_killed_rank_ends_the_job_and_a_restarted_one_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    write_imagenet(tmp_path / "images", 6, 6, odd=True)
    code, out, err = finish(torchrun([*IMAGES, "--run-dir", "undisturbed"], tmp_path))
    assert code == 0, err
    assert out.count("run folder undisturbed") == out.count("report: ") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "undisturbed"]
    environment = yaml.safe_load((tmp_path / "undisturbed" / "config.yaml").read_text())["environment"]
    result = json.loads((tmp_path / "undisturbed" / "result.json").read_text())
    assert environment["processes"] == result["code"]["processes"] == 2
    assert "1 thread, 2 processes" in (tmp_path / "undisturbed" / "report.md").read_text()
    assert environment["command"].startswith("torchrun --nproc-per-node 2 augment.py --dataset=imagenet")

    process = torchrun([*IMAGES, *EVERY_STEP, "--run-dir", "run"], tmp_path, "--max-restarts", "1")
    wait_for("checkpoints/epoch_0001_step_00000[2-4].pt", tmp_path / "run", process)
    os.kill(process_of_rank(1, process.pid), signal.SIGKILL)
    code, out, err = finish(process)
    assert code == 0, err
    assert "continuing from the newest of 2 checkpoints" in out
    told = [line for line in err.splitlines() if line.startswith("augment.py: ")]
    assert len(told) == 1
    assert "another process of this job is gone" in told[0]
    assert told[0].endswith(f"continue from the newest checkpoint with {CONTINUE.format(ROOT / 'augment.py')}")
    assert_same(newest_state(tmp_path / "undisturbed")["state"], newest_state(tmp_path / "run")["state"])
    assert_same(newest_state(tmp_path / "undisturbed")["rows"], newest_state(tmp_path / "run")["rows"])
    for name in ("undisturbed", "run"):
        found = json.loads((tmp_path / name / "result.json").read_text())["unusual_images"]
        assert found == {"JPEG CMYK": 2, "JPEG L": 2, "PNG RGB": 2, "damaged": 2}  # of both ranks
        assert len((tmp_path / name / "unusual_images.csv").read_text().splitlines()) == 9


def test_a_rank_that_lost_another_is_not_ended_before_it_has_said_so() -> None:
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(RankLost, match="another process of this job is gone"), stop_signals(), needing_all():
            raise RuntimeError("Connection closed by peer")
        signal.raise_signal(signal.SIGTERM)  # torchrun's, after the loop; it would end the tests
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.slow
def test_a_stopped_search_is_continued_by_one_process(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    process = torchrun([*SEARCH, "--space", "sandglass_3x3+sep_conv_3x3+skip_connect", "--run-dir", "run"], tmp_path)
    wait_for("checkpoints/*.pt", tmp_path / "run", process)
    process.send_signal(signal.SIGTERM)
    code, out, _ = finish(process)
    assert code != 0
    assert out.count("stopped by SIGTERM; saved at epoch") == 1
    assert f"Continue with: {CONTINUE.format(ROOT / 'search.py')}" in out
    assert checkpoints(tmp_path / "run" / "checkpoints")
    monkeypatch.chdir(tmp_path)
    code, _, err = in_process(capsys, "search", "--resume", "run")
    assert code == 0, err
    assert "this run was started with processes 2, now it is 1: the bits may differ" in err
    assert (tmp_path / "run" / "genotype.yaml").is_file()


@pytest.mark.slow
def test_ranks_save_and_end_when_torchrun_alone_is_killed(tmp_path: Path) -> None:
    process = torchrun([*SEARCH, "--space", "sandglass_3x3+sep_conv_3x3+skip_connect", "--run-dir", "run"], tmp_path)
    wait_for("checkpoints/*.pt", tmp_path / "run", process)
    ranks = [process_of_rank(rank, process.pid) for rank in (0, 1)]
    process.kill()
    deadline = time.monotonic() + 120
    while any(Path(f"/proc/{rank}").is_dir() for rank in ranks):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert "stopped because torchrun is gone; saved at epoch" in (tmp_path / "run" / "log.txt").read_text()


@pytest.mark.slow
def test_bad_input_gets_one_line_from_all_ranks_together(tmp_path: Path) -> None:
    code, out, err = finish(torchrun([*AUGMENT, "--batch-size", "3"], tmp_path))
    assert code != 0
    assert not out
    told = [line for line in err.splitlines() if line.startswith("augment.py: ")]
    assert len(told) == 1
    assert "40 images in batches of 3 end with one of 1, too few for 2 processes, which need 2 each" in told[0]
    assert "darts_sg/" not in err  # no traceback of ours
    assert not list(tmp_path.iterdir())


def test_only_a_run_of_the_same_options_is_continued_unasked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = [*AUGMENT[1:], "--run-dir", str(tmp_path)]
    options = parse("augment", arguments, "augment.py").config.as_dict()
    content = {"job": "augment", "options": options, "environment": {}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(content))
    assert parse("augment", arguments, "augment.py").resume is None
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "1")
    assert parse("augment", [*arguments, "--time-budget", "9"], "augment.py").resume == tmp_path
    with pytest.raises(UsageError, match=r"--seed 1 would change the result of .*, which was started with 0"):
        parse("augment", [*arguments, "--seed", "1"], "augment.py")
    with pytest.raises(UsageError, match="torchrun --max-restarts needs --run-dir DIR"):
        parse("augment", AUGMENT[1:], "augment.py")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (("a", "2", "0", "2"), "expected numbers from torchrun, found: RANK is 'a'"),
        (("0", "", "0", "1"), "WORLD_SIZE is ''"),
        (("-1", "2", "0", "2"), "RANK is '-1'"),
        (("²", "2", "0", "2"), "RANK is '²'"),
        (("2", "2", "0", "2"), "RANK 2 of WORLD_SIZE 2 and LOCAL_RANK 0 of LOCAL_WORLD_SIZE 2 do not fit together"),
    ],
)
def test_variables_of_torchrun_that_are_none_get_one_line(
    values: tuple[str, ...], expected: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in zip(("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"), values, strict=True):
        monkeypatch.setenv(name, value)
    code, _, err = in_process(capsys, "search", "--dry-run")
    assert code == 2
    assert expected in err
    assert len(err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [("cuda:1", "8 processes run on --device cpu, or cuda with a GPU each"), ("cuda", "--nproc-per-node 2")],
)
def test_each_process_has_a_gpu_of_its_own(chosen: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UsageError, match=expected):
        Ranks(7, 8, 3, 4).device(torch.device(chosen))
    assert Ranks(5, 8, 1, 4).device(torch.device("cuda")) == torch.device("cuda", 1)
    assert Ranks(5, 8, 1, 4).device(torch.device("cpu")) == torch.device("cpu")
    assert ALONE.device(torch.device(chosen)) == torch.device(chosen)
