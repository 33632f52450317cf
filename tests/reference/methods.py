"""Search methods written out from their formulas: a plain training loop over the textbook supernet, in float64."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.reference import textbook

Sampler = Callable[[Tensor, float, torch.Generator], Tensor]
"""Alphas (num_edges, num_operations), progress and random numbers to mixing weights."""


def exponential(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.empty_like(like, requires_grad=False).exponential_(generator=generator)


def softmax(alpha: Tensor, progress: float, generator: torch.Generator) -> Tensor:
    return textbook.softmax_over_operations(alpha)


def sigmoid(alpha: Tensor, progress: float, generator: torch.Generator) -> Tensor:
    """FairDARTS, section 4.1."""
    return 1 / (1 + torch.exp(-alpha))


def dirichlet(alpha: Tensor, progress: float, generator: torch.Generator) -> Tensor:
    """DrNAS, section 3.2, by PyTorch's own distribution, which draws from the default generator."""
    before = torch.get_rng_state()
    torch.set_rng_state(generator.get_state())
    sample = torch.distributions.Dirichlet(torch.where(alpha > 0, alpha + 1, torch.exp(alpha))).rsample()
    generator.set_state(torch.get_rng_state())
    torch.set_rng_state(before)
    return sample


def gumbel(start: float, end: float) -> Sampler:
    """SNAS, equation 4."""

    def sample(alpha: Tensor, progress: float, generator: torch.Generator) -> Tensor:
        noise = -torch.log(exponential(alpha, generator))
        return textbook.softmax_over_operations((alpha + noise) / (start + (end - start) * progress))

    return sample


def rounded(soft: Tensor, chosen: Tensor, *, only_chosen: bool) -> Tensor:
    """Straight-through: `chosen` (one-hot) with the gradient of `soft`, or with that of its chosen entries alone."""
    through = chosen + soft - soft.detach()
    return through * chosen if only_chosen else through


def hard_gumbel(start: float, end: float, *, only_chosen: bool) -> Sampler:
    """GDAS, equations 6 and 7."""
    soft_of = gumbel(start, end)

    def sample(alpha: Tensor, progress: float, generator: torch.Generator) -> Tensor:
        soft = soft_of(alpha, progress, generator)
        return rounded(soft, F.one_hot(soft.argmax(dim=1), soft.shape[1]).double(), only_chosen=only_chosen)

    return sample


def reinmax(temperature: float, *, only_chosen: bool) -> Sampler:
    """ReinMax, algorithm 2."""

    def sample(alpha: Tensor, progress: float, generator: torch.Generator) -> Tensor:
        scores = alpha.detach() - torch.log(exponential(alpha, generator))
        chosen = F.one_hot(scores.argmax(dim=1), alpha.shape[1]).double()
        p0 = textbook.softmax_over_operations(alpha)
        p1 = (chosen + textbook.softmax_over_operations(alpha.detach() / temperature)) / 2
        p1 = textbook.softmax_over_operations(torch.log(p1) - alpha.detach() + alpha)
        return rounded(2 * p1 - p0 / 2, chosen, only_chosen=only_chosen)

    return sample


def nothing(alphas: Sequence[Tensor], progress: float) -> Tensor:
    return torch.zeros((), dtype=torch.float64)


def beta_decay(end: float) -> Callable[[Sequence[Tensor], float], Tensor]:
    """β-DARTS, equation 9 with a linear weight."""

    def term(alphas: Sequence[Tensor], progress: float) -> Tensor:
        rows = torch.cat(list(alphas[:2]))
        return end * progress * torch.log(torch.exp(rows).sum(dim=1)).mean()

    return term


def zero_one(alphas: Sequence[Tensor], progress: float) -> Tensor:
    """FairDARTS, L_0-1 with weight 10."""
    return -10 * torch.cat([(1 / (1 + torch.exp(-alpha)) - 0.5) ** 2 for alpha in alphas[:2]]).mean()


def divergence(alphas: Sequence[Tensor], progress: float) -> Tensor:
    """DrNAS, section 3.3: 1e-3 · KL(q ‖ Dir(1))."""
    parameters = torch.cat([torch.where(alpha > 0, alpha + 1, torch.exp(alpha)) for alpha in alphas[:2]])
    ones = torch.distributions.Dirichlet(torch.ones_like(parameters))
    return 1e-3 * torch.distributions.kl_divergence(torch.distributions.Dirichlet(parameters), ones).sum()


def clipped(moved: Tensor) -> Tensor:
    """Mixing weights as distributions again (SDARTS)."""
    moved = moved.clamp(0, 1)
    return moved / moved.sum(dim=1, keepdim=True)


@dataclass
class Loop:
    """A search over the textbook supernet: alphas by Adam, weights by clipped SGD, in turns or together."""

    net: textbook.Supernet
    alphas: list[Tensor]
    """Two of (num_edges, num_operations), then with edge normalisation two of (num_edges,)."""
    sample: Sampler
    options: dict[str, Any]
    term: Callable[[Sequence[Tensor], float], Tensor] = nothing
    perturbation: str = ""
    attack_steps: int = 7
    together: bool = False
    losses: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        o = self.options
        self.weights = list(self.net.parameters())
        self.adam = torch.optim.Adam(
            self.alphas, o["alpha_learning_rate"], (o["alpha_beta1"], 0.999), weight_decay=o["alpha_weight_decay"]
        )
        self.sgd = torch.optim.SGD(
            self.weights, o["learning_rate"], momentum=0.9, weight_decay=o["weight_decay"], nesterov=o["nesterov"]
        )

    def loss(self, batch: tuple[Tensor, Tensor], mixing: Sequence[Tensor]) -> Tensor:
        edges = [textbook.softmax_over_edges(beta) for beta in self.alphas[2:]]
        return F.cross_entropy(self.net(batch[0].double(), *mixing, *edges), batch[1])

    def step(self, train: Any, validation: Any, progress: float, rate: float, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.sgd.param_groups[0]["lr"] = rate
        if self.together:
            loss = self.loss(train, self._mixing(progress, generator))
            gradients = torch.autograd.grad(loss, [*self.weights, *self.alphas], materialize_grads=True)
            self._descend_weights(gradients[: len(self.weights)])
            self._descend_alphas(gradients[len(self.weights) :], progress)
        else:
            loss = self.loss(validation, self._mixing(progress, generator))
            self._descend_alphas(torch.autograd.grad(loss, self.alphas, materialize_grads=True), progress)
            mixing = [weights.detach() for weights in self._mixing(progress, generator)]
            loss = self.loss(train, self._perturbed(train, mixing, progress, generator))
            self._descend_weights(torch.autograd.grad(loss, self.weights, materialize_grads=True))
        self.losses.append(loss.item())

    def _mixing(self, progress: float, generator: torch.Generator) -> list[Tensor]:
        return [self.sample(alpha, progress, generator) for alpha in self.alphas[:2]]

    def _descend_alphas(self, gradients: Sequence[Tensor], progress: float) -> None:
        more = torch.autograd.grad(self.term(self.alphas, progress), self.alphas, materialize_grads=True) if (
            self.term is not nothing
        ) else [torch.zeros_like(alpha) for alpha in self.alphas]  # fmt: skip
        for alpha, one, two in zip(self.alphas, gradients, more, strict=True):
            alpha.grad = one + two
        if math.isfinite(self.options["alpha_gradient_clip"]):
            nn.utils.clip_grad_norm_(self.alphas, self.options["alpha_gradient_clip"])
        self.adam.step()

    def _descend_weights(self, gradients: Sequence[Tensor]) -> None:
        norm = math.sqrt(sum(float((g**2).sum()) for g in gradients))
        for weight, gradient in zip(self.weights, gradients, strict=True):
            weight.grad = gradient * min(1.0, self.options["gradient_clip"] / (norm + 1e-6))
        self.sgd.step()

    def _perturbed(self, batch: Any, mixing: list[Tensor], progress: float, generator: torch.Generator) -> list[Tensor]:
        """SDARTS-RS and SDARTS-ADV, epsilon from 0.03 to 0.3."""
        epsilon = 0.03 + 0.27 * progress
        if not self.perturbation:
            return mixing
        moved = [clipped(w + epsilon * torch.empty_like(w).uniform_(-1, 1, generator=generator)) for w in mixing]
        if self.perturbation == "random":
            return moved
        self.net.eval()
        for _ in range(self.attack_steps):
            moved = [w.requires_grad_() for w in moved]
            gradients = torch.autograd.grad(self.loss(batch, moved), moved)
            moved = [
                w.detach() + 2 * epsilon / self.attack_steps * g.sign() for w, g in zip(moved, gradients, strict=True)
            ]
            moved = [clipped(w + (m - w).clamp(-epsilon, epsilon)) for m, w in zip(moved, mixing, strict=True)]
        rose = self.loss(batch, moved) > self.loss(batch, mixing)
        self.net.train()
        return moved if rose else mixing
