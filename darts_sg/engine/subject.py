"""What a retraining trains, as data: the network derived from a genotype, or a model."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from darts_sg.analysis.cost import Cost, derived_cost, model_cost
from darts_sg.config import AugmentConfig
from darts_sg.data import DataSpec
from darts_sg.genotype import Genotype
from darts_sg.networks.derived import DerivedNetwork, NetworkShape
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
    names: dict[str, Any] = field(default_factory=dict)
    """The entries of result.json that say which network it is."""

    def counts(self) -> str:
        """Parameters and MACs in words."""
        more = f" ({self.cost.params_with_auxiliary:,} with the auxiliary head)" if self.has_auxiliary else ""
        return f"{self.cost.params:,} parameters{more}, {self.cost.macs:,} MACs"


def build_network(
    trained: Genotype | Model,
    shape: NetworkShape,
    channels: int | None,
    cells: int | None,
    spec: DataSpec,
    *,
    auxiliary: bool,
) -> Network:
    """The network of a genotype, with so many channels and cells, or of a model, for images of `spec`."""
    images = {"num_classes": spec.num_classes, "in_channels": spec.in_channels}
    if isinstance(trained, Model):
        return MobileNetwork(trained, network=shape, **images)
    assert channels, "a genotype says nothing of the size"
    assert cells, "likewise"
    return DerivedNetwork(trained, network=shape, channels=channels, cells=cells, auxiliary=auxiliary, **images)


def subject_of(trained: Genotype | Model, config: AugmentConfig, spec: DataSpec) -> Subject:
    """The network of a genotype or model as `config` asks for it, for images of `spec`."""
    shape = config.network
    auxiliary = bool(config.auxiliary_weight)

    def build() -> Network:
        return build_network(trained, shape, config.channels, config.cells, spec, auxiliary=auxiliary)

    if isinstance(trained, Model):
        return Subject(
            build,
            model_cost(trained, shape, spec.num_classes, spec.image_size, spec.in_channels),
            has_auxiliary=False,
            described=f"model {trained.name}",
            shape=f"{shape} shape",
            names={"model": trained.name, "network": shape},
        )
    C, cells = config.channels, config.cells
    return Subject(
        build,
        derived_cost(trained, shape, C, cells, spec.num_classes, spec.image_size, spec.in_channels),
        has_auxiliary=True,
        described=f"genotype {trained.name} (space {trained.space})",
        shape=f"{shape} shape, C={C}, {cells} cells",
        names={"genotype": trained.name, "network": shape, "channels": C, "cells": cells},
    )
