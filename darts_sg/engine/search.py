"""The search: alphas and weights learn in turns, each on its own half of the training images (DARTS, algorithm 1)."""

import copy
import functools
import io
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from darts_sg.analysis.cost import CELLS, CHANNELS, choice_costs, count_macs, count_params, derived_cost, human
from darts_sg.analysis.curves import draw_mixing_weights
from darts_sg.analysis.report import write_report
from darts_sg.analysis.run_folder import read_search_epoch
from darts_sg.config import PENALTIES, SearchConfig
from darts_sg.data import Augment, ImageFiles, Images, TrainBatches, read_split
from darts_sg.derive import Bound, derive_bounded, entropy, frontier, strengths
from darts_sg.engine.graphs import Captured, compile_step
from darts_sg.engine.kernels import use_kernels
from darts_sg.engine.loop import Loop, StepResult
from darts_sg.engine.run_dir import RunDir
from darts_sg.engine.setup import (
    Setting,
    autocast,
    batches_to_evaluate,
    captures,
    compile_parts,
    dry_run,
    open_run,
    prepare,
    refuse_single_images,
    run_job,
    split_training_set,
    to_device,
    train_batches,
    trial_batch,
)
from darts_sg.engine.steps import (
    apply_weight_step,
    cosine_learning_rate,
    evaluate,
    load_optimizer,
    set_learning_rate,
    weight_optimizer,
)
from darts_sg.errors import RunError, UsageError
from darts_sg.genotype import Genotype
from darts_sg.methods.early_stopping import EarlyStop, Row, stop_by_eigenvalue, stop_by_skips
from darts_sg.methods.hessian import Vector, dominant_eigenvalue
from darts_sg.methods.hypergradient import HYPERGRADIENTS, Hypergradient, VirtualStep, frozen
from darts_sg.methods.penalties import Penalty
from darts_sg.methods.relaxation import RELAXATIONS
from darts_sg.networks.supernet import Mixing, Supernet
from darts_sg.spaces import parse_space
from darts_sg.tasks import columns, task_of

ALPHA_BETAS = (0.5, 0.999)
EIGENVALUE_IMAGES = 64  # one batch, as in the code of RobustDARTS


class SearchJob:
    """The supernet with its two optimizers and its two streams of batches."""

    name = "search"

    def __init__(self, config: SearchConfig, setting: Setting) -> None:
        self.config, self.setting = config, setting
        self.space = parse_space(config.space)
        self.task = task_of(config.as_dict())
        self.train_images, self.validation_images = (part.to(setting.device) for part in search_parts(config, setting))
        self.train = train_batches(self.train_images, config, setting, "weights")
        self.validation = train_batches(self.validation_images, config, setting, "alphas")
        self.num_epochs, self.steps_per_epoch = config.epochs, len(self.train)
        self.supernet = to_device(self._build(), setting.device)
        self.relaxation = RELAXATIONS[config.relaxation]
        setting.environment["kernels"] = use_kernels(self.supernet, config, setting, self._prepare_gpu)
        self.supernet.recompute = config.recompute
        if config.compile:
            compile_parts(self.supernet.edge_batches(), setting.device)
        self.weights, self.alphas = self.supernet.weights(), self.supernet.alphas()
        self.penalties = penalties_of(config, self.space.operations)
        self.hypergradient = HYPERGRADIENTS[config.hypergradient]
        if config.eigenvalue_every and setting.device.type == "mps":
            raise UsageError("--eigenvalue-every needs float64, which mps does not have; leave it out, or --device cpu")
        self.weight_optimizer = weight_optimizer(self.weights, config, setting.device)
        on_gpu = setting.device.type == "cuda"
        self.alpha_optimizer = torch.optim.Adam(
            self.alphas, config.alpha_learning_rate, betas=ALPHA_BETAS, weight_decay=config.alpha_weight_decay,
            fused=on_gpu or None, capturable=on_gpu,
        )  # fmt: skip
        self.captured = Captured(self._update) if captures(config, setting) else None

    def _prepare_gpu(self) -> None:
        config, setting = self.config, self.setting
        if setting.ranks.leads:
            print("preparing the Triton kernels for this GPU (the first time some minutes, later seconds)")
        images = trial_batch(self.train_images, config, setting, 2 * setting.ranks.size)[0]
        compile_step(self.supernet, self.relaxation, images, autocast(config, setting.device))

    def learning_rate(self, epoch: int) -> float:
        return cosine_learning_rate(self.config, epoch)

    def step(self, epoch: int, step: int) -> StepResult:
        position = epoch * self.steps_per_epoch + step
        self.rate = self.learning_rate(epoch)
        set_learning_rate(self.weight_optimizer, self.rate)
        tensors: tuple[Tensor, ...] = self.train[position]
        if epoch >= self.config.alpha_frozen_epochs:
            tensors += self.validation[position]
        if self.captured is None:
            means = self._update(*tensors)
        else:  # the unrolled hypergradient has the learning rate in its launches
            means = self.captured(None if self.config.hypergradient == "first_order" else self.rate, *tensors)
        return StepResult(self.train.num_images(position), means)

    def _update(self, *tensors: Tensor) -> dict[str, Tensor]:
        """The step of the weights on a batch of training images and labels, before it, with a batch of validation
        images and labels, that of the alphas; returns means over the images."""
        train_batch, validation_batch = (tensors[0], tensors[1]), tensors[2:]
        num_images, ranks = len(train_batch[1]), self.setting.ranks
        means: dict[str, Tensor] = {}
        if len(validation_batch) == 2:
            found = self._hypergradient(train_batch, validation_batch)
            means |= self._penalize(found)
            means |= self._measured("validation", found.loss, found.logits, validation_batch[1])
            self._alpha_step(found)
        with frozen(self.alphas):
            loss, logits = self.objective(train_batch)
            apply_weight_step(
                self.weight_optimizer,
                self.weights,
                loss,
                self.config.gradient_clip,
                ranks,
                num_images,
            )
        ranks.average_statistics(self.supernet, num_images)
        return means | self._measured("train", loss, logits, train_batch[1])

    def _measured(self, part: str, loss: Tensor, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Loss and metrics of a batch by column, as means over the ranks."""
        found = {"loss": loss} | self.task.training_metrics(outputs, targets)
        means = {f"{part}_{name}": value for name, value in found.items()}
        return self.setting.ranks.means(self.task.num_terms(targets), **means)

    def objective(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Loss and outputs of a batch under the current weights and alphas."""
        with autocast(self.config, self.setting.device):
            logits = self.supernet(batch[0], self.relaxation(self.supernet))
            return self.task.loss(logits, batch[1]), logits

    def attempt(self, batch_size: int, *, recompute: bool) -> None:
        """Compute what a step with `batch_size` images computes, of this rank alone, and throw it away."""
        self.supernet.recompute = recompute
        batch = trial_batch(self.train_images, self.config, self.setting, batch_size)
        self.weight_optimizer.zero_grad()
        virtual = VirtualStep(learning_rate=0.0)
        self.hypergradient(self.objective, self.weights, self.alphas, batch, batch, virtual)
        with frozen(self.alphas):
            torch.autograd.grad(self.objective(batch)[0], self.weights)

    def end_epoch(self, epoch: int, means: dict[str, float], run: RunDir) -> dict[str, float]:
        mixing = self.mixing()
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, **mixing)
        run.write(f"alphas/epoch_{epoch + 1:04d}.npz", buffer.getvalue())
        genotype = self.derive(run, epoch + 1)
        run.write(f"genotypes/epoch_{epoch + 1:04d}.yaml", genotype.to_yaml())
        measures = ("loss", *self.task.training_measures)
        names = [f"{part}_{measure}" for part in ("train", "validation") for measure in measures]
        row = {"learning_rate": self.learning_rate(epoch)}
        for penalty in self.penalties:
            cells = (torch.from_numpy(mixing[title]) for title in ("normal", "reduce"))
            row[f"expected_{penalty.name}"] = penalty.expected(*cells).item()
            row[f"penalty_{penalty.name}"] = means.get(f"penalty_{penalty.name}", float("nan"))
        row |= {name: means.get(name, float("nan")) for name in names}
        for title, skips in zip(("normal", "reduce"), genotype.count("skip_connect"), strict=True):
            row[f"skips_{title}"] = float(skips)
        for title in ("normal", "reduce"):
            row[f"entropy_{title}"] = float(entropy(mixing[title]).mean())
        if self.config.eigenvalue_every:
            due = (epoch + 1) % self.config.eigenvalue_every == 0 or epoch + 1 == self.num_epochs
            due = due and epoch >= self.config.alpha_frozen_epochs
            row["eigenvalue"] = self.eigenvalue() if due else float("nan")
        return row

    def early_stop(self, rows: Sequence[Row]) -> EarlyStop | None:
        """By --stop-eigenvalue or --stop-skips, whichever finds a reason."""
        config, found = self.config, None
        if config.stop_eigenvalue is not None:
            found = stop_by_eigenvalue(rows, config.stop_eigenvalue, config.alpha_frozen_epochs)
        if config.stop_skips is not None:
            found = found or stop_by_skips(rows, config.stop_skips, config.alpha_frozen_epochs)
        return found

    def eigenvalue(self) -> float:
        """The dominant eigenvalue of the Hessian of the validation loss in the alphas, on one fixed batch.

        Without augmentation but the crops of images in files, normalised by the statistics of the batch, as in a
        training step. A copy of the supernet computes it, in float64: statistics, gradients and random numbers of the
        run stay as they are. The first rank says at which alphas all take the gradient of their share.
        """
        ranks, spec = self.setting.ranks, self.setting.data.spec
        size = min(self.config.batch_size, max(EIGENVALUE_IMAGES, 2 * ranks.size))
        fixed = Augment(crop_padding=0, flip=False)
        images, seed = self.validation_images, self.config.seed
        x, y = TrainBatches(images, spec, size, fixed, seed, "eigenvalue", ranks.rank, ranks.size)[0]
        supernet, x = copy.deepcopy(self.supernet).double(), x.double()
        alphas = supernet.alphas()
        for weight in supernet.weights():
            weight.requires_grad_(False)

        def gradient(point: Vector) -> Vector:
            torch.nn.utils.vector_to_parameters(torch.from_numpy(point).to(x.device), alphas)
            loss = self.task.loss(supernet(x, self.relaxation(supernet)), y)
            found = ranks.mean(torch.autograd.grad(loss, alphas), len(y))
            return torch.cat([g.flatten() for g in found]).cpu().numpy()

        def for_all(point: Vector) -> Vector:
            return gradient(ranks.from_first(lambda: point))

        value = float("nan")
        if ranks.leads:
            value = dominant_eigenvalue(for_all, torch.cat([a.detach().flatten() for a in alphas]).cpu().numpy())
            ranks.from_first(lambda: None)
        else:
            nothing: Vector | None = None
            while (point := ranks.from_first(lambda: nothing)) is not None:
                gradient(point)
        return ranks.from_first(lambda: value)

    def log_tensorboard(self, writer: Any, epoch: int) -> None:
        figure = draw_mixing_weights(self.mixing(), self.space.operations, self.config.nodes)
        writer.add_figure("mixing weights", figure, epoch, close=False)

    def mixing(self) -> dict[str, np.ndarray]:
        """The mixing weights by name: normal, reduce, and with edge normalisation edge_normal, edge_reduce."""
        with torch.no_grad():
            mixing: Mixing = self.relaxation(self.supernet)
        return {name: t.double().cpu().numpy() for name, t in mixing._asdict().items() if t is not None}

    def derive(
        self,
        run: RunDir,
        epoch: int,
        measured: Mapping[str, Any] | None = None,
        mixing: Mapping[str, np.ndarray] | None = None,
        stopped: EarlyStop | None = None,
    ) -> Genotype:
        """The genotype of the mixing weights after `epoch`, by default those of the current alphas.

        With its provenance, `measured` and whether the search has `stopped` included.
        """
        bounds = [Bound(p.name, p.costs, p.target) for p in self.penalties if p.target is not None]
        weights = strengths(self.mixing() if mixing is None else mixing)
        normal, reduce = derive_bounded(*weights, self.space.operations, bounds)
        config = self.config
        options = {k: v for k, v in config.as_dict().items() if k not in {"run_dir", "data", "time_budget", "threads"}}
        provenance = {
            "kind": "searched",
            "run": run.path.name,
            "command": f"python search.py --config {run.path.name}/config.yaml",
            "epoch": f"{epoch} of {config.epochs}",
            **({} if stopped is None else {"stopped_early": stopped._asdict()}),
            "data": data_line(self.setting, config.data_note),
            "data_fingerprint": self.setting.data.fingerprint(),
            "train_images": len(self.train_images),
            "validation_images": len(self.validation_images),
            "seed": config.seed,
            "date": datetime.now().astimezone().date().isoformat(),
            "code": self.setting.code(),
            "measured": dict(measured or {}),
            "options": options,
        }
        name = "".join(c if c.isalnum() or c in "_.+-" else "_" for c in f"{self.space.name}_seed{config.seed}")
        return Genotype(name, self.space.name, self.space.operations, normal, reduce, MappingProxyType(provenance))

    def evaluate(self) -> dict[str, float]:
        """The task's measures of the supernet on the whole validation part, with the running statistics.

        In batches no larger than those of training: even without gradients a cell keeps what all its operations give
        until it is complete.
        """
        mixing = self.relaxation(self.supernet)
        batches = batches_to_evaluate(self.validation_images, self.config, self.setting)
        evaluator = functools.partial(self.task.evaluator, self.setting.data.spec)
        found = evaluate(self.supernet, lambda x: self.supernet(x, mixing), batches, evaluator, self.setting.ranks)
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
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        missing, unexpected = self.supernet.load_state_dict(state["supernet"], strict=False)
        # BatchNorm expects its counter of batches, which a supernet does not have, in whatever it loads
        unexpected = [name for name in unexpected if not name.endswith("num_batches_tracked")]
        if missing or unexpected:
            raise RunError(f"checkpoint of another supernet: {missing or unexpected}")
        load_optimizer(self.weight_optimizer, state["weight_optimizer"])
        load_optimizer(self.alpha_optimizer, state["alpha_optimizer"])
        self.setting.data.unusual.update(state.get("unusual_images", {}))

    def forward_anew(self, x: Tensor) -> Tensor:
        """Logits of images (N, C, H, W) from a new supernet like this one, in train mode."""
        supernet = self._build()
        return supernet(x, self.relaxation(supernet))

    def facts(self) -> list[str]:
        """What a dry run says of the supernet."""
        spec = self.setting.data.spec
        alphas = sum(a.numel() for a in self.alphas)
        with torch.device("meta"):
            supernet = self._build().eval()
            image = torch.empty(1, spec.in_channels, spec.image_size, spec.image_size)
            with torch.no_grad():
                mixing = self.relaxation(supernet)
            macs = count_macs(supernet, image, mixing)
        return [
            f"search space {self.space.name}: {len(self.space.operations)} operations "
            f"({', '.join(self.space.operations)})",
            f"supernet: {count_params(self.supernet) - alphas:,} weights, {alphas:,} alphas, "
            f"{human(macs)} MACs an image (C={self.config.channels}, {self.config.cells} cells)",
            f"images: {len(self.train_images):,} for the weights, {len(self.validation_images):,} for the alphas",
        ]

    def _build(self) -> Supernet:
        config, spec = self.config, self.setting.data.spec
        return Supernet(
            self.space.operations,
            network=config.network,
            channels=config.channels,
            cells=config.cells,
            num_classes=self.task.num_outputs(spec),
            num_nodes=config.nodes,
            stem_multiplier=config.stem_multiplier,
            in_channels=spec.in_channels,
            partial_channels=config.partial_channels,
            edge_normalization=config.edge_normalization,
        )

    def _hypergradient(
        self, train_batch: tuple[Tensor, Tensor], validation_batch: tuple[Tensor, Tensor]
    ) -> Hypergradient:
        buffers = [self.weight_optimizer.state[w].get("momentum_buffer") for w in self.weights]
        virtual = VirtualStep(self.rate, self.config.momentum, self.config.weight_decay, buffers)
        return self.hypergradient(
            self.objective,
            self.weights,
            self.alphas,
            train_batch,
            validation_batch,
            virtual,
            mean=lambda gradients, batch: self.setting.ranks.mean(gradients, len(batch[1])),
        )

    def _penalize(self, found: Hypergradient) -> dict[str, Tensor]:
        """Add the gradients of the penalties to those of the alphas; returns the penalties by column."""
        values = {}
        for penalty in self.penalties:
            mixing: Mixing = self.relaxation(self.supernet)
            value = penalty(mixing.normal, mixing.reduce)
            gradients = torch.autograd.grad(value, self.alphas, materialize_grads=True)
            for gradient, more in zip(found.gradients, gradients, strict=True):
                gradient += more
            values[f"penalty_{penalty.name}"] = value.detach()
        return values

    def _alpha_step(self, found: Hypergradient) -> None:
        for alpha, gradient in zip(self.alphas, found.gradients, strict=True):
            alpha.grad = gradient
        self.alpha_optimizer.step()
        self.alpha_optimizer.zero_grad(set_to_none=True)


def penalties_of(config: SearchConfig, operations: tuple[str, ...]) -> list[Penalty]:
    """The penalties that a search asks for, on networks of the papers' size for its shape (CIFAR: C=36, 20 cells).

    Raises UsageError if no network of the space is as small as a target.
    """
    asked = config.penalties()
    if not asked:
        return []
    costs = dict(zip(PENALTIES, choice_costs(operations, config.network, num_nodes=config.nodes), strict=True))
    found = []
    for name, (weight, target) in asked.items():
        penalty = Penalty(name, weight, operations, costs[name], target)
        if target is not None:
            even = np.ones(costs[name].normal.shape)
            smallest = frontier(even, even, operations, costs[name])[0].cost
            if smallest > target:
                raise UsageError(f"--target-{name} {target:,}: the smallest network of this space has {smallest:,}")
        found.append(penalty)
    return found


def search_parts(config: SearchConfig, setting: Setting) -> list[Images]:
    """The training images for the weights and for the alphas. UsageError if --split does not list two such parts."""
    train = setting.data.train
    if config.split is None:
        return split_training_set(setting.data, split_sizes(config, len(train)), config)
    if not isinstance(train, ImageFiles):
        raise UsageError(f"--split {config.split} is for --dataset imagenet, not {config.dataset}")
    parts = read_split(config.split, train)
    if len(parts) != 2:
        raise UsageError(
            f"--split {config.split} lists {len(parts)} parts; a search needs two, as --fraction 0.1 0.025"
        )
    return [train.select(indices) for indices in parts]


def split_sizes(config: SearchConfig, total: int) -> tuple[int, int]:
    """Images for the weights and for the alphas: halves of the training set unless the options say otherwise."""
    train, validation = config.train_images, config.validation_images
    if train is None:
        train = total // 2 if validation is None else max(1, total - validation)
    if validation is None:
        validation = min(train, max(1, total - train))
    return train, validation


def data_line(setting: Setting, note: str) -> str:
    """The data set with what a reader of figures must know of it."""
    return "; ".join(part for part in (setting.data.spec.name, note, setting.data.remark) if part)


def run_search(config: SearchConfig, *, resume: Path | None = None, dry: bool = False) -> Path | None:
    """Search as `config` says, in a new run folder or on in `resume`; returns the folder, None for a dry run.

    Raises UsageError for what cannot be done as asked, RunError (Stopped when told to stop) for a run that ends early.
    """
    run, earlier = open_run(resume, "search")
    if run is not None and (run.path / "genotype.yaml").is_file():
        print(f"{run.path} is finished: {run.path / 'genotype.yaml'}, {run.path / 'report.md'}")
        return run.path
    if run is not None and config.split is not None:
        config = replace(config, split=run.path / "split.json")
    setting = prepare(config, earlier)
    job = SearchJob(config, setting)
    title = job.space.name
    for batches in (job.train, job.validation):
        refuse_single_images(batches, job.forward_anew)
    if dry:
        writes = "genotype.yaml, config.yaml, metrics.csv, tensorboard/, checkpoints/, genotypes/, alphas/, report.md"
        first = config.alpha_frozen_epochs
        dry_run(job, config, setting, run, title=title, first_epoch=first, facts=job.facts(), writes=writes)
        return None

    def keep_split(run: RunDir) -> None:
        if config.split is not None:
            run.write("split.json", config.split.read_bytes())

    sizes = {"train_images": len(job.train_images), "validation_images": len(job.validation_images)}

    def finish(run: RunDir, config: SearchConfig, loop: Loop) -> None:
        found = job.evaluate()  # all ranks do
        if not run.writes:
            return
        measured = {
            **job.task.searched(found),
            "search_seconds": round(loop.seconds, 1),
        }
        stopped = job.early_stop(loop.rows)
        if stopped is None:
            genotype = job.derive(run, config.epochs, measured)
        else:
            measured["after_epoch"] = stopped.after_epoch
            chosen = read_search_epoch(run.path, stopped.chosen_epoch)
            genotype = job.derive(run, stopped.chosen_epoch, measured, chosen.weights, stopped)
            text = f"stopped after epoch {stopped.after_epoch} of {config.epochs}: {stopped.reason}"
            run.log(text)
            print(f"{text}; the genotype is that of epoch {stopped.chosen_epoch}")
        run.write("genotype.yaml", genotype.to_yaml())
        report = write_report(run.path)
        shape = config.network
        cost = derived_cost(genotype, shape)
        title, score = job.task.score.replace("_", " "), columns.cell(job.task.score, found[job.task.score])
        print(f"supernet {title} on the {sizes['validation_images']} validation images: {score}")
        print(
            f"derived network at C={CHANNELS[shape]}, {CELLS[shape]} cells: {human(cost.params)} parameters, "
            f"{human(cost.macs)} MACs ({shape} shape)"
        )
        print(f"genotype: {run.path / 'genotype.yaml'}\nreport: {report}")
        print(f"retrain it: python augment.py --genotype {run.path / 'genotype.yaml'}")

    return run_job(
        job, config, setting, run, title=title, sizes=sizes,
        prepare_run=keep_split, finish=finish, script="search.py",
    )  # fmt: skip
