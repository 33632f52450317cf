"""Trained weights as a user has them: train, repeat the accuracy from the file alone."""

import itertools
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from darts_sg.cli.main import run
from darts_sg.data.synthetic import FORMS, load_synthetic
from darts_sg.engine.checkpoint import checkpoints
from darts_sg.engine.diagnosis import Comparison, Diagnosis, labels
from darts_sg.engine.export import EXPORT_FORMATS
from darts_sg.engine.weights import Weights, read_weights, weights_bytes
from tests.test_command_line import in_process

pytestmark = pytest.mark.xdist_group("weights")  # one worker makes what all share

Capture = pytest.CaptureFixture[str]
SHORT = ["--dataset=folder", "--data=figures", "--batch-size=20", "--image-size=16", "--threads=1", "--epochs=2"]
JOBS = {
    "genotype": [*SHORT, "--genotype=GDAS_V1", "--channels=4", "--cells=3", "--validation-images=20", "--data-note=16"],
    "model": [*SHORT, "--model=mobilenetv2_0.1", "--keep-every=1", "--ema=0.5", "--checkpoint-minutes=1e-9"],
}


def save_figures(folder: Path, classes: list[str], num_train: int, num_test: int, size: int) -> None:
    """Class folders of rendered figures."""
    data = load_synthetic(folder, image_size=None, seed=0, download=False)
    for part, images, count in (("train", data.train, num_train), ("test", data.test, num_test)):
        for name in classes:
            (folder / part / name).mkdir(parents=True)
            indices = (images.labels == list(FORMS).index(name)).nonzero().flatten()[:count]
            for i, pixels in enumerate(images.images[indices]):
                Image.fromarray(pixels.numpy()).resize((size, size)).save(folder / part / name / f"{i:03d}.png")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with small figures of all classes, with figures of three, and with a finished run of each of JOBS."""
    folder = tmp_path_factory.mktemp("home")
    save_figures(folder / "figures", list(FORMS), 10, 10, 16)
    save_figures(folder / "three", ["ring", "beam", "dots"], 10, 10, 16)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name, options in JOBS.items():
            run(["augment", *options, "--run-dir", name])
    return folder


@pytest.fixture(autouse=True)
def at_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)


@pytest.mark.parametrize("job", JOBS)
def test_the_file_alone_repeats_the_error(job: str, capsys: Capture, tmp_path: Path) -> None:
    result = json.loads(Path(job, "result.json").read_text())
    report = Path(job, "report.md").read_text()
    kinds = [("", None)] if job == "genotype" else [("", None), ("ema_", 0.5)]
    for (kind, ema), which in itertools.product(kinds, ("last", "best")):
        name = f"weights_{kind}{which}.safetensors".replace("_last", "")
        assert f"]({name})" in report
        file = tmp_path / "alone.safetensors"
        shutil.copy(Path(job, name), file)
        code, out, err = in_process(capsys, "augment", "--evaluate", str(file), "--data=figures", "--threads=1")
        assert code == 0, err
        error, metadata = result[f"{kind}test_error_{which}"], read_weights(file).metadata
        epoch = 2 if which == "last" else result[f"{kind}best_epoch"]
        assert (metadata.epoch, metadata.figures["test_error"], metadata.ema) == (epoch, error, ema)
        assert (", EMA of the weights (decay 0.5) after epoch" in out) == bool(kind)
        note = "16; " if job == "genotype" else ""
        data = f"folder ({note}test part: test; images brought to 16×16 pixels)"
        assert out.splitlines()[-2] == f"test error on {data}, 100 images: {error:.2f}%"
        assert out.splitlines()[-1] == f"equals the recorded {error:.2f}%"
    kept = [path.name for path in sorted(Path(job).glob("weights*_epoch_*"))]
    wanted = [f"weights_{kind}epoch_000{i}.safetensors" for kind in ("ema_", "") for i in (1, 2)]
    assert kept == (wanted if job == "model" else [])
    assert all(f"]({name})" in report for name in kept)
    assert [read_weights(Path(job, name)).metadata.epoch for name in kept] == [1, 2, 1, 2][: len(kept)]


def test_an_error_that_is_not_the_recorded_one_is_told(capsys: Capture, tmp_path: Path) -> None:
    weights = read_weights(Path("genotype/weights.safetensors"))
    network, generator = weights.build().train(), torch.Generator().manual_seed(0)
    for _ in range(50):
        network(2 * torch.randn(32, 3, 16, 16, generator=generator))  # so that answers depend on the image
    found = []
    for mean in (weights.metadata.mean, (5.0, -5.0, 5.0), (-5.0, 5.0, -5.0), (0.9, 0.1, 0.9)):
        file = tmp_path / "other.safetensors"
        metadata = replace(weights.metadata, mean=mean, figures={"test_error": 12.34})
        file.write_bytes(weights_bytes(network.state_dict(), metadata))
        _, out, _ = in_process(capsys, "augment", "--evaluate", str(file), "--data=figures")
        assert "differs from the recorded 12.34% by +" in out
        found.append(out)
    assert len(set(found)) > 1  # the normalisation is that of the file
    _, out, _ = in_process(capsys, "augment", "--evaluate=genotype/weights.safetensors", "--dataset=synthetic")
    assert "test error on synthetic (rendered from seed 0), 1,000 images" in out
    assert "not compared with the recorded" in out
    assert "that is of other images, folder (16; test part: test" in out
    assert "the classes have other names" in out  # in alphabetical order in the folder


NEW = {"genotype": {"head.classifier", "auxiliary_head.head.classifier"}, "model": {"classifier.1"}}


@pytest.mark.parametrize("job", JOBS)
def test_another_data_set_starts_from_the_weights(job: str, capsys: Capture, tmp_path: Path) -> None:
    file = Path(job, "weights.safetensors")
    still = ["--data=three", "--epochs=1", "--learning-rate=1e-30", "--threads=1"]
    run_dir = tmp_path / "run"
    arguments = [f"--finetune={file}", "--dataset=folder", *still, f"--run-dir={run_dir}"]
    code, out, err = in_process(capsys, "augment", *arguments)
    assert code == 0, err
    classifiers = "classifier and auxiliary classifier" if job == "genotype" else "classifier"
    assert f"starts from {file}, {job} " in out
    assert f": {classifiers} new, for 3 classes instead of 10" in out
    before, after = read_weights(file), read_weights(run_dir / "weights.safetensors")
    for name, tensor in before.tensors.items():
        if name.rpartition(".")[0] in NEW[job]:
            assert len(after.tensors[name]) == 3
        elif "running" not in name and "num_batches" not in name:
            assert torch.equal(after.tensors[name], tensor), name
    origin = after.metadata.finetuned_from
    assert origin is not None
    assert (origin["checksum"], origin["num_classes"], origin["test_error"]) == (
        before.checksum, 10, before.recorded,
    )  # fmt: skip
    config = yaml.safe_load((run_dir / "config.yaml").read_text())
    assert config["environment"]["finetuned_from"] == origin
    assert config["options"]["finetune"] == str(file)
    assert json.loads((run_dir / "result.json").read_text())["finetuned_from"] == origin
    assert before.checksum in (run_dir / "report.md").read_text()
    code, out, _ = in_process(capsys, "augment", f"--evaluate={run_dir}/weights.safetensors", "--data=three")
    assert "equals the recorded" in out


def test_a_start_from_weights_is_resumed_to_the_same_bits(capsys: Capture, tmp_path: Path) -> None:
    file, run_dir = tmp_path / "start.safetensors", tmp_path / "run"
    shutil.copy("model/weights.safetensors", file)
    arguments = [f"--finetune={file}", "--epochs=2", *SHORT[:3], "--threads=1"]
    in_process(capsys, "augment", *arguments, f"--run-dir={tmp_path / 'straight'}")
    in_process(capsys, "augment", *arguments, f"--run-dir={run_dir}", "--time-budget=1e-9")
    shutil.rmtree(run_dir / "checkpoints")  # as if killed before the first
    shutil.copy("model/weights_best.safetensors", file)
    if read_weights(file).checksum != read_weights(Path("model/weights.safetensors")).checksum:
        _, _, err = in_process(capsys, "augment", "--resume", str(run_dir))
        assert "is not the file that" in err
    shutil.copy("model/weights.safetensors", file)
    in_process(capsys, "augment", "--resume", str(run_dir), "--time-budget=1e-9")
    file.unlink()
    code, _, err = in_process(capsys, "augment", "--resume", str(run_dir))
    assert code == 0, err
    for name in ("weights.safetensors", "weights_best.safetensors"):
        resumed, straight = (read_weights(folder / name) for folder in (run_dir, tmp_path / "straight"))
        assert resumed.checksum == straight.checksum


def test_a_run_goes_back_to_a_checkpoint_that_was_kept_and_comes_to_the_same_bits(
    capsys: Capture, tmp_path: Path
) -> None:
    shutil.copytree("model", tmp_path / "model")
    kept, *newer = checkpoints(tmp_path / "model" / "checkpoints")
    assert kept.name == "epoch_0001_step_000000.pt"
    assert len(newer) == 2
    for path in (*newer, tmp_path / "model" / "result.json"):
        path.unlink()
    code, _, err = in_process(capsys, "augment", "--resume", str(tmp_path / "model"))
    assert code == 0, err
    for name in ("weights.safetensors", "weights_ema_best.safetensors"):
        again, before = (read_weights(folder / name) for folder in (tmp_path / "model", Path("model")))
        assert again.checksum == before.checksum


@pytest.mark.parametrize(("job", "format"), [("genotype", "onnx"), ("model", "torch")])
def test_export_writes_a_model_that_others_can_run(job: str, format: str, capsys: Capture, tmp_path: Path) -> None:
    kind = EXPORT_FORMATS[format]
    for package in kind.needs:
        pytest.importorskip(package, reason="the optional dependency group export is not installed")
    weights, output = read_weights(Path(job, "weights.safetensors")), tmp_path / f"model{kind.suffix}"
    arguments = ["export", str(weights.path), "--format", format, "-o", str(output)]
    code, out, err = in_process(capsys, *arguments)
    assert code == 0, err
    assert weights.metadata.preprocessing == weights.task.preprocessing(weights.spec)
    for text in (
        weights.title,
        "(N, 3, 16, 16), any N",
        weights.metadata.preprocessing,
        weights.spec.class_names[1],
        kind.described,
        "largest difference",
        " ms (",
    ):
        assert text in out
    images = torch.randn(4, 3, 16, 16)
    with torch.no_grad():
        found, expected = kind.load(output.read_bytes())(images), weights.build()(images)[0]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    if format == "onnx":
        import onnx

        model = onnx.load(output)
        metadata = {p.key: p.value for p in model.metadata_props}
        assert metadata["genotype"] == weights.metadata.genotype
        assert metadata["preprocessing"] == weights.metadata.preprocessing
        assert json.loads(metadata["class_names"]) == list(weights.spec.class_names)
        assert [value.name for value in (*model.graph.input, *model.graph.output)] == ["images", "logits"]
        assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param
        assert [version.version for version in model.opset_import] == [18]
    code, _, err = in_process(capsys, *arguments)
    assert (code, err.strip()) == (2, f"darts-sg: {output} exists; choose another --output")


DIAGNOSE = ["diagnose", "--data=figures", "--batches=4", "--batch-size=20"]


def test_networks_are_diagnosed_on_the_same_images(capsys: Capture, tmp_path: Path) -> None:
    files = [f"{name}.safetensors" for name in ("genotype/weights", "model/weights_epoch_0001", "model/weights")]
    picture = tmp_path / "networks.svg"
    code, out, err = in_process(capsys, *DIAGNOSE, *files, "--json", "-o", str(picture))
    assert (code, err.strip()) == (0, str(picture))
    assert picture.read_text().count("<svg") == 1
    found = json.loads(out)
    for text in ("4 minibatches of 20", "80 images", "80 test images", "folder (16; test part: test", "seed 0"):
        assert text in found["setting"]
    cells, early, late = found["networks"]
    assert cells["label"] == "GDAS_V1, C=4, 3 cells, seed 0, epoch 2 of 2"
    assert [row["label"] for row in (early, late)] == [
        f"mobilenetv2_0.1, seed 0, epoch {epoch} of 2" for epoch in (1, 2)
    ]
    for row, file in zip(found["networks"], files, strict=True):
        weights = read_weights(Path(file))
        assert row["recorded_test_error"] == weights.recorded
        assert row["params"] == sum(p.numel() for p in weights.build().parameters())
        assert -1 <= row["cosine_minimum"] <= row["cosine_mean"] <= 1
        assert row["confusion_bound"] >= 0
        assert (row["cosine_minimum"] < 0) == (row["confusion_bound"] > 0) == (row["cosine_negative"] > 0)
        assert [site["size"] * site["patch"] for site in row["features"]] == [16] * len(row["features"])
        assert row["r2_mean"] == pytest.approx(sum(site["r2"] for site in row["features"]) / len(row["features"]))
    assert early["cosine_mean"] != late["cosine_mean"]
    assert early["r2_mean"] != late["r2_mean"]

    code, out, _ = in_process(capsys, *DIAGNOSE, files[2], files[2], "--markdown")
    _, _, header, _, *rows = out.strip().splitlines()
    assert header.startswith("| network | parameters | test error, recorded |")
    assert rows[0] == rows[1]  # the same images, and nothing of the first network in the second
    assert f"| {late['label']} ({files[2]}) | {late['params']:,} |" in rows[0]
    assert f"| {late['cosine_minimum']:+.3f} | {late['cosine_mean']:+.3f} |" in rows[0]

    code, out, _ = in_process(capsys, *DIAGNOSE, files[2], "--seed=1", "--json")
    assert json.loads(out)["networks"][0]["cosine_mean"] != late["cosine_mean"]


def test_what_was_diagnosed_is_shown_when_the_rest_is_not(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    measure = Comparison._measure

    def interrupted(self: Comparison, label: str, weights: Weights) -> Diagnosis:
        if "mobilenet" in label:
            raise KeyboardInterrupt
        return measure(self, label, weights)

    monkeypatch.setattr(Comparison, "_measure", interrupted)
    files = ["genotype/weights.safetensors", "model/weights.safetensors"]
    code, out, err = in_process(capsys, *DIAGNOSE, *files, "--markdown")
    assert code == 130
    assert err.startswith("ended early: 1 of 2 networks were measured\n")
    assert [line.split(",")[0] for line in out.splitlines() if "seed 0, epoch" in line] == ["| GDAS_V1"]


def test_networks_of_different_data_are_not_compared(capsys: Capture, tmp_path: Path) -> None:
    weights, other = read_weights(Path("model/weights.safetensors")), tmp_path / "other.safetensors"
    metadata = replace(weights.metadata, data_fingerprint="0" * 16)
    other.write_bytes(weights_bytes(weights.tensors, metadata))
    code, _, err = in_process(capsys, *DIAGNOSE, str(weights.path), str(other))
    assert code == 2
    assert f"{other} was trained on other images" in err
    assert len(err.strip().splitlines()) == 1
    averaged = replace(weights, metadata=replace(weights.metadata, ema=0.99))
    first, *both = labels([averaged, weights, weights])
    assert first == "mobilenetv2_0.1, seed 0, epoch 2 of 2, EMA"
    assert both == [f"mobilenetv2_0.1, seed 0, epoch 2 of 2 ({weights.path})"] * 2
    diverged = {name: t.float() * float("nan") if "classifier" in name else t for name, t in weights.tensors.items()}
    other.write_bytes(weights_bytes(diverged, weights.metadata))
    code, _, err = in_process(capsys, *DIAGNOSE, str(other))
    assert code == 2
    assert f"{other}: its gradients are not finite" in err


BAD = {
    "diagnosis of no file": ([*DIAGNOSE, "nowhere"], "nowhere cannot be read: it does not exist"),
    "diagnosis of another file": ([*DIAGNOSE, "model/weights.safetensors", "genotype/report.md"], "not a weights file"),
    "diagnosis without data": ([*DIAGNOSE, "model/weights.safetensors", "--data=nowhere"], "nowhere"),
    "diagnosis on other data": (
        [*DIAGNOSE, "model/weights.safetensors", "--data=three"],
        "the images in three are not those that model/weights.safetensors was trained on",
    ),
    "diagnosis on too many images": (
        [*DIAGNOSE, "model/weights.safetensors", "--batches=6"],
        "6 batches of 20 are 120 images, and the training set of folder has 100; lower --batches",
    ),
    "diagnosis on one batch": ([*DIAGNOSE, "model/weights.safetensors", "--batches=1"], "expected 2 or more"),
    "diagnosis as two texts": (
        [*DIAGNOSE, "model/weights.safetensors", "--json", "--markdown"],
        "choose one of --json and --markdown",
    ),
    "diagnosis to another picture": (
        [*DIAGNOSE, "model/weights.safetensors", "-o", "x.gif"],
        "expected a name that ends in .svg",
    ),
    "keeping none": (["--genotype=DARTS_V2", "--keep-every=0"], "--keep-every must be at least 1"),
    "no file": (["--evaluate=nowhere"], "nowhere cannot be read: it does not exist"),
    "a folder of images": (["--evaluate=three"], "three is a folder without weights.safetensors"),
    "export of a folder": (["export", "three", "--format=torch"], "expected the folder of a finished augment run"),
    "another file": (["--evaluate=genotype/report.md"], "not a weights file"),
    "no data": (["--evaluate=genotype/weights.safetensors", "--data=nowhere"], "nowhere"),
    "other classes": (
        ["--evaluate=genotype/weights.safetensors", "--data=three"],
        "tells 10 classes apart (folder), folder has 3: choose other data",
    ),
    "training": (["--evaluate=genotype/weights.safetensors", "--epochs=9"], "--epochs is for training"),
    "two files": (
        ["--evaluate=genotype/weights.safetensors", "--finetune=model/weights.safetensors"],
        "--finetune is for training",
    ),
    "export of another file": (["export", "genotype/report.md", "--format=torch"], "not a weights file"),
    "export to another name": (
        ["export", "genotype/weights.safetensors", "--format=torch", "-o", "x.onnx"],
        "expected a name that ends in .pt2",
    ),
    "start from no file": (["--finetune=nowhere"], "nowhere cannot be read"),
    "another network": (
        ["--finetune=genotype/weights.safetensors", "--cells=5"],
        "--cells 5 is not that of genotype/weights.safetensors",
    ),
    "a model too": (["--finetune=genotype/weights.safetensors", "--model=mobilenext_1.0"], "--model mobilenext_1.0 is"),
    "resuming": (["--evaluate=genotype/weights.safetensors", "--resume=genotype"], "--resume is for training"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_input_gets_one_clear_line_and_exit_code_2(what: str, capsys: Capture) -> None:
    before = sorted(Path().iterdir())
    arguments, expected = BAD[what]
    command = [] if arguments[0] in ("export", "diagnose") else ["augment"]
    code, _, err = in_process(capsys, *command, *arguments)
    assert code == 2
    assert expected in err
    assert len(err.strip().splitlines()) == 1, err
    assert sorted(Path().iterdir()) == before
