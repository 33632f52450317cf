"""Goes from one stage of a search to the next: prunes operations, builds the next supernet, carries weights over.

A stage begins with the first step of its first epoch, as a function of the state after the stage before and of the
seed. A run that is killed there repeats it from the checkpoint between the stages, to the same bits.
"""

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from darts_sg.config import SearchConfig
from darts_sg.data.generator import keyed_generator, keyed_seed
from darts_sg.derive import Array
from darts_sg.engine.loop import Job, Piece
from darts_sg.engine.optimizers import Adam
from darts_sg.engine.setup import Setting, timed_step
from darts_sg.engine.steps import load_optimizer
from darts_sg.errors import UsageError
from darts_sg.methods.growth import carry_over
from darts_sg.methods.method import Method
from darts_sg.methods.pruning import strongest
from darts_sg.methods.stages import Stage, Timeline
from darts_sg.networks.supernet import Supernet
from darts_sg.spaces import Allowed, Space
from darts_sg.tasks.columns import clock


class StagedJob(Job, Protocol):
    """The parts of a search job that change from stage to stage."""

    config: SearchConfig
    setting: Setting
    space: Space
    timeline: Timeline
    stage_number: int
    stage: Stage
    skip_dropout: Tensor
    allowed: Allowed | None
    supernet: Supernet
    weights: list[torch.nn.Parameter]
    alphas: list[torch.nn.Parameter]
    weight_optimizer: torch.optim.SGD
    alpha_optimizer: Adam

    def build(self, number: int, allowed: Allowed | None) -> Supernet: ...

    def begin_stage(self, number: int, allowed: Allowed | None, carried: Supernet | None = None) -> None: ...

    def mixing(self) -> dict[str, Array]: ...

    def alphas_learn(self, epoch: int) -> bool: ...


def refuse_kernels(config: SearchConfig, method: Method) -> None:
    """UsageError if kernels are required that later stages cannot use."""
    counts = {stage.num_operations for stage in method.stages}
    if config.kernels == "native" and len(counts) > 1:
        raise UsageError(
            f"--kernels native computes edges that all have the same operations, and later stages of --stages "
            f"{config.stages} have lists of their own; leave it out: the first stage takes them where it can"
        )


def enter_stage_of(job: StagedJob, epoch: int) -> None:
    """Begin the stage of an epoch, and those before it that have not begun."""
    while job.stage_number < job.timeline.number(epoch):
        number = job.stage_number + 1
        # new weights depend on the seed alone, and the random numbers of the run stay as they are
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(keyed_seed(job.config.seed, "stage", "weights", number))
            _begin(job, number, _pruned(job, number))


def _pruned(job: StagedJob, number: int) -> Allowed | None:
    """Which operations the edges have in a stage, by the mixing weights at the end of the one before."""
    wanted = job.timeline.stages[number].num_operations
    if wanted is None or (job.allowed is None and wanted >= len(job.space.operations)):
        return job.allowed
    mixing, before = job.mixing(), job.allowed or (None, None)
    normal, reduce = (
        strongest(mixing[title], wanted, allowed) for title, allowed in zip(("normal", "reduce"), before, strict=True)
    )
    return normal, reduce


def _begin(job: StagedJob, number: int, allowed: Allowed | None) -> None:
    if job.timeline.stages[number].is_fresh:
        job.begin_stage(number, allowed)
        return
    old = job.build(job.stage_number, job.allowed)
    old.load_state_dict(job.supernet.state_dict())
    new = job.build(number, allowed)
    carry_over(old, new, _copies(job, number))
    momenta = None
    if job.config.momentum:
        old.load_state_dict(_with_momenta(job))
        of_momenta = job.build(number, allowed)
        carry_over(old, of_momenta, _copies(job, number))
        momenta = of_momenta.state_dict()
    alpha_state = job.alpha_optimizer.state_dict()
    job.begin_stage(number, allowed, new)
    load_optimizer(job.alpha_optimizer, alpha_state)
    _forget_pruned(job)
    if momenta is not None:
        for weight, buffer in zip(job.weights, _weights_of(job.supernet, momenta), strict=True):
            job.weight_optimizer.state[weight]["momentum_buffer"] = buffer


def _copies(job: StagedJob, number: int) -> torch.Generator:
    """The generator that draws which channels are copied: the same for weights and momentum buffers."""
    return keyed_generator(job.config.seed, "stage", "channels", number)


@torch.no_grad()
def _with_momenta(job: StagedJob) -> dict[str, Tensor]:
    """The state of the supernet with momentum buffers in the place of weights, 0 for weights without one.

    Backends stack the weights of several edges in one tensor; only the state has names for those of each edge.
    """
    kept = _copied(job.supernet)
    for weight in job.weights:
        buffer = job.weight_optimizer.state[weight].get("momentum_buffer")
        weight.copy_(torch.zeros_like(weight) if buffer is None else buffer)
    found = _copied(job.supernet)
    job.supernet.load_state_dict(kept)
    return found


@torch.no_grad()
def _weights_of(supernet: Supernet, state: dict[str, Tensor]) -> list[Tensor]:
    """The tensors of a state in the order and layout of the supernet's weights; the supernet stays as it is."""
    kept = _copied(supernet)
    supernet.load_state_dict(state)
    found = [weight.detach().clone() for weight in supernet.weights()]
    supernet.load_state_dict(kept)
    return found


def _copied(supernet: Supernet) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in supernet.state_dict().items()}


@torch.no_grad()
def _forget_pruned(job: StagedJob) -> None:
    """Set the alphas of pruned operations and their averages of gradients to 0."""
    for alpha, allowed in zip(job.alphas, job.allowed or (), strict=False):
        kept = torch.from_numpy(allowed).to(alpha.device)
        alpha.mul_(kept)
        for name in ("exp_avg", "exp_avg_sq"):
            if name in job.alpha_optimizer.state[alpha]:
                job.alpha_optimizer.state[alpha][name].mul_(kept)


def as_each_stage(job: StagedJob) -> Iterator[str]:
    """Put a job into its stages in turn, from the current one on; afterwards it is as it was.

    Later stages have whatever operations are strongest now: their memory does not depend on which these are. Yields
    `stage 2/3`, or an empty text where there is one stage alone.
    """
    total = len(job.timeline.stages)
    yield f"stage {job.stage_number + 1}/{total}" if total > 1 else ""
    for number in range(job.stage_number + 1, total):
        kept, dropout = dict(vars(job)), job.skip_dropout.clone()
        try:
            with torch.random.fork_rng(devices=[]):
                job.begin_stage(number, _pruned(job, number))
                yield f"stage {number + 1}/{total}"
        finally:
            vars(job).clear()
            vars(job).update(kept)
            job.skip_dropout.copy_(dropout)


def stage_state(job: StagedJob) -> dict[str, Any]:
    """The entry of a checkpoint that says which supernet its tensors belong to; {} for searches of one stage."""
    if len(job.timeline.stages) == 1:
        return {}
    allowed = None if job.allowed is None else [torch.from_numpy(each) for each in job.allowed]
    return {"stage": {"number": job.stage_number, "allowed": allowed}}


def load_stage(job: StagedJob, state: dict[str, Any]) -> None:
    """Build the supernet that the state of a checkpoint belongs to, if the job has another one."""
    if "stage" not in state:
        return
    number, allowed = state["stage"]["number"], state["stage"]["allowed"]
    if number != job.stage_number:
        masks: Allowed | None = None
        if allowed is not None:
            normal, reduce = (np.array(each.numpy()) for each in allowed)
            masks = normal, reduce
        job.begin_stage(number, masks)


def stage_ends(timeline: Timeline, epoch: int) -> Iterator[Piece]:
    """A line after the last epoch of each stage but the last: what the next one is."""
    number = timeline.number(epoch)
    if number + 1 < len(timeline.stages) and timeline.number(epoch + 1) != number:
        total = len(timeline.stages)
        line = f"stage {number + 2}/{total} begins after this epoch: {described(timeline.stages[number + 1])}"
        yield Piece("stages", number + 1, total, (line,))


def described(stage: Stage) -> str:
    """What a stage is, in one line."""
    epochs = "1 epoch" if stage.epochs == 1 else f"{stage.epochs} epochs"
    parts = [epochs, f"{stage.cells} cells"]
    if stage.num_operations is not None:
        parts.append(f"{stage.num_operations} operations an edge")
    if stage.partial_channels > 1:
        parts.append(f"K={stage.partial_channels}")
    parts.append("new weights and alphas" if stage.is_fresh else "weights and alphas kept")
    return ", ".join(parts)


def epoch_times(job: StagedJob, seconds: float) -> tuple[list[str], float]:
    """For a dry run: lines with the time of each stage and of steps with frozen alphas, and the seconds of all epochs.

    seconds: those of a step of the first stage in which the alphas learn, if they ever do. The other stages are entered
    with whatever operations are strongest now; a step takes about as long with others. Epochs of a selection phase
    take as long as the last ones of the search, whose stage they belong to.
    """
    lines, whole = [], 0.0
    timeline, last = job.timeline, len(job.timeline.stages)
    for number, (stage, span) in enumerate(zip(timeline.stages, timeline.spans, strict=True), start=1):
        epochs = range(span.first, job.num_epochs if number == last else span.first + span.epochs)
        learning = [epoch for epoch in epochs if job.alphas_learn(epoch)]
        frozen = len(epochs) - len(learning)
        if number > 1 and learning:
            _, seconds = timed_step(job, learning[0])
        # a step of the weights alone; the one that was timed is one if the alphas never learn
        alone = timed_step(job, epochs[0])[1] if frozen and (learning or number > 1) else seconds
        total = (seconds * len(learning) + alone * frozen) * job.steps_per_epoch
        whole += total
        step = f"a step {seconds if learning else alone:.2f} s"
        if learning and frozen:
            count = "the first epoch" if frozen == 1 else f"the first {frozen} epochs"
            step += f", {alone:.2f} s in {count}, which train the weights alone"
        plain = "" if job.supernet.choices is None else ", edge by edge without kernels"
        if last > 1:
            start = f"stage {number}/{last}: {described(stage)}{plain}"
            lines.append(f"{start}, {step}, about {clock(total)} (h:mm:ss)")
        elif learning and frozen:
            lines.append(step)
    return lines, whole
