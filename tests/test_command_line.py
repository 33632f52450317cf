"""The real command lines, end to end, as a user runs them."""

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from rich.console import Console

from darts_sg.analysis import compare
from darts_sg.analysis.cost import derived_cost, model_cost
from darts_sg.analysis.run_folder import read_metrics
from darts_sg.cli.main import PROG, run
from darts_sg.cli.terminal import answer
from darts_sg.config import recipe_names
from darts_sg.engine.checkpoint import checkpoints, read_torch
from darts_sg.engine.weights import read_weights
from darts_sg.genotype import load_genotype, renamed, zoo_names
from darts_sg.invocation import python
from darts_sg.networks.mobile import find_model

# one worker makes the runs that the tests here share
pytestmark = [pytest.mark.usefixtures("rendered_once"), pytest.mark.xdist_group("command line")]

ROOT = Path(__file__).parent.parent
SHORT = ["--dataset=synthetic", "--batch-size=8", "--train-images=40", "--epochs=3", "--threads=1"]
TINY = [*SHORT, "--channels=4", "--cells=3"]
SEARCH = ["search.py", *TINY, "--nodes", "2", "--validation-images", "40"]
AUGMENT = ["augment.py", *TINY, "--genotype", "DARTS_V2", "--drop-path-prob", "0.3", "--ema", "0.9"]
EVERY_STEP = ["--checkpoint-minutes", "1e-9"]
MODEL = ["augment.py", *SHORT, "--recipe", "mobilenext", "--model", "mobilenext_0.1_id2"]
JOBS = {"search": SEARCH, "augment": AUGMENT, "model": MODEL}


def start(command: list[str], cwd: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    script, *arguments = command
    return subprocess.Popen(
        [sys.executable, script if script == "-m" else str(ROOT / script), *arguments],
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=240)
    return process.returncode, out, err


def in_process(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """The console command in this process: exit code, standard output, standard error."""
    with pytest.raises(SystemExit) as ended:
        answer(lambda: run(arguments), PROG)
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


def newest_state(run_dir: Path) -> dict[str, object]:
    return read_torch(checkpoints(run_dir / "checkpoints")[-1])


def assert_same(a: object, b: object, where: str = "") -> None:
    """Equal to the bit, through dicts and lists; the seconds that a run took are not compared."""
    assert type(a) is type(b), where
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a.keys() - {"seconds", "epoch_seconds", "images_per_second"}:
            assert_same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{where}[{i}]")
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    else:
        assert a == b or (a != a and b != b), where


@pytest.fixture(scope="module")
def undisturbed(rendered_once: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A finished run of each job: of both scripts, and of the console command, in this process, for the model."""
    folder = tmp_path_factory.mktemp("undisturbed")
    for job in ("search", "augment"):
        code, out, err = finish(start([*JOBS[job], "--run-dir", job], folder))
        assert code == 0, err
        assert f"{job}/report.md" in out
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()) as said:
        patch.chdir(folder)
        run(["augment", *MODEL[1:], "--run-dir", "model"])
    assert "model/report.md" in said.getvalue()
    return {job: folder / job for job in JOBS}


def test_search_leaves_a_folder_that_explains_itself(undisturbed: dict[str, Path]) -> None:
    folder = undisturbed["search"]
    genotype = load_genotype(folder / "genotype.yaml")
    assert genotype.space == "darts+sandglass"
    assert "sandglass_3x3" in genotype.operations
    assert genotype.normal.num_nodes == 2
    provenance = genotype.provenance
    assert provenance["seed"] == 0
    assert provenance["measured"]["validation_accuracy_percent"] >= 0
    assert provenance["code"]["torch"] == str(torch.__version__)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["options"]["learning_rate"] == 0.025
    assert config["environment"]["data"]["train_images"] == 40
    assert len((folder / "metrics.csv").read_text().splitlines()) == 4
    assert sorted(p.name for p in (folder / "genotypes").iterdir()) == [f"epoch_000{i}.yaml" for i in (1, 2, 3)]
    last = load_genotype(folder / "genotypes" / "epoch_0003.yaml")
    assert last == genotype
    assert list(folder.glob("events.out.tfevents.*"))
    for picture in ("curves", "cells", "mixing_weights"):
        assert (folder / "pictures" / f"{picture}.svg").is_file()
        assert f"pictures/{picture}" in (folder / "report.md").read_text()
    assert "](search.html)" in (folder / "report.md").read_text()
    assert (folder / "search.html").is_file()


def test_augment_reports_both_errors_and_both_counts(undisturbed: dict[str, Path]) -> None:
    result = json.loads((undisturbed["augment"] / "result.json").read_text())
    wanted = {"params", "params_with_auxiliary", "macs", "epochs", "dataset", "seed", "seconds"}
    assert wanted | {"test_error_last", "test_error_best"} <= result.keys()
    assert result["best_chosen_on"] == "test"
    assert result["test_error_best"] <= result["test_error_last"] <= 100
    assert result["params_with_auxiliary"] > result["params"]
    weights = read_weights(undisturbed["augment"] / "weights.safetensors")
    assert_same(weights.tensors, dict(newest_state(undisturbed["augment"])["state"]["network"]))  # type: ignore[index]
    rows = read_metrics(undisturbed["augment"] / "metrics.csv")
    report = (undisturbed["augment"] / "report.md").read_text()
    for kind, of in (("", ""), ("ema_", " of the EMA weights (decay 0.9)")):
        errors = [round(100 * (1 - row[f"{kind}test_accuracy"]), 4) for row in rows]
        best = result[f"{kind}best_epoch"]
        assert (result[f"{kind}test_error_last"], result[f"{kind}test_error_best"]) == (errors[-1], min(errors))
        assert best == 1 + errors.index(min(errors))
        assert f"| test error{of}, last epoch | **{errors[-1]:.2f}%** |" in report
        assert f"| test error{of}, best epoch ({best}) | {min(errors):.2f}% (chosen on the test images" in report


def test_a_model_is_trained_by_the_same_engine(undisturbed: dict[str, Path]) -> None:
    folder = undisturbed["model"]
    result = json.loads((folder / "result.json").read_text())
    cost = model_cost(find_model("mobilenext_0.1_id2"), "cifar")
    assert (result["model"], result["network"]) == ("mobilenext_0.1_id2", "cifar")
    assert (result["params"], result["macs"]) == (cost.params, cost.macs)
    assert not {"genotype", "channels", "cells", "params_with_auxiliary"} & result.keys()
    report = (folder / "report.md").read_text()
    for text in (
        "# Training: mobilenext_0.1_id2",
        "| sandglass | 2 | 16 | 1 | 1 |",
        "first 1/2",
        "label_smoothing 0.1",
    ):
        assert text in report
    assert not (folder / "genotype.yaml").exists()
    options = yaml.safe_load((folder / "config.yaml").read_text())["options"]
    assert {options[name] for name in ("channels", "cells", "drop_path_prob", "auxiliary_weight")} == {None}
    rates = [row["learning_rate"] for row in newest_state(folder)["rows"]]  # type: ignore[attr-defined]
    assert rates == pytest.approx([0.1 / 3, 0.2 / 3, 0.1])


def test_a_found_genotype_is_retrained_with_a_held_out_part(
    undisturbed: dict[str, Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    genotype, run_dir = undisturbed["search"] / "genotype.yaml", tmp_path / "run"
    options = ["--genotype", str(genotype), "--validation-images", "20", "--epochs", "1", "--run-dir", str(run_dir)]
    code, out, err = in_process(capsys, "augment", *TINY, *options)
    assert code == 0, err
    assert "chosen on the validation images" in out
    result = json.loads((run_dir / "result.json").read_text())
    assert result["best_chosen_on"] == "validation"
    assert "validation_accuracy" in (run_dir / "metrics.csv").read_text().splitlines()[0]


@pytest.mark.parametrize("job", ["search", pytest.param("augment", marks=pytest.mark.slow)])
def test_killed_anywhere_and_continued_gives_the_same_bits(
    job: str,
    undisturbed: dict[str, Path],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Continued in a process of its own, or in this one, which has run other jobs before."""
    run_dir = tmp_path / "run"
    process = start([*JOBS[job], *EVERY_STEP, "--run-dir", "run"], tmp_path)
    deadline = time.monotonic() + 120
    while not list(run_dir.glob("checkpoints/epoch_0001_step_00000[2-4].pt")):  # in the midst of the second epoch
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert not (run_dir / "result.json").exists()
    if job == "search":
        code, _, err = finish(start(["search.py", "--resume", "run"], tmp_path))
    else:
        monkeypatch.chdir(tmp_path)
        code, _, err = in_process(capsys, "augment", "--resume", "run")
    assert code == 0, err
    assert_same(newest_state(undisturbed[job])["state"], newest_state(run_dir)["state"])
    assert_same(newest_state(undisturbed[job])["rows"], newest_state(run_dir)["rows"])
    for weights in run_dir.glob("*.safetensors"):
        assert read_weights(weights).checksum == read_weights(undisturbed[job] / weights.name).checksum
    genotype = run_dir / "genotype.yaml"
    assert load_genotype(undisturbed[job] / "genotype.yaml") == load_genotype(genotype)


def test_signals_and_time_budgets_save_and_a_damaged_newest_checkpoint_falls_back_to_the_one_before(
    undisturbed: dict[str, Path],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each is continued from what the one before saved, and the last run ends with the bits of the undisturbed one."""
    run_dir = tmp_path / "run"
    process = start([*SEARCH, "--run-dir", "run"], tmp_path)
    deadline = time.monotonic() + 120
    while not list(run_dir.glob("checkpoints/*.pt")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    code, out, err = finish(process)
    assert code == 128 + signal.SIGTERM, err
    monkeypatch.chdir(tmp_path)  # where the process ran: commands are printed for the current directory
    assert f"Continue with: {python()} {ROOT / 'search.py'} --resume run" in out
    for _ in range(2):
        code, out, err = in_process(capsys, "search", "--resume", "run", "--time-budget", "0.0001")
        assert code == 0, err
        assert "time budget used up" in out
        assert not (run_dir / "genotype.yaml").exists()
    _, newest = checkpoints(run_dir / "checkpoints")
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 0xFF
    newest.write_bytes(bytes(content))
    code, _, err = in_process(capsys, "search", "--resume", "run")
    assert code == 0, err
    assert f"warning: damaged checkpoint passed over: {Path('run/checkpoints', newest.name)}" in err
    assert_same(newest_state(undisturbed["search"])["state"], newest_state(run_dir)["state"])


def test_a_loss_that_is_not_finite_stops_the_run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    arguments = [*AUGMENT[1:], "--learning-rate", "1e30", "--run-dir", str(tmp_path / "run")]
    code, _, err = in_process(capsys, "augment", *arguments)
    assert code == 1
    assert "is not finite at epoch 1, step" in err
    assert "learning rate 1e+30" in err
    assert "Traceback" not in err


def test_dry_run_and_print_config_write_nothing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        code, out, _ = in_process(capsys, "search", *SEARCH[1:], "--dry-run")
        assert code == 0
        for word in (
            "weights",
            "alphas",
            "MACs",
            "peak memory",
            "whole run: 3 epochs of 5 steps",
            "would write: runs/",
        ):
            assert word in out
        code, out, _ = in_process(capsys, "augment", *MODEL[1:], "--dry-run")
        assert code == 0
        assert "model mobilenext_0.1_id2" in out
        assert "genotype" not in out
        code, out, _ = in_process(capsys, "augment", *AUGMENT[1:], "--epochs", "7", "--print-config")
        assert code == 0
        (tmp_path / "mine.yaml").write_text(out)
        code, again, _ = in_process(capsys, "augment", "--config", "mine.yaml", "--seed", "5", "--print-config")
        assert again == out.replace("\nseed: 0", "\nseed: 5")
        assert [path.name for path in tmp_path.iterdir()] == ["mine.yaml"]


def test_a_lack_of_memory_is_told_by_a_dry_run_and_outside_the_steps(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing_left(*arguments: object, **options: object) -> None:
        raise MemoryError("Unable to allocate 9 TiB")

    run_dir = tmp_path / "run"
    monkeypatch.setattr("darts_sg.engine.search.SearchJob.step", nothing_left)
    code, _, err = in_process(capsys, "search", *SEARCH[1:], "--run-dir", str(run_dir), "--dry-run")
    assert code == 1
    assert "out of memory with --batch-size 8; with recomputation it fits, and gives the same bits: " in err
    assert len(err.strip().splitlines()) == 1
    monkeypatch.setattr("darts_sg.engine.setup.load_dataset", nothing_left)
    code, _, err = in_process(capsys, "search", *SEARCH[1:], "--run-dir", str(run_dir))
    assert code == 1
    assert "out of memory outside the steps: Unable to allocate 9 TiB; free some, or take fewer" in err
    assert not run_dir.exists()


def test_options_beat_the_file_and_the_file_beats_the_recipe(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("epochs: 3\nlearning-rate: 0.5\n")
    options = ["--recipe", "pc-darts", "--config", str(path), "--epochs", "4", "--print-config"]
    _, out, _ = in_process(capsys, "search", *options)
    found = yaml.safe_load(out)
    assert (found["epochs"], found["learning_rate"], found["partial_channels"]) == (4, 0.5, 4)
    assert found["recipe"] == "pc-darts"


BAD = {
    "unknown option": (["search", "--epoch", "3"], "unknown option --epoch (did you mean '--epochs'?)"),
    "word instead of a number": (["search", "--epochs", "many"], "--epochs: expected a whole number, found 'many'"),
    "too small": (["search", "--cells", "2"], "--cells must be at least 3"),
    "rate of zero": (["search", "--learning-rate", "0"], "--learning-rate must be above 0"),
    "unknown space": (["search", "--space", "darts+sandglas"], "did you mean 'sandglass'?"),
    "nothing to choose": (["search", "--space", "none"], "no operation to choose"),
    "unknown recipe": (["search", "--recipe", "dart"], f"choices: {', '.join(recipe_names('search'))}\n"),
    "unknown data set": (["search", "--dataset", "cifar"], "cifar10"),
    "unknown hypergradient": (["search", "--hypergradient", "second"], "choices: first_order, unrolled, single_level"),
    "unknown device": (["search", "--dataset", "synthetic", "--device", "cuda:7"], "there is: cpu"),
    "device without values": (["search", "--dataset", "synthetic", "--device", "meta"], "there is: cpu"),
    "too many threads": (["search", "--threads", "100000"], "--threads must be at most 1024"),
    "seed of more than 64 bits": (["search", "--seed", "99999999999999999999"], "--seed: must be at most 92"),
    "no number of minutes": (
        ["search", "--time-budget", "nan"],
        "--time-budget: expected a number or .inf or null, found 'nan'",
    ),
    "no place for a run": (["search", *SEARCH[1:], "--run-dir", "/proc/x"], "--run-dir /proc/x cannot be made"),
    "indivisible channels": (["search", *SEARCH[1:], "--partial-channels", "3"], "choose a multiple of 3"),
    "a single image left": (
        ["augment", *AUGMENT[1:], "--train-images", "9"],
        "9 images in batches of 8 end with a single image, which BatchNorm cannot normalise",
    ),
    "too many images": (["search", *SEARCH[1:], "--train-images", "999999"], "lower --train-images"),
    "no genotype": (["augment"], "--genotype NAME_OR_PATH"),
    "genotype and model": (["augment", "--genotype", "DARTS_V2", "--model", "mobilenext_1.0"], "give one of them"),
    "unknown model": (["augment", "--model", "mobilenxt_1.0"], "did you mean 'mobilenext_1.0'?"),
    "batch without latency": (["models", "--batch-size", "2"], "those of the latency; add --latency"),
    "training step of one image": (["models", "--latency", "--batch-size", "1"], "needs two images or more"),
    "model of no width": (["models", "mobilenext_0"], "or another width: mobilenext_0.9"),
    "cells of a model": (["augment", "--model", "mobilenext_1.0", "--cells", "5"], "has no cells; leave it out"),
    "drop path of a model": (["augment", "--model", "mobilenext_1.0", "--recipe", "pc-darts"], "choose another recipe"),
    "smoothing of one": (
        ["augment", "--model", "mobilenext_1.0", "--label-smoothing", "1"],
        "--label-smoothing must be",
    ),
    "channels that are no number": (
        ["augment", "--genotype", "DARTS_V2", "--channels", "auto:wide"],
        "--channels auto:wide: expected a number, or auto:600M for the widest",
    ),
    "channels on two lines": (["augment", "--genotype", "DARTS_V2", "--channels", "a\nb"], "--channels a b: expected"),
    "channels within no bound": (
        ["augment", "--genotype", "DARTS_V2", "--dataset", "synthetic", "--channels", "auto:1k"],
        "of 2 channels has",
    ),
    "exponential to nothing": (
        ["augment", "--genotype", "DARTS_V2", "--schedule", "exponential"],
        "give --learning-rate-min",
    ),
    "average that never moves": (["augment", "--genotype", "DARTS_V2", "--ema", "1"], "--ema must be from 0 up to"),
    "unknown genotype": (["augment", "--dataset", "synthetic", "--genotype", "DARTS_V9"], "did you mean 'DARTS_V"),
    "no such genotype file": (["augment", "--genotype", "nowhere/genotype.yaml"], "does not exist"),
    "no such config": (["search", "--config", "nowhere.yaml"], "cannot read nowhere.yaml"),
    "resume of nothing": (["search", "--resume", "nowhere"], "not a run folder"),
    "resume without a folder": (["search", "--resume"], "--resume: expected one argument"),
    "drop path of one": (["augment", "--genotype", "DARTS_V2", "--drop-path-prob", "1"], "--drop-path-prob"),
    "no command": ([], "COMMAND"),
    "unknown command": (["serch"], "unknown command 'serch' (did you mean 'search'?)"),
    "unknown genotype to show": (["genotype", "show", "DART"], "choices: "),
    "no cells": (["genotype", "show", "DARTS_V2", "--cells", "0"], "above 0"),
    "two cells": (["genotype", "show", "DARTS_V2", "--cells", "2"], "at least 3"),
    "derive from what is no run": (["genotype", "derive", "."], "is not the folder of a run"),
    "bound that is no number": (["genotype", "derive", "x", "--max-params", "few"], "expected a number such as 2.45M"),
    "two forms of a comparison": (["genotype", "compare", "DARTS_V2", "--json", "--csv"], "choose one of"),
    "batch of no latency": (["genotype", "compare", "DARTS_V2", "--batch-size", "8"], "add --latency"),
    "no folder of results": (["genotype", "compare", "DARTS_V2", "--results", "nowhere"], "nowhere is no folder"),
    "picture of a comparison": (["genotype", "compare", "DARTS_V2", "-o", "x.txt"], ".svg, .png or .pdf"),
    "network of two cells": (["genotype", "draw", "DARTS_V2", "--whole", "--cells", "2"], "at least 3"),
    "picture of an unknown kind": (["genotype", "draw", "DARTS_V2", "-o", "x.gif"], ".svg, .png or .pdf"),
    "report of nothing": (["report", "nowhere"], "nowhere"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_input_gets_one_clear_line_and_exit_code_2(
    what: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments, expected = BAD[what]
    code, _, err = in_process(capsys, *arguments)
    assert code == 2
    assert expected in err
    assert len(err.strip().splitlines()) == 1, err
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_report_adds_an_animation_of_a_search(
    undisturbed: dict[str, Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for job, animated in (("search", True), ("augment", False)):
        folder = tmp_path / job
        shutil.copytree(undisturbed[job], folder)
        for options, written in ((["--no-animation"], False), ([], animated)):
            code, out, _ = in_process(capsys, "report", str(folder), *options)
            assert (code, out) == (0, f"{folder / 'report.md'}\n")
            assert (folder / "pictures" / "search.gif").is_file() == written
            assert ("](pictures/search.gif)" in (folder / "report.md").read_text()) == written
        assert (folder / "search.html").is_file() == animated
    with Image.open(tmp_path / "search" / "pictures" / "search.gif") as picture:
        assert picture.n_frames == 3
    (tmp_path / "search" / "alphas" / "epoch_0002.npz").write_bytes(b"PK")
    code, _, err = in_process(capsys, "report", str(tmp_path / "search"))
    assert code == 2
    assert "epoch_0002.npz cannot be read" in err
    assert "remove it to go without epoch 2" in err
    assert len(err.strip().splitlines()) == 1


def test_missing_data_says_where_to_put_what(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, _, err = in_process(capsys, "search", "--dataset", "folder", "--data", str(tmp_path / "pictures"))
    assert code == 2
    assert "pictures" in err
    assert len(err.strip().splitlines()) == 1


def test_a_run_folder_is_never_overwritten_and_never_changed_by_options(
    undisturbed: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = undisturbed["search"]
    code, _, err = in_process(capsys, "search", *SEARCH[1:], "--run-dir", str(folder))
    assert code == 2
    assert f"--resume {folder}" in err
    code, _, err = in_process(capsys, "search", "--resume", str(folder), "--epochs", "9")
    assert code == 2
    assert "--epochs 9 would change the result" in err
    code, _, err = in_process(capsys, "augment", "--resume", str(folder))
    assert code == 2
    assert "search" in err
    before = (folder / "genotype.yaml").read_bytes()
    code, out, _ = in_process(capsys, "search", "--resume", str(folder))
    assert code == 0
    assert "is finished" in out
    assert (folder / "genotype.yaml").read_bytes() == before


def test_genotype_show_gives_the_published_counts_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = in_process(capsys, "genotype", "show", "DARTS_V2", "--json")
    found = json.loads(out)
    assert (found["params"], found["params_with_auxiliary"], found["macs"]) == (3_349_342, 3_825_768, 528_359_040)
    assert found["normal"][0] == [["sep_conv_3x3", 0], ["sep_conv_3x3", 1]]
    fields = {"name", "space", "normal", "reduce", "normal_concat", "reduce_concat", "provenance"}
    assert fields | {"network", "channels", "cells"} <= found.keys()
    _, out, _ = in_process(capsys, "genotype", "show", "DARTS_V2", "--json", "--network", "imagenet")
    assert json.loads(out)["params"] == 4_718_752
    _, out, _ = in_process(capsys, "genotype", "show", "DARTS_V2")
    for text in ("sep_conv_3x3", "c_{k-2}", "3,349,342", "528,359,040", "ICLR 2019"):
        assert text in out


def test_models_are_listed_with_counts_and_published_accuracies_apart(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = in_process(capsys, "models")
    row = next(line.split() for line in out.splitlines() if line.startswith("mobilenext_1.4"))
    assert row[1:7] == ["sandglass", "6,126,168", "588,319,256", "76.1%", "6.1M", "590M"]
    assert "published: top-1" in out.splitlines()[0]
    _, out, _ = in_process(capsys, "models", "mobilenext_0.9", "mobilenetv2_1.0", "--network", "cifar", "--json")
    own, registered = json.loads(out)
    cost = model_cost(find_model("mobilenext_0.9"), "cifar")
    assert own == {
        "name": "mobilenext_0.9", "network": "cifar", "params": cost.params, "macs": cost.macs, "published": None,
    }  # fmt: skip
    assert registered["published"]["accuracy"] == 72.3


def test_models_are_timed_side_by_side(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "REPETITIONS", 5)
    models = ("models", "mobilenext_0.1", "mobilenetv2_0.1", "--network", "cifar")
    _, out, _ = in_process(capsys, *models, "--latency", "--batch-size", "2")
    assert re.search(r"Time of 2 images on .* threads?:", out)
    assert len(re.findall(r"mobilene\S+_0\.1 +\S+ ms \(.*5 times\) +\S+ ms \(.*5 times\)", out)) == 2
    _, out, _ = in_process(capsys, *models, "--latency", "--json")
    for row in json.loads(out):
        assert 0 < row["inference_seconds"]["median"] < row["training_seconds"]["median"]
        assert row["inference_seconds"]["batch"] == row["training_seconds"]["batch"] == 32


def test_list_spaces_draw_import(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, out, _ = in_process(capsys, "genotype", "list")
    assert "PC_DARTS_cifar" in out
    monkeypatch.setattr("darts_sg.cli.genotype.console", lambda: Console(width=80))
    _, out, _ = in_process(capsys, "genotype", "list")
    lines = out.splitlines()
    assert len(lines) == 1 + len(zoo_names())
    assert max(map(len, lines)) <= 80
    _, out, _ = in_process(capsys, "spaces")
    for text in ("sandglass_3x3_r6", "inverted_residual_3x3", "2,196", "1×1 to C/2"):
        assert text in out
    whole = ["--whole", "--dark", "--network", "imagenet", "--cells", "5", "--channels", "16"]
    for file, options in {"a.png": [], "b.png": ["DARTS_V2", "--dark"], "c.png": whole}.items():
        code, out, err = in_process(capsys, "genotype", "draw", "NASNet", *options, "-o", str(tmp_path / file))
        assert (code, out) == (0, f"{tmp_path / file}\n"), err
        assert (tmp_path / file).read_bytes().startswith(b"\x89PNG")
    text = load_genotype("GDAS_V1").to_text("classic").partition("= ")[2]
    file = tmp_path / "mine.yaml"
    code, _, _ = in_process(capsys, "genotype", "import", f"MINE = {text}", "-o", str(file))
    assert code == 0
    assert load_genotype(file).normal == load_genotype("GDAS_V1").normal
    code, _, err = in_process(capsys, "genotype", "import", text, "-o", str(file))
    assert code == 2
    assert "exists" in err


def test_derive_within_bounds_from_a_search(
    undisturbed: dict[str, Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run_dir = undisturbed["search"]
    shape = ["--channels", "8", "--cells", "5"]
    code, out, err = in_process(capsys, "genotype", "derive", str(run_dir), *shape, "-o", str(tmp_path / "free.yaml"))
    assert code == 0, err
    free = load_genotype(tmp_path / "free.yaml")
    found = load_genotype(run_dir / "genotype.yaml")
    assert (free.normal, free.reduce) == (found.normal, found.reduce)
    assert free.provenance["measured"] == found.provenance["measured"]
    _, out, _ = in_process(capsys, "genotype", "derive", str(run_dir), *shape, "--pareto", "--json")
    points = json.loads(out)
    assert points[-1]["share"] == 1
    limit = str(points[len(points) // 2]["params"])
    output = tmp_path / "bounded.yaml"
    bounds = ["--max-params", limit, "--max-skips", "4", "--epoch", "3", "--name", "SMALL", "-o", str(output)]
    code, out, err = in_process(capsys, "genotype", "derive", str(run_dir), *shape, *bounds)
    assert code == 0, err
    bounded = load_genotype(output)
    assert bounded.name == "SMALL"
    assert bounded.provenance["derived"]["max_params"] == int(limit)
    assert bounded.provenance["measured"] == {}  # of other cells than those that the search ended with
    assert bounded.provenance["seed"] == 0
    assert derived_cost(bounded, "cifar", 8, 5).params <= int(limit)
    picture = tmp_path / "frontier.svg"
    code, out, _ = in_process(capsys, "genotype", "derive", str(run_dir), *shape, "--pareto", "-o", str(picture))
    assert code == 0
    assert "<svg" in picture.read_text()
    assert "weight kept" in out


def test_compare_cost_export_validate(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # where there are no results to look through
    names = ["DARTS_V1", "DARTS_V2"]
    _, out, _ = in_process(capsys, "genotype", "compare", *names, "--json")
    assert [row["params"] for row in json.loads(out)] == [3_169_414, 3_349_342]
    shape = ["--channels", "4", "--cells", "3"]
    _, out, _ = in_process(capsys, "genotype", "compare", *names, *shape, "--csv")
    assert out.splitlines()[0].startswith("name,space,normal_operations")
    assert len(out.splitlines()) == 3
    _, out, _ = in_process(capsys, "genotype", "compare", *names, "--markdown")
    assert "| params | 3,169,414 | 3,349,342 |" in out
    picture = tmp_path / "comparison.svg"
    timed = ["--latency", "--batch-size", "2", "-o", str(picture)]
    _, out, _ = in_process(capsys, "genotype", "compare", *names, *shape, *timed)
    for text in ("edges shared with first", "latency batch", "threads", str(picture)):
        assert text in out
    assert "<svg" in picture.read_text()
    _, out, _ = in_process(capsys, "genotype", "cost", "DARTS_V2", *shape, "--batch-size", "2", "--json")
    content = json.loads(out)
    assert sum(part["params"] for part in content["by_operation"]) == content["params"]
    assert [time["batch"] for time in content["latency_seconds"]] == [1, 2]
    _, out, _ = in_process(capsys, "genotype", "cost", "DARTS_V2", *shape, "--batch-size", "1")
    assert "latency, batch 1" in out
    text = tmp_path / "v2.txt"
    in_process(capsys, "genotype", "export", "DARTS_V2", "-o", str(text))
    again, original = load_genotype(text), load_genotype("DARTS_V2")
    assert (again.name, again.normal, again.reduce) == ("DARTS_V2", original.normal, original.reduce)
    code, out, _ = in_process(capsys, "genotype", "validate", str(text))
    assert (code, out.strip()) == (0, f"{text}: DARTS_V2, space {again.space}")
    bad = tmp_path / "bad.yaml"
    bad.write_text(load_genotype("DARTS_V2").to_yaml().replace("[sep_conv_3x3, 0]", "[sep_conv_4x4, 0]", 1))
    code, _, err = in_process(capsys, "genotype", "validate", str(text), str(bad))
    assert code == 2
    assert f"{bad}: line 6: normal[0][0][0]: unknown operation 'sep_conv_4x4'" in err


def test_a_random_genotype_is_that_of_its_seed(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    draw = ["genotype", "random", "--space", "darts+sandglass", "--seed"]
    texts = [in_process(capsys, *draw, seed)[1] for seed in ("3", "3", "4")]
    assert texts[0] == texts[1] != texts[2]
    file = tmp_path / "random.yaml"
    assert in_process(capsys, *draw, "3", "-o", str(file))[0] == 0
    genotype = load_genotype(file)
    assert (genotype.name, genotype.provenance["kind"]) == ("random_darts+sandglass_3", "random")
    assert in_process(capsys, *draw, "-1")[0] == 2


def test_compare_finds_what_was_measured_in_run_folders(
    undisturbed: dict[str, Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    result = json.loads((undisturbed["augment"] / "result.json").read_text())
    same = tmp_path / "mine.yaml"
    renamed(load_genotype("DARTS_V2"), "mine").save(same)
    compare = ["genotype", "compare", str(same), "DARTS_V1", "--results", str(undisturbed["augment"].parent)]
    compare += ["--channels", "4", "--cells", "3"]
    code, out, err = in_process(capsys, *compare, "--json")
    assert code == 0, err
    mine, other = json.loads(out)
    (measured,) = mine["measured_test_error"]
    assert (measured["errors"], measured["seeds"]) == ([result["test_error_last"]], [0])
    assert "C=4, 3 cells, 3 epochs of 40 images" in measured["scale"]
    assert (mine["published_cifar10_error"], other["measured_test_error"]) == (2.76, [])
    for form in ("--markdown", "--csv"):
        _, out, _ = in_process(capsys, *compare, form)
        assert f"{result['test_error_last']:.2f} on synthetic" in out


def test_help_explains_every_option_with_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    for job in ("search", "augment"):
        code, out, _ = in_process(capsys, job, "--help-all")
        assert code == 0
        text = " ".join(out.split())
        assert "default: 0.025" in text
        assert "--recipe" in text
        assert "Choices: " in text


def test_search_and_retraining_on_class_folders_of_ones_own(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    generator = torch.Generator().manual_seed(0)
    for name in ("cats", "dogs", "owls"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for i in range(20):
            pixels = torch.randint(0, 256, (30, 26, 3), dtype=torch.uint8, generator=generator)
            Image.fromarray(pixels.numpy()).save(tmp_path / "pictures" / name / f"{i}.png")
    data = ["--dataset=folder", "--data=pictures", "--image-size=22", "--data-note=noise"]
    size = ["--channels=4", "--cells=3", "--batch-size=16", "--epochs=1", "--threads=1"]
    code, _, err = in_process(capsys, "search", *data, *size, "--space=sandglass+skip_connect", "--run-dir=found")
    assert code == 0, err
    code, _, err = in_process(capsys, "augment", *data, *size, "--genotype=found/genotype.yaml", "--run-dir=trained")
    assert code == 0, err
    result = json.loads((tmp_path / "trained" / "result.json").read_text())
    assert (result["dataset"], result["data_note"]) == ("folder", "noise")
    assert result["train_images"] + result["test_images"] == 60
    assert "noise" in (tmp_path / "trained" / "report.md").read_text()
    shutil.rmtree(tmp_path / "pictures" / "owls")
    shutil.rmtree(tmp_path / "trained")
    (tmp_path / "found" / "genotype.yaml").unlink()
    code, _, err = in_process(capsys, "search", "--resume", "found")
    assert code == 2
    assert "are not those that this run was started on" in err
