"""The mixing weights of a supernet: its alphas through a relaxation, its edge parameters through a softmax by node."""

from typing import NamedTuple

import torch
from torch import Tensor

from darts_sg.genotype import NUM_INPUTS
from darts_sg.methods.relaxations import Relaxation
from darts_sg.methods.relaxations.softmax import Softmax
from darts_sg.networks.supernet import Mixing, Supernet


class Alphas(NamedTuple):
    """The architecture parameters by name: (num_edges, num_operations), and with edge normalisation (num_edges,)."""

    alpha_normal: Tensor
    alpha_reduce: Tensor
    beta_normal: Tensor | None = None
    beta_reduce: Tensor | None = None


class Draw(NamedTuple):
    """The random numbers of one objective; None where none are needed."""

    normal: Tensor | None = None
    """For the relaxation of the normal cells' alphas."""
    reduce: Tensor | None = None
    paths: Tensor | None = None
    """For drop path, (num_cells, num_edges, images of a whole batch)."""


def alphas_of(supernet: Supernet) -> Alphas:
    return Alphas(supernet.alpha_normal, supernet.alpha_reduce, supernet.beta_normal, supernet.beta_reduce)


def expected_mixing(supernet: Supernet, relaxation: Relaxation) -> Mixing:
    """The mixing weights without noise."""
    normal, reduce = (relaxation.expected(alpha) for alpha in (supernet.alpha_normal, supernet.alpha_reduce))
    return Mixing(normal, reduce, *_edge_weights(supernet))


def softmax(supernet: Supernet) -> Mixing:
    """The mixing weights of DARTS and PC-DARTS."""
    return expected_mixing(supernet, Softmax())


def draw_noise(supernet: Supernet, relaxation: Relaxation, progress: Tensor, generator: torch.Generator) -> Draw:
    """The random numbers of a sample, first those of the normal cells. The generator is on the supernet's device."""
    with torch.no_grad():
        cells = (supernet.alpha_normal, supernet.alpha_reduce)
        return Draw(*(relaxation.draw(alpha.detach(), progress, generator) for alpha in cells))


def sampled_mixing(supernet: Supernet, relaxation: Relaxation, progress: Tensor, draw: Draw) -> Mixing:
    """The mixing weights of a training step, a function of alphas, progress and `draw` alone."""
    cells = ((supernet.alpha_normal, draw.normal), (supernet.alpha_reduce, draw.reduce))
    normal, reduce = (relaxation.sample(alpha, progress, drawn) for alpha, drawn in cells)
    return Mixing(normal, reduce, *_edge_weights(supernet))


def _edge_weights(supernet: Supernet) -> tuple[Tensor | None, Tensor | None]:
    """The same for every relaxation: PC-DARTS, equation 2 of section 3.3."""
    normal, reduce = (
        None if beta is None else softmax_by_node(beta, supernet.num_nodes)
        for beta in (supernet.beta_normal, supernet.beta_reduce)
    )
    return normal, reduce


def softmax_by_node(beta: Tensor, num_nodes: int) -> Tensor:
    """(num_edges,) to (num_edges,): a softmax over the 2 + i edges into node i, for each node."""
    sizes = [NUM_INPUTS + i for i in range(num_nodes)]
    return torch.cat([part.softmax(dim=0) for part in beta.split(sizes)])
