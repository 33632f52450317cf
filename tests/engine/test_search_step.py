"""One step of the search against the algorithm written out (DARTS paper, algorithm 1), with plain autograd."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from darts_sg.analysis.cost import derived_cost
from darts_sg.backends import backend_of
from darts_sg.backends.batched import EdgeBatch, edge_batches, plain_tensors
from darts_sg.backends.cpp import build
from darts_sg.config import AugmentConfig, SearchConfig
from darts_sg.data import Dataset, DataSpec, ImageSet
from darts_sg.engine.augment import AugmentJob
from darts_sg.engine.environment import describe
from darts_sg.engine.run_dir import RunDir
from darts_sg.engine.search import SearchJob
from darts_sg.engine.search_data import split_sizes
from darts_sg.engine.setup import Setting
from darts_sg.engine.steps import load_optimizer, scheduled_learning_rate
from darts_sg.errors import UsageError
from darts_sg.genotype import load_genotype
from darts_sg.methods.mixing import softmax
from darts_sg.networks.derived import DerivedNetwork
from darts_sg.networks.mobile import find_model
from tests.reference import textbook
from tests.reference.transfer import copy_tensors


def setting(num_images: int = 48) -> Setting:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (num_images, 16, 16, 3), dtype=torch.uint8, generator=generator)
    labels = torch.arange(num_images) % 3
    spec = DataSpec("noise", 3, 16, 3, (0.5,) * 3, (0.25,) * 3, ("a", "b", "c"))
    part = ImageSet(images, labels)
    return Setting(torch.device("cpu"), Dataset(spec, part, part), {}, {})


def search_config(**options: object) -> SearchConfig:
    small = {"channels": 4, "cells": 3, "nodes": 2, "batch_size": 8, "epochs": 5, "data": Path(), **options}
    return SearchConfig(**small)  # type: ignore[arg-type]


def test_a_first_order_step_is_adam_on_the_alphas_then_clipped_sgd_on_the_weights() -> None:
    torch.manual_seed(0)
    config = search_config(gradient_clip=0.5)
    job = SearchJob(config, setting())
    net = copy.deepcopy(job.supernet)
    job.step(0, 0)

    x, y = job.validation[0]
    gradients = torch.autograd.grad(F.cross_entropy(net(x, softmax(net)), y), net.alphas())
    for alpha, gradient in zip(net.alphas(), gradients, strict=True):
        g = gradient + config.alpha_weight_decay * alpha.detach()
        # first step of Adam: both moments are those of one gradient after the correction of their bias
        alpha.data -= config.alpha_learning_rate * g / (g.abs() + 1e-8)
    x, y = job.train[0]
    gradients = torch.autograd.grad(F.cross_entropy(net(x, softmax(net)), y), net.weights())
    norm = torch.sqrt(sum((g**2).sum() for g in gradients))
    assert norm > config.gradient_clip
    for weight, gradient in zip(net.weights(), gradients, strict=True):
        step = gradient * config.gradient_clip / (norm + 1e-6) + config.weight_decay * weight.detach()
        weight.data -= config.learning_rate * step
    for mine, expected in zip(job.supernet.parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-6)


def test_the_supernet_is_evaluated_in_batches_no_larger_than_those_of_training() -> None:
    job = SearchJob(search_config(batch_size=5), setting())
    sizes: list[int] = []
    job.supernet.stem.register_forward_pre_hook(lambda stem, given: sizes.append(len(given[0])))
    job.evaluate()
    assert sum(sizes) == len(job.validation_images)
    assert max(sizes) == 5


def test_frozen_alphas_do_not_move_and_are_not_measured() -> None:
    job = SearchJob(search_config(alpha_frozen_epochs=1, partial_channels=2, edge_normalization=True), setting())
    before = [alpha.clone() for alpha in job.alphas]
    result = job.step(0, 0)
    assert all(torch.equal(a, b) for a, b in zip(before, job.alphas, strict=True))
    assert "validation_loss" not in result.means
    result = job.step(1, 0)
    assert not any(torch.equal(a, b) for a, b in zip(before, job.alphas, strict=True))
    assert "validation_loss" in result.means


def test_an_unrolled_step_moves_the_alphas_elsewhere_than_a_first_order_step() -> None:
    moved = []
    for method in ("first_order", "unrolled"):
        torch.manual_seed(0)
        job = SearchJob(search_config(hypergradient=method), setting())
        job.step(0, 0)
        job.step(0, 1)
        moved.append(torch.cat([alpha.detach().flatten() for alpha in job.alphas]))
    assert not torch.equal(*moved)
    torch.testing.assert_close(*moved, rtol=0, atol=1e-2)


def test_the_two_parts_of_the_training_images_are_disjoint_and_balanced() -> None:
    job = SearchJob(search_config(), setting())
    assert len(job.train_images) == len(job.validation_images) == 24
    seen = {tuple(image.flatten().tolist()) for image in job.train_images.images}
    assert not seen & {tuple(image.flatten().tolist()) for image in job.validation_images.images}
    assert job.train_images.labels.bincount().tolist() == [8, 8, 8]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, (500, 500)),
        ({"train_images": 200}, (200, 200)),
        ({"train_images": 900}, (900, 100)),
        ({"validation_images": 100}, (900, 100)),
        ({"train_images": 300, "validation_images": 50}, (300, 50)),
    ],
)
def test_split_sizes(options: dict[str, int], expected: tuple[int, int]) -> None:
    assert split_sizes(search_config(**options), 1000) == expected


def test_drop_path_grows_linearly_and_the_learning_rate_falls_as_a_cosine() -> None:
    config = AugmentConfig(genotype="DARTS_V1", channels=4, cells=3, epochs=4, batch_size=8)
    job = AugmentJob(config, load_genotype("DARTS_V1"), setting())
    assert [job.drop_path_prob(e) for e in range(4)] == pytest.approx([0, 0.05, 0.1, 0.15])
    rates = [job.learning_rate(e) for e in range(4)]
    assert rates == pytest.approx([0.025 * (1 + np.cos(np.pi * e / 4)) / 2 for e in range(4)])


def test_the_auxiliary_loss_reaches_its_head_and_is_left_out_where_it_weighs_nothing() -> None:
    options = {"genotype": "DARTS_V1", "channels": 4, "cells": 3, "epochs": 4, "batch_size": 8}
    job = AugmentJob(AugmentConfig(**options), load_genotype("DARTS_V1"), setting())
    before = job.network.auxiliary_head.head.classifier.weight.clone()
    job.step(0, 0)
    assert not torch.equal(before, job.network.auxiliary_head.head.classifier.weight)
    job = AugmentJob(AugmentConfig(**options, auxiliary_weight=0.0), load_genotype("DARTS_V1"), setting())
    assert job.network.auxiliary_head is None
    assert job.subject.cost.params_with_auxiliary > job.subject.cost.params


def test_the_learning_rate_warms_up_before_the_cosine_goes_on() -> None:
    options = {"epochs": 4, "learning_rate": 0.1, "warmup_epochs": 2, "batch_size": 8}
    job = AugmentJob(AugmentConfig(model="mobilenext_0.1", **options), find_model("mobilenext_0.1"), setting())
    assert [job.learning_rate(e) for e in range(4)] == pytest.approx([0.05, 0.1, 0.05, 0.1 * (1 - 0.5**0.5) / 2])


@pytest.mark.parametrize(
    ("schedule", "factors"), [("linear", [1, 0.775, 0.55, 0.325]), ("exponential", [0.1 ** (e / 4) for e in range(4)])]
)
def test_other_schedules_go_to_the_lowest_rate_and_larger_batches_have_larger_rates(
    schedule: str, factors: list[float]
) -> None:
    options = {"epochs": 4, "learning_rate": 0.2, "learning_rate_min": 0.02, "schedule": schedule}
    for batch_size, warmup_epochs in ((8, 0), (16, 2)):
        more = {"batch_size": batch_size, "learning_rate_batch": 8, "warmup_epochs": warmup_epochs}
        config = AugmentConfig(model="mobilenext_0.1", **options, **more)
        expected = [0.2 * batch_size / 8 * factor for factor in factors]
        if warmup_epochs:
            expected[:2] = [0.2, 0.4]
        assert [scheduled_learning_rate(config, epoch) for epoch in range(4)] == pytest.approx(expected)


def test_label_smoothing_spreads_its_share_over_all_classes_in_both_losses() -> None:
    options = {"genotype": "DARTS_V1", "channels": 4, "cells": 3, "batch_size": 8, "weight_decay": 0.0}
    job = AugmentJob(AugmentConfig(**options, label_smoothing=0.2), load_genotype("DARTS_V1"), setting())
    before = copy.deepcopy(job.network)
    found = job.step(0, 0).means["train_loss"]
    x, y = job.train[0]
    losses = []
    for logits in before(x):
        surprise = -logits.log_softmax(dim=1)
        losses.append((0.8 * surprise[torch.arange(len(y)), y] + 0.2 * surprise.mean(dim=1)).mean())
    torch.testing.assert_close(found, losses[0].detach())
    gradient = torch.autograd.grad(0.4 * losses[1], before.auxiliary_head.head.classifier.weight)[0]
    moved = before.auxiliary_head.head.classifier.weight - job.network.auxiliary_head.head.classifier.weight
    torch.testing.assert_close(moved / moved.norm(), gradient / gradient.norm(), rtol=1e-2, atol=1e-3)


def test_more_images_than_there_are_is_refused() -> None:
    with pytest.raises(UsageError, match=r"--train-images 40 and --validation-images 20: .* has 48 images; lower"):
        SearchJob(search_config(train_images=40, validation_images=20), setting())


@pytest.mark.parametrize("kernels", ["pytorch", "native"])
def test_the_alphas_of_a_short_search_are_those_of_the_textbook_step_by_step(kernels: str) -> None:
    """In float64, with the textbook's supernet, all gradients in both steps, as the original runs."""
    if kernels == "native":
        try:
            build.kernels()
        except build.Unavailable as reason:
            pytest.skip(str(reason))
    torch.manual_seed(0)
    config = search_config(kernels=kernels, alpha_learning_rate=0.01, gradient_clip=0.5)
    job = SearchJob(config, setting(96))
    job.supernet.double()
    job.supernet.register_forward_pre_hook(lambda supernet, inputs: (inputs[0].double(), *inputs[1:]))

    old = textbook.Supernet(job.space.operations, channels=4, cells=3, num_classes=3, num_nodes=2).double()
    copy_tensors(old.parameters(), plain_tensors(job.supernet).values())
    alphas = [alpha.detach().clone().requires_grad_() for alpha in job.alphas]
    adam = torch.optim.Adam(alphas, 0.01, betas=(0.5, 0.999), weight_decay=config.alpha_weight_decay)
    sgd = torch.optim.SGD(old.parameters(), config.learning_rate, momentum=0.9, weight_decay=config.weight_decay)

    def backward(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
        sgd.zero_grad()
        adam.zero_grad()
        mixing = [textbook.softmax_over_operations(alpha) for alpha in alphas]
        F.cross_entropy(old(batch[0].double(), *mixing), batch[1]).backward()

    assert job.steps_per_epoch == 6
    for step in range(job.steps_per_epoch):
        backward(job.validation[step])
        adam.step()
        backward(job.train[step])
        torch.nn.utils.clip_grad_norm_(old.parameters(), config.gradient_clip)
        sgd.step()
        job.step(0, step)
        for mine, expected in zip(job.alphas, alphas, strict=True):
            torch.testing.assert_close(mine, expected, rtol=1e-8, atol=1e-10)
    weights = plain_tensors(job.supernet).values()
    for mine, expected in zip(weights, old.parameters(), strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-6, atol=1e-8, check_stride=False)


def test_either_job_can_try_whether_a_batch_fits() -> None:
    options = {"genotype": "DARTS_V1", "channels": 4, "cells": 3, "epochs": 4, "batch_size": 8}
    jobs = [AugmentJob(AugmentConfig(**options), load_genotype("DARTS_V1"), setting())]
    jobs.append(SearchJob(search_config(), setting()))
    for job in jobs:
        before = [w.clone() for w in job.weights]
        job.attempt(4, recompute=True)
        job.attempt(100, recompute=False)
        assert all(torch.equal(a, b) for a, b in zip(before, job.weights, strict=True))
        assert all(w.grad is None for w in job.weights)


def test_bfloat16_steps_stay_close_to_those_of_float32() -> None:
    losses = []
    for precision in ("float32", "bfloat16"):
        torch.manual_seed(0)
        options = {"genotype": "DARTS_V1", "channels": 4, "cells": 3, "epochs": 4, "batch_size": 8}
        jobs = [SearchJob(search_config(precision=precision, kernels="pytorch"), setting())]
        jobs.append(AugmentJob(AugmentConfig(**options, precision=precision), load_genotype("DARTS_V1"), setting()))
        losses.append([job.step(0, 0).means["train_loss"].float() for job in jobs])
        assert all(p.dtype == torch.float32 for job in jobs for p in job.weights)
    for exact, rough in zip(*losses, strict=True):
        assert exact != rough
        torch.testing.assert_close(exact, rough, rtol=0.1, atol=0.1)


def test_an_optimizer_takes_over_a_state_but_not_how_it_was_computed() -> None:
    states = []
    for options in ({"foreach": True}, {"foreach": False}):
        weight = torch.nn.Parameter(torch.ones(3))
        optimizer = torch.optim.Adam([weight], 0.1, **options)
        weight.grad = torch.arange(3.0)
        optimizer.step()
        states.append((optimizer, weight))
    (first, _), (second, weight) = states
    saved = first.state_dict()
    saved["param_groups"][0]["lr"] = 0.7
    load_optimizer(second, saved)
    assert second.param_groups[0]["foreach"] is False
    assert second.param_groups[0]["lr"] == 0.1  # set anew for each step
    assert second.param_groups[0]["params"] == [weight]
    assert second.state[weight]["step"] == 1


def test_the_momentum_of_a_gpu_is_laid_out_for_a_cpu() -> None:
    """There depthwise weights, and so what belongs to them, are stored tap by tap; fused steps see flat memory."""
    torch.manual_seed(0)
    values, gradient = torch.randn(2, 4, 1, 3, 3)
    tap_by_tap = [t.permute(2, 3, 1, 0).contiguous().permute(3, 2, 0, 1) for t in (values, gradient)]
    optimizers, weights = [], []
    for weight, grad in (tap_by_tap, (values, gradient)):
        weights.append(torch.nn.Parameter(weight.clone()))
        optimizers.append(torch.optim.SGD([weights[-1]], 0.1, momentum=0.9, fused=True))
        weights[-1].grad = grad.clone()
        optimizers[-1].step()
    load_optimizer(optimizers[1], copy.deepcopy(optimizers[0].state_dict()))
    for optimizer in optimizers:
        optimizer.step()
    torch.testing.assert_close(*weights, rtol=1e-6, atol=1e-6)


def test_retrainings_of_genotypes_and_of_models_have_kernels() -> None:
    options = {"channels": 4, "cells": 3, "batch_size": 8}
    for asked in ("native", "pytorch"):
        if asked == "native":
            try:
                build.kernels()
            except build.Unavailable:
                continue
        where = setting()
        job = AugmentJob(AugmentConfig(genotype="DARTS_V2", kernels=asked, **options), load_genotype("DARTS_V2"), where)
        assert where.environment["kernels"] == asked
        assert isinstance(job.network, DerivedNetwork)
        assert backend_of(job.network) == ("cpp" if asked == "native" else "eager")
        model, where = "mobilenetv2_0.1", setting()
        AugmentJob(AugmentConfig(model=model, batch_size=8, kernels=asked), find_model(model), where)
        assert where.environment["kernels"] == asked


def test_a_search_compiles_its_batches_of_edges(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []
    monkeypatch.setattr(EdgeBatch, "compile", lambda self, **options: compiled.append(self))
    job = SearchJob(search_config(compile=True), setting())
    assert compiled == edge_batches(job.supernet) != []


def test_a_penalty_pushes_the_alphas_toward_small_operations_and_is_reported() -> None:
    expected = []
    for options in ({}, {"penalty": "params:100"}):
        torch.manual_seed(0)
        job = SearchJob(search_config(alpha_learning_rate=0.05, kernels="pytorch", **options), setting())
        for step in range(3):
            result = job.step(0, step)
        assert ("penalty_params" in result.means) == bool(options)
        [penalty] = SearchJob(search_config(penalty="params:1"), setting()).regularizers.values()
        mixing = {title: torch.from_numpy(weights) for title, weights in job.mixing().items()}
        expected.append(penalty.metrics(mixing)["expected_params"])
    assert expected[1] < 0.95 * expected[0]


def test_a_target_bounds_the_genotype(tmp_path: Path) -> None:
    free = derived_of(search_config(kernels="pytorch"), tmp_path / "a")
    target = free - 200_000
    assert derived_of(search_config(kernels="pytorch", target_params=str(target)), tmp_path / "b") <= target


def derived_of(config: SearchConfig, folder: Path) -> int:
    torch.manual_seed(0)
    place = Setting(torch.device("cpu"), setting().data, {}, dict.fromkeys(describe(torch.device("cpu"))))
    genotype = SearchJob(config, place).derive(RunDir.create(folder), 1)
    return derived_cost(genotype).params


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"penalty": "size:1"}, "--penalty size:1: expected params:WEIGHT, macs:WEIGHT or latency:WEIGHT"),
        ({"penalty": "params"}, "expected params:WEIGHT, macs:WEIGHT or latency:WEIGHT"),
        ({"target_params": "few"}, "--target-params: expected a number such as 2.45M"),
        ({"target_macs": "1M"}, "--target-macs 1,000,000: the smallest network of this space has"),
        ({"target_params": "1k"}, " at C=36, 20 cells"),
    ],
)
def test_penalties_that_cannot_be_are_answered(options: dict[str, str], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        SearchJob(search_config(space="skip_connect+sep_conv_3x3", **options), setting())
    assert said in str(caught.value)
