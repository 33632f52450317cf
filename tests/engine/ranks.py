"""Steps of both jobs in float64: run by torchrun as one of several processes, or imported and run as one alone.

python tests/engine/ranks.py FOLDER leaves what each rank came to in FOLDER/RANK.pt; FOLDER/images holds 18 images of
three classes in ImageNet's layout, some of them odd or damaged.
"""

import dataclasses
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from darts_sg.config import AugmentConfig
from darts_sg.data import load_dataset
from darts_sg.engine.augment import AugmentJob
from darts_sg.engine.distributed import Ranks, end, fingerprint, leave
from darts_sg.engine.search import SearchJob
from darts_sg.engine.setup import Setting
from darts_sg.errors import RunError
from darts_sg.genotype import load_genotype
from tests.engine.test_search_step import search_config, setting

BATCH = {"batch_size": 9}  # of 24 or 48 images: shares of 4 and 5, and in the end of 3 and 3 or 1 and 2


def in_double(network: nn.Module, *, frozen: bool) -> None:
    """Let a network compute in float64, and BatchNorm with its running statistics."""
    network.double().register_forward_pre_hook(lambda module, inputs: (inputs[0].double(), *inputs[1:]))
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d) and frozen:
            layer.eval()


def search_job(ranks: Ranks, method: str, relaxation: str = "softmax", perturbation: str = "none") -> SearchJob:
    torch.manual_seed(0)
    space = "sandglass_3x3+sep_conv_3x3+max_pool_3x3+skip_connect+none"
    small = {"space": space, "nodes": 1, "kernels": "pytorch", "train_images": 24, **BATCH}
    parts = {"hypergradient": method, "relaxation": relaxation, "perturbation": perturbation}
    config = search_config(**parts, alpha_learning_rate=0.01, **small)
    job = SearchJob(config, dataclasses.replace(setting(), ranks=ranks))
    in_double(job.supernet, frozen=True)
    return job


def search(ranks: Ranks, method: str, *parts: str) -> dict[str, Any]:
    job = search_job(ranks, method, *parts)
    means = [job.step(0, step).means for step in range(job.steps_per_epoch)]
    return {"state": job.state_dict(), "means": means, "evaluation": job.evaluate()}


def augment(ranks: Ranks, *, frozen: bool, num_steps: int, **options: Any) -> dict[str, Any]:
    torch.manual_seed(0)
    shape = {"genotype": "DARTS_V2", "channels": 4, "cells": 3, "drop_path_prob": 0.0}
    config = AugmentConfig(**shape, train_images=42, ema=0.8, **BATCH, **options)
    job = AugmentJob(config, load_genotype("DARTS_V2"), dataclasses.replace(setting(), ranks=ranks))
    for network in job.tested.values():
        in_double(network, frozen=frozen)
    means = [job.step(0, step).means for step in range(num_steps)]
    return {"state": job.state_dict(), "means": means, "evaluation": job.evaluate("test", job.test_images)}


def files(ranks: Ranks, images: Path) -> dict[str, Any]:
    """Two passes over image files. `batches`: what all ranks got for each step, joined."""
    torch.manual_seed(0)
    shape = {"genotype": "DARTS_V2", "channels": 4, "cells": 3, "drop_path_prob": 0.0}
    config = AugmentConfig(**shape, cutout_length=4, colour_jitter=0.4, rand_augment=1, mixup=0.3, **BATCH)
    data = load_dataset("imagenet", images, image_size=16)
    job = AugmentJob(config, load_genotype("DARTS_V2"), Setting(torch.device("cpu"), data, {}, {}, ranks))
    in_double(job.network, frozen=True)
    means = [job.step(0, step).means for step in range(job.steps_per_epoch)]
    met_here = dict(data.unusual)
    job.share()
    met = dict(data.unusual)
    means += [job.step(1, step).means for step in range(job.steps_per_epoch)]
    batches = [[torch.cat(parts) for parts in zip(*ranks.gather(job.train[i]), strict=True)] for i in range(len(means))]
    evaluation = job.evaluate("test", job.test_images)
    state = job.state_dict()
    unusual = {"met_here": met_here, "met": met, "in_the_end": state.pop("unusual_images")}
    return {"state": state, "means": means, "evaluation": evaluation, "batches": batches, "unusual": unusual}


def outcomes(ranks: Ranks, images: Path) -> dict[str, Any]:
    return {
        "first_order": search(ranks, "first_order"),
        "unrolled": search(ranks, "unrolled"),
        "gumbel": search(ranks, "unrolled", "gumbel:temperature=5"),
        "hard": search(ranks, "single_level", "gumbel:hard=true"),
        "adversarial": search(ranks, "first_order", "softmax", "adversarial:steps=2,epsilon=0.2"),
        "augment": augment(ranks, frozen=True, num_steps=5),
        "mixed": augment(ranks, frozen=True, num_steps=2, mixup=0.3, cutmix=0.8, rand_augment=2, random_erasing=0.5),
        "eigenvalue": search_job(ranks, "first_order").eigenvalue(),
        "statistics": augment(ranks, frozen=False, num_steps=1),
        "files": files(ranks, images),
    }


def disagreement(ranks: Ranks, state: dict[str, Any]) -> str:
    """What is said when one weight of the second rank is off by its last bit."""
    weight: Tensor = state["network"]["stem.body.0.weight"]
    if ranks.rank == 1:
        weight[0, 0, 0, 0] = torch.nextafter(weight[0, 0, 0, 0], weight.new_tensor(9.0))
    try:
        ranks.compare(lambda: {name: fingerprint(part) for name, part in state.items()}, "start over")
    except RunError as error:
        return str(error)
    return ""


if __name__ == "__main__":
    torch.set_num_threads(1)
    here = Ranks.from_environment()
    here.join(torch.device("cpu"))
    found = outcomes(here, Path(sys.argv[1]) / "images")
    here.seed(0, 7)
    found["random"] = torch.rand(3)
    torch.save(found, Path(sys.argv[1]) / f"{here.rank}.pt")
    told = disagreement(here, found["augment"]["state"])
    (Path(sys.argv[1]) / f"{here.rank}.txt").write_text(told)
    leave()
    end(0)
