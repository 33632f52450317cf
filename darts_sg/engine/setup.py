"""What both jobs do before the first step: device, data, run folder; and the dry run."""

import csv
import dataclasses
import io
import resource
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from darts_sg.backends.cpp import build
from darts_sg.config import RunConfig, SearchConfig
from darts_sg.data import (
    Augment,
    Dataset,
    Images,
    Reading,
    TrainBatches,
    balanced_split,
    evaluation_batches,
    load_dataset,
)
from darts_sg.engine import environment
from darts_sg.engine.checkpoint import checkpoints, seed_everything
from darts_sg.engine.distributed import ALONE, RankLost, Ranks
from darts_sg.engine.loop import Job, Loop, clock
from darts_sg.engine.run_dir import OthersRunDir, RunDir, default_run_dir
from darts_sg.errors import RunError, UsageError

Config = TypeVar("Config", bound=RunConfig)
Module = TypeVar("Module", bound=torch.nn.Module)
EVALUATION_BATCH = 250


@dataclass(frozen=True)
class Setting:
    """Where a job runs: its device and data, and what is known of the run so far (empty for a new one)."""

    device: torch.device
    data: Dataset
    earlier: dict[str, Any]
    environment: dict[str, Any]
    """As at the start of this process: the code in the checkout may change while it runs."""
    ranks: Ranks = ALONE

    def code(self) -> dict[str, Any]:
        """What a result says of the code and the machine it came from."""
        keys = ("darts_sg", "git", "python", "torch", "device", "device_name", "threads", "processes", "kernels")
        return {key: self.environment[key] for key in keys if key in self.environment}

    def share_unusual(self) -> None:
        """Let each rank know of the damaged and odd images that all have met; all of them call it together."""
        if self.ranks.size > 1:
            met = {name: what for found in self.ranks.gather(dict(self.data.unusual)) for name, what in found.items()}
            self.data.unusual.clear()
            self.data.unusual.update(sorted(met.items()))


def prepare(config: RunConfig, earlier: dict[str, Any]) -> Setting:
    """Choose the device, seed all generators, load the data. `earlier` is the config.yaml of a resumed run.

    Raises UsageError if the device or the data are not there, or not those that the run was started on.
    """
    ranks = Ranks.from_environment()
    device = environment.choose_device(config.device, ranks)
    environment.prepare_device(device, config.threads or earlier.get("environment", {}).get("threads"))
    ranks.join(device)
    seed_everything(config.seed)
    with ranks.one_by_machine():
        data = load_dataset(config.dataset, config.data, image_size=config.image_size, seed=config.seed)
    known = earlier.get("environment", {}).get("data", {}).get("fingerprint")
    if known and known != data.fingerprint():
        raise UsageError(
            f"the data in {config.data} are not those that this run was started on (fingerprint "
            f"{data.fingerprint()}, then {known}); give their folder with --data"
        )
    workers = environment.usable_cores() if config.workers is None else config.workers
    data = data.read_by(Reading(workers, config.damaged, config.reduced_decoding))
    return Setting(device, data, earlier, environment.describe(device, ranks), ranks)


def split_training_set(data: Dataset, sizes: Sequence[int], config: RunConfig) -> list[Images]:
    """Disjoint class-balanced parts of the training images, of the given sizes; None of size 0 is looked at."""
    total = len(data.train)
    if sum(sizes) > total:
        raise UsageError(
            f"{' + '.join(str(s) for s in sizes if s)} images were asked for, but the training set of "
            f"{config.dataset} has {total}; lower --train-images or --validation-images"
        )
    parts = balanced_split(data.train.labels, list(sizes), config.seed)
    return [data.train.select(indices) for indices in parts]


def train_batches(images: Images, config: RunConfig, setting: Setting, stream: str) -> TrainBatches:
    """This rank's shares of the training batches of a stream. UsageError if a batch is too small to be shared."""
    augment, ranks = Augment(cutout_length=config.cutout_length, colour_jitter=config.colour_jitter), setting.ranks
    batches = TrainBatches(
        images, setting.data.spec, config.batch_size, augment, config.seed, stream, ranks.rank, ranks.size
    )
    smallest = batches.num_images(len(batches) - 1)
    if ranks.size > 1 and smallest < 2 * ranks.size:
        raise UsageError(
            f"{len(images)} images in batches of {config.batch_size} end with one of {smallest}, too few for "
            f"{ranks.size} processes, which need 2 each; choose another --batch-size or number of images"
        )
    return batches


def batches_to_evaluate(
    images: Images, config: RunConfig, setting: Setting, times: int = 1
) -> Iterator[tuple[Tensor, Tensor]]:
    """This rank's shares of the images, each image once: at most 250 at a time, and at most `times` as many as in a
    training step, so that what fits into memory for a step fits here, too."""
    ranks = setting.ranks
    size = max(1, min(EVALUATION_BATCH, config.batch_size // ranks.size * times))
    return evaluation_batches(images, setting.data.spec, size, ranks.rank, ranks.size)


def refuse_single_images(batches: TrainBatches, forward: Callable[[Tensor], object]) -> None:
    """UsageError if a batch is a single image, and one of the BatchNorms has features of 1×1 pixels to normalise there.

    The last batch of a pass is trained on whatever its size; it is the smallest. `forward` builds the network and runs
    it on images (N, C, H, W) in train mode: that is done without values, on PyTorch's meta device.
    """
    total, size, spec = len(batches.images), batches.batch_size, batches.spec
    if batches.num_images(len(batches) - 1) > 1:
        return
    try:
        with torch.device("meta"):
            forward(torch.empty(1, spec.in_channels, spec.image_size, spec.image_size))
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        single = "are single images" if size == 1 or total == 1 else "end with a single image"
        raise UsageError(
            f"{total} images in batches of {size} {single}, which BatchNorm cannot normalise where the features are "
            "1×1 pixels; choose another --batch-size or number of images"
        ) from None


def trial_batch(images: Images, config: RunConfig, setting: Setting, batch_size: int) -> tuple[Tensor, Tensor]:
    """This rank's share of a batch of `batch_size`, to try whether a step of it fits into memory."""
    ranks = setting.ranks
    return TrainBatches(
        images, setting.data.spec, batch_size, Augment(), config.seed, "weights", ranks.rank, ranks.size
    )[0]


def open_run(resume: Path | None, job: str) -> tuple[RunDir | None, dict[str, Any]]:
    """The run folder to continue and its config.yaml; (None, {}) for a new run."""
    if resume is None:
        return None, {}
    return (RunDir if Ranks.from_environment().leads else OthersRunDir).open(resume, job)


def run_job(
    job: Job,
    config: Config,
    setting: Setting,
    run: RunDir | None,
    *,
    title: str,
    sizes: dict[str, int],
    prepare_run: Callable[[RunDir], None],
    finish: Callable[[RunDir, Config, Loop], None],
    script: str,
) -> Path:
    """Run `job` to its end in `run`, or in a new folder; returns the folder.

    `prepare_run` writes what the folder holds from the start, `finish` its results.
    """
    ranks = setting.ranks
    if run is None:
        path = ranks.from_first(lambda: config.run_dir or default_run_dir(job.name, config, title))
        run = RunDir.create(path) if ranks.leads else OthersRunDir(path)
        facts = dict(setting.environment)
        facts["data"] = {
            "name": config.dataset,
            "remark": setting.data.remark,
            "note": config.data_note,
            "fingerprint": setting.data.fingerprint(),
            **sizes,
        }
        run.write_config(job.name, dataclasses.replace(config, run_dir=None), facts)
        prepare_run(run)
    elif ranks.leads:
        _warn_of_other_code(run, setting)
    loop = Loop(
        job,
        run,
        ranks,
        time_budget=config.time_budget,
        checkpoint_minutes=config.checkpoint_minutes,
        keep_every=getattr(config, "keep_every", None),
        resume_command=f"{ranks.launcher} {script} --resume {run.path}",
    )
    exhausted = False
    try:
        done = len(checkpoints(run.path / "checkpoints"))
        run.log(environment.command_line(ranks))
        several = f"{ranks.size} processes, " if ranks.size > 1 else ""
        print(f"{job.name}: {title}, {config.dataset}, {several}{setting.device}, run folder {run.path}")
        if done:
            print(f"continuing from the newest of {done} checkpoints")
        ranks.compare(lambda: _to_agree_on(config, setting), "start them all alike")
        loop.execute()
        finish(run, config, loop)
    except RankLost as error:
        raise RunError(f"{error}; continue from the newest checkpoint with {loop.resume_command}") from None
    except OSError as error:
        raise RunError(
            f"cannot write to {error.filename or run.path}: {error.strerror or error}; the checkpoints are whole: "
            f"make room, then continue with {loop.resume_command}"
        ) from error
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        exhausted = True  # what the step holds is freed with the error
    finally:
        write_unusual(run, setting.data.unusual)
        run.close()
    if exhausted:
        raise out_of_memory(job, config, loop.resume_command)
    return run.path


def out_of_memory(job: Job, config: RunConfig, command: str) -> RunError:
    """The error of a step that does not fit into memory, with the way out. command: it begins anew, or goes on."""
    fits = what_fits(job, config.batch_size, command, recompute=getattr(config, "recompute", None))
    return RunError(f"out of memory with --batch-size {config.batch_size}; {fits}")


def _to_agree_on(config: RunConfig, setting: Setting) -> Mapping[str, Any]:
    """What must be the same on all ranks from the start."""
    keys = ("darts_sg", "git", "torch", "kernels")
    options = {f"--{name.replace('_', '-')}": value for name, value in config.as_dict().items() if name != "data"}
    here = {name: setting.environment.get(name) for name in keys}
    return {**options, **here, "the data": setting.data.fingerprint(), "the run": bool(setting.earlier)}


def write_unusual(run: RunDir, unusual: dict[str, str]) -> None:
    """Write unusual_images.csv: the images met so far that are damaged or no RGB JPEG, if there are any.

    Those of all ranks up to the last checkpoint; of a run that ends between two, those of the first rank since then.
    """
    if unusual:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([("image", "what"), *sorted(unusual.items())])
        run.write("unusual_images.csv", text.getvalue())


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed; on a CPU PyTorch says so in a RuntimeError."""
    told = (
        "can't allocate memory", "not enough memory", "out of memory", "could not create a primitive",
        "can't start new thread",
    )  # fmt: skip
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(words in str(error) for words in told)


def what_fits(job: Job, batch_size: int, resume_command: str, *, recompute: bool | None) -> str:
    """The way out of a lack of memory, tried on this machine: the same batch with recomputation, else smaller ones.

    recompute: whether the run recomputes already; None if it cannot.
    """

    def fits(size: int, again: bool) -> bool:
        environment.return_freed_memory()
        try:
            job.attempt(size, recompute=again)
        except (MemoryError, RuntimeError, ValueError):  # close to the limit libraries fail in their own words
            return False
        return True

    if recompute is False and fits(batch_size, True):
        return f"with recomputation it fits, and gives the same bits: {resume_command} --recompute"

    def largest(least: int, again: bool) -> int:
        """Of half the batch size, a quarter and so on, above `least`, what fits; `least` if nothing does."""
        size = batch_size // 2
        while size > least and not fits(size, again):
            size //= 2
        return max(size, least)

    size = largest(0, bool(recompute))
    more = largest(size, True) if recompute is False else size
    if more > size:
        without = f", {size} without it" if size else ""
        return f"{more} fits here with recomputation{without}: start a new run with --batch-size {more} --recompute"
    if not size:
        smaller = "" if batch_size < 4 else f"--batch-size {batch_size // 4} or "
        return f"what is left here is not enough for one image either; start again with {smaller}fewer --channels"
    return f"{size} fits here: start a new run with --batch-size {size}"


def dry_run(
    job: Job,
    config: RunConfig,
    setting: Setting,
    run: RunDir | None,
    *,
    title: str,
    first_epoch: int,
    facts: list[str],
    writes: str,
) -> None:
    """Run a step twice, time the second, and print what the whole run would take and write. Leaves nothing behind.

    Raises RunError if they do not fit into memory.
    """
    exhausted = False
    try:
        job.step(first_epoch, 0)
        begun = time.perf_counter()
        result = job.step(first_epoch, 1 % job.steps_per_epoch)
        losses = {name: value.item() for name, value in result.means.items()}  # waits for the device
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        exhausted = True  # what the step holds is freed with the error
    if exhausted:
        raise out_of_memory(job, config, environment.command_line(setting.ranks))
    seconds = time.perf_counter() - begun
    folder = config.run_dir or default_run_dir(job.name, config, title) if run is None else run.path
    steps = job.num_epochs * job.steps_per_epoch
    lines = [
        *facts,
        f"device: {setting.device} ({environment.machine(setting.device)})"
        + (f", {setting.ranks.size} processes like it" if setting.ranks.size > 1 else ""),
        f"data: {config.dataset}{', ' + setting.data.remark if setting.data.remark else ''}",
        f"one step of batch {result.num_images}: {seconds:.2f} s ({result.num_images / seconds:.1f} images/s), "
        + ", ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in losses.items()),
        f"peak memory: {peak_memory(setting.device) / 2**20:.0f} MiB",
        f"whole run: {job.num_epochs} epochs of {job.steps_per_epoch} steps, about {clock(steps * seconds)} (h:mm:ss), "
        "evaluation not counted",
        f"would {'write' if run is None else 'go on in'}: {folder}/ with {writes}",
        "dry run: nothing was written",
    ]
    print("\n".join(lines))


def peak_memory(device: torch.device) -> int:
    """Peak bytes so far: of the device's allocator on a GPU, of the resident set of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def to_device(model: Module, device: torch.device) -> Module:
    """The model on its device, convolution weights in channels_last."""
    return model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]


def compile_parts(parts: Iterable[torch.nn.Module], device: torch.device) -> None:
    """Have torch.compile make faster code of each part's forward and backward pass, for each batch size it meets.

    Raises UsageError if there is no C++ compiler that answers, which the CPU needs.
    """
    if device.type == "cpu":
        try:
            build.compiler_version()
        except build.Unavailable as reason:
            raise UsageError(f"--compile needs a C++ compiler: {reason}; or leave it out") from None
    for part in parts:
        part.compile(dynamic=False)


def captures(config: SearchConfig, setting: Setting) -> bool:
    """Whether the steps are captured: on a CUDA GPU, unless they say otherwise or do what cannot be captured."""
    alone = setting.ranks.size == 1 and not config.penalties() and not config.compile
    return config.capture and alone and setting.device.type == "cuda"


def autocast(config: RunConfig, device: torch.device) -> torch.autocast:
    """The context of a training step's forward pass: bfloat16 where PyTorch allows it, if the run asks for that."""
    return torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bfloat16")


def _warn_of_other_code(run: RunDir, setting: Setting) -> None:
    then, now = setting.earlier["environment"], setting.environment
    # runs of earlier versions did not record all of these
    then = {"processes": 1, **{key: now.get(key) for key in ("device_name", "triton")}, **then}
    for key in ("darts_sg", "git", "torch", "kernels", "processes", "device_name", "triton"):
        if then.get(key) != now.get(key):
            text = f"this run was started with {key} {then.get(key)}, now it is {now.get(key)}: the bits may differ"
            print(f"warning: {text}", file=sys.stderr)
            run.log(f"warning: {text}")
