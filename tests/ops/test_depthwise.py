"""The depthwise convolution against PyTorch's own, in float64."""

import pytest
import torch
import torch.nn.functional as F

from darts_sg.ops.depthwise import depthwise


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("size", [(8, 8), (5, 7), (6, 2), (1, 1)])
@pytest.mark.parametrize("k", [3, 5, 7])
def test_depthwise_has_the_outputs_and_gradients_of_a_convolution(
    k: int, size: tuple[int, int], memory_format: torch.memory_format
) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, *size, generator=generator, dtype=torch.float64)
    x = x.contiguous(memory_format=memory_format).requires_grad_()
    weight = torch.randn(3, 1, k, k, generator=generator, dtype=torch.float64, requires_grad=True)
    outputs = [depthwise(x, weight), F.conv2d(x, weight, padding=k // 2, groups=3)]
    torch.testing.assert_close(*outputs, check_stride=False)
    upstream = torch.randn(outputs[0].shape, generator=generator, dtype=torch.float64)
    mine, expected = (torch.autograd.grad(y, (x, weight), upstream) for y in outputs)
    torch.testing.assert_close(mine, expected, rtol=1e-12, atol=1e-12, check_stride=False)


def test_second_derivatives_pass_through_it() -> None:
    x, weight = torch.randn(1, 2, 6, 6, dtype=torch.float64), torch.randn(2, 1, 5, 5, dtype=torch.float64)
    assert torch.autograd.gradgradcheck(depthwise, (x.requires_grad_(), weight.requires_grad_()))
