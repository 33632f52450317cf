"""The training of a derived network (DARTS paper, section 3.2), or of a model, from scratch."""

import functools
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from darts_sg.analysis.report import write_report
from darts_sg.config import AugmentConfig
from darts_sg.data import Images, count_unusual, evaluation_batches
from darts_sg.engine.checkpoint import checkpoints
from darts_sg.engine.loop import Loop, StepResult
from darts_sg.engine.run_dir import RunDir
from darts_sg.engine.setup import (
    EVALUATION_BATCH,
    Setting,
    autocast,
    choose_kernels,
    compile_parts,
    dry_run,
    open_run,
    prepare,
    run_job,
    split_training_set,
    to_device,
    train_batches,
    trial_batch,
)
from darts_sg.engine.steps import (
    accuracy,
    apply_weight_step,
    evaluate,
    scheduled_learning_rate,
    weight_optimizer,
)
from darts_sg.engine.subject import subject_of, with_channels
from darts_sg.engine.weights import Metadata, Weights, read_weights, weights_bytes
from darts_sg.errors import UsageError
from darts_sg.genotype import Genotype, load_genotype
from darts_sg.networks.derived import DerivedNetwork
from darts_sg.networks.mobile import Model, find_model
from darts_sg.ops import OPERATIONS


class AugmentJob:
    """The network of a genotype, or a model, with its optimizer, its training batches and its test images."""

    name = "augment"

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
        if config.compile:
            compile_parts([self.network], setting.device)
        self.weights = list(self.network.parameters())
        self.optimizer = weight_optimizer(self.weights, config)
        self.best: dict[str, float] = {}

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
        rate, clip = self.learning_rate(epoch), self.config.gradient_clip
        apply_weight_step(self.optimizer, self.weights, loss, rate, clip, ranks, len(y))
        ranks.average_statistics(self.network, len(y))
        means = ranks.means(len(y), train_loss=main_loss, train_accuracy=accuracy(logits, y))
        return StepResult(self.train.num_images(position), means)

    def attempt(self, batch_size: int, *, recompute: bool) -> None:
        """Compute the gradients of a step with `batch_size` images and throw them away."""
        x, y = trial_batch(self.train_images, self.config, self.setting, batch_size)
        self.optimizer.zero_grad()
        with autocast(self.config, self.setting.device):
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
        judged = row.get("validation_accuracy", row["test_accuracy"])
        if not self.best or judged > self.best["judged"]:
            self.best = {"judged": judged, "epoch": epoch + 1} | {k: row[k] for k in row if k.startswith("test_")}
            self._save_weights(run, "weights_best", row, epoch)
        if self.config.keep_every and (epoch + 1) % self.config.keep_every == 0:
            self._save_weights(run, f"weights_epoch_{epoch + 1:04d}", row, epoch)
        if epoch + 1 == self.num_epochs:
            self._save_weights(run, "weights", row, epoch)
        return row

    def log_tensorboard(self, writer: Any, epoch: int) -> None:
        """The columns of metrics.csv are all there is."""

    def evaluate(self, part: str, images: Images) -> dict[str, float]:
        """Loss and accuracy on `images`, as they are, by column."""
        spec, ranks = self.setting.data.spec, self.setting.ranks
        batches = evaluation_batches(images, spec, EVALUATION_BATCH, ranks.rank, ranks.size)
        found = evaluate(self.network, lambda x: self.network(x)[0], batches, ranks)._asdict()
        return {f"{part}_{name}": value for name, value in found.items() if spec.top5 or not name.startswith("top5")}

    def state_dict(self) -> dict[str, Any]:
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "best": self.best,
            "unusual_images": dict(self.setting.data.unusual),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
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
        ]

    def result(self, loop: Loop) -> dict[str, Any]:
        """The content of result.json; errors in percent."""
        last, cost = loop.rows[-1], self.subject.cost
        unusual, top5 = self.setting.data.unusual, {}
        if self.setting.data.spec.top5:
            top5 = {
                f"test_top5_error_{which}": percent_wrong(row["test_top5_accuracy"])
                for which, row in (("last", last), ("best", self.best))
            }
        auxiliary = {"params_with_auxiliary": cost.params_with_auxiliary} if self.subject.has_auxiliary else {}
        return {
            **self.subject.names,
            "test_error_last": percent_wrong(last["test_accuracy"]),
            "test_error_best": percent_wrong(self.best["test_accuracy"]),
            **top5,
            "best_epoch": int(self.best["epoch"]),
            "best_chosen_on": "test" if self.validation_images is None else "validation",
            "params": cost.params,
            **auxiliary,
            "macs": cost.macs,
            "epochs": self.config.epochs,
            "dataset": self.config.dataset,
            "data_note": self.config.data_note,
            "data_remark": self.setting.data.remark,
            "train_images": len(self.train_images),
            "test_images": len(self.test_images),
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
        chosen = choose_kernels(self.config, self.setting)
        self.network.use_native(chosen == "native")
        return chosen

    @functools.cached_property
    def _fingerprint(self) -> str:
        return self.setting.data.fingerprint()

    def _save_weights(self, run: RunDir, name: str, row: dict[str, float], epoch: int) -> None:
        """Write the weights after `epoch`, whose row of metrics.csv is `row`, as a file of their own."""
        config, data, environment = self.config, self.setting.data, self.setting.environment
        held_out = row.get("validation_accuracy")
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
            test_error=percent_wrong(row["test_accuracy"]),
            test_images=len(self.test_images),
            validation_error=None if held_out is None else percent_wrong(held_out),
            epoch=epoch + 1,
            epochs=self.num_epochs,
            seed=config.seed,
            finetuned_from=environment.get("finetuned_from"),
            darts_sg=environment["darts_sg"],
            torch=environment["torch"],
            git=environment["git"],
        )
        run.write(f"{name}.safetensors", weights_bytes(self.network.state_dict(), metadata))


def percent_wrong(accuracy: float) -> float:
    """The error in percent, as it is reported."""
    return round(100 * (1 - accuracy), 4)


def run_augment(config: AugmentConfig, *, resume: Path | None = None, dry: bool = False) -> Path | None:
    """Train as `config` says, in a new run folder or on in `resume`; returns the folder, None for a dry run.

    Raises UsageError for what cannot be done as asked, RunError (Stopped when told to stop) for a run that ends early.
    """
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
    if dry:
        genotype_file = "" if config.model else "genotype.yaml, "
        writes = (
            f"result.json, {genotype_file}config.yaml, metrics.csv, tensorboard/, checkpoints/, weights.safetensors, "
            "weights_best.safetensors, report.md"
        )
        dry_run(job, config, setting, first_epoch=0, facts=job.facts(), writes=writes)
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
        print(
            f"test error: {result['test_error_last']:.2f}% after the last epoch, {result['test_error_best']:.2f}% at "
            f"the best (epoch {result['best_epoch']}, chosen on the {result['best_chosen_on']} images)"
        )
        if "test_top5_error_last" in result:
            last, best = (result[f"test_top5_error_{which}"] for which in ("last", "best"))
            print(f"top-5 error: {last:.2f}% after the last epoch, {best:.2f}% at the best")
        print(job.subject.counts())
        print(f"result: {run.path / 'result.json'}\nreport: {report}")

    if job.started:
        print(job.started)

    def save_genotype(run: RunDir) -> None:
        if isinstance(trained, Genotype):
            run.write("genotype.yaml", trained.to_yaml())

    return run_job(
        job, config, setting, run, title=trained.name, sizes=sizes,
        prepare_run=save_genotype, finish=finish, script="augment.py",
    )  # fmt: skip
