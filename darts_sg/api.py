"""The jobs as Python functions: search, retrain, evaluate and predict, with options of the command line as keywords.

>>> from darts_sg import retrain, search
>>> found = search(recipe="demo", epochs=2)  # doctest: +SKIP
>>> trained = retrain(recipe="demo", genotype=found.run_dir / "genotype.yaml")  # doctest: +SKIP
>>> trained.test_error_last  # doctest: +SKIP

Each call is a run in a folder of its own, as from the command line, which calls these functions. Ctrl-C saves the run
and raises Stopped; `search(resume=folder)` continues it to the same bits. A call leaves the process as it found it:
random generators, CPU threads and deterministic algorithms of PyTorch are set back.
"""

import html
import json
import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast, overload

import numpy as np
import torch

from darts_sg import plugins
from darts_sg.analysis.run_folder import read_metrics, read_run, read_search_epoch
from darts_sg.config import (
    JOBS,
    AugmentConfig,
    JobName,
    RunConfig,
    SearchConfig,
    default_options,
    known_options,
    load_options,
    make_config,
    starting_options,
)
from darts_sg.data import BOX_DATASETS, SPLIT_DATASETS
from darts_sg.engine.checkpoint import load_newest, random_state, set_random_state
from darts_sg.engine.distributed import Ranks, leave
from darts_sg.engine.evaluation import Evaluated
from darts_sg.engine.published import Start, read_start
from darts_sg.engine.weights import Weights, read_weights
from darts_sg.errors import RunError, UsageError, first_line
from darts_sg.genotype import Genotype, load_genotype
from darts_sg.options import flag, read_value
from darts_sg.tasks import DEFAULT_TASK, Prediction, task_of


class RunResult:
    """A run folder as Python objects, read from its files when asked for."""

    def __init__(self, run_dir: str | Path) -> None:
        self.run_dir = Path(run_dir)
        """The folder, with report.md and pictures/."""

    @property
    def metrics(self) -> list[dict[str, float]]:
        """A dict for each epoch, the rows of metrics.csv: pandas.DataFrame(result.metrics)."""
        return [dict(row) for row in read_metrics(self.run_dir / "metrics.csv")]

    @property
    def genotype(self) -> Genotype | None:
        """The genotype that was found or trained; None for a model."""
        path = self.run_dir / "genotype.yaml"
        return load_genotype(path) if path.is_file() else None

    @property
    def options(self) -> Mapping[str, Any]:
        """All options of the run, as in config.yaml."""
        return read_run(self.run_dir).options

    def facts(self) -> dict[str, str]:
        """Lines of the result's `repr`, by title."""
        return {"run folder": str(self.run_dir)}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{title}: {text}' for title, text in self.facts().items())})"

    def _repr_html_(self) -> str:
        rows = (
            f"<tr><th style='text-align:left'>{html.escape(title)}</th><td>{html.escape(text)}</td></tr>"
            for title, text in self.facts().items()
        )
        return f"<table>{''.join(rows)}</table>{self._picture()}"

    def _picture(self) -> str:
        genotype = self.genotype
        return "" if genotype is None else cast(Any, genotype)._repr_svg_()


class SearchResult(RunResult):
    """A finished search."""

    @property
    def genotype(self) -> Genotype:
        """The genotype that was found."""
        return load_genotype(self.run_dir / "genotype.yaml")

    @property
    def alphas(self) -> dict[str, np.ndarray]:
        """The architecture parameters after the last epoch: alpha_normal, alpha_reduce (num_edges, num_operations).

        With edge normalisation also beta_normal and beta_reduce. Read from the newest checkpoint: UsageError if there
        is none.
        """
        if (run := read_run(self.run_dir)).baseline:
            raise UsageError(f"{self.run_dir} is a search without alphas ({run.options['strategy']})")
        found = load_newest(self.run_dir / "checkpoints", lambda warning: None)
        if found is None:
            raise UsageError(f"{self.run_dir} has no checkpoint, which holds the alphas; see mixing_weights")
        state = found[1]["state"]["supernet"]
        return {name: state[name].double().numpy() for name in state if name.startswith(("alpha_", "beta_"))}

    @property
    def mixing_weights(self) -> dict[str, np.ndarray]:
        """The mixing weights that the genotype was derived from: normal, reduce (num_edges, num_operations).

        Each row sums to 1, except those of edges that a selection by perturbation removed. With edge normalisation also
        edge_normal and edge_reduce (num_edges,).
        """
        return dict(read_search_epoch(self.run_dir).weights)

    @property
    def stopped_early(self) -> Mapping[str, Any] | None:
        """`after_epoch`, `chosen_epoch` and `reason` of a search that early stopping ended; None of any other."""
        return read_run(self.run_dir).stopped

    def facts(self) -> dict[str, str]:
        genotype = self.genotype
        measured = genotype.provenance.get("measured", {}).get("validation_accuracy_percent")
        measured_on = "the best candidate" if read_run(self.run_dir).baseline else "the supernet"
        accuracy = {} if measured is None else {f"validation accuracy of {measured_on}": f"{measured:.2f}%"}
        return {"genotype": genotype.name, **accuracy, "epochs": str(len(self.metrics)), **super().facts()}


class RetrainResult(RunResult):
    """A finished training of the network of a genotype, or of a model. Errors are in percent.

    Other tasks than classification have no errors: their figures are in `result`.
    """

    @property
    def result(self) -> dict[str, Any]:
        """The content of result.json: errors, parameters, MACs, data, seed, code."""
        content: dict[str, Any] = json.loads((self.run_dir / "result.json").read_text(encoding="utf-8"))
        return content

    @property
    def test_error_last(self) -> float:
        """Test error after the last epoch."""
        return float(self.result["test_error_last"])

    @property
    def test_error_best(self) -> float:
        """Test error after the best epoch, chosen on the images that `result["best_chosen_on"]` names."""
        return float(self.result["test_error_best"])

    @property
    def weights(self) -> Path:
        """The weights file after the last epoch, for `evaluate`."""
        return self.run_dir / "weights.safetensors"

    def facts(self) -> dict[str, str]:
        result, figure = self.result, task_of(self.options).headline
        key = figure.key("test")
        return {
            "network": str(result.get("model") or result.get("genotype")),
            f"{figure.title}, last epoch": figure.text.format(result[f"{key}_last"]),
            f"{figure.title}, best epoch (chosen on the {result['best_chosen_on']} images)": figure.text.format(
                result[f"{key}_best"]
            ),
            "parameters": f"{result['params']:,}",
            **super().facts(),
        }


@overload
def search(
    *,
    resume: str | Path | None = None,
    config: str | Path | None = None,
    dry_run: Literal[False] = False,
    callbacks: Iterable[Any] = (),
    stop: threading.Event | None = None,
    started: float | None = None,
    **options: Any,
) -> SearchResult: ...


@overload
def search(
    *,
    resume: str | Path | None = None,
    config: str | Path | None = None,
    dry_run: bool,
    callbacks: Iterable[Any] = (),
    stop: threading.Event | None = None,
    started: float | None = None,
    **options: Any,
) -> SearchResult | None: ...


def search(
    *,
    resume: str | Path | None = None,
    config: str | Path | None = None,
    dry_run: bool = False,
    callbacks: Iterable[Any] = (),
    stop: threading.Event | None = None,
    started: float | None = None,
    **options: Any,
) -> SearchResult | None:
    """Search for a cell; returns what was found, None for a dry run.

    `options` are those of `search.py --help-all`, with underscores. `config` is a YAML file of options, `resume` a run
    folder to continue.

    callbacks: functions of an epoch's row of metrics.csv, called after each epoch on rank 0, or objects with methods of
    a logger (darts_sg.engine.loggers). If one returns "stop", the run saves and raises Stopped; so does `stop`, an
    event that another thread sets.
    started: when a time budget begins, on the clock of time.monotonic. Default: this call.

    Raises UsageError for what cannot be done as asked, RunError for a run that fails, Stopped for one that was stopped.
    """
    from darts_sg.engine.search import run_search

    planned = plan("search", options, file=config, resume=resume)
    assert isinstance(planned.config, SearchConfig)
    with left_as_found():
        folder = run_search(planned.config, resume=planned.resume, dry=dry_run, **_hooks(callbacks, stop, started))
    return None if folder is None else SearchResult(folder)


@overload
def retrain(
    *,
    resume: str | Path | None = None,
    config: str | Path | None = None,
    dry_run: Literal[False] = False,
    callbacks: Iterable[Any] = (),
    stop: threading.Event | None = None,
    started: float | None = None,
    **options: Any,
) -> RetrainResult: ...


@overload
def retrain(
    *,
    resume: str | Path | None = None,
    config: str | Path | None = None,
    dry_run: bool,
    callbacks: Iterable[Any] = (),
    stop: threading.Event | None = None,
    started: float | None = None,
    **options: Any,
) -> RetrainResult | None: ...


def retrain(
    *,
    resume: str | Path | None = None,
    config: str | Path | None = None,
    dry_run: bool = False,
    callbacks: Iterable[Any] = (),
    stop: threading.Event | None = None,
    started: float | None = None,
    **options: Any,
) -> RetrainResult | None:
    """Train the network of a genotype, or a model, from scratch, and test it; returns the errors, None for a dry run.

    `options` are those of `augment.py --help-all`, with underscores: `genotype="DARTS_V2"`, `finetune=FILE`, … The rest
    is as in `search`.
    """
    from darts_sg.engine.augment import run_augment

    planned = plan("augment", options, file=config, resume=resume)
    assert isinstance(planned.config, AugmentConfig)
    with left_as_found():
        folder = run_augment(planned.config, resume=planned.resume, dry=dry_run, **_hooks(callbacks, stop, started))
    return None if folder is None else RetrainResult(folder)


def evaluate(weights: str | Path, **options: Any) -> Evaluated:
    """Test a weights file: the network and normalisation are the file's, and so is the data set by default.

    `options`: dataset, data, device, threads and others that say where to test; those of a training are refused.
    """
    from darts_sg.engine.evaluation import run_evaluation

    planned = plan("augment", options, evaluate=weights)
    assert isinstance(planned.config, AugmentConfig)
    assert planned.evaluate is not None
    with left_as_found():
        return run_evaluation(planned.config, planned.evaluate)


def predict(
    weights: str | Path,
    images: str | Path | np.ndarray | Iterable[str | Path | np.ndarray],
    *,
    score: float | None = None,
    device: str = "auto",
    batch_size: int = 16,
) -> list[Prediction]:
    """What trained weights say of images: objects in boxes, or the five most probable classes, as NumPy arrays.

    weights: a weights file or run folder. images: files, folders of them, or arrays, uint8 (H, W, 3). score: the lowest
    score that counts; by default 0.3 for boxes, 0 for classes. Files that cannot be read are left out with a warning.

    Raises UsageError if the weights or all images cannot be read, or an array is no image.
    """
    from darts_sg.engine.environment import choose_device
    from darts_sg.engine.predict import image_files, predict_images

    if score is not None and not 0 <= score <= 1:
        raise UsageError(f"a score is from 0 to 1, not {score:g}")
    given = [images] if isinstance(images, str | Path | np.ndarray) else list(images)
    found: list[Path | np.ndarray] = []
    for image in given:
        found += [image] if isinstance(image, np.ndarray) else image_files([Path(image)])
    read = read_weights(Path(weights))
    with left_as_found():
        return predict_images(read, found, choose_device(device), least=score, batch_size=batch_size).found


class Plan(NamedTuple):
    """A job with all its options, ready to run."""

    config: RunConfig
    resume: Path | None = None
    evaluate: Path | None = None


def plan(
    job: JobName,
    options: Mapping[str, Any],
    *,
    file: str | Path | None = None,
    resume: str | Path | None = None,
    evaluate: str | Path | None = None,
) -> Plan:
    """Complete the options that are given for a job; raises UsageError for what is wrong with them.

    The rest comes from `file` and the recipe, from the run folder `resume`, from the weights file to `evaluate`, or
    from the one to fine-tune. Where torchrun may have restarted the processes, the run in run_dir is resumed.
    """
    caller = "evaluate()" if evaluate is not None else "search()" if job == "search" else "retrain()"
    given = known_options(job, options, caller)
    file, resume, evaluate = (
        _path(name, value) for name, value in (("config", file), ("resume", resume), ("evaluate", evaluate))
    )
    if evaluate is not None and resume is not None:
        raise UsageError(f"--resume is for training, and --evaluate {evaluate} only tests; leave it out")
    base = {} if evaluate or resume else starting_options(job, given.get("recipe"), file)
    # before any name is looked up, such as that of an operation in a weights file
    if files := plugins.for_job(given.get("plugin", ""), base=base.get("plugin", ""), resume=resume):
        given["plugin"] = files
    if evaluate is not None:
        return Plan(_testing(read_weights(evaluate), given), evaluate=evaluate)
    if resume is not None:
        return Plan(_resumed(job, given, resume, file), resume=resume)
    base = base_options(job, given, file=file)
    if start := given.get("finetune") or base.get("finetune"):
        _refuse_other_network(given, base, start)
    config = make_config(job, base=base, **given)
    return _restarted(job, config) if Ranks.may_restart() else Plan(config)


def base_options(
    job: JobName,
    given: Mapping[str, Any],
    *,
    file: Path | None = None,
    resume: Path | None = None,
    evaluate: Path | None = None,
) -> dict[str, Any]:
    """The options that hold where `given` says nothing: of a run, of weights, or of the recipe and a file over it."""
    if resume is not None:
        of_the_process = {"run_dir": None, "time_budget": None}  # of the process that started the run, not of the run
        return _stored_options(resume, job) | of_the_process
    if evaluate is not None:
        return _weights_options(read_weights(evaluate))
    base = starting_options(job, given.get("recipe"), file)
    start = given.get("finetune") or base.get("finetune")
    if not start:
        return base
    weights = read_start(Path(start), given.get("model") or "")
    return _weights_split(weights) | base | weights.options()


def _path(name: str, value: Any) -> Path | None:
    try:
        path: Path | None = read_value(Path | None, value)
    except UsageError as error:
        raise UsageError(f"{flag(name)}: {error}") from None
    return path


def _resumed(job: JobName, given: Mapping[str, Any], resume: Path, file: Path | None) -> RunConfig:
    """The config of a run to continue; UsageError if an option given beside it would change its result."""
    base = base_options(job, given, resume=resume)
    if file is not None:
        raise UsageError("--resume takes all options from the run itself; leave --config out")
    if given.get("run_dir") is not None:
        raise UsageError("--resume continues in the run's own folder; leave --run-dir out")
    _refuse_other_options(job, {**base, **given}, base, resume)
    return make_config(job, base=base, **given)


def _restarted(job: JobName, config: RunConfig) -> Plan:
    """A plan where torchrun may have restarted the processes: it resumes the run in run_dir if there is one.

    UsageError without a run_dir, and if the run there has other options.
    """
    run_dir = config.run_dir
    if run_dir is None:
        raise UsageError("torchrun --max-restarts needs --run-dir DIR, where a restarted run finds itself again")
    if not (run_dir / "config.yaml").is_file():
        return Plan(config)
    options = known_options(job, config.as_dict(), "the command line")
    _refuse_other_options(job, options, _stored_options(run_dir, job), run_dir)
    return Plan(config, resume=run_dir)


def _stored_options(run_dir: Path, job: JobName) -> dict[str, Any]:
    """The options in a run's config.yaml; options that are younger than the run have their defaults."""
    path = run_dir / "config.yaml"
    if not path.is_file():
        raise UsageError(f"{run_dir} is not a run folder: it has no config.yaml")
    return default_options(job) | load_options(job, path)


def _refuse_other_options(job: JobName, options: Mapping[str, Any], stored: Mapping[str, Any], run_dir: Path) -> None:
    """UsageError if an option on which the result depends differs from the run's."""
    for f in fields(JOBS[job]):
        given, then = options[f.name], stored[f.name]
        if not f.metadata["free"] and given != then:
            raise UsageError(
                f"{flag(f.name)} {given} would change the result of {run_dir}, which was started with {then}; leave it "
                "out, or start a new run"
            )


def _refuse_other_network(given: Mapping[str, Any], base: Mapping[str, Any], weights: str) -> None:
    """UsageError if an option asks for another network than that of the weights to fine-tune."""
    for name in ("genotype", "model", "network", "channels", "cells"):
        if name in given and given[name] != base[name]:
            raise UsageError(
                f"{flag(name)} {given[name]} is not that of {weights}, whose network is trained on; leave it out"
            )


def _weights_options(weights: Weights) -> dict[str, Any]:
    """The options to test weights with, unless others are given."""
    of_the_training: dict[str, Any] = {"dataset": weights.metadata.dataset, "seed": weights.metadata.seed}
    if weights.metadata.task != DEFAULT_TASK:  # other tasks refuse augmentation that is for classifiers
        of_the_training["cutout_length"] = 0
    return default_options("augment") | weights.options() | of_the_training | _weights_split(weights)


def _weights_split(weights: Start) -> dict[str, Any]:
    """The option that splits the data as in the training of weights: none of their test images was trained on."""
    return {"split_seed": weights.split_seed} if weights.spec.name in SPLIT_DATASETS else {}


def _testing(weights: Weights, given: Mapping[str, Any]) -> RunConfig:
    """The config to test weights with; UsageError if an option is given that only a training uses."""
    metadata, base = weights.metadata, _weights_options(weights)
    useful = {f.name for f in fields(AugmentConfig) if f.metadata["group"] == "Data" and f.metadata["free"]}
    useful |= {"dataset", "data_note", "device", "threads", "plugin", "split_seed"}
    for name, value in given.items():
        if name not in useful and value != base[name]:
            raise UsageError(f"{flag(name)} is for training, and --evaluate {weights.path} only tests; leave it out")
    options = base | dict(given)
    same_size = options["dataset"] in (metadata.dataset, "folder", *BOX_DATASETS)
    options["image_size"] = metadata.image_size if same_size else None
    options["auxiliary_weight"] = None if metadata.model else 0.0
    return make_config("augment", base=options)


def _hooks(callbacks: Iterable[Any], stop: threading.Event | None, started: float | None) -> dict[str, Any]:
    return {"callbacks": list(callbacks), "stop": stop, "started": started}


@contextmanager
def _silence() -> Iterator[None]:
    """Print nothing within the context: rank 0 prints for all."""
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
        yield


@contextmanager
def left_as_found() -> Iterator[None]:
    """Within the context a job runs; afterwards the process' global state is as before, so that another may follow.

    Turns a lack of memory outside the steps into a RunError.
    """
    ranks = Ranks.from_environment()
    if ranks.size > 1:
        leave()  # the process group of an earlier run in this process
    numbers, threads = random_state(gpus=torch.cuda.is_initialized()), torch.get_num_threads()
    deterministic = _deterministic()
    settings: Any = torch.utils.deterministic  # typed as a module without this attribute
    filled, benchmark = settings.fill_uninitialized_memory, torch.backends.cudnn.benchmark
    try:
        with nullcontext() if ranks.leads else _silence():
            yield
    except RunError:
        raise
    except (MemoryError, RuntimeError) as error:
        from darts_sg.engine.memory import is_out_of_memory

        if not is_out_of_memory(error):
            raise
        raise RunError(
            f"out of memory outside the steps: {first_line(error)}; free some, or take fewer --train-images or "
            "--channels"
        ) from error
    finally:
        torch.set_num_threads(threads)
        if _deterministic() != deterministic:  # the call imports the compiler of PyTorch, which takes two seconds
            torch.use_deterministic_algorithms(deterministic[0], warn_only=deterministic[1])
        settings.fill_uninitialized_memory, torch.backends.cudnn.benchmark = filled, benchmark
        set_random_state(numbers)


def _deterministic() -> tuple[bool, bool]:
    """PyTorch's two flags: deterministic algorithms are required; it only warns where there are none."""
    return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
