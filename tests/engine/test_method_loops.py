"""Ten steps of a search by each method against a plain loop written from its formulas, in float64."""

from pathlib import Path
from typing import Any

import pytest
import torch

from darts_sg.backends.batched import plain_tensors
from darts_sg.backends.cpp import build
from darts_sg.config import SearchConfig
from darts_sg.data import Dataset, DataSpec, ImageSet
from darts_sg.engine.search import SearchJob
from darts_sg.engine.setup import Setting
from darts_sg.genotype import Genotype
from tests.reference import methods, textbook
from tests.reference.methods import Loop
from tests.reference.transfer import copy_tensors

SMALL = {
    "data": Path(), "space": "none+dil_conv_3x3+skip_connect", "channels": 4, "cells": 3, "nodes": 1, "batch_size": 4,
    "epochs": 4, "learning_rate": 0.1, "alpha_learning_rate": 0.05, "kernels": "pytorch",
}  # fmt: skip
PARTIAL = {"partial_channels": 2, "edge_normalization": True}
NATIVE = {"kernels": "native", "nodes": 2}

# the options of a search, and what the reference makes of them
METHODS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "gdas": (
        {"relaxation": "gumbel:temperature=10,temperature_end=0.1,hard=true", "nesterov": True},
        {"sample": methods.hard_gumbel(10, 0.1, only_chosen=True)},
    ),
    "gdas, native": (
        {"relaxation": "gumbel:temperature=10,temperature_end=0.1,hard=true", **NATIVE, **PARTIAL},
        {"sample": methods.hard_gumbel(10, 0.1, only_chosen=True)},
    ),
    "snas": (
        {
            "relaxation": "gumbel:temperature=1,temperature_end=0.03", "hypergradient": "single_level",
            "alpha_gradient_clip": 0.01,
        },
        {"sample": methods.gumbel(1, 0.03), "together": True},
    ),
    "reinmax": ({"relaxation": "reinmax"}, {"sample": methods.reinmax(1, only_chosen=True)}),
    "reinmax, all operations": (
        {"relaxation": "reinmax:temperature=1.5,temperature_end=1.5,gradient=all", **PARTIAL},
        {"sample": methods.reinmax(1.5, only_chosen=False)},
    ),
    "drnas": (
        {"relaxation": "dirichlet", "regularizer": "kl", "alpha_weight_decay": 0.0, **PARTIAL},
        {"sample": methods.dirichlet, "term": methods.divergence},
    ),
    "fair-darts": (
        {"relaxation": "sigmoid", "regularizer": "zero-one", "alpha_beta1": 0.9, "alpha_mean": 0.5},
        {"sample": methods.sigmoid, "term": methods.zero_one},
    ),
    "beta-darts": ({"regularizer": "beta-decay"}, {"sample": methods.softmax, "term": methods.beta_decay(50)}),
    "sdarts-rs": ({"perturbation": "random"}, {"sample": methods.softmax, "perturbation": "random"}),
    "sdarts-adv": (
        {"perturbation": "adversarial:steps=2"},
        {"sample": methods.softmax, "perturbation": "adversarial", "attack_steps": 2},
    ),
}  # fmt: skip


def setting() -> Setting:
    """A data set of 24 images of noise, 8×8."""
    images = torch.randint(0, 256, (24, 8, 8, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    part = ImageSet(images, torch.arange(24) % 3)
    spec = DataSpec("noise", 3, 8, 3, (0.5,) * 3, (0.25,) * 3, ("a", "b", "c"))
    return Setting(torch.device("cpu"), Dataset(spec, part, part), {}, {})


@pytest.mark.parametrize("name", METHODS)
def test_ten_steps_are_those_of_the_written_out_loop(name: str) -> None:
    options, reference = METHODS[name]
    if options.get("kernels") == "native":
        try:
            build.kernels(real="double")
        except build.Unavailable as reason:
            pytest.skip(str(reason))
    torch.manual_seed(1)
    config = SearchConfig(**{**SMALL, **options})
    job = SearchJob(config, setting())
    job.supernet.double().register_forward_pre_hook(lambda net, inputs: (inputs[0].double(), *inputs[1:]))
    job.progress = job.progress.double()
    shape = {"channels": 4, "cells": 3, "num_classes": 3, "num_nodes": config.nodes}
    net = textbook.Supernet(job.space.operations, **shape, partial_channels=config.partial_channels).double()
    copy_tensors(net.parameters(), plain_tensors(job.supernet).values())
    alphas = [alpha.detach().clone().requires_grad_() for alpha in job.alphas]
    loop = Loop(net, alphas, options=config.as_dict(), **reference)
    losses = []
    for position in range(10):
        epoch, step = divmod(position, job.steps_per_epoch)
        losses.append(job.step(epoch, step).means["train_loss"].item())
        progress = position / (config.epochs * job.steps_per_epoch)
        seed = job.generator.initial_seed()
        loop.step(job.train[position], job.validation[position], progress, job.learning_rate(epoch), seed)
    assert losses == pytest.approx(loop.losses, rel=1e-8)
    for mine, expected in zip(job.alphas, alphas, strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-7, atol=1e-9)
    for mine, expected in zip(plain_tensors(job.supernet).values(), net.parameters(), strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-7, atol=1e-9)


RECIPES = ("gdas", "snas", "reinmax", "drnas", "fair-darts", "beta-darts", "sdarts-rs", "sdarts-adv")


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_takes_a_step_and_leaves_a_genotype(recipe: str) -> None:
    small = {"channels": 12, "cells": 3, "nodes": 1, "batch_size": 4, "kernels": "pytorch", "alpha_frozen_epochs": 0}
    job = SearchJob(SearchConfig(recipe=recipe, data=Path(), **small), setting())
    before = [alpha.detach().clone() for alpha in job.alphas]
    assert job.step(0, 0).means["train_loss"].isfinite()
    assert not any(torch.equal(a, b) for a, b in zip(before, job.alphas, strict=True))
    assert Genotype("found", "", job.space.operations, *job.select(job.mixing())).normal.concat == (2,)
