"""Exported models compute what the network computes, for every operation; an export that does not is refused."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from darts_sg.engine import export as module
from darts_sg.engine.export import (
    EXPORT_FORMATS,
    TOLERANCE,
    ExportFormat,
    RunModel,
    export,
    onnx_bytes,
    rendered_images,
)
from darts_sg.engine.weights import Weights, read_weights
from darts_sg.errors import RunError, UsageError
from darts_sg.genotype import Cell, Edge, Genotype
from darts_sg.networks.derived import DerivedNetwork
from darts_sg.networks.ssdlite import DetectorOutputs, prior_boxes
from darts_sg.ops import OPERATIONS
from darts_sg.tasks import Detection
from tests.engine.test_weights import MODEL, PLAIN, SPEC, Metadata, written

NAMES = tuple(name for name in OPERATIONS if name != "none" and not OPERATIONS[name].is_random)


def every_operation() -> Genotype:
    """Cells of a node with an edge of every operation."""
    cell = Cell((tuple(Edge(name, 0) for name in NAMES),), (2,))
    return Genotype("every", "+".join(NAMES), NAMES, cell, cell)


def saved(metadata: Metadata, path: Path) -> Weights:
    written(path, metadata)
    return read_weights(path)


@pytest.fixture(scope="module")
def every(tmp_path_factory: pytest.TempPathFactory) -> Weights:
    genotype = every_operation().to_yaml()
    metadata = Metadata(genotype=genotype, network="cifar", channels=12, cells=3, **PLAIN)
    return saved(metadata, tmp_path_factory.mktemp("every") / "w.safetensors")


@pytest.mark.slow
def test_every_operation_is_exported(every: Weights) -> None:
    for package in EXPORT_FORMATS["onnx"].needs:  # which starts from a torch.export
        pytest.importorskip(package, reason="the optional dependency group export is not installed")
    begun = time.perf_counter()
    content, (original, exported) = export(every, "onnx")
    assert exported.size == len(content)
    assert original.difference == 0 <= exported.difference <= TOLERANCE
    assert 0 < exported.latency.smallest <= exported.latency.median < time.perf_counter() - begun
    images = torch.randn(5, 3, 32, 32)
    with torch.no_grad():
        expected, found = every.build()(images)[0], EXPORT_FORMATS["onnx"].load(content)(images)
    torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=0)


def test_a_network_of_cells_is_exported_for_any_batch_size() -> None:
    cell = Cell(((Edge("skip_connect", 0),),), (2,))
    genotype = Genotype("skips", "skip_connect", ("skip_connect",), cell, cell)
    network = DerivedNetwork(genotype, channels=4, cells=3, num_classes=3).eval()
    program = torch.export.export(
        network, (torch.zeros(2, 3, 8, 8),), dynamic_shapes={"x": {0: torch.export.Dim("batch")}}
    )
    images = torch.randn(5, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(program.module()(images)[0], network(images)[0])


def test_an_export_that_differs_is_refused(every: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = saved(MODEL, tmp_path / "w.safetensors")

    def off_by(amount: float, batch: int) -> ExportFormat:
        def load(content: bytes) -> RunModel:
            network = weights.build()

            def run(images: Tensor) -> Tensor:
                logits: Tensor = network(images)[0]
                return logits + amount if len(images) == batch else logits

            return run

        return ExportFormat(".x", "x", (), lambda *arguments: b"x", load)

    for amount, batch, refused in ((0.0, 1, False), (2e-4, 1, True), (2e-4, 3, True), (float("nan"), 3, True)):
        with monkeypatch.context() as patch:
            patch.setattr(module, "EXPORT_FORMATS", {"x": off_by(amount, batch)})
            if refused:
                with pytest.raises(RunError, match=r"logits differ by .* nothing was written"):
                    export(weights, "x")
            else:
                assert export(weights, "x")[1][1].difference == 0


def test_a_lack_of_packages_says_how_to_install_them(every: Weights, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda package: None)
    with pytest.raises(UsageError, match=r"needs onnx, onnxscript, onnxruntime: pip install 'darts_sg\[export\]'"):
        export(every, "onnx")


@pytest.mark.parametrize(("channels", "size"), [(1, 28), (3, 64)])
def test_rendered_images_have_the_shape_of_the_data(channels: int, size: int) -> None:
    values = (0.5,) * channels
    spec = replace(SPEC, in_channels=channels, image_size=size, mean=values, std=values)
    images = rendered_images(spec, 3)
    assert images.shape == (3, channels, size, size)
    assert images.min() >= -1
    assert images.max() <= 1
    assert images.std() > 0.1


class Convolution(nn.Module):
    """A detector of one layer, whose outputs depend on the pixels."""

    style, image_size = "authors", 32

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 8, 9, stride=9)

    def forward(self, x: Tensor) -> tuple[DetectorOutputs, None]:
        P = len(prior_boxes("authors", 32))
        outputs = self.layer(x).flatten(2).mT.repeat(1, -(-P // 9), 1)[:, :P]  # (N, P, 8)
        outputs = outputs + torch.linspace(0, 1, P)[:, None]
        return DetectorOutputs(outputs[:, :, :4], outputs[:, :, 4:]), None


def test_the_exported_selection_is_that_of_the_network() -> None:
    for package in EXPORT_FORMATS["onnx"].needs:
        pytest.importorskip(package, reason="the optional dependency group export is not installed")
    torch.manual_seed(0)
    network: Any = Convolution()
    task = Detection({})
    selecting = task.selecting(network)
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        operators = selecting.onnx_operators()
        content = onnx_bytes(selecting.model.eval(), images[:2], selecting.output_names, {"a": "b"}, operators)
        found, expected = EXPORT_FORMATS["onnx"].load(content)(images), selecting.model(images)
    assert len(expected[0]) > 30
    assert selecting.difference(found, expected) < 1e-5
    assert selecting.difference((found[0], found[1] + 0.01, *found[2:]), expected) == float("inf")
