"""The regularizer of DrNAS."""

from dataclasses import dataclass

import torch
from torch import Tensor

from darts_sg.errors import UsageError
from darts_sg.methods.mixing import Alphas
from darts_sg.methods.regularizers import REGULARIZERS, Problem, Regularizer, refuse_edge_lists
from darts_sg.methods.relaxations import Relaxation
from darts_sg.methods.relaxations.dirichlet import Dirichlet, concentration
from darts_sg.networks.supernet import Mixing


@dataclass(frozen=True)
class KullbackLeibler(Regularizer):
    """The divergence of the Dirichlet distributions of all edges from the uniform one, Dir(1) (DrNAS).

    Chen et al., "DrNAS: Dirichlet Neural Architecture Search", ICLR 2021, section 3.3. KL(Dir(a) ‖ Dir(1)) is
    lnΓ(Σa) - Σ lnΓ(a) - lnΓ(K) + Σ (a - 1) (ψ(a) - ψ(Σa)) for an edge with K operations; edges are independent, so
    that theirs add up.
    """

    weight: float = 1e-3

    def __post_init__(self) -> None:
        if not self.weight >= 0:
            raise UsageError(f"weight must be at least 0, found {self.weight}")

    def prepare(self, problem: Problem) -> "KullbackLeibler":
        refuse_edge_lists(problem)
        return self

    def refuse(self, relaxation: Relaxation) -> None:
        if not isinstance(relaxation, Dirichlet):
            raise UsageError(
                "kl measures Dirichlet distributions, which no other relaxation has; add --relaxation dirichlet"
            )

    def __call__(self, alphas: Alphas, mixing: Mixing, progress: Tensor) -> Tensor:
        a = concentration(torch.cat([alphas.alpha_normal, alphas.alpha_reduce]))  # (2 · num_edges, K)
        total = a.sum(dim=-1)
        uniform = torch.full_like(total, a.shape[-1])
        normaliser = total.lgamma() - a.lgamma().sum(dim=-1) - uniform.lgamma()
        moments = ((a - 1) * (a.digamma() - total.digamma()[:, None])).sum(dim=-1)
        return self.weight * (normaliser + moments).sum()


REGULARIZERS.add("kl", KullbackLeibler)
