"""Networks in timm's registry, where timm is there."""

from pathlib import Path

import pytest
import torch

from darts_sg.analysis.cost import count_params, derived_cost, model_cost
from darts_sg.errors import UsageError
from darts_sg.genotype import load_genotype
from darts_sg.networks.mobile import find_model
from tests.engine.test_weights import SPEC, metadata, written

try:
    import timm

    from darts_sg.timm_models import TimmNetwork
except (ImportError, RuntimeError) as error:  # torchvision raises the latter beside a PyTorch that it was not built for
    pytest.skip(f"timm cannot be imported: {error}", allow_module_level=True)


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("darts_v2_cifar10", derived_cost(load_genotype("DARTS_V2")).params),
        ("pdarts_imagenet", derived_cost(load_genotype("PDARTS"), "imagenet").params),
        ("mobilenext_100_id2", model_cost(find_model("mobilenext_1.0_id2")).params),
        ("mobilenext_035_cifar10", model_cost(find_model("mobilenext_0.35"), "cifar").params),
    ],
)
def test_timm_creates_and_lists_the_networks(name: str, params: int) -> None:
    assert timm.list_models(name) == [name]
    model = timm.create_model(name).eval()
    assert isinstance(model, TimmNetwork)
    assert count_params(model) == params
    config = timm.data.resolve_data_config(model=model)
    x = torch.zeros(1, *config["input_size"])
    with torch.no_grad():
        assert model(x).shape == (1, model.num_classes)
        model.reset_classifier(7)
        assert model(x).shape == (1, 7)
        features = timm.create_model(name, num_classes=0, in_chans=1).eval()
        assert features(x[:, :1]).shape == (1, features.num_features)


@pytest.mark.parametrize("name", ["darts_v2_cifar10", "mobilenext_035_cifar10"])
def test_timm_reads_the_weights_files(name: str, tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    cells = {"channels": 4, "cells": 3} if name.startswith("darts") else {}
    network = written(file, metadata("DARTS_V2" if cells else "mobilenext_0.35"), auxiliary=bool(cells))
    model = timm.create_model(name, num_classes=SPEC.num_classes, checkpoint_path=str(file), **cells).eval()
    model.load_state_dict(model.state_dict())
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(model(x), network(x)[0])


@pytest.mark.parametrize("num_classes", [SPEC.num_classes, 5])
def test_a_pretrained_network_is_that_of_its_file(num_classes: int, tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    network = written(file, metadata("DARTS_V2"), auxiliary=True)
    options = {"pretrained": True, "pretrained_cfg_overlay": {"file": str(file)}}
    given = {} if num_classes == SPEC.num_classes else {"num_classes": num_classes}
    model = timm.create_model("darts_v2_cifar10", **options, **given).eval()
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert model(x).shape == (2, num_classes)
        if not given:
            torch.testing.assert_close(model(x), network(x)[0])
        features = timm.create_model("darts_v2_cifar10", features_only=True, **options).eval()
        last = timm.create_model("darts_v2_cifar10", num_classes=0, **options).eval()
        torch.testing.assert_close(features(x)[-1].mean(dim=(2, 3)), network.maps(x)[2].mean(dim=(2, 3)))
        assert last(x).shape == (2, last.num_features)
    assert timm.data.resolve_data_config(model=model)["mean"] == SPEC.mean
    with pytest.raises(UsageError, match="and pdarts_cifar10 is another network"):
        timm.create_model("pdarts_cifar10", **options)
    with pytest.raises(UsageError, match=r"channels 8: .* is of channels 4; leave it out"):
        timm.create_model("darts_v2_cifar10", channels=8, **options)
    with pytest.raises(UsageError, match="takes images of 3 channels, not of 1"):
        timm.create_model("darts_v2_cifar10", in_chans=1, **options)


@pytest.mark.parametrize(
    ("name", "strides", "options"),
    [
        ("mobilenext_035", [2, 4, 8, 16, 32], {}),
        ("darts_sg_mobilenetv2_035", [2, 4, 8, 16, 32], {}),
        ("mobilenext_035_cifar10", [1, 2, 4, 8], {}),
        ("darts_v2_imagenet", [4, 8, 16, 32], {"channels": 4, "cells": 3}),
        ("darts_v2_cifar10", [1, 2, 4], {"channels": 4, "cells": 3}),
    ],
)
def test_features_are_those_of_each_stride(name: str, strides: list[int], options: dict[str, int]) -> None:
    model = timm.create_model(name, features_only=True, **options).eval()
    side = 64
    x = torch.randn(2, 3, side, side)
    info = model.feature_info
    assert info.reduction() == strides
    for module in info.module_name():
        model.get_submodule(module)  # there is one of this name
    with torch.no_grad():
        found = model(x)
    assert [features.shape for features in found] == [
        (2, C, side // stride, side // stride) for C, stride in zip(info.channels(), strides, strict=True)
    ]
    chosen = timm.create_model(name, features_only=True, out_indices=(-1, 0), **options).eval()
    chosen.load_state_dict(model.state_dict())
    with torch.no_grad():
        for one, other in zip(chosen(x), (found[-1], found[0]), strict=True):
            assert torch.equal(one, other)
    assert chosen.feature_info.reduction() == [strides[-1], strides[0]]
    with pytest.raises(UsageError, match=r"out_indices .*: there are features 0 to"):
        timm.create_model(name, features_only=True, out_indices=(9,), **options)


def test_what_there_is_not_is_said() -> None:
    with pytest.raises(UsageError, match="no pretrained weights"):
        timm.create_model("darts_v2_cifar10", pretrained=True)
    with pytest.raises(UsageError, match="no dropout"):
        timm.create_model("darts_v2_cifar10", drop_rate=0.2)
    assert timm.create_model("mobilenext_100", drop_rate=0.3).network.classifier[0].p == 0.3
