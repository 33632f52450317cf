"""What a fit chooses, as functions of made-up measurements."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from darts_sg.config import make_config
from darts_sg.errors import UsageError
from darts_sg.fitting.choices import (
    BATCHES,
    DARTS_DISTANCE,
    LADDERS,
    LEAST_EPOCHS,
    LEAST_SEARCH_EPOCHS,
    Affordable,
    DataFacts,
    Timing,
    alpha_learning_rate,
    batch_in_memory,
    batch_size,
    chosen_level,
    frozen_epochs,
    ladder,
    least_seconds,
    natural_size,
    next_level,
    plan,
    published_alpha_steps,
    refuse_too_short,
    regularisers,
    stem_of,
)

FACTS = DataFacts(images=640, test=160, classes=8, side=128)
FAST = Timing(0.01, 16, 0.01, 32, 0.0001, 1.0, 1.0)


def times(timing: Timing, factor: float) -> Timing:
    return timing._replace(search_step=timing.search_step * factor, train_step=timing.train_step * factor)


@pytest.mark.parametrize(
    ("side", "size"), [(10, 32), (32, 32), (47, 48), (63, 64), (128, 128), (200, 192), (3000, 224)]
)
def test_images_are_never_enlarged_to_the_natural_size(side: int, size: int) -> None:
    assert natural_size(side) == size


@pytest.mark.parametrize(("side", "network"), [(32, "cifar"), (48, "cifar"), (64, "imagenet"), (224, "imagenet")])
def test_the_stem_follows_from_the_size(side: int, network: str) -> None:
    assert stem_of(side) == network


@pytest.mark.parametrize("network", LADDERS)
def test_a_ladder_rises(network: str) -> None:
    levels = ladder(FACTS, None, network=network)  # type: ignore[arg-type]
    assert levels == sorted(levels, key=lambda level: (level.image_size, level.cells, level.channels))
    assert len(set(levels)) == len(levels)


def test_options_fix_their_part_of_every_level() -> None:
    levels = ladder(FACTS, None, image_size=40, channels=10, cells=6, search_channels=4, search_cells=3)
    assert [tuple(level) for level in levels] == [(40, "cifar", 4, 3, 10, 6)]


def test_little_memory_lowers_the_image_size_or_is_said() -> None:
    assert max(level.image_size for level in ladder(FACTS, 2 * 800 * 3 * 64 * 64)) == 64
    with pytest.raises(UsageError, match="more than half of the"):
        ladder(FACTS, 2 * 800 * 3 * 64 * 64 - 1)


@given(st.integers(2, 200_000))
def test_batches_leave_no_single_image_and_many_steps(images: int) -> None:
    size = batch_size(images)
    assert 2 <= size <= max(BATCHES)
    assert size <= images
    assert images % size != 1 or size == 2
    if images >= 20 * min(BATCHES):
        assert images / size >= 20


def test_batches_shrink_to_the_memory() -> None:
    assert batch_in_memory(64, 100, 1000.0, 10**9) == 64
    assert batch_in_memory(64, 1000, 1000.0, 10**8) == 32
    assert batch_in_memory(64, 1000, 1000.0, 10**6) == 0  # not even two images
    assert batch_in_memory(64, 1000, None, 10**6) == 64  # the system does not say


def test_the_alphas_go_as_far_as_in_the_papers() -> None:
    darts, pc = make_config("search", "darts-first"), make_config("search", "pc-darts")
    assert published_alpha_steps(darts) == 19_550  # type: ignore[arg-type]
    assert published_alpha_steps(pc) == 35 * 98  # type: ignore[arg-type]
    for config in (darts, pc):
        rate = alpha_learning_rate(config, 1000)  # type: ignore[arg-type]
        assert math.isclose(1000 * rate, DARTS_DISTANCE)
        assert alpha_learning_rate(config, 10) == 0.03  # type: ignore[arg-type]
        assert alpha_learning_rate(config, 10**6) == config.alpha_learning_rate  # type: ignore[attr-defined]


@pytest.mark.parametrize(("epochs", "frozen"), [(50, 15), (10, 3), (3, 1), (1, 0)])
def test_the_alphas_wait_for_the_share_of_the_recipe(epochs: int, frozen: int) -> None:
    config = make_config("search", "pc-darts")
    assert frozen_epochs(config, epochs) == frozen  # type: ignore[arg-type]


def test_short_trainings_have_no_regularisation_and_long_ones_that_of_the_papers() -> None:
    assert not any(regularisers(99, 128).values())
    assert regularisers(600, 32) == {"cutout_length": 8, "drop_path_prob": 0.2, "auxiliary_weight": 0.4}


@given(st.floats(40, 10_000), st.floats(0.1, 30))
def test_a_plan_fits_into_its_time(seconds: float, factor: float) -> None:
    timing = times(FAST, factor)
    least = least_seconds(timing, FACTS, 320, None, None)
    found = plan(seconds, timing, FACTS, 320, None, None)
    assert found.search_epochs >= LEAST_SEARCH_EPOCHS
    assert found.epochs >= LEAST_EPOCHS
    if seconds >= 2.5 * least:
        assert found.search_seconds + found.train_seconds <= seconds + 1e-6


def test_given_epochs_are_kept() -> None:
    assert plan(100, FAST, FACTS, 320, 7, None).search_epochs == 7
    assert plan(100, FAST, FACTS, 320, None, 9).epochs == 9
    assert plan(1, FAST, FACTS, 320, 7, 9)[:2] == (7, 9)


def test_the_largest_affordable_level_is_chosen_by_measuring_few() -> None:
    works = [(1.0, 1.0), (2.0, 2.0), (4.0, 4.0), (8.0, 8.0), (16.0, 16.0)]
    slow = [1.0, 1.5, 3.0, 6.0, 60.0]  # the last one is slower than its MACs say
    affordable = Affordable(200, FACTS, 320, 0.3, None, None)
    measured: dict[int, Timing | None] = {}
    fits: dict[int, bool] = {}
    while (index := next_level(measured, works, fits, affordable)) is not None:
        measured[index] = times(FAST, slow[index])
        fits[index] = affordable(times(FAST, slow[index]))
    best = max(i for i, factor in enumerate(slow) if affordable(times(FAST, factor)))
    assert 0 < best < 4
    assert chosen_level(measured, fits) == best
    assert len(measured) <= 4


def test_a_level_that_does_not_fit_into_memory_is_not_chosen() -> None:
    assert chosen_level({0: FAST, 1: None}, {0: False, 1: False}) == 0
    with pytest.raises(UsageError, match="not even a batch of two"):
        chosen_level({0: None}, {0: False})


def test_too_little_time_is_refused_with_the_least() -> None:
    refuse_too_short(10, 10, 5, 30)
    with pytest.raises(UsageError, match=r"--minutes 1 is too little .* give --minutes 2\.4 or more"):
        refuse_too_short(100, 20, 25, 60)
