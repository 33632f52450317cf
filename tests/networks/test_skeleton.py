"""States between cells, and the rules of widths and strides."""

import pytest
import torch

from darts_sg.networks.skeleton import NetworkShape, State, edge_stride, join, stem_channels


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


def parts(*channels: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, C, 4, 5, generator=generator) for C in channels]


def test_a_state_is_rectified_once_and_in_place() -> None:
    [x] = parts(3)
    expected = x.relu()
    state = State(x)
    rectified = state.rectified()
    assert rectified is state.rectified() is x
    assert torch.equal(x, expected)
    assert state.parts == (x,)  # of use to consumers that begin with a ReLU of their own


@pytest.mark.parametrize("reason", ["kept", "joined", "parts", "view", "leaf"])
def test_a_state_is_not_overwritten_where_its_values_are_needed(reason: str) -> None:
    [whole] = parts(3)
    x = whole[:] if reason == "view" else whole.requires_grad_(reason == "leaf")
    before = x.detach().clone()
    state = State(x)
    if reason == "joined":
        assert state.joined() is x
    elif reason == "parts":
        assert state.parts == (x,)
    assert torch.equal(state.rectified(keep=reason == "kept"), before.relu())
    assert torch.equal(x, before)
    assert torch.equal(state.joined(), before)


def test_a_state_in_parts_is_their_concatenation() -> None:
    given = parts(2, 3, 1)
    whole = torch.cat(given, dim=1)
    state = State(*given)
    assert state.shape == (2, 6, 4, 5)
    assert torch.equal(state.rectified(), whole.relu())
    assert torch.equal(state.joined(), whole)
    assert state.parts == tuple(given)
    later = [part * 2 for part in given]
    state.pass_on(later)
    assert state.parts == tuple(later)


@pytest.mark.parametrize(
    ("network", "multiplier", "expected"), [("cifar", 3, 48), ("cifar", 1, 16), ("imagenet", 3, 16)]
)
def test_widths_of_stems(network: NetworkShape, multiplier: int, expected: int) -> None:
    assert stem_channels(network, 16, multiplier) == expected


def test_strides_of_edges() -> None:
    assert [[edge_stride(reduction, state) for state in range(4)] for reduction in (False, True)] == [
        [1, 1, 1, 1],
        [2, 2, 1, 1],
    ]
