"""The search: alphas and weights learn in turns, each on its own half of the training images (DARTS, algorithm 1)."""

import functools
import math
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from darts_sg.analysis.cost import CELLS, CHANNELS, choice_costs, count_macs, count_params, derived_cost, human
from darts_sg.analysis.decided import doubt
from darts_sg.analysis.latency import LatencyTable, read_latency_table
from darts_sg.analysis.run_folder import read_search_epoch, read_search_epochs
from darts_sg.backends.batched import edge_batches
from darts_sg.backends.cpp.build import Unavailable
from darts_sg.config import SearchConfig
from darts_sg.data import Augment, TrainBatches
from darts_sg.data.generator import keyed_seed
from darts_sg.derive import Array, Costs, entropy
from darts_sg.engine.baselines import run_baseline
from darts_sg.engine.drawing import draw_mixing_weights, write_report
from darts_sg.engine.eigenvalue import supernet_eigenvalue
from darts_sg.engine.environment import device_name
from darts_sg.engine.graphs import WARM_UP, Captured, compile_step
from darts_sg.engine.kernels import use_kernels
from darts_sg.engine.loop import Loop, Piece, StepResult
from darts_sg.engine.memory import buffers_kept
from darts_sg.engine.optimizers import Adam
from darts_sg.engine.output import announce, lenient_output
from darts_sg.engine.run_dir import RunDir
from darts_sg.engine.search_data import search_parts
from darts_sg.engine.search_result import npz_bytes, searched_genotype
from darts_sg.engine.search_stages import (
    as_each_stage,
    enter_stage_of,
    epoch_times,
    load_stage,
    refuse_kernels,
    stage_ends,
    stage_state,
)
from darts_sg.engine.selection_phase import measure, num_batches, run_phase
from darts_sg.engine.setup import (
    Setting,
    already_finished,
    autocast,
    batches_to_evaluate,
    captures,
    compile_parts,
    dry_run,
    open_run,
    prepare,
    refuse_run_dir,
    refuse_single_images,
    run_job,
    to_device,
    train_batches,
    trial_batch,
    write_unusual,
)
from darts_sg.engine.steps import (
    apply_weight_step,
    cosine_learning_rate,
    eval_mode,
    evaluate,
    load_optimizer,
    set_learning_rate,
    weight_optimizer,
)
from darts_sg.engine.unfused import unfused_facts
from darts_sg.errors import RunError, UsageError
from darts_sg.genotype import Cell, Genotype
from darts_sg.invocation import retrain_command
from darts_sg.methods.early_stopping import EarlyStop
from darts_sg.methods.hypergradient import Hypergradient, VirtualStep, frozen
from darts_sg.methods.mixing import (
    Draw,
    alphas_of,
    draw_noise,
    expected_mixing,
    masked_alphas_of,
    restricted,
    sampled_mixing,
)
from darts_sg.methods.operation_freezing import FrozenOperations
from darts_sg.methods.operation_freezing.weights import OperationWeights
from darts_sg.methods.regularizers import Problem
from darts_sg.methods.selection import Searched, Setup, Trial
from darts_sg.methods.skip_dropout import add_skip_dropout, silence
from darts_sg.methods.stages import Timeline
from darts_sg.networks.supernet import ALPHA_INIT_DEVIATION, Chosen, Mixing, Supernet, chosen_by
from darts_sg.quantity import duration_text
from darts_sg.records import MetricsRow
from darts_sg.spaces import Allowed, Space, parse_space
from darts_sg.tasks import columns, task_of

EDGE_BY_EDGE = "edges have lists of operations of their own: PyTorch computes them edge by edge, without kernels"
EIGENVALUE_IMAGES = 64  # one batch, as in the code of RobustDARTS

Batch = tuple[Tensor, Tensor]


class SearchJob:
    """The supernet with its method, two optimizers and two streams of batches."""

    name = "search"

    def __init__(self, config: SearchConfig, setting: Setting) -> None:
        self.config, self.setting, self.method = config, setting, config.method()
        self.timeline = Timeline(self.method.stages)
        refuse_kernels(config, self.method)
        self.space = parse_space(config.space)
        self.task = task_of(config.as_dict())
        parts = search_parts(config, setting)
        self.holds_out = parts[0] is not parts[1]
        """Whether there are images that the weights do not see."""
        self.train_images = parts[0].to(setting.device)
        self.validation_images = parts[1].to(setting.device) if self.holds_out else self.train_images
        self.train = train_batches(self.train_images, config, setting, "weights")
        self.validation = train_batches(self.validation_images, config, setting, "alphas")
        self.phase = self.method.selection.phase(
            Setup(self.space.operations, config.nodes, self.timeline.epochs, config.seed, self.space.allowed)
        )
        """The selection, if it goes on after the supernet's epochs."""
        self.num_epochs, self.steps_per_epoch = self.timeline.epochs, len(self.train)
        if self.phase is not None:
            self.num_epochs += self.phase.epochs
            setting.environment["epochs"] = self.num_epochs  # for reports: more than --epochs
            self.trial_batches = train_batches(self.validation_images, config, setting, "selection")
        # All are set before each step, and nowhere else, and a captured CUDA graph reads them.
        self.progress = torch.zeros((), device=setting.device)
        self.epochs_done = torch.zeros((), device=setting.device)
        """Share of the epochs that were done when the current one began, for schedules that change by epoch."""
        self.skip_dropout = torch.zeros((), device=setting.device)
        """Probability of dropout after skip connections."""
        self.generator = torch.Generator(setting.device)
        self.begin_stage(0, self.space.allowed)

    def begin_stage(self, number: int, allowed: Allowed | None, carried: Supernet | None = None) -> None:
        """Build the supernet of a stage, its optimizers and all that depends on it.

        allowed: which operations each edge has, None for all. carried: a plain supernet of the stage with the tensors
        to go on from; by default a new one.
        """
        config, setting = self.config, self.setting
        self.stage_number, self.stage, self.allowed = number, self.method.stages[number], allowed
        self.captured: Captured | None = None  # frees the memory of the stage before
        self.skip_dropout.fill_(0.0)  # the check of the kernels compares outputs
        self.supernet = to_device(self.build(number, allowed) if carried is None else carried, setting.device)
        kernels = use_kernels(self.supernet, config, setting, self._prepare_gpu)
        if number == 0:
            setting.environment["kernels"] = kernels  # of the run: a resumed one begins with the same choice
        self.supernet.recompute = config.recompute
        if config.compile:
            compile_parts(edge_batches(self.supernet), setting.device)
        self.weights, self.alphas = self.supernet.weights(), self.supernet.alphas()
        if self.phase is not None and self.phase.fixed_alphas:
            with torch.no_grad():
                for alpha in self.alphas:
                    alpha.zero_()
        problem = problem_of(config, self.space, allowed)
        self.regularizers = {name: term.prepare(problem) for name, term in self.method.regularizers.items()}
        if config.eigenvalue_every and setting.device.type == "mps":
            raise UsageError("--eigenvalue-every needs float64, which mps does not have; leave it out, or --device cpu")
        self.weight_optimizer = weight_optimizer(self.weights, config, setting.device)
        rule = self.method.operation_freezing
        self.freezing = rule.watch(OperationWeights(self.supernet)) if rule.needed else None
        on_gpu = setting.device.type == "cuda"
        self.alpha_optimizer = Adam(
            self.alphas, config.alpha_learning_rate, betas=(config.alpha_beta1, config.alpha_beta2),
            weight_decay=config.alpha_weight_decay,
            fused=on_gpu or None, capturable=on_gpu,
        )  # fmt: skip
        self.captured = Captured(self._update, [self.generator]) if captures(config, setting) else None

    @property
    def _num_alpha_images(self) -> int:
        """How many images the alphas learn from."""
        return len(self.train_images if self.method.is_single_level else self.validation_images)

    def _prepare_gpu(self) -> None:
        config, setting = self.config, self.setting
        if setting.ranks.leads:
            print("preparing the Triton kernels for this GPU (the first time some minutes, later seconds)")
        images = trial_batch(self.train_images, config, setting, 2 * setting.ranks.size)[0]
        failure: Unavailable | None = None
        with setting.ranks.one_by_machine():  # the others find what the first one has compiled in Triton's cache
            try:
                compile_step(
                    self.supernet,
                    self._expected,
                    images,
                    autocast(config, setting.device),
                    evaluation=config.precision != "float32",
                    eigenvalue=bool(config.eigenvalue_every),
                )
            except Unavailable as reason:
                failure = reason  # the others wait for this one: first let them go on
        if failure is not None:
            raise failure

    @property
    def warm_up_steps(self) -> int:
        """Captured steps are replayed only after some that run launch by launch and one that is captured."""
        return 1 if self.captured is None else WARM_UP + 1

    def learning_rate(self, epoch: int) -> float:
        if self.phase is not None and epoch >= self.timeline.epochs:
            return self.phase.learning_rate
        first, epochs = self.timeline.schedule(epoch)
        return cosine_learning_rate(self.config, epoch - first, epochs)

    def alphas_learn(self, epoch: int) -> bool:
        """Whether the alphas learn in `epoch`; in the epochs of a selection phase, as in the last one before it."""
        fixed = self.phase is not None and self.phase.fixed_alphas
        return not fixed and self.timeline.alphas_learn(epoch)

    def alpha_steps(self, epochs: int) -> int:
        """Updates of the alphas in the first `epochs` epochs."""
        return self.steps_per_epoch * sum(self.alphas_learn(epoch) for epoch in range(epochs))

    def step(self, epoch: int, step: int) -> StepResult:
        enter_stage_of(self, epoch)
        position = epoch * self.steps_per_epoch + step
        set_learning_rate(self.weight_optimizer, self.learning_rate(epoch))
        first, epochs = self.timeline.schedule(epoch)
        self.progress.fill_(min(1.0, (position - first * self.steps_per_epoch) / (epochs * self.steps_per_epoch)))
        self.epochs_done.fill_(min(1.0, (epoch - first) / epochs))
        if self.stage.skip_dropout:
            self.skip_dropout.fill_(self.stage.skip_dropout_at(self.timeline.within(epoch)))
        # The noise of a step depends on seed and position: all ranks draw the same, a resumed run what it would have.
        self.generator.manual_seed(keyed_seed(self.config.seed, "mixing", "noise", position))
        tensors: tuple[Tensor, ...] = self.train[position]
        together = self.method.is_single_level and self.alphas_learn(epoch)
        if self.alphas_learn(epoch) and not together:
            tensors += self.validation[position]
        update = self._update if self.captured is None else partial(self.captured, None)
        means = update(*tensors, together=together)
        return StepResult(self.train.num_images(position), means)

    def _update(self, *tensors: Tensor, together: bool = False) -> dict[str, Tensor]:
        """Update the weights on a batch (images, labels) and, before them, the alphas on a second one if given.

        together: the alphas learn from the same pass over the same batch. Returns means over the images. Captured as a
        CUDA graph: must not read a value back to the CPU.
        """
        if together:
            return self._update_together((tensors[0], tensors[1]))
        train_batch, validation_batch = (tensors[0], tensors[1]), tensors[2:]
        num_images, ranks = len(train_batch[1]), self.setting.ranks
        means: dict[str, Tensor] = {}
        validation_gradients = None
        if len(validation_batch) == 2:
            found = self._hypergradient(train_batch, validation_batch)
            means |= self._regularize(found)
            means |= self._measured("validation", found.loss, found.outputs, validation_batch[1])
            self._alpha_step(found)
            validation_gradients = found.weight_gradients
        loss, outputs = self._weight_step(train_batch, validation_gradients)
        ranks.average_statistics(self.supernet, num_images)
        return means | self._measured("train", loss, outputs, train_batch[1])

    def _weight_step(self, batch: Batch, validation_gradients: Sequence[Tensor] | None) -> tuple[Tensor, Tensor]:
        """Update the weights on a batch; returns its loss and outputs before the update.

        validation_gradients: the gradients of the validation loss in the weights, if a rule for freezing needs them.
        """
        ranks, num_images = self.setting.ranks, len(batch[1])
        regularizer, draw = self.method.weight_regularizer, self._draw()
        with frozen(self.alphas):
            add = None
            (mixing, chosen), kept = self._mixing(batch, draw, perturbed=True), self._kept(draw, batch)
            if regularizer.needed:
                mixing = regularizer.prepared(mixing, sum(not spec.reduction for spec in self.supernet.specs))

                def loss_under(other: Mixing) -> Tensor:
                    return self._loss_of(batch, other, kept)[0]

                mean = partial(ranks.mean, num_images=num_images)
                add = partial(regularizer.gradients, mixing, loss_under, self.weights, self._growth(), mean)
            loss, outputs = self._loss_of(batch, mixing, kept, chosen)
            adjust, before = None, []
            if self.freezing is not None:
                adjust = partial(self._freeze, self.freezing, validation_gradients)
                before = [weight.detach().clone() for weight in self.freezing.operations.of(self.weights)]
            apply_weight_step(
                self.weight_optimizer,
                self.weights,
                loss,
                self.config.gradient_clip,
                ranks,
                num_images,
                add=add,
                adjust=adjust,
                all_decay=self.method.relaxation.is_one_hot,
            )
            if self.freezing is not None:  # momentum and weight decay would move frozen weights without a gradient
                state = [self.weight_optimizer.state[weight] for weight in self.weights]
                buffers = [each.get("momentum_buffer") for each in state]
                self.freezing.restore(self.weights, before, buffers)
        return loss, outputs

    def _freeze(self, freezing: FrozenOperations, validation_gradients: Sequence[Tensor] | None) -> None:
        """Freeze operations by the gradients of both losses, and take the gradients of frozen ones away."""
        gradients = [torch.zeros_like(w) if w.grad is None else w.grad for w in self.weights]
        if validation_gradients is not None:
            freezing.observe(gradients, validation_gradients)
        freezing.clear(gradients)

    def _update_together(self, batch: Batch) -> dict[str, Tensor]:
        """Update weights and alphas by the gradients of one pass over a batch (SNAS). Returns means over the images."""
        num_images, ranks = len(batch[1]), self.setting.ranks
        self.alpha_optimizer.zero_grad(set_to_none=True)
        loss, outputs = self.objective(batch, self._draw())
        apply_weight_step(
            self.weight_optimizer,
            self.weights,
            loss,
            self.config.gradient_clip,
            ranks,
            num_images,
            all_decay=self.method.relaxation.is_one_hot,
        )
        gradients = [torch.zeros_like(alpha) if alpha.grad is None else alpha.grad for alpha in self.alphas]
        found = Hypergradient(loss.detach(), outputs.detach(), ranks.mean(gradients, num_images))
        means = self._regularize(found)
        self._alpha_step(found)
        ranks.average_statistics(self.supernet, num_images)
        return means | self._measured("train", loss, outputs, batch[1])

    def _measured(self, part: str, loss: Tensor, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Loss and metrics of a batch by column, as means over the ranks."""
        found = {"loss": loss} | self.task.training_metrics(outputs, targets)
        means = {f"{part}_{name}": value for name, value in found.items()}
        return self.setting.ranks.means(self.task.num_terms(targets), **means)

    def objective(self, batch: Batch, draw: Draw, *, perturbed: bool = False) -> tuple[Tensor, Tensor]:
        """Loss and outputs of a batch under the current weights and alphas and the random numbers of `draw`.

        perturbed: under the mixing weights that the step of the weights sees.
        """
        mixing, chosen = self._mixing(batch, draw, perturbed)
        return self._loss_of(batch, mixing, self._kept(draw, batch), chosen)

    def _mixing(self, batch: Batch, draw: Draw, perturbed: bool) -> tuple[Mixing, Chosen | None]:
        """The mixing weights of a step, perturbed for that of the weights, and the only operations to compute."""
        with autocast(self.config, self.setting.device):
            mixing = sampled = sampled_mixing(self.supernet, self.method.relaxation, self.progress, draw)
            if perturbed:
                mixing = self._perturbed(sampled, batch, self._kept(draw, batch))
            chosen = self._chosen(mixing, perturbed) if mixing is sampled else None
            return self._decided(mixing), chosen

    def _chosen(self, mixing: Mixing, perturbed: bool) -> Chosen | None:
        """The only operations that a pass has to compute; None for all."""
        relaxation, method = self.method.relaxation, self.method
        # the step of the weights never needs more than the chosen operations; the alphas' gradient may
        one = relaxation.is_one_hot and (perturbed or not relaxation.needs_all_operations)
        # an auxiliary skip is a second operation, and cells with drop path or their own mixing weights compute all
        several = method.auxiliary_skip.needed or method.drop_path or (perturbed and method.weight_regularizer.needed)
        return chosen_by(mixing) if one and self.phase is None and not several else None

    def _perturbed(self, mixing: Mixing, batch: Batch, kept: Tensor | None) -> Mixing:
        """The mixing weights of the weights' step."""
        perturbation, loss = self.method.perturbation, partial(self._loss_under, batch, kept=kept)
        if perturbation.attacks:
            with frozen(self.weights), eval_mode(self.supernet):
                found = perturbation(mixing, loss, self.progress, self.generator)
        else:
            found = perturbation(mixing, loss, self.progress, self.generator)
        return mixing if found is mixing else restricted(self.supernet, found)

    def _loss_of(
        self, batch: Batch, mixing: Mixing, kept: Tensor | None = None, chosen: Chosen | None = None
    ) -> tuple[Tensor, Tensor]:
        """Loss and outputs of this rank's share of a batch under these mixing weights."""
        with autocast(self.config, self.setting.device):
            outputs = self._outputs(batch[0], mixing, kept=kept, chosen=chosen)
            return self.task.loss(outputs, batch[1]), outputs

    def _loss_under(self, batch: Batch, mixing: Mixing, kept: Tensor | None = None) -> Tensor:
        """The loss of a training batch under other mixing weights; that of the whole batch, and its gradient, on
        several ranks."""
        ranks, num_images = self.setting.ranks, len(batch[1])
        mixing = restricted(self.supernet, mixing)
        if ranks.size > 1:
            parts = ranks.share_gradients((mixing.normal, mixing.reduce), num_images)
            mixing = mixing._replace(normal=parts[0], reduce=parts[1])
        loss, _ = self._loss_of(batch, self._decided(mixing), kept)
        if ranks.size > 1:
            loss = loss + (ranks.means(num_images, loss=loss)["loss"] - loss.detach())
        return loss

    def _decided(self, mixing: Mixing) -> Mixing:
        """The mixing weights under what a selection phase has decided so far."""
        return mixing if self.phase is None else self.phase.mixing(mixing)

    def _growth(self) -> Tensor:
        """The factor of schedules that grow by epoch: 0 in the first epoch, 1 in the last."""
        _, epochs = self.timeline.schedule(self.timeline.spans[self.stage_number].first)
        return (self.epochs_done * (epochs / max(1, epochs - 1))).clamp_max(1.0)

    def _kept(self, draw: Draw, batch: Batch) -> Tensor | None:
        """The factors of drop path for this rank's share of a batch; None without drop path."""
        if self.method.drop_path is None or draw.paths is None:
            return None
        start = draw.paths.shape[-1] * self.setting.ranks.rank // self.setting.ranks.size
        return self.method.drop_path.kept(draw.paths[..., start : start + len(batch[0])], self._growth())

    def _outputs(
        self,
        images: Tensor,
        mixing: Mixing,
        supernet: Supernet | None = None,
        *,
        kept: Tensor | None = None,
        chosen: Chosen | None = None,
    ) -> Any:
        """The outputs of the supernet, or of a copy, with the auxiliary skip of the current epoch and drop path."""
        skip = self.method.auxiliary_skip(self.epochs_done)
        return (self.supernet if supernet is None else supernet)(images, mixing, chosen, skip=skip, kept=kept)

    def _draw(self, num_images: int | None = None) -> Draw:
        """The random numbers of an objective on batches of up to `num_images`, by default those of --batch-size."""
        draw = draw_noise(self.supernet, self.method.relaxation, self.progress, self.generator)
        if self.method.drop_path is None:
            return draw
        cells, edges = len(self.supernet.cells), len(self.supernet.alpha_normal)
        size = self.config.batch_size if num_images is None else num_images
        return draw._replace(paths=self.method.drop_path.draw(cells, edges, size, self.generator))

    def _expected(self, supernet: Supernet) -> Mixing:
        return self._decided(expected_mixing(supernet, self.method.relaxation))

    def expected_loss(self, batch: Batch) -> Tensor:
        """The loss of a batch under the expected mixing weights, which draws no random numbers."""
        return self._loss_of(batch, self._expected(self.supernet))[0]

    def attempt(self, batch_size: int, *, recompute: bool, side: int | None = None) -> int:
        """Compute a step with `batch_size` images, on this rank alone, and discard it."""
        x, targets = trial_batch(self.train_images, self.config, self.setting, batch_size)
        batch = x[..., :side, :side], targets
        if self.captured is not None:
            self.captured.forget()  # frees the memory of the graphs
        self.weight_optimizer.zero_grad()
        draw, virtual = self._draw(batch_size), VirtualStep(learning_rate=0.0)
        objective = partial(self.objective, draw=draw)
        as_before, self.supernet.recompute = self.supernet.recompute, recompute
        try:
            with buffers_kept(self.supernet):
                self.method.hypergradient(objective, self.weights, self.alphas, batch, batch, virtual)
                with frozen(self.alphas):
                    loss = self.objective(batch, draw, perturbed=True)[0]
                    torch.autograd.grad(loss, self.weights, materialize_grads=True)
        finally:
            self.supernet.recompute = as_before
        return batch[0][:, 0].numel()

    def as_each_stage(self) -> Iterator[str]:
        """See `search_stages.as_each_stage`."""
        return as_each_stage(self)

    def after_steps(self, epoch: int) -> Iterator[Piece]:
        """The measurements of a selection phase that are due after `epoch`, and the end of a stage."""
        due = epoch + 1 - self.timeline.epochs
        if self.phase is not None and due >= 0:
            yield from run_phase(self.phase, due, self._measure, self.task.score)
        yield from stage_ends(self.timeline, epoch)

    def _measure(self, trial: Trial, batches: int | None = None) -> dict[str, float]:
        """The task's measures of the supernet under the mixing weights of a trial, on validation images.

        batches: how many of them, by default as many as the selection asks for.
        """
        assert self.phase is not None
        with torch.no_grad():
            mixing = trial.mixing(expected_mixing(self.supernet, self.method.relaxation))
        return measure(
            self.supernet,
            lambda x: self._outputs(x, mixing),
            self.trial_batches,
            trial.decision,
            batches or num_batches(self.trial_batches, self.phase.num_images),
            functools.partial(self.task.evaluator, self.setting.data.spec),
            self.setting.ranks,
        )

    def end_epoch(self, epoch: int, means: dict[str, float], run: RunDir) -> dict[str, float]:
        mixing = self.mixing()
        run.write(f"alphas/epoch_{epoch + 1:04d}.npz", npz_bytes(mixing | self._raw_alphas()))
        genotype = self.derive(run, epoch + 1)
        run.write(f"genotypes/epoch_{epoch + 1:04d}.yaml", genotype.to_yaml())
        measures = ("loss", *self.task.training_measures)
        names = [f"{part}_{measure}" for part in ("train", "validation") for measure in measures]
        row = {} if len(self.timeline.stages) == 1 else {"stage": float(self.stage_number + 1)}
        row["learning_rate"] = self.learning_rate(epoch)
        for name, term in self.regularizers.items():
            row |= term.metrics({title: torch.from_numpy(weights) for title, weights in mixing.items()})
            row[f"penalty_{name}"] = means.get(f"penalty_{name}", float("nan"))
        row |= {name: means.get(name, float("nan")) for name in names}
        if self.freezing is not None:
            row["frozen_operations"] = float(self.freezing.num_frozen())
        for title, skips in zip(("normal", "reduce"), genotype.count("skip_connect"), strict=True):
            row[f"skips_{title}"] = float(skips)
        for title in ("normal", "reduce"):
            row[f"entropy_{title}"] = float(entropy(mixing[title]).mean())
        if self.config.eigenvalue_every:
            due = (epoch + 1) % self.config.eigenvalue_every == 0 or epoch + 1 == self.num_epochs
            due = due and self.alphas_learn(epoch)
            row["eigenvalue"] = self.eigenvalue() if due else float("nan")
        if self.phase is not None:
            row["decisions"] = float(len(self.phase.decisions()))
        return row

    def early_stop(self, rows: Sequence[MetricsRow]) -> EarlyStop | None:
        return self.method.early_stopping(rows, self.stage.alpha_frozen_epochs)

    def eigenvalue(self) -> float:
        """The dominant eigenvalue of the Hessian of the validation loss in the alphas, on one fixed batch.

        Without augmentation except the crops of images in files, normalised by the statistics of the batch, as in a
        training step, under the expected mixing weights.
        """
        ranks, spec = self.setting.ranks, self.setting.data.spec
        size = min(self.config.batch_size, max(EIGENVALUE_IMAGES, 2 * ranks.size))
        fixed = Augment(crop_padding=0, flip=False)
        images, seed = self.validation_images, self.config.seed
        batch = TrainBatches(images, spec, size, fixed, seed, "eigenvalue", ranks.rank, ranks.size)[0]

        def loss(supernet: Supernet, batch: Batch) -> Tensor:
            silence(supernet)
            return self.task.loss(self._outputs(batch[0], self._expected(supernet), supernet), batch[1])

        return supernet_eigenvalue(self.supernet, loss, batch, ranks)

    def figures(self, epoch: int) -> dict[str, Any]:
        return {"mixing weights": draw_mixing_weights(self.mixing(), self.space.operations, self.config.nodes)}

    def mixing(self) -> dict[str, np.ndarray]:
        """The expected mixing weights: normal, reduce, and with edge normalisation edge_normal, edge_reduce."""
        with torch.no_grad():
            mixing = self._expected(self.supernet)
        return {name: t.double().cpu().numpy() for name, t in mixing._asdict().items() if t is not None}

    def _raw_alphas(self) -> dict[str, np.ndarray]:
        """The alphas themselves, under their names in the supernet."""
        found = alphas_of(self.supernet)._asdict()
        return {name: t.detach().cpu().numpy() for name, t in found.items() if t is not None}

    def select(self, mixing: Mapping[str, Array]) -> tuple[Cell, Cell]:
        """The (normal, reduction) cell that the method selects by expected mixing weights; UsageError if none fits."""
        if self.phase is not None:
            return self.phase.cells(mixing)
        bounds = [bound for term in self.regularizers.values() for bound in term.bounds()]
        return self.method.selection(Searched(mixing, self.space.operations, bounds, self.allowed))

    def derive(
        self,
        run: RunDir,
        epoch: int,
        measured: Mapping[str, Any] | None = None,
        mixing: Mapping[str, Array] | None = None,
        stopped: EarlyStop | None = None,
    ) -> Genotype:
        """The genotype after `epoch`, by default that of the current alphas.

        mixing: the expected mixing weights of that epoch. The provenance holds `measured` and `stopped`, if given.
        """
        return searched_genotype(
            self.select(self.mixing() if mixing is None else mixing), self.space, self.config, self.setting,
            run=run.path.name, epoch=epoch, images=(len(self.train_images), self._num_alpha_images),
            measured=measured or {}, stopped=stopped, num_epochs=self.num_epochs,
            decisions=None if self.phase is None else self.phase.decisions(),
        )  # fmt: skip

    def evaluate(self) -> dict[str, float]:
        """The task's measures of the supernet on the whole validation part, with the running statistics.

        Batches are no larger than in training: even without gradients a cell holds the outputs of all its operations
        until it is complete.
        """
        mixing = self._expected(self.supernet)
        batches = batches_to_evaluate(self.validation_images, self.config, self.setting)
        evaluator = functools.partial(self.task.evaluator, self.setting.data.spec)
        found = evaluate(self.supernet, lambda x: self._outputs(x, mixing), batches, evaluator, self.setting.ranks)
        self.share()
        return found

    def share(self) -> None:
        self.setting.share_unusual()

    def state_dict(self) -> dict[str, Any]:
        return {
            "supernet": self.supernet.state_dict(),
            "weight_optimizer": self.weight_optimizer.state_dict(),
            "alpha_optimizer": self.alpha_optimizer.state_dict(),
            "unusual_images": dict(self.setting.data.unusual),
            "epochs_done": self.epochs_done.item(),
            **({} if self.freezing is None else {"freezing": self.freezing.state_dict()}),
            **({} if self.phase is None else {"selection": self.phase.state_dict()}),
            **stage_state(self),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        load_stage(self, state)
        missing, unexpected = self.supernet.load_state_dict(state["supernet"], strict=False)
        # BatchNorm expects its counter of batches, which a supernet does not have, in whatever it loads
        unexpected = [name for name in unexpected if not name.endswith("num_batches_tracked")]
        if missing or unexpected:
            raise RunError(f"checkpoint of another supernet: {missing or unexpected}")
        load_optimizer(self.weight_optimizer, state["weight_optimizer"])
        load_optimizer(self.alpha_optimizer, state["alpha_optimizer"])
        self.setting.data.unusual.update(state.get("unusual_images", {}))
        if self.freezing is not None:
            self.freezing.load_state_dict(state["freezing"])
        self.epochs_done.fill_(state.get("epochs_done", 0.0))  # the evaluation may follow without another step
        if self.phase is not None:
            self.phase.load_state_dict(state["selection"])

    def match_files(self, run: RunDir, epoch: int) -> None:
        """Nothing to do: a search has no files of its own that later epochs overwrite."""

    def forward_anew(self, x: Tensor) -> Tensor:
        """Outputs of images (N, C, H, W) from a new supernet like this one, in train mode."""
        supernet = self.build(self.stage_number, self.allowed)
        return supernet(x, self._expected(supernet))

    def facts(self) -> list[str]:
        """Lines of a dry run about the supernet."""
        spec = self.setting.data.spec
        alphas = sum(a.numel() for a in self.alphas)
        with torch.device("meta"):
            supernet = self.build(self.stage_number, self.allowed).eval()
            image = torch.empty(1, spec.in_channels, spec.image_size, spec.image_size)
            with torch.no_grad():
                mixing = self._expected(supernet)
            macs = count_macs(supernet, image, mixing)
        return [
            f"search space {self.space.name}: {len(self.space.operations)} operations "
            f"({', '.join(self.space.operations)})",
            f"supernet: {count_params(self.supernet) - alphas:,} weights, {alphas:,} alphas, "
            f"{human(macs)} MACs an image (C={self.config.channels}, {self.stage.cells} cells)",
            *(() if self.supernet.choices is None else (EDGE_BY_EDGE,)),
            *unfused_facts(self),
            *(["drop path: PyTorch computes the cells, without kernels of our own"] if self.method.drop_path else []),
            *self._phase_facts(),
            f"images: {len(self.train_images):,} for the weights, {self._num_alpha_images:,} for the alphas",
        ]

    def _phase_facts(self) -> list[str]:
        """A line of a dry run about a selection phase: what it does, and the time of its measurements."""
        if self.phase is None:
            return []
        batches = num_batches(self.trial_batches, self.phase.num_images)
        seconds = 0.0
        if (trial := self.phase.next_trial(self.phase.epochs)) is not None:
            self._measure(trial, 1)  # the first forward pass is slower than the others
            begun = time.perf_counter()
            self._measure(trial, 1)
            seconds = (time.perf_counter() - begun) * batches
        images = min(batches * self.config.batch_size, len(self.validation_images))
        return [
            f"selection {self.config.selection}: {self.phase.facts()} on {images:,} images each, about "
            f"{columns.clock(seconds * self.phase.num_trials())} (h:mm:ss) beside its epochs"
        ]

    def build(self, number: int, allowed: Allowed | None) -> Supernet:
        """A new plain supernet of a stage."""
        config, stage, spec = self.config, self.method.stages[number], self.setting.data.spec
        supernet = Supernet(
            self.space.operations,
            network=config.network,
            channels=config.channels,
            cells=stage.cells,
            num_classes=self.task.num_outputs(spec),
            num_nodes=config.nodes,
            stem_multiplier=config.stem_multiplier,
            in_channels=spec.in_channels,
            partial_channels=stage.partial_channels,
            edge_normalization=config.edge_normalization,
            auxiliary_skip=self.method.auxiliary_skip.needed,
            initial_alphas=self._initial_alphas,
            allowed=allowed,
        )
        if stage.skip_dropout:
            add_skip_dropout(supernet, self.skip_dropout)
        return supernet

    def _initial_alphas(self, num_edges: int, num_operations: int) -> Tensor:
        """The alphas to start from: those of the relaxation unless the options set their mean or deviation."""
        mean, deviation = self.config.alpha_mean, self.config.alpha_deviation
        if mean is None and deviation is None:
            return self.method.relaxation.initial(num_edges, num_operations)
        deviation = ALPHA_INIT_DEVIATION if deviation is None else deviation
        return (mean or 0.0) + deviation * torch.randn(num_edges, num_operations)

    def _hypergradient(self, train_batch: Batch, validation_batch: Batch) -> Hypergradient:
        buffers = [self.weight_optimizer.state[w].get("momentum_buffer") for w in self.weights]
        rate = self.weight_optimizer.param_groups[0]["lr"]  # on a GPU a tensor, which a captured step reads anew
        virtual = VirtualStep(rate, self.config.momentum, self.config.weight_decay, buffers)
        return self.method.hypergradient(
            partial(self.objective, draw=self._draw()),  # one draw: the passes of a finite difference see one noise
            self.weights,
            self.alphas,
            train_batch,
            validation_batch,
            virtual,
            mean=lambda gradients, batch: self.setting.ranks.mean(gradients, len(batch[1])),
        )

    def _regularize(self, found: Hypergradient) -> dict[str, Tensor]:
        """Add the gradients of the regularizers to those of the alphas; returns the regularizers by column."""
        values = {}
        for name, term in self.regularizers.items():
            value = term(masked_alphas_of(self.supernet), self._expected(self.supernet), self.progress)
            gradients = torch.autograd.grad(value, self.alphas, materialize_grads=True)
            for gradient, more in zip(found.gradients, gradients, strict=True):
                gradient += more
            values[f"penalty_{name}"] = value.detach()
        return values

    def _alpha_step(self, found: Hypergradient) -> None:
        for alpha, gradient in zip(self.alphas, found.gradients, strict=True):
            alpha.grad = gradient
        if math.isfinite(self.config.alpha_gradient_clip):
            torch.nn.utils.clip_grad_norm_(self.alphas, self.config.alpha_gradient_clip)
        self.alpha_optimizer.step()
        self.alpha_optimizer.zero_grad(set_to_none=True)


def problem_of(config: SearchConfig, space: Space, allowed: Allowed | None) -> Problem:
    """The search as its regularizers see it.

    Parameters and MACs are those of networks of the papers' size (CIFAR: C=36, 20 cells), latencies those of the size
    in --latency-table.
    """

    @cache
    def tables() -> dict[str, Costs]:
        costs = choice_costs(space.operations, config.network, num_nodes=config.nodes)
        return dict(zip(("params", "macs"), costs, strict=True))

    def costs(unit: str) -> Costs:
        return latency_table_of(config).costs(space.operations) if unit == "latency" else tables()[unit]

    return Problem(space.operations, config.nodes, costs, allowed)


def latency_table_of(config: SearchConfig) -> LatencyTable:
    """The table of --latency-table; UsageError if it is of another shape than the search's networks."""
    assert config.latency_table is not None, "method_of refuses a latency without a table"
    table = read_latency_table(config.latency_table)
    table.refuse_other(config.nodes, config.network)
    return table


@lenient_output()
def run_search(
    config: SearchConfig,
    *,
    resume: Path | None = None,
    dry: bool = False,
    callbacks: Sequence[Any] = (),
    stop: threading.Event | None = None,
    started: float | None = None,
) -> Path | None:
    """Run a search in a new run folder, or continue the one in `resume`; returns the folder, None for a dry run.

    callbacks, stop, started: see `run_job`. Raises UsageError if the options cannot be met, RunError if the run fails,
    and its subclass Stopped after a signal or at the end of the time budget.
    """
    started = time.monotonic() if started is None else started  # before data are loaded and kernels compiled
    run, earlier = open_run(resume, "search")
    if run is not None and already_finished(run, "genotype.yaml", dry=dry):
        return run.path
    if not dry:
        refuse_run_dir(config, resume)
    if run is not None and config.split is not None:
        config = replace(config, split=run.path / "split.json")
    if run is not None and config.latency_table is not None:
        config = replace(config, latency_table=run.path / "latency_table.yaml")
    setting = prepare(config, earlier)

    def keep_files(run: RunDir) -> None:
        if config.split is not None:
            run.write("split.json", config.split.read_bytes())
        if config.latency_table is not None:
            run.write("latency_table.yaml", config.latency_table.read_bytes())

    if (strategy := config.baseline()) is not None:
        return run_baseline(
            strategy, config, setting, run, dry=dry,
            prepare_run=keep_files, callbacks=callbacks, stop=stop, started=started,
        )  # fmt: skip
    job = SearchJob(config, setting)
    title = job.space.name
    if config.latency_table is not None and setting.ranks.leads:
        threads = torch.get_num_threads() if setting.device.type == "cpu" else None
        if warning := latency_table_of(config).foreign(device_name(setting.device), threads):
            print(f"note: {warning}")
    for batches in (job.train, job.validation):
        refuse_single_images(batches, job.forward_anew)
    job.select(job.mixing())  # bounds that no genotype meets are refused before the first step
    if dry:
        writes = (
            "genotype.yaml, config.yaml, metrics.csv, events.out.tfevents.*, checkpoints/, genotypes/, alphas/, "
            "report.md"
        )
        first = job.stage.alpha_frozen_epochs
        dry_run(
            job, config, setting, run, title=title, first_epoch=first, facts=job.facts, writes=writes,
            epochs=partial(epoch_times, job),
        )  # fmt: skip
        return None

    def finish(run: RunDir, config: SearchConfig, loop: Loop) -> None:
        found = job.evaluate()  # on all ranks
        if run.writes:
            _write_results(job, run, loop, found)

    sizes = {"train_images": len(job.train_images), "validation_images": len(job.validation_images)}
    return run_job(
        job, config, setting, run, title=title, sizes=sizes,
        prepare_run=keep_files, finish=finish,
        callbacks=callbacks, stop=stop, started=started,
    )  # fmt: skip


def _write_results(job: SearchJob, run: RunDir, loop: Loop, found: Mapping[str, float]) -> None:
    """Derive and write the final genotype and the report, and print a summary."""
    config = job.config
    measured: dict[str, Any] = {**job.task.searched(found), "search_seconds": round(loop.seconds, 1)}
    stopped = job.early_stop(loop.rows)
    chosen_epoch = job.num_epochs if stopped is None else stopped.chosen_epoch
    measured["alpha_steps"] = job.alpha_steps(chosen_epoch)
    begun = job.timeline.schedule(chosen_epoch - 1).first  # mixing weights of earlier alphas say nothing about these
    states = [state for state in read_search_epochs(run.path) if begun < state.epoch <= chosen_epoch]
    if job.phase is None and (doubted := doubt(states, job.alpha_steps(chosen_epoch) - job.alpha_steps(begun))):
        measured["doubt"] = doubted
        run.log(doubted)
        announce(f"note: {doubted}")
    if stopped is None:
        genotype = job.derive(run, job.num_epochs, measured)
    else:
        measured["after_epoch"] = stopped.after_epoch
        chosen = read_search_epoch(run.path, stopped.chosen_epoch)
        genotype = job.derive(run, stopped.chosen_epoch, measured, chosen.weights, stopped)
        text = f"stopped after epoch {stopped.after_epoch} of {config.epochs}: {stopped.reason}"
        run.log(text)
        print(f"{text}; the genotype is that of epoch {stopped.chosen_epoch}")
    report = run.path / "report.md"
    run.remove(report.name)  # one of the unfinished run; the run counts as finished once both files are there
    write_unusual(run, job.setting.data.unusual)
    run.write("genotype.yaml", genotype.to_yaml())
    write_report(run.path)
    shape = config.network
    cost = derived_cost(genotype, shape)
    title, score = job.task.score.replace("_", " "), columns.cell(job.task.score, found[job.task.score])
    part = "validation" if job.holds_out else "training"
    print(f"supernet {title} on the {len(job.validation_images)} {part} images: {score}")
    announce(
        f"derived network at C={CHANNELS[shape]}, {CELLS[shape]} cells: {human(cost.params)} parameters, "
        f"{human(cost.macs)} MACs ({shape} shape)"
    )
    if config.latency_table is not None:
        table = latency_table_of(config)
        predicted = duration_text(table.predict(genotype))
        print(f"predicted latency: {predicted}, {table.shape}, on {table.place}")
    announce(
        f"genotype: {run.path / 'genotype.yaml'}",
        f"report: {report}",
        f"retrain it: {retrain_command(run.path / 'genotype.yaml', config.as_dict())}",
    )
