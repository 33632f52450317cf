"""The joint of a cell's states."""

import pytest
import torch

from darts_sg.networks.skeleton import join


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_join_is_a_concatenation_whose_gradients_are_contiguous(memory_format: torch.memory_format) -> None:
    generator = torch.Generator().manual_seed(0)
    states = [
        torch.randn(2, C, 4, 5, generator=generator, dtype=torch.float64)
        .contiguous(memory_format=memory_format)
        .requires_grad_()
        for C in (2, 3, 3)
    ]
    joined = join(states)
    assert torch.equal(joined, torch.cat(states, dim=1))
    upstream = torch.randn(joined.shape, generator=generator, dtype=torch.float64)
    upstream = upstream.contiguous(memory_format=memory_format)
    gradients = torch.autograd.grad(joined, states, upstream)
    for gradient, expected in zip(gradients, upstream.split((2, 3, 3), dim=1), strict=True):
        assert torch.equal(gradient, expected)
        assert gradient.is_contiguous(memory_format=memory_format)
    assert torch.autograd.gradgradcheck(lambda *x: join(x), states)
