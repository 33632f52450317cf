"""What the relaxations share whose samples are one-hot or have a temperature; registers nothing by itself."""

from typing import Protocol

import torch
from torch import Tensor

from darts_sg.errors import UsageError

GRADIENTS = ("chosen", "all")


class Tempered(Protocol):
    """A relaxation with a temperature that changes linearly over the search."""

    @property
    def temperature(self) -> float: ...
    @property
    def temperature_end(self) -> float: ...


def at_progress(relaxation: Tempered, progress: Tensor) -> Tensor:
    """The temperature when `progress` of the search is done, a scalar tensor on its device."""
    return relaxation.temperature + (relaxation.temperature_end - relaxation.temperature) * progress


def check_temperatures(relaxation: Tempered) -> None:
    """UsageError unless both temperatures are above 0."""
    for name in ("temperature", "temperature_end"):
        if not getattr(relaxation, name) > 0:
            raise UsageError(f"{name} must be above 0, found {getattr(relaxation, name)}")


def check_gradient(gradient: str) -> None:
    """UsageError for an unknown choice of the operations that the gradient of the alphas sees."""
    if gradient not in GRADIENTS:
        raise UsageError(f"gradient must be {' or '.join(GRADIENTS)}, found {gradient!r}")


def one_hot(scores: Tensor) -> Tensor:
    """One-hot rows at the largest score of each row."""
    return torch.zeros_like(scores).scatter_(-1, scores.argmax(dim=-1, keepdim=True), 1.0)
