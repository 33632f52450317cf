"""How much of the image features hold, against least squares over positions gathered one by one."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from darts_sg.analysis.information import (
    POSITIONS,
    Patches,
    Site,
    carried_on,
    measure_information,
    measure_moments,
    r_squared,
)
from darts_sg.genotype import load_genotype
from darts_sg.networks.derived import DerivedNetwork
from darts_sg.networks.mobile import MobileBlock, MobileNetwork, find_model
from darts_sg.networks.skeleton import State

Batches = list[tuple[Tensor, Tensor]]


class Passing(nn.Module):
    """A network that carries on what `features` makes of the images."""

    def __init__(self, features: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.features, self.rest = features, nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.rest(self.features(x))


def smooth_images(num: int, size: int, seed: int) -> Batches:
    """Two batches of images with blotches, so that a pixel tells of its neighbours, and some noise."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(num, 3, 5, 5, generator=generator)
    images = F.interpolate(coarse, (size, size), mode="bilinear") + 0.1 * torch.randn(
        num, 3, size, size, generator=generator
    )
    return [(part, torch.zeros(len(part))) for part in images.split(num // 2 + 3)]


def share(features: Callable[[Tensor], Tensor], size: int = 16, num: int = 40) -> float:
    network = Passing(features)
    sites = [Site("rest", 0.5, network.rest, 0)]
    fit, held_out = (measure_moments(network, sites, smooth_images(num, size, seed))[0] for seed in (0, 1))
    return r_squared(fit, held_out)


def test_features_that_contain_the_pixels_hold_all_of_them() -> None:
    torch.manual_seed(0)
    mixed = torch.linalg.qr(torch.randn(48, 48)).Q[:, :, None, None] + 0.01
    assert share(lambda x: 3 + F.conv2d(F.pixel_unshuffle(x, 4), mixed)) == pytest.approx(1, abs=1e-5)
    assert share(lambda x: x) == pytest.approx(1, abs=1e-5)


def test_features_that_know_nothing_hold_nothing() -> None:
    torch.manual_seed(0)
    assert share(lambda x: torch.randn(len(x), 6, 4, 4), num=400) == pytest.approx(0, abs=0.02)
    assert share(lambda x: torch.full((len(x), 2, 4, 4), 1.7)) == pytest.approx(0, abs=1e-9)


def test_half_of_the_channels_hold_their_share_of_the_variance() -> None:
    """Of independent pixels in three channels of equal variance, one channel tells a third."""
    torch.manual_seed(0)
    batches = [[(torch.randn(200, 3, 8, 8), torch.zeros(200))] for _ in range(2)]
    network = Passing(lambda x: x)
    fit, held_out = (measure_moments(network, [Site("", 0, network.rest, 0, 1)], part)[0] for part in batches)
    assert r_squared(fit, held_out) == pytest.approx(1 / 3, abs=0.01)


@pytest.mark.parametrize(("size", "stride", "patch"), [(16, 4, 4), (18, 4, 4), (16, 16, 16), (14, 4, 4)])
def test_it_is_least_squares_over_all_positions(size: int, stride: int, patch: int) -> None:
    torch.manual_seed(0)
    kernel = torch.randn(5, 3, 3, 3)

    def features(x: Tensor) -> Tensor:
        y = F.conv2d(x, kernel, stride=stride, padding=1).relu()
        return torch.cat([y, torch.ones_like(y[:, :1])], dim=1)

    def gathered(seed: int) -> tuple[Tensor, Tensor]:
        rows, values = [], []
        for x, _ in smooth_images(40, size, seed):
            for image, found in zip(x.double(), features(x).double(), strict=True):
                for i in range(size // patch):
                    for j in range(size // patch):
                        rows.append(torch.cat([torch.ones(1).double(), found[:-1, i, j]]))
                        at = slice(i * patch, (i + 1) * patch), slice(j * patch, (j + 1) * patch)
                        values.append(image[:, *at].flatten())
        return torch.stack(rows), torch.stack(values)

    (z, y), (z_out, y_out) = gathered(0), gathered(1)
    fitted = z_out @ torch.linalg.lstsq(z, y).solution
    expected = 1 - (y_out - fitted).square().sum() / (y_out - y.mean(dim=0)).square().sum()
    assert 0.02 < abs(expected) < 0.9
    assert share(features, size) == pytest.approx(expected.item(), abs=1e-5)


def test_the_same_positions_are_taken_in_all_networks() -> None:
    images = smooth_images(8, 32, 0)[0][0]
    chosen, values = Patches(images, 5).at(2)
    assert len(chosen.unique()) == len(chosen) == POSITIONS < 16 * 16
    i, j = divmod(chosen[7].item(), 16)
    assert torch.equal(values[3, :, 7], images[3, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].flatten())
    assert torch.equal(Patches(images, 5).at(2)[0], chosen)
    assert not torch.equal(Patches(images, 6).at(2)[0], chosen)


@pytest.mark.parametrize("name", ["mobilenext_0.1", "mobilenext_0.1_id2", "mobilenetv2_0.1"])
def test_a_model_carries_on_what_its_shortcuts_add(name: str) -> None:
    network = MobileNetwork(find_model(name)).train()
    found = measure_information(network, smooth_images(6, 32, 0), smooth_images(6, 32, 1))
    assert network.training
    blocks = {n: m for n, m in network.named_modules() if isinstance(m, MobileBlock)}
    assert [site.name for site in found] == [n for n, block in blocks.items() if block.num_shared]
    assert [site.channels for site in found] == [blocks[site.name].num_shared for site in found]
    assert [site.size * site.patch for site in found] == [32] * len(found)
    assert [site.size for site in found] == sorted((site.size for site in found), reverse=True)
    depths = [site.depth for site in found]
    assert depths == [list(blocks).index(site.name) / len(blocks) for site in found]
    assert all(site.r2 <= 1 for site in found)


def rectified(x: State | Tensor) -> Tensor:
    return x.rectified() if isinstance(x, State) else x


def test_a_derived_network_carries_on_what_its_next_cells_take() -> None:
    torch.manual_seed(0)
    network = DerivedNetwork(load_genotype("GDAS_V1"), channels=4, cells=4).eval()
    outputs, taken = dict[int, Tensor](), dict[int, Tensor]()
    for i, cell in enumerate(network.cells):
        cell.register_forward_hook(lambda _, inputs, output, i=i: outputs.update({i: output.joined().clone()}))
    for i, site in enumerate(carried_on(network)):
        site.module.register_forward_pre_hook(
            lambda _, inputs, i=i, k=site.argument: taken.update({i: rectified(inputs[k]).clone()})
        )
    network(smooth_images(4, 16, 0)[0][0])
    assert len(outputs) == len(taken) == 4
    for i, output in outputs.items():
        assert torch.equal(taken[i], output if i == 3 else output.relu())
    found = measure_information(network, smooth_images(40, 16, 0), smooth_images(40, 16, 1))
    assert [(site.name, site.depth, site.size, site.channels) for site in found] == [
        (f"cells.{i}", (i + 1) / 4, outputs[i].shape[-1], outputs[i].shape[1]) for i in range(4)
    ]
