"""Colour jitter against the HSV conversion of the standard library, pixel by pixel, in float64."""

import colorsys

import numpy as np
import pytest
import torch

from darts_sg.data import Augment, DataSpec, ImageSet, TrainBatches
from darts_sg.data.colour import ColourDraws, colour_jitter, draw_colours
from darts_sg.errors import UsageError


def slow_jitter(image: np.ndarray, amounts: list[float], order: list[int]) -> np.ndarray:
    """One image (H, W, 3)."""
    for number in order:
        amount = amounts[number]
        grey = image @ np.array([0.299, 0.587, 0.114])
        if number == 3:
            pixels = [colorsys.rgb_to_hsv(*pixel) for pixel in image.reshape(-1, 3)]
            turned = [colorsys.hsv_to_rgb((h + amount) % 1, s, v) for h, s, v in pixels]
            image = np.array(turned).reshape(image.shape)
        else:
            other = (0, grey.mean(), grey[..., None])[number]
            image = np.clip(amount * image + (1 - amount) * other, 0, 1)
    return image


def test_each_change_and_any_order_is_what_the_slow_reference_makes() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(40, 4, 5, 3, dtype=torch.float64, generator=generator)
    x[:, 0] = x[:, 0, :, :1]  # grey pixels have no hue
    x[:, 1] = x[:, 1].round()  # pure colours, black and white
    draws = draw_colours(40, 0.4, generator)
    draws = ColourDraws(draws.amounts.double(), draws.orders)
    found = colour_jitter(x.clone(), draws)
    for i in range(40):
        expected = slow_jitter(x[i].numpy(), draws.amounts[i].tolist(), draws.orders[i].tolist())
        np.testing.assert_allclose(found[i].numpy(), expected, atol=1e-12)


def test_amounts_stay_in_their_range_and_orders_are_permutations_of_equal_chance() -> None:
    draws = draw_colours(4000, 0.4, torch.Generator().manual_seed(0))
    for amounts, low, high in ((draws.amounts[:, :3], 0.6, 1.4), (draws.amounts[:, 3], -0.2, 0.2)):
        assert low <= amounts.min() < low + 0.01
        assert high - 0.01 < amounts.max() <= high
    assert torch.equal(draws.orders.sort(dim=1).values, torch.arange(4).expand(4000, 4))
    assert (draws.orders[:, 0].bincount() - 1000).abs().max() < 120
    assert draw_colours(100, 3.0, torch.Generator()).amounts[:, :3].min() == 0


def test_images_in_memory_can_have_it_and_crop_and_flip_stay_as_they_are() -> None:
    generator = torch.Generator().manual_seed(0)
    images = ImageSet(torch.randint(256, (20, 8, 8, 3), dtype=torch.uint8, generator=generator), torch.arange(20) % 2)
    spec = DataSpec("noise", 2, 8, 3, (0.0,) * 3, (1.0,) * 3, ("a", "b"))
    plain, slightly, strongly = (
        TrainBatches(images, spec, 8, Augment(colour_jitter=strength), 0, "weights")[4][0]
        for strength in (0, 1e-6, 0.4)
    )
    torch.testing.assert_close(slightly, plain, atol=1e-5, rtol=0)
    assert (strongly - plain).abs().mean() > 0.02
    assert 0 <= strongly.min() <= strongly.max() <= 1
    grey = DataSpec("grey", 2, 8, 1, (0.0,), (1.0,), ("a", "b"))
    with pytest.raises(UsageError, match="leave it out"):
        TrainBatches(ImageSet(images.images[..., :1], images.labels), grey, 8, Augment(colour_jitter=0.4), 0, "weights")
