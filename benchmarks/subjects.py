"""The steps that are measured: as the original code runs them, and as this package does, on the same weights."""

import copy
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from darts_sg.backends import accelerate
from darts_sg.backends.batched import edge_batches, plain_tensors
from darts_sg.backends.cpp import build
from darts_sg.data import Augment, DataSpec, ImageSet, TrainBatches
from darts_sg.engine.graphs import WARM_UP, Captured, compile_step
from darts_sg.engine.steps import apply_weight_step
from darts_sg.genotype import load_genotype
from darts_sg.methods.auxiliary_skips import AUXILIARY_SKIPS
from darts_sg.methods.hypergradient import Hypergradient, VirtualStep, first_order, frozen, unrolled
from darts_sg.methods.mixing import Draw, alphas_of, draw_noise, expected_mixing, sampled_mixing, softmax
from darts_sg.methods.parts import build_part, build_parts
from darts_sg.methods.perturbations import PERTURBATIONS
from darts_sg.methods.regularizers import REGULARIZERS
from darts_sg.methods.relaxations import RELAXATIONS
from darts_sg.networks.derived import DerivedNetwork
from darts_sg.networks.supernet import Chosen, Mixing, Supernet, chosen_by
from darts_sg.spaces import parse_space
from tests.reference import textbook
from tests.reference.transfer import copy_tensors

Step = Callable[[], object]
LAST = torch.channels_last
SGD = {"lr": 0.025, "momentum": 0.9, "weight_decay": 3e-4}
ADAM = {"lr": 3e-4, "betas": (0.5, 0.999), "weight_decay": 1e-3}
CLIP = 5.0


def native_kernels() -> str | None:
    """The reason why there are no C++ kernels; None if there are."""
    try:
        build.kernels()
    except build.Unavailable as reason:
        return str(reason)
    return None


def native_backend(device: str) -> str:
    """The backend whose kernels run on a device."""
    return "triton" if device.startswith("cuda") else "cpp"


@dataclass(frozen=True)
class Shape:
    """Space and size of the supernet, batch and device."""

    space: str = "darts+sandglass"
    batch: int = 16
    channels: int = 16
    cells: int = 8
    size: int = 32
    device: str = "cpu"
    partial_channels: int = 1
    """K of PC-DARTS; above 1 with its edge normalisation."""

    def images(self) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(self.batch, 3, self.size, self.size, generator=generator)
        return x.to(self.device), torch.randint(10, (self.batch,), generator=generator).to(self.device)

    def supernet(self, native: bool, *, auxiliary_skip: bool = False) -> Supernet:
        torch.manual_seed(0)
        operations = parse_space(self.space).operations
        net = Supernet(
            operations,
            channels=self.channels,
            cells=self.cells,
            partial_channels=self.partial_channels,
            edge_normalization=self.partial_channels > 1,
            auxiliary_skip=auxiliary_skip,
        )
        net = net.to(self.device, memory_format=LAST)
        accelerate(net, native_backend(self.device) if native else "batched")
        return net

    def textbook(self) -> tuple[nn.Module, list[Tensor]]:
        """The textbook supernet with the weights of `supernet`, and its alphas."""
        mine = self.supernet(native=False)
        operations = parse_space(self.space).operations
        net = textbook.Supernet(operations, channels=self.channels, cells=self.cells)
        net = net.to(self.device)
        copy_tensors(net.parameters(), plain_tensors(mine).values())
        return net, [alpha.detach().clone().requires_grad_() for alpha in mine.alphas()]


def compile_kernels(shape: Shape, precision: torch.dtype) -> None:
    """Compile the Triton kernels of a step on a GPU, in parallel."""
    net, (x, _) = shape.supernet(native=True), shape.images()
    autocast = torch.autocast("cuda", torch.bfloat16, enabled=precision == torch.bfloat16)
    compile_step(net, softmax, x.contiguous(memory_format=LAST), autocast)


def alternating_step(
    loss: Callable[[], Tensor], weights: list[Tensor], alphas: list[Tensor], *, only_used: bool = False
) -> Step:
    """A step of the alphas, then one of the weights, each from a backward pass with all gradients.

    only_used: the alpha step computes only the gradients of the alphas, the weight step only those of the weights.
    """
    adam, sgd = torch.optim.Adam(alphas, **ADAM), torch.optim.SGD(weights, **SGD)

    def step() -> None:
        for frozen_ones, own in ((weights, adam), (alphas, sgd)):
            adam.zero_grad()
            sgd.zero_grad()
            with frozen(frozen_ones if only_used else []):
                loss().backward()
            if own is sgd:
                nn.utils.clip_grad_norm_(weights, CLIP)
            own.step()

    return step


def textbook_step(shape: Shape, *, channels_last: bool = False, only_used: bool = False) -> Step:
    """A first-order step as the original runs it: NCHW, one module per operation and edge, all gradients in both steps.

    only_used: the alpha step computes only the gradients of the alphas, the weight step only those of the weights.
    """
    net, alphas = shape.textbook()
    x, y = shape.images()
    if channels_last:
        net, x = net.to(memory_format=LAST), x.contiguous(memory_format=LAST)
    weights = list(net.parameters())

    def loss() -> Tensor:
        return F.cross_entropy(net(x, *(textbook.softmax_over_operations(alpha) for alpha in alphas)), y)

    return alternating_step(loss, weights, alphas, only_used=only_used)


def textbook_second_order_step(shape: Shape) -> Step:
    """A second-order step as the original runs it: a copy of the network takes the virtual step."""
    net, alphas = shape.textbook()
    x, y = shape.images()
    weights = list(net.parameters())
    adam, sgd = torch.optim.Adam(alphas, **ADAM), torch.optim.SGD(weights, **SGD)

    def loss(of: nn.Module) -> Tensor:
        return F.cross_entropy(of(x, *(textbook.softmax_over_operations(alpha) for alpha in alphas)), y)

    def step() -> None:
        gradients = torch.autograd.grad(loss(net), weights)
        moved = copy.deepcopy(net)
        with torch.no_grad():
            for w, gradient, w_old in zip(moved.parameters(), gradients, weights, strict=True):
                buffer = sgd.state[w_old].get("momentum_buffer", torch.zeros_like(w))
                w -= SGD["lr"] * (SGD["momentum"] * buffer + gradient + SGD["weight_decay"] * w)
        found = torch.autograd.grad(loss(moved), [*alphas, *moved.parameters()])
        direct, direction = found[: len(alphas)], found[len(alphas) :]
        eps = 0.01 / torch.cat([d.flatten() for d in direction]).norm()
        sides = []
        for scale in (eps, -2 * eps, eps):
            with torch.no_grad():
                for w, d in zip(weights, direction, strict=True):
                    w += scale * d
            if len(sides) < 2:
                sides.append(torch.autograd.grad(loss(net), alphas))
        for alpha, g, plus, minus in zip(alphas, direct, *sides, strict=True):
            alpha.grad = g - SGD["lr"] * (plus - minus) / (2 * eps)
        adam.step()
        sgd.zero_grad()
        loss(net).backward()
        nn.utils.clip_grad_norm_(weights, CLIP)
        sgd.step()

    return step


def own_step(
    shape: Shape,
    *,
    native: bool,
    second_order: bool = False,
    recompute: bool = False,
    precision: torch.dtype = torch.float32,
    compiled: bool = False,
    captured: bool = False,
) -> Step:
    """The step of darts_sg.engine.search without its bookkeeping. captured: replay it as a CUDA graph, on a GPU."""
    net = shape.supernet(native)
    net.recompute = recompute
    if compiled:
        for part in edge_batches(net):
            part.compile(dynamic=False)
    x, y = shape.images()
    batch = x.contiguous(memory_format=LAST), y
    weights, alphas = net.weights(), net.alphas()
    adam = torch.optim.Adam(alphas, **ADAM, fused=x.is_cuda or None, capturable=x.is_cuda)
    sgd = torch.optim.SGD(weights, **SGD, fused=True)

    def objective(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=precision == torch.bfloat16):
            logits = net(batch[0], softmax(net))
            return F.cross_entropy(logits, batch[1]), logits

    def step() -> dict[str, Tensor]:
        # the alphas' step on the validation batch, then the weights' step: here both are the same batch
        buffers = [sgd.state[w].get("momentum_buffer") for w in weights]
        virtual = VirtualStep(SGD["lr"], SGD["momentum"], SGD["weight_decay"], buffers)
        method = unrolled if second_order else first_order
        found: Hypergradient = method(objective, weights, alphas, batch, batch, virtual)
        for alpha, gradient in zip(alphas, found.gradients, strict=True):
            alpha.grad = gradient
        adam.step()
        adam.zero_grad()
        with frozen(alphas):
            sgd.zero_grad()
            loss = objective(batch)[0]
            loss.backward()
            nn.utils.clip_grad_norm_(weights, CLIP)
            sgd.step()
        return {"loss": loss.detach()}

    if captured:  # the first calls run launch by launch: capture before anything is timed
        graph = Captured(step)
        for _ in range(WARM_UP + 1):
            graph(None)
        return lambda: graph(None)
    return step


def method_step(
    shape: Shape,
    *,
    native: bool,
    relaxation: str = "softmax",
    regularizer: str = "",
    perturbation: str = "none",
    auxiliary_skip: str = "none",
) -> Step:
    """A first-order step of a search with these parts, as `own_step` without them: it has the same optimizers."""
    second_skip = build_part(AUXILIARY_SKIPS, auxiliary_skip, "")
    net = shape.supernet(native, auxiliary_skip=second_skip.needed)
    x, y = shape.images()
    batch = x.contiguous(memory_format=LAST), y
    weights, alphas = net.weights(), net.alphas()
    adam, sgd = torch.optim.Adam(alphas, **ADAM), torch.optim.SGD(weights, **SGD, fused=True)
    relaxed = build_part(RELAXATIONS, relaxation, "")
    terms = build_parts(REGULARIZERS, regularizer, "").values()
    perturbed = build_part(PERTURBATIONS, perturbation, "")
    generator, progress = torch.Generator().manual_seed(0), torch.tensor(0.5)

    def loss_under(mixing: Mixing, chosen: Chosen | None = None) -> Tensor:
        return F.cross_entropy(net(batch[0], mixing, chosen, skip=second_skip(progress)), batch[1])

    def loss(draw: Draw, *, of_weights: bool) -> Tensor:
        mixing = sampled = sampled_mixing(net, relaxed, progress, draw)
        if of_weights:
            mixing = perturbed(sampled, loss_under, progress, generator)
        one = relaxed.is_one_hot and (of_weights or not relaxed.needs_all_operations)
        chosen = chosen_by(mixing) if one and mixing is sampled else None
        return loss_under(mixing, chosen)

    def step() -> None:
        with frozen(weights):
            draw = draw_noise(net, relaxed, progress, generator)
            value = loss(draw, of_weights=False)
            for term in terms:
                value = value + term(alphas_of(net), expected_mixing(net, relaxed), progress)
            for alpha, gradient in zip(alphas, torch.autograd.grad(value, alphas, materialize_grads=True), strict=True):
                alpha.grad = gradient
        adam.step()
        adam.zero_grad()
        with frozen(alphas):
            value = loss(draw_noise(net, relaxed, progress, generator), of_weights=True)
            apply_weight_step(sgd, weights, value, CLIP, all_decay=relaxed.is_one_hot)

    return step


def passes(shape: Shape, *, own: bool, native: bool = False) -> Step:
    """One forward and one backward pass, with all gradients."""
    x, y = shape.images()
    if own:
        net = shape.supernet(native)
        x = x.contiguous(memory_format=LAST)
        return lambda: torch.autograd.grad(F.cross_entropy(net(x, softmax(net)), y), list(net.parameters()))
    old, alphas = shape.textbook()
    wanted = [*old.parameters(), *alphas]

    def run() -> object:
        logits = old(x, *(textbook.softmax_over_operations(alpha) for alpha in alphas))
        return torch.autograd.grad(F.cross_entropy(logits, y), wanted)

    return run


def training_step(net: nn.Module, batch: tuple[Tensor, Tensor], *, fused: bool) -> Step:
    """Forward and backward pass, clipping and SGD of a network that returns (logits, auxiliary logits or None).

    fused: with PyTorch's fused optimizer.
    """
    x, y = batch
    weights = list(net.parameters())
    sgd = torch.optim.SGD(weights, **SGD, fused=fused)

    def step() -> None:
        sgd.zero_grad()
        logits, auxiliary = net(x)
        loss = F.cross_entropy(logits, y)
        if auxiliary is not None:
            loss = loss + 0.4 * F.cross_entropy(auxiliary, y)
        loss.backward()
        nn.utils.clip_grad_norm_(weights, CLIP)
        sgd.step()

    return step


def derived_networks(name: str, **options: Any) -> tuple[nn.Module, DerivedNetwork]:
    """The network of a genotype with the same weights twice: as the original writes it, and ours in channels_last."""
    torch.manual_seed(0)
    mine = DerivedNetwork(load_genotype(name), **options)
    old = textbook.DerivedNetwork(load_genotype(name).as_dict(), **options)
    copy_tensors(old.parameters(), mine.parameters())
    return old, mine.to(memory_format=LAST)


def retraining_steps(
    name: str, batch: int, channels: int = 36, cells: int = 20, *, native: bool = False
) -> tuple[Step, Step]:
    """The training step of a derived network with its auxiliary head: (as the original writes it, ours)."""
    old, mine = derived_networks(name, network="cifar", channels=channels, cells=cells, num_classes=10, auxiliary=True)
    accelerate(mine, "cpp" if native else "eager")
    x, y = Shape(batch=batch).images()
    return (
        training_step(old, (x, y), fused=False),
        training_step(mine, (x.contiguous(memory_format=LAST), y), fused=True),
    )


def loading(batch: int) -> Step:
    """Make an augmented batch of images of CIFAR-10's size: crop, flip, normalise."""
    images = torch.randint(256, (10_000, 32, 32, 3), dtype=torch.uint8)
    spec = DataSpec("noise", 10, 32, 3, (0.5,) * 3, (0.25,) * 3, tuple("0123456789"))
    batches = TrainBatches(ImageSet(images, torch.arange(10_000) % 10), spec, batch, Augment(), 0, "weights")
    positions = itertools.count()
    return lambda: batches[next(positions)]
