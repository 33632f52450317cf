"""Trained weights as a user has them: train, repeat the accuracy from the file alone."""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from darts_sg.__main__ import run
from darts_sg.data.synthetic import FORMS, load_synthetic
from darts_sg.engine.weights import read_weights, weights_bytes
from tests.test_command_line import in_process

Capture = pytest.CaptureFixture[str]
SHORT = ["--dataset=folder", "--data=figures", "--batch-size=32", "--epochs=3", "--threads=1", "--learning-rate=0.1"]
JOBS = {
    "genotype": [*SHORT, "--genotype=GDAS_V1", "--channels=4", "--cells=3", "--validation-images=60", "--data-note=16"],
    "model": [*SHORT, "--model=mobilenetv2_0.1"],
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
    save_figures(folder / "figures", list(FORMS), 30, 10, 16)
    save_figures(folder / "three", ["ring", "beam", "dots"], 20, 20, 16)
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
    for which, name in (("last", "weights.safetensors"), ("best", "weights_best.safetensors")):
        assert f"]({name})" in report
        file = tmp_path / "alone.safetensors"
        shutil.copy(Path(job, name), file)
        code, out, err = in_process(capsys, "augment", "--evaluate", str(file), "--data=figures", "--threads=1")
        assert code == 0, err
        error, metadata = result[f"test_error_{which}"], read_weights(file).metadata
        assert (metadata.epoch, metadata.test_error) == (3 if which == "last" else result["best_epoch"], error)
        note = "16; " if job == "genotype" else ""
        data = f"folder ({note}test part: test; images brought to 32×32 pixels)"
        assert out.splitlines()[-2] == f"test error on {data}, 100 images: {error:.2f}%"
        assert out.splitlines()[-1] == f"equals the recorded {error:.2f}%"


def test_an_error_that_is_not_the_recorded_one_is_told(capsys: Capture, tmp_path: Path) -> None:
    weights = read_weights(Path("genotype/weights.safetensors"))
    m = weights.metadata
    off = m.__class__(**{**m.__dict__, "mean": (0.9, 0.9, 0.9)})
    file = tmp_path / "off.safetensors"
    file.write_bytes(weights_bytes(weights.tensors, off))
    _, out, _ = in_process(capsys, "augment", "--evaluate", str(file), "--data=figures")
    assert f"differs from the recorded {m.test_error:.2f}% by " in out  # the normalisation is that of the file
    _, out, _ = in_process(capsys, "augment", "--evaluate=genotype/weights.safetensors", "--dataset=synthetic")
    assert "test error on synthetic (rendered from seed 0), 1,000 images" in out
    assert "not compared with the recorded" in out
    assert "that is of other images, folder (16; test part: test" in out
    assert "the classes have other names" in out  # in alphabetical order in the folder


BAD = {
    "no file": (["--evaluate=nowhere"], "nowhere cannot be read: it does not exist"),
    "a folder": (["--evaluate=genotype"], "it is a folder"),
    "another file": (["--evaluate=genotype/report.md"], "not a weights file"),
    "no data": (["--evaluate=genotype/weights.safetensors", "--data=nowhere"], "nowhere"),
    "other classes": (
        ["--evaluate=genotype/weights.safetensors", "--data=three"],
        "tells 10 classes apart (folder), folder has 3: choose other data",
    ),
    "training": (["--evaluate=genotype/weights.safetensors", "--epochs=9"], "--epochs is for training"),
    "resuming": (["--evaluate=genotype/weights.safetensors", "--resume=genotype"], "--resume is for training"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_input_gets_one_clear_line_and_exit_code_2(what: str, capsys: Capture) -> None:
    before = sorted(Path().iterdir())
    arguments, expected = BAD[what]
    code, _, err = in_process(capsys, "augment", *arguments)
    assert code == 2
    assert expected in err
    assert len(err.strip().splitlines()) == 1, err
    assert sorted(Path().iterdir()) == before
