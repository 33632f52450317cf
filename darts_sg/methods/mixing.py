"""The mixing weights of a supernet: its alphas through a relaxation, its edge parameters through a softmax by node."""

from typing import NamedTuple

import torch
from torch import Tensor

from darts_sg.genotype import NUM_INPUTS
from darts_sg.methods.relaxations import Relaxation
from darts_sg.methods.relaxations.softmax import Softmax
from darts_sg.networks.supernet import EdgeChoices, Mixing, Supernet


class Alphas(NamedTuple):
    """The architecture parameters by name: (num_edges, num_operations), and with edge normalisation (num_edges,)."""

    alpha_normal: Tensor
    alpha_reduce: Tensor
    beta_normal: Tensor | None = None
    beta_reduce: Tensor | None = None


class Draw(NamedTuple):
    """The random numbers of one objective; None where none are needed."""

    normal: "Drawn" = None
    """For the relaxation of the normal cells' alphas."""
    reduce: "Drawn" = None
    paths: Tensor | None = None
    """For drop path, (num_cells, num_edges, images of a whole batch)."""


Drawn = Tensor | tuple[Tensor | None, ...] | None
"""For one cell type; a tuple where edges have lists of their own, one entry for each number of operations."""


def alphas_of(supernet: Supernet) -> Alphas:
    return Alphas(supernet.alpha_normal, supernet.alpha_reduce, supernet.beta_normal, supernet.beta_reduce)


def masked_alphas_of(supernet: Supernet) -> Alphas:
    """The alphas as regularizers see them: minus infinity for an operation that an edge does not have."""
    alphas, choices = alphas_of(supernet), supernet.choices
    if choices is None:
        return alphas
    normal, reduce = (each.masked(alpha) for each, alpha in zip(choices, alphas[:2], strict=True))
    return alphas._replace(alpha_normal=normal, alpha_reduce=reduce)


def expected_mixing(supernet: Supernet, relaxation: Relaxation) -> Mixing:
    """The mixing weights without noise."""
    normal, reduce = (
        relaxation.expected(alpha)
        if choices is None
        else choices.whole(list(map(relaxation.expected, choices.compact(alpha))))
        for alpha, choices in _cells(supernet)
    )
    return Mixing(normal, reduce, *_edge_weights(supernet))


def softmax(supernet: Supernet) -> Mixing:
    """The mixing weights of DARTS and PC-DARTS."""
    return expected_mixing(supernet, Softmax())


def draw_noise(supernet: Supernet, relaxation: Relaxation, progress: Tensor, generator: torch.Generator) -> Draw:
    """The random numbers of a sample, first those of the normal cells. The generator is on the supernet's device."""
    with torch.no_grad():

        def draw(alpha: Tensor) -> Tensor | None:
            return relaxation.draw(alpha.detach(), progress, generator)

        normal, reduce = (
            draw(alpha) if choices is None else tuple(map(draw, choices.compact(alpha)))
            for alpha, choices in _cells(supernet)
        )
        return Draw(normal, reduce)


def sampled_mixing(supernet: Supernet, relaxation: Relaxation, progress: Tensor, draw: Draw) -> Mixing:
    """The mixing weights of a training step, a function of alphas, progress and `draw` alone."""
    tables = []
    for (alpha, choices), drawn in zip(_cells(supernet), (draw.normal, draw.reduce), strict=True):
        if choices is None:
            assert not isinstance(drawn, tuple)
            tables.append(relaxation.sample(alpha, progress, drawn))
        else:
            assert isinstance(drawn, tuple)
            pairs = zip(choices.compact(alpha), drawn, strict=True)
            tables.append(choices.whole([relaxation.sample(part, progress, numbers) for part, numbers in pairs]))
    normal, reduce = tables
    return Mixing(normal, reduce, *_edge_weights(supernet))


def restricted(supernet: Supernet, mixing: Mixing) -> Mixing:
    """Mixing weights without those of operations that an edge does not have."""
    if supernet.choices is None:
        return mixing
    normal, reduce = (each.restrict(table) for each, table in zip(supernet.choices, mixing[:2], strict=True))
    return mixing._replace(normal=normal, reduce=reduce)


def _cells(supernet: Supernet) -> list[tuple[Tensor, EdgeChoices | None]]:
    """The alphas of either cell type, with the lists of its edges where they have their own."""
    alphas = (supernet.alpha_normal, supernet.alpha_reduce)
    return list(zip(alphas, supernet.choices or (None, None), strict=True))


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
