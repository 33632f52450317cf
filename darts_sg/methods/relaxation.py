"""How alphas become mixing weights."""

from collections.abc import Callable

import torch
from torch import Tensor

from darts_sg.genotype import NUM_INPUTS
from darts_sg.networks.supernet import Mixing, Supernet
from darts_sg.registry import Registry

Relaxation = Callable[[Supernet], Mixing]
RELAXATIONS: Registry[Relaxation] = Registry("relaxation")


def softmax(supernet: Supernet) -> Mixing:
    """Softmax over the operations of each edge (DARTS paper, equation 2).

    With edge normalisation, also a softmax over the edges into each node (PC-DARTS, equation 2 of section 3.3).
    """
    return Mixing(
        supernet.alpha_normal.softmax(dim=-1),
        supernet.alpha_reduce.softmax(dim=-1),
        None if supernet.beta_normal is None else softmax_by_node(supernet.beta_normal, supernet.num_nodes),
        None if supernet.beta_reduce is None else softmax_by_node(supernet.beta_reduce, supernet.num_nodes),
    )


def softmax_by_node(beta: Tensor, num_nodes: int) -> Tensor:
    """(num_edges,) to (num_edges,): a softmax over the 2 + i edges into node i, for each node."""
    sizes = [NUM_INPUTS + i for i in range(num_nodes)]
    return torch.cat([part.softmax(dim=0) for part in beta.split(sizes)])


RELAXATIONS.add("softmax", softmax)
