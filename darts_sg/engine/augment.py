"""The training of a derived network (DARTS paper, section 3.2), or of a model.

What the network is trained for, its loss, measures and results, is the task's (`darts_sg.tasks`).
"""

import functools
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from darts_sg.config import AugmentConfig
from darts_sg.data import SPLIT_DATASETS, Images, count_unusual
from darts_sg.engine.checkpoint import checkpoints
from darts_sg.engine.distributed import without_sync_batchnorm
from darts_sg.engine.drawing import write_report
from darts_sg.engine.graphs import WARM_UP, Captured
from darts_sg.engine.kernels import use_kernels
from darts_sg.engine.loop import Loop, Piece, StepResult
from darts_sg.engine.memory import buffers_kept
from darts_sg.engine.output import announce, lenient_output
from darts_sg.engine.published import Start, read_start
from darts_sg.engine.run_dir import RunDir
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
    split_training_set,
    to_device,
    train_batches,
    trial_batch,
)
from darts_sg.engine.steps import (
    Evaluation,
    MovingAverage,
    apply_weight_step,
    counted_together,
    evaluate_all,
    load_optimizer,
    scheduled_learning_rate,
    set_learning_rate,
    weight_optimizer,
)
from darts_sg.engine.subject import subject_of, with_channels
from darts_sg.engine.weights import Metadata, read_weights, weights_bytes
from darts_sg.errors import UsageError
from darts_sg.genotype import Genotype, load_genotype
from darts_sg.invocation import evaluate_command
from darts_sg.networks.derived import DerivedNetwork
from darts_sg.networks.mobile import MobileNetwork, Model, find_model
from darts_sg.ops import OPERATIONS
from darts_sg.records import MetricsRow
from darts_sg.tasks import DEFAULT_TASK, Evaluator, task_of

EMA = "ema_"
"""Prefix of columns, entries of result.json and files that belong to the average of the weights."""


class AugmentJob:
    """The network of a genotype, or a model, with its optimizer, its training batches and its test images.

    With --ema the average of the weights is tested beside the weights. Both have a best epoch of their own: the first
    one with the highest score of the task on the held-out images, or on the test images if none are held out.
    """

    name = "augment"

    def __init__(
        self, config: AugmentConfig, trained: Genotype | Model, setting: Setting, weights: Start | None = None
    ) -> None:
        self.config, self.trained, self.setting = config, trained, setting
        self.task, spec = task_of(config.as_dict()), setting.data.spec
        held_out = config.validation_images or 0
        train_size = config.train_images or max(1, len(setting.data.train) - held_out)
        train, validation = split_training_set(setting.data, (train_size, held_out), config)
        self.train_images = train.to(setting.device)
        self.validation_images = validation.to(setting.device) if held_out else None
        self.test_images = setting.data.test.to(setting.device)
        self.train = train_batches(self.train_images, config, setting, "weights")
        self.num_epochs, self.steps_per_epoch = config.epochs, len(self.train)
        self.subject = subject_of(trained, config, spec)
        self.network = to_device(self.subject.build(), setting.device)
        # before BatchNorm is converted and kernels and average look at the network: they see its real weights
        self.started = "" if weights is None else weights.start(self.network, self.task, spec)
        self.task.prepare(self.network)
        if config.sync_batchnorm and setting.ranks.size > 1:
            if setting.device.type != "cuda":
                raise UsageError("--sync-batchnorm is for GPUs, PyTorch has it for no CPU; leave it out")
            self.network = torch.nn.SyncBatchNorm.convert_sync_batchnorm(self.network)
        self.derived = next((m for m in self.network.modules() if isinstance(m, DerivedNetwork)), None)
        """The network of cells, which may be a part of the task's network; None for a model."""
        setting.environment["kernels"] = self._use_kernels()
        self.on_gpu = setting.device.type == "cuda"
        if self.derived is not None and self.on_gpu:
            self.derived.drops_together = self._drops_together()
        self.ema = MovingAverage(self.network, config.ema) if config.ema else None
        # the networks that are tested, by the prefix of their columns
        self.tested: dict[str, torch.nn.Module] = {"": self.network}
        if self.ema is not None:
            self.tested[EMA] = self.ema.module
        if config.compile:
            compile_parts([self.network], setting.device)
        self.weights = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        self.optimizer = weight_optimizer(self.weights, config, setting.device)
        self.captured = Captured(self._update_on) if captures(config, setting) else None
        self.best: dict[str, float] = {}
        """The best epoch so far: its number, its score (`judged`) and its columns of the test. The entries of the
        averaged weights' best epoch have the prefix EMA."""
        self.details: dict[str, dict[str, Any]] = {}
        """After the last epoch, what the tests of both found beside their measures."""
        self.last_test: Evaluator | None = None
        """After the last epoch, the evaluator of the test of the weights."""

    def learning_rate(self, epoch: int) -> float:
        return scheduled_learning_rate(self.config, epoch)

    def drop_path_prob(self, epoch: int) -> float:
        """Drop path probability of `epoch` (from 0), growing linearly as in the original code: 0 in the first."""
        return (self.config.drop_path_prob or 0.0) * epoch / self.config.epochs

    @property
    def warm_up_steps(self) -> int:
        """Captured steps are replayed only after some that run launch by launch and one that is captured."""
        return 1 if self.captured is None else WARM_UP + 1

    def _drops_together(self) -> bool:
        """Whether one draw gives all masks of drop path; a resumed run draws them as it began to."""
        kept = self.setting.earlier.get("environment", {}).get("drop_path_draws", "each")
        how = "each" if self.config.compile else kept if self.setting.earlier else "together"
        self.setting.environment["drop_path_draws"] = how
        return how == "together"

    def step(self, epoch: int, step: int) -> StepResult:
        position = epoch * self.steps_per_epoch + step
        x, targets = self.train[position]
        self.setting.ranks.seed(self.config.seed, position)
        drop_path_prob = self.drop_path_prob(epoch)
        if self.derived is not None:
            self.derived.set_drop_path_prob(drop_path_prob)
        set_learning_rate(self.optimizer, self.learning_rate(epoch))
        tensors = self.task.as_tensors(targets) if self.on_gpu and not self.config.compile else None
        if tensors is None:
            means = self._update(x, targets)
        elif self.captured is None:
            means = self._update_on(x, *tensors)
        else:
            means = self.captured("drop path" if drop_path_prob > 0 else "", x, *tensors)
        if self.ema is not None:
            self.ema.update_parameters(self.network)
        return StepResult(self.train.num_images(position), means)

    def _update_on(self, x: Tensor, *targets: Tensor) -> dict[str, Tensor]:
        """`_update` with targets as tensors (`Task.as_tensors`). Must not read a value back to the CPU."""
        with counted_together(self.network):
            return self._update(x, self.task.from_tensors(targets))

    def _update(self, x: Tensor, targets: Any) -> dict[str, Tensor]:
        """Update the weights on a batch; returns means over the images of all ranks, of before the update."""
        ranks, num_terms = self.setting.ranks, self.task.num_terms(targets)
        with autocast(self.config, self.setting.device):
            outputs, auxiliary_outputs = self.network(x)
            losses = self.task.losses(outputs, targets)
            loss = next(iter(losses.values()))
            # the auxiliary head only helps to train: its loss is minimised, but not reported
            if auxiliary_outputs is not None:
                loss = loss + (self.config.auxiliary_weight or 0.0) * self.task.loss(auxiliary_outputs, targets)
        apply_weight_step(self.optimizer, self.weights, loss, self.config.gradient_clip, ranks, num_terms)
        ranks.average_statistics(self.network, len(x))
        measured = losses | self.task.training_metrics(outputs, targets)
        return ranks.means(num_terms, **{f"train_{name}": value for name, value in measured.items()})

    def attempt(self, batch_size: int, *, recompute: bool, side: int | None = None) -> int:
        """Compute the gradients of a step with `batch_size` images on this rank alone and discard them.

        Images keep their size: a task such as detection may be made for one.
        """
        x, targets = trial_batch(self.train_images, self.config, self.setting, batch_size)
        if self.captured is not None:
            self.captured.forget()  # frees the memory of the graphs
        self.optimizer.zero_grad()
        with buffers_kept(self.network):
            with without_sync_batchnorm(self.network), autocast(self.config, self.setting.device):
                losses = [self.task.loss(outputs, targets) for outputs in self.network(x) if outputs is not None]
            torch.autograd.grad(torch.stack(losses).sum(), self.weights)
        return x[:, 0].numel()

    def after_steps(self, epoch: int) -> Iterator[Piece]:
        """Nothing: the tests belong to the end of the epoch."""
        return iter(())

    def end_epoch(self, epoch: int, means: dict[str, float], run: RunDir) -> dict[str, float]:
        row = {"learning_rate": self.learning_rate(epoch)}
        if self.config.drop_path_prob is not None:
            row["drop_path_prob"] = self.drop_path_prob(epoch)
        row |= means
        if self.validation_images is not None:
            row |= self.evaluate("validation", self.validation_images)
        tested = self.measure(self.test_images, final=epoch + 1 == self.num_epochs)
        row |= self._columns("test", tested)
        for kind, evaluation in zip(self.tested, tested, strict=True):
            if self._is_best(kind, row, epoch):
                self._save_weights(run, kind, "best", row, epoch)
            if self.config.keep_every and (epoch + 1) % self.config.keep_every == 0:
                self._save_weights(run, kind, f"epoch_{epoch + 1:04d}", row, epoch)
            if epoch + 1 == self.num_epochs:
                self._save_weights(run, kind, "", row, epoch)
                self.last_test = self.last_test or evaluation.evaluator
                self.details[kind] = evaluation.evaluator.details()
                for name, content in evaluation.evaluator.files().items():
                    run.write(f"{kind}{name}", content)
                if run.writes and not kind:
                    for name, picture in self.task.pictures(self.train, self.test_images, evaluation.evaluator).items():
                        run.write(name, picture)
        return row

    def _is_best(self, kind: str, row: MetricsRow, epoch: int) -> bool:
        """Whether no earlier epoch had a score as high as that of `row`; then `epoch` becomes the best one."""
        score = self.task.score
        judged = row.get(f"{kind}validation_{score}", row[f"{kind}test_{score}"])
        if not judged > self.best.get(f"{kind}judged", float("-inf")):
            return False
        test = {name: value for name, value in row.items() if name.startswith(f"{kind}test_")}
        self.best |= {f"{kind}judged": judged, f"{kind}epoch": epoch + 1} | test
        return True

    def early_stop(self, rows: Sequence[MetricsRow]) -> None:
        """Never stops early: the schedule is made for all epochs."""

    def figures(self, epoch: int) -> dict[str, Any]:
        """Pictures of the test after the last epoch; the columns of metrics.csv say all about the others."""
        return {} if self.last_test is None else self.task.test_figures(self.last_test)

    def evaluate(self, part: str, images: Images) -> dict[str, float]:
        """The task's measures on `images` by column of metrics.csv; those of the averaged weights begin with EMA."""
        return self._columns(part, self.measure(images))

    def measure(self, images: Images, *, final: bool = False) -> list[Evaluation]:
        """Evaluate the network, and with --ema the average of its weights, on the same batches of `images`.

        final: with the evaluator of the last test, see `Task.final_evaluator`.

        Without gradients an image takes an eighth of its memory in a training step or less (DARTS_V2, C=36, CPU:
        3.9 of 33 MiB with the C++ kernels, 2.7 of 68 MiB with PyTorch's), so four times as many at once are safe.
        """
        batches = batches_to_evaluate(images, self.config, self.setting, times=4)
        outputs = {network: (lambda x, network=network: network(x)[0]) for network in self.tested.values()}
        made = self.task.final_evaluator if final else self.task.evaluator
        evaluator = functools.partial(made, self.setting.data.spec)
        found = evaluate_all(outputs, batches, evaluator, self.setting.ranks)
        self.share()
        return found

    def _columns(self, part: str, found: Sequence[Evaluation]) -> dict[str, float]:
        """The measures of a part of the data by column of metrics.csv."""
        return {
            f"{kind}{part}_{name}": value
            for kind, evaluated in zip(self.tested, found, strict=True)
            for name, value in evaluated.measures.items()
        }

    @property
    def num_tested(self) -> int:
        """Number of test images, without damaged ones, which a test leaves out."""
        return len(self.test_images) - self.test_images.num_damaged

    def share(self) -> None:
        self.setting.share_unusual()

    def state_dict(self) -> dict[str, Any]:
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            **({} if self.ema is None else {"ema": self.ema.state_dict()}),
            "best": self.best,
            **({"details": self.details} if any(self.details.values()) else {}),
            "unusual_images": dict(self.setting.data.unusual),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        load_optimizer(self.optimizer, state["optimizer"])
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])
        self.best, self.details = state["best"], state.get("details", {})
        self.setting.data.unusual.update(state.get("unusual_images", {}))

    def match_files(self, run: RunDir, epoch: int) -> None:
        """Bring the files of the best weights in line with a checkpoint that is after `epoch` whole epochs.

        The checkpoint knows which epoch was the best, but not its weights. Where their file has since been overwritten
        by that of a later epoch, they are taken from the file that --keep-every left. Without one the file is removed,
        and the best epoch is chosen among those to come.
        """
        lost = self.setting.ranks.from_first(
            lambda: [kind for kind in self.tested if self._best_lost(run, kind, epoch)]
        )
        for kind in lost:
            columns = tuple(f"{kind}{name}" for name in ("judged", "epoch", "test_"))
            self.best = {name: value for name, value in self.best.items() if not name.startswith(columns)}

    def _best_lost(self, run: RunDir, kind: str, epoch: int) -> bool:
        """Whether the best weights up to `epoch` are gone, see `match_files`; mends the file. Called on rank 0."""
        name, best = f"weights_{kind}best.safetensors", self.best.get(f"{kind}epoch")
        try:
            found = read_weights(run.path / name).metadata.epoch
        except UsageError:  # none yet, or a damaged one, which is found when it is used
            return False
        if found <= epoch:
            return False
        kept = run.path / f"weights_{kind}epoch_{int(best or 0):04d}.safetensors"
        if kept.is_file():
            run.write(name, kept.read_bytes())
            run.log(f"{name} was of epoch {found}, and is that of epoch {best} again")
            return False
        run.remove(name)
        if best is not None:
            # One epoch ahead is also what a kill between the file and the checkpoint leaves: that epoch is repeated.
            tell = run.log if found == epoch + 1 else run.warn
            tell(
                f"{name} was of epoch {found}, later than the checkpoint, and the weights of the best epoch before "
                f"({int(best)}) are gone: removed; the best epoch is chosen among those after {epoch}"
            )
        return best is not None

    def facts(self) -> list[str]:
        """The lines of a dry run about the network and its images."""
        held_out = 0 if self.validation_images is None else len(self.validation_images)
        return [
            self.subject.described,
            *filter(None, [self.started]),
            f"network: {self.subject.counts()} ({self.subject.shape})",
            f"images: {len(self.train_images):,} for training, {held_out:,} for validation, "
            f"{len(self.test_images):,} for the test",
            *filter(None, [self.averaged()]),
        ]

    def averaged(self) -> str:
        """How far back --ema averages in a run of this length, in words; empty without it."""
        decay, steps = self.config.ema, self.num_epochs * self.steps_per_epoch
        if not decay:
            return ""
        text = f"EMA of the weights: over about the last {round(1 / (1 - decay)):,} steps"
        share = decay ** (steps - 1)  # how much of the final average are the weights after the first step
        if share < 0.01:
            return text
        return f"{text}; of this run's {steps:,} the first keeps a share of {share:.0%}, so a smaller --ema would fit"

    def result(self, loop: Loop) -> dict[str, Any]:
        """The content of result.json: the task's figures first, then what they depend on."""
        cost, unusual = self.subject.cost, self.setting.data.unusual
        figures = {
            f"{kind}{name}": value
            for kind in self.tested
            for name, value in self.task.results(
                *(_measures(row, kind, "test") for row in (loop.rows[-1], self.best))
            ).items()
        }
        details = {f"{kind}{name}": value for kind, more in self.details.items() for name, value in more.items()}
        epochs = {f"{kind}best_epoch": int(self.best[f"{kind}epoch"]) for kind in self.tested}
        auxiliary = {"params_with_auxiliary": cost.params_with_auxiliary} if self.subject.has_auxiliary else {}
        return {
            **({} if self.task.name == DEFAULT_TASK else {"task": self.task.name}),
            **self.subject.names,
            **figures,
            **details,
            **epochs,
            "best_chosen_on": "test" if self.validation_images is None else "validation",
            "params": cost.params,
            **auxiliary,
            "macs": cost.macs,
            "epochs": self.config.epochs,
            "dataset": self.config.dataset,
            "data_note": self.config.data_note,
            "data_remark": self.setting.data.remark,
            "train_images": len(self.train_images),
            "test_images": self.num_tested,
            **({"unusual_images": count_unusual(unusual)} if unusual else {}),
            "seed": self.config.seed,
            **{key: value for key, value in self.setting.environment.items() if key == "finetuned_from"},
            "seconds": round(loop.seconds, 1),
            "code": self.setting.code(),
        }

    def result_lines(self, result: Mapping[str, Any]) -> list[str]:
        """The results for people, as a finished training prints them."""
        lines = []
        for kind in self.tested:
            of = " of the EMA weights" if kind else ""
            for figure in self.task.figures:
                key = f"{kind}{figure.key('test')}"
                if f"{key}_last" not in result:
                    continue
                last, best = (figure.text.format(result[f"{key}_{which}"]) for which in ("last", "best"))
                line = f"{figure.title}{of}: {last} after the last epoch, {best} at the best"
                if figure is self.task.headline:
                    epoch, chosen_on = result[f"{kind}best_epoch"], result["best_chosen_on"]
                    line += f" (epoch {epoch}, chosen on the {chosen_on} images)"
                lines.append(line)
        return lines

    def _use_kernels(self) -> str:
        """Choose the kernels that the run asks for or was started with; returns their name."""
        executed = (m for m in self.network.modules() if isinstance(m, DerivedNetwork | MobileNetwork))
        return use_kernels(next(executed), self.config, self.setting)

    @functools.cached_property
    def _fingerprint(self) -> str:
        return self.setting.data.fingerprint()

    def _save_weights(self, run: RunDir, kind: str, name: str, row: MetricsRow, epoch: int) -> None:
        """Write a weights file of the weights after `epoch`, or of their average.

        `row` is the epoch's row of metrics.csv, whose figures the file records.
        """
        content = weights_bytes(self.tested[kind].state_dict(), self._metadata(kind, row, epoch))
        file = f"weights_{kind}{name}".rstrip("_")
        run.write(f"{file}.safetensors", content)

    def _metadata(self, kind: str, row: MetricsRow, epoch: int) -> Metadata:
        """What a weights file of `epoch` says of the weights, or of their average."""
        config, data, environment = self.config, self.setting.data, self.setting.environment
        return Metadata(
            task=self.task.name,
            task_options=self.task.network_options() or None,
            genotype=self.trained.to_yaml() if isinstance(self.trained, Genotype) else "",
            model=config.model,
            network=config.network,
            channels=config.num_channels,
            cells=config.cells,
            dataset=config.dataset,
            num_classes=data.spec.num_classes,
            class_names=data.spec.class_names,
            image_size=data.spec.image_size,
            in_channels=data.spec.in_channels,
            mean=data.spec.mean,
            std=data.spec.std,
            preprocessing=self.task.preprocessing(data.spec),
            data_note=config.data_note,
            data_remark=data.remark,
            data_fingerprint=self._fingerprint,
            figures=self.task.recorded(_measures(row, kind, "test"), _measures(row, kind, "validation")),
            test_images=self.num_tested,
            ema=config.ema if kind else None,
            epoch=epoch + 1,
            epochs=self.num_epochs,
            seed=config.seed,
            split_seed=config.split_seed if config.dataset in SPLIT_DATASETS else None,
            finetuned_from=environment.get("finetuned_from"),
            darts_sg=environment["darts_sg"],
            torch=environment["torch"],
            git=environment["git"],
        )


def _measures(row: MetricsRow, kind: str, part: str) -> dict[str, float]:
    """The measures of the weights or of their average (`kind`) on a part of the data, by name."""
    prefix = f"{kind}{part}_"
    return {name.removeprefix(prefix): value for name, value in row.items() if name.startswith(prefix)}


@lenient_output()
def run_augment(
    config: AugmentConfig,
    *,
    resume: Path | None = None,
    dry: bool = False,
    callbacks: Sequence[Any] = (),
    stop: threading.Event | None = None,
    started: float | None = None,
) -> Path | None:
    """Train as `config` says, in a new run folder or on in `resume`; returns the folder, None for a dry run.

    callbacks, stop, started: see `run_job`.

    Raises UsageError for what cannot be done as asked, RunError (Stopped when told to stop) for a run that ends early.
    """
    started = time.monotonic() if started is None else started  # before data are loaded and kernels compiled
    run, earlier = open_run(resume, "augment")
    if run is not None and already_finished(run, "result.json", dry=dry):
        return run.path
    if not dry:
        refuse_run_dir(config, resume)
    weights, origin = _start(config, run, earlier)
    trained = _subject(config, run, weights)
    setting = prepare(config, earlier)
    config = with_channels(config, trained, setting.data.spec)
    if origin:
        setting.environment["finetuned_from"] = origin
    if weights is not None:
        weights.refuse_other_channels(setting.data.spec)
    job = AugmentJob(config, trained, setting, weights)
    refuse_single_images(job.train, lambda x: job.subject.build()(x))
    if dry:
        writes = _written(config)
        dry_run(job, config, setting, run, title=trained.name, first_epoch=0, facts=job.facts, writes=writes)
        return None
    announce(*filter(None, [job.started, job.averaged()]))
    if weights is not None and setting.ranks.leads and (doubt := _other_split(config, weights)):
        print(f"warning: {doubt}", file=sys.stderr)

    def save_genotype(run: RunDir) -> None:
        if isinstance(trained, Genotype):
            run.write("genotype.yaml", trained.to_yaml())

    sizes = {"train_images": len(job.train_images), "test_images": len(job.test_images)}
    if job.validation_images is not None:
        sizes["validation_images"] = len(job.validation_images)
    return run_job(
        job, config, setting, run, title=trained.name, sizes=sizes,
        prepare_run=save_genotype, finish=functools.partial(_finish, job),
        callbacks=callbacks, stop=stop, started=started,
    )  # fmt: skip


def _start(
    config: AugmentConfig, run: RunDir | None, earlier: Mapping[str, Any]
) -> tuple[Start | None, dict[str, Any] | None]:
    """The weights of --finetune, and what the run records of them.

    A run with a checkpoint goes on from that, and the weights file may be gone: then it is not read.
    """
    origin: dict[str, Any] | None = earlier.get("environment", {}).get("finetuned_from")
    if not config.finetune or (run is not None and checkpoints(run.path / "checkpoints")):
        return None, origin
    weights = read_start(Path(config.finetune), config.model)
    if origin and origin["checksum"] != weights.checksum:
        assert run is not None
        raise UsageError(f"{config.finetune} is not the file that {run.path} was started from; start a new run")
    return weights, weights.origin()


def _other_split(config: AugmentConfig, weights: Start) -> str:
    """What is doubtful about testing weights on another split of the data than they were trained on, or empty."""
    dataset = config.dataset
    if dataset not in SPLIT_DATASETS or weights.spec.name != dataset or config.split_seed == weights.split_seed:
        return ""
    return (
        f"{weights.path} was trained on {'a class folder' if dataset == 'folder' else dataset} split by "
        f"--split-seed {weights.split_seed}, and this one is split by {config.split_seed}: if they are the same "
        "images, some that are tested on were trained on"
    )


def _subject(config: AugmentConfig, run: RunDir | None, weights: Start | None) -> Genotype | Model:
    """The genotype or model to train; a resumed run has a copy of its genotype, which may have left the zoo."""
    if config.model:
        return find_model(config.model)
    if weights is not None:
        return weights.trained
    name_or_path = config.genotype if run is None else run.path / "genotype.yaml"
    return load_genotype(name_or_path, known=list(OPERATIONS))


def _written(config: AugmentConfig) -> str:
    """The files that a run writes, for a dry run."""
    genotype_file = "" if config.model else "genotype.yaml, "
    return (
        f"result.json, {genotype_file}config.yaml, metrics.csv, events.out.tfevents.*, checkpoints/, "
        f"weights.safetensors, weights_best.safetensors, {'the same of weights_ema, ' if config.ema else ''}report.md"
    )


def _finish(job: AugmentJob, run: RunDir, config: AugmentConfig, loop: Loop) -> None:
    """Write result.json and report.md, and print the results."""
    if not run.writes:
        return
    result = job.result(loop)
    report = run.path / "report.md"
    run.remove(report.name)  # one of the unfinished run; the run counts as finished once both files are there
    run.write_json("result.json", result)
    write_report(run.path)
    announce(
        *job.result_lines(result),
        job.subject.counts(),
        f"result: {run.path / 'result.json'}",
        f"report: {report}",
        f"test it again: {evaluate_command(run.path / 'weights.safetensors', config.as_dict())}",
    )
