"""Runs the baselines: candidates that are trained and compared one by one, and random paths of a shared supernet.

Both are jobs of the search, so that a run folder, checkpoints, time budget, loggers and several processes work as in
any other search. Random choices depend on the seed and the number of the candidate, step or sample.
"""

import functools
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from darts_sg.analysis.cost import CELLS, CHANNELS, Cost, count_params, derived_cost, human
from darts_sg.backends import accelerate, pytorch_backend
from darts_sg.baselines import Candidate, CandidateStrategy, Cells, Problem, Strategy, as_plain
from darts_sg.baselines.architectures import from_plain, random_cells
from darts_sg.baselines.proxies import score as proxy_score
from darts_sg.baselines.rsps import Rsps, path_outputs
from darts_sg.config import SearchConfig
from darts_sg.data.generator import keyed_seed
from darts_sg.engine.drawing import write_report
from darts_sg.engine.kernels import use_kernels
from darts_sg.engine.loop import Loop, Piece, StepResult
from darts_sg.engine.memory import buffers_kept
from darts_sg.engine.optimizers import SGD
from darts_sg.engine.run_dir import RunDir
from darts_sg.engine.scoring import probe_of, seeded
from darts_sg.engine.search_data import search_parts
from darts_sg.engine.search_result import searched_genotype
from darts_sg.engine.selection_phase import measure
from darts_sg.engine.setup import (
    Setting,
    autocast,
    batches_to_evaluate,
    dry_run,
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
    evaluate,
    load_optimizer,
    set_learning_rate,
    weight_optimizer,
)
from darts_sg.engine.subject import network_cost
from darts_sg.errors import UsageError
from darts_sg.genotype import Genotype
from darts_sg.invocation import retrain_command
from darts_sg.networks.build import NetworkPlan
from darts_sg.networks.derived import DerivedNetwork
from darts_sg.networks.supernet import Supernet
from darts_sg.records import MetricsRow
from darts_sg.spaces import parse_space
from darts_sg.tasks import columns, task_of

MOST_SHOWN = 10
"""Candidates in the provenance of a genotype."""
DIGITS = 6
SELDOM = 50
"""Candidates between two writings of candidates.json, where a proxy scores them."""


class BaselineJob:
    """What the two kinds of baselines share: the data, the space and the result."""

    name = "search"
    warm_up_steps = 1
    num_epochs: int
    steps_per_epoch: int

    def __init__(self, config: SearchConfig, setting: Setting) -> None:
        self.config, self.setting = config, setting
        self.space = parse_space(config.space)
        self.problem = Problem(self.space.operations, config.nodes, self.space.allowed)
        self.task = task_of(config.as_dict())
        self.train_images, self.validation_images = (part.to(setting.device) for part in search_parts(config, setting))
        self.train = train_batches(self.train_images, config, setting, "weights")
        self.tried: list[Candidate] = []
        """The candidates so far, in order."""

    def generator(self, purpose: str, number: int) -> np.random.Generator:
        return np.random.default_rng(keyed_seed(self.config.seed, "baseline", purpose, number))

    def random_cells(self, purpose: str, number: int) -> Cells:
        return random_cells(self.problem, self.generator(purpose, number))

    def best(self) -> int:
        """Number of the best candidate so far, the first of equals."""
        return max(range(len(self.tried)), key=lambda number: self.tried[number].score)

    def genotype(self, run: RunDir, epoch: int, seconds: float | None = None) -> Genotype:
        """The best candidate so far, with its provenance."""
        number = self.best()
        measured = self.measured(self.tried[number]) | {"candidate": number + 1, "candidates": len(self.tried)}
        if seconds is not None:
            measured["search_seconds"] = round(seconds, 1)
        ranked = sorted(range(len(self.tried)), key=lambda i: -self.tried[i].score)[:MOST_SHOWN]
        return searched_genotype(
            self.tried[number].cells, self.space, self.config, self.setting,
            run=run.path.name, epoch=epoch, images=(len(self.train_images), len(self.validation_images)),
            measured=measured, stopped=None, num_epochs=self.num_epochs, candidates=[self.record(i) for i in ranked],
        )  # fmt: skip

    def record(self, number: int) -> dict[str, Any]:
        """A candidate in the provenance."""
        tried = self.tried[number]
        parent = {} if tried.parent is None else {"parent": tried.parent + 1}
        measures = {name: round(value, DIGITS) for name, value in tried.measures.items()}
        return {"candidate": number + 1, **parent, **measures}

    def measured(self, best: Candidate) -> dict[str, Any]:
        return dict(self.task.searched(best.measures))

    def early_stop(self, rows: Sequence[MetricsRow]) -> None:
        """Never stops early: --epochs is the budget."""

    def figures(self, epoch: int) -> dict[str, Any]:
        """None: there are no mixing weights."""
        return {}

    def share(self) -> None:
        self.setting.share_unusual()

    def match_files(self, run: RunDir, epoch: int) -> None:
        """Nothing to do: candidates.json is written anew after each candidate."""

    def base_state(self) -> dict[str, Any]:
        return {
            "tried": [
                {"cells": as_plain(c.cells), "score": c.score, "measures": dict(c.measures), "parent": c.parent}
                for c in self.tried
            ],
            "unusual_images": dict(self.setting.data.unusual),
        }

    def load_base(self, state: Mapping[str, Any]) -> None:
        self.tried = [
            Candidate(from_plain(each["cells"]), each["score"], each["measures"], each["parent"])
            for each in state["tried"]
        ]
        self.setting.data.unusual.update(state.get("unusual_images", {}))

    def write_candidates(self, run: RunDir) -> None:
        """Write candidates.json: all candidates with their cells."""
        found = [
            {**self.record(number), "score": tried.score, **as_plain(tried.cells)}
            for number, tried in enumerate(self.tried)
        ]
        run.write_json("candidates.json", {"candidates": found})

    def network_of(self, cells: Cells) -> tuple[NetworkPlan, Callable[[], nn.Module]]:
        """The plan of a candidate's network, and what builds it."""
        config, spec = self.config, self.setting.data.spec
        genotype = Genotype("candidate", self.space.name, self.space.operations, *cells)
        plan = NetworkPlan(trained=genotype, shape=config.network, channels=config.channels, cells=config.cells)
        return plan, lambda: self.task.build(plan, spec)


@dataclass
class Training:
    """The candidate that is being trained."""

    number: int
    cells: Cells
    parent: int | None
    network: nn.Module
    weights: list[nn.Parameter]
    optimizer: torch.optim.SGD


class CandidateJob(BaselineJob):
    """One architecture after the other: an epoch belongs to one candidate, and each has the same number of them.

    All candidates see the same batches, and each has the learning rates of a training of its own.
    """

    def __init__(self, strategy: CandidateStrategy, config: SearchConfig, setting: Setting) -> None:
        super().__init__(config, setting)
        self.strategy = strategy
        self.num_candidates = strategy.num_candidates(config.epochs)
        self.num_epochs = self.num_candidates * strategy.epochs
        self.steps_per_epoch = 1 if strategy.proxy else len(self.train)
        self.schedule = replace(config, epochs=strategy.epochs)
        self.current: Training | None = None
        self.kernels = ""
        if not strategy.proxy:
            self.begin(0, *self.propose(0))  # chooses the kernels, which the run records from its start
        setting.environment["kernels"] = self.kernels or "pytorch"

    def learning_rate(self, epoch: int) -> float:
        return cosine_learning_rate(self.schedule, epoch % self.strategy.epochs)

    def propose(self, number: int) -> tuple[Cells, int | None]:
        """The candidate of this number, given all before it."""
        return self.strategy.propose(self.problem, self.tried[:number], self.generator("proposal", number))

    def begin(self, number: int, cells: Cells, parent: int | None) -> Training:
        with seeded(self.config.seed, "weights", number):
            network = to_device(self.network_of(cells)[1](), self.setting.device)
        if isinstance(network, DerivedNetwork):
            if self.kernels == "pytorch":  # found out with the first network, and said once
                accelerate(network, pytorch_backend(network))
            else:
                self.kernels = use_kernels(network, self.config, self.setting)
        weights = list(network.parameters())
        optimizer = weight_optimizer(weights, self.config, self.setting.device)
        return Training(number, cells, parent, network, weights, optimizer)

    def step(self, epoch: int, step: int) -> StepResult:
        number, own_epoch = divmod(epoch, self.strategy.epochs)
        if self.current is None or self.current.number != number:
            self.current = None  # before the next network is built
            if self.strategy.proxy:
                return self._score(number)
            self.current = self.begin(number, *self.propose(number))
        position, ranks, now = own_epoch * self.steps_per_epoch + step, self.setting.ranks, self.current
        x, targets = self.train[position]
        num_terms = self.task.num_terms(targets)
        with autocast(self.config, self.setting.device):
            outputs = now.network(x)[0]
            loss = self.task.loss(outputs, targets)
        set_learning_rate(now.optimizer, self.learning_rate(epoch))
        apply_weight_step(now.optimizer, now.weights, loss, self.config.gradient_clip, ranks, num_terms)
        ranks.average_statistics(now.network, len(x))
        found = {"loss": loss} | self.task.training_metrics(outputs, targets)
        means = ranks.means(num_terms, **{f"train_{name}": value for name, value in found.items()})
        return StepResult(self.train.num_images(position), means)

    def _score(self, number: int) -> StepResult:
        """Judge a candidate by the proxy, on the first batch."""
        cells, parent = self.propose(number)
        plan, build = self.network_of(cells)
        cost = network_cost(self.task, plan, self.setting.data.spec)
        costs = {"params": cost.params, "macs": cost.macs}
        batch = self.train[0]
        found = proxy_score(self.strategy.proxy, probe_of(build, batch, self.task, costs, self.config.seed, number))
        # every rank has its share of the batch: the mean of their scores judges
        [total] = self.setting.ranks.sum(found)
        value = total / self.setting.ranks.size
        self.tried = [*self.tried[:number], Candidate(cells, value, {self.strategy.proxy: value}, parent)]
        return StepResult(self.train.num_images(0), {"score": torch.tensor(value)})

    def attempt(self, batch_size: int, *, recompute: bool, side: int | None = None) -> int:
        """Compute the gradients of a step with `batch_size` images on this rank alone and discard them."""
        x, targets = trial_batch(self.train_images, self.config, self.setting, batch_size)
        x = x[..., :side, :side]
        training = self.begin(0, *self.propose(0))
        with autocast(self.config, self.setting.device):
            loss = self.task.loss(training.network(x)[0], targets)
        torch.autograd.grad(loss, training.weights, materialize_grads=True)
        return x[:, 0].numel()

    def after_steps(self, epoch: int) -> Iterator[Piece]:
        """Nothing: a candidate is evaluated at the end of its last epoch."""
        return iter(())

    def end_epoch(self, epoch: int, means: dict[str, float], run: RunDir) -> dict[str, float]:
        number, own_epoch = divmod(epoch, self.strategy.epochs)
        row = {"candidate": float(number + 1)}
        score = self.task.score
        if self.strategy.proxy:
            row |= means
        else:
            assert self.current is not None
            row |= {"learning_rate": self.learning_rate(epoch)} | means
            measures: Mapping[str, float] = {}
            if own_epoch + 1 == self.strategy.epochs:
                measures = self._evaluate(self.current.network)
                found = Candidate(self.current.cells, measures[score], measures, self.current.parent)
                self.tried = [*self.tried[:number], found]
                self.current = None
            row |= {f"validation_{name}": measures.get(name, float("nan")) for name in ("loss", score)}
        if len(self.tried) == number + 1:
            best = self.best()
            if best == number:
                run.write(f"genotypes/epoch_{epoch + 1:04d}.yaml", self.genotype(run, epoch + 1).to_yaml())
            if not self.strategy.proxy or (number + 1) % SELDOM == 0:  # a proxy takes less time than the file
                self.write_candidates(run)
            row["best_candidate"] = float(best + 1)
        return row

    def _evaluate(self, network: nn.Module) -> dict[str, float]:
        batches = batches_to_evaluate(self.validation_images, self.config, self.setting)
        evaluator = functools.partial(self.task.evaluator, self.setting.data.spec)
        found = evaluate(network, lambda x: network(x)[0], batches, evaluator, self.setting.ranks)
        self.share()
        return found

    def measured(self, best: Candidate) -> dict[str, Any]:
        return {"proxy": self.strategy.proxy, "score": best.score} if self.strategy.proxy else super().measured(best)

    def state_dict(self) -> dict[str, Any]:
        state = self.base_state()
        if (now := self.current) is not None:
            state["current"] = {
                "number": now.number, "cells": as_plain(now.cells), "parent": now.parent,
                "network": now.network.state_dict(), "optimizer": now.optimizer.state_dict(),
            }  # fmt: skip
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.load_base(state)
        self.current = None
        if (saved := state.get("current")) is not None:
            self.current = self.begin(saved["number"], from_plain(saved["cells"]), saved["parent"])
            self.current.network.load_state_dict(saved["network"])
            load_optimizer(self.current.optimizer, saved["optimizer"])

    def forward_anew(self, x: Tensor) -> Tensor:
        """Outputs of images (N, C, H, W) from the first candidate's network, in train mode."""
        outputs: Tensor = self.network_of(self.propose(0)[0])[1]()(x)[0]
        return outputs

    def facts(self) -> list[str]:
        """Lines of a dry run about the candidates."""
        plan, _ = self.network_of(self.propose(0)[0])
        cost: Cost = network_cost(self.task, plan, self.setting.data.spec)
        how = f"scored by {self.strategy.proxy}" if self.strategy.proxy else f"epochs of each: {self.strategy.epochs}"
        return [
            f"search space {self.space.name}: {len(self.space.operations)} operations "
            f"({', '.join(self.space.operations)})",
            f"strategy {self.config.strategy}: {self.num_candidates} candidates, {how}",
            f"the first of them: {cost.params:,} weights, {human(cost.macs)} MACs an image "
            f"(C={self.config.channels}, {self.config.cells} cells)",
            f"images: {len(self.train_images):,} for the weights, {len(self.validation_images):,} to compare them on",
        ]


class RspsJob(BaselineJob):
    """A supernet of which every step trains one random path; then rounds that compare random paths.

    The measurements of the rounds are pieces of work after the last step. They normalise by the statistics of the
    batch: the running ones mix those of all paths.
    """

    def __init__(self, strategy: Rsps, config: SearchConfig, setting: Setting) -> None:
        super().__init__(config, setting)
        self.strategy = strategy
        self.num_epochs, self.steps_per_epoch = config.epochs, len(self.train)
        self.validation = train_batches(self.validation_images, config, setting, "alphas")
        self.supernet = to_device(self._build(), setting.device)
        setting.environment["kernels"] = "pytorch"  # a path is a plain network
        self.weights = self.supernet.weights()
        # not fused: a weight that no path has met yet has no gradient and no momentum, and stays as it is
        self.optimizer = SGD(
            self.weights,
            config.learning_rate,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            nesterov=config.nesterov,
        )
        self.rounds = strategy.num_rounds(self.num_epochs * self.steps_per_epoch)
        self.found: list[tuple[float, float]] = []
        """(score, loss) of each measurement of the rounds: of the samples, then of the finalists of each."""

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
            allowed=self.space.allowed,
        )

    def learning_rate(self, epoch: int) -> float:
        return cosine_learning_rate(self.config, epoch)

    def step(self, epoch: int, step: int) -> StepResult:
        position, ranks = epoch * self.steps_per_epoch + step, self.setting.ranks
        cells = self.random_cells("path", position)
        x, targets = self.train[position]
        num_terms = self.task.num_terms(targets)
        with autocast(self.config, self.setting.device):
            outputs = path_outputs(self.supernet, x, cells)
            loss = self.task.loss(outputs, targets)
        set_learning_rate(self.optimizer, self.learning_rate(epoch))
        apply_weight_step(self.optimizer, self.weights, loss, self.config.gradient_clip, ranks, num_terms)
        ranks.average_statistics(self.supernet, len(x))
        found = {"loss": loss} | self.task.training_metrics(outputs, targets)
        means = ranks.means(num_terms, **{f"train_{name}": value for name, value in found.items()})
        return StepResult(self.train.num_images(position), means)

    def attempt(self, batch_size: int, *, recompute: bool, side: int | None = None) -> int:
        """Compute the gradients of a step with `batch_size` images on this rank alone and discard them."""
        x, targets = trial_batch(self.train_images, self.config, self.setting, batch_size)
        x = x[..., :side, :side]
        with buffers_kept(self.supernet):
            with autocast(self.config, self.setting.device):
                loss = self.task.loss(path_outputs(self.supernet, x, self.random_cells("path", 0)), targets)
            torch.autograd.grad(loss, self.weights, materialize_grads=True)
        return x[:, 0].numel()

    # --- the rounds

    @property
    def _measurements_a_round(self) -> int:
        return self.strategy.samples + self.strategy.finalists

    def _next(self) -> tuple[int, int] | None:
        """(round, number of the sample) that is measured next; None once all rounds are done."""
        number, place = divmod(len(self.found), self._measurements_a_round)
        if number == self.rounds:
            return None
        if place < self.strategy.samples:
            return number, place
        start = number * self._measurements_a_round
        samples = self.found[start : start + self.strategy.samples]
        ranked = sorted(range(len(samples)), key=lambda i: (-samples[i][0], samples[i][1]))
        return number, ranked[place - self.strategy.samples]

    def sample(self, number: int, place: int) -> Cells:
        """A random architecture of a round."""
        return self.random_cells("sample", number * self.strategy.samples + place)

    def after_steps(self, epoch: int) -> Iterator[Piece]:
        if epoch + 1 < self.num_epochs:
            return
        while (following := self._next()) is not None:
            number, sampled = following
            place = len(self.found) % self._measurements_a_round
            final = place >= self.strategy.samples
            batches = len(self.validation) if final else min(self.strategy.batches, len(self.validation))
            cells = self.sample(number, sampled)
            measures = self._measure(cells, number, batches)
            self.found.append((measures[self.task.score], measures.get("loss", 0.0)))
            lines: tuple[str, ...] = ()
            if final:
                self.tried.append(Candidate(cells, measures[self.task.score], measures))
            if place + 1 == self._measurements_a_round:
                best = self.tried[self.best()]
                text = columns.cell(self.task.score, best.score)
                lines = (f"round {number + 1}/{self.rounds}: the best path so far has {self.task.score} {text}",)
            yield Piece(f"round {number + 1}", place + 1, self._measurements_a_round, lines)

    def _measure(self, cells: Cells, number: int, batches: int) -> dict[str, float]:
        return measure(
            self.supernet,
            lambda x: path_outputs(self.supernet, x, cells),
            self.validation,
            number,
            batches,
            functools.partial(self.task.evaluator, self.setting.data.spec),
            self.setting.ranks,
        )

    def end_epoch(self, epoch: int, means: dict[str, float], run: RunDir) -> dict[str, float]:
        row = {"learning_rate": self.learning_rate(epoch)} | means
        measures: Mapping[str, float] = self.tried[self.best()].measures if self.tried else {}
        if self.tried:
            self.write_candidates(run)
        return row | {f"validation_{name}": measures.get(name, float("nan")) for name in ("loss", self.task.score)}

    def state_dict(self) -> dict[str, Any]:
        return {
            **self.base_state(),
            "supernet": self.supernet.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "found": [list(each) for each in self.found],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.load_base(state)
        self.supernet.load_state_dict(state["supernet"])
        load_optimizer(self.optimizer, state["optimizer"])
        self.found = [(score, loss) for score, loss in state["found"]]

    def forward_anew(self, x: Tensor) -> Tensor:
        """Outputs of images (N, C, H, W) from a path of a new supernet, in train mode."""
        return path_outputs(self._build(), x, self.random_cells("path", 0))

    def facts(self) -> list[str]:
        """Lines of a dry run about the supernet and the rounds."""
        alphas = sum(a.numel() for a in self.supernet.alphas())
        return [
            f"search space {self.space.name}: {len(self.space.operations)} operations "
            f"({', '.join(self.space.operations)})",
            f"supernet: {count_params(self.supernet) - alphas:,} weights, of which a step trains one path",
            f"strategy {self.config.strategy}: {self.strategy.samples} paths a round, measured on batches: "
            f"{min(self.strategy.batches, len(self.validation))}, the best {self.strategy.finalists} on all; "
            f"rounds: {self.rounds}",
            f"images: {len(self.train_images):,} for the weights, {len(self.validation_images):,} to compare paths on",
        ]


def baseline_job(strategy: Strategy, config: SearchConfig, setting: Setting) -> CandidateJob | RspsJob:
    """The job of a strategy; UsageError for one that is of neither kind."""
    if isinstance(strategy, CandidateStrategy):
        return CandidateJob(strategy, config, setting)
    if isinstance(strategy, Rsps):
        return RspsJob(strategy, config, setting)
    raise UsageError(f"--strategy {config.strategy} is no strategy that tries candidates; derive it from one that does")


def run_baseline(
    strategy: Strategy,
    config: SearchConfig,
    setting: Setting,
    run: RunDir | None,
    *,
    dry: bool,
    prepare_run: Callable[[RunDir], None],
    callbacks: Sequence[Any],
    stop: threading.Event | None,
    started: float,
) -> Path | None:
    """Run a baseline search in `run`, or in a new folder; see `run_search`."""
    job = baseline_job(strategy, config, setting)
    setting.environment["epochs"] = job.num_epochs  # for reports: --epochs may be another number
    refuse_single_images(job.train, job.forward_anew)
    title = f"{strategy_name(config)}-{job.space.name}"
    if dry:
        writes = (
            "genotype.yaml, candidates.json, config.yaml, metrics.csv, events.out.tfevents.*, checkpoints/, report.md"
        )
        dry_run(job, config, setting, run, title=title, first_epoch=0, facts=job.facts, writes=writes)
        return None

    def finish(run: RunDir, config: SearchConfig, loop: Loop) -> None:
        if run.writes:
            _write_results(job, run, loop)

    sizes = {"train_images": len(job.train_images), "validation_images": len(job.validation_images)}
    return run_job(
        job, config, setting, run, title=title, sizes=sizes, prepare_run=prepare_run, finish=finish,
        callbacks=callbacks, stop=stop, started=started,
    )  # fmt: skip


def strategy_name(config: SearchConfig) -> str:
    """The name of the strategy without its options."""
    return config.strategy.partition(":")[0].strip()


def _write_results(job: CandidateJob | RspsJob, run: RunDir, loop: Loop) -> None:
    """Write the best candidate as genotype.yaml and the report, and print a summary."""
    genotype = job.genotype(run, job.num_epochs, loop.seconds)
    job.write_candidates(run)
    report = run.path / "report.md"
    run.remove(report.name)  # one of the unfinished run; the run counts as finished once both files are there
    write_unusual(run, job.setting.data.unusual)
    run.write("genotype.yaml", genotype.to_yaml())
    write_report(run.path)
    measured, shape = genotype.provenance["measured"], job.config.network
    cost = derived_cost(genotype, shape)
    found = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in measured.items() if name != "candidates")
    print(f"best of {measured['candidates']} candidates: {found}")
    print(
        f"derived network at C={CHANNELS[shape]}, {CELLS[shape]} cells: {human(cost.params)} parameters, "
        f"{human(cost.macs)} MACs ({shape} shape)"
    )
    print(f"genotype: {run.path / 'genotype.yaml'}\nreport: {report}")
    print(f"retrain it: {retrain_command(run.path / 'genotype.yaml', job.config.as_dict())}")
