"""The protocol of a study, read from a YAML file: what is searched, retrained and compared, and when a claim holds.

`protocols/` holds those that the package knows by name. Errors name the file, the key and what was expected there.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from darts_sg.analysis.sheet import family
from darts_sg.config import JOBS, JobName
from darts_sg.errors import UsageError, quoted
from darts_sg.genotype import NAME_PATTERN, zoo_names
from darts_sg.networks.ssdlite import PUBLISHED
from darts_sg.quantity import parse_quantity
from darts_sg.registry import unknown_name
from darts_sg.spaces import parse_space
from darts_sg.study.statistics import CONDITIONS, FewerParameters, NoWorse
from darts_sg.yaml_files import read_yaml

PROTOCOLS = Path(__file__).parent / "protocols"
LARGEST_NUMBER = 2**63
PLAIN, STEERED, FEW_SKIPS = KINDS = ("plain", "steered", "few skips")
"""The genotypes that a search gives: by the usual rule, within max_params, and with at most max_skips."""


@dataclass(frozen=True)
class Space:
    """A searched space."""

    name: str
    genotype: str
    """What the genotype that stands for the space is called."""
    block: str | None = None
    """The family of operations whose places in the cells are reported; None for none."""


@dataclass(frozen=True)
class FullScale:
    """The scale that the study is meant for; runs at other scales are reported as such."""

    search: Mapping[str, int]
    """Options of a search, and its numbers of images."""
    retrain: Mapping[str, int]
    missing: str
    """What to say beside a verdict that rests on another scale; no full stop at the end."""


@dataclass(frozen=True)
class Claim:
    """What the study is to decide."""

    genotype: str
    baseline: str
    conditions: Mapping[str, FewerParameters | NoWorse]
    steered_note: str = ""
    """A sentence to add to the judgement of steered genotypes."""


@dataclass(frozen=True)
class PublishedRow:
    """A published row: test error in percent, parameters in millions."""

    title: str
    space: str
    error: float
    params: float


@dataclass(frozen=True)
class Detectors:
    """Two models whose detectors are compared."""

    models: tuple[str, str]
    """The one that should have the higher mAP, then the other."""
    note: str
    """Sentences to put beside their figures."""


@dataclass(frozen=True)
class Protocol:
    """A study as data; see protocols/sandglass.yaml for a commented file."""

    title: str
    dataset: str
    network: str
    spaces: tuple[Space, ...]
    max_params: int | None
    max_skips: int | None
    references: tuple[str, ...]
    seeds: tuple[int, ...]
    """Seeds of the retrainings."""
    full_scale: FullScale
    comparisons: tuple[tuple[str, str], ...]
    claim: Claim
    published_source: str
    published: tuple[PublishedRow, ...]
    detectors: Detectors | None = None

    def space(self, name: str) -> Space:
        return next(space for space in self.spaces if space.name == name)

    @property
    def space_names(self) -> tuple[str, ...]:
        return tuple(space.name for space in self.spaces)

    @property
    def claimed_space(self) -> str:
        """The space that the claim is about."""
        return next(space.name for space in self.spaces if space.genotype == self.claim.genotype)

    @property
    def baseline_space(self) -> str:
        return next(space.name for space in self.spaces if space.genotype == self.claim.baseline)

    @property
    def by_importance(self) -> tuple[str, ...]:
        """The spaces for tables of retrainings and pictures: first the claim's, then the others in their order."""
        return self.claimed_space, *(name for name in self.space_names if name != self.claimed_space)

    @property
    def limit(self) -> str:
        """The bound on the parameters of steered genotypes, in words: 2.45M."""
        return limit_text(self.max_params)

    @property
    def kinds(self) -> dict[str, str]:
        """The kinds of genotypes with their titles in tables."""
        titles = {PLAIN: "plain"}
        if self.max_params is not None:
            titles[STEERED] = f"steered: at most {self.limit}"
        if self.max_skips is not None:
            titles[FEW_SKIPS] = f"at most {self.max_skips} skips"
        return titles

    def steered_name(self, name: str) -> str:
        """The name of the steered form of a named genotype: NAME_2.45M."""
        return f"{name}_{self.limit}"

    def genotype_names(self) -> dict[str, str]:
        """The names that stand for a space, plain and steered, each with its space."""
        found = {space.genotype: space.name for space in self.spaces}
        if self.max_params is not None:
            found |= {self.steered_name(space.genotype): space.name for space in self.spaces}
        return found

    def names(self, kind: str) -> tuple[str, str]:
        """(claim's genotype, baseline) as genotypes of that kind are called."""
        pair = self.claim.genotype, self.claim.baseline
        return pair if kind == PLAIN else (self.steered_name(pair[0]), self.steered_name(pair[1]))


def limit_text(limit: int | None) -> str:
    """A bound on parameters in millions: 2.45M."""
    return "" if limit is None else f"{limit / 1e6:g}M"


def protocol_names() -> list[str]:
    """The names of the packaged protocols."""
    return sorted(path.stem for path in PROTOCOLS.glob("*.yaml"))


def load_protocol(name: str) -> Protocol:
    """Read a packaged protocol; UsageError with the choices if there is none of that name."""
    if name not in protocol_names():
        raise UsageError(unknown_name("protocol", name, protocol_names()))
    return read_protocol(PROTOCOLS / f"{name}.yaml")


def read_protocol(path: Path) -> Protocol:
    """Read a protocol from a YAML file.

    Raises UsageError in one line that names the file, the key, and what was expected there.
    """
    return _protocol(_Node(read_yaml(path), f"{path}: "))


class _Node:
    """A value of the file with the path of its key, so that whatever is wrong with it can be named."""

    def __init__(self, value: Any, source: str, key: str = "") -> None:
        self.value, self.source, self.key = value, source, key

    def error(self, expected: str) -> UsageError:
        place = f"{self.key}: " if self.key else ""
        found = "nothing" if self.value is None else quoted(self.value)
        return UsageError(f"{self.source}{place}expected {expected}, found {found}")

    def wrong(self, problem: str) -> UsageError:
        return UsageError(f"{self.source}{self.key}: {problem}")

    def at(self, key: str) -> "_Node":
        """The value under `key`; a missing one is None."""
        return _Node(self.value.get(key), self.source, f"{self.key}.{key}" if self.key else key)

    def mapping(self, required: Sequence[str], optional: Sequence[str] = ()) -> "_Node":
        """Check that this is a mapping with these keys and no others."""
        keys = [*required, *optional]
        if not isinstance(self.value, dict):
            raise self.error(f"a mapping with {', '.join(keys)}")
        for key in self.value:
            if key not in keys:
                raise UsageError(f"{self.source}{f'{self.key}: ' if self.key else ''}{unknown_name('key', key, keys)}")
        for key in required:
            if key not in self.value:
                raise UsageError(f"{self.source}{self.at(key).key}: missing")
        return self

    def items(self, expected: str) -> Iterator[tuple[str, "_Node"]]:
        """The entries of a mapping whose keys are free."""
        if not isinstance(self.value, dict) or not self.value:
            raise self.error(expected)
        for key in self.value:
            if not isinstance(key, str):
                raise self.error(expected)
            yield key, self.at(key)

    def elements(self, expected: str) -> list["_Node"]:
        if not isinstance(self.value, list) or not self.value:
            raise self.error(expected)
        return [_Node(value, self.source, f"{self.key}[{i}]") for i, value in enumerate(self.value)]

    def text(self, expected: str = "a text") -> str:
        if not isinstance(self.value, str) or not self.value.strip():
            raise self.error(expected)
        return self.value

    def name(self) -> str:
        """The name of a genotype."""
        if not isinstance(self.value, str) or not NAME_PATTERN.fullmatch(self.value):
            raise self.error("the name of a genotype (letters, digits and _ . + -)")
        return self.value

    def one_of(self, kind: str, choices: Sequence[str]) -> str:
        if self.value not in choices:
            raise self.wrong(unknown_name(kind, self.value, list(choices)))
        return str(self.value)

    def number(self) -> float:
        """A finite number of at least 0."""
        value = self.value
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < LARGEST_NUMBER:
            raise self.error("a number of at least 0")
        return float(value)

    def count(self) -> int:
        """A whole number of at least 0."""
        if isinstance(self.value, bool) or not isinstance(self.value, int) or not 0 <= self.value < LARGEST_NUMBER:
            raise self.error("a whole number of at least 0")
        return self.value

    def quantity(self) -> int:
        """A number of parameters: 2450000 or 2.45M."""
        if isinstance(self.value, bool) or not isinstance(self.value, int | str):
            raise self.error("a number such as 2.45M")
        if isinstance(self.value, int) and not 0 < self.value < LARGEST_NUMBER:
            raise self.error("a number above 0, such as 2.45M")
        found = parse_quantity(f"{self.source}{self.key}", str(self.value))
        if not found:
            raise self.error("a number above 0, such as 2.45M")
        return found


def _protocol(root: _Node) -> Protocol:
    root.mapping(
        ("title", "data", "spaces", "seeds", "full_scale", "comparisons", "claim"),
        ("bounds", "references", "published", "detectors"),
    )
    data = root.at("data").mapping(("dataset",), ("network",))
    spaces = tuple(_space(name, node) for name, node in root.at("spaces").items("a mapping from spaces to genotypes"))
    known: dict[str, str] = {}
    for space in spaces:
        if space.genotype in known:
            raise root.at("spaces").wrong(f"{known[space.genotype]} and {space.name} have one name, {space.genotype}")
        known[space.genotype] = space.name
    bounds = _optional(root, "bounds", ("max_params", "max_skips"))
    max_params = None if bounds is None or bounds.at("max_params").value is None else bounds.at("max_params").quantity()
    max_skips = None if bounds is None or bounds.at("max_skips").value is None else bounds.at("max_skips").count()
    zoo = zoo_names()
    references: tuple[str, ...] = ()
    if root.at("references").value is not None:
        references = tuple(
            node.one_of("genotype", zoo) for node in root.at("references").elements("a list of zoo genotypes")
        )
    seeds = root.at("seeds").mapping(("retrain",)).at("retrain")
    comparable = [*known, *references]
    if max_params is not None:
        comparable += [f"{name}_{limit_text(max_params)}" for name in known]
    source, rows = _published(root, [space.name for space in spaces])
    network = data.at("network")
    return Protocol(
        title=root.at("title").text(),
        dataset=data.at("dataset").text("the name of a data set"),
        network="cifar" if network.value is None else network.one_of("network", ("cifar", "imagenet")),
        spaces=spaces,
        max_params=max_params,
        max_skips=max_skips,
        references=references,
        seeds=tuple(dict.fromkeys(node.count() for node in seeds.elements("a list of seeds"))),
        full_scale=_full_scale(root.at("full_scale")),
        comparisons=tuple(_comparisons(root.at("comparisons"), comparable)),
        claim=_claim(root.at("claim"), list(known), references),
        published_source=source,
        published=rows,
        detectors=_detectors(root.at("detectors")),
    )


def _detectors(node: _Node) -> Detectors | None:
    if node.value is None:
        return None
    pair = node.mapping(("models", "note")).at("models")
    names = [one.one_of("detector with published figures", list(PUBLISHED)) for one in pair.elements("two models")]
    if len(names) != 2 or names[0] == names[1]:
        raise pair.error("two different models")
    return Detectors((names[0], names[1]), node.at("note").text().strip())


def _optional(root: _Node, key: str, keys: Sequence[str]) -> _Node | None:
    node = root.at(key)
    return None if node.value is None else node.mapping((), keys)


def _space(name: str, node: _Node) -> Space:
    try:
        operations = parse_space(name).operations
    except UsageError as error:
        raise node.wrong(str(error)) from None
    node.mapping(("genotype",), ("block",))
    genotype, block = node.at("genotype").name(), node.at("block")
    if block.value is None:
        return Space(name, genotype)
    families = dict.fromkeys(family(operation) for operation in operations if operation != "none")
    return Space(name, genotype, block.one_of("family of operations in this space", list(families)))


def _full_scale(node: _Node) -> FullScale:
    node.mapping(("search", "retrain", "missing"))
    scales = []
    jobs: dict[str, JobName] = {"search": "search", "retrain": "augment"}
    for key, job in jobs.items():
        known = [f.name for f in fields(JOBS[job])]
        scale = {}
        for option, value in node.at(key).items("a mapping of options"):
            if option not in known:
                raise node.at(key).wrong(unknown_name("option", option, known))
            scale[option] = value.count()
        scales.append(scale)
    return FullScale(scales[0], scales[1], node.at("missing").text().strip().removesuffix("."))


def _comparisons(node: _Node, names: Sequence[str]) -> Iterator[tuple[str, str]]:
    for pair in node.elements("a list of pairs of genotypes"):
        both = pair.elements("a pair of genotypes")
        if len(both) != 2:
            raise pair.error("a pair of genotypes")
        yield both[0].one_of("genotype", names), both[1].one_of("genotype", names)


def _claim(node: _Node, names: Sequence[str], references: Sequence[str]) -> Claim:
    node.mapping(("genotype", "baseline", "conditions"), ("steered_note",))
    genotype, baseline = (node.at(key).one_of("genotype", names) for key in ("genotype", "baseline"))
    if genotype == baseline:
        raise node.at("baseline").wrong(f"{baseline} is the claim's genotype, too")
    conditions: dict[str, FewerParameters | NoWorse] = {}
    for key, condition in node.at("conditions").items(f"a mapping of conditions: {', '.join(CONDITIONS)}"):
        match key:
            case "fewer_parameters":
                condition.mapping(("percent", "than"))
                than = condition.at("than").one_of("reference", references)
                conditions[key] = FewerParameters(condition.at("percent").number(), than)
            case "no_worse":
                conditions[key] = NoWorse(condition.mapping(("points",)).at("points").number())
            case _:
                raise node.at("conditions").wrong(unknown_name("condition", key, list(CONDITIONS)))
    note = node.at("steered_note")
    return Claim(genotype, baseline, conditions, "" if note.value is None else note.text())


def _published(root: _Node, spaces: Sequence[str]) -> tuple[str, tuple[PublishedRow, ...]]:
    node = root.at("published")
    if node.value is None:
        return "", ()
    node.mapping(("source", "rows"))
    rows = []
    for row in node.at("rows").elements("a list of rows"):
        row.mapping(("title", "space", "error", "params"))
        figures = row.at("error").number(), row.at("params").number()
        rows.append(PublishedRow(row.at("title").text(), row.at("space").one_of("space", spaces), *figures))
    return node.at("source").text(), tuple(rows)
