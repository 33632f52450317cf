"""What a derived network costs: parameters, with and without the auxiliary head, and multiply-adds."""

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from darts_sg.genotype import Genotype
from darts_sg.networks.derived import DerivedNetwork, NetworkShape

IMAGE_SIZE: dict[str, int] = {"cifar": 32, "imagenet": 224}
NUM_CLASSES: dict[str, int] = {"cifar": 10, "imagenet": 1000}
CHANNELS: dict[str, int] = {"cifar": 36, "imagenet": 48}
CELLS: dict[str, int] = {"cifar": 20, "imagenet": 14}
"""The shapes in which the papers report: CIFAR with C=36 and 20 cells, ImageNet with C=48 and 14 cells."""


@dataclass(frozen=True)
class Cost:
    """Exact counts of one network: MACs are of convolutions and linear layers for one image, auxiliary head off."""

    params: int
    params_with_auxiliary: int
    macs: int


def count_params(module: nn.Module) -> int:
    """Number of trainable parameters (scale and shift of BatchNorm included)."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


LAYERS = (torch.ops.aten.convolution, torch.ops.aten.addmm)  # what counts; a supernet's mixing is a plain product


def count_macs(module: nn.Module, *inputs: object) -> int:
    """Multiply-adds of convolutions and linear layers in one forward pass, by torch's own counter (1 MAC = 2 FLOPs)."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(*inputs)
    counts = counter.get_flop_counts().get("Global", {})
    return sum(counts.get(layer, 0) for layer in LAYERS) // 2


def derived_cost(
    genotype: Genotype,
    network: NetworkShape = "cifar",
    channels: int | None = None,
    cells: int | None = None,
    num_classes: int | None = None,
    image_size: int | None = None,
    in_channels: int = 3,
) -> Cost:
    """The cost of the network derived from a genotype; what is not given is as the papers have it for that shape.

    Nothing is computed or allocated (meta device). Raises UsageError as DerivedNetwork does.
    """
    size = image_size or IMAGE_SIZE[network]
    with torch.device("meta"):
        model = DerivedNetwork(
            genotype,
            network=network,
            channels=channels or CHANNELS[network],
            cells=cells or CELLS[network],
            num_classes=num_classes or NUM_CLASSES[network],
            in_channels=in_channels,
            auxiliary=True,
        ).eval()
        macs = count_macs(model, torch.empty(1, in_channels, size, size))
    with_auxiliary = count_params(model)
    model.auxiliary_head = None
    return Cost(count_params(model), with_auxiliary, macs)


def human(count: float) -> str:
    """A count in the papers' way: 3.35M, 528.4M, 12.3k."""
    if count == 0:
        return "0"
    power = min(3, int(math.log10(abs(count)) // 3))
    return f"{count / 1000**power:.{0 if power == 0 else 2 if power < 3 and count / 1000**power < 100 else 1}f}" + (
        "" if power == 0 else "kMG"[power - 1]
    )
