"""The optimizers without PyTorch's compiler take PyTorch's steps, to the bit, and exchange states with them."""

import copy

import pytest
import torch
from torch import Tensor, nn

from darts_sg.engine import optimizers

OPTIONS = {
    "SGD": {"lr": 0.1, "momentum": 0.9, "weight_decay": 3e-4, "nesterov": True, "fused": True},
    "Adam": {"lr": 3e-3, "betas": (0.5, 0.999), "weight_decay": 1e-3},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_steps_and_states_are_those_of_pytorch(name: str) -> None:
    ours, reference = (_trained(getattr(module, name), OPTIONS[name], steps=3) for module in (optimizers, torch.optim))
    for mine, theirs in zip(ours[0], reference[0], strict=True):
        assert torch.equal(mine, theirs)
    assert ours[1]["param_groups"] == reference[1]["param_groups"]
    for number, values in reference[1]["state"].items():
        assert all(torch.equal(value, ours[1]["state"][number][key]) for key, value in values.items())


def _trained(kind: type[torch.optim.Optimizer], options: dict, steps: int) -> tuple[list[Tensor], dict]:
    """Parameters and state after some steps, the last one by another optimizer that loads the state of the first."""
    torch.manual_seed(0)
    network, images = nn.Linear(5, 3), torch.randn(4, 5)
    optimizer = kind(network.parameters(), **options)
    for step in range(steps):
        if step == steps - 1:
            state = copy.deepcopy(optimizer.state_dict())
            optimizer = kind(network.parameters(), **options)
            optimizer.load_state_dict(state)
        optimizer.zero_grad()
        network(images).square().sum().backward()
        optimizer.step()
    assert torch.is_grad_enabled()
    return [p.detach() for p in network.parameters()], optimizer.state_dict()
