"""A study as one YAML file: spaces × methods × seeds, what is retrained, compared and claimed.

`read_study` returns frozen dataclasses. Errors name the file, the line and the key; names of spaces, recipes and
options are looked up when the study is planned (plan.py), after its plug-ins are loaded. See examples/studies/.
"""

import difflib
import itertools
import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from darts_sg.config import JOBS, AugmentConfig, JobName, RunConfig, SearchConfig
from darts_sg.errors import UsageError
from darts_sg.genotype import NAME_PATTERN, zoo_names
from darts_sg.networks.mobile import find_model
from darts_sg.options import read_option
from darts_sg.quantity import parse_duration
from darts_sg.registry import unknown_name
from darts_sg.study.node import Node, Source
from darts_sg.yaml_files import Place, parse_yaml_lines, read_yaml_text

TEMPLATE = Path(__file__).parent / "template.yaml"
"""The file that `study new` writes: complete, commented, and small enough to try."""
MOST_CHOICES = 12  # named in a message; a study may have hundreds of genotypes
LONGEST_NAME = 180  # characters; names of files have at most 255
NAME_TEMPLATE = "{space}_{method}_s{seed}"
TEMPLATE_FIELDS = ("space", "method", "seed")
CORRECTIONS = ("holm", "none")
CONDITIONS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "fewer_parameters": (("percent",), ("than",)),
    "no_worse": (("points",), ()),
    "better": ((), ("points",)),
}
"""The conditions of a claim, each with the keys that it needs and those that it may have."""
SET_BY_STUDY = {
    "seed": "seeds",
    "space": "spaces",
    "genotype": "genotypes",
    "model": "genotypes",
    "finetune": "genotypes",
    "run_dir": "the folder of the study",
    "time_budget": "--time-budget of the study",
    "threads": "executor.threads",
}
"""Options of a job that no section may hold, with the place that says them instead."""

GenotypeKind = Literal["plain", "bounded", "random", "reference", "model"]
Subject = Literal["space", "method", "genotype"]


@dataclass(frozen=True)
class StudySpace:
    """A space to search."""

    name: str
    """How tables and ids call it."""
    space: str
    """The value of --space."""
    template: str
    """How the genotypes found in it are named."""
    block: str | None = None
    """A family of operations whose places in the cells are reported."""


@dataclass(frozen=True)
class StudyMethod:
    """A search method: a recipe with options over it."""

    name: str
    """With a sweep, the name in the file and the swept values: gdas_alpha_learning_rate-0.003."""
    base: str
    """The name in the file."""
    options: Mapping[str, Any]
    """Options of the search, typed; `recipe` among them if the method names one."""
    swept: Mapping[str, Any] = field(default_factory=dict)
    """The values of the sweep among the options."""


@dataclass(frozen=True)
class Limits:
    """Bounds of genotypes that are derived from a finished search; None for no bound."""

    max_params: int | None = None
    max_macs: int | None = None
    max_skips: int | None = None
    max_latency: int | None = None
    """Microseconds, predicted by `latency_table`, whose size of networks holds."""
    latency_table: str | None = None
    """The file of measured operations."""

    def as_dict(self) -> dict[str, Any]:
        """The bounds that are set."""
        return {f.name: value for f in fields(self) if (value := getattr(self, f.name)) is not None}

    @property
    def title(self) -> str:
        """The bounds for names: 2.45M, 600M-macs, 2-skips, 12ms, joined with _."""
        texts = []
        if self.max_params is not None:
            texts.append(f"{self.max_params / 1e6:g}M")
        if self.max_macs is not None:
            texts.append(f"{self.max_macs / 1e6:g}M-macs")
        if self.max_skips is not None:
            texts.append(f"{self.max_skips}-skips")
        if self.max_latency is not None:
            texts.append(f"{self.max_latency / 1e3:g}ms")
        return "_".join(texts)


@dataclass(frozen=True)
class StudyGenotype:
    """A genotype of the study, which stands in genotypes/NAME.yaml once it is known; or a model."""

    name: str
    kind: GenotypeKind
    space: str = ""
    """The name of its StudySpace; empty for a reference or a model."""
    method: str = ""
    """The name of the StudyMethod that found it; empty for random genotypes and references."""
    seed: int | None = None
    """Seed of the search that found it, or of the generator that drew it."""
    limits: Limits = Limits()
    """The bounds of a bounded genotype."""


@dataclass(frozen=True)
class GenotypesWanted:
    """Which genotypes are retrained, and how they are named."""

    template: str = NAME_TEMPLATE
    plain: bool = True
    """By the usual rule: one of each search."""
    bounded: tuple[Limits, ...] = ()
    """One more of each search for each of these."""
    random: int = 0
    """Number of random genotypes of each space, drawn with the generator seeds 0, 1, …"""
    random_seeds: tuple[int, ...] | None = None
    """Seeds of their retrainings; None for all."""
    references: tuple[str, ...] = ()
    """Names of the zoo."""
    models: tuple[str, ...] = ()
    """Names of models (`darts-sg models`) to train in the same way."""


@dataclass(frozen=True)
class Comparison:
    """A pair to compare: errors of `a` minus errors of `b`."""

    a: str
    b: str
    subject: Subject
    """What `a` and `b` name: methods and spaces stand for all their plain genotypes."""


@dataclass(frozen=True)
class Condition:
    """A condition of a claim, with its numbers."""

    kind: str
    """A key of CONDITIONS."""
    values: Mapping[str, float | str]
    """percent, points: numbers; than: the name of a reference."""


@dataclass(frozen=True)
class StudyClaim:
    """What the study is to decide; it holds if all its conditions are met."""

    name: str
    of: str
    against: str
    subject: Subject
    conditions: tuple[Condition, ...]
    kind: GenotypeKind = "plain"
    """Which genotypes of a method or space are judged: plain, or bounded by the first bound."""
    text: str = ""


KINDS = ("search", "retrain")
"""Kinds of jobs, as sections of the file are called."""


@dataclass(frozen=True)
class ExecutorOptions:
    """How jobs are run; none of it changes a result, except threads and processes, which decide the last bits."""

    retries: int = 2
    """How often a failed job is started again."""
    losses: int = 10
    """How often in a row a job may be lost (killed, machine gone) without progress before it counts as failed."""
    threads: int | None = None
    """CPU threads of a job; None: cores / jobs at a time."""
    gpus: Mapping[str, int] = field(default_factory=dict)
    """GPUs of a search and of a retraining, each with a process of its own; empty: one, where there is one."""
    processes: Mapping[str, int] = field(default_factory=dict)
    """Processes of a search and of a retraining on CPUs; empty: one."""
    memory: int | None = None
    """Bytes that a job needs; None: what `study plan` measured, or unknown."""
    minutes: float | None = None
    """Time budget of a piece of a job: it saves, ends and is queued again."""
    slurm: Mapping[str, str | int] = field(default_factory=dict)
    """Passed to Slurm: partition, account, …"""

    def processes_of(self, kind: str) -> int:
        """The processes of a job, `search` or `retrain`; more than one are started by torchrun."""
        return (self.gpus or self.processes).get(kind, 1)

    @property
    def most_processes(self) -> int:
        """The processes of the largest job."""
        return max(map(self.processes_of, KINDS))


@dataclass(frozen=True)
class StudyFile:
    """A study as its file says it."""

    title: str
    data: Mapping[str, Any]
    """Options of all jobs, typed."""
    search: Mapping[str, Any]
    """Options of all searches."""
    retrain: Mapping[str, Any] | None
    """Options of all retrainings; None for a study without."""
    spaces: tuple[StudySpace, ...]
    methods: tuple[StudyMethod, ...]
    """With a sweep, one for each combination of its values."""
    search_seeds: tuple[int, ...]
    retrain_seeds: tuple[int, ...]
    sweep: Mapping[str, tuple[Any, ...]]
    wanted: GenotypesWanted
    comparisons: tuple[Comparison, ...]
    correction: str
    """Correction of the p values of the comparisons: holm, or none."""
    claims: tuple[StudyClaim, ...]
    executor: ExecutorOptions
    source: Source = field(compare=False)
    """Names the lines of the file in messages."""
    text: str = field(compare=False)
    """The file as it was given, for STUDY/study.yaml."""

    def space(self, name: str) -> StudySpace:
        """The space of that name."""
        return next(space for space in self.spaces if space.name == name)

    def method(self, name: str) -> StudyMethod:
        """The method of that name."""
        return next(method for method in self.methods if method.name == name)

    def genotypes(self) -> tuple[StudyGenotype, ...]:
        """All genotypes: of searches by seed, space and method, then random ones, then references.

        With no retraining wanted of plain genotypes they are listed all the same: each search has one.
        """
        return tuple(_genotypes(self))

    def trained_seeds(self, genotype: StudyGenotype) -> tuple[int, ...]:
        """The seeds at which a genotype is retrained."""
        if self.retrain is None or (genotype.kind == "plain" and not self.wanted.plain):
            return ()
        if genotype.kind == "random" and self.wanted.random_seeds is not None:
            return self.wanted.random_seeds
        return self.retrain_seeds


def read_study(path: str | Path) -> StudyFile:
    """Read a study from a YAML file.

    Raises UsageError in one line that names the file, the line, the key, and what was expected there.
    """
    text = read_yaml_text(Path(path))
    return parse_study(text, str(path))


def parse_study(text: str, name: str = "study") -> StudyFile:
    """Read a study from the text of a YAML file; errors call it `name`."""
    content, lines = parse_yaml_lines(text, name)
    return _study(Node(content, Source(name, lines)), text)


def study_of(content: Mapping[str, Any]) -> StudyFile:
    """Read a study from a mapping with the keys of the file."""
    import yaml

    try:
        text = yaml.safe_dump(_plain(content), sort_keys=False, allow_unicode=True, width=110)
    except yaml.YAMLError as error:
        raise UsageError(f"study: expected plain values, as in YAML: {' '.join(str(error).split())}") from None
    return parse_study(text)


def _plain(value: Any) -> Any:
    """Mappings and sequences as dicts and lists, paths as texts."""
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return str(value) if isinstance(value, Path) else value


def _study(root: Node, text: str) -> StudyFile:
    root.mapping(
        ("title",),
        (
            "data", "search", "retrain", "spaces", "methods", "sweep", "seeds", "genotypes", "compare", "claims",
            "executor",
        ),
    )  # fmt: skip
    data = _options(root.at("data"), RunConfig)
    retrain = _options(root.at("retrain"), AugmentConfig) if "retrain" in root.value else None
    searched = [key for key in ("spaces", "methods") if root.at(key).given]
    if len(searched) == 1:
        missing = {"spaces": "methods", "methods": "spaces"}[searched[0]]
        raise root.wrong(f"{missing} is missing: a search needs spaces and methods")
    seeds = root.at("seeds")
    if not seeds.given:
        raise root.wrong("seeds is missing: seeds: {search: [0], retrain: [0]}")
    seeds.mapping(("search",) if searched else (), ("search", "retrain"))
    if retrain is not None and not seeds.at("retrain").given:
        raise seeds.wrong("retrain is missing: seeds of the retrainings")
    if retrain is None and seeds.at("retrain").given:
        raise seeds.at("retrain").wrong("there is no section retrain; add it, or leave these seeds out")
    for key in ("search", "sweep") if not searched else ():
        if root.at(key).given:
            raise root.at(key).wrong("there are no spaces and methods to search; add them, or leave it out")
    wanted = _wanted(root.at("genotypes"), retrain is not None)
    if not searched and not wanted.references and not wanted.models:
        raise root.wrong(
            "nothing to run: give spaces and methods to search, or genotypes.references or genotypes.models to retrain"
        )
    sweep = _sweep(root.at("sweep"))
    retrain_seeds = seeds.at("retrain").seeds() if seeds.at("retrain").given else ()
    if wanted.random_seeds and (unknown := sorted(set(wanted.random_seeds) - set(retrain_seeds))):
        node = root.at("genotypes").at("random").at("seeds")
        raise node.wrong(f"{unknown[0]} is none of seeds.retrain, with whose trainings random genotypes are compared")
    study = StudyFile(
        title=root.at("title").text(),
        data=data,
        search=_options(root.at("search"), SearchConfig),
        retrain=retrain,
        spaces=tuple(_spaces(root.at("spaces"), wanted.template)) if searched else (),
        methods=tuple(_methods(root.at("methods"), sweep)) if searched else (),
        search_seeds=seeds.at("search").seeds() if searched else (),
        retrain_seeds=retrain_seeds,
        sweep=sweep,
        wanted=wanted,
        comparisons=(),
        correction="holm",
        claims=(),
        executor=_executor(root.at("executor")),
        source=root.source,
        text=text,
    )
    _refuse_equal_names(study)
    comparisons, correction = _compare(root.at("compare"), study)
    values = {f.name: getattr(study, f.name) for f in fields(study)}
    claims = tuple(_claims(root.at("claims"), study))
    return StudyFile(**values | {"comparisons": comparisons, "correction": correction, "claims": claims})


def _options(node: Node, config: type[RunConfig], *, besides: Sequence[str] = ()) -> dict[str, Any]:
    """A section of options as typed values by field name; `besides`: keys that are no options."""
    found: dict[str, Any] = {}
    if not node.given:
        return found
    names = [f.name for f in fields(config) if f.name not in SET_BY_STUDY]
    if config is RunConfig:
        names.remove("recipe")
    for key, value in node.items("a mapping of options"):
        name = key.replace("-", "_")
        if key in besides:
            continue
        if name in SET_BY_STUDY:
            raise value.wrong(f"is set by the study; see {SET_BY_STUDY[name]}")
        if name not in names:
            jobs = [job for job, other in JOBS.items() if name in {f.name for f in fields(other)}]
            sections: dict[JobName, str] = {"search": "search", "augment": "retrain"}
            hint = f"; it is an option of section {' and '.join(sections[job] for job in jobs)}" if jobs else ""
            problem = unknown_name("option", key, [n.replace("_", "-") for n in names]) if not jobs else ""
            raise value.wrong(problem or f"is no option that belongs here{hint}")
        if name in found:
            raise value.wrong("this option stands twice")
        try:
            found[name] = read_option(config, name, value.value)
        except UsageError as error:
            raise value.wrong(error) from None
    return found


def _spaces(node: Node, template: str) -> Iterator[StudySpace]:
    if isinstance(node.value, list | tuple):
        for each in node.elements("a list of spaces"):
            name = each.name()
            yield StudySpace(name, name, template)
        return
    found = list(node.items("a list of spaces, or a mapping from names to {space: …, genotype: …}"))
    if not found:
        raise node.expected("at least one space")
    for name, entry in found:
        _check_name(entry, name)
        if entry.given:
            entry.mapping((), ("space", "genotype", "block"))
        else:
            entry = Node({}, node.source, entry.place)
        space, block, own = entry.at("space"), entry.at("block"), entry.at("genotype")
        yield StudySpace(
            name,
            space.text("the value of --space") if space.given else name,
            _template(own) if own.given else template,
            block.text("a family of operations") if block.given else None,
        )


def _methods(node: Node, sweep: Mapping[str, tuple[Any, ...]]) -> Iterator[StudyMethod]:
    found = list(node.items("a mapping from names to {recipe: …, option: …}"))
    if not found:
        raise node.expected("at least one method")
    for name, entry in found:
        _check_name(entry, name)
        options = _options(entry, SearchConfig)
        for key in sweep:
            if key in options:
                raise entry.at(key).wrong("is swept, too; leave one of them out")
        for values in itertools.product(*sweep.values()):
            swept = dict(zip(sweep, values, strict=True))
            whole = "_".join([name, *(f"{key}-{_in_name(value)}" for key, value in swept.items())])
            yield StudyMethod(whole, name, {**options, **swept}, swept)


def _check_name(node: Node, name: str) -> None:
    if not NAME_PATTERN.fullmatch(name):
        raise node.wrong("expected a name (letters, digits and _ . + -)")


def _in_name(value: Any) -> str:
    """A value of an option as a part of a name: 0.003, unrolled, gumbel-temperature-10."""
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return "".join(c if c.isascii() and (c.isalnum() or c in "._+-") else "-" for c in text)


def _sweep(node: Node) -> dict[str, tuple[Any, ...]]:
    found: dict[str, tuple[Any, ...]] = {}
    if not node.given:
        return found
    for key, values in node.items("a mapping from options of a search to lists of values"):
        read: list[Any] = []
        for element in values.elements("a list of values"):
            single = Node({key: element.value}, _At(element), ())
            read += _options(single, SearchConfig).values()
        if len({_in_name(value) for value in read}) < len(read):
            raise values.wrong("two values are equal, or have the same name")
        found[key.replace("-", "_")] = tuple(read)
    return found


class _At(Source):
    """Names one place, whatever is asked for."""

    def __init__(self, node: Node) -> None:
        super().__init__(node.source.name, node.source.lines)
        self._source, self._place = node.source, node.place

    def where(self, place: Place) -> str:
        return self._source.where(self._place)


def _template(node: Node) -> str:
    text = node.text("a name of genotypes such as {space}_{method}_s{seed}")
    try:
        names = [name for _, name, _, _ in string.Formatter().parse(text) if name is not None]
        example = text.format(space="darts", method="first", seed=0) if set(names) <= set(TEMPLATE_FIELDS) else ""
    except (ValueError, IndexError, KeyError):
        example = ""
    if not NAME_PATTERN.fullmatch(example):
        raise node.expected(f"a name with {', '.join(f'{{{name}}}' for name in TEMPLATE_FIELDS)} in it")
    return text


def _wanted(node: Node, trained: bool) -> GenotypesWanted:
    if not node.given:
        return GenotypesWanted()
    node.mapping((), ("name", "plain", "bounded", "random", "references", "models"))
    for key in ("plain", "random", "references", "models"):
        if node.at(key).given and not trained:
            raise node.at(key).wrong("says what is retrained, but there is no section retrain; add it")
    bounded, random, plain = node.at("bounded"), node.at("random"), node.at("plain")
    number, seeds = 0, None
    if random.given:
        random.mapping(("count",), ("seeds",))
        number = random.at("count").count(1)
        seeds = random.at("seeds").seeds() if random.at("seeds").given else None
    references: tuple[str, ...] = ()
    if node.at("references").given:
        elements = node.at("references").elements("a list of genotypes of the zoo")
        references = tuple(dict.fromkeys(element.one_of("genotype", zoo_names()) for element in elements))
    models: tuple[str, ...] = ()
    if node.at("models").given:
        models = tuple(dict.fromkeys(map(_model, node.at("models").elements("a list of models"))))
    limits: list[Limits] = []
    if bounded.given:
        several = isinstance(bounded.value, list | tuple)
        limits = [_limits(each) for each in (bounded.elements("a list of bounds") if several else [bounded])]
        if len(set(limits)) < len(limits):
            raise bounded.wrong("a bound stands twice")
    return GenotypesWanted(
        template=_template(node.at("name")) if node.at("name").given else NAME_TEMPLATE,
        plain=plain.boolean() if plain.given else True,
        bounded=tuple(limits),
        random=number,
        random_seeds=seeds,
        references=references,
        models=models,
    )


def _model(node: Node) -> str:
    name = node.text("the name of a model")
    try:
        return find_model(name).name
    except UsageError as error:
        raise node.wrong(error) from None


def _limits(node: Node) -> Limits:
    keys = [f.name for f in fields(Limits)]
    node.mapping((), keys)
    given = {key: node.at(key) for key in keys if node.at(key).given}
    if not given.keys() - {"latency_table"}:
        raise node.expected(f"a bound: {', '.join(key for key in keys if key != 'latency_table')}")
    if "max_latency" in given and "latency_table" not in given:
        raise node.at("max_latency").wrong(
            "needs measured operations: add latency_table: FILE (see python -m darts_sg latency-table)"
        )
    if "latency_table" in given and "max_latency" not in given:
        raise node.at("latency_table").wrong("is for a bound on latency: add max_latency, such as max_latency: 12ms")
    limits: dict[str, Any] = {key: _limit(key, at) for key, at in given.items()}
    return Limits(**limits)


def _limit(key: str, node: Node) -> int | str:
    if key == "latency_table":
        return node.text("the file of a latency table")
    if key == "max_latency":
        try:
            return parse_duration(key, node.text("a time such as 12ms"))
        except UsageError as error:
            raise node.wrong(str(error).removeprefix(f"{key}: ")) from None
    return node.count() if key == "max_skips" else node.quantity()


def _genotypes(study: StudyFile) -> Iterator[StudyGenotype]:
    wanted = study.wanted
    for seed, space, method in itertools.product(study.search_seeds, study.spaces, study.methods):
        name = space.template.format(space=space.name, method=method.name, seed=seed)
        yield StudyGenotype(name, "plain", space.name, method.name, seed)
        for limits in wanted.bounded:
            yield StudyGenotype(f"{name}_{limits.title}", "bounded", space.name, method.name, seed, limits)
    for space, seed in itertools.product(study.spaces, range(wanted.random)):
        yield StudyGenotype(f"{space.name}_random_{seed}", "random", space.name, "", seed)
    for name in wanted.references:
        yield StudyGenotype(name, "reference")
    for name in wanted.models:
        yield StudyGenotype(name, "model")


def _refuse_equal_names(study: StudyFile) -> None:
    """UsageError if two spaces, methods, runs or genotypes have one name, or names that differ in case only."""
    _refuse_repeated(study, "spaces", [space.name for space in study.spaces])
    _refuse_repeated(study, "methods", [method.name for method in study.methods])
    pairs: dict[str, tuple[str, str]] = {}
    for one, two in itertools.product(study.spaces, study.methods):
        space, method = one.name, two.name
        other = pairs.setdefault(f"{space}_{method}".lower(), (space, method))
        if other != (space, method):
            both = f"{other[1]} in {other[0]} and {method} in {space}"
            raise study.source.error(("methods",), f"the runs of {both} have one name, {space}_{method}; rename one")
    way_out = ": each needs {space}, {method} and {seed} in its name"
    _refuse_repeated(study, "genotypes", [genotype.name for genotype in study.genotypes()], way_out)


def _refuse_repeated(study: StudyFile, key: str, names: Sequence[str], way_out: str = "") -> None:
    seen = set()
    for name in names:
        if name.lower() in seen:
            raise study.source.error((key,), f"two are called {name}{way_out}")
        if len(name) > LONGEST_NAME:
            raise study.source.error((key,), f"a name has more than {LONGEST_NAME} characters: {name}")
        seen.add(name.lower())


def _named(node: Node, study: StudyFile, kinds: Mapping[Subject, Sequence[str]]) -> tuple[Subject, str]:
    """What a name in a comparison or claim stands for; `method:NAME` and `space:NAME` where it is not clear."""
    text = node.text("the name of a method, a space or a genotype")
    prefix, colon, rest = text.partition(":")
    for kind, names in kinds.items():
        if colon and prefix == kind and rest in names:
            return kind, rest
    found = [kind for kind, names in kinds.items() if text in names]
    if not found:
        choices = list(dict.fromkeys(itertools.chain(*kinds.values())))
        close = difflib.get_close_matches(text, choices, n=MOST_CHOICES, cutoff=0.0)
        raise node.wrong(unknown_name("method, space or genotype", text, close))
    if len(found) > 1:
        raise node.wrong(f"{text} is a {' and a '.join(found)}; write {' or '.join(f'{k}:{text}' for k in found)}")
    return found[0], text


def _kinds(study: StudyFile) -> dict[Subject, list[str]]:
    trained = [genotype.name for genotype in study.genotypes() if study.trained_seeds(genotype)]
    return {
        "method": [method.name for method in study.methods],
        "space": [space.name for space in study.spaces],
        "genotype": trained,
    }


def _pair(first: Node, second: Node, study: StudyFile) -> tuple[Subject, str, str]:
    kinds = _kinds(study)
    subject, a = _named(first, study, kinds)
    other, b = _named(second, study, kinds)
    if subject != other:
        raise second.wrong(f"{b} is a {other}, {a} a {subject}; compare two of one kind")
    if a == b:
        raise second.wrong(f"{b} is compared with itself")
    return subject, a, b


def _compare(node: Node, study: StudyFile) -> tuple[tuple[Comparison, ...], str]:
    if not node.given:
        return (), "holm"
    pairs, correction = node, "holm"
    if isinstance(node.value, Mapping):
        node.mapping(("pairs",), ("correction",))
        pairs = node.at("pairs")
        if node.at("correction").given:
            correction = node.at("correction").one_of("correction", CORRECTIONS)
    if study.retrain is None:
        raise node.wrong("compares the errors of retrainings, but there is no section retrain; add it")
    found = []
    for pair in pairs.elements("a list of pairs"):
        both = pair.elements("a pair of names")
        if len(both) != 2:
            raise pair.expected("a pair of names")
        subject, a, b = _pair(both[0], both[1], study)
        found.append(Comparison(a, b, subject))
    return tuple(found), correction


def _claims(node: Node, study: StudyFile) -> Iterator[StudyClaim]:
    if not node.given:
        return
    for name, entry in node.items("a mapping from names to claims"):
        _check_name(entry, name)
        entry.mapping(("of", "against", "conditions"), ("kind", "text"))
        subject, of, against = _pair(entry.at("of"), entry.at("against"), study)
        kind, text = entry.at("kind"), entry.at("text")
        if kind.given:
            kind.one_of("kind", ("plain", "bounded"))
            if kind.value == "bounded" and not study.wanted.bounded:
                raise kind.wrong("there are no bounds; add genotypes.bounded")
        if (model := next((name for name in (of, against) if name in study.wanted.models), "")) and (
            entry.at("conditions").at("fewer_parameters").given
        ):
            place = entry.at("conditions").at("fewer_parameters")
            raise place.wrong(f"counts cells in the papers' shape, {model} is a model without cells; leave it out")
        conditions = tuple(_condition(*item, study) for item in entry.at("conditions").items("a mapping of conditions"))
        if not conditions:
            raise entry.at("conditions").expected(f"at least one condition: {', '.join(CONDITIONS)}")
        yield StudyClaim(
            name,
            of,
            against,
            subject,
            conditions,
            kind.value if kind.given else "plain",
            text.text() if text.given else "",
        )


def _condition(key: str, node: Node, study: StudyFile) -> Condition:
    if key not in CONDITIONS:
        raise node.wrong(unknown_name("condition", key, list(CONDITIONS)))
    required, optional = CONDITIONS[key]
    if not node.given and not required:
        return Condition(key, {})
    node.mapping(required, optional)
    values: dict[str, float | str] = {}
    for name in (*required, *optional):
        if (value := node.at(name)).given:
            values[name] = value.one_of("genotype", zoo_names()) if name == "than" else value.number()
    return Condition(key, values)


def _executor(node: Node) -> ExecutorOptions:
    if not node.given:
        return ExecutorOptions()
    node.mapping((), [f.name for f in fields(ExecutorOptions)])
    given: dict[str, Any] = {}
    for name, least in (("retries", 0), ("losses", 0), ("threads", 1)):
        if node.at(name).given:
            given[name] = node.at(name).count(least)
    for name in ("gpus", "processes"):
        if node.at(name).given:
            given[name] = _by_kind(node.at(name))
    if "gpus" in given and "processes" in given:
        raise node.at("processes").wrong("each GPU has a process: leave processes or gpus out")
    if node.at("memory").given:
        given["memory"] = node.at("memory").quantity()
    if node.at("minutes").given:
        given["minutes"] = node.at("minutes").number()
        if not given["minutes"]:
            raise node.at("minutes").expected("a number above 0")
    if node.at("slurm").given:
        settings = dict(node.at("slurm").items("a mapping of settings such as partition"))
        for setting in settings.values():
            if isinstance(setting.value, bool) or not isinstance(setting.value, str | int):
                raise setting.expected("a text or a whole number")
        given["slurm"] = {key: setting.value for key, setting in settings.items()}
    return ExecutorOptions(**given)


def _by_kind(node: Node) -> dict[str, int]:
    """A number for all jobs, or one for searches and one for retrainings."""
    if isinstance(node.value, Mapping):
        node.mapping((), KINDS)
        return {kind: node.at(kind).count(1) for kind in KINDS if node.at(kind).given}
    return dict.fromkeys(KINDS, node.count(1))
