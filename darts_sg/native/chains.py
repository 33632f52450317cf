"""Operations and their sum in nodes, computed by the kernels of chains.cpp: the same function, with its gradients."""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from darts_sg.native import kernels

ACTIVATIONS: dict[type[nn.Module], int] = {nn.ReLU: 1, nn.ReLU6: 2}
POOLS: dict[type[nn.Module], int] = {nn.MaxPool2d: 1, nn.AvgPool2d: 2}
KERNEL_SIZES = (3, 5, 7)
DTYPES = {torch.float32: "float", torch.float64: "double"}
EDGES, NODES, MIXED_NODES = range(3)  # what the gradient of a stage is given as


@dataclass(frozen=True)
class Stage:
    """An activation, a depthwise and a 1×1 convolution, each of them or none, and a BatchNorm, on all edges;
    or a pool and a BatchNorm or none, on all states."""

    norm: nn.BatchNorm2d | None
    activation: int = 0
    depthwise: nn.Conv2d | None = None
    pointwise: nn.Conv2d | None = None
    pool: nn.MaxPool2d | nn.AvgPool2d | None = None

    def weights(self) -> list[Tensor]:
        """Of its convolutions, then weight and bias of its BatchNorm, if it has them."""
        found = [layer.weight for layer in (self.depthwise, self.pointwise) if layer is not None]
        if self.norm is not None and self.norm.affine:
            found += (self.norm.weight, self.norm.bias)
        return found

    @property
    def num_weights(self) -> int:
        affine = self.norm is not None and self.norm.affine
        return (self.depthwise is not None) + (self.pointwise is not None) + 2 * affine


class Operation(NamedTuple):
    """A chain of stages on each edge, a pool on each state, or, without stages, the states themselves."""

    stages: Sequence[Stage] = ()
    input: int = 0
    """Which of the inputs it takes."""

    @property
    def shared(self) -> bool:
        """Whether it has one output for each state, for all edges that leave it."""
        return not self.stages or self.stages[0].pool is not None


class Operations(NamedTuple):
    """What leads from S states, side by side in an input, to T nodes, over E = S · T edges."""

    S: int
    T: int
    each: Sequence[Operation]

    def stages(self) -> list[Stage]:
        return [stage for operation in self.each for stage in operation.stages]


def stages_of(layers: Sequence[nn.Module], E: int) -> list[Stage] | None:
    """The stages that a chain of layers on E edges consists of; None if it has a layer that is not known here."""
    stages: list[Stage] = []
    rest = list(layers)

    def next_if(fits: bool) -> Any:
        return rest.pop(0) if fits else None

    while rest:
        activation = next_if(type(rest[0]) in ACTIVATIONS)
        depthwise = next_if(bool(rest) and _is_depthwise(rest[0]))
        pointwise = next_if(bool(rest) and _is_pointwise(rest[0], E))
        norm = next_if(bool(rest) and isinstance(rest[0], nn.BatchNorm2d))
        if norm is None or (depthwise is None and pointwise is None):
            return None
        stages.append(Stage(norm, ACTIVATIONS.get(type(activation), 0), depthwise, pointwise))
    return stages


def pool_of(layers: Sequence[nn.Module]) -> Stage | None:
    """The stage of a 3×3 pool, with its BatchNorm if it has one; None if the layers are something else."""
    norm = layers[1] if len(layers) == 2 else None
    if len(layers) > 2 or not isinstance(layers[0], tuple(POOLS)) or not isinstance(norm, nn.BatchNorm2d | None):
        return None
    pool = cast(nn.MaxPool2d, layers[0])
    known = (pool.kernel_size, pool.padding) == (3, 1) and isinstance(pool.stride, int) and not pool.ceil_mode
    if isinstance(pool, nn.MaxPool2d):
        known = known and pool.dilation == 1
    else:
        known = known and not cast(nn.AvgPool2d, pool).count_include_pad
    return Stage(norm, pool=pool) if known else None


def kind_of(pool: nn.Module) -> int:
    """Its number in POOLS."""
    return next(number for kind, number in POOLS.items() if isinstance(pool, kind))


def _is_depthwise(layer: nn.Module) -> bool:
    if not isinstance(layer, nn.Conv2d) or not layer.in_channels == layer.out_channels == layer.groups:
        return False
    k, d, s = layer.kernel_size, layer.dilation, layer.stride
    square = k[0] == k[1] in KERNEL_SIZES and d[0] == d[1] and s[0] == s[1]
    return square and layer.padding == (d[0] * (k[0] // 2),) * 2 and layer.bias is None


def _is_pointwise(layer: nn.Module, E: int) -> bool:
    if not isinstance(layer, nn.Conv2d) or layer.bias is not None:
        return False
    return layer.kernel_size == (1, 1) and layer.stride == (1, 1) and layer.padding == (0, 0) and layer.groups == E


def run(inputs: Sequence[Tensor], gamma: Tensor, operations: Operations) -> list[Tensor]:
    """What the operations give to the T nodes: T tensors of (N, C, H', W').

    inputs: each (N, S · C, H, W) on a CPU, all float32 or all float64. gamma: (number of operations, E), the scale of
    each one's last BatchNorm, which then has no weight of its own; or (number of operations, E, N), a factor of each
    one's output for each image, which gets no gradient.
    On a GPU one input, and the first kind of gamma: see darts_sg.native.gpu.
    Raises Unavailable if the kernels cannot be compiled.
    """
    if inputs[0].device.type == "cuda":
        from darts_sg.native import gpu

        return gpu.run(inputs[0], gamma, operations)
    stages = operations.stages()
    weights = [weight for stage in stages for weight in stage.weights()]
    nodes: Tensor = _Run.apply(operations, gamma, len(inputs), *inputs, *weights)
    norms = [stage.norm for stage in stages if stage.norm is not None and stage.norm.training]
    counters = [norm.num_batches_tracked for norm in norms if norm.num_batches_tracked is not None]
    if counters:
        torch._foreach_add_(counters, 1)
    return [node.permute(0, 3, 1, 2) for node in nodes.unbind()]


class _Stage(ctypes.Structure):  # as in chains.cpp
    _fields_ = [
        *((name, ctypes.c_int64) for name in (
            "N", "S", "T", "H", "W", "Ho", "Wo", "Ci", "Co", "k", "stride", "dilation", "pool", "activation", "first",
            "norm", "training", "threads", "in_n", "in_pixel",
        )),
        *((name, ctypes.c_void_p) for name in (
            "input", "in_scale", "in_shift", "in_inverse", "in_offset", "depthwise", "pointwise", "out", "scale",
            "shift", "inverse", "offset", "running_mean", "running_var", "weight", "bias",
        )),
        *((name, ctypes.c_double) for name in ("momentum", "eps")),
        ("gradient", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("source", "nodes")),
        ("gamma", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("gamma_edge", "gamma_image")),
        *((name, ctypes.c_void_p) for name in ("sum", "sum_y", "in_gradient")),
        ("accumulate", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("in_sum", "in_sum_y", "depthwise_gradient", "pointwise_gradient")),
    ]  # fmt: skip


class _Mix(ctypes.Structure):  # as in chains.cpp
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("operations", "N", "S", "T", "pixels", "C", "threads")),
        *((name, ctypes.c_void_p) for name in (
            "y", "scale", "shift", "image", "part", "pixel", "shared", "gamma",
        )),
        *((name, ctypes.c_int64) for name in ("gamma_edge", "gamma_image")),
        *((name, ctypes.c_void_p) for name in ("nodes", "sum", "sum_y")),
        ("identity", ctypes.c_int64),
        ("in_gradient", ctypes.c_void_p),
        ("accumulate", ctypes.c_int64),
    ]  # fmt: skip


def _call(name: str, dtype: torch.dtype, argument: ctypes.Structure) -> None:
    if getattr(kernels(), f"{name}_{DTYPES[dtype]}")(ctypes.byref(argument)):
        raise MemoryError("not enough memory for the planes of the C++ kernels")


class _Image(NamedTuple):
    """The states, and where their values stand: strides between images and between pixels."""

    x: Tensor
    image: int
    pixel: int


def _channels_last(x: Tensor) -> _Image:
    """x (N, C, H, W) as it is if its channels stand side by side and its rows close up; otherwise a copy."""
    _, C, H, W = x.shape
    if not x.is_contiguous(memory_format=torch.channels_last):
        if x.stride(1) == 1 and H > 1 and W > 1 and x.stride(2) == W * x.stride(3):
            return _Image(x, x.stride(0), x.stride(3))
        x = x.contiguous(memory_format=torch.channels_last)
    return _Image(x, H * W * C, C)


class _Result(NamedTuple):
    """Of a stage: its output before BatchNorm (N, E, H, W, C), and that BatchNorm as y · scale + shift: (2, E · C).

    With a weight and bias of its own the latter is (4, E · C): also as it is before these, y · inverse + offset.
    """

    y: Tensor
    normalisation: Tensor
    rows: list[int]
    """The addresses of scale, shift, and then, if they are others, inverse and offset."""

    @classmethod
    def of(cls, y: Tensor, normalisation: Tensor) -> "_Result":
        return cls(y, normalisation, _addresses(normalisation))

    def scale_and_shift(self) -> list[int]:
        return self.rows[:2]

    def inverse_and_offset(self) -> list[int]:
        return self.rows[-2:]


def _addresses(x: Tensor) -> list[int]:
    """Where the parts of x along its first dimension begin."""
    start, step = x.data_ptr(), x.stride(0) * x.element_size()
    return list(range(start, start + len(x) * step, step)) if step else [start] * len(x)


def takes(x: Tensor) -> bool:
    """Whether `run` can be given x, and any stages."""
    return x.device.type == "cpu" and x.dtype in DTYPES


def computes(x: Tensor, stages: Sequence[Stage]) -> bool:
    """Whether `run` can be given x and these stages, on a CPU or on a GPU."""
    if x.device.type == "cuda":
        from darts_sg.native import gpu  # Triton is there where there is a GPU

        return gpu.takes(x) and gpu.supports(stages)
    return takes(x)


class _Run(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, operations: Operations, gamma: Tensor, num_inputs: int, *tensors: Tensor) -> Tensor:
        weights = tensors[num_inputs:]
        images = [_channels_last(x) for x in tensors[:num_inputs]]
        x = images[0].x
        gamma = gamma.contiguous()
        layouts: list[_Stage] = []
        results: list[_Result] = []
        for operation in operations.each:
            image, previous = images[operation.input], None
            for stage in operation.stages:
                layout = _layout(stage, image, previous, operations.S, 1 if operation.shared else operations.T)
                E, C = layout.S * layout.T, layout.Co
                affine = stage.norm is not None and stage.norm.affine
                normalisation = x.new_empty(4 if affine else 2, E * C)
                result = _Result.of(x.new_empty(layout.N, E, layout.Ho, layout.Wo, C), normalisation)
                _fill(layout, stage, image, previous, result)
                _call("stage_forward", x.dtype, layout)
                layouts.append(layout)
                results.append(result)
                previous = result
        if results:
            nodes = x.new_empty(operations.T, x.shape[0], *results[-1].y.shape[2:])
        else:
            N, C, H, W = x.shape
            nodes = x.new_empty(operations.T, N, H, W, C // operations.S)
        mix = _Mixing(operations, images, results, gamma, nodes)
        _call("mix_forward", x.dtype, mix.structure)
        ctx.operations, ctx.layouts, ctx.num_inputs, ctx.num_weights = operations, layouts, num_inputs, len(weights)
        saved = (tensor for result in results for tensor in (result.y, result.normalisation))
        kept = [gamma, *(image.x for image in images), *weights, *saved]
        ctx.save_for_backward(*kept)
        ctx.places = [tensor.data_ptr() for tensor in kept]
        return nodes

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        kept = ctx.saved_tensors
        moved = ctx.places != [tensor.data_ptr() for tensor in kept]  # if they were computed again, for one
        gamma, *tensors = kept
        operations: Operations = ctx.operations
        images = [_channels_last(x) for x in tensors[: ctx.num_inputs]]
        weights = tensors[ctx.num_inputs :][: ctx.num_weights]
        saved = tensors[ctx.num_inputs + ctx.num_weights :]
        results = [_Result.of(*pair) for pair in zip(saved[::2], saved[1::2], strict=True)]
        gradient = gradients[0].contiguous()
        dtype, by_image = gradient.dtype, gamma.dim() == 3

        mix = _Mixing(operations, images, results, gamma, gradient, backward=True)
        _call("mix_backward", dtype, mix.structure)
        by_gamma = None if by_image else mix.sums[:, 1].unflatten(-1, (gamma.shape[1], -1)).sum(dim=-1).to(gamma.dtype)

        needed = ctx.needs_input_grad[3:]
        by_weights = [torch.empty_like(w) if n else None for w, n in zip(weights, needed[len(images) :], strict=True)]
        if not any(needed):
            return None, by_gamma, None, *(None for _ in needed)
        by_inputs = [x.new_empty(x.shape[0], *x.shape[2:], x.shape[1]) for x, *_ in images]
        written = [False] * len(images)
        for o, operation in enumerate(operations.each):
            if not operation.stages:  # before the others, which add to what they find
                mix.structure.identity, mix.structure.in_gradient = o, by_inputs[operation.input].data_ptr()
                mix.structure.accumulate, written[operation.input] = written[operation.input], True
                _call("identity_backward", dtype, mix.structure)
        places = iter(by_weights)
        done, gammas = 0, _addresses(gamma)
        for o, operation in enumerate(operations.each):
            stages, image = operation.stages, images[operation.input]
            found_of = [[next(places) for _ in range(stage.num_weights)] for stage in stages]
            passed, sums, source = gradient, mix.sums[o], NODES
            if operation.shared and operations.T > 1:  # one gradient for a state, from all nodes
                source = MIXED_NODES
                parts = sums.view(2, operations.S, operations.T, -1)
                if not by_image:
                    parts = parts * gamma[o].view(operations.S, operations.T, 1)
                sums = parts.sum(dim=2).flatten(1)
            for i in reversed(range(len(stages))):
                layout: _Stage = ctx.layouts[done + i]
                previous = results[done + i - 1] if i else None
                if moved:
                    _fill(layout, stages[i], image, previous, results[done + i])
                layout.gradient, layout.source, layout.nodes = passed.data_ptr(), source, operations.T
                layout.gamma, (layout.sum, layout.sum_y) = gammas[o], _addresses(sums)
                layout.gamma_edge, layout.gamma_image = mix.structure.gamma_edge, mix.structure.gamma_image
                found, norm = found_of[i], stages[i].norm
                if norm is not None and norm.affine:
                    for total, place in zip(sums, (found.pop(), found.pop()), strict=True):  # of bias, of weight
                        if place is not None:
                            place.copy_(total)
                by_pointwise = found.pop() if stages[i].pointwise is not None else None
                by_depthwise = found.pop() if stages[i].depthwise is not None else None
                layout.depthwise_gradient = None if by_depthwise is None else by_depthwise.data_ptr()
                layout.pointwise_gradient = None if by_pointwise is None else by_pointwise.data_ptr()
                if previous is None:
                    to, to_sums = by_inputs[operation.input], sums
                    layout.accumulate, written[operation.input] = written[operation.input], True
                else:
                    to = torch.empty_like(previous.y)
                    to_sums = sums.new_empty(2, previous.normalisation.shape[1])
                    layout.in_sum, layout.in_sum_y = _addresses(to_sums)
                layout.in_gradient = to.data_ptr()
                _call("stage_backward", dtype, layout)
                passed, sums, source = to, to_sums, EDGES
            done += len(stages)
        return None, by_gamma, None, *(by_input.permute(0, 3, 1, 2) for by_input in by_inputs), *by_weights


def _layout(stage: Stage, image: _Image, previous: _Result | None, S: int, T: int) -> _Stage:
    """Everything of a stage but the addresses."""
    if previous is None:
        N, C, H, W = image.x.shape
        C //= S
    else:
        N, _, H, W, C = previous.y.shape
    layout = _Stage(N=N, S=S, T=T, H=H, W=W, Ho=H, Wo=W, Ci=C, Co=C, stride=1, dilation=1, first=previous is None)
    layout.in_n, layout.in_pixel = image.image, image.pixel
    layout.activation, layout.norm = stage.activation, stage.norm is not None
    norm = stage.norm
    if norm is not None:
        layout.training, layout.momentum, layout.eps = norm.training, norm.momentum, norm.eps
    if stage.depthwise is not None:
        layer = stage.depthwise
        layout.k, layout.stride, layout.dilation = layer.kernel_size[0], layer.stride[0], layer.dilation[0]
    if stage.pool is not None:
        layout.k, layout.stride, layout.pool = 3, cast(int, stage.pool.stride), kind_of(stage.pool)
    if stage.pointwise is not None:
        layout.Co = stage.pointwise.out_channels // (S * T)
    layout.Ho, layout.Wo = -(-H // layout.stride), -(-W // layout.stride)
    return layout


def _fill(layout: _Stage, stage: Stage, image: _Image, previous: _Result | None, result: _Result) -> None:
    """The addresses of a stage's tensors."""
    layout.input = image.x.data_ptr() if previous is None else previous.y.data_ptr()
    if previous is not None:
        layout.in_scale, layout.in_shift = previous.scale_and_shift()
        if len(previous.normalisation) > 2:
            layout.in_inverse, layout.in_offset = previous.inverse_and_offset()
    if stage.depthwise is not None:
        layout.depthwise = stage.depthwise.weight.data_ptr()
    if stage.pointwise is not None:
        layout.pointwise = stage.pointwise.weight.data_ptr()
    layout.out, (layout.scale, layout.shift) = result.y.data_ptr(), result.scale_and_shift()
    layout.inverse, layout.offset = result.inverse_and_offset()
    if (norm := stage.norm) is not None:
        mean, var = norm.running_mean, norm.running_var
        if mean is not None and var is not None:
            layout.running_mean, layout.running_var = mean.data_ptr(), var.data_ptr()
        if norm.affine:
            layout.weight, layout.bias = norm.weight.data_ptr(), norm.bias.data_ptr()
    layout.threads = torch.get_num_threads()


class _Mixing:
    """The structure for the product with gamma, and what it points to."""

    def __init__(
        self,
        operations: Operations,
        images: Sequence[_Image],
        results: Sequence[_Result],
        gamma: Tensor,
        nodes: Tensor,
        backward: bool = False,
    ) -> None:
        T, N, H, W, C = nodes.shape
        ends, rows = 0, []  # y, scale, shift, strides between images, edges and pixels, whether shared
        for operation in operations.each:
            if operation.stages:
                ends += len(operation.stages)
                result = results[ends - 1]
                y = result.y
                normalisation = result.inverse_and_offset() if backward else result.scale_and_shift()
                rows.append((y.data_ptr(), *normalisation, y.stride(0), y.stride(1), C, operation.shared))
            else:
                image = images[operation.input]
                rows.append((image.x.data_ptr(), 0, 0, image.image, C, image.pixel, True))
        columns = [(ctypes.c_int64 * len(rows))(*column) for column in zip(*rows, strict=True)]
        self.sums = gamma.new_empty(len(rows), 2, gamma.shape[1] * C, dtype=torch.float64) if backward else gamma
        if backward:
            of_each = _addresses(self.sums.flatten(0, 1))
            columns += [(ctypes.c_int64 * len(rows))(*of_each[i::2]) for i in (0, 1)]
        self._columns = columns  # alive as long as the structure that points to them
        addresses = [ctypes.addressof(column) for column in columns]
        self.structure = _Mix(len(rows), N, operations.S, T, H * W, C, torch.get_num_threads(), *addresses[:7])
        self.structure.gamma, self.structure.nodes = gamma.data_ptr(), nodes.data_ptr()
        by_image = gamma.dim() == 3
        self.structure.gamma_edge, self.structure.gamma_image = (N, 1) if by_image else (1, 0)
        if backward:
            self.structure.sum, self.structure.sum_y = addresses[7:]
