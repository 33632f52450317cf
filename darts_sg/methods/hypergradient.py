"""The gradient of the validation loss with respect to the alphas (DARTS paper, section 2.3).

Written over plain lists of tensors and an objective, so that the same code serves the supernet and a toy problem
whose answer is known.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from darts_sg.registry import Registry

Batch = Any
Objective = Callable[[Batch], tuple[Tensor, Tensor]]
"""Loss and outputs of a batch under the current weights and alphas. Deterministic: all passes see the same noise."""
Mean = Callable[[Sequence[Tensor], Batch], Sequence[Tensor]]
"""Gradients over the whole batch, from those over this process's share of it."""

RADIUS = 0.01  # of the finite difference, divided by the norm of the direction (DARTS paper, footnote 2)


class VirtualStep(NamedTuple):
    """The SGD step that the unrolled hypergradient looks through: w' = w - ξ · (μ · buffer + ∇w L_train + λ · w)."""

    learning_rate: float | Tensor
    """On a GPU a scalar tensor, so that a captured CUDA graph sees it change."""
    momentum: float = 0.0
    weight_decay: float = 0.0
    buffers: Sequence[Tensor | None] | None = None
    """Momentum buffers of the weights, None where there is none yet."""


class Hypergradient(NamedTuple):
    """Validation loss and outputs (of this process's share), detached, and the gradient for each of the alphas."""

    loss: Tensor
    outputs: Tensor
    gradients: list[Tensor]
    weight_gradients: list[Tensor] | None = None
    """Gradients of the validation loss in the current weights; None unless the method computes them."""


def of_one_process(gradients: Sequence[Tensor], batch: Batch) -> Sequence[Tensor]:
    """The `Mean` of a single process, which has the whole batch."""
    return gradients


class HypergradientMethod(Protocol):
    """A way to compute the gradient of the alphas."""

    def __call__(
        self,
        objective: Objective,
        weights: Sequence[Tensor],
        alphas: Sequence[Tensor],
        train_batch: Batch,
        validation_batch: Batch,
        virtual: VirtualStep,
        mean: Mean = of_one_process,
    ) -> Hypergradient: ...


HYPERGRADIENTS: Registry[HypergradientMethod] = Registry("hypergradient")


@contextmanager
def frozen(tensors: Sequence[Tensor]) -> Iterator[None]:
    """Context in which `tensors` need no gradient, so that nothing is computed or kept for one."""
    before = [t.requires_grad for t in tensors]
    try:
        for t in tensors:
            t.requires_grad_(False)
        yield
    finally:
        for t, required in zip(tensors, before, strict=True):
            t.requires_grad_(required)


def first_order(
    objective: Objective,
    weights: Sequence[Tensor],
    alphas: Sequence[Tensor],
    train_batch: Batch,
    validation_batch: Batch,
    virtual: VirtualStep,
    mean: Mean = of_one_process,
) -> Hypergradient:
    """∇α L_val(w, α): takes the current weights for the optimal ones (ξ = 0)."""
    with frozen(weights):
        loss, outputs = objective(validation_batch)
        found = torch.autograd.grad(loss, list(alphas), materialize_grads=True)
        gradients = mean(found, validation_batch)
    return Hypergradient(loss.detach(), outputs.detach(), list(gradients))


def first_order_with_weights(
    objective: Objective,
    weights: Sequence[Tensor],
    alphas: Sequence[Tensor],
    train_batch: Batch,
    validation_batch: Batch,
    virtual: VirtualStep,
    mean: Mean = of_one_process,
) -> Hypergradient:
    """∇α L_val(w, α), and ∇w L_val(w, α) from the same pass."""
    loss, outputs = objective(validation_batch)
    wanted = [*alphas, *weights]
    gradients = list(mean(torch.autograd.grad(loss, wanted, materialize_grads=True), validation_batch))
    num_alphas = len(alphas)
    return Hypergradient(loss.detach(), outputs.detach(), gradients[:num_alphas], gradients[num_alphas:])


def single_level(
    objective: Objective,
    weights: Sequence[Tensor],
    alphas: Sequence[Tensor],
    train_batch: Batch,
    validation_batch: Batch,
    virtual: VirtualStep,
    mean: Mean = of_one_process,
) -> Hypergradient:
    """∇α L_train(w, α): weights and alphas minimise one loss on the same images (SNAS, Xie et al., ICLR 2019).

    A search takes this gradient and that of the weights from one pass; this function is the same by itself.
    """
    return first_order(objective, weights, alphas, train_batch, train_batch, virtual, mean)


def unrolled(
    objective: Objective,
    weights: Sequence[Tensor],
    alphas: Sequence[Tensor],
    train_batch: Batch,
    validation_batch: Batch,
    virtual: VirtualStep,
    mean: Mean = of_one_process,
) -> Hypergradient:
    """∇α L_val(w', α) - ξ · (∇α L_train(w⁺, α) - ∇α L_train(w⁻, α)) / (2ε) (DARTS paper, equations 7 and 8).

    w' is the virtual step, w± = w ± ε · ∇w' L_val(w', α), ε = 0.01 / ‖∇w' L_val‖. Moves the weights in place and
    restores them to the bit, also if the objective raises.
    """
    weights, alphas = list(weights), list(alphas)
    kept = [torch.empty_like(w) for w in weights]
    with torch.no_grad():
        torch._foreach_copy_(kept, weights)
    buffers = virtual.buffers or [None] * len(weights)
    try:
        # w' = w - ξ · (μ · buffer + ∇w L_train + λ · w)
        with frozen(alphas):
            found = torch.autograd.grad(objective(train_batch)[0], weights, materialize_grads=True)
            train_gradients = mean(found, train_batch)
        with torch.no_grad():
            steps = torch._foreach_add(list(train_gradients), weights, alpha=virtual.weight_decay)
            moving = [(step, buffer) for step, buffer in zip(steps, buffers, strict=True) if buffer is not None]
            if moving:
                torch._foreach_add_(*map(list, zip(*moving, strict=True)), alpha=virtual.momentum)
            if isinstance(virtual.learning_rate, Tensor):
                torch._foreach_mul_(steps, virtual.learning_rate)
                torch._foreach_sub_(weights, steps)
            else:
                torch._foreach_sub_(weights, steps, alpha=virtual.learning_rate)
        loss, outputs = objective(validation_batch)
        gradients = mean(torch.autograd.grad(loss, [*alphas, *weights], materialize_grads=True), validation_batch)
        direct, direction = gradients[: len(alphas)], gradients[len(alphas) :]

        # ∇α L_train at w + ε · direction and at w - ε · direction
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(list(direction))))
        eps = RADIUS / norm.clamp_min(torch.finfo(norm.dtype).tiny)
        offsets = torch._foreach_mul(list(direction), eps)
        sides = []
        for sign in (1.0, -1.0):
            with torch.no_grad():
                torch._foreach_copy_(weights, kept)
                torch._foreach_add_(weights, offsets, alpha=sign)
            with frozen(weights):
                found = torch.autograd.grad(objective(train_batch)[0], alphas, materialize_grads=True)
                sides.append(mean(found, train_batch))
    finally:
        with torch.no_grad():
            torch._foreach_copy_(weights, kept)
    implicit = [(plus - minus).div_(2.0 * eps) for plus, minus in zip(*sides, strict=True)]
    if isinstance(virtual.learning_rate, Tensor):
        total = [g.sub(i * virtual.learning_rate) for g, i in zip(direct, implicit, strict=True)]
    else:
        total = [g.sub(i, alpha=virtual.learning_rate) for g, i in zip(direct, implicit, strict=True)]
    return Hypergradient(loss.detach(), outputs.detach(), total)


HYPERGRADIENTS.add("first_order", first_order)
HYPERGRADIENTS.add("unrolled", unrolled)
HYPERGRADIENTS.add("single_level", single_level)
