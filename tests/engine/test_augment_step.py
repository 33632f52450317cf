"""Steps of a retraining: the average of its weights, and batches that BatchNorm cannot normalise."""

import copy

import pytest
import torch
import torch.nn.functional as F

from darts_sg.config import AugmentConfig
from darts_sg.data import evaluation_batches
from darts_sg.engine.augment import AugmentJob
from darts_sg.engine.search import SearchJob
from darts_sg.engine.setup import refuse_single_images
from darts_sg.errors import UsageError
from darts_sg.genotype import load_genotype
from tests.engine.test_search_step import search_config, setting
from tests.test_command_line import assert_same


def augment_job(**options: object) -> AugmentJob:
    """Of 24 or 48 images of 16×16 pixels."""
    torch.manual_seed(0)
    small = {"genotype": "DARTS_V1", "channels": 4, "cells": 3, "epochs": 4, "batch_size": 8, **options}
    return AugmentJob(AugmentConfig(**small), load_genotype("DARTS_V1"), setting())  # type: ignore[arg-type]


def test_the_average_is_the_sum_written_out_and_leaves_the_training_as_it_is() -> None:
    decay = 0.7
    job, plain = augment_job(ema=decay), augment_job()
    states = []
    torch.manual_seed(1)
    for step in range(5):
        job.step(3, step)  # with drop path
        states.append(copy.deepcopy(job.network.state_dict()))
    shares = [decay**4, *((1 - decay) * decay**k for k in (3, 2, 1, 0))]
    expected = dict(states[-1])  # counters of batches are those of the newest
    for name in (name for name, tensor in states[-1].items() if tensor.is_floating_point()):
        terms = [share * state[name].double() for share, state in zip(shares, states, strict=True)]
        expected[name] = torch.stack(terms).sum(0).float()
    assert job.ema is not None
    torch.testing.assert_close(dict(job.ema.module.state_dict()), expected, rtol=1e-5, atol=1e-6)
    for name in ("stem.body.0.weight", "stem.body.1.running_mean"):
        assert not torch.allclose(expected[name], states[-1][name], rtol=1e-3)
    torch.manual_seed(1)
    for step in range(5):
        plain.step(3, step)
    assert_same(dict(plain.network.state_dict()), dict(states[-1]))

    x, y = next(evaluation_batches(job.test_images, job.setting.data.spec, 48))
    network = job.subject.build().eval()
    found = job.evaluate("test", job.test_images)
    for kind, state in (("", states[-1]), ("ema_", expected)):
        network.load_state_dict(state)
        with torch.no_grad():
            loss = F.cross_entropy(network(x)[0], y).item()
        assert found[f"{kind}test_loss"] == pytest.approx(loss, rel=1e-4)
    assert abs(found["ema_test_loss"] / found["test_loss"] - 1) > 1e-3
    assert job.network.training
    assert plain.evaluate("test", plain.test_images).keys() == {"test_loss", "test_accuracy"}


def test_mixed_and_augmented_images_are_resumed_to_the_same_bits() -> None:
    strong = {"mixup": 0.3, "cutmix": 0.8, "rand_augment": 2, "random_erasing": 0.5, "label_smoothing": 0.1}
    whole, resumed = augment_job(**strong), augment_job(**strong)
    for step in range(2):
        whole.step(0, step)
    resumed.load_state_dict(copy.deepcopy(whole.state_dict()))
    torch.manual_seed(5)
    expected = whole.step(0, 2).means
    torch.manual_seed(5)
    assert_same(dict(resumed.step(0, 2).means), dict(expected))
    assert_same(dict(resumed.network.state_dict()), dict(whole.network.state_dict()))


@pytest.mark.parametrize(("batch_size", "expected"), [(3, 12), (100, 48)])
def test_images_are_tested_in_batches_that_need_no_more_memory_than_a_step(batch_size: int, expected: int) -> None:
    job = augment_job(batch_size=batch_size)
    sizes: list[int] = []
    job.network.stem.register_forward_pre_hook(lambda stem, given: sizes.append(len(given[0])))
    job.evaluate("test", job.test_images)
    assert sum(sizes) == len(job.test_images)
    assert max(sizes) == expected


@pytest.mark.parametrize(
    ("job", "options", "refused"),
    [
        ("augment", {"train_images": 10}, False),
        ("augment", {"train_images": 9}, True),  # in the auxiliary head
        ("augment", {"train_images": 9, "auxiliary_weight": 0}, False),
        ("augment", {"train_images": 9, "auxiliary_weight": 0, "network": "imagenet"}, True),
        ("augment", {"train_images": 2, "batch_size": 1}, True),
        ("search", {"train_images": 9}, False),
        ("search", {"train_images": 9, "network": "imagenet"}, True),
        ("search", {"train_images": 10, "validation_images": 9, "network": "imagenet"}, True),
    ],
    ids=str,
)
def test_a_single_image_is_refused_where_a_step_on_it_would_fail(
    job: str, options: dict[str, object], refused: bool
) -> None:
    made: AugmentJob | SearchJob
    if job == "augment":
        made = trained = augment_job(**options)
        streams, forward = [trained.train], lambda x: trained.subject.build()(x)
    else:
        made = searched = SearchJob(search_config(kernels="pytorch", **options), setting())
        streams, forward = [searched.train, searched.validation], searched.forward_anew

    def refuse() -> None:
        for batches in streams:
            refuse_single_images(batches, forward)

    if refused:
        with pytest.raises(UsageError, match=r"images in batches of \d (end with a|are) single image"):
            refuse()
        with pytest.raises(ValueError, match="more than 1 value per channel"):
            made.step(0, made.steps_per_epoch - 1)
    else:
        state = torch.get_rng_state()
        refuse()
        assert torch.equal(torch.get_rng_state(), state)
        made.step(0, made.steps_per_epoch - 1)


def test_the_memory_probe_runs_no_collective_of_synchronised_batchnorm(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other ranks do not join them: the probe of one rank would wait for ever."""

    def collective(*arguments: object) -> None:
        raise AssertionError("a collective on one rank")

    job = augment_job()
    job.network = torch.nn.SyncBatchNorm.convert_sync_batchnorm(job.network)
    layers = [layer for layer in job.network.modules() if isinstance(layer, torch.nn.SyncBatchNorm)]
    assert layers
    monkeypatch.setattr(torch.nn.SyncBatchNorm, "forward", collective)
    job.attempt(4, recompute=False)
    with pytest.raises(AssertionError, match="a collective on one rank"):  # as before, outside the probe
        job.network(torch.zeros(2, 3, 16, 16))
