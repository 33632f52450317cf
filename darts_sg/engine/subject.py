"""What a retraining trains, as data: the network derived from a genotype, or a model."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from darts_sg.analysis.cost import Cost, count_macs, count_params, mobile_verdict, uninitialised
from darts_sg.config import AugmentConfig
from darts_sg.data import DataSpec
from darts_sg.errors import UsageError
from darts_sg.genotype import Genotype
from darts_sg.networks.build import AUXILIARY, NetworkPlan
from darts_sg.networks.mobile import Model
from darts_sg.tasks import Task, task_of


@dataclass(frozen=True)
class Subject:
    """A network to train. Its `forward` gives (outputs, auxiliary outputs or None)."""

    build: Callable[[], nn.Module]
    cost: Cost
    has_auxiliary: bool
    """Whether there is an auxiliary head to count."""
    described: str
    shape: str
    mobile: str
    """Whether the network keeps to the mobile limit; empty for a shape that the limit is not for."""
    names: dict[str, Any] = field(default_factory=dict)
    """The entries of result.json that say which network it is."""

    def counts(self) -> str:
        """Parameters and MACs in words."""
        more = f" ({self.cost.params_with_auxiliary:,} with the auxiliary head)" if self.has_auxiliary else ""
        return ", ".join(
            filter(None, (f"{self.cost.params:,} parameters{more}", f"{self.cost.macs:,} MACs", self.mobile))
        )


def network_cost(task: Task, plan: NetworkPlan, spec: DataSpec) -> Cost:
    """The cost of a task's network for images of `spec`; nothing is computed or initialised."""
    network = uninitialised(lambda: task.build(plan, spec))
    macs = count_macs(network, torch.empty(0, spec.in_channels, spec.image_size, spec.image_size))
    total = count_params(network)
    auxiliary = [m for name, m in network.named_modules() if name.rpartition(".")[2] == AUXILIARY]
    return Cost(total - sum(map(count_params, auxiliary)), total, macs)


def with_channels(config: AugmentConfig, trained: Genotype | Model, spec: DataSpec) -> AugmentConfig:
    """Turn --channels auto:BOUND into the largest even number of channels within the bound, and print it.

    Returns `config` unchanged where no bound was given. Raises UsageError if the bound is too small for any network.
    """
    bound = config.max_macs()
    if bound is None or isinstance(trained, Model):
        return config
    task = task_of(config.as_dict())

    @functools.cache
    def macs(C: int) -> int:
        plan = NetworkPlan(trained=trained, shape=config.network, channels=C, cells=config.cells)
        return network_cost(task, plan, spec).macs

    # MACs grow with C: double until the bound is passed, then halve the interval down to neighbouring even numbers
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


def subject_of(trained: Genotype | Model, config: AugmentConfig, spec: DataSpec) -> Subject:
    """The network of a genotype or model as `config` asks for it, for images of `spec`."""
    task, shape = task_of(config.as_dict()), config.network
    if isinstance(trained, Model):
        plan = NetworkPlan(trained=trained, shape=shape)
        cost = network_cost(task, plan, spec)
        return Subject(
            lambda: task.build(plan, spec),
            cost,
            has_auxiliary=False,
            described=f"model {trained.name}",
            shape=f"{shape} shape",
            mobile=mobile_verdict(shape, cost.macs) if task.is_mobile else "",
            names={"model": trained.name, "network": shape},
        )
    C, cells = config.num_channels, config.cells
    plan = NetworkPlan(trained=trained, shape=shape, channels=C, cells=cells, auxiliary=bool(config.auxiliary_weight))
    cost = network_cost(
        task, replace(plan, auxiliary=True), spec
    )  # counted with the head, whether it is trained or not
    return Subject(
        lambda: task.build(plan, spec),
        cost,
        has_auxiliary=task.has_auxiliary,
        described=f"genotype {trained.name} (space {trained.space})",
        shape=f"{shape} shape, C={C}, {cells} cells",
        mobile=mobile_verdict(shape, cost.macs) if task.is_mobile else "",
        names={"genotype": trained.name, "network": shape, "channels": C, "cells": cells},
    )
