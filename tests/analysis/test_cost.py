"""Costs against PyTorch's own counter."""

import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from darts_sg.analysis.cost import count_macs, derived_cost, model_cost, operation_cost
from darts_sg.genotype import load_genotype
from darts_sg.methods.mixing import softmax
from darts_sg.networks.derived import DerivedNetwork
from darts_sg.networks.mobile import MobileNetwork, find_model
from darts_sg.networks.supernet import Supernet
from darts_sg.ops import OPERATIONS
from darts_sg.spaces import parse_space

COUNTED = (torch.ops.aten.convolution, torch.ops.aten.addmm)


def expected_macs(build: Callable[[], nn.Module], *shape: int) -> int:
    """Those of one image, on the meta device; PyTorch counts two operations each."""
    with torch.device("meta"), torch.no_grad():
        module = build().eval().requires_grad_(False)  # the counter's hooks want a graph of what requires gradients
        image = torch.empty(1, *shape)
        mixing = [softmax(module)] if isinstance(module, Supernet) else []
        with FlopCounterMode(display=False) as counter:
            module(image, *mixing)
    counts = counter.get_flop_counts().get("Global", {})
    return sum(counts.get(layer, 0) for layer in COUNTED) // 2


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("name", [name for name in OPERATIONS if name != "none"])
def test_each_operation_costs_what_pytorch_counts(name: str, stride: int) -> None:
    expected = expected_macs(lambda: OPERATIONS[name].build(12, stride, True), 12, 9, 9)
    assert operation_cost(name, 12, stride, 9)[1] == expected


def test_networks_cost_what_pytorch_counts() -> None:
    genotype, options = load_genotype("PC_DARTS_image"), {"channels": 6, "cells": 5, "num_classes": 7}
    expected = expected_macs(lambda: DerivedNetwork(genotype, network="imagenet", **options), 3, 65, 65)
    assert derived_cost(genotype, "imagenet", **options, image_size=65).macs == expected
    model = find_model("mobilenext_0.3_id2")

    def mobile() -> MobileNetwork:
        return MobileNetwork(model, network="imagenet", num_classes=1000)

    assert model_cost(model, image_size=64).macs == expected_macs(mobile, 3, 64, 64)


def test_a_supernet_costs_what_pytorch_counts() -> None:
    def build() -> Supernet:
        return Supernet(parse_space("darts+sandglass").operations, channels=4, cells=3)

    with torch.device("meta"):
        supernet = build()
        actual = count_macs(supernet, torch.empty(1, 3, 32, 32), softmax(supernet))
    assert actual == expected_macs(build, 3, 32, 32)


def test_counting_and_training_load_neither_the_compiler_of_pytorch_nor_sympy() -> None:
    code = "import sys, darts_sg; darts_sg.derived_cost(darts_sg.load_genotype('DARTS_V2')); "
    code += "import torch; from darts_sg.engine.optimizers import SGD, Adam; p = torch.ones(1, requires_grad=True); "
    code += "p.sum().backward(); SGD([p], 0.1, fused=True).step(); Adam([p], 0.1).state_dict(); "
    code += "sys.exit(bool({'torch._dynamo', 'sympy'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
