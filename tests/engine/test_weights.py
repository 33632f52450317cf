"""Weights files: what they say comes back, and what they are not is told in one line."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from darts_sg.config import AugmentConfig
from darts_sg.data import DataSpec
from darts_sg.engine.subject import subject_of
from darts_sg.engine.weights import Metadata, read_weights, weights_bytes
from darts_sg.errors import UsageError
from darts_sg.genotype import load_genotype, parse_genotype, zoo_names
from darts_sg.networks.build import NetworkPlan, build_network
from darts_sg.networks.mobile import MODELS, find_model

SPEC = DataSpec("cats", 2, 32, 3, (0.4, 0.5, 0.6), (0.2, 0.3, 0.1), ("häuslich", "wild, other"))
PLAIN: dict[str, Any] = {
    "dataset": "cats", "num_classes": 2, "class_names": SPEC.class_names, "image_size": 32, "in_channels": 3,
    "mean": SPEC.mean, "std": SPEC.std, "data_note": "noise", "data_fingerprint": "0123456789abcdef",
    "figures": {"test_error": 12.34}, "test_images": 50, "epoch": 2, "epochs": 3, "seed": 1,
    "darts_sg": "0.1.0", "torch": "2.13.0", "git": "no git",
}  # fmt: skip
MODEL = Metadata(model="mobilenext_0.1_id2", network="cifar", **PLAIN)


def metadata(name: str) -> Metadata:
    if name in MODELS:
        return replace(MODEL, model=name)
    return Metadata(genotype=load_genotype(name).to_yaml(), network="cifar", channels=4, cells=3, **PLAIN)


def written(
    path: Path, m: Metadata, *, auxiliary: bool = False, num_classes: int = SPEC.num_classes
) -> torch.nn.Module:
    """A network of these metadata with statistics that are not those of the beginning; its weights are in `path`."""
    trained = find_model(m.model) if m.model else parse_genotype(m.genotype)
    plan = NetworkPlan(trained=trained, shape=m.network, channels=m.channels, cells=m.cells, auxiliary=auxiliary)
    network = build_network(plan, num_classes, SPEC.in_channels)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    network(torch.randn(4, 3, 32, 32))
    path.write_bytes(weights_bytes(network.state_dict(), m))
    return network.eval()


@pytest.mark.parametrize("name", [*zoo_names(), "mobilenext_0.35", "mobilenetv2_0.35"])
def test_a_file_alone_gives_the_same_network(name: str, tmp_path: Path) -> None:
    network = written(tmp_path / "w.safetensors", metadata(name), auxiliary=name == "DARTS_V2")
    weights = read_weights(tmp_path / "w.safetensors")
    assert weights.metadata == metadata(name)
    assert weights.trained.name == name
    assert weights.spec == SPEC
    x = torch.randn(2, 3, 32, 32)
    again = weights.build().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    assert torch.equal(network(x)[0], again(x)[0])


def test_the_metadata_are_readable_without_the_package(tmp_path: Path) -> None:
    written(tmp_path / "w.safetensors", metadata("DARTS_V2"))
    with safe_open(tmp_path / "w.safetensors", "pt") as file:
        texts = file.metadata()
    assert texts["genotype"] == load_genotype("DARTS_V2").to_yaml()
    assert texts["class_names"] == '["häuslich", "wild, other"]'
    assert (texts["dataset"], texts["data_note"], texts["test_error"]) == ("cats", "noise", "12.34")
    assert not {"model", "data_remark", "validation_error"} & texts.keys()


def test_foreign_and_damaged_files_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    written(path, MODEL)
    sound = path.read_bytes()

    def refused(content: bytes) -> str:
        path.write_bytes(content)
        with pytest.raises(UsageError) as error:
            read_weights(path)
        assert str(path) in str(error.value)
        return str(error.value)

    middle = len(sound) // 2
    assert "does not match its checksum" in refused(sound[:middle] + bytes([sound[middle] ^ 1]) + sound[middle + 1 :])
    assert "does not match its checksum" in refused(sound.replace(b"12.34", b"12.33"))
    for content in (sound[:middle], b"", b"# report\n", b"\x00" * 64):
        assert "not a weights file, or a damaged one" in refused(content)
    save_file({"x": torch.zeros(3)}, path, {"format": "pt"})
    assert "not of a darts_sg network (its format is 'pt'" in refused(path.read_bytes())
    state = {"x": torch.zeros(3)}
    assert "unknown model 'mobile'" in refused(weights_bytes(state, replace(MODEL, model="mobile")))
    assert "metadata" in refused(weights_bytes(state, replace(MODEL, class_names=("one",))))
    assert "unknown operation" in refused(
        weights_bytes(
            state, replace(metadata("DARTS_V2"), genotype=metadata("DARTS_V2").genotype.replace("sep_conv_3x3", "x"))
        )
    )
    path.write_bytes(weights_bytes(state, MODEL))
    with pytest.raises(UsageError, match=r"its tensors are not those of model mobilenext_0\.1_id2 \(cifar shape\)"):
        read_weights(path).build()


def test_the_options_of_a_file_are_those_of_a_training(tmp_path: Path) -> None:
    for name in ("DARTS_V2", "mobilenext_0.35"):
        written(tmp_path / "w.safetensors", metadata(name))
        weights = read_weights(tmp_path / "w.safetensors")
        subject = subject_of(weights.trained, AugmentConfig(**weights.options()), weights.spec)
        own = {k: v.shape for k, v in subject.build().state_dict().items() if not k.startswith("auxiliary")}
        assert own == {k: v.shape for k, v in weights.tensors.items()}
