"""What computes the operations of cells, native kernels or PyTorch's; and whether the native ones compute the same."""

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from darts_sg.backends.batched import EdgeBatch
from darts_sg.backends.cpp import build
from darts_sg.config import RunConfig
from darts_sg.engine.setup import Setting, autocast, is_out_of_memory
from darts_sg.errors import UsageError, first_line
from darts_sg.networks.derived import DerivedCell, DerivedNetwork
from darts_sg.networks.supernet import Supernet, SupernetCell

CHECKED_IMAGES = 2
DRAWS = 3
# of the norm of a tensor: what rounding gives is 1e-5 in float32, but for single pixels that a ReLU lets pass in one
# computation and not in the other, which is 0.005; a wrong kernel gives 0.1 to 1
TOLERANCES = {"float32": 0.01, "bfloat16": 0.3}


def use_kernels(
    network: Supernet | DerivedNetwork,
    config: RunConfig,
    setting: Setting,
    prepare_gpu: Callable[[], None] | None = None,
) -> str:
    """Have the network computed by native kernels or by PyTorch's: as asked, as the resumed run has it, or by what is
    there and computes what it should. Returns which, native or pytorch.

    prepare_gpu: compiles the kernels for a CUDA GPU and raises Unavailable if it cannot; None where there are none for
    such a network.

    Raises UsageError if the native kernels are asked for and cannot be had.
    """
    asked = wanted = config.kernels
    prepare = prepare_gpu if setting.device.type == "cuda" and not config.compile else None
    if prepare is None and (setting.device.type != "cpu" or config.compile or config.precision != "float32"):
        if asked == "native":
            kinds = "CPUs" if prepare_gpu is None else "CUDA GPUs, CPUs"
            raise UsageError(f"--kernels native is for {kinds} with float32, no --compile; leave one of them out")
        return "pytorch"
    if asked == "auto" and setting.earlier:  # a run that does not say was started when there was no choice
        wanted = setting.earlier["environment"].get("kernels", "pytorch")
    if wanted == "pytorch":
        return "pytorch"
    try:
        if prepare is not None:
            missing = build.triton_missing(torch.cuda.get_device_capability(setting.device))
            if missing is not None:
                raise build.Unavailable(missing)
        else:
            build.kernels(print)
        network.use_native(True)
        if prepare is not None:
            prepare()
        check_kernels(network, config, setting)
    except build.Unavailable as reason:
        network.use_native(False)
        if asked == "native":
            raise UsageError(f"--kernels native: {reason}; mend that, or leave the option out") from None
        if wanted == "native":
            raise UsageError(
                f"this run was started with the native kernels, but {reason}; mend that, or add --kernels pytorch, "
                "which changes the last bits of the result"
            ) from None
        print(f"note: {reason}; with native kernels it would be faster")
        return "pytorch"
    return "native"


def check_kernels(network: Supernet | DerivedNetwork, config: RunConfig, setting: Setting) -> None:
    """Compare the native kernels, which the network uses, with PyTorch in float64 on a CPU: output, gradients and
    running statistics of each kind of cell, for two images of noise, and for a batch of the run's size of these two.

    The network stays as it is, and so do the generators of random numbers. C++ kernels are compared once after they
    were compiled, by the first network of either kind, those for a GPU each time. Raises Unavailable, with what differs
    most, if one is not what it should be.
    """
    on_cpu, by = setting.device.type == "cpu", type(network).__name__
    if on_cpu and build.checked(by):
        return
    data, size = setting.data.spec, setting.data.spec.image_size
    images = torch.empty(CHECKED_IMAGES, data.in_channels, size, size, device="meta")
    shapes = [tuple(state.shape) for state in copy.deepcopy(network.stem).to("meta")(images)]
    outputs: dict[object, tuple[int, ...]] = {}  # of cells, by their kind
    largest = 0.0
    for number, (cell, spec) in enumerate(zip(network.cells, network.specs, strict=True)):
        assert isinstance(cell, SupernetCell | DerivedCell)
        kind = spec, *shapes
        if kind not in outputs:
            errors, outputs[kind] = cell_errors(cell, shapes, config, setting)
            name = max(errors, key=errors.__getitem__)
            largest = max(largest, errors[name])
            if errors[name] > TOLERANCES[config.precision]:
                raise build.Unavailable(
                    "the native kernels compute something else than PyTorch here: in cell "
                    f"{number}, {name} is off by {errors[name]:.2g} of its norm"
                )
        shapes = [shapes[1], outputs[kind]]
    if setting.ranks.leads:
        print(f"native kernels, compared with PyTorch in float64: off by at most {largest:.1e} of a tensor's norm")
    if on_cpu:
        build.set_checked(by)


def cell_errors(
    cell: SupernetCell | DerivedCell, shapes: Sequence[tuple[int, ...]], config: RunConfig, setting: Setting
) -> tuple[dict[str, float], tuple[int, ...]]:
    """The errors of a cell by name, each of the norm of its tensor, and the shape of the cell's output.

    shapes: those of its two states. Of several draws of random numbers the errors are those of the best: a wrong kernel
    errs in all of them. Raises Unavailable if the kernels cannot be run at all.
    """
    found: list[tuple[dict[str, float], tuple[int, ...]]] = []
    most = config.batch_size // setting.ranks.size // CHECKED_IMAGES
    for seed in range(DRAWS):
        exact = copy.deepcopy(cell).double().cpu()
        for module in exact.modules():
            if isinstance(module, SupernetCell | DerivedCell | EdgeBatch):
                module.native = False
        expected = _pass(exact, shapes, 1, seed, torch.device("cpu"), torch.float64)
        errors: dict[str, float] = {}
        for times in (1, most) if most > 1 else (1,):
            try:
                with _no_tensorfloat32(), autocast(config, setting.device):
                    actual = _pass(copy.deepcopy(cell), shapes, times, seed, setting.device, torch.float32)
            except Exception as error:  # of many kinds, from Triton and CUDA
                if not is_out_of_memory(error):
                    raise build.Unavailable(f"the native kernels fail here: {first_line(error)}") from error
                if times == 1:
                    raise
                continue  # a step of so many will not fit either, and says what does
            batch = "" if times == 1 else f" for {times * CHECKED_IMAGES} images"
            errors |= {f"{name}{batch}": one for name, one in _errors(actual, expected).items()}
        found.append((errors, tuple(expected["the output"].shape)))
        if max(errors.values()) <= TOLERANCES[config.precision]:
            break
    return min(found, key=lambda one: max(one[0].values()))


def _pass(
    cell: SupernetCell | DerivedCell,
    shapes: Sequence[tuple[int, ...]],
    times: int,
    seed: int,
    device: torch.device,
    dtype: torch.dtype,
) -> dict[str, Tensor]:
    """A cell's output, gradients and statistics for states of noise and, in a supernet, random mixing weights.

    With the images `times` times all that is per image has one dimension more, (times, images, …), and all is what it
    would be for these images once, but for the running variances, which are left out: those are unbiased.
    """
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device, dtype)

    # states are positive, for some kernels take them as they are before a ReLU and others after it
    states = {f"the gradient of state {i}": noise(*shape).abs() for i, shape in enumerate(shapes)}
    inputs = {name: state.repeat(times, 1, 1, 1) for name, state in states.items()}
    if isinstance(cell, SupernetCell):
        inputs["the gradient of the mixing weights"] = noise(*cell.weights_shape).softmax(dim=-1)
    for tensor in inputs.values():
        tensor.requires_grad_()
    s0, s1, *mixing = inputs.values()
    output = cell(s0, s1, cell.edge_weights(mixing[0], None) if isinstance(cell, SupernetCell) else None)
    wanted = inputs | {f"the gradient of {name}": weight for name, weight in cell.named_parameters()}
    of_output = noise(len(output) // times, *output.shape[1:]).repeat(times, 1, 1, 1).div_(times).to(output)
    gradients = torch.autograd.grad(output, [*wanted.values()], of_output, allow_unused=True)
    found = {"the output": output.detach()}
    found |= {
        name: g * times if name in states else g for name, g in zip(wanted, gradients, strict=True) if g is not None
    }
    if times > 1:
        found |= {name: found[name].unflatten(0, (times, -1)) for name in ("the output", *states)}
    buffers = {name: buffer for name, buffer in cell.named_buffers() if buffer.is_floating_point()}
    return found | {name: b for name, b in buffers.items() if times == 1 or not name.endswith("running_var")}


def _errors(actual: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, float]:
    """Of each tensor, of its norm. One whose values are all close to zero, such as the gradient of a weight with only
    one input and a BatchNorm after it, is taken to have a tenth of the others' values."""
    values = {name: tensor.norm() / tensor.numel() ** 0.5 for name, tensor in expected.items()}
    least = 0.1 * torch.stack([*values.values()]).median()
    errors = {}
    for name, tensor in actual.items():
        off = (tensor.to(expected[name]) - expected[name]).norm() / tensor.numel() ** 0.5
        error = float(off / values[name].clamp(min=least))
        errors[name] = error if math.isfinite(error) else math.inf
    return errors


@contextmanager
def _no_tensorfloat32() -> Iterator[None]:
    """Within the context PyTorch's convolutions are computed in float32."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before
