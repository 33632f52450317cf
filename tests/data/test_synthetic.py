"""The rendered figures: repeatable, out of reach of a linear model, within reach of a small convolutional one."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from darts_sg.data import Augment, Dataset, TrainBatches, evaluation_batches, load_dataset
from darts_sg.data.synthetic import FORMS


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return load_dataset("synthetic", Path())


def accuracy(model: nn.Module, dataset: Dataset) -> float:
    """On the test part."""
    model.eval()
    with torch.no_grad():
        hits = [model(x).argmax(1) == y for x, y in evaluation_batches(dataset.test, dataset.spec, 500)]
    return torch.cat(hits).double().mean().item()


def test_the_seed_decides_every_pixel(dataset: Dataset) -> None:
    assert load_dataset("synthetic", Path()).fingerprint() == dataset.fingerprint()
    assert load_dataset("synthetic", Path(), seed=1).fingerprint() != dataset.fingerprint()


def test_the_classes_have_equal_shares_and_no_image_is_in_both_parts(dataset: Dataset) -> None:
    assert dataset.train.labels.bincount().tolist() == [400] * 10
    assert dataset.test.labels.bincount().tolist() == [100] * 10
    both = torch.cat([dataset.train.images, dataset.test.images]).flatten(1).numpy()
    assert len({row.tobytes() for row in both}) == 5000


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_a_mirrored_figure_is_the_figure_turned(form: object) -> None:
    """So that a flip keeps the label: each form is symmetric about one of its axes."""
    at = np.linspace(-1.2, 1.2, 61)
    u, v = np.meshgrid(at, at)
    distance = form(u, v)
    mirrored = [form(-u, v), form(u, -v), form(v, u)]
    assert any(np.allclose(distance, other, atol=1e-12) for other in mirrored)
    inside = distance < 0
    assert 0.05 < inside.mean() < 0.6
    inside[1:-1, 1:-1] = False
    assert not inside.any()  # nothing reaches the border


@pytest.mark.parametrize("decay", [0.0, 0.1, 1.0])
def test_a_linear_model_stays_under_40_percent(dataset: Dataset, decay: float) -> None:
    """Multinomial logistic regression on all pixels, without and with a penalty."""
    x, y = next(evaluation_batches(dataset.train, dataset.spec, len(dataset.train)))
    x = x.flatten(1)
    linear = nn.Linear(x.shape[1], 10)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    optimizer = torch.optim.LBFGS(linear.parameters(), max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(linear(x), y) + decay / 2 * linear.weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    closure()
    assert max(p.grad.abs().max().item() for p in linear.parameters()) < 2e-3  # converged
    assert accuracy(nn.Sequential(nn.Flatten(), linear), dataset) < 0.4


def conv(num_inputs: int, num_outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(num_inputs, num_outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(num_outputs), nn.ReLU()
    )


@pytest.mark.slow
def test_a_small_convolutional_network_passes_70_percent(dataset: Dataset) -> None:
    torch.manual_seed(0)
    layers = [conv(3, 16, 2), conv(16, 32, 1), conv(32, 64, 2), conv(64, 64, 2)]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))
    model.to(memory_format=torch.channels_last)
    batches = TrainBatches(dataset.train, dataset.spec, 64, Augment(crop_padding=2), 0, "weights")
    num_steps = 6 * len(batches)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, 0.9, nesterov=True, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, num_steps)
    for position in range(num_steps):
        x, y = batches[position]
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        schedule.step()
    assert accuracy(model, dataset) > 0.7
