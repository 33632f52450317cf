"""The work of a fit in its folder, stage by stage. Each stage leaves files, and is not repeated when they are there.

fit.json                 choices with their reasons, options of both runs, and which stages are done
search/, retrain/        ordinary run folders; compare/NAME/ with --compare
genotype.yaml            the cells, derived within the bounds
weights.safetensors      the trained network
predictions.npz          of the test images, as a training leaves them
report.md, report.html   everything about the fit, with pictures/; the last files
log.txt                  what was printed, with the time
"""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from darts_sg.analysis.cost import human
from darts_sg.analysis.decided import doubt
from darts_sg.analysis.run_folder import read_metrics, read_run_config, read_search_epoch, read_search_epochs
from darts_sg.api import retrain, search
from darts_sg.data import Dataset, load_dataset
from darts_sg.derive import derive_bounded, kept_weight, strengths
from darts_sg.engine.environment import choose_device, machine, usable_cores
from darts_sg.engine.export import EXPORT_FORMATS, export
from darts_sg.engine.output import part_of_a_whole, tell
from darts_sg.engine.run_dir import RunDir
from darts_sg.engine.setup import explain_os_error
from darts_sg.engine.weights import read_weights
from darts_sg.errors import RunError, Stopped, UsageError
from darts_sg.files import write_atomically
from darts_sg.fitting import look as looking
from darts_sg.fitting.baseline import Baseline, baselines
from darts_sg.fitting.bench import Bench, training_config
from darts_sg.fitting.bounds import Limits, Size, counted, limits_of
from darts_sg.fitting.choices import Choice, train_epoch_seconds, train_epochs
from darts_sg.fitting.options import FitOptions, export_format
from darts_sg.fitting.planning import Planned, decide, schedule, size_of
from darts_sg.fitting.state import FORMAT, State
from darts_sg.fitting.testing import compared, predictions_of, verdict
from darts_sg.genotype import Genotype, load_genotype
from darts_sg.invocation import argument, line, program
from darts_sg.spaces import parse_space
from darts_sg.tasks import classified
from darts_sg.tasks.classified import read_classified
from darts_sg.tasks.columns import clock

REPORT_SECONDS, EXPORT_SECONDS = 15.0, 20.0
"""Time kept for the test and the reports of the runs and of the fit, and for an export and its check. On one core at
2.5 GHz they took 9 s and 12 s."""
COMPARE_MARGIN = 1.3
BASELINES = ("DARTS_V2", "mobilenetv2")


class Clock:
    """The time budget, which counts from the start of the process."""

    def __init__(self, started: float, budget: float | None) -> None:
        self.started, self.budget = started, budget

    def spent(self) -> float:
        return time.monotonic() - self.started

    def left(self, reserve: float) -> float | None:
        """Seconds until the end less `reserve`; None without a budget."""
        return None if self.budget is None else self.budget - reserve - self.spent()

    def minutes(self, reserve: float) -> float | None:
        """A run's --time-budget that ends `reserve` seconds before the end."""
        return None if self.budget is None else max(0.01, (self.budget - reserve) / 60)


class FitJob:
    """A fit in its folder, which this process holds the lock of."""

    def __init__(
        self,
        options: FitOptions,
        run: RunDir,
        state: State,
        clock: Clock,
        *,
        callbacks: Sequence[Any] = (),
        stop: threading.Event | None = None,
    ) -> None:
        self.options, self.run, self.state, self.clock = options, run, state, clock
        self.callbacks, self.stop = callbacks, stop
        self.folder = run.path
        self.facts, self.level = state.facts, state.level
        self.size: Size = size_of(self.level, self.facts)
        self.limits: Limits = limits_of(options)
        self.space = parse_space(options.space)
        self.resume_command = line("fit", resume=self.folder)
        self._dataset: Dataset | None = None
        self.resumed = False
        """Whether an earlier process has begun this fit, and the images may have changed since."""

    # --- the stages

    def execute(self) -> None:
        """All stages that are not done yet."""
        self.search()
        genotype = self.derive()
        self.train(genotype)
        self.test()
        if self.options.output is not None:
            self.export(self.options.output)
        if self.options.compare:
            self.compare(genotype)
        self.report()

    def search(self) -> None:
        """The search, up to its epochs or to the end of its time."""
        if self.state.done("search") is not None:
            return
        folder, seconds = self.folder / "search", self.state["plan"]["search_seconds"]
        self.say(f"\n1. search: {self.state['plan']['search_epochs']} epochs, about {clock(seconds)}")
        # the training gets at least the time of its planned share
        reserve = self.reserve() + 0.8 * self.state["plan"]["train_seconds"]
        cut = self._execute(search, "search", folder, self.state["search"], reserve)
        epochs = len(read_search_epochs(folder))
        if cut and not epochs:
            raise RunError(
                f"the time of the search ended before its first epoch; continue with more time: {self.resume_command} "
                "--minutes 30"
            )
        if cut:
            self.say(f"the time of the search was over after {epochs} of {self.state['search']['epochs']} epochs")
        self.state.finish("search", cut=cut, epochs=epochs)

    def derive(self) -> Genotype:
        """The genotype: that of the search if its network keeps the bounds, else the best one that does."""
        path = self.folder / "genotype.yaml"
        if self.state.done("derive") is not None:
            return load_genotype(path)
        folder = self.folder / "search"
        final, record = folder / "genotype.yaml", read_search_epoch(folder)
        own = load_genotype(final) if final.is_file() else record.genotype
        cells, facts = (own.normal, own.reduce), dict[str, Any]()
        name = "".join(c if (c.isalnum() and c.isascii()) or c in "_.+-" else "_" for c in self.state["data"]["name"])
        if self.limits and not self.limits.kept(own, self.size):
            weights, operations = strengths(record.weights), own.operations
            selection, _, most = self.options.search_config().selection.partition("=")
            skips = int(most) if selection == "skip-limit:most" else None
            bounds = self.limits.bounds(self.space, own.normal.num_nodes, self.size)
            cells = derive_bounded(*weights, operations, bounds, skips, self.space.allowed)
            share = kept_weight(weights, cells, operations) / kept_weight(weights, (own.normal, own.reduce), operations)
            facts = {**self.limits.maxima, "mixing_weight_kept": round(share, 4)}
        genotype = replace(
            own, name=f"{name}_seed{self.options.seed}", normal=cells[0], reduce=cells[1],
            provenance=MappingProxyType({**own.provenance, **({"derived": facts} if facts else {})}),
        )  # fmt: skip
        params, macs = counted(genotype, self.size)
        doubted = self._doubt(own, folder)
        self.run.write("genotype.yaml", genotype.to_yaml())
        text = f"cells: {params:,} parameters and {human(macs)} MACs as trained"
        if facts:
            text += f", derived within the bounds with {facts['mixing_weight_kept']:.1%} of the mixing weight"
        self.say(text)
        if doubted:
            self.say(f"note: {doubted}")
        self.state.finish("derive", params=params, macs=macs, doubt=doubted, derived=facts)
        return genotype

    def train(self, genotype: Genotype) -> None:
        """The training, with the epochs that fit into the time that is left; up to the end of that time."""
        found = self.state.done("train")
        if found is not None and not (found["cut"] and self.clock.budget is None):
            return
        folder = self.folder / "retrain"
        if self.state.done("schedule") is None:
            self._schedule(genotype)
        training = self.state["training"]
        self.say(f"\n2. training: {training['epochs']} epochs, about {clock(self.state.done('schedule')['seconds'])}")  # type: ignore[index]
        self._same_data(folder)
        options = training | {"genotype": str(self.folder / "genotype.yaml")}
        cut = self._execute(retrain, "augment", folder, options, self.reserve())
        best = folder / "weights_best.safetensors"
        if cut and not best.is_file():
            raise RunError(
                "the time ended before the first epoch of the training; continue with more time: "
                f"{self.resume_command} --minutes 30"
            )
        weights = best if cut else folder / "weights.safetensors"
        self.run.write("weights.safetensors", weights.read_bytes())
        epochs = len(read_metrics(folder / "metrics.csv"))
        later = ("test", "export", "compare")  # of an earlier end of the training
        stages = {name: facts for name, facts in self.state["done"].items() if name not in later}
        self.state.update(done=stages | {"train": {"cut": cut, "epochs": epochs}})
        if cut:
            self.say(
                f"the time was over after {epochs} of {training['epochs']} epochs: the network is that of the best "
                "epoch so far"
            )

    def _schedule(self, genotype: Genotype) -> None:
        """Time steps of the network that was found, and choose the epochs of its training."""
        plan, training = self.state["plan"], dict(self.state["training"])
        timing = self.state.timing
        bench = self._bench()
        timing = bench.training(self.level, genotype, timing, training["precision"])
        left = self.clock.left(self.reserve())
        # without a limit, as in a fit that is continued, the planned share
        seconds = plan["train_seconds"] if left is None else left
        epochs = self.options.epochs or train_epochs(seconds, timing, self.facts)
        more, regularisation = schedule(epochs, self.level.image_size)
        expected = timing.train_start + epochs * train_epoch_seconds(timing, self.facts)
        reason = (
            f"{train_epoch_seconds(timing, self.facts):.1f} s each, measured with the cells that were found; "
            f"{clock(seconds)} are left"
        )
        if self.options.epochs:
            reason = "given by --epochs"
        choices = [Choice(*each) for each in self.state["choices"] if each[0] not in ("epochs", "regularisation")]
        for choice in (Choice("epochs", str(epochs), reason), regularisation):
            choices.append(choice)
            self.say(choice.line)
        self.state.update(training=training | more, timing=list(timing), choices=[list(each) for each in choices])
        self.state.finish("schedule", seconds=round(expected, 1))

    def test(self) -> None:
        """The predictions of the test images: those of the training's last epoch, unless the network is another."""
        path = self.folder / classified.FILE
        if self.state.done("test") is not None and path.is_file():
            return
        of_training = self.folder / "retrain" / classified.FILE
        if not self.state.done("train")["cut"] and of_training.is_file():  # type: ignore[index]
            content = of_training.read_bytes()
        else:
            device = choose_device(self.options.device)
            content = predictions_of(self.folder / "weights.safetensors", self.dataset(), device)
        self.run.write(path.name, content)
        found = read_classified(path)
        self.state.finish("test", accuracy=found.accuracy, interval=list(found.interval), images=len(found.labels))

    def export(self, output: Path) -> None:
        """The model for other programs, checked against the original."""
        shown = str(output)
        if (before := self.state.done("export")) is not None and before["path"] == shown and output.is_file():
            return
        weights = read_weights(self.folder / "weights.safetensors")
        content, sides = export(weights, export_format(output))
        write_atomically(output, content)
        latency = str(sides[1].latency)
        self.say(f"exported: {output}, {sides[1].title}: {len(content) / 1e6:.2f} MB, {latency} an image")
        spec = weights.spec
        self.state.finish(
            "export", path=shown, size=len(content), title=sides[1].title, latency=latency,
            input=f"float32 (N, 3, {spec.image_size}, {spec.image_size})", mean=spec.mean, std=spec.std,
        )  # fmt: skip

    def compare(self, genotype: Genotype) -> None:
        """Train and test the baselines by the schedule of the searched network."""
        own = read_classified(self.folder / classified.FILE)
        before, trained = self.state.done("compare") or {}, self.state.done("train") or {}
        cut_after = f"{trained['epochs']} of {self.state['training']['epochs']} epochs" if trained["cut"] else ""
        by_params = "max_macs" not in self.limits.maxima and "max_params" in self.limits.maxima
        found: dict[str, Any] = {}
        for number, base in enumerate(baselines(genotype, self.size, self.level, by_params=by_params), start=3):
            name = BASELINES[number - 3]
            path = self.folder / "compare" / name / classified.FILE
            if before.get(name, {}).get("cut") is not False or not path.is_file():
                self.say(f"\n{number}. {base.title}: {base.params:,} parameters, {human(base.macs)} MACs")
                cut = self._baseline(base, name)
            else:
                cut = False
            facts = {"title": base.title, "params": base.params, "macs": base.macs, "cut": cut}
            if not cut:
                facts |= compared(own, read_classified(path))
                facts["verdict"] = verdict(base.title, facts, cut_after)
            found[name] = facts
            self.state.finish("compare", **found)

    def _baseline(self, base: Baseline, name: str) -> bool:
        """Train and test a baseline; returns whether the time was over before that."""
        options = dict(self.state["training"])
        config = training_config(base.level, base.trained, options)
        given = {key: getattr(config, key) for key in options if getattr(config, key) is not None}
        subject = {"model": config.model} if config.model else {"genotype": config.genotype}
        folder = self.folder / "compare" / name
        try:
            return self._execute(retrain, "augment", folder, given | subject, REPORT_SECONDS)
        except UsageError as error:
            raise RunError(f"the comparison with {base.title} cannot be trained: {error}") from error

    def report(self) -> None:
        """report.md and report.html, and the result in a few lines."""
        from darts_sg.fitting.report import write_report  # imports matplotlib

        page = write_report(self.folder)
        for text in self.result_lines():
            self.say(text)
        self.say(f"report: {self.folder / 'report.md'}, {page}")
        for text in next_commands(self.folder, self.state):
            print(text)  # unbroken, to be copied
            self.run.log(text)

    def result_lines(self) -> list[str]:
        """The results for people."""
        test, derived = self.state.done("test"), self.state.done("derive")
        assert test is not None
        assert derived is not None
        low, high = test["interval"]
        lines = [
            f"\ntest accuracy: {test['accuracy']:.1%} on {test['images']:,} images; the 95% interval is {low:.1%} to "
            f"{high:.1%}",
            f"network: {derived['params']:,} parameters, {human(derived['macs'])} MACs; "
            f"weights {self.folder / 'weights.safetensors'}",
        ]
        if derived["doubt"]:
            lines.append(f"note: {derived['doubt'].partition(':')[0]}; the report says why")
        for facts in (self.state.done("compare") or {}).values():
            told = facts.get("verdict") or f"{facts['title']}: the time was over before its training was"
            lines.append(f"compared: {told}")
        return lines

    # --- parts

    def say(self, text: str) -> None:
        """Print and log a line."""
        tell(text)
        self.run.log(text.strip())

    def reserve(self) -> float:
        """Seconds that are kept for what follows the training."""
        more = self.state["compare_seconds"] if self.options.compare else 0.0
        return REPORT_SECONDS + (EXPORT_SECONDS if self.options.output is not None else 0.0) + more

    def dataset(self) -> Dataset:
        """The data, as the runs load them; UsageError if they have changed since the search."""
        if self._dataset is None:
            assert self.options.data is not None
            self._dataset = load_dataset(
                "folder", self.options.data, image_size=self.level.image_size, split_seed=self.options.split_seed
            )
            self._refuse_changed(self._dataset.fingerprint())
        return self._dataset

    def _refuse_changed(self, fingerprint: str) -> None:
        _, _, environment = read_run_config(self.folder / "search" / "config.yaml")
        if (known := environment["data"]["fingerprint"]) != fingerprint:
            raise UsageError(
                f"the images in {self.options.data} are not those of the search (fingerprint {fingerprint}, then "
                f"{known}): bring them back, or start a new fit with another --run-dir"
            )

    def _same_data(self, folder: Path) -> None:
        """UsageError if the data have changed between the search and a training that is about to start."""
        if not (folder / "config.yaml").is_file() and self.resumed:
            self.dataset()

    def _bench(self) -> Bench:
        check_seconds = self.state["data"]["loading_seconds"]
        return Bench(self.options, self.facts, self.space, lambda size: check_seconds)

    def _doubt(self, own: Genotype, folder: Path) -> str:
        """Why the cells cannot be told from random ones; empty if the search chose them."""
        measured = own.provenance.get("measured")
        if isinstance(measured, dict) and measured:
            return str(measured.get("doubt", ""))
        states, options = read_search_epochs(folder), self.state["search"]  # a search that was cut
        steps = -(-(self.facts.images // 2) // options["batch_size"])
        return doubt(states, steps * max(0, len(states) - options["alpha_frozen_epochs"]))

    def _execute(
        self, start: Callable[..., Any], command: str, folder: Path, options: dict[str, Any], reserve: float
    ) -> bool:
        """Start or continue a run; returns whether the time budget ended it before its end."""
        of_process: dict[str, Any] = {
            "time_budget": self.clock.minutes(reserve), "started": self.clock.started, "callbacks": self.callbacks,
            "stop": self.stop, "data": self.options.data,
        }  # fmt: skip
        if (folder / "config.yaml").is_file():
            given = {"resume": folder}
        else:
            given = options | {"run_dir": folder, "device": self.options.device, "threads": self.options.threads}
        inner = line(command, resume=folder)
        try:
            with part_of_a_whole():
                start(**given, **of_process)
        except Stopped as stopped:
            over = (left := self.clock.left(reserve)) is not None and left <= 0
            if over and not stopped.exit_code and not (self.stop is not None and self.stop.is_set()):
                return True
            raise Stopped(str(stopped).replace(inner, self.resume_command), stopped.exit_code) from None
        except RunError as error:
            raise RunError(str(error).replace(inner, self.resume_command)) from error
        return False


def run_fit(
    given: dict[str, Any],
    *,
    resume: Path | None,
    dry: bool,
    callbacks: Sequence[Any],
    stop: threading.Event | None,
    started: float,
) -> Path | None:
    """Fit as the options say, in a new folder or on in an old one; returns the folder, None for a dry run."""
    from darts_sg.fitting.options import fit_options

    state: State | None = None
    if resume is not None:
        state = State.read(resume)
        options = state.options(given, started=False)
    else:
        options = fit_options(given)
        if options.data is None:
            raise UsageError("which images? Give --data DIR, a folder with a folder of images for each class")
        folder = options.run_dir or default_folder(options.data)
        if (folder / "fit.json").is_file() and not dry:
            state = State.read(folder)
            options = state.options(given, started=True)
        options = replace(options, run_dir=folder)
    assert options.data is not None
    assert options.run_dir is not None
    options = replace(options, data=options.data.expanduser())
    _refuse_output(options, state)
    budget = options.budget if state is None else None if options.minutes is None else 60 * options.minutes
    timer = Clock(started, budget)
    if state is None:
        return _new_fit(options, timer, dry=dry, callbacks=callbacks, stop=stop)
    _refuse_other_files(options, state)
    if dry:
        _print_choices(state, options)
        return None
    print(f"continuing {state.folder}")
    job = FitJob(options, RunDir(state.folder), state, timer, callbacks=callbacks, stop=stop)
    job.resumed = True
    return _execute(job)


def _new_fit(
    options: FitOptions, timer: Clock, *, dry: bool, callbacks: Sequence[Any], stop: threading.Event | None
) -> Path | None:
    """Look, choose, and execute unless it is a dry run."""
    assert options.data is not None
    assert options.run_dir is not None
    if not dry:
        RunDir.refuse_existing(options.run_dir)
    # look, measure and choose; until then nothing is written
    limits = limits_of(options)
    check = looking.look(options.data, options.threads or usable_cores())
    facts = looking.facts_of(check)
    notes = looking.notes_of(check)
    lines = [f"data: {looking.described(check, facts)}", *notes]
    loading = looking.loading_seconds(check)
    bench = Bench(options, facts, parse_space(options.space), loading)
    lines.append(f"machine: {machine(bench.device)}")
    tell("\n".join(lines))

    def say(text: str) -> None:
        lines.append(text)
        tell(text)

    reserve = REPORT_SECONDS + (EXPORT_SECONDS if options.output is not None else 0.0)
    planned = decide(options, facts, limits, bench, timer.spent, reserve, say)
    for choice in planned.choices:
        say(choice.line)
    compare_seconds = COMPARE_MARGIN * len(BASELINES) * planned.plan.train_seconds if options.compare else 0.0
    say(_times(planned, timer, reserve, compare_seconds))
    if dry:
        print("dry run: nothing was written")
        return None
    # fit.json is the first file: a folder that has it can be continued
    run = RunDir.create(options.run_dir)
    content = {
        "format": FORMAT,
        "options": options.as_dict(),
        "data": {
            "name": options.data.resolve().name, "facts": vars(facts), "check": looking.summary(check), "notes": notes,
            "listing": looking.listing_hash(options.data), "described": looking.described(check, facts),
            "loading_seconds": loading(planned.level.image_size),
        },
        "machine": machine(bench.device),
        "level": list(planned.level), "timing": list(planned.timing), "plan": planned.plan._asdict(),
        "choices": [list(choice) for choice in planned.choices],
        "search": planned.search, "training": planned.training, "compare_seconds": compare_seconds,
        "done": {},
    }  # fmt: skip
    state = State(options.run_dir, content)
    if timer.budget is not None:
        timer.budget += compare_seconds
    try:
        state.update()
        for text in lines:
            run.log(text)
        run.write("pictures/data.png", looking.picture(check))
    except OSError as error:
        run.close()
        raise _explained(error, options.run_dir) from error
    return _execute(FitJob(options, run, state, timer, callbacks=callbacks, stop=stop))


def _execute(job: FitJob) -> Path:
    """All stages, with errors that say how to continue."""
    try:
        job.execute()
    except KeyboardInterrupt:
        raise Stopped(f"interrupted. Continue with: {job.resume_command}", 130) from None
    except OSError as error:
        raise _explained(error, job.folder) from error
    finally:
        job.run.close()
    return job.folder


def _explained(error: OSError, folder: Path) -> RunError:
    problem, way_out = explain_os_error(error, folder)
    return RunError(f"{problem}; what is done is kept: {way_out}continue with {line('fit', resume=folder)}")


def _times(planned: Planned, timer: Clock, reserve: float, compare_seconds: float) -> str:
    """The expected times in one line."""
    plan = planned.plan
    parts = [
        f"looking and measuring {clock(timer.spent())}", f"search {clock(plan.search_seconds)}",
        f"training {clock(plan.train_seconds)}", f"test and report up to {clock(reserve)}",
    ]  # fmt: skip
    total = timer.spent() + plan.search_seconds + plan.train_seconds + reserve + compare_seconds
    limit = "" if timer.budget is None else f" of {clock(timer.budget)}"
    more = ""
    if compare_seconds:
        parts.append(f"two baselines up to {clock(compare_seconds)}")
        more = ", baselines beyond that limit" if limit else ""
    return f"times: {', '.join(parts)}; in all about {clock(total)}{limit}{more}"


def _print_choices(state: State, options: FitOptions) -> None:
    for each in state["choices"]:
        tell(Choice(*each).line)
    done = ", ".join(state["done"]) or "nothing yet"
    print(f"done: {done}; would go on in {options.run_dir}\ndry run: nothing was written")


def _refuse_output(options: FitOptions, state: State | None) -> None:
    """UsageError if the exported model would overwrite a file that is not this fit's."""
    if options.output is None:
        return
    export_format(options.output)
    before = None if state is None else state.done("export")
    if options.output.exists() and (before is None or before["path"] != str(options.output)):
        raise UsageError(f"{options.output} exists; choose another --output")


def _refuse_other_files(options: FitOptions, state: State) -> None:
    """UsageError if the names or sizes of the images have changed since the fit was started."""
    assert options.data is not None
    looking.refuse_folders(options.data)
    if looking.listing_hash(options.data) != state["data"]["listing"]:
        raise UsageError(
            f"the images in {options.data} are not those that this fit was started on: files were added, removed or "
            "changed; bring them back, give their folder with --data, or start a new fit with another --run-dir"
        )


def default_folder(data: Path) -> Path:
    """The folder of a fit without --run-dir: the same command finds it again."""
    return Path("runs") / f"fit-{data.expanduser().resolve().name or 'images'}"


def next_commands(folder: Path, state: State) -> list[str]:
    """Command lines to go on with, each below a comment that says what it does."""
    weights, resume = folder / "weights.safetensors", line("fit", resume=folder)
    found = []
    if (state.done("train") or {}).get("cut"):
        found += ["# complete the training", resume]
    found += ["# what the network says of an image", f"{program('predict')} {argument(weights)} IMAGE …"]
    if state.done("export") is None:
        suffix = EXPORT_FORMATS[next(iter(EXPORT_FORMATS))].suffix
        found += ["# a model for other programs", line("fit", resume=folder, output=Path(f"model{suffix}"))]
    if state.done("compare") is None:
        found += ["# DARTS_V2 and MobileNetV2 of equal cost", f"{resume} --compare"]
    return [
        *found,
        "# train on with other images",
        f"{line('augment', finetune=weights, dataset='folder')} --data OTHER",
    ]
