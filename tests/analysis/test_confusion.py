"""Gradient confusion against gradients computed one by one, in float64."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from darts_sg.analysis import confusion
from darts_sg.analysis.confusion import Gradients, measure_gradients
from darts_sg.genotype import load_genotype
from darts_sg.networks.derived import DerivedNetwork
from darts_sg.networks.mobile import MobileNetwork, find_model

Batches = list[tuple[Tensor, Tensor]]


def build(kind: str) -> nn.Module:
    torch.manual_seed(0)
    if kind == "genotype":
        network: nn.Module = DerivedNetwork(load_genotype("GDAS_V1"), channels=4, cells=3, auxiliary=True)
        network.set_drop_path_prob(0.5)  # type: ignore[operator]
    else:
        network = MobileNetwork(find_model(kind))
    for buffer in network.buffers():
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 2.0)  # running statistics unlike those of any batch
    return network.double()


def some_batches(num: int) -> Batches:
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(6, 3, 8, 8, generator=generator).double(), torch.randint(10, (6,), generator=generator))
        for _ in range(num)
    ]


def one_by_one(network: nn.Module, batches: Batches) -> Tensor:
    """The gradients as a training step computes them, without what is random in it, (B, P)."""
    rows = []
    for images, labels in batches:
        trained = copy.deepcopy(network).train()
        for module in trained.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        if isinstance(trained, DerivedNetwork):
            trained.set_drop_path_prob(0.0)
        F.cross_entropy(trained(images)[0], labels).backward()
        zero = [torch.zeros_like(p) if p.grad is None else p.grad for p in trained.parameters()]
        rows.append(torch.cat([part.flatten() for part in zero]))
    return torch.stack(rows)


@pytest.mark.parametrize("kind", ["genotype", "mobilenext_0.1_id2", "mobilenetv2_0.1"])
def test_products_and_cosines_are_those_of_explicit_gradients(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(confusion, "COLUMNS", 1000)
    network, batches = build(kind), some_batches(4)
    expected = one_by_one(network, batches)
    found = measure_gradients(network, iter(batches))
    torch.testing.assert_close(found.gram, expected @ expected.T)
    cosines = [F.cosine_similarity(expected[i], expected[j], dim=0) for i in range(4) for j in range(i + 1, 4)]
    torch.testing.assert_close(found.cosines, torch.stack(cosines))
    products = [expected[i] @ expected[j] for i in range(4) for j in range(i + 1, 4)]
    assert found.bound == pytest.approx(max(0.0, -min(products).item()))


def test_the_network_stays_as_it_is() -> None:
    network = build("mobilenetv2_0.1").train()
    next(m for m in network.modules() if isinstance(m, nn.BatchNorm2d)).eval()
    modes = [m.training for m in network.modules()]
    before = copy.deepcopy(network.state_dict())
    measure_gradients(network, some_batches(2))
    after = network.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert [m.training for m in network.modules()] == modes
    assert all(m.track_running_stats for m in network.modules() if isinstance(m, nn.BatchNorm2d))
    assert all(p.grad is None for p in network.parameters())


def test_minibatches_that_pull_apart_have_confusion() -> None:
    class Line(nn.Module):
        """Logits (0, w·x): the gradient of w is x times a factor of the label's sign."""

        def __init__(self) -> None:
            super().__init__()
            self.w, self.unused = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.ones(3))

        def forward(self, x: Tensor) -> tuple[Tensor, None]:
            return torch.stack([torch.zeros(len(x)), x @ self.w], dim=1), None

    along, across = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 2.0]])
    first, second = torch.tensor([0]), torch.tensor([1])
    found = measure_gradients(Line(), [(along, first), (along, second), (across, first), (0 * along, first)])
    assert found.cosines.tolist() == [-1, 0, 0, 0, 0, 0]  # half of x each, the last is zero
    assert found.bound == 1.0
    assert found.loss == pytest.approx(torch.tensor(2.0).log().item())
    assert Gradients(torch.tensor([[1.0, 0.5], [0.5, 1.0]]).double(), 0.0).bound == 0.0
