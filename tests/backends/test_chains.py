"""The C++ kernels: how they are had, and what the supernet's comparison with the textbook does not show."""

import copy
import gc
import platform
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from darts_sg.backends import accelerate, ir
from darts_sg.backends.batched import EdgeBatch, EdgeWeights
from darts_sg.backends.cpp import build
from darts_sg.backends.cpp import run as cpp
from darts_sg.backends.cpp.cells import CppKernels, run_ops
from darts_sg.backends.cpp.run import PLANS, Layout
from darts_sg.methods.mixing import softmax
from darts_sg.networks.supernet import Supernet, candidate
from darts_sg.ops import OPERATIONS
from darts_sg.ops.depthwise import DepthwiseConv2d
from darts_sg.ops.operation import Residual
from darts_sg.spaces import parse_space
from tests.reference.transfer import assert_equal_tensors, randomize

UNOPTIMISED = tuple("-O0" if flag == "-O3" else flag for flag in build.FLAGS)  # compiled in a few seconds


@pytest.fixture
def forgotten(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A process that has no kernels yet, with an empty cache, and a source that compiles at once."""
    sources = tmp_path / "sources"
    sources.mkdir()
    (sources / build.MAIN_SOURCE).write_text('extern "C" int forward() { return 0; }\n')
    monkeypatch.setattr(build, "SOURCES", sources)
    monkeypatch.setattr(build, "_loaded", {})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "darts_sg"


def program(folder: Path, text: str) -> str:
    path = folder / "compiler"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def available(real: str = "double") -> None:
    try:
        build.kernels(real=real)
    except build.Unavailable as reason:
        pytest.skip(str(reason))


def test_without_a_compiler_they_are_unavailable(forgotten: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(build.Unavailable, match="no C\\+\\+ compiler 'no-such-compiler'"):
        build.kernels()


def test_a_compiler_that_fails_is_quoted(forgotten: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    text = 'test "$1" = --version && echo mine 1.0 && exit 0; echo "x.cpp:1: error: no such flag" >&2; exit 1'
    monkeypatch.setenv("CXX", program(tmp_path, text))
    with pytest.raises(build.Unavailable, match=r"cannot compile the kernels: x\.cpp:1: error: no such flag"):
        build.kernels()
    assert not forgotten.exists()


def test_they_are_compiled_once(forgotten: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    available("float")
    library = next(forgotten.glob("chains-*.so"))
    assert list(forgotten.iterdir()) == [library]
    monkeypatch.setattr(build, "_loaded", {})
    told: list[str] = []
    build.kernels(told.append)
    assert told == []


def test_a_changed_header_or_flag_is_compiled_anew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for source in build.SOURCES.iterdir():
        if source.suffix in (".cpp", ".h"):
            (tmp_path / source.name).write_text(source.read_text())
    original = build.library_path("float", "")
    monkeypatch.setattr(build, "SOURCES", tmp_path)
    assert build.library_path("float", "") == original
    header = tmp_path / "pools.h"
    header.write_text(header.read_text() + "// changed\n")
    changed = build.library_path("float", "")
    monkeypatch.setenv("DARTS_SG_CXXFLAGS", "-g -fsanitize=undefined")
    assert len({original, changed, build.library_path("float", "")}) == 3


def test_additional_flags_reach_the_compiler(forgotten: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    text = 'test "$1" = --version && echo mine 1.0 && exit 0; echo "error: $*" >&2; exit 1'
    monkeypatch.setenv("CXX", program(tmp_path, text))
    monkeypatch.setenv("DARTS_SG_CXXFLAGS", "-g -DNAME='two words'")
    with pytest.raises(build.Unavailable, match=r"-g -DNAME=two words"):
        build.kernels()


def test_they_work_where_nothing_can_be_kept(forgotten: Path, tmp_path: Path) -> None:
    forgotten.write_text("a file where the folder should be")
    available("float")
    assert hasattr(build.kernels(), "forward")


@pytest.mark.parametrize("names", [["sep_conv_3x3", "max_pool_3x3", "skip_connect"], ["skip_connect", "avg_pool_3x3"]])
def test_what_is_in_the_nodes_already_is_added(names: list[str]) -> None:
    available()
    torch.manual_seed(0)
    batch = EdgeBatch([[candidate(name, 5, 1) for name in names] for _ in range(2)], 1, 5, 1)
    randomize(batch.double(), seed=0)
    x, *onto = torch.randn(3, 2, 5, 4, 4, dtype=torch.float64).requires_grad_().unbind()
    weights = torch.rand(2, len(names), dtype=torch.float64, requires_grad=True)
    found = []
    for kernels in (False, True):
        batch.kernels = CppKernels() if kernels else None
        nodes = batch([x], EdgeWeights(weights), onto)
        wanted = [x, *onto, weights, *batch.parameters()]
        found.append([*nodes, *torch.autograd.grad(sum((node**2).sum() for node in nodes), wanted)])
    alone = batch([x], EdgeWeights(weights))
    assert_equal_tensors(*found)
    assert_equal_tensors(found[1][:2], [node + before for node, before in zip(alone, onto, strict=True)])


def processor_has(feature: str) -> bool:
    path = Path("/proc/cpuinfo")
    return platform.machine() == "x86_64" and path.is_file() and f" {feature} " in path.read_text().replace("\n", " ")


@pytest.mark.parametrize(("options", "feature"), [("", "sse2"), ("-mavx2 -mfma", "avx2"), ("-mavx512f", "avx512f")])
@pytest.mark.parametrize("channels", [5, 6, 8])
def test_vectors_of_any_width_give_what_pytorch_gives(
    channels: int, options: str, feature: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not processor_has(feature):
        pytest.skip(f"this processor has no {feature}")
    flags = ["-march=x86-64" if flag == "-march=native" else flag for flag in UNOPTIMISED]
    monkeypatch.setattr(build, "FLAGS", (*flags, *options.split()))
    monkeypatch.setattr(build, "_loaded", {})
    net = small_supernet(channels).double()
    x = torch.randn(3, 3, 9, 9, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    mine = gradients_of(net, x)
    accelerate(net, "batched")
    assert_equal_tensors(mine, gradients_of(net, x))


def gradients_of(net: Supernet, x: Tensor) -> list[Tensor]:
    loss = F.cross_entropy(net(x, softmax(net)), torch.arange(len(x)))
    return [loss.detach(), *torch.autograd.grad(loss, [*net.weights(), *net.alphas()])]


def small_supernet(channels: int = 6) -> Supernet:
    available()
    torch.manual_seed(0)
    net = Supernet(parse_space("darts+ir+sandglass").operations, channels=channels, cells=3)
    accelerate(net, "cpp")
    return net


@pytest.fixture
def threads() -> object:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_the_number_of_threads_changes_no_bit_of_the_operations(threads: object) -> None:
    net = small_supernet()
    batch = net.cells[0].batches[0]
    found = []
    for number in (1, 2, 3):
        torch.set_num_threads(number)
        x = torch.randn(5, 12, 9, 9, generator=torch.Generator().manual_seed(1)).requires_grad_()
        states = [part.contiguous(memory_format=torch.channels_last) for part in x.split(6, dim=1)]
        weights = torch.full((8, len(batch.ops)), 0.1, requires_grad=True)
        loss = sum((node**2).sum() for node in batch(states, EdgeWeights(weights)))
        wanted = [x, weights, *(p for op in batch.ops if getattr(op, "stages", None) for p in op.parameters())]
        found.append(torch.autograd.grad(loss, wanted))
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize("channels", [6, 16, 36])
def test_float32_agrees_with_pytorch_to_its_precision(channels: int) -> None:
    net = small_supernet(channels)
    x = torch.randn(4, 3, 8, 8).contiguous(memory_format=torch.channels_last)
    mine = gradients_of(net, x)
    accelerate(net, "batched")
    for a, b in zip(mine, gradients_of(net, x), strict=True):
        assert (a - b).norm() <= 1e-2 * b.norm() + 1e-5  # a ReLU that flips counts in full


def test_a_nan_is_passed_on() -> None:
    net = small_supernet()
    x = torch.randn(4, 3, 8, 8)
    x[0, 0, 4, 4] = torch.nan
    assert net(x, softmax(net)).isnan().any()


def test_frozen_weights_and_alphas_get_no_gradient() -> None:
    net = small_supernet()
    x = torch.randn(4, 3, 8, 8)
    expected = gradients_of(net, x)
    for frozen, wanted in ((net.weights(), net.alphas()), (net.alphas(), net.weights())):
        for p in frozen:
            p.requires_grad_(False)
        net.zero_grad()
        F.cross_entropy(net(x, softmax(net)), torch.arange(len(x))).backward()
        assert all(p.grad is None for p in frozen)
        place = {id(p): i for i, p in enumerate([*net.weights(), *net.alphas()], start=1)}
        for p in wanted:
            assert p.grad is not None
            torch.testing.assert_close(p.grad, expected[place[id(p)]])
        for p in frozen:
            p.requires_grad_(True)


def test_stages_that_are_not_known_are_left_to_pytorch() -> None:
    pool_of, stages_of = ir.pool_of, ir.stages_of
    norm = nn.BatchNorm2d(4, affine=False)
    assert stages_of([nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False), norm], 2) is not None
    for conv in (
        nn.Conv2d(4, 4, 3, groups=4, bias=False),  # no padding
        nn.Conv2d(4, 4, 9, padding=4, groups=4, bias=False),  # no kernel of that size
        nn.Conv2d(4, 4, 3, padding=1, groups=2, bias=False),  # no depthwise convolution
        nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False, padding_mode="reflect"),
        nn.Conv2d(4, 4, 1, groups=2),  # a bias
        nn.Conv2d(4, 4, 1, groups=4, stride=2, bias=False),
    ):
        assert stages_of([nn.ReLU(), conv, norm], 2) is None
    assert stages_of([nn.ReLU(), norm], 2) is None
    assert stages_of([nn.ReLU(), nn.Conv2d(4, 4, 1, groups=2, bias=False), nn.BatchNorm2d(4, momentum=None)], 2) is None
    assert pool_of([nn.MaxPool2d(3, 2, padding=1), norm]) is not None
    assert pool_of([nn.MaxPool2d(2, 2), norm]) is None
    assert pool_of([nn.AvgPool2d(3, 1, padding=1), norm]) is None  # counts the border


@pytest.mark.parametrize("kernel_size", [3, 5, 7])
@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (1, 2), (2, 1), (2, 2), (1, 3), (3, 1), (3, 2)])
def test_depthwise_convolutions_of_any_stride_and_dilation(kernel_size: int, stride: int, dilation: int) -> None:
    """Channels in several groups of vectors, of which the last ones overlap, and rows of any length included."""
    available()
    torch.manual_seed(0)
    for C, size in ((4, (5, 4)), (9, (7, 14)), (44, (6, 11))):
        conv, norm = DepthwiseConv2d(C, kernel_size, stride, dilation), nn.BatchNorm2d(C)
        layers = nn.Sequential(nn.ReLU(), conv, norm).double()
        x = torch.randn(2, C, *size, dtype=torch.float64, requires_grad=True)
        expected = layers(x)
        stages = ir.stages_of(list(layers), 1)
        assert stages is not None
        operations = ir.FusedOps(1, 1, [ir.FusedOp(stages)])
        [actual] = run_ops([x], torch.ones(1, 1, dtype=torch.float64), operations)
        by = torch.randn_like(expected)
        wanted = [x, *layers.parameters()]
        assert_equal_tensors([actual], [expected])
        assert_equal_tensors(*(torch.autograd.grad((y * by).sum(), wanted) for y in (actual, expected)))


@pytest.mark.parametrize("name", [name for name in OPERATIONS if not OPERATIONS[name].is_random])
def test_an_operation_with_affine_norms_is_that_of_its_layers(name: str) -> None:
    """Weights of BatchNorm that are zero or nearly so included, alone and in a sum with another operation."""
    available()
    for stride, size, C, training in (
        (1, (7, 9), 6, True),
        (2, (9, 7), 20, True),
        (2, (5, 6), 18, True),
        (1, (5, 5), 36, False),
    ):
        torch.manual_seed(0)
        ops = [OPERATIONS[each].build(C, stride, True).double() for each in (name, "dil_conv_3x3")]
        randomize(torch.nn.ModuleList(ops), seed=1)
        for p in (p for op in ops for n in op.modules() if isinstance(n, torch.nn.BatchNorm2d) for p in [n.weight]):
            p.data[:3] = torch.tensor([0.0, 1e-9, -2.0])[: len(p)]
        mine = copy.deepcopy(ops)
        stages = [ir.stages_of_operation(op) for op in mine]
        if stages[0] is None:
            assert name in ("none", "conv_7x1_1x7")
            return
        x = torch.randn(3, C, *size, dtype=torch.float64, requires_grad=True)
        kept = torch.tensor([2.0, 0.0, 0.5], dtype=torch.float64)
        parameters = [p for op in ops for p in op.parameters()]
        their = [p for op in mine for p in op.parameters()]
        for op in (*ops, *mine):
            op.train(training)
        expected = ops[0](x) * kept.view(-1, 1, 1, 1) + ops[1](x)
        terms = [(stages[0], kept), (stages[1], torch.ones_like(kept))]
        if isinstance(mine[0], Residual) and mine[0].shortcut:
            terms.append(([], kept))
        operations = ir.FusedOps(1, 1, [ir.FusedOp(of_op) for of_op, _ in terms])
        [actual] = run_ops([x], torch.stack([factors for _, factors in terms])[:, None], operations)
        by = torch.randn_like(expected)
        assert_equal_tensors([actual], [expected])
        assert_equal_tensors(
            torch.autograd.grad((actual * by).sum(), [x, *their]),
            torch.autograd.grad((expected * by).sum(), [x, *parameters]),
            relative=1e-9,
        )
        buffers = [[b for op in each for b in op.buffers()] for each in (mine, ops)]
        assert_equal_tensors(*buffers)


@pytest.mark.parametrize("frozen", ["nothing", "weights", "inputs"])
def test_a_graph_gives_what_its_steps_give(frozen: str) -> None:
    """With a state in two parts, one that is only passed on, a node from which nothing leads, outputs from which
    something does, and two states of which one has a gradient already when their step is differentiated."""
    available()
    torch.manual_seed(0)
    joint = torch.nn.Sequential(torch.nn.ReLU(), torch.nn.Conv2d(10, 5, 1, bias=False), torch.nn.BatchNorm2d(5))
    names = ("dil_conv_3x3", "sep_conv_3x3", "max_pool_3x3", "sep_conv_5x5", "avg_pool_3x3")
    ops = [joint, *(OPERATIONS[name].build(5, 1, True) for name in names)]
    modules = torch.nn.ModuleList(ops).double()
    randomize(modules, seed=0)
    modules.requires_grad_(frozen != "weights")
    a, b, c, d = inputs = [torch.randn(3, 5, 6, 7, dtype=torch.float64) for _ in range(4)]
    for x in inputs[2 * (frozen == "inputs") :]:
        x.requires_grad_()

    def of(*terms: tuple[torch.nn.Module, int]) -> list[ir.FusedOp]:
        return [ir.FusedOp(ir.stages_of_operation(op) or (), place) for op, place in terms]

    steps = [
        ir.GraphStep(ir.FusedOps(1, 1, of((ops[0], 0)), parts=2), [0, 1], [4]),
        ir.GraphStep(ir.FusedOps(1, 1, of((ops[1], 0), (ops[2], 1))), [4, 2], [5]),
        ir.GraphStep(ir.FusedOps(1, 1, of((ops[4], 0))), [5], [6]),
        ir.GraphStep(ir.FusedOps(2, 1, of((ops[5], 0), (torch.nn.Identity(), 0))), [4, 5], [7]),
        ir.GraphStep(ir.FusedOps(1, 1, of((ops[3], 0))), [4], [7]),
    ]
    graph = ir.CellGraph(4, steps, outputs=[4, 5, 7], passed_on=[2, 3])
    gammas = [a.new_ones(len(step.operations.each), step.operations.S) for step in steps]
    mine = cpp.run(inputs, gammas, graph)
    first = ops[0](torch.cat([a, b], dim=1))
    second = ops[1](first) + ops[2](c)
    expected = [first, second, ops[3](first) + sum(ops[5](x) + x for x in (first, second)), c, d]
    wanted = [t for t in (*inputs, *modules.parameters()) if t.requires_grad]
    found = []
    for outputs in (mine, expected):
        loss = sum((x**3).sum() * (i + 1) for i, x in enumerate(outputs))
        found.append([*outputs, *torch.autograd.grad(loss, wanted, allow_unused=True)])
    assert [x is None for x in found[0]] == [x is None for x in found[1]]
    assert_equal_tensors(*([x for x in one if x is not None] for one in found))


def test_launch_plans_are_cached_for_each_kind_of_input_and_end_with_their_graph() -> None:
    available()
    gc.collect()
    before = len(PLANS)
    stages = ir.stages_of_operation(OPERATIONS["sep_conv_3x3"].build(5, 1, False).double())
    assert stages is not None
    operations = ir.FusedOps(1, 1, [ir.FusedOp(stages)])
    gamma = torch.ones(1, 1, dtype=torch.float64)
    for size in (4, 6, 4):
        x = torch.randn(2, 5, size, size, dtype=torch.float64)
        run_ops([x], gamma, operations)
    assert len(PLANS) == before + 1
    layouts = [Layout.dense(*x.shape)]
    assert PLANS.find(operations.alone, layouts, [gamma]) is PLANS.find(operations.alone, layouts, [gamma])
    del operations
    gc.collect()
    assert len(PLANS) == before


def test_what_is_differentiated_twice_says_so() -> None:
    net = small_supernet().double()
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    loss = F.cross_entropy(net(x, softmax(net)), torch.arange(2))
    first = torch.autograd.grad(loss, net.alphas(), create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        sum(g.sum() for g in first).backward()


@pytest.mark.parametrize("frozen", ["conv_1", "conv_2"])
def test_one_half_of_a_skip_connection_may_be_frozen(frozen: str) -> None:
    net = small_supernet().double()
    for name, weight in net.named_parameters():
        weight.requires_grad_(f".{frozen}." not in name)
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    found = []
    for on in (True, False):
        accelerate(net, "cpp" if on else "batched")
        loss = F.cross_entropy(net(x, softmax(net)), torch.arange(2))
        found.append(torch.autograd.grad(loss, [p for p in net.parameters() if p.requires_grad]))
    assert len(found[0]) < len(list(net.parameters()))
    assert_equal_tensors(*found)


def test_weights_may_be_laid_out_in_any_way_and_settings_of_norms_may_change() -> None:
    net = small_supernet().double()
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    first = gradients_of(net, x)
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d) and layer.groups > 1:  # as on a GPU
            layer.weight.data = layer.weight.data.permute(2, 3, 1, 0).contiguous().permute(3, 2, 0, 1)
    assert_equal_tensors(gradients_of(net, x), first)
    for norm in (layer for layer in net.modules() if isinstance(layer, nn.BatchNorm2d)):
        norm.eps, norm.momentum = 0.5, 0.3
    both = [gradients_of(net, x)]
    accelerate(net, "batched")
    both.append(gradients_of(net, x))
    assert_equal_tensors(*both)
    assert abs(both[0][0] - first[0]) > 1e-3


def test_what_the_kernels_would_misread_is_refused() -> None:
    net = small_supernet()
    x = torch.randn(2, 3, 8, 8)
    mixing = softmax(net)
    doubled = mixing._replace(normal=mixing.normal.double(), reduce=mixing.reduce.double())
    with pytest.raises(TypeError, match=r"found torch\.float32 on cpu, torch\.float64 on cpu"):
        net(x, doubled)
    batch, weights = net.cells[0].batches[0], torch.rand(8, len(net.cells[0].batches[0].ops))
    with pytest.raises(ValueError, match="Expected more than 1 value per channel when training"):
        batch([torch.randn(0, 6, 4, 4)] * 2, EdgeWeights(weights))
    for norm in (layer for layer in net.modules() if isinstance(layer, nn.BatchNorm2d)):
        norm.momentum = None
    with pytest.raises(ValueError, match="need the momentum of each BatchNorm"):
        batch([torch.randn(2, 6, 4, 4)] * 2, EdgeWeights(weights))


def test_variances_do_not_suffer_from_a_first_pixel_far_from_the_others() -> None:
    available("float")
    torch.manual_seed(0)
    conv, norm = DepthwiseConv2d(8, 3, 1, 1), nn.BatchNorm2d(8)
    x = torch.randn(2, 8, 64, 64)
    x[:, :, :2, :2] += 300
    stages = ir.stages_of([conv, norm], 1)
    assert stages is not None
    run_ops([x], torch.ones(1, 1), ir.FusedOps(1, 1, [ir.FusedOp(stages)]))
    exact = F.conv2d(x.double(), conv.weight.double(), padding=1, groups=8).var(dim=(0, 2, 3))
    torch.testing.assert_close(norm.running_var, (0.9 + 0.1 * exact).float(), rtol=1e-5, atol=0)
