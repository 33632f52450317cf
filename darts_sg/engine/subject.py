"""What a retraining trains, as data: the network derived from a genotype, or a model."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from darts_sg.analysis.cost import Cost, derived_cost, mobile_verdict, model_cost
from darts_sg.config import AugmentConfig
from darts_sg.data import DataSpec
from darts_sg.errors import UsageError
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


def with_channels(config: AugmentConfig, trained: Genotype | Model, spec: DataSpec) -> AugmentConfig:
    """`config` with a number of channels where it has a bound: the largest even one that keeps to it, which is printed.

    Raises UsageError if none does.
    """
    bound = config.max_macs()
    if bound is None or isinstance(trained, Model):
        return config

    @functools.cache
    def macs(C: int) -> int:
        size = spec.num_classes, spec.image_size, spec.in_channels
        return derived_cost(trained, config.network, C, config.cells, *size).macs

    low, high = 0, 2
    while macs(high) <= bound:
        low, high = high, 2 * high
    while high - low > 2:
        middle = (low + high) // 4 * 2
        low, high = (middle, high) if macs(middle) <= bound else (low, middle)
    if not low:
        raise UsageError(f"--channels {config.channels}: a network of 2 channels has {macs(2):,} MACs; ask for more")
    print(f"--channels {config.channels}: C={low} with {macs(low):,} MACs (C={high} has {macs(high):,})")
    return replace(config, channels=low)


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
        return build_network(trained, shape, config.num_channels, config.cells, spec, auxiliary=auxiliary)

    if isinstance(trained, Model):
        cost = model_cost(trained, shape, spec.num_classes, spec.image_size, spec.in_channels)
        return Subject(
            build,
            cost,
            has_auxiliary=False,
            described=f"model {trained.name}",
            shape=f"{shape} shape",
            mobile=mobile_verdict(shape, cost.macs),
            names={"model": trained.name, "network": shape},
        )
    C, cells = config.num_channels, config.cells
    cost = derived_cost(trained, shape, C, cells, spec.num_classes, spec.image_size, spec.in_channels)
    return Subject(
        build,
        cost,
        has_auxiliary=True,
        described=f"genotype {trained.name} (space {trained.space})",
        shape=f"{shape} shape, C={C}, {cells} cells",
        mobile=mobile_verdict(shape, cost.macs),
        names={"genotype": trained.name, "network": shape, "channels": C, "cells": cells},
    )
