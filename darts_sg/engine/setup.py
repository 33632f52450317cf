"""What search and augment share around the loop: device, data, run folder, explained errors, and the dry run."""

import csv
import dataclasses
import errno
import io
import resource
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from darts_sg import plugins
from darts_sg.backends.cpp import build
from darts_sg.config import RunConfig, SearchConfig
from darts_sg.data import Dataset, Images, Reading, load_dataset
from darts_sg.engine import environment
from darts_sg.engine.checkpoint import checkpoints, seed_everything
from darts_sg.engine.distributed import ALONE, RankLost, Ranks
from darts_sg.engine.drawing import load as load_drawing
from darts_sg.engine.drawing import write_report
from darts_sg.engine.loggers import LoggedRun, Loggers, Status, chosen_loggers
from darts_sg.engine.loop import Job, Loop, StepResult
from darts_sg.engine.memory import is_out_of_memory, out_of_memory, peak_memory, too_large
from darts_sg.engine.output import announce, lenient_output
from darts_sg.engine.run_dir import OthersRunDir, RunDir, default_run_dir
from darts_sg.errors import RunError, Stopped, UsageError
from darts_sg.invocation import again, line
from darts_sg.tasks import Batches, task_of
from darts_sg.tasks.columns import clock

Config = TypeVar("Config", bound=RunConfig)
Module = TypeVar("Module", bound=torch.nn.Module)
EVALUATION_BATCH = 250
FULL_DISK = frozenset({errno.ENOSPC, errno.EDQUOT})
NOT_WRITABLE = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})
NO_MORE_FILES = frozenset({errno.EMFILE, errno.ENFILE})


@dataclass
class Setting:
    """Where a job runs: its device, data and ranks, and the facts about the run, which the job adds to."""

    device: torch.device
    data: Dataset
    earlier: dict[str, Any]
    """The config.yaml of a resumed run; empty for a new one."""
    environment: dict[str, Any]
    """Versions, machine and code state at the start of this process: the code of a checkout may change while it runs.
    The job adds which kernels it uses and which weights it started from."""
    ranks: Ranks = ALONE

    def code(self) -> dict[str, Any]:
        """The code and the machine that a result came from."""
        keys = ("darts_sg", "git", "python", "torch", "device", "device_name", "threads", "processes", "kernels")
        return {key: self.environment[key] for key in keys if key in self.environment}

    def share_unusual(self) -> None:
        """Tell each rank of the damaged and odd images that the others have found. Called on all ranks."""
        if self.ranks.size > 1:
            found = {name: what for other in self.ranks.gather(dict(self.data.unusual)) for name, what in other.items()}
            self.data.unusual.replace(found)


def prepare(config: RunConfig, earlier: dict[str, Any]) -> Setting:
    """Choose the device, seed all generators, load the data. `earlier` is the config.yaml of a resumed run.

    Raises UsageError if the device, the data or the package of a logger are missing, or the data have changed since the
    run was started.
    """
    chosen_loggers(config.logger)  # on all ranks, which end alike
    plugins.restore(earlier.get("environment", {}).get("plugins") or [])
    ranks = Ranks.from_environment()
    device = environment.choose_device(config.device, ranks)
    environment.prepare_device(device, config.threads or earlier.get("environment", {}).get("threads"))
    ranks.join(device)
    seed_everything(config.seed)
    with ranks.one_by_machine():
        data = load_dataset(
            config.dataset,
            config.data,
            image_size=config.image_size,
            seed=config.seed,
            split_seed=config.split_seed,
        )
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
    """Disjoint parts of the training images with the given sizes, split as the task does it."""
    total = len(data.train)
    asked = {
        name: number
        for name, number in (("--train-images", config.train_images), ("--validation-images", config.validation_images))
        if number
    }
    if sum(sizes) > total:
        wanted = " and ".join(f"{name} {number}" for name, number in asked.items()) or f"parts of {sum(sizes)} images"
        left = "" if len(asked) > 1 or sum(asked.values()) > total else ", which leaves none for the other part"
        raise UsageError(
            f"{wanted}: the training set of {config.dataset} has {total} images{left}; "
            f"lower {' or '.join(asked) or 'the number'}"
        )
    return task_of(config.as_dict()).split(data.train, sizes, config.seed)


def train_batches(images: Images, config: RunConfig, setting: Setting, stream: str) -> Batches:
    """This rank's shares of the training batches of a stream. UsageError if a batch is too small to share."""
    ranks = setting.ranks
    batches = task_of(config.as_dict()).train_batches(
        images, setting.data.spec, config.batch_size, config.seed, stream, ranks.rank, ranks.size
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
) -> Iterator[tuple[Tensor, Any]]:
    """This rank's shares of the images, each image once.

    A batch has at most 250 images, and at most `times` those of a training step: if a step fits into memory, so does
    the evaluation.
    """
    ranks = setting.ranks
    size = max(1, min(EVALUATION_BATCH, config.batch_size // ranks.size * times))
    return task_of(config.as_dict()).evaluation_batches(images, setting.data.spec, size, ranks.rank, ranks.size)


def refuse_single_images(batches: Batches, forward: Callable[[Tensor], object]) -> None:
    """UsageError if a batch is a single image and a BatchNorm would see 1×1 features of it, that is one value.

    Only the last batch of an epoch can be that small. `forward` builds the network and runs it on images (N, C, H, W)
    in train mode; it is called on PyTorch's meta device, without values.
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


def trial_batch(images: Images, config: RunConfig, setting: Setting, batch_size: int) -> tuple[Tensor, Any]:
    """This rank's share of a batch of `batch_size`, to try whether a step fits into memory."""
    ranks = setting.ranks
    return task_of(config.as_dict()).train_batches(
        images, setting.data.spec, batch_size, config.seed, "weights", ranks.rank, ranks.size, plain=True
    )[0]


def open_run(resume: Path | None, job: str) -> tuple[RunDir | None, dict[str, Any]]:
    """The run folder to continue and its config.yaml; (None, {}) for a new run."""
    if resume is None:
        return None, {}
    return (RunDir if Ranks.from_environment().leads else OthersRunDir).open(resume, job)


def refuse_run_dir(config: RunConfig, resume: Path | None) -> None:
    """UsageError if a new run cannot have the folder that is asked for: before data are read, which takes a while."""
    if resume is None and config.run_dir is not None:
        RunDir.refuse_existing(config.run_dir)


def already_finished(run: RunDir, result: str, *, dry: bool) -> bool:
    """Whether a run to be resumed has its result, the file of that name; then says so and closes the run.

    The report is the last file of a run. If it is missing, it is written, unless this is a dry run.
    """
    if not (run.path / result).is_file():
        return False
    try:
        report = run.path / "report.md"
        if run.writes and dry and not report.is_file():
            print(f"{run.path} has its result, {run.path / result}; would write {report}, which is missing")
        elif run.writes:
            if not report.is_file():
                write_report(run.path)
                run.log(f"{report.name} was missing; written")
            announce(f"{run.path} is finished: {run.path / result}, {report}")
    finally:
        run.close()
    return True


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
    callbacks: Sequence[Any] = (),
    stop: threading.Event | None = None,
    started: float | None = None,
) -> Path:
    """Run `job` to its end in `run`, or in a new folder; returns the folder.

    prepare_run: writes the files that the folder holds from the start. finish: writes the result.
    callbacks: functions of the rows of metrics.csv, or objects with methods of a logger (loggers.CallbackLogger).
    stop: an event that ends the run early, with everything saved. started: when the time budget begins, on the clock
    of time.monotonic: the start of the process for a command, by default now.
    """
    ranks = setting.ranks
    chosen = chosen_loggers(config.logger, callbacks)
    _refuse_too_large(job, config, setting)
    if ranks.leads:
        load_drawing()
    if run is None:
        run = _new_run(job, config, setting, title, sizes, prepare_run)
    elif ranks.leads:
        _warn_of_other_code(run, setting)
    loggers = Loggers(chosen if run.writes else {}, run.warn)
    if config.time_budget is None:
        deadline = None
    else:
        deadline = (time.monotonic() if started is None else started) + 60 * config.time_budget
    loop = Loop(
        job,
        run,
        ranks,
        loggers=loggers,
        about=LoggedRun(run.path, job.name, config.as_dict(), setting.environment, job.num_epochs, job.steps_per_epoch),
        deadline=deadline,
        checkpoint_minutes=config.checkpoint_minutes,
        keep_every=getattr(config, "keep_every", None),
        resume_command=line(job.name, launcher=ranks.launcher if ranks.size > 1 else "", resume=run.path),
        stop=stop,
    )
    status: Status = "failed"
    exhausted = False
    try:
        with lenient_output(run.log), _explained(run, loop.resume_command):
            _announce(job, config, setting, run, title)
            ranks.compare(lambda: _to_agree_on(config, setting), "start them all alike")
            loop.execute()
            write_unusual(run, setting.data.unusual)  # before the report, the last file of a run
            finish(run, config, loop)
            loggers.artifacts(result_files(run))
        status = "finished"
    except Stopped:
        status = "stopped"
        raise
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        exhausted = True  # the tensors of the step are freed with the error, when this block ends
    finally:
        try:
            loggers.run_ended(status)
            write_unusual(run, setting.data.unusual)
        finally:
            run.close()
    if exhausted:
        raise out_of_memory(job, config, loop.resume_command)
    return run.path


def _new_run(
    job: Job,
    config: RunConfig,
    setting: Setting,
    title: str,
    sizes: Mapping[str, int],
    prepare_run: Callable[[RunDir], None],
) -> RunDir:
    """A new run folder with its first files; rank 0 chooses its name.

    config.yaml is the last of these files: a folder that has it can be resumed.
    """
    ranks = setting.ranks
    path = ranks.from_first(lambda: config.run_dir or default_run_dir(job.name, config, title))
    run = RunDir.create(path) if ranks.leads else OthersRunDir(path)
    data = {
        "name": config.dataset,
        "remark": setting.data.remark,
        "note": config.data_note,
        "fingerprint": setting.data.fingerprint(),
        **sizes,
    }
    used = {"plugins": found} if (found := plugins.recorded()) else {}
    facts = {**setting.environment, **used, "data": data}
    prepare_run(run)
    run.write_config(job.name, dataclasses.replace(config, run_dir=None), facts)
    return run


def _announce(job: Job, config: RunConfig, setting: Setting, run: RunDir, title: str) -> None:
    """Print what is about to run and where, and log the command."""
    done = len(checkpoints(run.path / "checkpoints"))
    run.log(environment.command_line(setting.ranks))
    several = f"{setting.ranks.size} processes, " if setting.ranks.size > 1 else ""
    announce(f"{job.name}: {title}, {config.dataset}, {several}{setting.device}, run folder {run.path}")
    if done:
        print(f"continuing from the newest of {done} checkpoints")


@contextmanager
def _explained(run: RunDir, resume_command: str) -> Iterator[None]:
    """Turn the loss of a rank and errors of the system into a RunError that says what happened and how to go on."""
    try:
        yield
    except RankLost as error:
        raise RunError(f"{error}; continue from the newest checkpoint with {resume_command}") from None
    except OSError as error:
        problem, way_out = explain_os_error(error, run.path)
        raise RunError(f"{problem}; the checkpoints are whole: {way_out}continue with {resume_command}") from error


def explain_os_error(error: OSError, folder: Path) -> tuple[str, str]:
    """What went wrong in a run in `folder`, and what to do before it is continued: empty, or ends with "then "."""
    where, reason = str(error.filename or folder), error.strerror or str(error) or type(error).__name__
    if error.errno in FULL_DISK:
        return f"cannot write to {where}: {reason}", "make room, then "
    if error.errno in NOT_WRITABLE:
        return f"no access to {where}: {reason}", "make it accessible, then "
    if error.errno in NO_MORE_FILES:
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return f"{reason} (this process may open {limit})", "raise the limit (ulimit -n) or lower --workers, then "
    if isinstance(error, BrokenPipeError):
        return f"{reason}: the program that read this output, or a process of this run, has ended", ""
    return (f"{where}: {reason}" if error.filename else reason), ""


def result_files(run: RunDir) -> list[Path]:
    """The files of a finished run that loggers take as artifacts: those beside metrics.csv and the logs."""
    others = ("metrics.csv", "log.txt", "loggers.json", "events.out.tfevents.", ".")
    found = run.path.iterdir() if run.writes else ()
    return sorted(path for path in found if path.is_file() and not path.name.startswith(others))


def _to_agree_on(config: RunConfig, setting: Setting) -> Mapping[str, Any]:
    """What must be the same on all ranks from the start, by name."""
    keys = ("darts_sg", "git", "torch", "kernels")
    options = {f"--{name.replace('_', '-')}": value for name, value in config.as_dict().items() if name != "data"}
    here = {name: setting.environment.get(name) for name in keys}
    here["the plug-ins"] = [record["sha256"] for record in plugins.recorded()]
    return {**options, **here, "the data": setting.data.fingerprint(), "the run": bool(setting.earlier)}


def write_unusual(run: RunDir, unusual: Mapping[str, str]) -> None:
    """Write unusual_images.csv: the images found so far that are damaged or no RGB JPEG, if there are any.

    It has those of all ranks up to the last checkpoint, and those of rank 0 since then.
    """
    if unusual:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([("image", "what"), *sorted(unusual.items())])
        run.write("unusual_images.csv", text.getvalue())


def dry_run(
    job: Job,
    config: RunConfig,
    setting: Setting,
    run: RunDir | None,
    *,
    title: str,
    first_epoch: int,
    facts: Callable[[], list[str]],
    writes: str,
    epochs: Callable[[float], tuple[list[str], float]] | None = None,
) -> None:
    """Time a step, and print what the whole run would take and write. Leaves nothing behind.

    facts: lines about the job, asked for once a step has been taken. epochs: of a job whose epochs differ, from the
    seconds of that step to lines about them and the seconds of the whole run. Raises RunError if a step does not fit
    into memory.
    """
    _refuse_too_large(job, config, setting)
    exhausted = False
    try:
        result, seconds = timed_step(job, first_epoch)
        if job.warm_up_steps > 1:  # the last batch of an epoch may be smaller, and its graph needs memory of its own
            for _ in range(job.warm_up_steps):
                _wait_for(job.step(first_epoch, job.steps_per_epoch - 1))
        of_job = facts()
        of_epochs, whole = epochs(seconds) if epochs else ([], job.num_epochs * job.steps_per_epoch * seconds)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        exhausted = True  # the tensors of the step are freed with the error, when this block ends
    if exhausted:
        raise out_of_memory(job, config, again(job.name, setting.ranks.launcher if setting.ranks.size > 1 else ""))
    folder = config.run_dir or default_run_dir(job.name, config, title) if run is None else run.path
    lines = [
        *of_job,
        *of_epochs,
        f"device: {setting.device} ({environment.machine(setting.device)})"
        + (f", {setting.ranks.size} processes like it" if setting.ranks.size > 1 else ""),
        f"data: {config.dataset}{', ' + setting.data.remark if setting.data.remark else ''}",
        *_step_facts(job, setting, result, seconds, whole),
        f"would {'write' if run is None else 'go on in'}: {folder}/ with {writes}",
        "dry run: nothing was written",
    ]
    print("\n".join(lines))


def _refuse_too_large(job: Job, config: RunConfig, setting: Setting) -> None:
    """UsageError on all ranks if rank 0 finds that a step surely needs more memory than its machine has."""
    spec, ranks = setting.data.spec, setting.ranks
    if told := ranks.from_first(lambda: too_large(job, config, spec.image_size, ranks, setting.device)):
        raise UsageError(told)


def timed_step(job: Job, epoch: int) -> tuple[StepResult, float]:
    """A step of `epoch` as all later ones are, and its seconds: taken after the slower ones that warm the job up.

    Takes steps with full batches only; there is one of another size at most, the last of the epoch.
    """
    full_batches = max(1, job.steps_per_epoch - 1)
    for number in range(job.warm_up_steps):
        _wait_for(job.step(epoch, number % full_batches))
    begun = time.perf_counter()
    result = job.step(epoch, job.warm_up_steps % full_batches)
    _wait_for(result)
    return result, time.perf_counter() - begun


def _wait_for(result: StepResult) -> None:
    """Wait until the device has computed the step: launches on a GPU return at once."""
    for value in result.means.values():
        value.item()


def _step_facts(job: Job, setting: Setting, result: StepResult, seconds: float, whole: float) -> list[str]:
    """Time, losses and memory of a step, and the time of the whole run."""
    losses = ", ".join(f"{name.replace('_', ' ')} {value.item():.4f}" for name, value in result.means.items())
    return [
        f"one step of batch {result.num_images}: {seconds:.2f} s ({result.num_images / seconds:.1f} images/s), "
        + losses,
        f"peak memory: {peak_memory(setting.device) / 2**20:.0f} MiB{_reserved(setting.device)}",
        f"whole run: {job.num_epochs} epochs of {job.steps_per_epoch} steps, about {clock(whole)} (h:mm:ss), "
        "evaluation not counted",
    ]


def _reserved(device: torch.device) -> str:
    """What the process has reserved on a GPU, where captured steps keep all their memory, in words."""
    if device.type != "cuda":
        return ""
    return f", {torch.cuda.max_memory_reserved(device) / 2**20:.0f} MiB reserved"


def to_device(model: Module, device: torch.device) -> Module:
    """The model on its device, with convolution weights in channels_last."""
    return model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]


def compile_parts(parts: Iterable[torch.nn.Module], device: torch.device) -> None:
    """Compile each part with torch.compile, once for each batch size.

    Raises UsageError if there is no working C++ compiler, which torch.compile needs on a CPU.
    """
    if device.type == "cpu":
        try:
            build.compiler_version()
        except build.Unavailable as reason:
            raise UsageError(f"--compile needs a C++ compiler: {reason}; or leave it out") from None
    for part in parts:
        part.compile(dynamic=False)


def captures(config: RunConfig, setting: Setting) -> bool:
    """Whether steps are captured as CUDA graphs: on a CUDA GPU, unless --capture or another option forbids it."""
    capturable = not isinstance(config, SearchConfig) or config.method().is_capturable
    allowed = config.capture and (setting.ranks.size == 1 or config.capture_ranks)
    return allowed and capturable and not config.compile and setting.device.type == "cuda"


def autocast(config: RunConfig, device: torch.device) -> torch.autocast:
    """The context of a training step's forward pass: PyTorch's autocast to bfloat16 with --precision bfloat16."""
    return torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bfloat16")


def _warn_of_other_code(run: RunDir, setting: Setting) -> None:
    """Warn if versions, code or number of processes differ from those that a resumed run was started with."""
    then, now = setting.earlier["environment"], setting.environment
    # runs of earlier versions did not record all of these
    then = {"processes": 1, **{key: now.get(key) for key in ("device_name", "triton")}, **then}
    for key in ("darts_sg", "git", "torch", "kernels", "processes", "device_name", "triton", "triton_levers"):
        if then.get(key) != now.get(key):
            run.warn(f"this run was started with {key} {then.get(key)}, now it is {now.get(key)}: the bits may differ")
