"""Derived networks against the textbook in float64, and against the published networks' exact counts."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from darts_sg.analysis.cost import derived_cost
from darts_sg.backends import accelerate
from darts_sg.backends.cpp import build
from darts_sg.backends.cpp.cells import CppDerivedCell
from darts_sg.errors import UsageError
from darts_sg.genotype import Cell, Edge, Genotype, load_genotype, zoo_names
from darts_sg.networks.derived import DerivedCell, DerivedNetwork
from darts_sg.networks.skeleton import CellSpec, State
from darts_sg.ops import OPERATIONS
from tests.reference import textbook
from tests.reference.transfer import assert_equal_tensors, copy_tensors, gradients, randomize


def genotype_with_every_operation() -> Genotype:
    """Two edges a node, over the registered operations in turn, in both cells."""
    names = [name for name in OPERATIONS if name != "none" and not OPERATIONS[name].is_random]
    names += names[: len(names) % 2]
    nodes = tuple(
        (Edge(first, node % 2), Edge(second, node + 1))
        for node, (first, second) in enumerate(zip(names[::2], names[1::2], strict=True))
    )
    cell = Cell(nodes, tuple(range(2, 2 + len(nodes))))
    return Genotype("every", "all", tuple(OPERATIONS), cell, cell)


GENOTYPES = {name: load_genotype(name) for name in zoo_names()} | {"every": genotype_with_every_operation()}


def pair(genotype: Genotype, **options: object) -> tuple[nn.Module, nn.Module]:
    """(the package's, the textbook's) network in float64, with the same random weights and statistics."""
    expected = textbook.DerivedNetwork(genotype.as_dict(), **options).double()
    randomize(expected, seed=1)
    actual = DerivedNetwork(genotype, **options).double()
    copy_tensors(actual.parameters(), expected.parameters())
    copy_tensors(actual.buffers(), expected.buffers())
    return actual, expected


def native_kernels() -> None:
    try:
        build.kernels()
    except build.Unavailable as reason:
        pytest.skip(str(reason))


def images(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("name", GENOTYPES)
@pytest.mark.parametrize(("network", "size"), [("cifar", 32), ("imagenet", 224)])
def test_network_is_the_textbook_one(network: str, size: int, name: str) -> None:
    options = {"network": network, "channels": 4, "cells": 5 if network == "cifar" else 3, "num_classes": 7}
    actual, expected = pair(GENOTYPES[name], **options, auxiliary=True)
    x = images(4, 3, size, size)
    outputs = [actual(x), expected(x)]
    assert_equal_tensors(*outputs)
    losses = [logits.logsumexp(1).sum() + auxiliary.logsumexp(1).sum() for logits, auxiliary in outputs]
    assert_equal_tensors(
        gradients(losses[0], actual.parameters()), gradients(losses[1], expected.parameters()), relative=1e-9
    )
    assert_equal_tensors(actual.buffers(), expected.buffers())
    (logits, none), (wanted, _) = actual.eval()(x), expected.eval()(x)
    assert none is None
    assert_equal_tensors([logits], [wanted])


def sparse_genotype() -> Genotype:
    """Nodes of 0 to 3 edges, and a reduction cell that ignores c_{k-1}."""
    normal = (
        (),
        (Edge("sep_conv_3x3", 0),),
        (Edge("skip_connect", 3), Edge("max_pool_3x3", 1), Edge("dil_conv_3x3", 0)),
    )
    reduce = ((Edge("skip_connect", 0),), (), ())
    return Genotype("sparse", "", tuple(OPERATIONS), Cell(normal, (3, 4)), Cell(reduce, (2,)))


@pytest.mark.parametrize("backend", ["eager", "cpp"])
def test_nodes_of_any_number_of_edges_are_the_textbook_ones(backend: str) -> None:
    if backend == "cpp":
        native_kernels()
    actual, expected = pair(sparse_genotype(), network="cifar", channels=4, cells=4, num_classes=3)
    accelerate(actual, backend)
    x = images(3, 3, 9, 9)
    outputs = [actual(x)[0], expected(x)[0]]
    assert_equal_tensors(outputs[:1], outputs[1:])
    found, wanted = (
        gradients(o.logsumexp(1).sum(), n.parameters()) for o, n in zip(outputs, (actual, expected), strict=True)
    )
    assert_equal_tensors(found, wanted)
    assert_equal_tensors(actual.buffers(), expected.buffers())
    cost = derived_cost(sparse_genotype(), "cifar", 4, 4)
    assert cost.params == sum(p.numel() for p in DerivedNetwork(sparse_genotype(), channels=4, cells=4).parameters())


@pytest.mark.parametrize(
    ("name", "network", "size", "C"),
    [("every", "cifar", (33, 45), 4), ("every", "imagenet", (96, 67), 9), ("DARTS_V1", "cifar", (9, 9), 20)],
)
def test_native_network_is_that_of_its_layers(name: str, network: str, size: tuple[int, int], C: int) -> None:
    """As PyTorch computes them, which is compared with the textbook above; drop path with the same masks included."""
    native_kernels()
    options = {"network": network, "channels": C, "cells": 4, "num_classes": 7, "auxiliary": True}
    expected = DerivedNetwork(GENOTYPES[name], **options).double()
    randomize(expected, seed=1)
    original = copy.deepcopy(expected)
    accelerate(original, "cpp")
    actual = copy.deepcopy(original)  # computes with its own weights, as an average of a network must
    for p in original.parameters():
        p.data.zero_()
    x = images(4, 3, *size)
    for training, prob in ((True, 0.0), (True, 0.4), (False, 0.4)):
        found = []
        for net in (actual, expected):
            net.set_drop_path_prob(prob)
            torch.manual_seed(3)
            outputs = [output for output in net.train(training)(x) if output is not None]
            loss = sum(output.logsumexp(1).sum() for output in outputs)
            used = [p for n, p in net.named_parameters() if training or not n.startswith("auxiliary")]
            found.append((outputs, gradients(loss, used)))
        assert_equal_tensors(found[0][0], found[1][0])
        assert_equal_tensors(found[0][1], found[1][1], relative=1e-9)
        assert_equal_tensors(actual.buffers(), expected.buffers())
    assert list(actual.state_dict()) == list(expected.state_dict())


def test_the_number_of_threads_changes_no_bit_of_a_native_cell() -> None:
    native_kernels()
    names = ("sep_conv_5x5", "dil_conv_3x3", "sandglass_3x3", "inverted_residual_3x3", "max_pool_3x3")
    cell = CppDerivedCell(cell_of(*names).float())
    s = images(5, 6, 9, 9).float()
    before, found = torch.get_num_threads(), []
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            torch.manual_seed(0)
            output = cell(State(s), State(s), torch.tensor(0.3)).joined()
            loss = (output**2 * torch.linspace(1, 2, output.numel()).view_as(output)).sum()
            wanted = [p for layers in (cell.input_0, cell.ops) for p in layers.parameters()]
            found.append([output.detach(), *torch.autograd.grad(loss, wanted)])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize("size", [(28, 28), (33, 45)])
@pytest.mark.parametrize("network", ["cifar", "imagenet"])
def test_other_sizes_and_channels_work_too(network: str, size: tuple[int, int]) -> None:
    options = {"network": network, "channels": 4, "cells": 3, "num_classes": 3, "in_channels": 1}
    actual, expected = pair(GENOTYPES["every"], **options)
    x = images(4, 1, *size)
    assert_equal_tensors(actual(x)[:1], expected(x)[:1])
    auxiliary = DerivedNetwork(GENOTYPES["DARTS_V2"], **options, auxiliary=True).double()(x)[1]
    assert auxiliary.shape == (4, 3)


@pytest.mark.parametrize(
    ("name", "network", "params", "params_with_auxiliary", "macs"),
    [
        ("DARTS_V1", "cifar", 3_169_414, 3_645_840, 500_987_520),
        ("DARTS_V1", "imagenet", 4_510_432, 5_771_208, 505_864_704),
        ("DARTS_V2", "cifar", 3_349_342, 3_825_768, 528_359_040),
        ("DARTS_V2", "imagenet", 4_718_752, 5_979_528, 529_911_552),
    ],
)
def test_published_networks_have_their_exact_counts(
    name: str, network: str, params: int, params_with_auxiliary: int, macs: int
) -> None:
    cost = derived_cost(load_genotype(name), network)
    assert (cost.params, cost.params_with_auxiliary, cost.macs) == (params, params_with_auxiliary, macs)


@pytest.mark.parametrize(("network", "size"), [("cifar", 32), ("imagenet", 224)])
@pytest.mark.parametrize("name", GENOTYPES)
def test_cost_is_what_the_textbook_network_counts(name: str, network: str, size: int) -> None:
    plain = GENOTYPES[name].as_dict()
    options = {"network": network, "channels": 12, "cells": 3, "num_classes": 7}
    with torch.device("meta"):
        params, macs = textbook.count(textbook.DerivedNetwork(plain, **options), (3, size, size))
        with_auxiliary = textbook.DerivedNetwork(plain, **options, auxiliary=True)
    cost = derived_cost(GENOTYPES[name], **options)
    assert (cost.params, cost.macs) == (params, macs)
    assert cost.params_with_auxiliary == sum(p.numel() for p in with_auxiliary.parameters())


@pytest.mark.parametrize(("operation", "saved"), [("sandglass_3x3", 0.237), ("sandglass_3x3_r6", 0.40)])
def test_sandglass_in_place_of_separable_convolutions_saves_parameters(operation: str, saved: float) -> None:
    """DARTS_V2 with all five sep_conv_3x3 swapped: the shares from which the default reduction was chosen."""
    genotype = load_genotype("DARTS_V2")
    nodes = tuple(
        tuple(Edge(operation, e.state) if e.operation == "sep_conv_3x3" else e for e in node)
        for node in genotype.normal.nodes
    )
    swapped = replace(
        genotype, operations=(*genotype.operations, operation), normal=replace(genotype.normal, nodes=nodes)
    )
    assert 1 - derived_cost(swapped).params / 3_349_342 == pytest.approx(saved, abs=0.005)


def cell_of(*operations: str) -> DerivedCell:
    """A normal cell in float64 and train mode whose node i is operations[i] of state 0."""
    nodes = tuple((Edge(operation, 0),) for operation in operations)
    spec = CellSpec(C_pp=6, C_p=6, C=4, reduction=False, reduction_before=False)
    return DerivedCell(Cell(nodes, tuple(range(2, 2 + len(nodes)))), spec).double()


def test_drop_path_acts_on_each_edge_by_itself_and_never_on_identities() -> None:
    cell = cell_of("skip_connect", "sep_conv_3x3", "max_pool_3x3")
    s = images(64, 6, 5, 5)
    plain = cell(State(s), State(s), 0.0).joined().split(4, dim=1)
    torch.manual_seed(3)
    dropped = cell(State(s), State(s), 0.75).joined().split(4, dim=1)
    assert torch.equal(plain[0], dropped[0])
    kept = []
    for before, after in zip(plain[1:], dropped[1:], strict=True):
        kept.append(after.flatten(1).any(1))
        torch.testing.assert_close(after, 4 * before * kept[-1][:, None, None, None])
        assert 0 < kept[-1].sum() < 64
    assert not torch.equal(*kept)


def test_drop_path_is_off_in_eval_mode() -> None:
    network = DerivedNetwork(GENOTYPES["DARTS_V2"], channels=4, cells=3, num_classes=3)
    x = torch.randn(4, 3, 16, 16)
    network.set_drop_path_prob(0.5)
    network.eval()
    dropped = network(x)[0]
    network.set_drop_path_prob(0.0)
    assert torch.equal(dropped, network(x)[0])
    network.train()
    torch.manual_seed(0)
    without = network(x)[0]
    network.set_drop_path_prob(0.5)
    assert not torch.equal(without, network(x)[0])


def test_bad_shapes_are_answered_in_one_line() -> None:
    for options in ({"network": "mnist"}, {"cells": 2}):
        with pytest.raises(UsageError) as caught:
            DerivedNetwork(GENOTYPES["DARTS_V2"], **options)
        assert "\n" not in str(caught.value)
