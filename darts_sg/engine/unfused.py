"""What a dry run says of candidate operations that have no fast path."""

import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from darts_sg.backends.unfused import generic_seconds, num_calls, unfused_line, unfused_operations
from darts_sg.config import SearchConfig
from darts_sg.data import Images
from darts_sg.engine.memory import is_out_of_memory
from darts_sg.engine.setup import Setting, trial_batch
from darts_sg.methods.stages import Stage
from darts_sg.networks.supernet import Supernet
from darts_sg.spaces import Space


class Search(Protocol):
    """The parts of a search job that are timed."""

    config: SearchConfig
    setting: Setting
    space: Space
    stage: Stage
    supernet: Supernet
    train_images: Images
    weights: Any

    def expected_loss(self, batch: tuple[Tensor, Any]) -> Tensor:
        """Loss of a batch under the expected mixing weights."""


def unfused_facts(job: Search) -> list[str]:
    """Which operations of the space are computed layer by layer, and their measured share of a pass; [] if none is."""
    names = unfused_operations(job.space.operations)
    if not names:
        return []
    config, share = job.config, None
    size = job.setting.data.spec.image_size
    try:
        batch = trial_batch(job.train_images, config, job.setting, config.batch_size)
        seconds = generic_seconds(
            names,
            job.supernet.specs,
            config.nodes,
            job.stage.partial_channels,
            size // 8 if config.network == "imagenet" else size,
            len(batch[1]),
            job.setting.device,
        )
        share = seconds / _pass_seconds(lambda: job.expected_loss(batch), job.weights)
    except (MemoryError, RuntimeError) as error:  # the dry run's own step says what fits
        if not is_out_of_memory(error):
            raise
    return [unfused_line(names, len(job.space.operations), num_calls(job.supernet.specs, config.nodes), share)]


def _pass_seconds(loss: Callable[[], Tensor], weights: Sequence[Tensor]) -> float:
    """Seconds of a forward and a backward pass of the supernet, after one to warm up."""
    begun = 0.0
    for _ in range(2):
        begun = time.perf_counter()
        gradients = torch.autograd.grad(loss(), weights, materialize_grads=True)
        gradients[0].sum().item()  # waits for the device
    return time.perf_counter() - begun
