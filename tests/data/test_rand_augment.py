"""RandAugment against Pillow, which its authors' code calls."""

import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps

from darts_sg.data.generator import keyed_generator
from darts_sg.data.rand_augment import GEOMETRIC, OPERATIONS, OperationDraws, draw_operations, rand_augment

H, W = 12, 14
GREY = (128, 128, 128)


def images() -> torch.Tensor:
    """Noise, a narrow range of levels, one level alone, and few levels of unequal counts."""
    random = np.random.default_rng(0)
    noise = random.integers(256, size=(H, W, 3))
    narrow = random.integers(90, 140, size=(H, W, 3))
    flat = np.full((H, W, 3), 77)
    few = random.choice([0, 3, 200, 255], p=[0.6, 0.2, 0.1, 0.1], size=(H, W, 3))
    return torch.from_numpy(np.stack([noise, narrow, flat, few]).astype(np.uint8))


def affine(image: Image.Image, matrix: tuple[float, ...]) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.NEAREST, fillcolor=GREY)


def by_pillow(name: str, image: Image.Image, strength: float, sign: int) -> Image.Image:
    """An operation by Pillow, with the strengths of AutoAugment's table 6."""
    signed = sign * strength
    enhancements = {
        "color": ImageEnhance.Color, "contrast": ImageEnhance.Contrast, "brightness": ImageEnhance.Brightness,
        "sharpness": ImageEnhance.Sharpness,
    }  # fmt: skip
    if name in enhancements:
        return enhancements[name](image).enhance(1 + 0.9 * signed)
    return {
        "identity": lambda: image,
        "autocontrast": lambda: ImageOps.autocontrast(image),
        "equalize": lambda: ImageOps.equalize(image),
        "solarize": lambda: ImageOps.solarize(image, math.ceil(256 * (1 - strength))),
        "posterize": lambda: ImageOps.posterize(image, 8 - round(4 * strength)),
        "shear_x": lambda: affine(image, (1, 0.3 * signed, 0, 0, 1, 0)),
        "shear_y": lambda: affine(image, (1, 0, 0, 0.3 * signed, 1, 0)),
        "translate_x": lambda: affine(image, (1, 0, int(150 / 331 * W * signed), 0, 1, 0)),
        "translate_y": lambda: affine(image, (1, 0, 0, 0, 1, int(150 / 331 * H * signed))),
        "rotate": lambda: image.rotate(30 * signed, Image.Resampling.NEAREST, fillcolor=GREY),
    }[name]()


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("magnitude", [0, 9, 17, 30])
def test_each_operation_is_that_of_pillow(name: str, magnitude: int) -> None:
    batch, number = images(), list(OPERATIONS).index(name)
    for sign in (1, -1):
        draws = OperationDraws(torch.full((4, 1), number), torch.full((4, 1), float(sign)))
        found = rand_augment(batch, draws, magnitude).numpy()
        for image, changed in zip(batch.numpy(), found, strict=True):
            expected = np.asarray(by_pillow(name, Image.fromarray(image), magnitude / 30, sign))
            if name == "rotate":  # Pillow rotates in fixed point: at a border between pixels it may take the other one
                assert (changed == expected).mean() > 0.97
            else:
                np.testing.assert_array_equal(changed, expected)


def test_a_batch_is_augmented_as_image_by_image_and_is_not_changed_itself() -> None:
    batch = images().repeat(8, 1, 1, 1)
    before = batch.clone()
    draws = draw_operations(len(batch), 3, keyed_generator(0, "weights", "RandAugment", 4))
    found = rand_augment(batch, draws, 20)
    assert torch.equal(batch, before)
    names = list(OPERATIONS)
    for i, image in enumerate(batch):
        expected = image[None]
        for place in range(3):
            one = OperationDraws(*(part[i : i + 1, place : place + 1] for part in draws))
            expected = rand_augment(expected, one, 20)
        assert torch.equal(found[i], expected[0]), [names[k] for k in draws.operations[i]]
    assert not torch.equal(found, batch)


def test_all_operations_and_both_directions_are_drawn_alike() -> None:
    draws = draw_operations(7000, 2, keyed_generator(0, "weights", "RandAugment", 0))
    counts = draws.operations.flatten().bincount(minlength=14)
    assert len(counts) == 14 == len(OPERATIONS)
    assert (counts / 1000 - 1).abs().max() < 0.15
    assert abs(draws.signs.mean()) < 0.03
    assert draws.signs.abs().eq(1).all()
    assert set(GEOMETRIC) < set(OPERATIONS)


def test_grey_images_of_one_channel_are_taken_too() -> None:
    grey = images()[..., :1]
    three = grey.expand(-1, -1, -1, 3)
    for number in range(len(OPERATIONS)):
        draws = OperationDraws(torch.full((4, 1), number), torch.ones(4, 1))
        found = rand_augment(grey, draws, 12)
        assert found.shape == grey.shape
        assert torch.equal(found.expand(-1, -1, -1, 3), rand_augment(three, draws, 12))
