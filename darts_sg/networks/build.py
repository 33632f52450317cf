"""The network of a genotype or of a model, in a size and shape that is given as data."""

from dataclasses import dataclass, replace
from typing import Any

from darts_sg.genotype import Genotype
from darts_sg.networks.derived import DerivedNetwork, NetworkShape
from darts_sg.networks.mobile import MobileNetwork, Model

AUXILIARY = "auxiliary_head"
"""Name of the auxiliary head in a derived network. It is trained and saved, but no part of the network in use."""


def is_auxiliary(name: str) -> bool:
    """Whether a tensor or module with this name belongs to the auxiliary head, in a network or in a part of one."""
    return AUXILIARY in name.split(".")


@dataclass(frozen=True, kw_only=True)
class NetworkPlan:
    """All that decides which network is built, except for its outputs, which are the task's."""

    trained: Genotype | Model
    shape: NetworkShape
    channels: int | None = None
    """C of the first cells; None for a model."""
    cells: int | None = None
    """Number of cells; None for a model."""
    auxiliary: bool = False
    """Whether a network of cells gets an auxiliary head."""


def build_network(plan: NetworkPlan, num_outputs: int, in_channels: int) -> DerivedNetwork | MobileNetwork:
    """The network of a plan: images (N, in_channels, H, W) to (N, num_outputs), and the auxiliary outputs or None."""
    return _built(plan, num_outputs, in_channels)


def build_backbone(plan: NetworkPlan, in_channels: int) -> DerivedNetwork | MobileNetwork:
    """The network of a plan without classifier and auxiliary head; see its method `maps`."""
    return _built(replace(plan, auxiliary=False), None, in_channels)


def _built(plan: NetworkPlan, num_outputs: int | None, in_channels: int) -> DerivedNetwork | MobileNetwork:
    sizes: Any = {"num_classes": num_outputs, "in_channels": in_channels}
    if isinstance(plan.trained, Model):
        return MobileNetwork(plan.trained, network=plan.shape, **sizes)
    assert plan.channels, "a genotype does not say how wide its network is"
    assert plan.cells, "a genotype does not say how deep its network is"
    return DerivedNetwork(
        plan.trained,
        network=plan.shape,
        channels=plan.channels,
        cells=plan.cells,
        auxiliary=plan.auxiliary,
        **sizes,
    )
