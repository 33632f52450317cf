"""INT8 models: close to float32, calibrated on training images only, and honest about what they lose."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from darts_sg.analysis.compare import Latency
from darts_sg.cli.main import run
from darts_sg.data import Dataset, DataSpec, ImageSet
from darts_sg.engine import quantise as module
from darts_sg.engine.export import EXPORT_FORMATS
from darts_sg.engine.quantise import Precision, Quantised, calibration_part, error_of, quantise
from darts_sg.engine.weights import Weights, read_weights
from darts_sg.errors import RunError, UsageError
from darts_sg.genotype import Cell, Edge, Genotype
from tests.engine.test_weights import PLAIN, Metadata, written

Capture = pytest.CaptureFixture[str]


CLASSES = 4


def noise(classes: int, count: int, seed: int) -> ImageSet:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (count, 8, 8, 3), generator=generator, dtype=torch.uint8)
    return ImageSet(images, torch.arange(count) % classes)


@pytest.fixture(scope="module")
def data() -> Dataset:
    spec = DataSpec("folder", CLASSES, 8, 3, (0.5,) * 3, (0.3,) * 3, tuple("abcd"))
    return Dataset(spec, noise(CLASSES, 200, 0), noise(CLASSES, 120, 1))


@pytest.fixture(scope="module")
def weights(data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Weights:
    """A small network that calls itself one of these data."""
    cell = Cell(((Edge("sep_conv_3x3", 0), Edge("skip_connect", 1)),), (2,))
    genotype = Genotype("small", "darts", ("sep_conv_3x3", "skip_connect"), cell, cell)
    spec = data.spec
    facts = PLAIN | {
        "dataset": spec.name, "num_classes": CLASSES, "class_names": spec.class_names, "image_size": 8,
        "mean": spec.mean, "std": spec.std, "data_fingerprint": data.fingerprint(),
    }  # fmt: skip
    path = tmp_path_factory.mktemp("int8") / "weights.safetensors"
    m = Metadata(genotype=genotype.to_yaml(), network="cifar", channels=4, cells=3, **facts)
    written(path, m, num_classes=CLASSES)
    return read_weights(path)


@pytest.fixture(autouse=True)
def loaded(data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("darts_sg.engine.diagnosis.load_dataset", lambda *arguments, **options: data)


def test_the_int8_model_is_close_and_says_so(weights: Weights, capsys: Capture, tmp_path: Path) -> None:
    for package in EXPORT_FORMATS["onnx"].needs:
        pytest.importorskip(package, reason="the optional dependency group export is not installed")
    import onnx

    output = tmp_path / "small.onnx"
    run(["export", str(weights.path), "--int8", "--calibration-images=50", "-o", str(output)])
    out = capsys.readouterr().out
    assert "calibrated on 50 training images" in out
    proto = onnx.load(output)
    facts = {entry.key: entry.value for entry in proto.metadata_props}
    assert facts["genotype"] == weights.metadata.genotype
    recorded = json.loads(facts["quantisation"])
    assert (recorded["calibration_images"], recorded["test_images"]) == (50, 120)
    for side in ("float32", "int8"):
        assert f"{recorded[side]['error']:.2f}%" in out
    # every convolution has 8-bit weights, each output channel with a scale of its own
    shapes = {tensor.name: (tensor.data_type, tuple(tensor.dims)) for tensor in proto.graph.initializer}
    made = {name: node for node in proto.graph.node for name in node.output}
    convolutions = [node for node in proto.graph.node if node.op_type == "Conv"]
    assert len(convolutions) > 5
    for node in convolutions:
        values, scale, _ = made[node.input[1]].input
        assert shapes[values][0] == onnx.TensorProto.INT8
        assert shapes[scale][1] == shapes[values][1][:1]
    images = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        exact = weights.build()(images)[0]
    found = EXPORT_FORMATS["onnx"].load(output.read_bytes())(images)
    assert 0 < (found - exact).norm() / exact.norm() < 0.2


def test_calibration_images_are_of_the_training_part_and_balanced(data: Dataset, weights: Weights) -> None:
    part = calibration_part(data, weights, 40)
    assert isinstance(part, ImageSet)
    assert part.labels.bincount().tolist() == [10] * CLASSES
    known = {image.numpy().tobytes() for image in data.train.images}
    assert all(image.numpy().tobytes() in known for image in part.images)
    with pytest.raises(UsageError, match=r"--calibration-images 999999: the training part .*; lower it"):
        calibration_part(data, weights, 999999)


def test_the_error_is_the_share_of_wrong_answers(data: Dataset, weights: Weights) -> None:
    answers = torch.randn(120, CLASSES, generator=torch.Generator().manual_seed(0))
    batches = iter(answers.split(module.BATCH))
    found = error_of(lambda images: next(batches), weights, data.test)
    assert found == pytest.approx(100 * np.mean(answers.argmax(dim=1).numpy() != data.test.labels.numpy()))


@pytest.mark.parametrize(
    ("error", "seconds", "warned"),
    [(10.9, 0.5, []), (11.1, 0.5, ["1.10 points"]), (10.0, 2.5, ["2.50 times"]), (20.0, 2.0, ["10.00", "2.00"])],
)
def test_more_errors_and_less_speed_are_said(error: float, seconds: float, warned: list[str]) -> None:
    def side(title: str, error: float, seconds: float) -> Precision:
        return Precision(title, 1, error, Latency(1, seconds, seconds, seconds, 1, 0.0))

    found = Quantised(b"", side("float32", 10.0, 1.0), side("INT8", error, seconds), 8, 8, "x", "m").warnings()
    assert len(found) == len(warned)
    assert all(text in line for text, line in zip(warned, found, strict=True))


def test_a_failure_of_the_quantiser_is_one_line(weights: Weights, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*arguments: object) -> bytes:
        raise ValueError("no such type\nand more")

    monkeypatch.setattr(module, "_quantised", fails)
    monkeypatch.setattr(module, "export", lambda *arguments: (b"", []))
    with pytest.raises(RunError, match=r"cannot quantise .*: no such type$"):
        quantise(weights, Path(), 8)


BAD = {
    "torch": (["--int8", "--format=torch"], "--int8 is for --format onnx"),
    "neither": ([], "--format (onnx or torch), or --int8"),
    "count": (["--format=onnx", "--calibration-images=8"], "--calibration-images is for --int8"),
    "data": (["--format=onnx", "--data=x"], "--data is for --int8"),
    "zero": (["--int8", "--calibration-images=0"], "expected a whole number above 0"),
}


@pytest.mark.parametrize("case", BAD)
def test_options_that_do_not_go_together_are_refused(case: str) -> None:
    arguments, message = BAD[case]
    with pytest.raises(UsageError) as error:
        run(["export", "w.safetensors", *arguments])
    assert message in str(error.value)


def test_detectors_and_other_data_are_refused(weights: Weights) -> None:
    detector = replace(weights, metadata=replace(weights.metadata, task="detection"))
    with pytest.raises(UsageError, match="--int8 is for classifiers"):
        quantise(detector, Path(), 8)
    other = replace(weights, metadata=replace(weights.metadata, data_fingerprint="0" * 16))
    with pytest.raises(UsageError, match="are not those that"):
        quantise(other, Path(), 8)
