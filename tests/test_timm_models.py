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


def test_what_there_is_not_is_said() -> None:
    with pytest.raises(UsageError, match="no pretrained weights"):
        timm.create_model("darts_v2_cifar10", pretrained=True)
    with pytest.raises(UsageError, match="no dropout"):
        timm.create_model("darts_v2_cifar10", drop_rate=0.2)
    assert timm.create_model("mobilenext_100", drop_rate=0.3).network.classifier[0].p == 0.3
