"""Batches: reproducible at any position, every image once a pass, augmented as a slow reference does it."""

import random

import numpy as np
import pytest
import torch

from darts_sg.data import Augment, DataSpec, ImageSet, TrainBatches, evaluation_batches
from darts_sg.data.batches import keyed_generator

SIZE = 12
SPEC = DataSpec("fake", 3, SIZE, 3, (0.5, 0.4, 0.3), (0.2, 0.25, 0.3), ("a", "b", "c"))

STRONG = Augment(4, True, 6, colour_jitter=0.4, rand_augment=2, random_erasing=0.5, mixup=0.3, cutmix=0.8)


@pytest.fixture
def images() -> ImageSet:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (50, SIZE, SIZE, 3), generator=generator, dtype=torch.uint8)
    return ImageSet(pixels, torch.arange(50) % 3)


def numbered() -> ImageSet:
    """Every image filled with its own number."""
    pixels = torch.arange(50, dtype=torch.uint8)[:, None, None, None].expand(50, SIZE, SIZE, 3)
    return ImageSet(pixels.contiguous(), torch.arange(50))


def slow_image(image: np.ndarray, top: int, left: int, flip: bool, centre: list[int], augment: Augment) -> np.ndarray:
    """One image padded, cropped, flipped, normalised and cut out, pixel by pixel, as (C, H, W)."""
    padding, length = augment.crop_padding, augment.cutout_length
    out = np.zeros((3, SIZE, SIZE))
    for row in range(SIZE):
        for column in range(SIZE):
            source_row = row + top - padding
            source_column = (SIZE - 1 - column if flip else column) + left - padding
            black = not (0 <= source_row < SIZE and 0 <= source_column < SIZE)
            for channel in range(3):
                value = 0 if black else int(image[source_row, source_column, channel])
                out[channel, row, column] = (value / 255 - SPEC.mean[channel]) / SPEC.std[channel]
            first_row, first_column = centre[0] - length // 2, centre[1] - length // 2
            if 0 <= row - first_row < length and 0 <= column - first_column < length:
                out[:, row, column] = 0
    return out


@pytest.mark.parametrize(
    "augment",
    [Augment(4, True, 0), Augment(4, True, 6), Augment(0, True, 5), Augment(2, False, 0), Augment(0, False, 0)],
    ids=str,
)
@pytest.mark.parametrize("position", [0, 3, 11])
def test_a_batch_is_what_the_slow_reference_makes(images: ImageSet, augment: Augment, position: int) -> None:
    batches = TrainBatches(images, SPEC, 16, augment, 5, "weights")
    x, y = batches[position]
    number, step = divmod(position, len(batches))
    indices = batches.order(number)[16 * step : 16 * step + 16]
    draws = batches.draws(position, len(indices))
    for i, index in enumerate(indices.tolist()):
        top, left = draws.offsets[i].tolist()
        flip = augment.flip and bool(draws.flips[i])
        image = images.images[index].numpy()
        expected = slow_image(image, top, left, flip, draws.centres[i].tolist(), augment)
        np.testing.assert_allclose(x[i].numpy(), expected, atol=2e-6)
    assert torch.equal(y, images.labels[indices])


def test_the_draws_cover_their_whole_range_evenly(images: ImageSet) -> None:
    draws = TrainBatches(images, SPEC, 16, Augment(), 0, "weights").draws(0, 9000)
    for values, size in ((draws.offsets, 9), (draws.centres, SIZE)):
        for axis in (0, 1):
            counts = values[:, axis].bincount(minlength=size)
            assert len(counts) == size
            assert (counts.double() / (9000 / size) - 1).abs().max() < 0.2
    assert abs(draws.flips.double().mean().item() - 0.5) < 0.03


def test_each_pass_visits_each_image_once() -> None:
    batches = TrainBatches(numbered(), SPEC, 16, Augment(2, True, 3), 0, "weights")
    assert len(batches) == 4
    orders = []
    for number in range(3):
        labels = [batches[number * 4 + step][1] for step in range(4)]
        assert [len(y) for y in labels] == [16, 16, 16, 2]
        orders.append(torch.cat(labels))
        assert torch.equal(orders[-1].sort().values, torch.arange(50))
    assert not torch.equal(orders[0], orders[1])
    assert not torch.equal(orders[1], orders[2])


def test_images_and_labels_stay_together() -> None:
    x, y = TrainBatches(numbered(), SPEC, 50, Augment(0, True, 0), 3, "weights")[0]
    pixel = x[:, 1, 0, 0] * SPEC.std[1] + SPEC.mean[1]
    assert torch.equal((pixel * 255).round().long(), y)


def test_iterating_is_one_pass(images: ImageSet) -> None:
    batches = TrainBatches(images, SPEC, 16, Augment(), 0, "weights")
    passed = list(batches)
    assert len(passed) == 4
    assert torch.equal(passed[2][0], batches[2][0])


@pytest.mark.parametrize("augment", [Augment(4, True, 6), STRONG], ids=["plain", "strong"])
def test_a_position_gives_the_same_bits_in_any_order_of_asking(images: ImageSet, augment: Augment) -> None:
    straight = TrainBatches(images, SPEC, 16, augment, 7, "weights")
    expected = [straight[position] for position in range(12)]
    positions = list(range(12))
    random.Random(0).shuffle(positions)
    resumed = TrainBatches(images, SPEC, 16, augment, 7, "weights")
    for position in positions:
        x, y = resumed[position]
        assert torch.equal(x, expected[position][0])
        assert torch.equal(y, expected[position][1])


def test_global_random_state_is_neither_used_nor_moved(images: ImageSet) -> None:
    batches = TrainBatches(images, SPEC, 16, Augment(4, True, 6), 7, "weights")
    torch.manual_seed(1)
    first = batches[5][0]
    state = torch.get_rng_state()
    torch.manual_seed(2)
    assert torch.equal(batches[5][0], first)
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(("seed", "stream"), [(8, "weights"), (7, "alphas")])
def test_seed_and_stream_change_order_and_augmentation(images: ImageSet, seed: int, stream: str) -> None:
    one = TrainBatches(images, SPEC, 16, Augment(), 7, "weights")
    other = TrainBatches(images, SPEC, 16, Augment(), seed, stream)
    assert not torch.equal(one.order(0), other.order(0))
    assert not torch.equal(one.draws(0, 16).offsets, other.draws(0, 16).offsets)


def test_cutout_leaves_crop_and_flip_as_they_are(images: ImageSet) -> None:
    plain = TrainBatches(images, SPEC, 16, Augment(), 0, "weights")[2][0]
    cut = TrainBatches(images, SPEC, 16, Augment(cutout_length=6), 0, "weights")[2][0]
    assert torch.equal(cut, torch.where(cut == 0, 0, plain))
    zeros = (cut == 0).all(1).flatten(1).sum(1)
    assert zeros.max() == 36
    assert zeros.min() >= 9  # a corner keeps a quarter


def test_a_data_set_that_must_not_be_flipped_is_not(images: ImageSet) -> None:
    spec = DataSpec("digits", 3, SIZE, 3, SPEC.mean, SPEC.std, ("a", "b", "c"), flip=False)
    never = TrainBatches(images, spec, 16, Augment(), 0, "weights")[1][0]
    assert torch.equal(never, TrainBatches(images, SPEC, 16, Augment(flip=False), 0, "weights")[1][0])
    assert not torch.equal(never, TrainBatches(images, SPEC, 16, Augment(), 0, "weights")[1][0])


def test_the_generator_is_the_same_in_every_process() -> None:
    """The values are from another process: a hash salted per process would not give them."""
    draws = torch.randint(1000, (4,), generator=keyed_generator(0, "weights", "order", 0))
    assert draws.tolist() == [979, 782, 983, 673]


@pytest.mark.parametrize("channels", [1, 3])
def test_batches_are_float32_in_channels_last(channels: int) -> None:
    spec = DataSpec("c", 2, SIZE, channels, (0.5,) * channels, (0.5,) * channels, ("a", "b"))
    images = ImageSet(torch.full((10, SIZE, SIZE, channels), 255, dtype=torch.uint8), torch.arange(10) % 2)
    train = TrainBatches(images, spec, 4, Augment(2, True, 3), 0, "weights")[0]
    for x, y in (train, next(evaluation_batches(images, spec, 4))):
        assert x.shape == (4, channels, SIZE, SIZE)
        assert x.dtype == torch.float32
        assert x.is_contiguous(memory_format=torch.channels_last)
        assert y.dtype == torch.int64


def test_evaluation_is_every_image_in_order_and_only_normalised(images: ImageSet) -> None:
    parts = list(evaluation_batches(images, SPEC, 16))
    assert [len(y) for _, y in parts] == [16, 16, 16, 2]
    assert torch.equal(torch.cat([y for _, y in parts]), images.labels)
    mean, std = (torch.tensor(v, dtype=torch.float64)[:, None, None] for v in (SPEC.mean, SPEC.std))
    expected = (images.images.permute(0, 3, 1, 2).double() / 255 - mean) / std
    torch.testing.assert_close(torch.cat([x for x, _ in parts]).double(), expected, atol=2e-6, rtol=0)


@pytest.mark.parametrize("augment", [Augment(4, True, 6), STRONG], ids=["plain", "strong"])
@pytest.mark.parametrize("num_ranks", [2, 3, 5])
@pytest.mark.parametrize("position", [0, 3, 6])
def test_the_shares_of_the_ranks_make_up_the_batch_of_one(
    images: ImageSet, position: int, num_ranks: int, augment: Augment
) -> None:
    given = (images, SPEC, 16, augment, 7, "weights")
    one = TrainBatches(*given)
    shares = [TrainBatches(*given, rank, num_ranks)[position] for rank in range(num_ranks)]
    sizes = [len(y) for _, y in shares]
    assert sum(sizes) == one.num_images(position) == len(one[position][1])
    assert max(sizes) - min(sizes) <= 1
    for whole, parts in zip(one[position], zip(*shares, strict=True), strict=True):
        assert torch.equal(whole, torch.cat(parts))


def test_the_ranks_take_turns_in_the_evaluation(images: ImageSet) -> None:
    one = list(evaluation_batches(images, SPEC, 16))
    turns = [list(evaluation_batches(images, SPEC, 16, rank, 3)) for rank in range(3)]
    assert [len(turn) for turn in turns] == [2, 1, 1]
    for number, (x, _) in enumerate(one):
        assert torch.equal(x, turns[number % 3][number // 3][0])


def test_what_makes_no_sense_is_refused(images: ImageSet) -> None:
    with pytest.raises(ValueError, match="no batches"):
        TrainBatches(images.select(torch.arange(0)), SPEC, 16, Augment(), 0, "weights")
    with pytest.raises(ValueError, match="negative"):
        Augment(cutout_length=-1)
    with pytest.raises(IndexError, match="negative"):
        TrainBatches(images, SPEC, 16, Augment(), 0, "weights")[-1]
