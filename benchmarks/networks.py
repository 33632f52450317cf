"""Mobile networks, evaluation and inference, each beside its baseline; retraining is in subjects.py."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.subjects import LAST, Shape, Step, derived_networks, training_step
from darts_sg.backends import accelerate
from darts_sg.engine.export import EXPORT_FORMATS
from darts_sg.genotype import load_genotype
from darts_sg.networks.derived import DerivedNetwork
from darts_sg.networks.mobile import MobileNetwork, find_model
from darts_sg.tasks.task import InferenceModel

IMAGENET = {"network": "imagenet", "channels": 48, "cells": 14, "num_classes": 1000}


def mobile_steps(name: str, batch: int, *, size: int = 224, native: bool = False) -> tuple[Step, Step]:
    """The training step of a model in the ImageNet shape: (plain PyTorch in NCHW, ours)."""
    torch.manual_seed(0)
    plain = MobileNetwork(find_model(name), network="imagenet", num_classes=1000)
    mine = copy.deepcopy(plain).to(memory_format=LAST)
    accelerate(mine, "cpp" if native else "eager")
    x, y = Shape(batch=batch, size=size).images()
    return (
        training_step(plain, (x, y), fused=False),
        training_step(mine, (x.contiguous(memory_format=LAST), y), fused=True),
    )


def evaluation_passes(
    name: str, batch: int, channels: int = 36, cells: int = 20, *, native: bool = False
) -> tuple[Step, Step]:
    """A batch of an evaluation: (the network as the original writes it, ours)."""
    old, mine = derived_networks(name, network="cifar", channels=channels, cells=cells, num_classes=10, auxiliary=True)
    accelerate(mine, "cpp" if native else "eager")
    x, _ = Shape(batch=batch).images()
    return pass_of(old, x), pass_of(mine, x.contiguous(memory_format=LAST))


SINGLE_IMAGES = 25


def inference_passes(name: str, *, size: int = 224, native: bool = False, **options: Any) -> tuple[Step, Step]:
    """Single images, one after the other: (onnxruntime with the exported network, ours), on as many threads.

    Several in a row, because for some milliseconds after a pass the threads of either keep a core busy waiting.
    """
    torch.manual_seed(0)
    mine = DerivedNetwork(load_genotype(name), **{**IMAGENET, **options}).to(memory_format=LAST).eval()
    x = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    exported = EXPORT_FORMATS["onnx"]
    content = exported.write(InferenceModel(mine).eval(), x.repeat(2, 1, 1, 1), ["logits"], {}, {})
    session = exported.load(content)
    if native:
        accelerate(mine, "cpp")
    return repeated(lambda: session(x)), repeated(pass_of(mine, x.contiguous(memory_format=LAST)))


def repeated(step: Step) -> Step:
    """The step for SINGLE_IMAGES images."""

    def run() -> None:
        for _ in range(SINGLE_IMAGES):
            step()

    return run


def pass_of(net: nn.Module, x: Tensor) -> Step:
    """A forward pass in eval mode without gradients."""
    net.eval()

    def run() -> object:
        with torch.inference_mode():
            return net(x)

    return run
