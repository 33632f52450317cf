"""Chooses the backend of a run by its options, and has native kernels checked before they are used."""

from collections.abc import Callable

import torch

from darts_sg.backends import Network, accelerate, check, pytorch_backend
from darts_sg.backends.cpp import build
from darts_sg.config import RunConfig, SearchConfig
from darts_sg.engine.memory import is_out_of_memory
from darts_sg.engine.output import announce
from darts_sg.engine.setup import Setting
from darts_sg.errors import UsageError
from darts_sg.networks.supernet import Supernet


def use_kernels(
    network: Network,
    config: RunConfig,
    setting: Setting,
    prepare_gpu: Callable[[], None] | None = None,
) -> str:
    """Choose native kernels or PyTorch for the network and return which: native or pytorch.

    The choice is that of --kernels, then that of the resumed run, then native kernels where they are available and
    pass the check. prepare_gpu: compiles the network's Triton kernels and raises Unavailable if it cannot; None for
    networks without such kernels. Drop path in a search is left to PyTorch.

    Raises UsageError if native kernels are required, by --kernels or by the resumed run, but not available.
    """
    accelerate(network, pytorch_backend(network))
    asked = wanted = config.kernels
    if isinstance(network, Supernet) and network.choices is not None:
        if asked == "native":
            raise UsageError(
                "--kernels native computes edges that all have the same operations, and those of this space have lists "
                "of their own; leave it out"
            )
        return "pytorch"
    if isinstance(config, SearchConfig) and config.drop_path_prob:  # an edge has another factor for each image
        if asked == "native":
            raise UsageError("--kernels native computes no drop path in a search; leave one of them out")
        return "pytorch"
    # kernels exist for CPUs in float32, and for supernets on CUDA GPUs; torch.compile makes its own
    prepare = prepare_gpu if setting.device.type == "cuda" and not config.compile else None
    if prepare is None and (setting.device.type != "cpu" or config.compile or config.precision != "float32"):
        if asked == "native":
            kinds = "CPUs" if prepare_gpu is None else "CUDA GPUs, CPUs"
            raise UsageError(f"--kernels native is for {kinds} with float32, no --compile; leave one of them out")
        return "pytorch"
    # a resumed run keeps its kernels, so that its bits stay; runs from before there was a choice do not record any
    if asked == "auto" and setting.earlier:
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
        accelerate(network, "cpp" if prepare is None else "triton")
        if prepare is not None:
            prepare()
        check_kernels(network, config, setting)
    except build.Unavailable as reason:  # also from the check: kernels that compute something else are not used
        accelerate(network, pytorch_backend(network))
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


def check_kernels(network: Network, config: RunConfig, setting: Setting) -> None:
    """Compare the native kernels, which execute the network, with PyTorch in float64 (see darts_sg.backends.check).

    C++ kernels are checked once after they were compiled, for each set of fused operations; Triton kernels every time.
    Raises Unavailable, naming what differs most, if they compute something else.
    """
    samples = isinstance(config, SearchConfig) and config.method().relaxation.is_one_hot
    mark = check.mark_of(network) + ("-sampled" if samples else "") if setting.device.type == "cpu" else None
    if mark is not None and build.checked(mark):
        return
    spec = setting.data.spec
    conditions = check.Conditions(
        setting.device,
        torch.bfloat16 if config.precision == "bfloat16" else torch.float32,
        config.batch_size // setting.ranks.size,
        is_out_of_memory,
        samples,
    )
    largest = check.largest_error(network, (spec.in_channels, spec.image_size), conditions)
    if setting.ranks.leads:
        announce(f"native kernels, compared with PyTorch in float64: off by at most {largest:.1e} of a tensor's norm")
    if mark is not None:
        build.set_checked(mark)
