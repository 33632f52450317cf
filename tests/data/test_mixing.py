"""Mixup, CutMix and random erasing against their formulas, and the loss of mixed targets."""

import numpy as np
import pytest
import torch
from scipy import stats

from darts_sg.config import AugmentConfig
from darts_sg.data import Augment, DataSpec, ImageSet, TrainBatches
from darts_sg.data.generator import keyed_numpy
from darts_sg.data.mixing import draw_erasing, draw_mixing
from darts_sg.errors import UsageError
from darts_sg.tasks import Classification

SIZE = 10
SPEC = DataSpec("fake", 3, SIZE, 3, (0.5, 0.4, 0.3), (0.2, 0.25, 0.3), ("a", "b", "c"))


def image_set() -> ImageSet:
    pixels = torch.randint(256, (23, SIZE, SIZE, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return ImageSet(pixels, torch.arange(23) % 3)


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.4, 0.0), (0.0, 1.0), (0.3, 0.8)])
@pytest.mark.parametrize("position", [0, 2])
def test_a_mixed_batch_is_the_plain_one_mixed_pixel_by_pixel(mixup: float, cutmix: float, position: int) -> None:
    given = (image_set(), SPEC, 8)
    plain, labels = TrainBatches(*given, Augment(cutout_length=3), 1, "weights")[position]
    batches = TrainBatches(*given, Augment(cutout_length=3, mixup=mixup, cutmix=cutmix), 1, "weights")
    x, targets = batches[position]
    shares, boxes, cuts = batches.mixing(position)
    assert targets.shape == (len(plain), 3)
    for i in range(len(plain)):
        j, share = (i + 1) % len(plain), shares[i].double()
        if cuts[i]:
            top, left, bottom, right = boxes[i].tolist()
            expected = plain[i].double()
            expected[:, top:bottom, left:right] = plain[j, :, top:bottom, left:right].double()
            assert share == pytest.approx(1 - (bottom - top) * (right - left) / SIZE**2, abs=1e-6)
        else:
            expected = share * plain[i].double() + (1 - share) * plain[j].double()
        torch.testing.assert_close(x[i].double(), expected, atol=1e-5, rtol=0)
        target = torch.zeros(3, dtype=torch.float64)
        target[labels[i]] += share
        target[labels[j]] += 1 - share
        torch.testing.assert_close(targets[i].double(), target, atol=1e-6, rtol=0)


def test_the_shares_are_from_the_beta_distribution_and_boxes_have_the_rest_of_the_area() -> None:
    draws = draw_mixing(4000, 1000, 0.3, 0.0, keyed_numpy(0, "weights", "mixing", 0))
    assert stats.kstest(draws.shares.numpy(), stats.beta(0.3, 0.3).cdf).pvalue > 1e-3
    assert not draws.cuts.any()
    both = draw_mixing(4000, 1000, 0.3, 1.0, keyed_numpy(0, "weights", "mixing", 1))
    assert abs(both.cuts.double().mean() - 0.5) < 0.03
    height, width = (both.boxes[:, 2:] - both.boxes[:, :2])[both.cuts].T
    within = (both.boxes[both.cuts] > 0).all(1) & (both.boxes[both.cuts] < 1000).all(1)  # not clipped: squares
    assert (height == width)[within].all()
    centred = (both.shares[both.cuts][within], 1 - (height / 1000.0)[within] ** 2)
    torch.testing.assert_close(*centred, atol=1e-6, rtol=0)


def test_random_erasing_takes_the_areas_and_ratios_of_the_paper() -> None:
    boxes = draw_erasing(3000, 224, 0.5, keyed_numpy(0, "weights", "erasing", 0)).double()
    sides = boxes[:, 2:] - boxes[:, :2]
    erased = sides.prod(1) > 0
    assert abs(erased.double().mean() - 0.5) < 0.03
    areas, ratios = sides[erased].prod(1) / 224**2, sides[erased, 0] / sides[erased, 1]
    assert areas.min() > 0.019
    assert areas.max() < 0.41
    assert ratios.min() > 0.28
    assert ratios.max() < 3.6
    assert boxes.min() >= 0
    assert boxes.max() <= 224
    given = (image_set(), SPEC, 8)
    plain, _ = TrainBatches(*given, Augment(), 1, "weights")[1]
    x, _ = TrainBatches(*given, Augment(random_erasing=1.0), 1, "weights")[1]
    holes = (x == 0).all(1)
    assert torch.equal(x, torch.where(holes[:, None], 0.0, plain))
    assert (holes.flatten(1).sum(1) >= 2).all()


def test_the_loss_of_shares_is_the_mean_of_both_losses() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 4, dtype=torch.float64, generator=generator)
    first, second, share = torch.arange(6) % 4, torch.arange(1, 7) % 4, torch.rand(6, 1, generator=generator).double()
    targets = share * torch.eye(4).double()[first] + (1 - share) * torch.eye(4).double()[second]
    task = Classification({"label_smoothing": 0.1})
    log_p = logits - logits.exp().sum(1, keepdim=True).log()
    smooth = 0.9 * targets + 0.1 / 4
    assert task.loss(logits, targets).item() == pytest.approx(-(smooth * log_p).sum(1).mean().item(), rel=1e-12)
    (accuracy,) = task.training_metrics(logits, targets).values()
    right = [(targets[i, logits[i].argmax()]).item() for i in range(6)]
    assert accuracy.item() == pytest.approx(np.mean(right))


def test_the_options_reach_the_augmentation_and_are_off_by_default() -> None:
    given = {"mixup": 0.2, "cutmix": 1.0, "rand_augment": 2, "rand_augment_magnitude": 11, "random_erasing": 0.25}
    config = AugmentConfig(genotype="DARTS_V2", **given)
    augment = Classification(config.as_dict()).augment
    assert {name: getattr(augment, name) for name in given} == given
    plain = Classification(AugmentConfig(genotype="DARTS_V2").as_dict()).augment
    assert plain == Augment(cutout_length=16)
    for wrong, message in (
        ({"mixup": -1}, "--mixup must be at least 0"),
        ({"rand_augment": 2, "rand_augment_magnitude": 31}, "--rand-augment-magnitude must be at most 30"),
        ({"rand_augment_magnitude": 5}, "--rand-augment-magnitude is for --rand-augment"),
        ({"random_erasing": 1.5}, "a probability"),
        ({"task": "detection", "dataset": "voc", "mixup": 0.2}, "--mixup 0.2 is for --task classification"),
    ):
        with pytest.raises(UsageError, match=message):
            AugmentConfig(genotype="DARTS_V2", **wrong)
