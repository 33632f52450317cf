"""Zero-cost proxies against their formulas written out, in float64, and on every derived network."""

import json
import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from darts_sg.analysis.cost import derived_cost
from darts_sg.baselines.proxies import PROXIES, WORST, Probe, score
from darts_sg.data.generator import keyed_generator
from darts_sg.engine.scoring import score_genotypes
from darts_sg.genotype import load_genotype
from tests.test_command_line import in_process

IMAGES = torch.randn(5, 2, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
LABELS = torch.tensor([0, 1, 2, 1, 0])


class Tiny(nn.Module):
    """3×3 - BN - ReLU - 3×3 - BN - ReLU6 - pool - linear: a chain, so that every path meets every layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 3, 3, bias=False), nn.Conv2d(3, 4, 3, bias=False)
        self.norms = nn.ModuleList([nn.BatchNorm2d(3), nn.BatchNorm2d(4)])
        self.bounded = nn.ReLU6()
        self.head = Pooled()

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        x = self.norms[0](self.first(x)).relu_()
        return self.head(self.bounded(self.norms[1](self.second(x)))), None


class Pooled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.classifier = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(x.mean(dim=(2, 3)))


def build(scale: float = 1.0) -> Tiny:
    torch.manual_seed(3)
    net = Tiny().double()
    with torch.no_grad():
        net.second.weight.mul_(scale)
    return net


def probe(scale: float = 1.0) -> Probe:
    generator = torch.Generator().manual_seed(7)
    return Probe(lambda: build(scale), IMAGES, LABELS, F.cross_entropy, generator, {"params": 1, "macs": 2})


def layers(net: Tiny) -> list[Tensor]:
    return [net.first.weight, net.second.weight, net.head.classifier.weight]


def loss_of(net: Tiny) -> Tensor:
    return F.cross_entropy(net(IMAGES)[0], LABELS)


def numeric_gradients(net: Tiny) -> Iterator[np.ndarray]:
    """∂L/∂w by central differences, layer by layer."""
    for weight in layers(net):
        flat, found = weight.data.view(-1), []
        for i in range(len(flat)):
            sides = []
            for step in (1e-6, -2e-6):
                flat[i] += step
                sides.append(float(loss_of(net)))
            flat[i] += 1e-6
            found.append((sides[0] - sides[1]) / 2e-6)
        yield np.array(found)


def test_snip_and_grad_norm_are_their_formulas() -> None:
    net = build()
    with torch.no_grad():
        slopes = list(numeric_gradients(net))
    weights = [weight.detach().numpy().ravel() for weight in layers(net)]
    expected = sum(abs(w * g).sum() for w, g in zip(weights, slopes, strict=True))
    assert score("snip", probe()) == pytest.approx(expected, rel=1e-6)
    assert score("grad_norm", probe()) == pytest.approx(sum(np.linalg.norm(g) for g in slopes), rel=1e-6)


def test_grasp_is_minus_w_times_hessian_times_gradient() -> None:
    def gradient(net: Tiny) -> list[Tensor]:
        return list(torch.autograd.grad(loss_of(net), layers(net)))

    base, step = gradient(build()), 1e-6
    sides = []
    for sign in (1, -1):
        net = build()
        with torch.no_grad():
            for weight, direction in zip(layers(net), base, strict=True):
                weight += sign * step * direction
        sides.append(gradient(net))
    products = [(plus - minus) / (2 * step) for plus, minus in zip(*sides, strict=True)]
    expected = -sum(float((w.detach() * hg).sum()) for w, hg in zip(layers(build()), products, strict=True))
    assert score("grasp", probe()) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("scale", [0.1, 300.0])
def test_synflow_of_a_chain_is_the_flow_times_its_layers(scale: float) -> None:
    """Without BatchNorm and under |w| the output is linear in each of the three layers: Σ w · ∂R/∂w = R + 2 (R - b),
    b being the part of the bias. At 300 times the weights ReLU6 would bound the flow."""
    net = build(scale).requires_grad_(False)
    x = F.conv2d(F.conv2d(torch.ones(1, 2, 6, 6).double(), net.first.weight.abs()), net.second.weight.abs())
    assert (x.max() > 6) == (scale > 1)
    flow = float((x.mean(dim=(2, 3)) @ net.head.classifier.weight.abs().T).sum())
    assert score("synflow", probe(scale)) == pytest.approx(math.log(3 * flow), rel=1e-10)


def test_naswot_counts_the_relus_that_agree() -> None:
    net, states = build().train(), []
    with torch.no_grad():
        x = net.norms[0](net.first(IMAGES))
        states.append(x > 0)
        states.append(net.norms[1](net.second(x.clamp(min=0))) > 0)
    units = torch.cat([state.flatten(1) for state in states], dim=1).numpy()
    kernel = [[sum(a == b for a, b in zip(one, two, strict=True)) for two in units] for one in units]
    assert kernel[0][0] == units.shape[1]
    assert score("naswot", probe()) == pytest.approx(np.linalg.slogdet(np.array(kernel, dtype=float))[1], rel=1e-10)


def test_jacov_is_that_of_the_correlation_of_input_gradients() -> None:
    net = build().train()
    rows = []
    for i in range(len(IMAGES)):
        x = IMAGES.clone().requires_grad_()
        net(x)[0].sum().backward()
        assert x.grad is not None
        rows.append(x.grad[i].numpy().ravel())
    values = np.linalg.eigvalsh(np.corrcoef(np.stack(rows)))
    expected = -(np.log(values + 1e-5) + 1 / (values + 1e-5)).sum()
    assert score("jacov", probe()) == pytest.approx(expected, rel=1e-6)


def test_zen_is_the_movement_of_the_features_times_the_scales_of_batch_norm() -> None:
    draw = probe().noise
    drawn = probe()
    first, second, _ = (drawn.noise(weight) for weight in layers(build()))
    x, more = drawn.noise(IMAGES), drawn.noise(IMAGES)
    assert torch.equal(draw(layers(build())[0]), first)
    scales = []

    def norm(y: Tensor) -> Tensor:
        variance = y.var(dim=(0, 2, 3), unbiased=False)
        scales.append(math.log(math.sqrt(float(y.var(dim=(0, 2, 3), unbiased=True).mean()))))
        return (y - y.mean(dim=(0, 2, 3))[:, None, None]) / torch.sqrt(variance + 1e-5)[:, None, None]

    def features(images: Tensor) -> Tensor:
        y = norm(F.conv2d(images, first)).clamp(min=0)
        return norm(F.conv2d(y, second)).clamp(0, 6)

    base = features(x)
    expected = sum(scales) + math.log(float((base - features(x + 0.01 * more)).abs().sum(dim=(1, 2, 3)).mean()))
    assert score("zen", probe()) == pytest.approx(expected, rel=1e-8)


def test_what_is_not_finite_is_the_worst_score() -> None:
    class Broken(Tiny):
        def forward(self, x: Tensor) -> tuple[Tensor, None]:
            return super().forward(x)[0] * float("nan"), None

    broken = Probe(lambda: Broken().double(), IMAGES, LABELS, F.cross_entropy, torch.Generator(), {})
    assert score("snip", broken) == WORST


@pytest.mark.parametrize("name", PROXIES)
def test_every_proxy_scores_every_kind_of_operation_and_draws_nothing_from_others(name: str) -> None:
    genotypes = [load_genotype(each) for each in ("DARTS_V2", "SG_DARTS")]
    before = torch.get_rng_state()
    shape = ("cifar", 4, 3)
    options = {"image_size": 8, "batch_size": 4, "dataset": None, "folder": None}
    found, again, other = (
        score_genotypes(some, [name], shape, seed=seed, **options)[0]  # type: ignore[arg-type]
        for some, seed in ((genotypes, 0), (genotypes[:1], 0), (genotypes[:1], 1))
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert found[:1] == again
    assert (again == other) == (name in ("params", "macs"))
    values = [row["scores"][name] for row in found]
    assert all(math.isfinite(value) and value > WORST for value in values)
    assert values[0] != values[1]


def test_the_command_sorts_by_the_first_proxy_and_knows_the_shape(capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--channels=4", "--cells=3", "--image-size=8", "--batch-size=4"]
    command = ["genotype", "score", "DARTS_V1", "SG_DARTS", "DARTS_V2", *small]
    code, out, err = in_process(capsys, *command, "--proxy=params,naswot", "--json")
    assert code == 0, err
    content = json.loads(out)
    rows = content["genotypes"]
    params = [row["scores"]["params"] for row in rows]
    assert params == sorted(params, reverse=True)
    for row in rows:
        assert row["scores"]["params"] == derived_cost(load_genotype(row["name"]), "cifar", 4, 3).params / 1e6
    code, out, _ = in_process(capsys, *command, "--proxy=params")
    assert code == 0
    assert "CIFAR, C=4, 3 cells; batch of 4, random images; seed 0" in out


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--proxy=sinflow", "unknown proxy 'sinflow' (did you mean 'synflow'?)"),
        ("--proxy=snip,snip", "--proxy snip,snip names a proxy twice"),
        ("--dataset=cifa", "unknown data set"),
    ],
)
def test_bad_options_are_one_line(option: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = in_process(capsys, "genotype", "score", "DARTS_V2", option)
    assert code == 2
    assert said in err
    assert err.count("\n") == 1


def test_the_generator_of_a_probe_depends_on_seed_and_number() -> None:
    one, two = (torch.randn(3, generator=keyed_generator(0, "baseline", "noise", number)) for number in (0, 1))
    assert not torch.equal(one, two)
