"""Runs fused operations (backends/ir.py) on a GPU: launches the kernels of kernels.py depth by depth.

The stages at one depth of all operations share the small launches: one computes all their statistics, another all sums
that their gradients need.
"""

import math
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, NamedTuple, cast

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

from darts_sg.backends.cpp.build import Unavailable
from darts_sg.backends.ir import EDGES, MIXED_NODES, NODES, FusedOp, FusedOps, FusedStage, kind_of
from darts_sg.backends.triton import kernels
from darts_sg.backends.triton.levers import Levers, chosen
from darts_sg.errors import first_line

TILE = 512  # runs of pixels times channels that a program works on at a time; more where that were less than 16 runs
LONGEST = 4  # pixels of a run; fewer where channels are many, for registers are few
PROGRAMS = 512  # of a launch, about: enough for a GPU's multiprocessors, and few enough for the sums of their parts
PER_THREAD = 4  # channels of a run
ALWAYS = {"enable_fp_fusion": True}  # a product and a sum in one instruction: Triton from 3.10 on wants to be asked
RUNNING = ("running_mean", "running_var")
LEVERS = Levers.named(chosen())
STREAMS = 4  # for the operations of a depth, with Levers.branches
TENSOR_CORES_FROM = 32  # channels, with Levers.tf32x3
MOST_REGISTERS = 128  # of a thread that adds up weight gradients on tensor cores


class Geometry(NamedTuple):
    """Sizes of a stage on E edges (states for a pool) of N images: H × W with C channels to Ho × Wo with Co."""

    N: int
    E: int
    H: int
    W: int
    Ho: int
    Wo: int
    C: int
    Co: int
    K: int
    stride: int
    dilation: int
    pool: int

    def sizes(self) -> dict[str, Any]:
        return {
            "H": self.H, "W": self.W, "Ho": self.Ho, "Wo": self.Wo, "C": self.C, "CP": _padded(self.C),
            "K": self.K, "STRIDE": self.stride, "DILATION": self.dilation, "POOL": self.pool,
        }  # fmt: skip


class Grid(NamedTuple):
    """How programs share the pixels of an edge: G programs, each with `rounds` times BP runs of Q adjacent pixels."""

    G: int
    rounds: int
    BP: int
    Q: int
    warps: int

    @classmethod
    def of(
        cls, rows: int, W: int, edges: int, channels: int, *, Q: int | None = None, rounds: int | None = None
    ) -> "Grid":
        """rows: of W pixels, over all images; channels: the widest of the launch, padded."""
        BP = cls.pixels_at_a_time(channels)
        Q = Q or max(2, min(LONGEST, 128 // channels))
        blocks = triton.cdiv(rows * triton.cdiv(W, Q), BP)
        rounds = rounds or triton.cdiv(blocks, max(1, PROGRAMS // edges))
        warps = max(4, min(16, BP * channels // (32 * PER_THREAD)))
        return cls(triton.cdiv(blocks, rounds), rounds, BP, Q, warps)

    @staticmethod
    def pixels_at_a_time(channels: int) -> int:
        """BP; `tl.dot` takes 16 at least."""
        return max(16, TILE // channels)

    def pixels(self) -> dict[str, Any]:
        """The launch options of a kernel that works on single pixels."""
        return {"BP": self.BP, "num_warps": self.warps, "num_stages": 1}

    def runs(self) -> dict[str, Any]:
        return {"Q": self.Q, **self.pixels()}

    def flat(self) -> "Grid":
        """The same programs with single pixels instead of runs, and as many pixels at a time: none is left out, since a
        row of W pixels is at most its runs of Q. For kernels that read no neighbours."""
        return self._replace(BP=self.BP * self.Q, Q=1)


@dataclass(eq=False)
class Group:
    """Stages at one depth whose outputs have one size. y · norm[0] + norm[1] normalises the channels of all of them."""

    norm: Tensor
    """(2, M)"""
    grid: Grid
    count: int
    """Pixels of all images."""

    @property
    def channels(self) -> int:
        """M, of all stages."""
        return self.norm.shape[1]

    def part(self) -> Tensor:
        """Memory for the programs' sums, (G, 2, M)."""
        return self.norm.new_empty(self.grid.G, 2, self.channels)


class Result(NamedTuple):
    """The result of a stage: its output (N, E, Ho, Wo, Co) before BatchNorm, the winning taps of a max pool, and its
    group, in which its channels begin at `at`."""

    y: Tensor
    winner: Tensor | None
    group: Group
    at: int

    def norm(self) -> Tensor:
        return self.group.norm.view(-1)[self.at :]


class Source(NamedTuple):
    """The input of a stage: the states, or the previous stage's result, which is normalised while it is read."""

    x: Tensor
    norm: Tensor | None
    M: int
    shared_by: int
    """The number of edges that read the same state."""
    first: bool
    pixel: int
    """Values between adjacent pixels."""

    @classmethod
    def of(cls, operation: FusedOp, x: Tensor, T: int, before: Result | None) -> "Source":
        if before is None:
            return cls(x, None, 0, 1 if operation.shared else T, True, x.shape[1])
        return cls(before.y, before.norm(), before.group.channels, 1, False, before.y.shape[4])

    def sizes(self) -> dict[str, Any]:
        return {"FIRST": self.first, "IN_PIXEL": self.pixel, "NORM": self.norm is not None}


def takes(x: Tensor) -> bool:
    """Whether the kernels take x by its device and type."""
    return x.device.type == "cuda" and x.dtype in (torch.float32, torch.bfloat16, torch.float64)


def supports(stages: Sequence[FusedStage]) -> bool:
    """Whether the kernels compute these stages: BatchNorms must be affine-free, and the first stage no lone 1×1."""
    plain = all(stage.norm is not None and not stage.norm.affine for stage in stages)
    return plain and (stages[0].pool is not None or stages[0].depthwise is not None)


def fits(stages: Sequence[FusedStage], x: Tensor) -> bool:
    """Whether the 1×1 convolutions of these stages fit into the shared memory of x's device, in x's precision."""
    layers = [stage.pointwise for stage in stages if stage.pointwise is not None]  # with a group for each edge
    sizes = [(layer.in_channels // layer.groups, layer.out_channels // layer.groups) for layer in layers]
    limit = shared_memory_limit(x.device)
    return all(shared_memory(C, Co, _arithmetic(x)[0].itemsize) <= limit for C, Co in sizes)


def shared_memory(C: int, Co: int, value_size: int) -> int:
    """Bytes of shared memory that a program of a stage with a 1×1 convolution needs, forward or backward, at most.

    `tl.dot` holds the whole matrix there, (CP, CoP), and in the weights' gradient both of its factors, (BP, CP) and
    (BP, CoP).
    """
    CP, CoP = _padded(C), _padded(Co)
    pixels = Grid.pixels_at_a_time(min(CP, CoP)) * (LONGEST if LEVERS.flat else 1)
    parts = 2 if LEVERS.tf32x3 else 1  # of each factor
    return parts * value_size * (CP * CoP + pixels * (CP + CoP))


@cache
def shared_memory_limit(device: torch.device) -> float:
    """Bytes of shared memory that a program can have; without limit where kernels are interpreted on a CPU."""
    if device.type != "cuda":
        return math.inf
    properties = torch.cuda.get_device_properties(device)
    return getattr(properties, "shared_memory_per_block_optin", properties.shared_memory_per_block)


def taps(weight: Tensor) -> Tensor:
    """A depthwise weight (E · C, 1, K, K) tap by tap, (K, K, 1, E · C); not copied after `lay_out`."""
    return weight.permute(2, 3, 1, 0).contiguous()


def lay_out(module: nn.Module) -> None:
    """Store the weights of all depthwise convolutions tap by tap, the channels side by side, as the kernels read them.

    Only strides change: PyTorch and checkpoints see the same weights.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d) and layer.groups == layer.in_channels > 1 and layer.kernel_size != (1, 1):
            layer.weight.data = taps(layer.weight.data).permute(3, 2, 0, 1)


def run(x: Tensor, gamma: Tensor, operations: FusedOps, onto: Sequence[Tensor] = ()) -> list[Tensor]:
    """The T nodes (N, C, H', W'), each the sum of gamma times the operations, and of its tensor in `onto`.

    x: the S states side by side, (N, S · C, H, W). operations: chains first, then pools, then the identity if there is
    one. gamma: (number of operations, E), the scale of each operation's last BatchNorm, which has no weight of its own.
    """
    weights = [weight for stage in operations.stages() for weight in stage.weights()]
    given = torch.stack([node.permute(0, 2, 3, 1) for node in onto]) if onto else None
    nodes: Tensor = _Run.apply(operations, gamma, x.contiguous(memory_format=torch.channels_last), given, *weights)
    return [node.permute(0, 3, 1, 2) for node in nodes.unbind()]


_recorded: list[dict[Any, tuple[Any, ...]]] = []


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **sizes: Any) -> None:
    """Launch a kernel, or within `compile_ahead` only record it."""
    sizes |= ALWAYS
    if not _recorded:
        kernel[grid](*arguments, **sizes)
        return
    plain = tuple(a.dtype if isinstance(a, Tensor) else a for a in arguments)
    _recorded[0].setdefault(variant(kernel, plain, sizes), (kernel, plain, sizes))


def variant(kernel: Any, arguments: Sequence[Any], sizes: dict[str, Any]) -> tuple[Any, ...]:
    """What a kernel is compiled for: its sizes by value, other numbers by their Python type, tensors by their dtype."""
    plain = (a.dtype if isinstance(a, Tensor) else a for a in arguments)
    kinds = (a if isinstance(a, torch.dtype) else type(a) for a in plain)
    return (kernel, *kinds, *sorted((sizes | ALWAYS).items()))


def compile_ahead(passes: Callable[[], object], device: torch.device) -> int:
    """Compile the kernels that `passes` launches, in parallel on all cores; returns their number.

    `passes` is called but launches nothing, so the tensors that kernels would fill hold arbitrary values. Triton caches
    compiled kernels on disk: the first search of its kind on a machine takes a minute or so, later ones seconds.
    Raises Unavailable if a kernel does not compile.
    """
    _recorded.append({})
    try:
        passes()
    finally:
        found = list(_recorded.pop().values())
    with ThreadPoolExecutor(
        compile_threads(), initializer=torch.cuda.set_device, initargs=(device.index or 0,)
    ) as threads:
        compiled = [threads.submit(one.warmup, *plain, grid=(1,), **sizes) for one, plain, sizes in found]
        try:
            for kernel in compiled:
                kernel.result()
        except Exception as error:  # of many kinds, from Triton, LLVM and NVIDIA's assembler
            threads.shutdown(cancel_futures=True)
            reason = f"Triton {triton.__version__} cannot compile its kernels: {first_line(error)}"
            raise Unavailable(reason) from error
    return len(found)


def compile_threads() -> int:
    """Threads that compile kernels: all cores for the first process of a machine, since the others wait for it and find
    its kernels in the cache; what one of them compiles all the same gets its share."""
    everywhere = min(32, (os.cpu_count() or 1) + 4)
    if os.environ.get("LOCAL_RANK", "0") == "0":
        return everywhere
    return max(1, everywhere // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def dot_of(one: Geometry, x: Tensor) -> str:
    """How a stage of these sizes multiplies matrices, see `kernels._product`."""
    if LEVERS.bf16 and x.dtype == torch.bfloat16:
        return "bf16"
    wide = min(one.C, one.Co) >= TENSOR_CORES_FROM and one.K > 1
    return "tf32x3" if LEVERS.tf32x3 and wide and x.dtype == torch.float32 else "ieee"


@cache
def _side_streams(device: torch.device) -> tuple[torch.cuda.Stream, ...]:
    """Streams beside the current one, made once."""
    return tuple(torch.cuda.Stream(device) for _ in range(STREAMS - 1))


class Branches:
    """Lets the operations of one depth run beside each other on several streams, within a `with` statement.

    They begin after everything launched before, and everything launched later waits for them. Memory is the allocator's
    of the current stream, so a tensor that a branch uses has to be kept until the end (`keep`), or the next one could
    get its memory meanwhile. Active only while a graph is captured (`active`); otherwise all launches stay in order.
    """

    def __init__(self, x: Tensor) -> None:
        self.streams = _side_streams(x.device) if self.active(x) else ()
        self.kept: list[Tensor | None] = []
        self.postponed: list[Callable[[], None]] = []
        self.used: list[torch.cuda.Stream] = []

    @staticmethod
    def active(x: Tensor) -> bool:
        return LEVERS.branches and x.is_cuda and torch.cuda.is_current_stream_capturing()

    def __enter__(self) -> "Branches":
        if self.streams:
            self.begin = torch.cuda.current_stream()
            self.fork = self.begin.record_event()
        return self

    def branch(self, number: int) -> AbstractContextManager[object]:
        """The context in which operation `number` launches its kernels; it must not allocate."""
        turn = number % (len(self.streams) + 1)
        if not turn:
            return nullcontext()
        stream = self.streams[turn - 1]
        if stream not in self.used:
            self.used.append(stream)
            stream.wait_event(self.fork)
        return torch.cuda.stream(stream)

    def keep(self, *tensors: Tensor | None) -> None:
        """Keep these alive until all branches are joined."""
        if self.streams:
            self.kept += tensors

    def afterwards(self, call: Callable[[], None]) -> None:
        """Call it in order once all branches are joined; at once where there are none."""
        if self.streams:
            self.postponed.append(call)
        else:
            call()

    def __exit__(self, *error: object) -> None:
        for stream in self.used:
            self.begin.wait_stream(stream)
        self.kept.clear()
        for call in self.postponed:
            call()


def _arithmetic(x: Tensor) -> tuple[torch.dtype, Any]:
    return (torch.float64, tl.float64) if x.dtype == torch.float64 else (torch.float32, tl.float32)


def _padded(C: int) -> int:
    return max(16, triton.next_power_of_2(C))


class _Run(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, operations: FusedOps, gamma: Tensor, x: Tensor, onto: Tensor | None, *weights: Tensor
    ) -> Tensor:
        gamma = gamma.contiguous()
        forward = _Forward(operations, x)
        mix = _Mix(operations, x, forward.chain_ends, forward.pool_ends, forward.norm_of_ends())
        nodes = mix.forward(gamma, onto)
        flat = [result for results in forward.results for result in results]
        groups = list({id(result.group): result.group for result in flat}.values())
        ctx.operations = operations
        ctx.groups = [(group.grid, group.count) for group in groups]
        ctx.places = [(groups.index(result.group), result.at, result.winner is None) for result in flat]
        # all tensors are saved in this way and no other, so that recomputation can do without them
        kept = [t for result in flat for t in result[:2] if t is not None]
        ctx.save_for_backward(gamma, x, *mix[2:], *(group.norm for group in groups), *kept)
        return nodes

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        gamma, x, chain_ends, pool_ends, norm, *saved = ctx.saved_tensors
        operations: FusedOps = ctx.operations
        gradient = gradients[0].contiguous()
        mix = _Mix(operations, x, chain_ends, pool_ends, norm)
        sums = mix.sums(gradient)
        by_gamma = sums[: len(gamma)].sum(dim=-1).to(gamma.dtype) if ctx.needs_input_grad[1] else None
        by_x, by_onto, *needed = ctx.needs_input_grad[2:]
        onto = gradient if by_onto else None
        if not by_x and not any(needed):
            return None, by_gamma, None, onto, *(None for _ in needed)
        num_groups = len(ctx.groups)
        groups = [Group(norm, *rest) for norm, rest in zip(saved[:num_groups], ctx.groups, strict=True)]
        tensors = iter(saved[num_groups:])
        flat = iter(
            Result(next(tensors), None if no_winner else next(tensors), groups[i], at)
            for i, at, no_winner in ctx.places
        )
        results = [[next(flat) for _ in operation.stages] for operation in operations.each]
        backward = _Backward(operations, x, gamma, results, gradient, sums, any(needed))
        weights = (w if n else None for w, n in zip(backward.by_weights(), needed, strict=True))
        return None, by_gamma, backward.by_x.permute(0, 3, 1, 2), onto, *weights


def _depths(operations: FusedOps) -> Iterator[tuple[int, list[tuple[int, FusedStage]]]]:
    """(depth, [(number of the operation, its stage at this depth)]), depth by depth."""
    for depth in range(max(len(operation.stages) for operation in operations.each)):
        each = enumerate(operations.each)
        yield depth, [(o, operation.stages[depth]) for o, operation in each if depth < len(operation.stages)]


def _geometry(stage: FusedStage, N: int, E: int, H: int, W: int, C: int) -> Geometry:
    K, stride, dilation, Co = 0, 1, 1, C
    if stage.depthwise is not None:
        K, stride, dilation = stage.depthwise.kernel_size[0], stage.depthwise.stride[0], stage.depthwise.dilation[0]
    if stage.pool is not None:
        K, stride = 3, cast(int, stage.pool.stride)
    if stage.pointwise is not None:
        Co = stage.pointwise.out_channels // E
    pool = 0 if stage.pool is None else kind_of(stage.pool)
    return Geometry(N, E, H, W, -(-H // stride), -(-W // stride), C, Co, K, stride, dilation, pool)


class _Forward:
    """The forward pass: the results of all stages of all operations.

    The last results of chains lie in one tensor, (O, N, E, H, W, C), those of pools in another, (L, N, S, H, W, C), so
    that the mixing kernel reads each with one address.
    """

    def __init__(self, operations: FusedOps, x: Tensor) -> None:
        self.operations, self.x = operations, x
        S, T = operations.S, operations.T
        N, channels, H, W = x.shape
        dtype, A = _arithmetic(x)
        geometries: list[list[Geometry]] = []
        for operation in operations.each:
            sizes, E = (H, W, channels // S), S if operation.shared else S * T
            geometries.append([])
            for stage in operation.stages:
                geometries[-1].append(one := _geometry(stage, N, E, *sizes))
                sizes = one.Ho, one.Wo, one.Co
        # the last results are written where the mixing kernel reads them, without a copy
        ends = [(of[-1], operation) for of, operation in zip(geometries, operations.each, strict=True) if of]
        Ho, Wo = ends[0][0].Ho, ends[0][0].Wo
        num_pools = sum(operation.shared for _, operation in ends)
        self.chain_ends = x.new_empty(len(ends) - num_pools, N, S * T, Ho, Wo, channels // S)
        self.pool_ends = x.new_empty(num_pools, N, S, Ho, Wo, channels // S)
        last = iter([*self.chain_ends.unbind(), *self.pool_ends.unbind()])
        last_of = {o: next(last) for o, operation in enumerate(operations.each) if operation.stages}
        self.results: list[list[Result]] = [[] for _ in operations.each]
        self.running: dict[float, list[tuple[Tensor, Tensor]]] = {}  # (running statistic, its new value) by momentum
        for depth, stages in _depths(operations):
            # one group for all stages whose statistics have the same size and settings: one `statistics` launch
            alike: dict[tuple[Any, ...], list[tuple[int, FusedStage]]] = {}
            for o, stage in stages:
                assert stage.norm is not None
                key = geometries[o][depth].Ho, geometries[o][depth].Wo, stage.norm.training, stage.norm.eps
                alike.setdefault(key, []).append((o, stage))
            for (*_, training, eps), members in alike.items():
                shapes = [geometries[o][depth] for o, _ in members]
                count = N * shapes[0].Ho * shapes[0].Wo
                widest = _padded(max(max(one.C, one.Co) for one in shapes))
                M = sum(one.E * one.Co for one in shapes)
                norm = torch.empty(2, M, dtype=dtype, device=x.device)
                grid = Grid.of(N * shapes[0].Ho, shapes[0].Wo, max(one.E for one in shapes), widest)
                group = Group(norm, grid, count)
                part, at = group.part(), 0
                with Branches(x) as branches:
                    for number, ((o, stage), one) in enumerate(zip(members, shapes, strict=True)):
                        final = depth + 1 == len(operations.each[o].stages)
                        y = last_of[o] if final else x.new_empty(N, one.E, one.Ho, one.Wo, one.Co)
                        winner = torch.empty_like(y, dtype=torch.int8) if one.pool == 1 else None
                        before = self.results[o][-1] if depth else None
                        result = Result(y, winner, group, at)
                        with branches.branch(number):
                            source = Source.of(operations.each[o], x, T, before)
                            self._stage(stage, one, source, result, part, branches)
                        self.results[o].append(result)
                        at += one.E * one.Co
                self._normalise([stage for _, stage in members], shapes[0], part, group, eps, training, A)
        for momentum, pairs in self.running.items():  # all running statistics in one launch
            torch._foreach_lerp_([statistic for statistic, _ in pairs], [found for _, found in pairs], momentum)

    def _stage(
        self, stage: FusedStage, one: Geometry, source: Source, result: Result, part: Tensor, branches: Branches
    ) -> None:
        grid = result.group.grid
        depthwise = None if stage.depthwise is None else taps(stage.depthwise.weight)
        branches.keep(depthwise)  # a copy, unless the weight is laid out tap by tap
        launch(
            kernels.stage_forward, (grid.G, one.E),
            *source[:3],
            depthwise,
            None if stage.pointwise is None else stage.pointwise.weight,
            result.y, result.winner, part, result.group.channels, result.at,
            one.N, one.E, source.shared_by, grid.rounds,
            Co=one.Co, CoP=_padded(one.Co), POINTWISE=stage.pointwise is not None, ACTIVATION=stage.activation,
            DOT=dot_of(one, self.x), A=_arithmetic(self.x)[1], **one.sizes(), **grid.runs(), **source.sizes(),
        )  # fmt: skip

    def _normalise(
        self,
        stages: Sequence[FusedStage],
        one: Geometry,
        part: Tensor,
        group: Group,
        eps: float,
        training: bool,
        A: Any,
    ) -> None:
        """Fill in the group's BatchNorms, and note the new values of their running statistics.

        one: the geometry of any of the stages, whose outputs are of one size.
        """
        norms = [stage.norm for stage in stages if stage.norm is not None]
        if not training:
            mean, variance = (torch.cat([getattr(norm, name) for norm in norms]) for name in RUNNING)
            scale = (variance + eps).rsqrt()
            group.norm.copy_(torch.stack([scale, -mean * scale]))
            return
        stats, B = torch.empty_like(group.norm), 16
        sizes = {"EPS": eps, "B": B, "R": 128, "A": A}
        grid = group.grid
        arguments = part, group.norm, stats, group.channels, len(part), float(group.count)
        pixels = one.N * one.Ho, one.Wo, grid.Q, grid.rounds * grid.BP
        launch(kernels.statistics, (triton.cdiv(group.channels, B),), *arguments, *pixels, **sizes)
        for name, row in zip(RUNNING, stats.to(cast(Tensor, norms[0].running_mean).dtype), strict=True):
            for norm, found in zip(norms, row.split([norm.num_features for norm in norms]), strict=True):
                self.running.setdefault(cast(float, norm.momentum), []).append((getattr(norm, name), found))

    def norm_of_ends(self) -> Tensor:
        """The BatchNorms of the last stages, (2, O · E · C + L · S · C)."""
        ends = [results[-1] for results in self.results if results]
        return torch.cat([end.group.norm[:, end.at :][:, : end.y.shape[1] * end.y.shape[4]] for end in ends], dim=1)


class _Mix(NamedTuple):
    """The weighted sum of the operations' last results, and the sums that its gradients need."""

    operations: FusedOps
    x: Tensor
    chains: Tensor
    pools: Tensor
    norm: Tensor

    def _arguments(self) -> tuple[Any, ...]:
        return self.chains, self.pools, self.x, self.norm, self.norm.shape[1]

    def _sizes(self) -> dict[str, Any]:
        *_, H, W, C = self.chains.shape
        identity = any(not operation.stages for operation in self.operations.each)
        return {
            "CHAINS": len(self.chains), "POOLS": len(self.pools), "IDENTITY": identity, "S": self.operations.S,
            "P": H * W, "C": C, "CP": _padded(C), "A": _arithmetic(self.x)[1],
        }  # fmt: skip

    def forward(self, gamma: Tensor, onto: Tensor | None) -> Tensor:
        """The nodes (T, N, H, W, C), added to `onto` of the same shape if given."""
        _, N, _, H, W, C = self.chains.shape
        T = self.operations.T
        nodes = self.x.new_empty(T, N, H, W, C)
        grid = Grid.of(N * H, W, T, _padded(C), Q=1, rounds=1)
        arguments = *self._arguments(), gamma, onto, nodes, N, T
        launch(kernels.mix_forward, (grid.G, T), *arguments, ONTO=onto is not None, **grid.pixels(), **self._sizes())
        return nodes

    def sums(self, gradient: Tensor) -> Tensor:
        """Sums over pixels of the node's gradient times each normalised output, and last of the gradient alone:
        (number of operations + 1, E, C)."""
        _, N, E, H, W, C = self.chains.shape
        grid = Grid.of(N * H, W, E, _padded(C), Q=1)
        shape = grid.G, len(self.operations.each) + 1, E, C
        part = torch.empty(shape, dtype=_arithmetic(self.x)[0], device=self.x.device)
        arguments = *self._arguments(), gradient, part, N, self.operations.T, grid.rounds
        launch(kernels.mix_backward, (grid.G, E), *arguments, **grid.pixels(), **self._sizes())
        return part.sum(dim=0)


class _Backward:
    """The backward pass: gradients of the states, (N, H, W, S · C), and of the weights, from that of the nodes."""

    def __init__(
        self,
        operations: FusedOps,
        x: Tensor,
        gamma: Tensor,
        results: Sequence[Sequence[Result]],
        gradient: Tensor,
        sums: Tensor,
        weights: bool,
    ) -> None:
        self.operations, self.x, self.gamma, self.results = operations, x, gamma, results
        N, channels, H, W = x.shape
        self.S, self.T = operations.S, operations.T
        self.dtype, self.A = _arithmetic(x)
        self.by_x = x.new_empty(N, H, W, channels)
        self.written = False
        self._place_weights(weights)
        C = channels // self.S
        for o, operation in enumerate(operations.each):
            if not operation.stages:
                grid = Grid.of(N * H, W, self.S, _padded(C), Q=1, rounds=1)
                arguments = gradient, gamma, o * self.S * self.T, self.by_x, N, self.T
                sizes = {"S": self.S, "P": H * W, "C": C, "CP": _padded(C), "A": self.A, **grid.pixels()}
                launch(kernels.identity_backward, (grid.G, self.S), *arguments, **sizes)
                self.written = True
        # the gradient of each operation's output, at the stage that the loop has reached, and its sums over pixels
        passed = [gradient for _ in operations.each]
        sums_of: list[tuple[Tensor, Tensor]] = [(sums[-1], row) for row in sums[: len(gamma)]]
        for depth, stages in reversed(list(_depths(operations))):
            parts: dict[int, tuple[Group, Tensor]] = {}  # sums for the BatchNorms one depth up, by group
            with Branches(x) as branches:
                for number, (o, stage) in enumerate(stages):
                    before = results[o][depth - 1] if depth else None
                    part = None
                    if before is not None:
                        part = parts.setdefault(id(before.group), (before.group, before.group.part()))[1]
                    last = depth + 1 == len(operations.each[o].stages)
                    branches.keep(passed[o])
                    branch = partial(branches.branch, number), branches
                    passed[o] = self._stage(o, depth, stage, before, passed[o], sums_of[o], part, last, branch)
            totals = {key: part.sum(dim=0) for key, (_, part) in parts.items()}
            for o, _ in stages:
                if depth:
                    before = results[o][depth - 1]
                    one, other = totals[id(before.group)]
                    sums_of[o] = one[before.at :], other[before.at :]

    def _grid(self, o: int, depth: int) -> Grid:
        """The programs that compute the gradients of a stage's weights."""
        results, one = self.results[o], self.operations.each[o].stages[depth]
        alone = one.depthwise is None and one.pool is None  # a 1×1: its programs are those of the stage before
        return results[depth - 1 if depth and alone else depth].group.grid

    def _place_weights(self, wanted: bool) -> None:
        """Give each weight its place in a row of weight gradients; every program writes a row, its part of them.

        Rows of all programs have one length; with Levers.parts they are by the number of programs that write a weight,
        so that no row is left to be filled with zeros.
        """
        self.places: dict[int, tuple[int, int]] = {}  # (number of rows, place in the row) of each weight
        lengths: dict[int, int] = {}
        most = max(result.group.grid.G for results in self.results for result in results)
        for o, operation in enumerate(self.operations.each):
            for depth, stage in enumerate(operation.stages):
                rows = self._grid(o, depth).G if LEVERS.parts else most
                for weight in stage.weights():
                    self.places[id(weight)] = rows, lengths.get(rows, 0)
                    lengths[rows] = lengths.get(rows, 0) + weight.numel()
        make = torch.empty if LEVERS.parts else torch.zeros
        shapes = lengths.items() if wanted else ()
        self.parts = {rows: make(rows, length, dtype=self.dtype, device=self.x.device) for rows, length in shapes}
        self.wanted = wanted

    def _part_of(self, weight: Tensor | None) -> tuple[Tensor | None, int, int]:
        """Where the programs write a weight's gradient: the parts, the length of a row, the place in it."""
        if weight is None or not self.wanted:
            return None, 0, 0
        rows, place = self.places[id(weight)]
        return self.parts[rows], self.parts[rows].shape[1], place

    def by_weights(self) -> Iterator[Tensor | None]:
        """The weights' gradients in the order of the stages, each with its weight's strides."""
        totals = {rows: part.sum(dim=0) for rows, part in self.parts.items()}
        for stage in self.operations.stages():
            for weight in stage.weights():
                rows, at = self.places[id(weight)]
                if not self.wanted:
                    yield None
                    continue
                found = totals[rows][at : at + weight.numel()].to(weight.dtype)
                channels, among, k, _ = weight.shape
                if k > 1:
                    yield found.view(k, k, among, channels).permute(3, 2, 0, 1)
                else:
                    yield found.as_strided(weight.shape, weight.stride(), found.storage_offset())

    def _stage(
        self,
        o: int,
        depth: int,
        stage: FusedStage,
        before: Result | None,
        gradient: Tensor,
        sums: tuple[Tensor, Tensor],
        part: Tensor | None,
        last: bool,
        branch: tuple[Callable[[], AbstractContextManager[object]], Branches],
    ) -> Tensor:
        """Compute a stage's gradients and return that of the previous stage's normalised output. A first stage adds its
        own to `by_x`, which all operations do in their order, after the branches are joined."""
        on_branch, branches = branch
        operation, result = self.operations.each[o], self.results[o][depth]
        source = Source.of(operation, self.x, self.T, before)
        N, E, Ho, Wo, Co = result.y.shape
        if before is None:
            _, C, H, W = self.x.shape
            C //= self.S
        else:
            H, W, C = before.y.shape[2:]
        one = _geometry(stage, N, E, H, W, C)
        assert stage.norm is not None
        whence = EDGES if not last else MIXED_NODES if operation.shared else NODES
        grid = self._grid(o, depth)
        to = self.x.new_empty(N, E, Ho, Wo, C)
        branches.keep(to)
        with on_branch():  # a weight that is not laid out tap by tap is copied
            depthwise = None if stage.depthwise is None else taps(stage.depthwise.weight)
        branches.keep(depthwise)
        pointwise = None if stage.pointwise is None else stage.pointwise.weight
        sizes = {"ACTIVATION": stage.activation, "A": self.A, **one.sizes(), **source.sizes()}
        # where the last kernel of this stage writes the sums for the previous stage's BatchNorm
        of_before = (None, 0, 0) if before is None else (part, before.group.channels, before.at)
        weights = self.wanted and pointwise is not None
        read = *source[:3], depthwise if weights else None
        read_sizes = sizes
        if one.K and not weights:  # this kernel will not read the stage's input: one compiled variant serves all
            read = self.x, None, 0, None
            read_sizes = sizes | {"FIRST": True, "IN_PIXEL": C, "NORM": False, "ACTIVATION": 0}
            if not one.pool:
                read_sizes |= {"H": Ho, "W": Wo, "K": 1, "STRIDE": 1, "DILATION": 1}
        alone = not one.K or not weights  # this kernel reads no neighbours
        dot = dot_of(one, self.x)
        limits = {"maxnreg": MOST_REGISTERS} if dot == "tf32x3" and weights else {}
        runs = grid.flat() if LEVERS.flat and alone else grid
        with on_branch():
            launch(
                kernels.stage_backward, (grid.G, E),
                *read, pointwise, result.y, result.norm(), result.group.channels,
                gradient, self.gamma, o * self.S * self.T, *sums, to, *((None, 0, 0) if one.K else of_before),
                *self._part_of(pointwise if weights else None),
                N, E, self.T, source.shared_by, float(result.group.count), grid.rounds,
                Co=Co, CoP=_padded(Co), POINTWISE=pointwise is not None, TRAINING=stage.norm.training, SOURCE=whence,
                WEIGHTS=weights, DOT=dot, **limits, **runs.runs(), **read_sizes,
            )  # fmt: skip
        if not one.K:  # a lone 1×1: the first kernel went through the activation as well
            return to
        if self.wanted and stage.depthwise is not None:
            several = {name: value for name, value in sizes.items() if name != "POOL"}
            with on_branch():
                launch(
                    kernels.taps_backward, (one.K, grid.G, E),
                    *source[:3], to, *self._part_of(stage.depthwise.weight),
                    N, E, source.shared_by, grid.rounds, **grid.runs(), **several,
                )  # fmt: skip
        if before is None:  # sum over the edges that leave a state, and over operations
            grid = Grid.of(N * H, W, self.S, _padded(C))
            target, add = self.by_x, self.written
            self.written = True
            edges, inputs = self.S, E // self.S
        else:
            grid, target, add = before.group.grid, self.x.new_empty(N, E, H, W, C), False
            edges, inputs = E, 1

        def back() -> None:
            launch(
                kernels.depthwise_backward, (grid.G, edges),
                *source[:3], depthwise, result.winner, to, target,
                *of_before, N, E, inputs, grid.rounds, ADD=add, **grid.runs(), **sizes,
            )  # fmt: skip

        if before is None:
            branches.afterwards(back)
        else:
            with on_branch():
                back()
        return target
