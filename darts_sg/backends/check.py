"""Compares the cells of a backend with PyTorch in float64: outputs, gradients and running statistics."""

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from darts_sg.backends import Network, ir, pytorch_cell
from darts_sg.backends.cpp.build import Unavailable
from darts_sg.derive import num_edges
from darts_sg.errors import first_line
from darts_sg.networks.mobile import MobileNetwork
from darts_sg.networks.skeleton import State
from darts_sg.networks.supernet import CellWeights
from darts_sg.ops.primitives import Noise

CHECKED_IMAGES = 2
DRAWS = 3
# Relative L2 error per tensor. Rounding gives 1e-5 in float32, and up to 0.005 where the ReLU of a single pixel passes
# in one computation and not in the other; a wrong kernel gives 0.1 to 1.
TOLERANCES = {torch.float32: 0.01, torch.bfloat16: 0.3}

Shape = tuple[int, ...]


class Conditions(NamedTuple):
    """Under what conditions the cells are checked: those of the run."""

    device: torch.device
    dtype: torch.dtype
    """float32, or bfloat16 for automatic mixed precision."""
    largest_batch: int
    is_out_of_memory: Callable[[BaseException], bool]
    samples: bool = False
    """Whether a supernet's steps compute one operation an edge, so that these passes are checked, too."""


def mark_of(network: Network) -> str:
    """A name for what the kernels compute of this network: networks with equal fused operations share it."""
    cells = [network.features] if isinstance(network, MobileNetwork) else network.cells
    fused = [operations for cell in cells for operations in cast(Any, cell).fused()]
    return ir.digest(type(network).__name__, fused)


def largest_error(network: Network, image: tuple[int, int], conditions: Conditions) -> float:
    """Compare one cell or segment of each kind (what it computes, and the shapes of its inputs) and return the largest
    error found.

    image: (channels, side) of the network's input. The batches are two images of noise, and a batch of the run's size
    made of these two. The network stays as it is, and so do the generators of random numbers.
    Raises Unavailable, naming the tensor that differs most, if an error is above the tolerance.
    """
    channels, side = image
    if isinstance(network, MobileNetwork):
        images = torch.empty(CHECKED_IMAGES, channels, side, side, device="meta")
        return _largest_of_segments(network, images, conditions)
    # no images at all: shapes without values; PyTorch's meta device has them, too, but imports its compiler
    images, stem = torch.empty(0, channels, side, side), copy.deepcopy(network.stem).cpu().float().eval()
    with torch.no_grad():
        shapes: list[Shape] = [(CHECKED_IMAGES, *state.shape[1:]) for state in stem(images)]
    outputs: dict[object, Shape] = {}  # shapes by kinds of cells
    largest = 0.0
    for number, (cell, spec) in enumerate(zip(network.cells, network.specs, strict=True)):
        kind = spec, *shapes
        if kind not in outputs:
            errors, outputs[kind] = cell_errors(cell, shapes, conditions)
            largest = max(largest, _refused_above_tolerance(errors, f"cell {number}", conditions))
        shapes = [shapes[1], outputs[kind]]
    return largest


def _largest_of_segments(network: MobileNetwork, images: Tensor, conditions: Conditions) -> float:
    """`largest_error` of a mobile network."""
    features = cast(Any, network.features)
    without_values = copy.deepcopy(features).to("meta")
    seen: set[object] = set()
    largest = 0.0
    for place in features.segments():
        segment = features[place]
        kind = *(operations.describe() for operations in segment.fused()), tuple(images.shape)
        if len(kind) > 1 and kind not in seen:
            seen.add(kind)
            errors, _ = cell_errors(segment, [tuple(images.shape)], conditions)
            largest = max(largest, _refused_above_tolerance(errors, f"layer {place.start}", conditions))
        images = without_values[place](images)
    return largest


def _refused_above_tolerance(errors: Mapping[str, float], where: str, conditions: Conditions) -> float:
    """The largest error; Unavailable, naming its tensor, if it is above the tolerance."""
    name = max(errors, key=errors.__getitem__)
    if errors[name] > TOLERANCES[conditions.dtype]:
        raise Unavailable(
            f"the native kernels compute something else than PyTorch here: in {where}, {name} is off by "
            f"{errors[name]:.2g} of its norm"
        )
    return errors[name]


def cell_errors(cell: nn.Module, shapes: Sequence[Shape], conditions: Conditions) -> tuple[dict[str, float], Shape]:
    """The relative error of each tensor by name, and the shape of the cell's output.

    shapes: those of the two input states, or of the input of a part of a mobile network. Of several draws of random
    numbers the best one counts: a wrong kernel errs in all of them. Raises Unavailable if the kernels cannot be run at
    all.
    """
    found: list[tuple[dict[str, float], Shape]] = []
    device = conditions.device
    mixed_precision = torch.autocast(device.type, torch.bfloat16, enabled=conditions.dtype == torch.bfloat16)
    most = conditions.largest_batch // CHECKED_IMAGES
    cell = copy.deepcopy(cell).requires_grad_(True)  # frozen weights are compared as if they learned
    for layer in cell.modules():
        if isinstance(layer, Noise):
            layer.silent = True
    kinds = [
        (chosen, times) for chosen in (False, True)[: 1 + conditions.samples] for times in (1, most)[: 1 + (most > 1)]
    ]
    for seed in range(DRAWS):
        errors: dict[str, float] = {}
        for chosen, times in kinds:
            if times == 1:
                exact = pytorch_cell(copy.deepcopy(cell)).double().cpu()
                expected = _pass(exact, shapes, 1, seed, torch.device("cpu"), torch.float64, chosen=chosen)
            try:
                with _no_tensorfloat32(), mixed_precision:
                    actual = _pass(copy.deepcopy(cell), shapes, times, seed, device, torch.float32, chosen=chosen)
            except Exception as error:  # of many kinds, from Triton and CUDA
                if not conditions.is_out_of_memory(error):
                    raise Unavailable(f"the native kernels fail here: {first_line(error)}") from error
                if times == 1:
                    raise
                continue  # a training step of this size will not fit either, and its error says what does
            batch = " of one operation an edge" if chosen else ""
            batch += "" if times == 1 else f" for {times * CHECKED_IMAGES} images"
            errors |= {f"{name}{batch}": one for name, one in _errors(actual, expected).items()}
        found.append((errors, tuple(expected["the output"].shape)))
        if max(errors.values()) <= TOLERANCES[conditions.dtype]:
            break
    return min(found, key=lambda one: max(one[0].values()))


def _pass(
    cell: Any,
    shapes: Sequence[Shape],
    times: int,
    seed: int,
    device: torch.device,
    dtype: torch.dtype,
    *,
    chosen: bool = False,
) -> dict[str, Tensor]:
    """A cell's output, gradients and statistics for states of noise and, in a supernet, random mixing weights.

    With the images repeated `times` times, tensors of images get another dimension, (times, images, …). All values are
    those for the images once, except the running variances, which are unbiased and therefore left out. chosen: compute
    one operation an edge, all operations in turns.
    """
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device, dtype)

    states = {f"the gradient of state {i}": noise(*shape) for i, shape in enumerate(shapes)}
    inputs = {name: state.repeat(times, 1, 1, 1) for name, state in states.items()}
    is_supernet = hasattr(cell, "num_nodes")
    if is_supernet:
        rows = num_edges(cell.num_nodes), len(cell.operations)
        inputs["the gradient of the mixing weights"] = noise(*rows).softmax(dim=-1)
    for tensor in inputs.values():
        tensor.requires_grad_()
    *given, last = inputs.values()
    if is_supernet:
        numbers = [(edge + seed) % len(cell.operations) for edge in range(num_edges(cell.num_nodes))]
        weights = CellWeights(last, chosen=numbers if chosen else None)
        output = cell(*map(State, given), weights).joined()
    else:
        output = cell(State(*given), State(last), None).joined() if given else cell(last)
    wanted = inputs | {f"the gradient of {name}": weight for name, weight in cell.named_parameters()}
    of_output = noise(len(output) // times, *output.shape[1:]).repeat(times, 1, 1, 1).div_(times).to(output)
    # zeros for what the output does not depend on: a cell of a genotype may leave an input out
    # a sum whose gradient is of_output: given as grad_outputs, it has PyTorch import sympy, half a second
    gradients = torch.autograd.grad((output * of_output).sum(), [*wanted.values()], materialize_grads=True)
    found = {"the output": output.detach()}
    found |= {name: g * times if name in states else g for name, g in zip(wanted, gradients, strict=True)}
    if times > 1:
        found |= {name: found[name].unflatten(0, (times, -1)) for name in ("the output", *states)}
    buffers = {name: buffer for name, buffer in cell.named_buffers() if buffer.is_floating_point()}
    return found | {name: b for name, b in buffers.items() if times == 1 or not name.endswith("running_var")}


def _errors(actual: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, float]:
    """Relative L2 error per tensor.

    A tensor whose values are all close to zero, such as the gradient of a weight with a single input followed by a
    BatchNorm, is measured against a tenth of the median size of all tensors' values.
    """
    values = {name: tensor.norm() / tensor.numel() ** 0.5 for name, tensor in expected.items()}
    least = 0.1 * torch.stack([value for value in values.values() if value > 0]).median()
    errors = {}
    for name, tensor in actual.items():
        off = (tensor.to(expected[name]) - expected[name]).norm() / tensor.numel() ** 0.5
        error = float(off / values[name].clamp(min=least))
        errors[name] = error if math.isfinite(error) else math.inf
    return errors


@contextmanager
def _no_tensorfloat32() -> Iterator[None]:
    """Compute PyTorch's convolutions in full float32 meanwhile."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before
