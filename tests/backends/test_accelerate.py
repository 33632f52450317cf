"""Backends adopt the cells of a network: names, values and random numbers stay, whichever backend comes after which."""

import copy
import io
import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

from darts_sg.backends import BACKENDS, accelerate, backend_of
from darts_sg.backends.batched import BatchedCell, plain_tensors
from darts_sg.backends.cpp import build
from darts_sg.errors import UsageError
from darts_sg.genotype import load_genotype
from darts_sg.methods.mixing import softmax
from darts_sg.networks.derived import DerivedNetwork
from darts_sg.networks.supernet import Supernet
from tests.reference.transfer import assert_equal_tensors, randomize

CPU_BACKENDS = {
    "supernet": [name for name in BACKENDS if BACKENDS[name].supernet and name != "triton"],
    "derived": [name for name in BACKENDS if BACKENDS[name].derived],
}
OPERATIONS_OF_EACH_KIND = ("none", "sep_conv_3x3", "dil_conv_3x3", "sandglass_3x3", "max_pool_3x3", "skip_connect")
PAIRS = [(kind, *pair) for kind, names in CPU_BACKENDS.items() for pair in itertools.permutations(names, 2)]


def needs(*backends: str) -> None:
    if "cpp" in backends:
        try:
            build.kernels(real="double")
        except build.Unavailable as reason:
            pytest.skip(str(reason))


def network_of(kind: str, backend: str = "eager", seed: int = 0) -> Supernet | DerivedNetwork:
    needs(backend)
    torch.manual_seed(seed)
    if kind == "derived":
        network: Supernet | DerivedNetwork = DerivedNetwork(load_genotype("DARTS_V2"), channels=4, cells=4)
    else:
        network = Supernet(OPERATIONS_OF_EACH_KIND, channels=4, cells=3, num_nodes=2)
    network.double()
    randomize(network, seed)
    accelerate(network, backend)
    return network


def outcome(network: Supernet | DerivedNetwork) -> list[Tensor]:
    """Logits, the gradients of all weights in the plain order, and the running statistics."""
    x = torch.randn(3, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    if isinstance(network, DerivedNetwork):
        logits = network(x)[0]
        gradients = list(torch.autograd.grad(F.cross_entropy(logits, torch.arange(3)), list(network.parameters())))
        return [logits, *gradients, *network.buffers()]
    logits = network(x, softmax(network))
    found = torch.autograd.grad(F.cross_entropy(logits, torch.arange(3)), [*network.weights(), *network.alphas()])
    mine = dict(zip([*network.weights(), *network.alphas()], found, strict=True))
    by_name = plain_tensors(network, of=lambda weight: mine[weight])
    return [logits, *by_name.values(), *(mine[a] for a in network.alphas()), *statistics(network)]


def statistics(network: Supernet) -> list[Tensor]:
    return list(plain_tensors(network, "buffers").values())


@pytest.mark.parametrize(("kind", "before", "after"), PAIRS)
def test_a_network_computes_the_same_after_changing_its_backend(kind: str, before: str, after: str) -> None:
    """With the pools' statistics of a state alike on all its edges, as training makes them."""
    needs(before, after)
    network = network_of(kind, "batched" if kind == "supernet" else "eager")
    accelerate(network, before)
    other = copy.deepcopy(network)
    generator = torch.get_rng_state()
    accelerate(other.eval().train(), after)
    assert torch.equal(generator, torch.get_rng_state())
    assert backend_of(network) == before
    assert backend_of(other) == after
    assert list(network.state_dict()) == list(other.state_dict())
    assert_equal_tensors(outcome(network), outcome(other), relative=1e-9)
    assert all(cell.training for cell in other.cells)


@pytest.mark.parametrize(("kind", "before", "after"), PAIRS)
def test_checkpoints_go_from_any_backend_to_any_other(kind: str, before: str, after: str) -> None:
    needs(before, after)
    first, second = (network_of(kind, "batched" if kind == "supernet" else "eager", seed) for seed in (0, 1))
    accelerate(first, before)
    accelerate(second, after)
    buffer = io.BytesIO()
    torch.save(first.state_dict(), buffer)
    assert len(buffer.getvalue()) < 3 * sum(t.nbytes for t in [*first.parameters(), *first.buffers()]) + 200_000
    buffer.seek(0)
    second.load_state_dict(torch.load(buffer, weights_only=True))
    for (name, a), (other, b) in zip(first.state_dict().items(), second.state_dict().items(), strict=True):
        assert name == other
        assert torch.equal(a, b), name
    assert_equal_tensors(outcome(first), outcome(second), relative=1e-9)


def test_checkpoints_with_stacked_names_can_be_read() -> None:
    """As versions before the plain form wrote them: the names and tensors of all modules."""
    first, second = (network_of("supernet", "batched", seed) for seed in (0, 1))
    old = {name: t.clone() for name, t in [*first.named_parameters(), *first.named_buffers()]}
    old = {name: t for name, t in old.items() if not name.endswith((".rows", ".columns"))}
    assert sum(".batches." in name for name in old) > 50
    second.load_state_dict(old)
    assert_equal_tensors(outcome(first), outcome(second))


def test_a_checkpoint_of_another_supernet_is_refused_by_plain_names() -> None:
    network = network_of("supernet", "batched")
    state = dict(network.state_dict())
    name = "cells.0.edges.3.ops.1.1.weight"
    missing = {key: value for key, value in state.items() if key != name}
    with pytest.raises(RuntimeError, match=f'Missing key.*"{name}"'):
        network.load_state_dict(missing)
    with pytest.raises(RuntimeError, match=r'Unexpected key.*"cells\.0\.edges\.99\.ops\.0\.1\.weight"'):
        network.load_state_dict({**state, "cells.0.edges.99.ops.0.1.weight": state[name]})
    with pytest.raises(RuntimeError, match=f"size mismatch for {name}"):
        network.load_state_dict({**state, name: torch.zeros(5, 1, 3, 3)})


@pytest.mark.parametrize("kind", CPU_BACKENDS)
def test_a_backend_for_other_networks_and_an_unknown_one_are_answered_in_a_line(kind: str) -> None:
    network = network_of(kind)
    with pytest.raises(UsageError, match=r"unknown backend 'cuda'.* choices: eager, batched, cpp, triton"):
        accelerate(network, "cuda")
    if kind == "derived":
        with pytest.raises(UsageError, match="'batched' executes no derived networks; choices: eager, cpp"):
            accelerate(network, "batched")


class Doubled(nn.Module):
    """A parametrization, which changes what a layer computes without changing its stored weight."""

    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def hook(layer: nn.Module) -> None:
    layer.register_forward_hook(lambda layer, inputs, output: output * 1.5)


def pre_hook(layer: nn.Module) -> None:
    layer.register_forward_pre_hook(lambda layer, inputs: (inputs[0] * 1.5,))


def backward_hook(layer: nn.Module) -> None:
    layer.register_full_backward_hook(lambda layer, by_input, by_output: (by_input[0] * 1.5,))


def parametrized(layer: nn.Module) -> None:
    parametrize.register_parametrization(layer, "weight", Doubled())


def pruned(layer: nn.Module) -> None:
    prune.l1_unstructured(layer, "weight", 0.5)


CHANGES = (hook, pre_hook, backward_hook, parametrized, pruned)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("path", ["cells.0.ops.0.1", "cells.1.input_1.0", "cells.2.input_0.conv_2"])
def test_changes_inside_a_derived_cell_on_kernels_act_as_on_plain_cells(path: str, change: object) -> None:
    assert callable(change)
    found = []
    for backend in ("eager", "cpp"):
        network = network_of("derived", backend)
        before = outcome(network)
        if path.endswith("conv_2") and change in (hook, pre_hook, backward_hook):
            return  # HalvingConv reads the weights of its convolutions and never calls them
        change(network.get_submodule(path))
        found.append(outcome(network))
        assert any(a.shape != b.shape or not torch.allclose(a, b) for a, b in zip(before, found[-1], strict=False))
    assert_equal_tensors(*found, relative=1e-9)


def test_a_replaced_module_of_a_derived_cell_is_executed() -> None:
    found = []
    for backend in ("eager", "cpp"):
        network = network_of("derived", backend)
        network.cells[0].ops[2] = nn.Sequential(nn.Tanh(), nn.Conv2d(4, 4, 1, bias=False)).double()
        randomize(network.cells[0].ops[2], 3)
        network.cells[2].input_1 = nn.Sequential(nn.Conv2d(32, 16, 1, bias=False).double(), nn.Sigmoid())
        randomize(network.cells[2].input_1, 4)
        found.append(outcome(network))
    assert_equal_tensors(*found, relative=1e-9)


@pytest.mark.parametrize("backend", ["batched", "cpp"])
@pytest.mark.parametrize("change", CHANGES)
def test_changes_inside_stacked_edges_are_refused_in_a_line(backend: str, change: object) -> None:
    assert callable(change)
    network = network_of("supernet", backend)
    chain = next(op for op in network.cells[0].batches[0].ops if hasattr(op, "dilated"))
    change(next(layer for layer in chain.layers if isinstance(layer, nn.Conv2d)))
    with pytest.raises(UsageError, match=r'stacked edges.*accelerate\(network, "eager"\)') as caught:
        outcome(network)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("backend", ["batched", "cpp"])
def test_a_replaced_operation_in_stacked_edges_is_refused(backend: str) -> None:
    network = network_of("supernet", backend)
    network.cells[0].batches[1].ops[0] = nn.Identity()
    with pytest.raises(UsageError, match="stacked edges"):
        outcome(network)


@pytest.mark.parametrize("change", CHANGES)
def test_changes_of_input_layers_of_a_supernet_act_on_every_backend(change: object) -> None:
    assert callable(change)
    found = []
    for backend in CPU_BACKENDS["supernet"]:
        network = network_of("supernet", "batched")
        accelerate(network, backend)
        change(network.cells[1].input_1[0])
        x = torch.randn(3, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        logits = network(x, softmax(network))
        wanted = [*network.alphas(), *network.stem.parameters()]
        found.append([logits, *torch.autograd.grad(logits.square().sum(), wanted)])
    for other in found[1:]:
        assert_equal_tensors(found[0], other, relative=1e-9)


def test_a_hook_on_a_cell_and_on_a_batch_of_edges_runs_on_kernels() -> None:
    network = network_of("supernet", "cpp")
    called: list[str] = []
    network.cells[1].register_forward_hook(lambda cell, inputs, output: called.append("cell"))
    cell = network.cells[2]
    assert isinstance(cell, BatchedCell)
    cell.batches[0].register_forward_hook(lambda batch, inputs, output: called.append("batch"))
    expected = outcome(network_of("supernet", "batched"))
    assert_equal_tensors(outcome(network), expected, relative=1e-9)
    assert called == ["cell", "batch"]


@pytest.mark.parametrize("backend", ["batched", "cpp"])
@pytest.mark.parametrize("change", CHANGES)
def test_operations_that_were_changed_before_act_on_every_backend(backend: str, change: object) -> None:
    """They take the generic path, with a module for each edge, and come back from it."""
    assert callable(change)
    needs(backend)
    found = []
    for names in (("eager",), (backend,), (backend, "eager")):
        network = network_of("supernet", "batched")
        accelerate(network, "eager")
        change(network.get_submodule("cells.0.edges.3.ops.1.1"))
        network.cells[0].edges[2].ops[0] = nn.Tanh()
        for name in names:
            accelerate(network, name)
        x = torch.randn(3, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        logits = network(x, softmax(network))
        wanted = [*network.alphas(), *network.stem.parameters()]
        found.append([logits, *torch.autograd.grad(logits.square().sum(), wanted)])
    for other in found[1:]:
        assert_equal_tensors(found[0], other, relative=1e-9)


@pytest.mark.parametrize("kind", CPU_BACKENDS)
def test_hooks_on_cells_stay_and_can_be_removed(kind: str) -> None:
    network = network_of(kind)
    called: list[int] = []
    handle = network.cells[1].register_forward_hook(lambda cell, inputs, output: called.append(1))
    for backend in CPU_BACKENDS[kind]:
        needs(backend)
        accelerate(network, backend)
        outcome(network)
    assert len(called) == len(CPU_BACKENDS[kind])
    handle.remove()
    outcome(network)
    assert len(called) == len(CPU_BACKENDS[kind])


def test_hooked_edges_and_foreign_cells_are_refused_in_a_line() -> None:
    network = network_of("supernet")
    hook(network.cells[2].edges[1])
    with pytest.raises(UsageError, match="edges that are hooked or replaced cannot be stacked"):
        accelerate(network, "batched")
    network.cells[0] = nn.Identity()
    with pytest.raises(UsageError, match="cell 0 is of the class Identity, which no backend executes"):
        accelerate(network, "eager")


@pytest.mark.parametrize(("kind", "before", "after"), PAIRS)
def test_modes_and_frozen_weights_stay(kind: str, before: str, after: str) -> None:
    """A single BatchNorm in eval mode, and frozen input layers, as in finetuning."""
    needs(before, after)
    network = network_of(kind, "batched" if kind == "supernet" else "eager")
    accelerate(network, before)
    network.cells[1].input_1[1].eval()
    network.cells[2].input_1.requires_grad_(False)
    frozen = {name for name, weight in network.named_parameters() if not weight.requires_grad}
    accelerate(network, after)
    assert not network.cells[1].input_1[1].training
    assert network.cells[1].training
    assert {name for name, weight in network.named_parameters() if not weight.requires_grad} == frozen
    accelerate(network.eval(), before)
    norms = [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)]
    assert not any(norm.training for norm in norms)
