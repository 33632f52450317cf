"""The steps that training consists of, and evaluation."""

import math
from collections.abc import Callable, Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from darts_sg.config import RunConfig
from darts_sg.engine.distributed import ALONE, Ranks


def cosine_learning_rate(config: RunConfig, epoch: int) -> float:
    """Learning rate of `epoch` (from 0): half a cosine from learning_rate to learning_rate_min (SGDR, equation 5)."""
    span = config.learning_rate - config.learning_rate_min
    return config.learning_rate_min + span * (1 + math.cos(math.pi * epoch / config.epochs)) / 2


def weight_optimizer(parameters: Iterable[nn.Parameter], config: RunConfig) -> torch.optim.SGD:
    """SGD with momentum and weight decay."""
    return torch.optim.SGD(parameters, config.learning_rate, momentum=config.momentum, weight_decay=config.weight_decay)


def apply_weight_step(
    optimizer: torch.optim.Optimizer,
    parameters: Sequence[Tensor],
    loss: Tensor,
    learning_rate: float,
    clip: float,
    ranks: Ranks = ALONE,
    num_images: int = 1,
) -> None:
    """One step down the gradient of `loss`, whose norm over all `parameters` is clipped.

    The loss of several ranks is the mean over their images, of which this one has `num_images`.
    """
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    reached = [p for p in parameters if p.grad is not None]
    gradients = ranks.mean([p.grad for p in reached if p.grad is not None], num_images)
    for p, gradient in zip(reached, gradients, strict=True):
        p.grad = gradient
    nn.utils.clip_grad_norm_(parameters, clip)
    optimizer.step()


def accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """Fraction of right answers: logits (N, num_classes), labels (N,), to a scalar."""
    return (logits.argmax(dim=1) == labels).float().mean()


@torch.no_grad()
def evaluate(
    model: nn.Module,
    logits_of: Callable[[Tensor], Tensor],
    batches: Iterable[tuple[Tensor, Tensor]],
    ranks: Ranks = ALONE,
) -> tuple[float, float]:
    """Mean loss and accuracy of `logits_of` over the batches of all ranks, with `model` in eval mode meanwhile."""
    was_training = model.training
    model.eval()
    loss = right = torch.zeros((), dtype=torch.float64)
    count = 0
    for x, y in batches:
        logits = logits_of(x)
        loss = loss + F.cross_entropy(logits, y, reduction="sum").double().cpu()
        right = right + (logits.argmax(dim=1) == y).sum().cpu()
        count += len(y)
    model.train(was_training)
    total_loss, total_right, total = ranks.sum(loss.item(), right.item(), count)
    return total_loss / total, total_right / total
