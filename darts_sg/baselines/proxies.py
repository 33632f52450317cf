"""Zero-cost proxies: scores of an untrained network from at most one batch. A higher score promises a better network.

Each proxy sees a newly initialised network (`Probe.network`) and may change it. Sums over weights are over those of the
convolutions and the linear layer, as in the comparison of Abdelfattah et al., "Zero-Cost Proxies for Lightweight NAS",
ICLR 2021; `docs/methods/zero-cost.md` has the formulas and where they differ from public code. A score that is not
finite becomes WORST.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from darts_sg.registry import Registry

WORST = -1e8
EPS = 1e-5  # added to the eigenvalues of jacov
ZEN_STEP = 0.01
RELUS = frozenset({F.relu, F.relu_, F.relu6, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_})


@dataclass(frozen=True)
class Probe:
    """What a proxy may look at."""

    build: Callable[[], nn.Module]
    """Builds the network on its device, newly initialised; it maps images to (outputs, auxiliary outputs or None)."""
    images: Tensor
    """(N, C, H, W), normalised."""
    targets: Any
    loss: Callable[[Any, Any], Tensor]
    """Of outputs and targets."""
    generator: torch.Generator
    """For random inputs; on the CPU."""
    costs: Mapping[str, int]
    """`params` and `macs` of the network."""

    def network(self) -> nn.Module:
        """A new network in train mode."""
        return self.build().train()

    def noise(self, like: Tensor) -> Tensor:
        """Standard normal numbers of the shape, type and device of `like`."""
        return torch.randn(like.shape, generator=self.generator, dtype=like.dtype).to(like.device)


Proxy = Callable[[Probe], float]
PROXIES: Registry[Proxy] = Registry("proxy")


def proxy(name: str) -> Callable[[Proxy], Proxy]:
    """Register a function as the proxy of this name; the first line of its docstring is its help."""
    return lambda function: PROXIES.add(name, function)


def score(name: str, probe: Probe) -> float:
    """The score of a network, WORST where it is not a finite number."""
    found = float(PROXIES[name](probe))
    return found if math.isfinite(found) else WORST


def weights_of(network: nn.Module) -> list[Tensor]:
    """The weights of the convolutions and linear layers that the outputs depend on: an auxiliary head is not built."""
    return [layer.weight for layer in network.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]


def gradients(probe: Probe, network: nn.Module, *, create_graph: bool = False) -> list[Tensor]:
    """Of the loss in the weights, zeros for a weight that it does not depend on."""
    loss = probe.loss(network(probe.images)[0], probe.targets)
    weights = weights_of(network)
    return list(torch.autograd.grad(loss, weights, create_graph=create_graph, materialize_grads=True))


def _total(terms: Sequence[Tensor]) -> float:
    return float(torch.stack([term.double() for term in terms]).sum())


@proxy("params")
def params(probe: Probe) -> float:
    """Number of parameters, in millions."""
    return probe.costs["params"] / 1e6


@proxy("macs")
def macs(probe: Probe) -> float:
    """Multiply-adds of one image, in millions."""
    return probe.costs["macs"] / 1e6


@proxy("grad_norm")
def grad_norm(probe: Probe) -> float:
    """Sum over the layers of the norm of the loss's gradient."""
    return _total([gradient.norm() for gradient in gradients(probe, probe.network())])


@proxy("snip")
def snip(probe: Probe) -> float:
    """Σ |w · ∂L/∂w|: how much the loss depends on each weight (Lee et al., ICLR 2019, equation 6)."""
    network = probe.network()
    pairs = zip(weights_of(network), gradients(probe, network), strict=True)
    return _total([(weight.detach() * gradient).abs().sum() for weight, gradient in pairs])


@proxy("grasp")
def grasp(probe: Probe) -> float:
    """-Σ w · H g: what keeps the gradient flowing (Wang et al., ICLR 2020, equation 8, temperature 1)."""
    network = probe.network()
    first = gradients(probe, network, create_graph=True)
    constant = torch.stack([(gradient * gradient.detach()).sum() for gradient in first]).sum()
    weights = weights_of(network)
    products = torch.autograd.grad(constant, weights, materialize_grads=True)  # H g
    return _total([-(weight.detach() * product).sum() for weight, product in zip(weights, products, strict=True)])


@proxy("synflow")
def synflow(probe: Probe) -> float:
    """log Σ |w · ∂R/∂w| with R the summed outputs for ones, under |w| and without BatchNorm (Tanaka et al., 2020)."""
    network = linear_for_positive(probe.network().double())
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.abs_()
    ones = torch.ones_like(probe.images[:1], dtype=torch.float64)
    weights = weights_of(network)
    found = torch.autograd.grad(network(ones)[0].sum(), weights, materialize_grads=True)
    total = _total([(weight.detach() * gradient).abs().sum() for weight, gradient in zip(weights, found, strict=True)])
    return math.log(total) if total > 0 else -math.inf


def linear_for_positive(network: nn.Module) -> nn.Module:
    """The network without what is not linear for positive numbers, in place: BatchNorm, the upper bound of ReLU6."""
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, name, nn.Identity())
            elif isinstance(child, nn.ReLU6):
                setattr(module, name, nn.ReLU())
    return network


class _Activations(TorchFunctionMode):
    """Context that adds up, in `kernel`, the images whose units are in the same state, over all ReLUs run within it.

    Counts ReLU and ReLU6, as modules, functions or methods, in place or not: a unit is on if its output is above 0.
    """

    def __init__(self, num_images: int) -> None:
        super().__init__()
        self.kernel = torch.zeros(num_images, num_images, dtype=torch.float64)

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = kwargs or {}
        out = function(*args, **options)
        # nn.ReLU6 is a hardtanh from 0
        if function in RELUS or (function is F.hardtanh and (*args[1:2], options.get("min_val"))[0] == 0):
            on = (out.detach() > 0).flatten(1).double()  # (N, units)
            self.kernel += (on @ on.T + (1 - on) @ (1 - on).T).cpu()
        return out


@proxy("naswot")
def naswot(probe: Probe) -> float:
    """log |det K|, K counting the ReLUs that agree on two images (Mellor et al., ICML 2021, equation 2)."""
    with _Activations(len(probe.images)) as seen, torch.no_grad():
        probe.network()(probe.images)
    return float(torch.linalg.slogdet(seen.kernel).logabsdet)


@proxy("jacov")
def jacov(probe: Probe) -> float:
    """How little the gradients of the summed outputs in different images correlate (Mellor et al., first version)."""
    images = probe.images.clone().requires_grad_()
    [gradient] = torch.autograd.grad(probe.network()(images)[0].sum(), [images])
    rows = gradient.flatten(1).double().cpu()
    values = torch.linalg.eigvalsh(torch.corrcoef(rows))  # symmetric: real eigenvalues
    return float(-(torch.log(values + EPS) + 1 / (values + EPS)).sum())


@proxy("zen")
def zen(probe: Probe) -> float:
    """log of how far the features move with the input, times BatchNorm's divisors (Lin et al., ICCV 2021)."""
    network = probe.network()
    norms = [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)]
    with torch.no_grad():
        for weight in weights_of(network):
            weight.copy_(probe.noise(weight))
        for norm in norms:
            if norm.affine:
                norm.weight.fill_(1.0)
                norm.bias.zero_()
            norm.momentum = 1.0  # the variance of this batch alone
        first, second = probe.noise(probe.images), probe.noise(probe.images)
        features = features_of(network, first)
        variances = [norm.running_var.double().mean() for norm in norms if norm.running_var is not None]
        scale = 0.5 * float(torch.stack(variances).log().sum())
        moved = features_of(network, first + ZEN_STEP * second)
        return math.log(float((features - moved).double().abs().flatten(1).sum(dim=1).mean())) + scale


def features_of(network: nn.Module, images: Tensor) -> Tensor:
    """What enters the head of a network of cells, before the pooling: (N, C, H, W)."""
    seen: list[Tensor] = []
    [head] = [module for name, module in network.named_modules() if name.rpartition(".")[2] == "head"]
    hook = head.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].clone()))
    try:
        network(images)
    finally:
        hook.remove()
    return seen[-1]
