"""Steps that are captured as CUDA graphs, with graphs emulated on the CPU; test_graphs.py is the same on a GPU."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from darts_sg.config import AugmentConfig
from darts_sg.derive import Costs, num_edges
from darts_sg.engine.augment import AugmentJob
from darts_sg.engine.distributed import Ranks
from darts_sg.engine.graphs import WARM_UP, Captured
from darts_sg.engine.search import SearchJob
from darts_sg.engine.setup import Setting
from darts_sg.engine.setup import captures as is_captured
from darts_sg.engine.steps import counted_together
from darts_sg.genotype import load_genotype
from darts_sg.methods.mixing import Alphas
from darts_sg.methods.regularizers.size import Penalty
from darts_sg.networks.derived import DerivedNetwork
from darts_sg.networks.mobile import MobileNetwork, find_model
from darts_sg.networks.ssdlite import DetectorOutputs
from darts_sg.networks.supernet import Mixing
from darts_sg.tasks.detection import Detection, MatchedObjects
from darts_sg.tasks.matching import Matched
from tests.engine.emulated_graph import EmulatedGraph, Forbidden, OnDevice, Recorder, as_on_a_gpu, emulated_graphs
from tests.engine.test_augment_step import augment_job
from tests.engine.test_search_step import search_config, setting
from tests.test_command_line import assert_same


class FakeStream:
    def wait_stream(self, other: "FakeStream") -> None: ...


class FakeGraph:
    """A graph whose replay is counted, but computes nothing."""

    replays = 0

    def pool(self) -> None: ...

    def replay(self) -> None:
        self.replays += 1


@pytest.fixture
def captures(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The options of each capture."""
    found: list[dict[str, Any]] = []

    @contextmanager
    def graph(graph: FakeGraph, **options: Any) -> Iterator[None]:
        found.append(options)
        yield

    @contextmanager
    def stream(stream: FakeStream) -> Iterator[None]:
        yield

    for name, fake in {
        "Stream": FakeStream, "current_stream": FakeStream, "stream": stream, "CUDAGraph": FakeGraph, "graph": graph
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, fake)
    return found


def test_a_capture_allows_other_threads_to_pin_memory(captures: list[dict[str, Any]]) -> None:
    calls: list[Tensor] = []

    def step(x: Tensor) -> dict[str, Tensor]:
        calls.append(x)
        return {"sum": x.sum()}

    captured = Captured(step)
    for _ in range(WARM_UP + 3):
        captured(None, torch.ones(2))
    assert len(calls) == WARM_UP + 1  # the last of them is the captured one
    assert [options["capture_error_mode"] for options in captures] == ["thread_local"]
    assert [found.graph.replays for found in captured.graphs.values()] == [3]


def test_the_unrolled_step_is_captured_once_for_all_learning_rates() -> None:
    job = SearchJob(search_config(hypergradient="unrolled", epochs=4), setting(64))
    kinds: list[Any] = []

    def record(kind: Any, *tensors: Tensor, **options: bool) -> dict[str, Tensor]:
        kinds.append((kind, *options.items()))
        return {}

    job.captured = record  # type: ignore[assignment]
    for epoch in range(2):
        job.step(epoch, 0)
    assert job.learning_rate(0) != job.learning_rate(1)
    assert len(set(kinds)) == 1


def searched(options: dict[str, Any], *, captured: bool) -> tuple[SearchJob, list[Tensor], list[EmulatedGraph]]:
    """Two epochs of three steps; the learning rate falls between them, and the progress grows in each step."""
    torch.manual_seed(0)
    small = {"space": "sep_conv_3x3+max_pool_3x3+skip_connect", "nodes": 1, "kernels": "pytorch", "batch_size": 2}
    job = SearchJob(search_config(**small, **options), setting(12))
    as_on_a_gpu(job.weight_optimizer)
    as_on_a_gpu(job.alpha_optimizer)
    with emulated_graphs() as graphs:
        if captured:
            job.captured = Captured(job._update, [job.generator])
        means = [job.step(epoch, step).means for epoch in range(2) for step in range(3)]
    return job, [value.float() for each in means for value in each.values()], graphs


@pytest.mark.parametrize(
    "options",
    [
        {"hypergradient": "unrolled", "relaxation": "gumbel", "regularizer": "beta-decay", "drop_path_prob": 0.2},
        {"hypergradient": "single_level", "relaxation": "gumbel", "recompute": True},
        {"perturbation": "adversarial:steps=1", "precision": "bfloat16", "auxiliary_skip": "linear"},
    ],
    ids=str,
)
def test_a_replayed_search_step_computes_the_bits_of_an_eager_one(options: dict[str, Any]) -> None:
    """Nothing in a step is read back or copied to the device, and no number that changes is frozen in the graph."""
    (eager, expected, _), (replayed, found, graphs) = (searched(options, captured=c) for c in (False, True))
    assert [graph.replays for graph in graphs] == [4]
    assert torch.equal(torch.stack(found), torch.stack(expected))
    assert_same(replayed.state_dict(), eager.state_dict())


def test_a_penalty_copies_its_tables_to_the_device_once() -> None:
    """In the steps before the one that is captured, which may copy nothing."""
    shape = num_edges(2), 3
    costs = Costs(np.arange(15).reshape(shape), np.arange(15, 30).reshape(shape), fixed=3)
    penalty = Penalty("params", 0.1, ("none", "skip_connect", "sep_conv_3x3"), costs)
    weights = [torch.full(shape, 1 / 3, requires_grad=True) for _ in range(2)]
    mixing = Mixing(weights[0], weights[1] * torch.linspace(0.5, 1.5, 3))
    alphas, progress = Alphas(*weights), torch.tensor(0.5)
    expected = penalty(alphas, mixing, progress)
    with OnDevice(), Recorder():
        again = penalty(alphas, mixing, progress)
        torch.autograd.grad(again, weights)
    assert torch.equal(again, expected)


def test_hard_samples_are_not_captured_since_they_are_read_back() -> None:
    options = {"relaxation": "gumbel:hard=true"}
    assert not search_config(**options).method().is_capturable
    with pytest.raises(Forbidden, match="tolist in a captured step"):
        searched(options, captured=True)


def retrained(*, captured: bool) -> tuple[AugmentJob, list[Tensor], list[EmulatedGraph]]:
    """Two epochs of four steps, the first without drop path, as a GPU runs them."""
    job = augment_job(ema=0.7, cutout_length=4, train_images=12, batch_size=3, kernels="pytorch")
    assert job.derived is not None
    job.on_gpu, job.derived.drops_together = True, True
    as_on_a_gpu(job.optimizer)
    torch.manual_seed(1)
    with emulated_graphs() as graphs:
        if captured:
            job.captured = Captured(job._update_on)
            assert job.warm_up_steps == WARM_UP + 1
        means = [job.step(epoch, step).means for epoch in range(2) for step in range(job.steps_per_epoch)]
    return job, [value.float() for each in means for value in each.values()], graphs


def test_a_replayed_retraining_step_computes_the_bits_of_an_eager_one() -> None:
    """With drop path, whose random numbers are drawn in the graph, auxiliary head, clipping and an average."""
    (eager, expected, _), random = retrained(captured=False), torch.get_rng_state()
    replayed, found, graphs = retrained(captured=True)
    assert [graph.replays for graph in graphs] == [2, 2]
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.equal(torch.stack(found), torch.stack(expected))
    assert_same(replayed.state_dict(), eager.state_dict())
    norms = [layer for layer in replayed.network.modules() if isinstance(layer, nn.BatchNorm2d)]
    assert {int(layer.num_batches_tracked or 0) for layer in norms} == {8}
    with_drop_path = [str(function.overloadpacket) for function, *_ in graphs[1].calls]
    assert with_drop_path.count("aten.rand") == 1
    assert with_drop_path.count("aten._foreach_add_") == 1  # of the counters
    num_norms = with_drop_path.count("aten.native_batch_norm")
    assert num_norms > 10
    assert with_drop_path.count("aten.add_") < num_norms


def test_the_training_of_an_older_run_draws_a_mask_for_each_operation_as_before() -> None:
    job = augment_job()
    assert "drop_path_draws" not in job.setting.environment  # on a CPU nothing has changed
    for earlier, expected in (({}, "together"), ({"environment": {}}, "each")):
        job.setting.earlier = earlier
        assert job._drops_together() == (expected == "together")
        assert job.setting.environment["drop_path_draws"] == expected
    job.setting.earlier = {"environment": {"drop_path_draws": "together"}}
    assert job._drops_together()


def test_every_network_calls_each_batchnorm_once_a_step() -> None:
    """Or `counted_together` would count wrongly."""
    with torch.device("meta"):
        for network in (
            DerivedNetwork(load_genotype("DARTS_V2"), channels=4, cells=3, auxiliary=True),
            MobileNetwork(find_model("mobilenext_1.0"), network="cifar", num_classes=10),
        ):
            calls: dict[nn.Module, int] = {}
            norms = [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)]
            for layer in norms:
                layer.register_forward_pre_hook(
                    lambda layer, given, calls=calls: calls.update({layer: 1 + calls.get(layer, 0)})
                )
            network(torch.empty(2, 3, 32, 32))
            assert {calls.get(layer) for layer in norms} == {1}


def test_counters_are_as_before_when_a_step_fails() -> None:
    network = nn.Sequential(nn.BatchNorm2d(2), nn.BatchNorm2d(2).eval(), nn.BatchNorm2d(2, momentum=None))
    before = copy.deepcopy(network.state_dict())
    with pytest.raises(RuntimeError, match="out of memory"), counted_together(network):
        raise RuntimeError("out of memory")
    assert_same(network.state_dict(), before)
    with counted_together(network):
        network(torch.randn(2, 2, 3, 3))
    assert [int(layer.num_batches_tracked) for layer in network] == [1, 0, 1]


def test_a_retraining_is_captured_on_a_gpu_and_several_ranks_only_on_request() -> None:
    on_gpu = Setting(torch.device("cuda"), setting().data, {}, {})
    several = Setting(torch.device("cuda"), setting().data, {}, {}, Ranks(0, 2, 0, 2))
    config = AugmentConfig(genotype="DARTS_V2")
    assert is_captured(config, on_gpu)
    assert not is_captured(AugmentConfig(genotype="DARTS_V2", compile=True), on_gpu)
    assert not is_captured(config, several)
    assert is_captured(AugmentConfig(genotype="DARTS_V2", capture_ranks=True), several)
    assert is_captured(search_config(capture_ranks=True), several)


def test_the_loss_of_a_detector_waits_for_nothing_in_a_captured_step() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 9, (2, 40), generator=generator).clamp(max=4) % 4
    matched = Matched(labels, torch.randn(2, 40, 4, generator=generator))
    targets = MatchedObjects([], matched, int((labels > 0).sum()))
    outputs = DetectorOutputs(*(torch.randn(2, 40, 4, generator=generator, requires_grad=True) for _ in range(2)))
    task = Detection({})
    expected = task.losses(outputs, targets)
    tensors = task.as_tensors(targets)
    with OnDevice(), Recorder():
        again = task.from_tensors(tensors)
        found = task.losses(outputs, again)
        torch.autograd.grad(found["loss"], [*outputs])
    assert int(task.num_terms(again)) == task.num_terms(targets) > 0
    assert_same(found, expected)
