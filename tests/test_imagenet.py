"""ImageNet through the real command lines, on a tiny set in its layout."""

import json
import re
import time
from pathlib import Path

import pytest
import yaml

from darts_sg.analysis.cost import derived_cost
from darts_sg.config import parse_quantity
from darts_sg.genotype import load_genotype
from tests.data.fakes import write_imagenet
from tests.test_command_line import EVERY_STEP, assert_same, finish, in_process, newest_state, start

DATA = ["--image-size=32", "--threads=1", "--batch-size=8"]
AUGMENT = [
    "augment", "--recipe=imagenet", "--genotype=DARTS_V2", *DATA, "--channels=4", "--cells=3", "--epochs=3",
    "--warmup-epochs=1", "--auxiliary-weight=0", "--drop-path-prob=0.2",
]  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six classes of six images in either part, four of them odd or damaged."""
    directory = tmp_path_factory.mktemp("imagenet")
    write_imagenet(directory, 6, 6, odd=True)
    return directory


def test_augment_reads_from_files_names_what_is_odd_and_continues_to_the_same_bits(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options = ["--data", str(data), "--workers=0", "--run-dir=whole"]
    code, out, err = in_process(capsys, *AUGMENT, *options, "--channels=auto:37k")
    assert code == 0, err
    assert yaml.safe_load((tmp_path / "whole" / "config.yaml").read_text())["options"]["channels"] == 4
    assert "top-5 error: " in out
    assert err.count("is damaged: image file is truncated") == 2
    result = json.loads((tmp_path / "whole" / "result.json").read_text())
    assert result["unusual_images"] == {"JPEG CMYK": 2, "JPEG L": 2, "PNG RGB": 2, "damaged": 2}
    assert 0 <= result["test_top5_error_last"] <= result["test_error_last"] <= 100
    assert round(result["test_error_last"] * 35 / 100, 2) in range(36)  # the damaged one is not counted
    assert result["test_images"] == 35
    evaluate = ["augment", "--evaluate=whole/weights.safetensors", "--data", str(data), "--workers=0", "--threads=1"]
    code, out, err = in_process(capsys, *evaluate)
    assert code == 0, err
    assert f", 35 images (1 damaged left out): {result['test_error_last']:.2f}%" in out
    assert "equals the recorded" in out
    [told] = err.splitlines()
    assert re.search(r"val/n00000000/n00000000_3.JPEG is damaged: image file is truncated .*; left out", told)
    code, _, err = in_process(capsys, *evaluate, "--damaged=stop")
    assert (code, len(err.splitlines())) == (1, 1)
    assert "n00000000_3.JPEG is damaged: image file is truncated" in err
    assert "repair it, or choose --damaged skip" in err
    rows = (tmp_path / "whole" / "unusual_images.csv").read_text().splitlines()
    assert rows[4].startswith("train/n00000000/n00000000_3.JPEG,damaged: image file is truncated")
    assert len(rows) == 9
    report = (tmp_path / "whole" / "report.md").read_text()
    assert "2 JPEG CMYK" in report
    assert "within the mobile limit" in report
    assert "top-5" in report
    rates = [row["learning_rate"] for row in newest_state(tmp_path / "whole")["rows"]]  # type: ignore[attr-defined]
    factor = (4.93e-5 / 0.1) ** (1 / 3)
    assert rates == pytest.approx([0.1 / 16, 0.1 / 16 * factor, 0.1 / 16 * factor**2])

    process = start(
        ["-m", "darts_sg", *AUGMENT, "--data", str(data), "--workers=1", "--run-dir=killed", *EVERY_STEP], tmp_path
    )
    deadline = time.monotonic() + 120
    while not list((tmp_path / "killed").glob("checkpoints/epoch_0001_step_00000[2-4].pt")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.wait()
    code, _, err = in_process(capsys, "augment", "--resume=killed", "--workers=0", "--damaged=stop")
    assert code == 1, err
    assert "choose --damaged skip (a run goes on with --resume)" in err
    code, _, err = in_process(capsys, "augment", "--resume=killed", "--workers=0")
    assert code == 0, err
    process.communicate()
    for part in ("state", "rows"):
        assert_same(newest_state(tmp_path / "whole")[part], newest_state(tmp_path / "killed")[part])


@pytest.mark.slow
def test_a_stopped_run_ends_its_workers_and_says_how_to_go_on(data: Path, tmp_path: Path) -> None:
    command = ["-m", "darts_sg", *AUGMENT, "--data", str(data), "--workers=2", "--run-dir=run"]
    code, out, err = finish(start([*command, "--time-budget=1e-6"], tmp_path))
    assert code == 0, err
    assert "time budget used up; saved at epoch 1 of 3, step 1" in out
    assert "Traceback" not in err


def test_dry_run_reads_and_says_whether_the_network_is_a_mobile_one(
    data: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = in_process(capsys, *AUGMENT, "--data", str(data), "--workers=0", "--dry-run")
    assert code == 0, err
    assert "imagenet, test part: val; 6 classes; images brought to 32×32 pixels" in out
    assert "within the mobile limit of 600M" in out
    assert not list(tmp_path.iterdir())
    for auto in ("auto:50k", "auto:1.2M"):
        code, out, err = in_process(
            capsys, *AUGMENT, "--data", str(data), "--workers=0", f"--channels={auto}", "--dry-run"
        )
        assert code == 0, err
        found = re.search(r"C=(\d+) with ([\d,]+) MACs \(C=(\d+) has ([\d,]+)\)", out)
        assert found, out
        C, macs, wider, more = (int(number.replace(",", "")) for number in found.groups())
        bound = parse_quantity("", auto.removeprefix("auto:"))
        assert macs <= bound < more
        assert wider == C + 2
        for channels, expected in ((C, macs), (wider, more)):
            assert derived_cost(load_genotype("DARTS_V2"), "imagenet", channels, 3, 6, 32).macs == expected
        assert f"imagenet shape, C={C}, 3 cells" in out
    code, out, _ = in_process(capsys, *AUGMENT, "--print-config")
    options = yaml.safe_load(out)
    assert (options["schedule"], options["colour_jitter"], options["weight_decay"]) == ("exponential", 0.4, 3e-5)


def test_a_search_on_the_parts_of_a_split_file_keeps_it_and_continues_without_it(
    data: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = in_process(
        capsys, "data", "subset", "--data", str(data), "--fraction", "0.5", "0.22", "-o", "a.json"
    )
    assert (code, out) == (0, "a.json\n"), err
    search = [
        "search", "--recipe=imagenet", *DATA, "--data", str(data), "--workers=0", "--split=a.json", "--channels=4",
        "--cells=3", "--nodes=2", "--space=sep_conv_3x3+skip_connect", "--epochs=2", "--alpha-frozen-epochs=1",
        "--kernels=pytorch",
    ]  # fmt: skip
    code, out, err = in_process(capsys, *search, "--dry-run")
    assert code == 0, err
    assert "images: 18 for the weights, 8 for the alphas" in out
    code, _, err = in_process(capsys, *search, "--run-dir=run", "--time-budget=1e-6")
    assert code == 0, err
    (tmp_path / "a.json").unlink()
    code, out, err = in_process(capsys, "search", "--resume=run")
    assert code == 0, err
    assert "derived network at C=48, 14 cells" in out
    genotype = yaml.safe_load((tmp_path / "run" / "genotype.yaml").read_text())
    assert (genotype["provenance"]["train_images"], genotype["provenance"]["validation_images"]) == (18, 8)
    for more, expected in (
        (["--split=a.json"], "cannot read a.json"),
        (["--split=run/split.json", "--train-images=3"], "leave --train-images"),
        (["--split=run/split.json", "--dataset=synthetic", "--image-size=32"], "is for --dataset imagenet"),
    ):
        code, _, err = in_process(capsys, *search, *more)
        assert (code, len(err.splitlines())) == (2, 1)
        assert expected in err
