"""Mobile networks on the C++ kernels: the same logits, gradients and statistics, weights under the same names."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from darts_sg.backends import accelerate, backend_of
from darts_sg.backends.check import Conditions, largest_error, mark_of
from darts_sg.backends.cpp import build
from darts_sg.backends.cpp import mobile as cpp_mobile
from darts_sg.backends.cpp.mobile import CppFeatures, CppMobileBlock
from darts_sg.networks.mobile import FAMILIES, Family, MobileNetwork, Stage, find_model
from tests.reference.transfer import assert_equal_tensors, randomize

SMALL = {
    "mobilenetv2": (Stage(1, 16, 1, 1), Stage(6, 24, 2, 2), Stage(3, 40, 1, 1)),
    "mobilenext": (Stage(2, 96, 1, 2), Stage(6, 112, 2, 2), Stage(6, 160, 2, 1), Stage(6, 192, 1, 1)),
    "bottleneck": (Stage(2, 96, 1, 2), Stage(6, 112, 2, 1)),
}
"""Every kind of block of each family, in fewer and narrower stages; a stem of 16 channels at width 0.5."""


@pytest.fixture(autouse=True)
def needs_kernels() -> None:
    try:
        build.kernels(real="double")
    except build.Unavailable as reason:
        pytest.skip(str(reason))


def network_of(name: str, monkeypatch: pytest.MonkeyPatch) -> MobileNetwork:
    family = find_model(name).family
    small = {**vars(family), "stages": next(SMALL[key] for key in SMALL if FAMILIES[key] is family)}
    torch.manual_seed(0)
    monkeypatch.setattr("darts_sg.networks.mobile.DROPOUT", 0.0)
    model = find_model(name)
    object.__setattr__(model := copy.copy(model), "family", Family(**small))
    network = MobileNetwork(model, network="imagenet").double()
    randomize(network, 0)
    return network


def outcome(network: MobileNetwork) -> list[Tensor]:
    """Logits, gradients of the weights, running statistics; then logits in eval mode."""
    x = torch.randn(3, 3, 33, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    logits = network(x)[0]
    gradients = torch.autograd.grad(F.cross_entropy(logits, torch.arange(3)), list(network.parameters()))
    return [logits, *gradients, *network.buffers(), network.eval()(x)[0]]


@pytest.mark.parametrize("name", ["mobilenetv2_0.5", "mobilenext_0.5", "mobilenext_0.5_id2", "bottleneck_0.5"])
def test_a_model_computes_the_same_on_the_kernels(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = network_of(name, monkeypatch)
    network = copy.deepcopy(plain)
    accelerate(network, "cpp")
    assert backend_of(network) == "cpp"
    assert list(network.state_dict()) == list(plain.state_dict())
    back = copy.deepcopy(network)
    accelerate(back, "eager")
    assert [type(layer) for layer in back.modules()] == [type(layer) for layer in plain.modules()]
    expected = outcome(plain)
    for other in (network, back):
        assert_equal_tensors(outcome(other), expected, relative=1e-9)


def test_the_maps_of_a_backbone_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("mobilenext_0.5", "mobilenetv2_0.5"):
        plain = network_of(name, monkeypatch)
        network = copy.deepcopy(plain)
        accelerate(network, "cpp")
        x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
        assert_equal_tensors(list(network.maps(x)), list(plain.maps(x)), relative=1e-9)


@pytest.mark.parametrize("name", ["mobilenetv2_0.5", "mobilenext_0.5"])
def test_threads_change_no_bits_and_planes_in_windows_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """At 64 pixels the planes of a block are too large for the cache, so that only some of their rows are kept."""
    plain = network_of(name, monkeypatch).features[3:5]
    x = torch.randn(2, 16, 64, 64, dtype=torch.float64, requires_grad=True)
    found = []
    threads = torch.get_num_threads()
    for count in (1, 2, threads):
        network = copy.deepcopy(plain)
        if count != threads or len(found) < 2:
            network = nn.Sequential(*map(CppMobileBlock, network))
        torch.set_num_threads(count)
        y = network(x)
        wanted = [x, *network.parameters()]
        found.append([y, *torch.autograd.grad(y, wanted, torch.ones_like(y).cumsum(dim=3)), *network.buffers()])
    torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(found[0], found[1], strict=True))
    assert_equal_tensors(found[1], found[2], relative=1e-9)


def test_hooked_and_replaced_layers_are_left_to_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    network = network_of("mobilenetv2_0.5", monkeypatch)
    accelerate(network, "cpp")
    block = network.features[4]
    assert isinstance(block, CppMobileBlock)
    seen: list[int] = []
    block.body[0].register_forward_hook(lambda *_: seen.append(1))
    network.features[1].register_forward_hook(lambda *_: seen.append(2))
    network.features[-2][1] = nn.Identity()  # in place of the last convolution's BatchNorm
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    plain = copy.deepcopy(network)
    accelerate(plain, "eager")
    torch.testing.assert_close(network(x)[0], plain(x)[0])
    del seen[2:]
    assert seen == [2, 1]


def test_the_check_runs_over_every_segment_and_finds_a_wrong_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    network = network_of("mobilenetv2_0.5", monkeypatch).float()
    accelerate(network, "cpp")
    features = network.features
    assert isinstance(features, CppFeatures)
    assert [place.stop - place.start for place in features.segments()] == [1, 3, 1, 1, 1, 2]
    assert mark_of(network).startswith("MobileNetwork-")
    conditions = Conditions(torch.device("cpu"), torch.float32, 2, lambda error: False)
    assert 0 < largest_error(network, (3, 32), conditions) < 1e-2
    run = cpp_mobile.run_ops
    monkeypatch.setattr(cpp_mobile, "run_ops", lambda xs, *others: [1.1 * y for y in run(xs, *others)])
    with pytest.raises(build.Unavailable, match=r"in layer 1, .* is off by"):
        largest_error(network, (3, 32), conditions)
