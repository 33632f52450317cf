"""Evaluation on the C++ kernels: the logits of PyTorch for any number of images and threads, and current weights."""

import copy
import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from darts_sg.backends import accelerate
from darts_sg.backends.cpp import build, cells
from darts_sg.genotype import load_genotype
from darts_sg.networks.derived import DerivedNetwork
from darts_sg.networks.mobile import MobileNetwork, find_model
from tests.reference.transfer import randomize

SIZES = {"cifar": 10, "imagenet": 64}


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    try:
        build.kernels(real="double")
    except build.Unavailable as reason:
        pytest.skip(str(reason))
    yield
    torch.set_num_threads(before)


def networks(name: str, shape: str = "cifar") -> tuple[nn.Module, nn.Module]:
    """The same network in eval mode twice: on PyTorch, and on the kernels."""
    torch.manual_seed(0)
    if name.startswith("mobile"):
        plain: DerivedNetwork | MobileNetwork = MobileNetwork(find_model(name), network=shape)
    else:
        plain = DerivedNetwork(load_genotype(name), network=shape, channels=4, cells=4)
    randomize(plain.double(), 0)
    own = copy.deepcopy(plain)
    accelerate(own, "cpp")
    return plain.eval(), own.eval()


def images(count: int, shape: str = "cifar") -> Tensor:
    size = SIZES[shape]
    return torch.randn(count, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
@pytest.mark.parametrize("shape", SIZES)
@pytest.mark.parametrize("name", ["DARTS_V2", "NASNet", "mobilenetv2_0.1", "mobilenext_0.1"])
def test_logits_are_those_of_pytorch_for_any_number_of_images_and_threads(name: str, shape: str) -> None:
    plain, own = networks(name, shape)
    x = images(5, shape)
    expected = plain(x)[0]
    assert own(x[:0])[0].shape == (0, 10)
    for count, num_threads in ((1, 1), (1, 3), (2, 3), (5, 3), (5, 2)):
        torch.set_num_threads(num_threads)
        torch.testing.assert_close(own(x[:count])[0], expected[:count], rtol=1e-9, atol=1e-9)


def test_logits_have_the_bits_of_a_pass_with_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the number of images that share a batch: a training's tests and `evaluate` report the same figures."""
    _, own = networks("DARTS_V2")
    found: list[bool] = []
    infer = cells.infer

    def counted(*arguments: Any) -> list[Tensor] | None:
        outputs = infer(*arguments)
        found.append(outputs is not None)
        return outputs

    monkeypatch.setattr(cells, "infer", counted)
    with_gradients = own(images(5))[0]
    assert found == 4 * [False]
    with torch.no_grad():
        for num_threads in (1, 2, 8):
            torch.set_num_threads(num_threads)
            assert torch.equal(own(images(5))[0], with_gradients.detach())
    assert found == 4 * [False] + 3 * 4 * [True]


@pytest.mark.parametrize("name", ["DARTS_V2", "mobilenetv2_0.1"])
def test_weights_and_statistics_are_those_of_now(name: str) -> None:
    """After a step, a pass in train mode, whose kernels write statistics, loading, and replacing a weight's values."""
    plain, own = networks(name)
    x = images(4)

    def agree() -> Tensor:
        with torch.no_grad():
            found: Tensor = own(x)[0]
            plain.load_state_dict(own.state_dict())
            torch.testing.assert_close(found, plain(x)[0], rtol=1e-9, atol=1e-9)
        return found

    before = agree()
    with torch.no_grad():
        for weight in own.parameters():
            weight.mul_(1.1)
    after_step = agree()
    own.train()(x)
    own.eval()
    after_pass = agree()
    other = networks(name)[0]
    randomize(other, 3)
    own.load_state_dict(other.state_dict())
    after_loading = agree()
    for weight in own.parameters():
        weight.data = weight.data * 0.9
    found = [before, after_step, after_pass, after_loading, agree()]
    assert all(not torch.equal(a, b) for a, b in itertools.pairwise(found))


def test_results_of_one_pass_outlive_the_next() -> None:
    _, own = networks("DARTS_V2")
    with torch.no_grad():
        first = own(images(3))[0]
        kept = first.clone()
        own(2 * images(3))
    assert torch.equal(first, kept)


def test_inference_mode_makes_weights_whose_changes_are_seen() -> None:
    """Tensors that are made in inference mode count no versions."""
    with torch.inference_mode():
        plain, own = networks("DARTS_V2")
        for _ in range(2):
            for network in (plain, own):
                for weight in network.parameters():
                    weight.mul_(1.1)
            torch.testing.assert_close(own(images(2))[0], plain(images(2))[0], rtol=1e-9, atol=1e-9)
