"""Exact derivatives of the objective of DARTS (section 2.3), L_val(w − lr · step(w, alpha), alpha)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

PureObjective = Callable[[Sequence[Tensor], Sequence[Tensor], object], Tensor]


def exact_unrolled(
    objective: PureObjective,
    weights: Sequence[Tensor],
    alphas: Sequence[Tensor],
    train_batch: object,
    validation_batch: object,
    *,
    learning_rate: float,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    buffers: Sequence[Tensor] | None = None,
) -> tuple[Tensor, list[Tensor]]:
    """(validation loss at the virtual weights, its total derivatives by the alphas), differentiating twice.

    `objective(weights, alphas, batch)` is pure. The virtual step is that of SGD:
    w − learning_rate · (momentum · buffer + gradient + weight_decay · w).
    """
    w = [t.detach().clone().requires_grad_() for t in weights]
    a = [t.detach().clone().requires_grad_() for t in alphas]
    gradients = torch.autograd.grad(
        objective(w, a, train_batch), w, create_graph=True, allow_unused=True, materialize_grads=True
    )
    buffers = [torch.zeros_like(t) for t in w] if buffers is None else buffers
    stepped = [
        t - learning_rate * (momentum * b + g + weight_decay * t) for t, g, b in zip(w, gradients, buffers, strict=True)
    ]
    loss = objective(stepped, a, validation_batch)
    return loss.detach(), list(torch.autograd.grad(loss, a, allow_unused=True, materialize_grads=True))


@dataclass(frozen=True)
class QuadraticToy:
    """A bilevel problem whose one-step hypergradient is a formula.

    Training loss ½ wᵀPw + wᵀQa, validation loss ½ (w − b)ᵀA(w − b) + cᵀa + ½ |a|², with w (n,) and a (m,).
    The mixed second derivative Q does not depend on w, so central differences of any radius are exact up to
    rounding.
    """

    P: Tensor
    Q: Tensor
    A: Tensor
    b: Tensor
    c: Tensor

    @classmethod
    def random(cls, seed: int, num_weights: int = 7, num_alphas: int = 4) -> "QuadraticToy":
        """A toy with normal entries in float64; P and A are symmetric and positive definite."""
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        P, A = normal(num_weights, num_weights), normal(num_weights, num_weights)
        eye = torch.eye(num_weights, dtype=torch.float64)
        return cls(
            P @ P.T + eye,
            normal(num_weights, num_alphas),
            A @ A.T + eye,
            normal(num_weights),
            normal(num_alphas),
        )

    def training_loss(self, w: Tensor, a: Tensor) -> Tensor:
        return w @ self.P @ w / 2 + w @ self.Q @ a

    def validation_loss(self, w: Tensor, a: Tensor) -> Tensor:
        return (w - self.b) @ self.A @ (w - self.b) / 2 + self.c @ a + a @ a / 2

    def virtual_weights(
        self, w: Tensor, a: Tensor, learning_rate: float, momentum: float, weight_decay: float, buffer: Tensor
    ) -> Tensor:
        """w after one SGD step on the training loss."""
        return w - learning_rate * (momentum * buffer + self.P @ w + self.Q @ a + weight_decay * w)

    def hypergradient(
        self, w: Tensor, a: Tensor, learning_rate: float, momentum: float, weight_decay: float, buffer: Tensor
    ) -> Tensor:
        """c + a − lr · QᵀA(w' − b): the direct part, and the part through the virtual step."""
        stepped = self.virtual_weights(w, a, learning_rate, momentum, weight_decay, buffer)
        return self.c + a - learning_rate * self.Q.T @ self.A @ (stepped - self.b)
