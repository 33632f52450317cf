"""The training of a derived network (DARTS paper, section 3.2), or of a model, from scratch."""

import functools
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from darts_sg.analysis.report import write_report
from darts_sg.config import AugmentConfig
from darts_sg.data import Images, count_unusual
from darts_sg.engine.checkpoint import checkpoints
from darts_sg.engine.distributed import without_sync_batchnorm
from darts_sg.engine.kernels import use_kernels
from darts_sg.engine.loop import Loop, StepResult
from darts_sg.engine.run_dir import RunDir
from darts_sg.engine.setup import (
    Setting,
    autocast,
    batches_to_evaluate,
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
    accuracy,
    apply_weight_step,
    averaged_model,
    evaluate_all,
    load_optimizer,
    scheduled_learning_rate,
    set_learning_rate,
    weight_optimizer,
)
from darts_sg.engine.subject import subject_of, with_channels
from darts_sg.engine.weights import Metadata, Weights, read_weights, weights_bytes
from darts_sg.errors import UsageError
from darts_sg.genotype import Genotype, load_genotype
from darts_sg.methods.early_stopping import Row
from darts_sg.networks.derived import DerivedNetwork
from darts_sg.networks.mobile import Model, find_model
from darts_sg.ops import OPERATIONS

EMA = "ema_"
"""How the names of what belongs to the average of the weights begin."""


class AugmentJob:
    """The network of a genotype, or a model, with its optimizer, its training batches and its test images.

    With --ema, an average of the weights is tested beside them. Each of both has its own best epoch: the first of those
    with the highest accuracy on the held-out images, or on the test images where there are none.
    """

    name = "augment"
    warm_up_steps = 1

    def __init__(
        self, config: AugmentConfig, trained: Genotype | Model, setting: Setting, weights: Weights | None = None
    ) -> None:
        self.config, self.trained, self.setting = config, trained, setting
        spec = setting.data.spec
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
        self.started = "" if weights is None else weights.start(self.network, spec.num_classes)
        if config.sync_batchnorm and setting.ranks.size > 1:
            if setting.device.type != "cuda":
                raise UsageError("--sync-batchnorm is for GPUs, PyTorch has it for no CPU; leave it out")
            self.network = torch.nn.SyncBatchNorm.convert_sync_batchnorm(self.network)
        setting.environment["kernels"] = self._use_kernels()
        self.ema = averaged_model(self.network, config.ema) if config.ema else None
        self.tested: dict[str, torch.nn.Module] = {"": self.network}
        if self.ema is not None:
            self.tested[EMA] = self.ema.module
        if config.compile:
            compile_parts([self.network], setting.device)
        self.weights = list(self.network.parameters())
        self.optimizer = weight_optimizer(self.weights, config, setting.device)
        self.best: dict[str, float] = {}
        """Of the weights and, under names that begin with EMA, of their average: the best epoch, by what it was judged,
        and its columns of the test."""

    def learning_rate(self, epoch: int) -> float:
        return scheduled_learning_rate(self.config, epoch)

    def drop_path_prob(self, epoch: int) -> float:
        """Drop path probability of `epoch` (from 0), growing linearly as in the original code: 0 in the first."""
        return (self.config.drop_path_prob or 0.0) * epoch / self.config.epochs

    def step(self, epoch: int, step: int) -> StepResult:
        position, ranks = epoch * self.steps_per_epoch + step, self.setting.ranks
        x, y = self.train[position]
        ranks.seed(self.config.seed, position)
        if isinstance(self.network, DerivedNetwork):
            self.network.set_drop_path_prob(self.drop_path_prob(epoch))
        smoothing = self.config.label_smoothing
        with autocast(self.config, self.setting.device):
            logits, auxiliary_logits = self.network(x)
            loss = main_loss = F.cross_entropy(logits, y, label_smoothing=smoothing)
            if auxiliary_logits is not None:
                auxiliary_loss = F.cross_entropy(auxiliary_logits, y, label_smoothing=smoothing)
                loss = main_loss + (self.config.auxiliary_weight or 0.0) * auxiliary_loss
        set_learning_rate(self.optimizer, self.learning_rate(epoch))
        apply_weight_step(self.optimizer, self.weights, loss, self.config.gradient_clip, ranks, len(y))
        ranks.average_statistics(self.network, len(y))
        if self.ema is not None:
            self.ema.update_parameters(self.network)
        means = ranks.means(len(y), train_loss=main_loss, train_accuracy=accuracy(logits, y))
        return StepResult(self.train.num_images(position), means)

    def attempt(self, batch_size: int, *, recompute: bool) -> None:
        """Compute the gradients of a step with `batch_size` images on this rank alone and discard them."""
        x, y = trial_batch(self.train_images, self.config, self.setting, batch_size)
        self.optimizer.zero_grad()
        with without_sync_batchnorm(self.network), autocast(self.config, self.setting.device):
            losses = [F.cross_entropy(logits, y) for logits in self.network(x) if logits is not None]
        torch.autograd.grad(torch.stack(losses).sum(), self.weights)

    def end_epoch(self, epoch: int, means: dict[str, float], run: RunDir) -> dict[str, float]:
        row = {"learning_rate": self.learning_rate(epoch)}
        if self.config.drop_path_prob is not None:
            row["drop_path_prob"] = self.drop_path_prob(epoch)
        row |= {"train_loss": means["train_loss"], "train_accuracy": means["train_accuracy"]}
        if self.validation_images is not None:
            row |= self.evaluate("validation", self.validation_images)
        row |= self.evaluate("test", self.test_images)
        for kind in self.tested:
            judged = row.get(f"{kind}validation_accuracy", row[f"{kind}test_accuracy"])
            if judged > self.best.get(f"{kind}judged", -1.0):
                test = {name: value for name, value in row.items() if name.startswith(f"{kind}test_")}
                self.best |= {f"{kind}judged": judged, f"{kind}epoch": epoch + 1} | test
                self._save_weights(run, kind, "best", row, epoch)
            if self.config.keep_every and (epoch + 1) % self.config.keep_every == 0:
                self._save_weights(run, kind, f"epoch_{epoch + 1:04d}", row, epoch)
            if epoch + 1 == self.num_epochs:
                self._save_weights(run, kind, "", row, epoch)
        return row

    def early_stop(self, rows: Sequence[Row]) -> None:
        """Never: all epochs of a schedule are run."""

    def figures(self, epoch: int) -> dict[str, Any]:
        """None: the columns of metrics.csv say all."""
        return {}

    def evaluate(self, part: str, images: Images) -> dict[str, float]:
        """Loss and accuracy on `images`, as they are, by column; those of the average of the weights begin with EMA.

        Without gradients an image takes an eighth of its memory in a training step or less (DARTS_V2, C=36, CPU:
        3.9 of 33 MiB with the C++ kernels, 2.7 of 68 MiB with PyTorch's), so four times as many at once are safe.
        """
        batches = batches_to_evaluate(images, self.config, self.setting, times=4)
        logits = {network: (lambda x, network=network: network(x)[0]) for network in self.tested.values()}
        evaluations = evaluate_all(logits, batches, self.setting.ranks)
        self.share()
        return {
            f"{kind}{part}_{name}": value
            for kind, found in zip(self.tested, evaluations, strict=True)
            for name, value in found._asdict().items()
            if self.setting.data.spec.top5 or not name.startswith("top5")
        }

    @property
    def num_tested(self) -> int:
        """Test images, without damaged ones that a test has left out."""
        return len(self.test_images) - self.test_images.num_damaged

    def share(self) -> None:
        self.setting.share_unusual()

    def state_dict(self) -> dict[str, Any]:
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            **({} if self.ema is None else {"ema": self.ema.state_dict()}),
            "best": self.best,
            "unusual_images": dict(self.setting.data.unusual),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        load_optimizer(self.optimizer, state["optimizer"])
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])
        self.best = state["best"]
        self.setting.data.unusual.update(state.get("unusual_images", {}))

    def facts(self) -> list[str]:
        """What a dry run says of the network."""
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
        """What --ema does in a run of this length, in words; empty without it."""
        decay, steps = self.config.ema, self.num_epochs * self.steps_per_epoch
        if not decay:
            return ""
        text = f"EMA of the weights: over about the last {round(1 / (1 - decay)):,} steps"
        share = decay ** (steps - 1)  # of the weights after the first step, in the end
        if share < 0.01:
            return text
        return f"{text}; of this run's {steps:,} the first keeps a share of {share:.0%}, so a smaller --ema would fit"

    def result(self, loop: Loop) -> dict[str, Any]:
        """The content of result.json; errors in percent."""
        last, cost = loop.rows[-1], self.subject.cost
        unusual, errors = self.setting.data.unusual, {}
        for kind in self.tested:
            for measure in ("test", "test_top5") if self.setting.data.spec.top5 else ("test",):
                for which, row in (("last", last), ("best", self.best)):
                    errors[f"{kind}{measure}_error_{which}"] = percent_wrong(row[f"{kind}{measure}_accuracy"])
        epochs = {f"{kind}best_epoch": int(self.best[f"{kind}epoch"]) for kind in self.tested}
        auxiliary = {"params_with_auxiliary": cost.params_with_auxiliary} if self.subject.has_auxiliary else {}
        return {
            **self.subject.names,
            **errors,
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

    def _use_kernels(self) -> str:
        """Have the network computed by the kernels that the run asks for or was started with; says which."""
        if not isinstance(self.network, DerivedNetwork):
            if self.config.kernels == "native":
                raise UsageError("--kernels native is for the network of a genotype, not for a model; leave it out")
            return "pytorch"
        return use_kernels(self.network, self.config, self.setting)

    @functools.cached_property
    def _fingerprint(self) -> str:
        return self.setting.data.fingerprint()

    def _save_weights(self, run: RunDir, kind: str, name: str, row: dict[str, float], epoch: int) -> None:
        """Write the weights after `epoch`, or their average, as a file; `row` is the row of metrics.csv."""
        config, data, environment = self.config, self.setting.data, self.setting.environment
        held_out = row.get(f"{kind}validation_accuracy")
        metadata = Metadata(
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
            data_note=config.data_note,
            data_remark=data.remark,
            data_fingerprint=self._fingerprint,
            test_error=percent_wrong(row[f"{kind}test_accuracy"]),
            test_images=self.num_tested,
            validation_error=None if held_out is None else percent_wrong(held_out),
            ema=config.ema if kind else None,
            epoch=epoch + 1,
            epochs=self.num_epochs,
            seed=config.seed,
            finetuned_from=environment.get("finetuned_from"),
            darts_sg=environment["darts_sg"],
            torch=environment["torch"],
            git=environment["git"],
        )
        file = f"weights_{kind}{name}".rstrip("_")
        run.write(f"{file}.safetensors", weights_bytes(self.tested[kind].state_dict(), metadata))


def percent_wrong(accuracy: float) -> float:
    """The error in percent, as it is reported."""
    return round(100 * (1 - accuracy), 4)


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
    if run is not None and (run.path / "result.json").is_file():
        print(f"{run.path} is finished: {run.path / 'result.json'}, {run.path / 'report.md'}")
        return run.path
    origin = earlier.get("environment", {}).get("finetuned_from")
    weights = None
    if config.finetune and not (run and checkpoints(run.path / "checkpoints")):
        weights = read_weights(Path(config.finetune))
        if origin and origin["checksum"] != weights.checksum:
            raise UsageError(f"{config.finetune} is not the file that {resume} was started from; start a new run")
        origin = weights.origin()
    trained: Genotype | Model
    if config.model:
        trained = find_model(config.model)
    elif weights is not None:
        trained = weights.trained
    else:
        name_or_path = config.genotype if run is None else run.path / "genotype.yaml"
        trained = load_genotype(name_or_path, known=list(OPERATIONS))
    setting = prepare(config, earlier)
    config = with_channels(config, trained, setting.data.spec)
    if origin:
        setting.environment["finetuned_from"] = origin
    if weights is not None:
        weights.refuse_other_channels(setting.data.spec)
    job = AugmentJob(config, trained, setting, weights)
    refuse_single_images(job.train, lambda x: job.subject.build()(x))
    if dry:
        genotype_file = "" if config.model else "genotype.yaml, "
        writes = (
            f"result.json, {genotype_file}config.yaml, metrics.csv, tensorboard/, checkpoints/, weights.safetensors, "
            f"weights_best.safetensors, {'the same of weights_ema, ' if config.ema else ''}report.md"
        )
        dry_run(job, config, setting, run, title=trained.name, first_epoch=0, facts=job.facts(), writes=writes)
        return None
    sizes = {"train_images": len(job.train_images), "test_images": len(job.test_images)}
    if job.validation_images is not None:
        sizes["validation_images"] = len(job.validation_images)

    def finish(run: RunDir, config: AugmentConfig, loop: Loop) -> None:
        if not run.writes:
            return
        result = job.result(loop)
        run.write_json("result.json", result)
        report = write_report(run.path)
        for kind in job.tested:
            of = " of the EMA weights" if kind else ""
            last, best = (result[f"{kind}test_error_{which}"] for which in ("last", "best"))
            print(
                f"test error{of}: {last:.2f}% after the last epoch, {best:.2f}% at the best (epoch "
                f"{result[f'{kind}best_epoch']}, chosen on the {result['best_chosen_on']} images)"
            )
            if f"{kind}test_top5_error_last" in result:
                last, best = (result[f"{kind}test_top5_error_{which}"] for which in ("last", "best"))
                print(f"top-5 error{of}: {last:.2f}% after the last epoch, {best:.2f}% at the best")
        print(job.subject.counts())
        print(f"result: {run.path / 'result.json'}\nreport: {report}")

    for line in filter(None, [job.started, job.averaged()]):
        print(line)

    def save_genotype(run: RunDir) -> None:
        if isinstance(trained, Genotype):
            run.write("genotype.yaml", trained.to_yaml())

    return run_job(
        job, config, setting, run, title=trained.name, sizes=sizes,
        prepare_run=save_genotype, finish=finish, script="augment.py",
        callbacks=callbacks, stop=stop, started=started,
    )  # fmt: skip
