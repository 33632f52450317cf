"""Steps that are captured, and what is computed otherwise on a GPU; only where there is one."""

import copy
import dataclasses

import pytest
import torch
import torch.nn.functional as F

from darts_sg.config import AugmentConfig
from darts_sg.engine.augment import AugmentJob
from darts_sg.engine.environment import prepare_device
from darts_sg.engine.search import SearchJob
from darts_sg.genotype import load_genotype
from darts_sg.ops import OPERATIONS
from tests.engine.test_search_step import search_config, setting

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU")
CUDA = torch.device("cuda")


@pytest.fixture(autouse=True)
def deterministic() -> None:
    prepare_device(CUDA, None)


@pytest.mark.parametrize(
    "options", [{}, {"relaxation": "gumbel:temperature=5,temperature_end=0.5,hard=true", "perturbation": "random"}]
)
def test_captured_steps_give_the_same_bits(options: dict[str, str]) -> None:
    """Also where each step draws other noise, at another temperature."""
    weights = []
    for capture in (True, False):
        torch.manual_seed(0)
        job = SearchJob(search_config(capture=capture, **options), dataclasses.replace(setting(44), device=CUDA))
        means = [job.step(epoch, step).means for epoch in range(4) for step in range(job.steps_per_epoch)]
        assert (job.captured is not None and len(job.captured.graphs) == 2) == capture  # the last batch is smaller
        weights.append(
            [torch.stack([m["train_loss"] for m in means]), *copy.deepcopy(job.supernet).state_dict().values()]
        )
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


def test_captured_retraining_steps_give_the_same_bits_and_draw_the_same_random_numbers() -> None:
    """With drop path, auxiliary head, cutout and an average of the weights."""
    found = []
    for capture in (True, False):
        torch.manual_seed(0)
        small = {"genotype": "DARTS_V2", "channels": 4, "cells": 3, "epochs": 4, "batch_size": 8, "cutout_length": 4}
        config = AugmentConfig(**small, ema=0.7, capture=capture)
        job = AugmentJob(config, load_genotype("DARTS_V2"), dataclasses.replace(setting(44), device=CUDA))
        torch.manual_seed(1)
        means = [job.step(epoch, step).means for epoch in range(3) for step in range(job.steps_per_epoch)]
        # batches of 8, without and with drop path; the smaller one at the end of an epoch came too rarely
        assert (job.captured is not None and len(job.captured.graphs) == 2) == capture
        losses = torch.stack([m["train_loss"] for m in means])
        state = [t for part in ("network", "ema") for t in job.state_dict()[part].values()]
        found.append([losses, *map(torch.clone, state), torch.cuda.get_rng_state()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("stride", [1, 2])
def test_average_pools_have_the_gradients_of_the_cpu(stride: int) -> None:
    pool = OPERATIONS["avg_pool_3x3"].build(4, stride, False)
    x = torch.randn(2, 4, 6, 6, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    gradients = []
    for device in ("cpu", "cuda"):
        images = x.to(device).requires_grad_()
        out = pool(images)
        weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype, device=device).view(out.shape)
        gradients.append(torch.autograd.grad(F.mse_loss(out, weights), images)[0].cpu())
    torch.testing.assert_close(*gradients)
