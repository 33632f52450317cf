"""Which kernels a job chooses, and that native kernels which compute something else are found and not used."""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from darts_sg.backends import accelerate, backend_of, ir
from darts_sg.backends.cpp import build
from darts_sg.backends.cpp import run as cpp
from darts_sg.config import AugmentConfig, RunConfig
from darts_sg.engine.augment import AugmentJob
from darts_sg.engine.distributed import Ranks
from darts_sg.engine.kernels import check_kernels, use_kernels
from darts_sg.engine.search import SearchJob
from darts_sg.engine.setup import Setting, captures
from darts_sg.errors import UsageError
from darts_sg.genotype import Cell, Edge, Genotype, load_genotype
from darts_sg.networks.derived import DerivedNetwork
from darts_sg.networks.supernet import Supernet
from tests.engine.test_search_step import search_config, setting


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever kernels there are compute what they should."""
    monkeypatch.setattr("darts_sg.engine.kernels.check_kernels", lambda network, config, setting: None)


def chosen(config: RunConfig, where: Setting, *, on_gpu: bool = False) -> str:
    """The kernels chosen for a network; on_gpu: whether it has kernels for GPUs, as a supernet does."""
    network = Supernet(("skip_connect", "max_pool_3x3"), channels=2, cells=3, num_nodes=1)
    with pytest.MonkeyPatch.context() as patch:
        asked: list[str] = []
        patch.setattr("darts_sg.engine.kernels.accelerate", lambda net, backend: asked.append(backend))
        found = use_kernels(network, config, where, (lambda: None) if on_gpu else None)
    assert asked[0] == "batched"
    assert asked[-1] == ("batched" if found == "pytorch" else "triton" if where.device.type == "cuda" else "cpp")
    return found


@pytest.mark.parametrize(
    ("asked", "earlier", "there", "expected"),
    [
        ("auto", None, True, "native"),
        ("auto", None, False, "pytorch"),
        ("pytorch", None, True, "pytorch"),
        ("native", None, False, "--kernels native: no compiler; mend that, or leave the option out"),
        ("auto", {"kernels": "pytorch"}, True, "pytorch"),
        ("auto", {}, True, "pytorch"),
        ("auto", {"kernels": "native"}, False, "this run was started with the native kernels, but no compiler"),
        ("pytorch", {"kernels": "native"}, False, "pytorch"),
    ],
)
def test_kernels_are_those_of_the_run_else_the_fastest_there_are(
    asked: str,
    earlier: dict[str, str] | None,
    there: bool,
    expected: str,
    unchecked: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def kernels(tell: object) -> None:
        if not there:
            raise build.Unavailable("no compiler")

    monkeypatch.setattr(build, "kernels", kernels)
    known = {} if earlier is None else {"environment": earlier}
    where = Setting(torch.device("cpu"), setting().data, known, {})
    if " " in expected:
        with pytest.raises(UsageError) as caught:
            chosen(search_config(kernels=asked), where)
        assert str(caught.value).startswith(expected)
    else:
        assert chosen(search_config(kernels=asked), where) == expected


@pytest.mark.parametrize("options", [{"precision": "bfloat16"}, {"compile": True}])
def test_native_kernels_are_for_float32_without_compilation(options: dict[str, object]) -> None:
    where = Setting(torch.device("cpu"), setting().data, {}, {})
    assert chosen(search_config(**options), where) == "pytorch"
    with pytest.raises(UsageError, match="leave one of them out"):
        chosen(search_config(**options, kernels="native"), where)


@pytest.fixture
def on_gpu(unchecked: None, monkeypatch: pytest.MonkeyPatch) -> Setting:
    """A setting with a GPU that is not there."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr("darts_sg.backends.cpp.build.find_spec", lambda name: object())
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    return Setting(torch.device("cuda"), setting().data, {}, {})


def test_a_search_on_a_gpu_has_triton_kernels_in_either_precision(on_gpu: Setting) -> None:
    for options in ({}, {"precision": "bfloat16"}, {"kernels": "native"}):
        assert chosen(search_config(**options), on_gpu, on_gpu=True) == "native"
    for options in ({"kernels": "pytorch"}, {"compile": True}):
        assert chosen(search_config(**options), on_gpu, on_gpu=True) == "pytorch"
    assert chosen(search_config(), on_gpu) == "pytorch"  # retraining has none
    earlier = {"environment": {"kernels": "pytorch"}}
    resumed = Setting(on_gpu.device, on_gpu.data, earlier, {})
    assert chosen(search_config(), resumed, on_gpu=True) == "pytorch"
    assert chosen(search_config(kernels="native"), resumed, on_gpu=True) == "native"


@pytest.mark.parametrize(
    ("name", "what", "reason"),
    [
        ("darts_sg.backends.cpp.build.find_spec", lambda name: None, "Triton is not installed"),
        ("shutil.which", lambda name: None, "no gcc or clang"),
        ("torch.cuda.get_device_capability", lambda device: (6, 1), "this one has 6.1"),
    ],
)
def test_without_triton_a_gpu_has_pytorch_and_says_why(
    name: str,
    what: object,
    reason: str,
    on_gpu: Setting,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(name, what)
    assert chosen(search_config(), on_gpu, on_gpu=True) == "pytorch"
    assert reason in capsys.readouterr().out
    with pytest.raises(UsageError, match=reason):
        chosen(search_config(kernels="native"), on_gpu, on_gpu=True)


def test_steps_are_captured_on_one_gpu_unless_they_say_otherwise(on_gpu: Setting) -> None:
    assert captures(search_config(), on_gpu)
    for options in ({"capture": False}, {"compile": True}, {"relaxation": "gumbel:hard=true"}):
        assert not captures(search_config(**options), on_gpu)
    assert not captures(search_config(), setting())
    assert not captures(search_config(), Setting(on_gpu.device, on_gpu.data, {}, {}, Ranks(0, 2, 0, 2)))


def test_kernels_of_evaluation_and_eigenvalue_are_compiled_ahead_and_by_one_process_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also if the first process cannot: the others would wait for it."""
    gpu = pytest.importorskip("darts_sg.backends.triton.run")
    happened: list[str] = []

    class Machine(Ranks):
        @contextmanager
        def one_by_machine(self) -> Iterator[None]:
            happened.append("my turn")
            yield
            happened.append("next")

    def refuse(passes: Callable[[], object], device: torch.device) -> None:
        types.clear()
        passes()
        happened.append("compile")
        raise build.Unavailable("no ptxas")

    monkeypatch.setattr(gpu, "compile_ahead", refuse)
    types: list[torch.dtype] = []
    plain = Supernet.forward

    def forward(supernet: Supernet, x: Tensor, *mixing: Any) -> Tensor:
        types.append(x.dtype)
        return plain(supernet, x, *mixing)

    monkeypatch.setattr(Supernet, "forward", forward)
    for options, expected in (
        ({}, [torch.float32] * 2),
        ({"precision": "bfloat16", "eigenvalue_every": 1}, [*[torch.float32] * 3, torch.float64]),
    ):
        job = SearchJob(search_config(kernels="pytorch", nodes=1, **options), setting())
        job.setting.ranks = Machine()
        with pytest.raises(build.Unavailable):
            job._prepare_gpu()
        assert types == expected
    assert happened == ["my turn", "compile", "next"] * 2


NETWORKS = ("supernet", "partial channels", "derived")


def network_of(name: str) -> Supernet | DerivedNetwork:
    try:
        build.kernels()
    except build.Unavailable as reason:
        pytest.skip(str(reason))
    torch.manual_seed(0)
    if name == "derived":
        network: Supernet | DerivedNetwork = DerivedNetwork(load_genotype("DARTS_V1"), channels=4, cells=4)
    else:
        K = 2 if name == "partial channels" else 1
        operations = ("none", "sep_conv_3x3", "sandglass_5x5", "avg_pool_3x3", "skip_connect")
        network = Supernet(operations, channels=4, cells=3, num_nodes=2, partial_channels=K)
    accelerate(network, "cpp")
    return network


@pytest.fixture
def marks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The marks of finished checks, none at first."""
    found: list[str] = []
    monkeypatch.setattr(build, "checked", lambda by: by in found)
    monkeypatch.setattr(build, "set_checked", found.append)
    return found


@pytest.mark.parametrize("name", NETWORKS)
def test_kernels_are_compared_with_pytorch_once_and_nothing_changes(
    name: str, marks: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    network = network_of(name)
    before, generator = copy.deepcopy(network.state_dict()), torch.get_rng_state()
    for _ in range(2):
        check_kernels(network, search_config(), setting())
    [mark] = marks
    assert mark.startswith(type(network).__name__)
    [line] = capsys.readouterr().out.splitlines()
    before_it, after_it = line.split("at most ")
    assert "compared with PyTorch" in before_it
    assert float(after_it.split()[0]) < 5e-3, line
    assert torch.equal(generator, torch.get_rng_state())
    for key, value in network.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert backend_of(network) == "cpp"
    assert all(weight.grad is None for weight in network.parameters())


@pytest.mark.parametrize("kind", ["supernet", "derived"])
def test_a_check_vouches_only_for_operations_that_it_compared(kind: str, marks: list[str]) -> None:
    """A space of skip connections alone once vouched for all other spaces."""
    network_of(kind)  # skips without a compiler

    def of(*names: str) -> Supernet | DerivedNetwork:
        if kind == "supernet":
            network: Supernet | DerivedNetwork = Supernet(names, channels=4, cells=3, num_nodes=1)
        else:
            cell = Cell((tuple(Edge(name, state) for state, name in enumerate(names)),), (2,))
            network = DerivedNetwork(Genotype("g", "", names, cell, cell), channels=4, cells=3)
        accelerate(network, "cpp")
        return network

    skips = ("skip_connect", "max_pool_3x3")
    for names, num_checks in (
        (skips, 1),
        (("sep_conv_3x3", "dil_conv_3x3"), 2),
        (skips, 2),
        (("sep_conv_5x5",) * 2, 3),
    ):
        check_kernels(of(*names), search_config(), setting())
        assert len(marks) == num_checks


def wrong_output(found: list[Tensor], graph: ir.CellGraph) -> list[Tensor]:
    return [tensor + 0.1 * tensor.detach() for tensor in found]


def wrong_gradient(found: list[Tensor], graph: ir.CellGraph) -> list[Tensor]:
    return [tensor + 0.05 * (tensor - tensor.detach()) for tensor in found]


def wrong_statistic(found: list[Tensor], graph: ir.CellGraph) -> list[Tensor]:
    norm = graph.stages[0].norm
    assert norm is not None
    assert norm.running_var is not None
    norm.running_var.mul_(1.5)
    return found


def wrong_for_many_images(found: list[Tensor], graph: ir.CellGraph) -> list[Tensor]:
    return wrong_gradient(found, graph) if len(found[0]) > 2 else found


def not_a_number(found: list[Tensor], graph: ir.CellGraph) -> list[Tensor]:
    return [found[0] * torch.nan, *found[1:]]


@pytest.mark.parametrize("name", ["supernet", "derived"])
@pytest.mark.parametrize(
    ("wrong", "what"),
    [
        (wrong_output, "the output( for 8 images)? is off by 0"),
        (wrong_gradient, "the gradient of .* is off by 0"),
        (wrong_statistic, "running_var is off by 0"),
        (wrong_for_many_images, "the gradient of .* for 8 images is off by 0"),
        (not_a_number, "the output is off by inf"),
    ],
)
def test_what_kernels_compute_wrongly_is_named(
    name: str, wrong: object, what: str, marks: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    network = network_of(name)
    compute_wrongly(wrong, monkeypatch)
    with pytest.raises(build.Unavailable, match=f"something else than PyTorch here: in cell 0, .*{what}"):
        check_kernels(network, search_config(), setting())
    assert marks == []


def compute_wrongly(wrong: object, monkeypatch: pytest.MonkeyPatch) -> None:
    run = cpp.run

    def run_wrongly(inputs: Sequence[Tensor], gammas: Sequence[Tensor], graph: ir.CellGraph) -> list[Tensor]:
        assert callable(wrong)
        found: list[Tensor] = wrong(run(inputs, gammas, graph), graph)
        return found

    monkeypatch.setattr(cpp, "run", run_wrongly)


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (RuntimeError("\nout of resource: shared memory\nmore"), build.Unavailable),
        (MemoryError("not enough memory"), MemoryError),
    ],
)
def test_kernels_that_fail_are_not_to_be_had_unless_memory_is_what_lacks(
    raised: Exception, expected: type[Exception], marks: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(found: list[Tensor], graph: ir.CellGraph) -> list[Tensor]:
        raise raised

    network = network_of("supernet")
    compute_wrongly(fail, monkeypatch)
    with pytest.raises(expected, match=r"out of resource: shared memory$|not enough memory"):
        check_kernels(network, search_config(), setting())


def test_what_only_a_whole_batch_has_no_memory_for_is_not_checked(
    marks: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(found: list[Tensor], graph: ir.CellGraph) -> list[Tensor]:
        if len(found[0]) > 2:
            raise MemoryError("not enough memory")
        return found

    network = network_of("supernet")
    compute_wrongly(fail, monkeypatch)
    check_kernels(network, search_config(), setting())
    assert len(marks) == 1


def test_a_search_with_hard_samples_also_has_its_sampled_passes_checked(
    marks: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong_for_samples(found: list[Tensor], graph: ir.CellGraph) -> list[Tensor]:
        sampled = all(step.operations.T == 1 for step in graph.steps if isinstance(step, ir.GraphStep))
        return wrong_output(found, graph) if sampled else found

    hard = search_config(relaxation="gumbel:hard=true")
    check_kernels(network_of("supernet"), hard, setting())
    assert [mark.endswith("-sampled") for mark in marks] == [True]
    marks.clear()
    compute_wrongly(wrong_for_samples, monkeypatch)
    check_kernels(network_of("supernet"), search_config(), setting())
    with pytest.raises(build.Unavailable, match=r"in cell 0, .* of one operation an edge.* is off by"):
        check_kernels(network_of("supernet"), hard, setting())


@pytest.mark.parametrize("job", ["search", "augment"])
def test_wrong_kernels_are_not_used(
    job: str, marks: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    network_of("supernet")
    compute_wrongly(wrong_output, monkeypatch)
    where = setting()
    genotype = load_genotype("DARTS_V1")

    def begin(**options: object) -> Supernet | torch.nn.Module:
        if job == "search":
            return SearchJob(search_config(**options), where).supernet
        config = AugmentConfig(genotype="DARTS_V1", channels=4, cells=3, batch_size=8, **options)  # type: ignore[arg-type]
        return AugmentJob(config, genotype, where).network

    network = begin()
    assert where.environment["kernels"] == "pytorch"
    assert backend_of(network) == ("batched" if job == "search" else "eager")
    assert "note: the native kernels compute something else than PyTorch here" in capsys.readouterr().out
    with pytest.raises(UsageError, match=r"--kernels native: .* or leave the option out"):
        begin(kernels="native")
    where.earlier["environment"] = {"kernels": "native"}
    with pytest.raises(UsageError, match=r"started with the native kernels, but .* add --kernels pytorch"):
        begin()
