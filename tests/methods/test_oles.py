"""OLES: where the weights of operations lie, which are frozen, and that frozen ones stay to the bit."""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor

from darts_sg.backends import accelerate
from darts_sg.backends.batched import plain_tensors
from darts_sg.backends.cpp import build
from darts_sg.config import SearchConfig, load_recipe
from darts_sg.engine.search import SearchJob
from darts_sg.errors import UsageError
from darts_sg.methods.operation_freezing.oles import Oles
from darts_sg.methods.operation_freezing.weights import OperationWeights
from darts_sg.networks.supernet import Supernet
from tests.methods.textbook_search import TextbookSearch, compare_ten_steps, job_of
from tests.test_command_line import assert_same

KINDS = ("parameters", "buffers")
SMALL = {"space": "dil_conv_3x3+conv_7x1_1x7+skip_connect+none"}


def operations_of(named: dict[str, Tensor]) -> dict[str, list[str]]:
    """The names of tensors by operation, cells.I.edges.E.ops.K."""
    found: dict[str, list[str]] = {}
    for name in named:
        if ".edges." in name:
            found.setdefault(".".join(name.split(".")[:6]), []).append(name)
    return found


@pytest.mark.parametrize("backend", ["eager", "batched"])
def test_the_weights_of_each_operation_are_found_on_every_backend(backend: str) -> None:
    torch.manual_seed(0)
    names = ("sep_conv_3x3", "none", "conv_7x1_1x7", "skip_connect", "avg_pool_3x3")
    net = Supernet(names, channels=4, cells=3, num_nodes=2, auxiliary_skip=True)
    accelerate(net, backend)
    operations, weights = OperationWeights(net), net.weights()
    other = [torch.randn_like(weight) for weight in weights]
    by_id = {id(weight): values for weight, values in zip(weights, other, strict=True)}
    first, second = plain_tensors(net), plain_tensors(net, of=lambda tensor: by_id[id(tensor)])
    expected = {
        name: sum(float((first[one] * second[one]).sum().detach()) for one in own)
        for name, own in operations_of(first).items()
        if not name.endswith("ops.4")  # the auxiliary skip
    }
    assert [f"cells.{cell}.edges.{edge}.ops.{place}" for cell, edge, place in operations.places] == list(expected)
    torch.testing.assert_close(operations.dot(weights, other), torch.tensor([*expected.values()]))
    chosen = torch.arange(len(operations.places)) % 3 == 1
    before = {name: tensor.clone() for name, tensor in first.items()}
    operations.select(chosen, operations.of(weights), [0.0] * len(operations.of(weights)))
    cleared = {one for name, flag in zip(expected, chosen, strict=True) if flag for one in operations_of(first)[name]}
    for name, tensor in plain_tensors(net).items():
        assert torch.equal(tensor, torch.zeros_like(tensor) if name in cleared else before[name])


def observed(rule: Oles, cosines: list[list[float]]) -> list[list[bool]]:
    """The frozen operations after steps with these cosines for each operation; nan: one of both gradients is zero."""
    net = Supernet(("dil_conv_3x3",), channels=4, cells=3, num_nodes=1)
    watched = rule.watch(OperationWeights(net))
    places, found = watched.operations.places, []
    for step in cosines:
        train = [torch.zeros_like(weight) for weight in net.weights()]
        validation = [torch.zeros_like(weight) for weight in net.weights()]
        stacks = watched.operations.stacks
        for number, cosine in enumerate(step):
            if cosine == cosine:
                [first, *_] = [s for s in stacks if number in s.operations.tolist()]
                train[first.number].flatten()[0] = 2.0
                of = validation[first.number].flatten()
                of[0], of[1] = 3 * cosine, 3 * (1 - cosine**2) ** 0.5
        watched.observe(train, validation)
        assert len(places) >= len(step)
        found.append(watched.frozen[: len(step)].tolist())
    return found


def test_windows_follow_each_other_and_zero_gradients_do_not_count() -> None:
    nan = float("nan")
    found = observed(Oles(0.4, 2), [[0.9, 0.5, nan], [0.1, 0.2, 0.3], [0.3, 0.9, 0.4], [0.3, 0.9, 0.9], [0.9] * 3])
    # the second operation: 0.35; the third: 0.35 over its two counted steps; the first: 0.5, then 0.3
    assert found == [
        [False, False, False],
        [False, True, False],
        [False, True, True],
        [True, True, True],
        [True, True, True],
    ]


class OlesTextbook(TextbookSearch):
    """Both gradients at the same weights, by operation; the SGD step leaves frozen operations out."""

    def __init__(self, job: SearchJob, threshold: float, window: int) -> None:
        super().__init__(job)
        self.threshold, self.window = threshold, window
        self.groups = [
            [i for i, weight in enumerate(self.weights) if any(weight is own for own in operation.parameters())]
            for edges in self.edges()
            for edge in edges
            for operation in edge.ops
        ]
        self.groups = [group for group in self.groups if group]
        self.cosines: list[list[float]] = [[] for _ in self.groups]
        self.frozen = [False for _ in self.groups]

    def alpha_gradients(self, batch: tuple[Tensor, Tensor]) -> list[Tensor]:
        found = torch.autograd.grad(self.loss(batch), [*self.alphas, *self.weights])
        self.validation = found[len(self.alphas) :]
        return list(found[: len(self.alphas)])

    def weight_gradients(self, batch: tuple[Tensor, Tensor]) -> list[Tensor | None]:
        train = super().weight_gradients(batch)
        for number, group in enumerate(self.groups):
            a, b = (torch.cat([part[i].flatten() for i in group]) for part in (train, self.validation))
            self.cosines[number].append(float(a @ b / (a.norm() * b.norm())))
            if len(self.cosines[number]) == self.window:
                self.frozen[number] |= sum(self.cosines[number]) / self.window < self.threshold
                self.cosines[number] = []
        stopped = {i for flag, group in zip(self.frozen, self.groups, strict=True) if flag for i in group}
        return [None if i in stopped else gradient for i, gradient in enumerate(train)]  # SGD passes over these


@pytest.mark.parametrize("kernels", ["pytorch", "native"])
def test_ten_steps_are_those_of_the_textbook(kernels: str) -> None:
    if kernels == "native":
        try:
            build.kernels()
        except build.Unavailable as reason:
            pytest.skip(str(reason))
    assert load_recipe("search", "oles") == {"freeze_operations": "oles:threshold=0.4,window=20"}
    job = job_of(recipe="oles", freeze_operations="oles:threshold=-0.2,window=3", kernels=kernels, **SMALL)
    expected = OlesTextbook(job, -0.2, 3)
    compare_ten_steps(job, expected)
    assert job.freezing.frozen.tolist() == expected.frozen
    assert 0 < job.freezing.num_frozen() < len(expected.frozen)


def test_frozen_weights_stay_to_the_bit_while_their_statistics_go_on() -> None:
    job = job_of(freeze_operations="oles", **SMALL)
    job.step(0, 0)
    job.freezing.frozen[::2] = True
    places = [f"cells.{cell}.edges.{edge}.ops.{place}." for cell, edge, place in job.freezing.operations.places[::2]]
    weights, statistics = ({n: t.clone() for n, t in plain_tensors(job.supernet, k).items()} for k in KINDS)
    for step in range(1, 3):
        job.step(0, step)
    after, later = (plain_tensors(job.supernet, kind) for kind in KINDS)
    frozen = {name for name in weights if name.startswith(tuple(places))}
    assert {name for name in weights if torch.equal(weights[name], after[name])} == frozen
    running = [name for name in statistics if name.startswith(tuple(places))]
    assert running
    assert not any(torch.equal(statistics[name], later[name]) for name in running)


def test_a_resumed_job_goes_on_to_the_same_bits_and_counts_what_is_frozen() -> None:
    options = {"freeze_operations": "oles:threshold=0.9,window=2", "relaxation": "gumbel", **SMALL}
    whole, resumed = job_of(**options), job_of(**options)
    for step in range(3):
        whole.step(0, step)
    state = copy.deepcopy(whole.state_dict())
    resumed.load_state_dict(state)
    for job in (whole, resumed):
        for step in range(3, 5):
            job.step(0, step)
    assert_same(whole.state_dict(), resumed.state_dict())
    assert whole.freezing.num_frozen() > 0


def test_frozen_alphas_give_no_validation_gradients_to_compare() -> None:
    job = job_of(freeze_operations="oles:threshold=1,window=1", alpha_frozen_epochs=1, **SMALL)
    job.step(0, 0)
    assert job.freezing.num_frozen() == 0
    job.step(1, 0)
    assert job.freezing.num_frozen() == len(job.freezing.operations.places)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"hypergradient": "unrolled"}, "which --hypergradient unrolled does not take; choose first_order"),
        ({"freeze_operations": "oles:threshold=2"}, "threshold is one of a cosine, from -1 to 1, found 2.0"),
        ({"freeze_operations": "oles:window=0"}, "window must be at least 1, found 0"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        SearchConfig(**{"recipe": "oles", "data": Path(), **options})
    assert said in str(caught.value)
