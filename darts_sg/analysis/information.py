"""Information loss: how much of the image can be read, linearly, from the features that a network passes on.

MobileNeXt (ECCV 2020, sections 1 and 3) argues that a shortcut between narrow bottlenecks passes on less information
than one between wide layers. Features are measured where they are passed on:

- in MobileNeXt, MobileNetV2 and the classic bottleneck: the input of every block with a shortcut, restricted to the
  channels that the shortcut adds to the block's output;
- in a derived network: the output of every cell as the next cells use it, after their ReLU. The head uses the last
  cell's output without a ReLU.

Let the features have h×h positions, and the images S×S pixels in c channels. A position stands for a patch of s×s
pixels, s = S / h rounded up. Positions whose patch crosses the border (S is not a multiple of s) are left out. The
s·s·c values of a patch are regressed on the C features at its position and a constant. All positions and images share
the coefficients, which are fitted by least squares on training images. A ridge of 1e-6 on features scaled to variance 1
only affects ill-conditioned fits. On held-out images

    R² = 1 - sum of squared errors of this fit / sum of squared errors of the training images' mean patch,

with both sums over all values of the patches, positions and images. R² is 1 if the pixels can be recovered exactly, 0
if the features predict them no better than a constant, and negative if the fit is worse than that. The values are the
network's input pixels, normalised by channel. The network is in eval mode. At most 64 positions of each image are used,
the same for all images of a batch and for all networks.

Larger patches have more values to recover from C features, so compare networks at the same size.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from darts_sg.networks.derived import DerivedNetwork
from darts_sg.networks.mobile import MobileBlock, MobileNetwork
from darts_sg.networks.skeleton import State

POSITIONS = 64  # at most, for each image
RIDGE = 1e-6  # for features with variance 1
CONSTANT = 1e-12  # a feature whose variance is less than this share of its squared mean counts as constant


class Site(NamedTuple):
    """A place where features are passed on: an input of `module`."""

    name: str
    depth: float
    """Share of the network's blocks or cells before this place, 0 to 1."""
    module: nn.Module
    argument: int
    """Index of the input among the arguments of `forward`."""
    channels: int | None = None
    """Number of leading channels that are passed on; None for all."""


class Retained(NamedTuple):
    """R² of the linear fit from the features of a site to the pixels they stand for."""

    name: str
    depth: float
    size: int
    """Side of the features, in positions."""
    channels: int
    patch: int
    """Side of the patch of a position, in pixels."""
    r2: float


def carried_on(network: MobileNetwork | DerivedNetwork) -> list[Site]:
    """The sites of a network from input to output, named after its blocks or cells."""
    if isinstance(network, MobileNetwork):
        blocks = [(f"features.{i}", m) for i, m in enumerate(network.features) if isinstance(m, MobileBlock)]
        return [
            Site(name, i / len(blocks), block, 0, block.num_shared)
            for i, (name, block) in enumerate(blocks)
            if block.num_shared
        ]
    cells = list(network.cells)
    assert network.head is not None, "a backbone alone classifies nothing"
    after: list[tuple[nn.Module, int]] = [*((cell, 1) for cell in cells[1:]), (network.head, 0)]
    return [Site(f"cells.{i}", (i + 1) / len(cells), *taken) for i, taken in enumerate(after)]


@dataclass
class Moments:
    """Second moments of z = (1, C features) and the D patch values y, summed over positions and images.

    float64, on the CPU: enough to fit the regression and to evaluate it without keeping any features.
    """

    size: int
    patch: int
    zz: Tensor
    """Sum of z zᵀ, (C + 1, C + 1)."""
    zy: Tensor
    """Sum of z yᵀ, (C + 1, D)."""
    yy: float
    """Sum of the squares of y."""

    def add(self, other: "Moments") -> None:
        self.zz += other.zz
        self.zy += other.zy
        self.yy += other.yy


def measure_information(
    network: MobileNetwork | DerivedNetwork,
    fitted_on: Iterable[tuple[Tensor, Tensor]],
    held_out: Iterable[tuple[Tensor, Tensor]],
    seed: int = 0,
) -> list[Retained]:
    """R² (see above) at each site of a network; batches are (images, labels).

    `seed` chooses the positions of large features. The network returns to the mode that it was in.
    """
    sites = carried_on(network)
    fits, tests = (measure_moments(network, sites, batches, seed) for batches in (fitted_on, held_out))
    return [
        Retained(site.name, site.depth, fit.size, len(fit.zz) - 1, fit.patch, r_squared(fit, test))
        for site, fit, test in zip(sites, fits, tests, strict=True)
    ]


def measure_moments(
    network: nn.Module, sites: Sequence[Site], batches: Iterable[tuple[Tensor, Tensor]], seed: int = 0
) -> list[Moments]:
    """The moments at each site over all images of the batches; at least one batch."""
    found: dict[int, Moments] = {}
    shown = Patches(torch.empty(0), 0)

    def note(index: int, inputs: tuple[Any, ...]) -> None:
        site = sites[index]
        given = inputs[site.argument]
        features = given.rectified() if isinstance(given, State) else given
        moments = shown.moments(features[:, : site.channels])
        if index in found:
            found[index].add(moments)
        else:
            found[index] = moments

    hooks = [
        site.module.register_forward_pre_hook(lambda _, inputs, index=i: note(index, inputs))
        for i, site in enumerate(sites)
    ]
    was_training = network.training
    network.eval()
    try:
        with torch.inference_mode():
            for number, (images, _) in enumerate(batches):
                shown = Patches(images, seed + number)
                network(images)
    finally:
        network.train(was_training)
        for hook in hooks:
            hook.remove()
    return [found[i] for i in range(len(sites))]


class Patches:
    """The patches of a batch of square images (N, c, S, S) at positions chosen by `seed`."""

    def __init__(self, images: Tensor, seed: int) -> None:
        self.images, self.seed = images, seed
        self._known: dict[int, tuple[Tensor, Tensor]] = {}

    def at(self, patch: int) -> tuple[Tensor, Tensor]:
        """P patches of side `patch`: their positions row by row, int64 (P,), and their values, (N, c·patch², P)."""
        if patch not in self._known:
            values = F.unfold(self.images, patch, stride=patch)  # leaves out patches that cross the border
            generator = torch.Generator().manual_seed(self.seed)
            chosen = torch.randperm(values.shape[-1], generator=generator)[:POSITIONS].to(values.device)
            self._known[patch] = chosen, values[..., chosen]
        return self._known[patch]

    def moments(self, features: Tensor) -> Moments:
        """The moments of features (N, C, h, h) of the images."""
        size, pixels = features.shape[-1], self.images.shape[-1]
        patch = -(-pixels // size)
        whole = pixels // patch
        chosen, values = self.at(patch)
        x = features[..., :whole, :whole].flatten(2)[..., chosen]  # (N, C, P)
        x, y = (t.movedim(1, 2).flatten(0, 1).to("cpu", torch.float64) for t in (x, values))  # (N·P, C), (N·P, D)
        z = torch.cat([x.new_ones(len(x), 1), x], dim=1)
        return Moments(size, patch, z.T @ z, z.T @ y, y.square().sum().item())


def r_squared(fit: Moments, held_out: Moments) -> float:
    """R² on the images of `held_out` of the regression fitted to `fit`; nan if the held-out patches do not vary."""
    count = fit.zz[0, 0]
    mean, target = fit.zz[0, 1:] / count, fit.zy[0] / count
    covariance = fit.zz[1:, 1:] / count - mean[:, None] * mean
    cross = fit.zy[1:] / count - mean[:, None] * target
    variance = covariance.diagonal()
    varies = variance > CONSTANT * (mean.square() + variance)
    scale = torch.where(varies, variance, 1.0).rsqrt() * varies  # (C,), 0 for a constant
    correlation = covariance * scale * scale[:, None] + RIDGE * torch.eye(len(scale), dtype=scale.dtype)
    slopes = torch.linalg.solve(correlation, cross * scale[:, None]) * scale[:, None]  # (C, D)
    coefficients = torch.cat([(target - mean @ slopes)[None], slopes])  # (C + 1, D)
    constant = torch.cat([target[None], torch.zeros_like(slopes)])

    def error(b: Tensor) -> Tensor:
        """Sum of squared errors of y - bᵀz over the held-out images."""
        return held_out.yy - 2 * (b * held_out.zy).sum() + (b * (held_out.zz @ b)).sum()

    return (1 - error(coefficients) / error(constant)).item()
