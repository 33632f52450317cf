"""Hypergradients against closed forms and against exact second derivatives, in float64."""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.launches import count
from benchmarks.subjects import Shape, own_step
from darts_sg.methods import hypergradient
from darts_sg.methods.hypergradient import HYPERGRADIENTS, VirtualStep, first_order, unrolled
from darts_sg.methods.mixing import softmax
from darts_sg.networks.supernet import Mixing, Supernet
from tests.reference.bilevel import PureObjective, QuadraticToy, exact_unrolled
from tests.reference.textbook import softmax_over_edges, softmax_over_operations
from tests.reference.transfer import randomize

STEP = {"learning_rate": 0.3, "momentum": 0.9, "weight_decay": 0.05}


class Problem(NamedTuple):
    """One bilevel problem, as the package takes it and as the exact reference does."""

    objective: Callable[[object], tuple[Tensor, Tensor]]
    pure: PureObjective
    weights: Sequence[nn.Parameter]
    alphas: Sequence[nn.Parameter]
    train_batch: object
    validation_batch: object


def quadratic(seed: int) -> tuple[Problem, QuadraticToy]:
    """The toy with its weights in two parameters."""
    toy = QuadraticToy.random(seed)
    w, a = normals(seed + 100, (3,), (4,)), normals(seed + 200, (4,))

    def pure(weights: Sequence[Tensor], alphas: Sequence[Tensor], batch: object) -> Tensor:
        loss = toy.training_loss if batch == "train" else toy.validation_loss
        return loss(torch.cat(list(weights)), *alphas)

    def objective(batch: object) -> tuple[Tensor, Tensor]:
        loss = pure(w, a, batch)
        return loss, loss.reshape(1, 1)

    return Problem(objective, pure, w, a, "train", "validation"), toy


def normals(seed: int, *shapes: tuple[int, ...]) -> list[nn.Parameter]:
    """Normal parameters in float64."""
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(s, generator=generator, dtype=torch.float64)) for s in shapes]


def smooth_net(seed: int) -> Problem:
    """Two gated tanh layers: alphas scale the units, so that second derivatives of all kinds appear."""
    weights = normals(seed, (6, 5), (6,), (3, 6))
    alphas = normals(seed + 1, (6,), (3,))
    batches = [(normals(seed + i, (16, 5))[0].detach(), torch.arange(16) % 3) for i in (2, 3)]

    def logits_of(w: Sequence[Tensor], a: Sequence[Tensor], x: Tensor) -> Tensor:
        hidden = torch.tanh(x @ w[0].T + w[1]) * torch.sigmoid(a[0])
        return hidden @ w[2].T * torch.exp(a[1])

    def pure(w: Sequence[Tensor], a: Sequence[Tensor], batch: object) -> Tensor:
        x, target = batch
        return F.cross_entropy(logits_of(w, a, x), target)

    def objective(batch: object) -> tuple[Tensor, Tensor]:
        return pure(weights, alphas, batch), logits_of(weights, alphas, batch[0])

    return Problem(objective, pure, weights, alphas, *batches)


def tiny_supernet(seed: int) -> Problem:
    """A search network of three cells with partial channels and edge weights, in train mode."""
    net = Supernet(
        ("none", "skip_connect", "sep_conv_3x3", "sandglass_3x3"),
        channels=4,
        cells=3,
        num_nodes=2,
        num_classes=3,
        partial_channels=2,
        edge_normalization=True,
    ).double()
    randomize(net, seed)
    with torch.no_grad():
        for alpha, start in zip(net.alphas(), normals(seed, *[a.shape for a in net.alphas()]), strict=True):
            alpha.copy_(start)
    batches = [(normals(seed + i, (8, 3, 8, 8))[0].detach(), torch.arange(8) % 3) for i in (1, 2)]
    names = {id(p): name for name, p in net.named_parameters()}
    weight_names = [names[id(w)] for w in net.weights()]

    def pure(w: Sequence[Tensor], a: Sequence[Tensor], batch: object) -> Tensor:
        x, target = batch
        mixing = Mixing(*[softmax_over_operations(t) for t in a[:2]], *[softmax_over_edges(t) for t in a[2:]])
        state = dict(zip(weight_names, w, strict=True)) | {k: b.clone() for k, b in net.named_buffers()}
        return F.cross_entropy(torch.func.functional_call(net, state, (x, mixing)), target)

    def objective(batch: object) -> tuple[Tensor, Tensor]:
        x, target = batch
        logits = net(x, softmax(net))
        return F.cross_entropy(logits, target), logits

    return Problem(objective, pure, net.weights(), net.alphas(), *batches)


PROBLEMS = {"quadratic": lambda seed: quadratic(seed)[0], "smooth": smooth_net, "supernet": tiny_supernet}


def buffers_for(problem: Problem) -> list[Tensor]:
    """Momentum buffers that differ from zero."""
    return [b.detach() / 4 for b in normals(7, *[w.shape for w in problem.weights])]


def run(method: Callable, problem: Problem, **step: float) -> tuple[Tensor, Tensor]:
    """(validation loss, the alphas' gradient as one vector) by one of the package's hypergradients."""
    virtual = VirtualStep(**(STEP | step), buffers=buffers_for(problem))
    result = method(
        problem.objective,
        problem.weights,
        problem.alphas,
        problem.train_batch,
        problem.validation_batch,
        virtual,
    )
    assert [g.shape for g in result.gradients] == [a.shape for a in problem.alphas]
    return result.loss, flat(result.gradients)


def flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([t.detach().flatten() for t in tensors])


def exact(problem: Problem, **step: float) -> tuple[Tensor, Tensor]:
    """The same by differentiating twice."""
    loss, gradients = exact_unrolled(
        problem.pure,
        problem.weights,
        problem.alphas,
        problem.train_batch,
        problem.validation_batch,
        **(STEP | step),
        buffers=buffers_for(problem),
    )
    return loss, flat(gradients)


def parts(problem: Problem) -> tuple[Tensor, Tensor, float]:
    """(direct part, exact second-order part, epsilon of the finite difference) of the hypergradient."""
    w = [p.detach().clone().requires_grad_() for p in problem.weights]
    training = torch.autograd.grad(problem.pure(w, problem.alphas, problem.train_batch), w)
    stepped = [
        (p - STEP["learning_rate"] * (STEP["momentum"] * b + g + STEP["weight_decay"] * p)).detach().requires_grad_()
        for p, g, b in zip(w, training, buffers_for(problem), strict=True)
    ]
    loss = problem.pure(stepped, problem.alphas, problem.validation_batch)
    gradients = torch.autograd.grad(loss, [*stepped, *problem.alphas])
    direct = flat(gradients[len(stepped) :])
    epsilon = hypergradient.RADIUS / float(flat(gradients[: len(stepped)]).norm())
    return direct, exact(problem)[1] - direct, epsilon


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).norm() / expected.norm())


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("momentum", "weight_decay"), [(0.0, 0.0), (0.9, 0.0), (0.9, 0.1)])
def test_unrolled_is_the_closed_form_on_the_quadratic_toy(seed: int, momentum: float, weight_decay: float) -> None:
    problem, toy = quadratic(seed)
    w, a, buffer = flat(problem.weights), flat(problem.alphas), flat(buffers_for(problem))
    step = (0.2, momentum, weight_decay, buffer)
    loss, gradient = run(unrolled, problem, learning_rate=0.2, momentum=momentum, weight_decay=weight_decay)
    assert relative_error(gradient, toy.hypergradient(w, a, *step)) < 1e-8
    torch.testing.assert_close(loss, toy.validation_loss(toy.virtual_weights(w, a, *step), a))


@pytest.mark.parametrize("seed", range(3))
def test_the_exact_reference_is_the_closed_form_too(seed: int) -> None:
    problem, toy = quadratic(seed)
    w, a, buffer = flat(problem.weights), flat(problem.alphas), flat(buffers_for(problem))
    expected = toy.hypergradient(w, a, *STEP.values(), buffer)
    torch.testing.assert_close(exact(problem)[1], expected)


@pytest.mark.parametrize("seed", [1, 11, 13])
@pytest.mark.parametrize(
    ("name", "radius", "tolerance"),
    [("quadratic", 0.01, 1e-8), ("smooth", 0.01, 1e-3), ("supernet", 1e-7, 1e-6)],
)
def test_unrolled_agrees_with_exact_second_derivatives(
    monkeypatch: pytest.MonkeyPatch, name: str, radius: float, tolerance: float, seed: int
) -> None:
    """And a second-order part times epsilon², of the other sign, twice as large or missing would be noticed.

    The supernet takes a smaller radius than the paper's: within 0.01 some activations of a network this small
    cross the kink of their ReLU, and what they contribute to the difference is no part of the derivative.
    """
    assert hypergradient.RADIUS == 0.01
    monkeypatch.setattr(hypergradient, "RADIUS", radius)
    problem = PROBLEMS[name](seed)
    direct, second, epsilon = parts(problem)
    loss, gradient = run(unrolled, problem)
    torch.testing.assert_close(loss, exact(problem)[0])
    assert relative_error(gradient - direct, second) < tolerance
    for factor in (epsilon**2, -1.0, 2.0, 0.0):
        assert relative_error(factor * second, second) > 100 * tolerance


@pytest.mark.parametrize("name", PROBLEMS)
def test_first_order_is_the_plain_gradient(name: str) -> None:
    problem = PROBLEMS[name](1)
    loss, gradient = run(first_order, problem)
    expected = problem.pure(problem.weights, problem.alphas, problem.validation_batch)
    torch.testing.assert_close(loss, expected.detach())
    torch.testing.assert_close(gradient, flat(torch.autograd.grad(expected, problem.alphas)))


def test_unrolled_with_a_learning_rate_of_zero_is_first_order() -> None:
    problem = smooth_net(1)
    torch.testing.assert_close(run(unrolled, problem, learning_rate=0.0)[1], run(first_order, problem)[1])


class NoReadsByTheCpu(TorchDispatchMode):
    """Forbids what a captured CUDA graph must not do: read a value of a tensor back."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert function is not torch.ops.aten._local_scalar_dense.default
        return function(*args, **(kwargs or {}))


def test_a_learning_rate_on_the_device_gives_the_same_and_is_not_read_back() -> None:
    problem = smooth_net(1)
    expected = run(unrolled, problem)
    rate = torch.tensor(STEP["learning_rate"], dtype=torch.float64)
    with NoReadsByTheCpu():
        actual = run(unrolled, problem, learning_rate=rate)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("absent", [[0, 1, 2], [1]])
def test_a_buffer_that_is_not_there_yet_counts_as_zero(absent: list[int]) -> None:
    problem = smooth_net(1)
    held = buffers_for(problem)
    zeros = [torch.zeros_like(b) if i in absent else b for i, b in enumerate(held)]
    missing = None if len(absent) == 3 else [None if i in absent else b for i, b in enumerate(held)]
    batches = problem.train_batch, problem.validation_batch
    actual, expected = (
        unrolled(problem.objective, problem.weights, problem.alphas, *batches, VirtualStep(**STEP, buffers=b))
        for b in (missing, zeros)
    )
    assert torch.equal(flat(actual.gradients), flat(expected.gradients))


@pytest.mark.parametrize("problem_name", PROBLEMS)
@pytest.mark.parametrize("name", HYPERGRADIENTS)
def test_every_hypergradient_leaves_all_parameters_as_they_were(name: str, problem_name: str) -> None:
    problem = PROBLEMS[problem_name](1)
    before = [p.detach().clone() for p in (*problem.weights, *problem.alphas)]
    virtual = VirtualStep(**STEP, buffers=buffers_for(problem))
    held = [b.clone() for b in virtual.buffers]
    batches = problem.train_batch, problem.validation_batch
    result = HYPERGRADIENTS[name](problem.objective, problem.weights, problem.alphas, *batches, virtual)
    for parameter, value in zip((*problem.weights, *problem.alphas), before, strict=True):
        assert torch.equal(parameter, value)
        assert parameter.grad is None
        assert parameter.requires_grad
    assert all(torch.equal(a, b) for a, b in zip(virtual.buffers, held, strict=True))
    assert not any(t.requires_grad for t in (result.loss, result.outputs, *result.gradients))
    again = HYPERGRADIENTS[name](problem.objective, problem.weights, problem.alphas, *batches, virtual)
    assert torch.equal(flat(result.gradients), flat(again.gradients))


@pytest.mark.parametrize("name", HYPERGRADIENTS)
def test_every_hypergradient_restores_the_weights_when_the_objective_fails(name: str) -> None:
    """Out of memory in the middle of a step, say: the caller may save a checkpoint and leave."""
    problem = smooth_net(1)
    before = flat(problem.weights)
    for survived in range(5):
        calls = 0

        def failing(batch: object, survived: int = survived) -> tuple[Tensor, Tensor]:
            nonlocal calls
            calls += 1
            if calls > survived:
                raise RuntimeError("out of memory")
            return problem.objective(batch)

        virtual = VirtualStep(**STEP, buffers=buffers_for(problem))
        batches = problem.train_batch, problem.validation_batch
        with contextlib.suppress(RuntimeError):
            HYPERGRADIENTS[name](failing, problem.weights, problem.alphas, *batches, virtual)
        assert calls > 0
        assert torch.equal(flat(problem.weights), before)
        assert all(p.requires_grad for p in (*problem.weights, *problem.alphas))


def test_the_second_order_launches_no_operator_for_each_weight() -> None:
    """Of five passes instead of two it has five halves of the launches, and few of its own."""
    shape = Shape(batch=2, channels=4, size=8, cells=3)
    first, second = (
        sum(count(own_step(shape, native=False, second_order=unrolled)).values()) for unrolled in (False, True)
    )
    assert len(shape.supernet(native=False).weights()) > 100
    assert second < 2.5 * first + 100
