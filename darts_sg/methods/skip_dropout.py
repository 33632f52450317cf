"""Dropout after skip connections, which slows down the alphas' way to them (P-DARTS, section 3.3)."""

import torch
from torch import Tensor, nn

from darts_sg.networks.supernet import MixedOp, Supernet


class SkipDropout(nn.Module):
    """The skip connection of stride 1 with dropout of single values: 0 with probability p, else x / (1 - p).

    p is a tensor outside, changed in place from epoch to epoch; evaluation drops nothing. Drawn from PyTorch's default
    generator, whose state checkpoints hold.
    """

    def __init__(self, probability: Tensor) -> None:
        super().__init__()
        self.probability = probability
        self.silent = False
        """Drop nothing and draw no random numbers, for measurements."""

    def forward(self, x: Tensor) -> Tensor:
        if self.silent or not self.training:
            return x
        kept = torch.rand_like(x, dtype=torch.float32) >= self.probability
        return x * (kept / (1 - self.probability)).to(x.dtype)


def add_skip_dropout(supernet: Supernet, probability: Tensor) -> None:
    """Put dropout behind the candidate skip connections of stride 1 of a plain supernet; auxiliary skips have none."""
    for module in supernet.modules():
        if isinstance(module, MixedOp):
            for place, (column, op) in enumerate(zip(module.columns, module.ops, strict=True)):
                if isinstance(op, nn.Identity) and column < len(supernet.operations):
                    module.ops[place] = SkipDropout(probability)


def silence(supernet: Supernet) -> None:
    """Let a copy of a supernet drop nothing, also in train mode."""
    for module in supernet.modules():
        if isinstance(module, SkipDropout):
            module.silent = True
