"""The steps that training consists of, and evaluation."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from darts_sg.config import AugmentConfig, RunConfig
from darts_sg.engine.distributed import ALONE, Ranks
from darts_sg.errors import RunError

CPU = torch.device("cpu")


def cosine_learning_rate(config: RunConfig, epoch: int) -> float:
    """Learning rate of `epoch` (from 0): half a cosine from learning_rate to learning_rate_min (SGDR, equation 5)."""
    span = config.learning_rate - config.learning_rate_min
    return config.learning_rate_min + span * (1 + math.cos(math.pi * epoch / config.epochs)) / 2


def scheduled_learning_rate(config: AugmentConfig, epoch: int) -> float:
    """Learning rate of `epoch` (from 0): warm-up, then the schedule, both scaled to the size of the batches.

    With the batch the steps become fewer, so that the rate grows in proportion (Goyal et al., 2017, section 2.1).
    """
    scale = config.batch_size / (config.learning_rate_batch or config.batch_size)
    done = epoch / config.epochs
    highest, lowest = config.learning_rate, config.learning_rate_min
    if epoch < config.warmup_epochs:
        rate = highest * (epoch + 1) / config.warmup_epochs
    elif config.schedule == "linear":
        rate = highest + (lowest - highest) * done
    elif config.schedule == "exponential":
        rate = highest * (lowest / highest) ** done
    else:
        rate = cosine_learning_rate(config, epoch)
    return scale * rate


def weight_optimizer(
    parameters: Iterable[nn.Parameter], config: RunConfig, device: torch.device = CPU
) -> torch.optim.SGD:
    """SGD with momentum and weight decay, fused but on MPS; on a CUDA GPU it reads its learning rate there."""
    on_gpu = device.type == "cuda"
    rate: float | Tensor = config.learning_rate
    return torch.optim.SGD(
        parameters,
        torch.tensor(rate, device=device) if on_gpu else rate,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        fused=device.type in ("cpu", "cuda") or None,
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Of all parameters, from now on."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Take over the `state_dict` of an optimizer of another device, too: how this one computes stays as it is."""
    own: list[dict[str, Any]] = [
        {name: group[name] for name in ("lr", "fused", "foreach", "capturable") if name in group}
        for group in optimizer.param_groups
    ]
    groups = [{**saved, **kept} for saved, kept in zip(state["param_groups"], own, strict=True)]
    optimizer.load_state_dict({**state, "param_groups": groups})
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                # as the parameter is laid out, which depends on the device: fused optimizers take both for flat memory
                values[name] = torch.empty_like(parameter).copy_(value)
    for group, kept in zip(optimizer.param_groups, own, strict=True):
        group.update(kept)


def apply_weight_step(
    optimizer: torch.optim.Optimizer,
    parameters: Sequence[Tensor],
    loss: Tensor,
    clip: float,
    ranks: Ranks = ALONE,
    num_images: int = 1,
) -> None:
    """One step down the gradient of `loss`, whose norm over all `parameters` is clipped.

    The loss of several ranks is the mean over their images, of which this one has `num_images`.
    """
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    reached = [p for p in parameters if p.grad is not None]
    gradients = ranks.mean([p.grad for p in reached if p.grad is not None], num_images)
    for p, gradient in zip(reached, gradients, strict=True):
        p.grad = gradient
    nn.utils.clip_grad_norm_(parameters, clip)
    optimizer.step()


def averaged_model(network: nn.Module, decay: float) -> AveragedModel:
    """The exponential moving average (EMA) of a network; `update_parameters(network)` takes in a step.

    After the first step it is the network; after each other decay · average + (1 - decay) · network. BatchNorm's
    running statistics are averaged like the weights that they belong to; its counters of batches are taken over. Such
    an average is what Szegedy et al. (2016), section 8, test.
    """
    average_floats = get_ema_multi_avg_fn(decay)

    def average(averages: Sequence[Tensor], current: Sequence[Tensor], num_averaged: Tensor | int) -> None:
        """Of one device and dtype, in place."""
        if averages[0].is_floating_point():
            average_floats(averages, current, num_averaged)
        else:
            for own, counter in zip(averages, current, strict=True):
                own.copy_(counter)

    return AveragedModel(network, multi_avg_fn=average, use_buffers=True)


def accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """Fraction of right answers: logits (N, num_classes), labels (N,), to a scalar."""
    return (logits.argmax(dim=1) == labels).float().mean()


class Evaluation(NamedTuple):
    """Means over all images of an evaluation."""

    loss: float
    accuracy: float
    top5_accuracy: float


def evaluate(
    model: nn.Module,
    logits_of: Callable[[Tensor], Tensor],
    batches: Iterable[tuple[Tensor, Tensor]],
    ranks: Ranks = ALONE,
) -> Evaluation:
    """Loss and accuracies of `logits_of` over the batches of all ranks, with `model` in eval mode meanwhile.

    Raises RunError if there is no image.
    """
    return evaluate_all({model: logits_of}, batches, ranks)[0]


@torch.no_grad()
def evaluate_all(
    models: Mapping[nn.Module, Callable[[Tensor], Tensor]],
    batches: Iterable[tuple[Tensor, Tensor]],
    ranks: Ranks = ALONE,
) -> list[Evaluation]:
    """`evaluate` of several models, each with its function to logits, on the same batches."""
    was_training = [model.training for model in models]
    for model in models:
        model.eval()
    sums = torch.zeros(len(models), 3, dtype=torch.float64)
    count = 0
    for x, y in batches:
        for i, logits_of in enumerate(models.values()):
            logits = logits_of(x)
            best = logits.topk(min(5, logits.shape[1])).indices
            sums[i, 0] += F.cross_entropy(logits, y, reduction="sum").cpu()
            sums[i, 1] += (logits.argmax(dim=1) == y).sum().cpu()
            sums[i, 2] += (best == y[:, None]).sum().cpu()
        count += len(y)
    for model, training in zip(models, was_training, strict=True):
        model.train(training)
    *totals, total = ranks.sum(*sums.flatten().tolist(), count)
    if not total:
        raise RunError("none of the images to evaluate on can be read; repair them (a run goes on with --resume)")
    return [Evaluation(*(value / total for value in totals[i : i + 3])) for i in range(0, len(totals), 3)]
