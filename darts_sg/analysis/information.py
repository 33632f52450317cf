"""Information loss: how much of the image the features that a network carries on still hold, linearly.

The argument of MobileNeXt (ECCV 2020, sections 1 and 3) is that a shortcut between narrow bottlenecks carries on less
than one between wide layers. Here the features carried on are looked at where they are:

- in MobileNeXt, MobileNetV2 and the classic bottleneck the input of every block with a shortcut, those channels that
  the shortcut adds to the block's output;
- in a derived network the output of every cell, as the cells after it take it (after their ReLU; the last cell's, which
  the head takes, is without one).

Features of h×h positions, of images of S×S pixels in c channels: a position stands for a patch of s×s pixels,
s = S / h rounded up; where S is no multiple of s, positions whose patch reaches over the border are left out. From the
C features at a position, and a constant, the s·s·c values of its patch are regressed: the same coefficients for all
positions and images, fitted by least squares on training images, with a ridge of 1e-6 on features scaled to variance 1,
which changes nothing but what is ill-conditioned. On held-out images

    R² = 1 - sum of squared errors of this fit / sum of squared errors of the training images' mean patch,

both sums over all values of the patches, positions and images: 1 if the pixels can be read off exactly, 0 if the
features say no more of them than a constant, negative if the fit is worse than that. The values are the pixels as the
network takes them, normalised by channel. The network is in eval mode, as it is tested. Of each image at most 64
positions are taken, the same ones for all images of a batch and in all networks.

The larger the patch, the more values there are to be read from C features: compare networks at the same size.
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

POSITIONS = 64  # of an image, at most
RIDGE = 1e-6  # of features with variance 1
CONSTANT = 1e-12  # variance in relation to the square of the mean, up to which a feature is a constant


class Site(NamedTuple):
    """Where features are carried on: they are an input of `module`."""

    name: str
    depth: float
    """Share of the network's blocks or cells that lie before, 0 to 1."""
    module: nn.Module
    argument: int
    """Which of its inputs."""
    channels: int | None = None
    """The first so many are carried on; None for all."""


class Retained(NamedTuple):
    """How much of the image the features at a site hold."""

    name: str
    depth: float
    size: int
    """Side of the features, in positions."""
    channels: int
    patch: int
    """Side of the patch of a position, in pixels."""
    r2: float


def carried_on(network: MobileNetwork | DerivedNetwork) -> list[Site]:
    """The sites of a network, from the image on; their names are those of the blocks and cells in it."""
    if isinstance(network, MobileNetwork):
        blocks = [(f"features.{i}", m) for i, m in enumerate(network.features) if isinstance(m, MobileBlock)]
        return [
            Site(name, i / len(blocks), block, 0, block.num_shared)
            for i, (name, block) in enumerate(blocks)
            if block.num_shared
        ]
    cells = list(network.cells)
    after: list[tuple[nn.Module, int]] = [*((cell, 1) for cell in cells[1:]), (network.head, 0)]
    return [Site(f"cells.{i}", (i + 1) / len(cells), *taken) for i, taken in enumerate(after)]


@dataclass
class Moments:
    """Sums over positions and images, of z = (1, C features) and the D values of the patch: float64, on the CPU."""

    size: int
    patch: int
    zz: Tensor
    """Of z zᵀ, (C + 1, C + 1)."""
    zy: Tensor
    """Of z yᵀ, (C + 1, D)."""
    yy: float
    """Of the squares of y."""

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
    """What the features carried on at each site hold of the image: R² as above; batches are (images, labels).

    `seed` decides which positions of large features are taken. The network is left in the mode it was in.
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
    """The moments at each site over all images of the batches, one batch or more."""
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
    """The patches of a batch of square images (N, c, S, S), at the positions that `seed` says."""

    def __init__(self, images: Tensor, seed: int) -> None:
        self.images, self.seed = images, seed
        self._known: dict[int, tuple[Tensor, Tensor]] = {}

    def at(self, patch: int) -> tuple[Tensor, Tensor]:
        """Positions, int64 (P,), of the whole patches of this side row by row; their values, (N, c·patch², P)."""
        if patch not in self._known:
            values = F.unfold(self.images, patch, stride=patch)  # whole patches only
            generator = torch.Generator().manual_seed(self.seed)
            chosen = torch.randperm(values.shape[-1], generator=generator)[:POSITIONS].to(values.device)
            self._known[patch] = chosen, values[..., chosen]
        return self._known[patch]

    def moments(self, features: Tensor) -> Moments:
        """Of features (N, C, h, h) of the images."""
        size, pixels = features.shape[-1], self.images.shape[-1]
        patch = -(-pixels // size)
        whole = pixels // patch
        chosen, values = self.at(patch)
        x = features[..., :whole, :whole].flatten(2)[..., chosen]  # (N, C, P)
        x, y = (t.movedim(1, 2).flatten(0, 1).to("cpu", torch.float64) for t in (x, values))  # (N·P, C), (N·P, D)
        z = torch.cat([x.new_ones(len(x), 1), x], dim=1)
        return Moments(size, patch, z.T @ z, z.T @ y, y.square().sum().item())


def r_squared(fit: Moments, held_out: Moments) -> float:
    """R² on the images of `held_out` of the regression fitted on those of `fit`; nan if their patches do not vary."""
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
        """Sum of the squares of y - bᵀz over the held-out images."""
        return held_out.yy - 2 * (b * held_out.zy).sum() + (b * (held_out.zz @ b)).sum()

    return (1 - error(coefficients) / error(constant)).item()
