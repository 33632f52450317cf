"""The Triton kernels, on a GPU or, without one, in Triton's interpreter (see conftest.py)."""

import copy
import dataclasses
import gc
import inspect
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

pytest.importorskip("triton", reason="Triton comes with PyTorch for GPUs, and is not installed here")

import triton

from benchmarks.launches import count
from benchmarks.machine_code import triton_kernels_on_any_device
from benchmarks.subjects import Shape, passes
from darts_sg.backends import accelerate, ir
from darts_sg.backends.batched import EdgeBatch, EdgeWeights
from darts_sg.backends.check import Conditions, cell_errors
from darts_sg.backends.cpp.build import Unavailable
from darts_sg.backends.triton import run as gpu
from darts_sg.backends.triton.cells import TritonCell, TritonKernels
from darts_sg.backends.triton.levers import Levers, chosen
from darts_sg.errors import UsageError
from darts_sg.networks.skeleton import CellSpec
from darts_sg.networks.supernet import SupernetCell, candidate
from darts_sg.ops import OPERATIONS
from tests.backends.bounds import checked_bounds
from tests.reference.transfer import assert_equal_tensors, randomize

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
EVERY = [
    name
    for name in OPERATIONS
    if name not in ("none", "sep_conv_5x5", "sandglass_3x3_r4") and not OPERATIONS[name].is_random
]
"""Without those that differ from another one by a size alone."""
SEVERAL = ["sep_conv_3x3", "dil_conv_3x3", "sandglass_3x3", "max_pool_3x3", "avg_pool_3x3", "skip_connect"]


@pytest.fixture(autouse=True, scope="module")
def builtins_found_once() -> Iterator[None]:
    """At every call of every function the interpreter lists the members of Triton's modules to find those that it
    replaces while the function runs: a third of the time of these tests."""
    if not os.environ.get("TRITON_INTERPRET"):
        yield
        return
    from triton.language.core import is_builtin
    from triton.runtime import interpreter

    names: dict[int, list[str]] = {}

    def replace(package: Any, builder: Any, scope: Any) -> None:
        if id(package) not in names:
            names[id(package)] = [name for name, member in inspect.getmembers(package) if is_builtin(member)]
        for name in names[id(package)]:
            if is_builtin(member := getattr(package, name)):
                interpreter._patch_attr(package, name, member, builder, scope)

    with pytest.MonkeyPatch.context() as patch:
        if hasattr(interpreter, "_patch_builtin"):
            patch.setattr(interpreter, "_patch_builtin", replace)
        yield


@pytest.fixture(autouse=True)
def small_programs_on_this_device(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Several programs for an edge, and several rounds for each; with CHECK_BOUNDS every access is checked, too."""
    monkeypatch.setattr(gpu, "TILE", 256)
    monkeypatch.setattr(gpu, "LONGEST", 2)
    monkeypatch.setattr(gpu, "PROGRAMS", 2)
    with triton_kernels_on_any_device(), checked_bounds() if os.environ.get("CHECK_BOUNDS") else nullcontext():
        yield


def batch_of(names: list[str], S: int, T: int, C: int, stride: int) -> EdgeBatch:
    edges = [[candidate(name, C, stride) for name in names] for _ in range(S * T)]
    batch = EdgeBatch(edges, S, C, stride)
    randomize(batch, 0)
    for layer in batch.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.num_batches_tracked = None  # as in a supernet
    return batch.double().to(DEVICE, memory_format=torch.channels_last)


def nodes_and_gradients(batch: EdgeBatch, states: list[Tensor], mixing: Tensor, onto: list[Tensor]) -> list[Tensor]:
    nodes = batch(states, EdgeWeights(mixing), onto)
    loss = sum((node * torch.linspace(-1, 1, node.numel(), device=DEVICE).view_as(node)).sum() for node in nodes)
    wanted = [*states, mixing, *onto, *batch.parameters()]
    return [*nodes, *torch.autograd.grad(loss, [t for t in wanted if t.requires_grad])]


def compare(batch: EdgeBatch, C: int, size: int, *, images: int = 2, onto: bool = False) -> None:
    generator = torch.Generator().manual_seed(1)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(DEVICE)

    whole = random(images, batch.S * C, size, size).contiguous(memory_format=torch.channels_last)
    states = [part.requires_grad_() for part in whole.split(C, dim=1)]
    mixing = random(batch.S * batch.T, len(batch.ops)).softmax(dim=1).requires_grad_()
    side = -(-size // batch.stride)
    given = [random(images, C, side, side).requires_grad_() for _ in range(batch.T if onto else 0)]
    other = copy.deepcopy(batch)
    batch.kernels = TritonKernels()
    assert_equal_tensors(*(nodes_and_gradients(one, states, mixing, given) for one in (batch, other)))
    assert_equal_tensors(batch.buffers(), other.buffers())


@pytest.mark.parametrize(
    ("name", "stride"), [*((name, 1) for name in EVERY), *((name, 2) for name in (*SEVERAL, "dil_conv_5x5"))]
)
def test_each_operation_gives_what_pytorch_gives(name: str, stride: int) -> None:
    S, T = (1, 2) if stride == 1 else (2, 1)
    compare(batch_of([name], S, T, C=3, stride=stride), 3, size=4)


@pytest.mark.parametrize(("S", "T", "stride", "size", "training"), [(2, 1, 2, 5, True), (1, 2, 1, 4, False)])
def test_several_operations_together(S: int, T: int, stride: int, size: int, training: bool) -> None:
    compare(batch_of(SEVERAL, S, T, 4, stride).train(training), 4, size, onto=True)


LEVER_NAMES = [field.name for field in dataclasses.fields(Levers)]


def narrow_dots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products of bfloat16 in the interpreter, which keeps its bits in integers and would multiply these."""
    if not os.environ.get("TRITON_INTERPRET"):
        return
    from triton.runtime import interpreter

    plain = interpreter.InterpreterBuilder.create_dot

    def create_dot(builder: Any, a: Any, b: Any, d: Any, *options: Any) -> Any:
        if a.dtype == triton.language.bfloat16:
            bits = [interpreter.TensorHandle(to_float32(x.data), triton.language.float32) for x in (a, b)]
            return plain(builder, *bits, d, *options)
        return plain(builder, a, b, d, *options)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", create_dot)


def to_float32(bits: np.ndarray) -> np.ndarray:
    """bfloat16, the upper half of a float32, as numbers."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def test_levers_change_nothing_but_the_order_of_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    """In float64, where tensor cores are not used: single pixels instead of runs, parts of as many rows as programs."""
    monkeypatch.setattr(gpu, "LEVERS", Levers(flat=True, parts=True, tf32x3=True, bf16=True))
    compare(batch_of(["sandglass_3x3", "max_pool_3x3"], 1, 1, 3, 1), 3, size=5)


@pytest.mark.parametrize(("lever", "C", "dots"), [("tf32x3", 32, {"tf32x3"}), ("bf16", 4, {"bf16"})])
def test_tensor_cores_multiply_where_a_lever_says_so(
    lever: str, C: int, dots: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """tf32x3 behind a depthwise convolution of 32 channels or more only; both within what their precision allows."""
    narrow_dots(monkeypatch)
    launched: list[str] = []
    launch = gpu.launch

    def record(kernel: Any, grid: tuple[int, ...], *arguments: Any, **sizes: Any) -> None:
        if "DOT" in sizes and sizes["POINTWISE"]:
            launched.append(sizes["DOT"])
        launch(kernel, grid, *arguments, **sizes)

    monkeypatch.setattr(gpu, "launch", record)
    monkeypatch.setattr(gpu, "PROGRAMS", 1)
    batch = batch_of(["dil_conv_3x3"], 1, 1, C, 1).float()
    batch.kernels = TritonKernels()
    dtype = torch.bfloat16 if lever == "bf16" else torch.float32
    x = torch.randn(1, C, 3, 3, device=DEVICE, generator=torch.Generator(DEVICE).manual_seed(0)).to(dtype)
    x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    mixing = torch.ones(1, 1, device=DEVICE, requires_grad=True)
    plain = nodes_and_gradients(batch, [x], mixing, [])
    assert set(launched) == {"ieee"}
    monkeypatch.setattr(gpu, "LEVERS", Levers.named(lever))
    launched.clear()
    found = nodes_and_gradients(batch, [x], mixing, [])
    assert set(launched) == dots
    for one, other in zip(found, plain, strict=True):
        torch.testing.assert_close(
            one, other, rtol=0, atol=(0.05 if lever == "bf16" else 1e-4) * other.abs().max().item()
        )
    one = gpu.Geometry(2, 1, 8, 8, 8, 8, C, C, 3, 1, 1, 0)
    assert {gpu.dot_of(one._replace(K=0), x), gpu.dot_of(one._replace(C=16), x)} == (dots - {"tf32x3"} or {"ieee"})
    assert gpu.dot_of(one, x.double()) == "ieee"
    if lever == "bf16":
        assert not all(torch.equal(one, other) for one, other in zip(found, plain, strict=True))


def test_a_lever_that_does_not_exist_is_told_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    assert LEVER_NAMES == ["flat", "tf32x3", "bf16", "parts", "branches"]
    monkeypatch.setenv("DARTS_SG_TRITON", "parts, flat")
    assert chosen() == "flat,parts"
    monkeypatch.setenv("DARTS_SG_TRITON", "fast")
    with pytest.raises(UsageError, match="DARTS_SG_TRITON: 'fast' is no lever of the Triton kernels; choices: flat"):
        chosen()


class FakeStream:
    """A stream whose launches are noted with the moment from which on they may run."""

    def __init__(self, name: str, after: int = 0) -> None:
        self.name = name

    def record_event(self) -> None: ...

    def wait_event(self, event: object) -> None: ...

    def wait_stream(self, other: "FakeStream") -> None: ...


def test_branches_share_no_memory_until_they_are_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    """What one branch writes no other touches before the join, freed memory included; the bits are the same."""
    current, joined = ["main"], [0]
    in_use: list[StorageWeakRef] = []  # memory of the launches since the last fork
    accesses: list[tuple[int, str, str, int, int, bool]] = []  # join, stream, kernel, first and last byte, written

    @contextmanager
    def stream(one: FakeStream) -> Iterator[None]:
        before, current[0] = current[0], one.name
        yield
        current[0] = before

    class Joined(gpu.Branches):
        @staticmethod
        def active(x: Tensor) -> bool:
            return LEVER_ON[0]

        def __exit__(self, *error: object) -> None:
            if self.streams:
                gc.collect()  # the interpreter's reference cycles would keep what a GPU frees at once
                assert not any(storage.expired() for storage in in_use)
                joined[0] += 1  # what is postponed runs after the join
            super().__exit__(*error)
            if self.streams:
                joined[0] += 1

        def __enter__(self) -> "Joined":
            super().__enter__()
            if self.streams:
                in_use.clear()
                joined[0] += 1
            return self

    LEVER_ON = [False]
    monkeypatch.setattr(gpu, "Branches", Joined)
    monkeypatch.setattr(gpu, "_side_streams", lambda device: tuple(FakeStream(f"side {i}") for i in range(2)))
    monkeypatch.setattr(torch.cuda, "stream", stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: FakeStream("main"))
    launch, slices = gpu.launch, {"part", "weight_part", "to_part"}

    def record(kernel: Any, grid: tuple[int, ...], *arguments: Any, **sizes: Any) -> None:
        for name, tensor in zip(kernel.arg_names, arguments, strict=False):
            if isinstance(tensor, Tensor):
                in_use.append(StorageWeakRef(tensor.untyped_storage()))
            if isinstance(tensor, Tensor) and name not in slices:  # each launch has columns of its own in these
                begin = tensor.untyped_storage().data_ptr()
                end = begin + tensor.untyped_storage().nbytes()
                written = name in ("y", "winner", "to", "nodes") and not (
                    name == "winner" and "depthwise" in kernel.__name__
                )
                if name == "y" and kernel.__name__ == "stage_backward":
                    written = False
                if name in ("y", "winner"):  # the last results of several operations share a tensor
                    begin = tensor.data_ptr()
                    end = begin + tensor.nbytes
                accesses.append((joined[0], current[0], kernel.__name__, begin, end, written))
        launch(kernel, grid, *arguments, **sizes)

    monkeypatch.setattr(gpu, "launch", record)
    batch = batch_of(["sep_conv_3x3", "max_pool_3x3", "sandglass_3x3"], 1, 1, 2, 1)
    batch.kernels = TritonKernels()
    x = torch.randn(1, 2, 3, 3, dtype=torch.float64, device=DEVICE).contiguous(memory_format=torch.channels_last)
    mixing = torch.rand(1, 3, dtype=torch.float64, device=DEVICE, requires_grad=True)
    plain = nodes_and_gradients(batch, [x.requires_grad_()], mixing, [])
    assert {stream for _, stream, *_ in accesses} == {"main"}
    accesses.clear()
    LEVER_ON[0] = True
    found = nodes_and_gradients(batch, [x], mixing, [])
    assert all(torch.equal(one, other) for one, other in zip(found, plain, strict=True))
    assert {stream for _, stream, *_ in accesses} == {"main", "side 0", "side 1"}
    for join, stream_, kernel, begin, end, written in accesses:
        for other in accesses:
            if written and other[0] == join and other[1] != stream_:
                assert other[4] <= begin or end <= other[3], (kernel, other[2])


def test_a_second_skip_joins_the_identity_and_drop_path_is_left_to_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    """As an auxiliary skip is; a batch with factors of images launches no kernel."""
    monkeypatch.setattr(gpu, "_Run", Counted(gpu._Run))
    batch = batch_of(["skip_connect", "max_pool_3x3", "skip_connect"], 1, 2, 3, 1)
    compare(batch, 3, size=4)
    assert [len(operations.each) for operations in gpu._Run.operations] == [2]
    x, mixing = torch.randn(2, 3, 4, 4, dtype=torch.float64, device=DEVICE), torch.rand(2, 3, device=DEVICE).double()
    kept = torch.tensor([[0.0, 2.0], [1.0, 3.0]], device=DEVICE)
    nodes = batch([x], EdgeWeights(mixing, None, kept.double()))
    plain = batch([x], EdgeWeights(mixing))
    assert len(gpu._Run.operations) == 2
    for node, whole, factors in zip(nodes, plain, kept, strict=True):
        torch.testing.assert_close(node, whole * factors[:, None, None, None].double())


@pytest.mark.parametrize(("stride", "C", "images"), [(1, 3, 3), (2, 3, 1), (1, 33, 1)])
def test_runs_of_as_many_pixels_as_on_a_gpu(stride: int, C: int, images: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "LONGEST", 4)
    compare(batch_of(["dil_conv_5x5", "max_pool_3x3"], S=1, T=1, C=C, stride=stride), C, size=8, images=images)


def test_every_kernel_compiles_for_a_gpu(tmp_path: Path) -> None:
    """The interpreter takes more than the compiler does, which needs no GPU."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.backends.compile_batch"]
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    _, heads, *rows, bound = done.stdout.splitlines()
    assert heads.split()[:3] == ["kernel", "launches", "compiled"]
    found = {
        name: (int(launches), int(compiled), float(issued))
        for name, launches, compiled, *_, issued in map(str.split, rows)
    }
    assert {name: launches for name, (launches, *_) in found.items()} == {
        "stage_forward": 6, "statistics": 4, "mix_forward": 1, "mix_backward": 1, "identity_backward": 1,
        "stage_backward": 6, "taps_backward": 3, "depthwise_backward": 4, "all": 26,
    }  # fmt: skip
    assert all(0 < compiled <= launches for launches, compiled, _ in found.values())
    assert found["stage_forward"][2] > 1
    estimated, needed = map(int, bound.split()[-2:])
    assert 0.5 * estimated <= needed <= estimated


@pytest.mark.parametrize(("ratio", "tolerance"), [(100, 1e-5), (1000, 1e-4)])
def test_variances_are_exact_where_the_mean_is_much_larger_than_the_deviation(ratio: int, tolerance: float) -> None:
    norm = torch.nn.BatchNorm2d(4, affine=False, momentum=1.0).to(DEVICE)
    pool = torch.nn.AvgPool2d(3, 1, padding=1, count_include_pad=False)
    noise = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    x = noise + ratio * pool(noise).std()
    stage = ir.pool_of([pool, norm])
    assert stage is not None
    gpu.run(x, torch.ones(1, 1, device=DEVICE), ir.FusedOps(1, 1, [ir.FusedOp([stage])]))
    exact = pool(x.double()).var(dim=(0, 2, 3))
    torch.testing.assert_close(norm.running_var.double(), exact, rtol=tolerance, atol=0)


def test_stages_too_wide_for_the_shared_memory_are_left_to_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.empty(1, 1, 1, 1, device=DEVICE)
    monkeypatch.setattr(gpu, "shared_memory_limit", lambda device: 232_448)  # an H100's
    for C, fits in ((16, True), (128, True), (144, False)):
        stages = stages_of_chain("dil_conv_3x3", C)
        assert gpu.fits(stages, x) == fits
    assert gpu.fits(stages_of_chain("dil_conv_3x3", 128), x.double())
    assert gpu.shared_memory(144, 144, 4) == 294_912  # as compiled for compute capability 9.0
    with monkeypatch.context() as patch:
        patch.setattr(gpu, "LEVERS", Levers(tf32x3=True))
        assert gpu.shared_memory(64, 64, 4) == 49_152  # likewise
    monkeypatch.setattr(gpu, "shared_memory_limit", lambda device: 0)
    monkeypatch.setattr(gpu, "_Run", Counted(gpu._Run))
    compare(batch_of(SEVERAL, 1, 2, 4, 1), 4, size=5, onto=True)
    assert {len(operations.each) for operations in gpu._Run.operations} == {3}  # two pools and the identity


def stages_of_chain(name: str, C: int) -> list[ir.FusedStage]:
    return list(batch_of([name], S=1, T=1, C=C, stride=1).stages(0))


class Counted:
    """Keeps the operations that an autograd function is applied to."""

    def __init__(self, function: type[torch.autograd.Function]) -> None:
        self.function, self.operations = function, []

    def apply(self, operations: ir.FusedOps, *others: object) -> Tensor:
        self.operations.append(operations)
        return self.function.apply(operations, *others)


def test_ranks_of_a_machine_share_its_cores_when_they_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    assert gpu.compile_threads() == 20
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    monkeypatch.setenv("LOCAL_RANK", "0")  # the others wait for it
    assert gpu.compile_threads() == 20
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert gpu.compile_threads() == 2
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "64")
    assert gpu.compile_threads() == 1


def test_each_kernel_counts_as_a_launch() -> None:
    batch = batch_of(["dil_conv_3x3", "skip_connect"], S=1, T=1, C=3, stride=1)
    batch.kernels = TritonKernels()
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64, device=DEVICE).contiguous(memory_format=torch.channels_last)
    mixing = torch.rand(1, 2, dtype=torch.float64, device=DEVICE, requires_grad=True)
    counts = count(lambda: nodes_and_gradients(batch, [x.requires_grad_()], mixing, []))
    forward, backward = ["stage", "statistics", "mix"], ["mix", "identity", "stage", "taps", "depthwise"]
    assert counts["darts_sg.triton"] == len(forward + backward)


def test_a_pass_of_the_supernet_launches_few_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted without launching them; what a pass takes does not depend on its size."""
    monkeypatch.setattr(gpu, "launch", lambda *arguments, **sizes: None)
    shape = Shape(batch=2, channels=4, size=8, device=DEVICE)
    baseline = sum(count(passes(shape, own=False)).values())
    net = shape.supernet(native=False)
    accelerate(net, "triton")
    monkeypatch.setattr(Shape, "supernet", lambda shape, native: net)
    counts = count(passes(shape, own=True, native=True))
    assert counts["darts_sg.triton"] > 1000
    assert sum(counts.values()) / baseline < 2000 / 15004


def test_frozen_weights_change_no_other_gradient() -> None:
    batch = batch_of(["sep_conv_3x3", "sandglass_3x3", "max_pool_3x3", "skip_connect"], S=1, T=2, C=4, stride=1)
    for weight in batch.parameters():
        weight.requires_grad_(False)
    compare(batch, 4, 4)


def test_sums_of_programs_are_the_same_each_time() -> None:
    batch = batch_of(["sep_conv_3x3", "avg_pool_3x3"], S=1, T=1, C=4, stride=1).float()
    batch.kernels = TritonKernels()
    x = torch.randn(4, 4, 4, 4, device=DEVICE).contiguous(memory_format=torch.channels_last).requires_grad_()
    mixing = torch.full((1, 2), 0.5, device=DEVICE, requires_grad=True)
    first, second = (nodes_and_gradients(batch, [x], mixing, []) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_kernels_that_do_not_compile_are_told_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    class Kernel:
        def warmup(self, *arguments: object, **sizes: object) -> None:
            raise RuntimeError("\nptxas fatal: no such architecture\nand much more")

    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)

    def passes() -> None:
        for C in range(3):
            gpu.launch(Kernel(), (1,), C=C)

    with pytest.raises(Unavailable, match=r"Triton .* cannot compile its kernels: ptxas fatal: no such architecture$"):
        gpu.compile_ahead(passes, torch.device("cuda"))


@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-3), ("bfloat16", 0.1)])
def test_the_check_that_a_search_begins_with_passes(precision: str, tolerance: float) -> None:
    torch.manual_seed(0)
    spec = CellSpec(4, 3, 2, reduction=True, reduction_before=False)
    operations = ("none", "dil_conv_3x3", "avg_pool_3x3", "skip_connect")
    cell = TritonCell(SupernetCell(spec, operations, 1, 1).to(DEVICE))
    shapes = [(2, 4, 5, 5), (2, 3, 5, 5)]
    dtype = getattr(torch, precision)
    errors, output = cell_errors(cell, shapes, Conditions(torch.device(DEVICE), dtype, 8, lambda error: False))
    assert output == (2, 2, 3, 3)
    assert max(errors.values()) < tolerance
    num_norms = len([m for m in cell.modules() if isinstance(m, torch.nn.BatchNorm2d)])
    for_two = 4 + len([*cell.parameters()]) + 2 * num_norms
    for_eight = for_two - num_norms
    assert len(errors) == for_two + for_eight
    assert len([name for name in errors if name.endswith(" for 8 images")]) == for_eight
