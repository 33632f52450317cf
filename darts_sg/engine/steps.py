"""The parts of a training step that both jobs share: learning rates, optimizer, EMA; and evaluation."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from darts_sg.config import AugmentConfig, RunConfig
from darts_sg.engine.distributed import ALONE, Ranks
from darts_sg.engine.optimizers import SGD
from darts_sg.errors import RunError
from darts_sg.tasks import Evaluator

CPU = torch.device("cpu")
STEPS = 2 / 3, 5 / 6
"""Shares of the epochs after which the schedule `step` divides the learning rate by 10."""


def cosine_learning_rate(config: RunConfig, epoch: int, epochs: int | None = None) -> float:
    """Learning rate of `epoch` (from 0): half a cosine from learning_rate to learning_rate_min (SGDR, equation 5).

    epochs: over which it falls, by default --epochs.
    """
    span = config.learning_rate - config.learning_rate_min
    return config.learning_rate_min + span * (1 + math.cos(math.pi * epoch / (epochs or config.epochs))) / 2


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
    elif config.schedule == "step":
        rate = highest * 0.1 ** sum(done >= part for part in STEPS)
    elif config.schedule == "exponential":
        rate = highest * (lowest / highest) ** done
    else:
        rate = cosine_learning_rate(config, epoch)
    return scale * rate


def weight_optimizer(
    parameters: Iterable[nn.Parameter], config: RunConfig, device: torch.device = CPU
) -> torch.optim.SGD:
    """SGD with momentum and weight decay, fused on CPU and CUDA.

    On a CUDA GPU the learning rate is a tensor there, so that a captured step sees it change.
    """
    on_gpu = device.type == "cuda"
    rate: float | Tensor = config.learning_rate
    return SGD(
        parameters,
        torch.tensor(rate, device=device) if on_gpu else rate,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        nesterov=config.nesterov,
        fused=device.type in ("cpu", "cuda") or None,
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of all parameters, on the device where the optimizer keeps it there."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load the `state_dict` of an optimizer, which may come from another device.

    The learning rate and the options that say how the steps are computed (fused, foreach, capturable) stay those of
    this optimizer.
    """
    own: list[dict[str, Any]] = [
        {name: group[name] for name in ("lr", "fused", "foreach", "capturable") if name in group}
        for group in optimizer.param_groups
    ]
    groups = [{**saved, **kept} for saved, kept in zip(state["param_groups"], own, strict=True)]
    optimizer.load_state_dict({**state, "param_groups": groups})
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                # fused optimizers read both as flat memory, so the state needs the parameter's memory layout, which
                # depends on the device
                values[name] = torch.empty_like(parameter).copy_(value)
    for group, kept in zip(optimizer.param_groups, own, strict=True):
        group.update(kept)


def apply_weight_step(
    optimizer: torch.optim.Optimizer,
    parameters: Sequence[Tensor],
    loss: Tensor,
    clip: float,
    ranks: Ranks = ALONE,
    num_terms: int | Tensor = 1,
    *,
    add: Callable[[], Sequence[Tensor]] | None = None,
    adjust: Callable[[], None] | None = None,
    all_decay: bool = False,
) -> None:
    """One step down the gradient of `loss`, whose norm over all `parameters` is clipped.

    The loss of several ranks is the mean over their terms, of which this one has `num_terms` (by default images).
    add: called after the backward pass, gives what is added to the gradient of each of the parameters on this rank.
    adjust: called once the parameters have the gradients of all ranks, before these are clipped.
    all_decay: parameters that the loss does not depend on have a gradient of 0, so that momentum and weight decay move
    them; otherwise they stay.
    """
    optimizer.zero_grad(set_to_none=True)
    if loss.requires_grad:
        loss.backward()
    for p, more in zip(parameters, add(), strict=True) if add is not None else ():
        p.grad = more if p.grad is None else p.grad.add_(more)
    for p in parameters if all_decay else ():
        if p.grad is None:
            p.grad = torch.zeros_like(p)
    reached = [p for p in parameters if p.grad is not None]
    gradients = ranks.mean([p.grad for p in reached if p.grad is not None], num_terms)
    for p, gradient in zip(reached, gradients, strict=True):
        p.grad = gradient
    if adjust is not None:
        adjust()
    nn.utils.clip_grad_norm_(parameters, clip)
    optimizer.step()


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Context in which `model` is in eval mode; afterwards each module has its own mode again."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def counted_together(network: nn.Module) -> Iterator[None]:
    """Context of a training step, after which all BatchNorms in train mode have counted a batch, in one launch.

    Otherwise each launches an addition of its own: 241 of them in DARTS_V2. For networks that call each BatchNorm once
    a step. A SyncBatchNorm counts by itself.
    """
    layers = [m for m in network.modules() if type(m) is nn.BatchNorm2d and m.training and m.momentum is not None]
    counters = [(layer, n) for layer in layers if (n := layer.num_batches_tracked) is not None]
    for layer, _ in counters:
        layer.num_batches_tracked = None
    try:
        yield
    finally:
        for layer, counter in counters:
            layer.num_batches_tracked = counter
    if counters:
        torch._foreach_add_([counter for _, counter in counters], 1)


class MovingAverage(AveragedModel):
    """The exponential moving average (EMA) of a network; call `update_parameters(network)` after each step.

    The first call copies the network; each later one gives decay · average + (1 - decay) · network. BatchNorm's running
    statistics are averaged like the weights that they belong to; its batch counters are copied. Szegedy et al. (2016),
    section 8, evaluate such an average.

    An update is a few launches and waits for nothing: PyTorch's own reads its counter back from the device each time.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        super().__init__(network, use_buffers=True)
        self.decay = decay
        self._begun: bool | None = False  # None: unknown until the counter is read

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        if self._begun is None:
            self._begun = bool(self.n_averaged > 0)
        pairs: dict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = {}
        both = zip(_tensors(self.module), _tensors(model), strict=True)
        for own, current in both:
            for found, tensor in zip(pairs.setdefault(own.dtype, ([], [])), (own, current), strict=True):
                found.append(tensor)
        for dtype, (average, now) in pairs.items():
            if self._begun and dtype.is_floating_point:
                torch._foreach_lerp_(average, now, 1 - self.decay)
            else:
                torch._foreach_copy_(average, now)
        self._begun = True
        self.n_averaged += 1

    def load_state_dict(self, *arguments: Any, **options: Any) -> Any:
        self._begun = None
        return super().load_state_dict(*arguments, **options)


def _tensors(network: nn.Module) -> Iterator[Tensor]:
    yield from (parameter.detach() for parameter in network.parameters())
    yield from network.buffers()


class Evaluation(NamedTuple):
    """What an evaluation of one model found, over the images of all ranks."""

    measures: dict[str, float]
    evaluator: Evaluator
    """Holds what the measures do not say, see `Evaluator.files` and `Evaluator.details`."""


def evaluate(
    model: nn.Module,
    outputs_of: Callable[[Tensor], Any],
    batches: Iterable[tuple[Tensor, Any]],
    evaluator: Callable[[], Evaluator],
    ranks: Ranks = ALONE,
    *,
    batch_statistics: bool = False,
) -> dict[str, float]:
    """The measures of `outputs_of` over the batches of all ranks, with `model` in eval mode meanwhile.

    batch_statistics: in train mode instead, where BatchNorm takes the statistics of each batch.
    Raises RunError if there is no image.
    """
    return evaluate_all({model: outputs_of}, batches, evaluator, ranks, batch_statistics=batch_statistics)[0].measures


@torch.no_grad()
def evaluate_all(
    models: Mapping[nn.Module, Callable[[Tensor], Any]],
    batches: Iterable[tuple[Tensor, Any]],
    evaluator: Callable[[], Evaluator],
    ranks: Ranks = ALONE,
    *,
    batch_statistics: bool = False,
) -> list[Evaluation]:
    """`evaluate` of several models on the same batches, each with its function to outputs and an evaluator of its own.

    Several models together read the images once.
    """
    was_training = [model.training for model in models]
    for model in models:
        model.train(batch_statistics)
    evaluators = [evaluator() for _ in models]
    count = 0
    for x, targets in batches:
        for outputs_of, own in zip(models.values(), evaluators, strict=True):
            own.update(outputs_of(x), targets)
        count += len(x)
    for model, training in zip(models, was_training, strict=True):
        model.train(training)
    # one reduction for the sums of all models and the number of images, as each waits for all ranks
    sums = [own.sums() for own in evaluators]
    *totals, total = ranks.sum(*(value for part in sums for value in part), count)
    if not total:
        raise RunError("none of the images to evaluate on can be read; repair them (a run goes on with --resume)")
    found, start = [], 0
    for own, part in zip(evaluators, sums, strict=True):
        records = ranks.gather(own.records()) if own.gathers else []
        measures = own.measures(totals[start : start + len(part)], records, round(total))
        found.append(Evaluation(measures, own))
        start += len(part)
    return found
