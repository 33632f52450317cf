"""What a retraining trains, as data: the network derived from a genotype, or a model."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from darts_sg.analysis.cost import Cost, derived_cost, mobile_verdict, model_cost
from darts_sg.config import AugmentConfig
from darts_sg.data import DataSpec
from darts_sg.genotype import Genotype
from darts_sg.networks.derived import DerivedNetwork
from darts_sg.networks.mobile import MobileNetwork, Model

Network = DerivedNetwork | MobileNetwork


@dataclass(frozen=True)
class Subject:
    """A network to train. Its `forward` gives (logits, auxiliary logits or None)."""

    build: Callable[[], Network]
    cost: Cost
    has_auxiliary: bool
    """Whether there is an auxiliary head to count."""
    described: str
    shape: str
    mobile: str
    """Whether it keeps to the mobile limit, if that is of its shape."""
    names: dict[str, Any] = field(default_factory=dict)
    """The entries of result.json that say which network it is."""

    def counts(self) -> str:
        """Parameters and MACs in words."""
        more = f" ({self.cost.params_with_auxiliary:,} with the auxiliary head)" if self.has_auxiliary else ""
        return ", ".join(
            filter(None, (f"{self.cost.params:,} parameters{more}", f"{self.cost.macs:,} MACs", self.mobile))
        )


def subject_of(trained: Genotype | Model, config: AugmentConfig, spec: DataSpec) -> Subject:
    """The network of a genotype or model as `config` asks for it, for images of `spec`."""
    shape = config.network
    if isinstance(trained, Model):
        cost = model_cost(trained, shape, spec.num_classes, spec.image_size, spec.in_channels)
        return Subject(
            lambda: MobileNetwork(trained, network=shape, num_classes=spec.num_classes, in_channels=spec.in_channels),
            cost,
            has_auxiliary=False,
            described=f"model {trained.name}",
            shape=f"{shape} shape",
            mobile=mobile_verdict(shape, cost.macs),
            names={"model": trained.name, "network": shape},
        )
    C, cells, auxiliary = config.channels, config.cells, bool(config.auxiliary_weight)
    assert C, "the config fills it in"
    assert cells, "likewise"
    cost = derived_cost(trained, shape, C, cells, spec.num_classes, spec.image_size, spec.in_channels)
    return Subject(
        lambda: DerivedNetwork(
            trained,
            network=shape,
            channels=C,
            cells=cells,
            num_classes=spec.num_classes,
            in_channels=spec.in_channels,
            auxiliary=auxiliary,
        ),
        cost,
        has_auxiliary=True,
        described=f"genotype {trained.name} (space {trained.space})",
        shape=f"{shape} shape, C={C}, {cells} cells",
        mobile=mobile_verdict(shape, cost.macs),
        names={"genotype": trained.name, "network": shape, "channels": C, "cells": cells},
    )
