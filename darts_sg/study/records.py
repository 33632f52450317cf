"""A study as its run folders hold it: the searches, the genotypes that they found, and their retrainings."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from darts_sg.analysis.cost import derived_counts
from darts_sg.analysis.sheet import family
from darts_sg.genotype import Genotype, load_genotype, state_name
from darts_sg.study.detectors import DetectorSetting
from darts_sg.study.protocol import FEW_SKIPS, PLAIN, STEERED, Protocol
from darts_sg.study.statistics import Difference, Evidence, Judgement, Spread, judge, paired, spread

PUBLISHED, OTHER = "published", "other"
"""The groups of genotypes that stand for no space."""


@dataclass(frozen=True)
class Found:
    """A genotype that a search led to, with exact counts of its networks in the papers' shapes."""

    genotype: Genotype
    kind: str
    """plain, steered (within max_params), or few skips (at most max_skips)."""
    params: int
    """At C=36, 20 cells, without the auxiliary head, as all counts here."""
    macs: int
    imagenet_params: int
    """At C=48, 14 cells."""
    imagenet_macs: int

    def places(self, block: str | None) -> dict[str, list[str]] | None:
        """The places (`node 0 from c_{k-2}`) of a family of operations, by cell; None without a block."""
        if block is None:
            return None
        return {
            title: [
                f"{state_name(state)} from {state_name(edge.state)}"
                for state, edge in cell.edges()
                if family(edge.operation) == block
            ]
            for title, cell in self.genotype.cells()
        }


@dataclass(frozen=True)
class Search:
    """A finished search."""

    protocol: Protocol
    folder: Path
    space: str
    seed: int
    accuracy: float | None
    """Accuracy of the supernet on the validation images after the last epoch, in percent."""
    found: tuple[Found, ...]
    name: str | None = None
    """What its genotypes are called, if they stand for the space."""

    def of(self, kind: str) -> Found | None:
        """Its genotype of that kind, if there is one."""
        return next((found for found in self.found if found.kind == kind), None)

    @property
    def plain(self) -> Found:
        """The genotype by the usual rule."""
        return self.found[0]

    @property
    def collapsed(self) -> bool:
        """Whether the plain normal cell has more than max_skips skip connections."""
        most = self.protocol.max_skips
        return most is not None and self.plain.genotype.count("skip_connect")[0] > most

    @property
    def block(self) -> str | None:
        """The family of operations that is reported for this space."""
        return self.protocol.space(self.space).block

    def title(self, kind: str) -> str:
        """What a genotype of this search is called: NAME, NAME_2.45M, or by space and seed."""
        protocol = self.protocol
        if self.name and kind in (PLAIN, STEERED):
            return self.name if kind == PLAIN else protocol.steered_name(self.name)
        limits = {STEERED: f", at most {protocol.limit}", FEW_SKIPS: f", at most {protocol.max_skips} skips"}
        return f"{self.name or f'{self.space}, search seed {self.seed}'}{limits.get(kind, '')}"


@dataclass(frozen=True)
class Trained:
    """A genotype with its trainings in one setting."""

    titles: tuple[str, ...]
    """What the study calls it: mostly one name, several where two genotypes turned out the same."""
    group: str
    """What it stands for: a space, `published`, `random SPACE`, or `other`."""
    errors: Mapping[int, float]
    """Test error after the last epoch in percent, by seed."""
    params: int
    """As trained."""
    full_params: int
    """At C=36, 20 cells."""

    @property
    def title(self) -> str:
        return " = ".join(self.titles)

    @property
    def is_random(self) -> bool:
        return self.group.startswith("random")

    @property
    def spread(self) -> Spread:
        """Mean and deviation over the seeds of the training."""
        found = spread(list(self.errors.values()))
        assert found is not None  # a row begins with a training
        return found


@dataclass(frozen=True)
class Setting:
    """The trainings that share data, shape and options."""

    data: str
    scale: str
    full: bool
    """Whether this is the full scale of the protocol."""
    recipe: str
    machines: tuple[str, ...]
    rows: tuple[Trained, ...]

    @property
    def title(self) -> str:
        """Data and scale, as they must stand beside every figure."""
        return f"{self.data}: {self.scale}"

    def find(self, title: str) -> Trained | None:
        """The genotype of that name, if it was trained here."""
        return next((row for row in self.rows if title in row.titles), None)

    def difference(self, ours: str, theirs: str) -> Difference | None:
        """Errors of one genotype minus those of another, paired by seed."""
        a, b = self.find(ours), self.find(theirs)
        return paired(a.errors, b.errors) if a and b else None


@dataclass(frozen=True)
class Experiment:
    """Everything that the run folders hold of a study."""

    protocol: Protocol
    searches: tuple[Search, ...]
    """All of one scale and one set of options, sorted by space and seed."""
    full_searches: bool
    """Whether they are at the full scale of the protocol."""
    left_out: int
    """Number of finished searches of these spaces at other scales."""
    settings: tuple[Setting, ...]
    """The settings in which a genotype of the study was trained; first the one that decides the claim."""
    remarks: tuple[str, ...]
    detectors: tuple[DetectorSetting, ...] = ()
    """The settings in which the protocol's detectors were trained."""

    def of(self, space: str) -> list[Search]:
        return [search for search in self.searches if search.space == space]

    def params(self, space: str, kind: str = PLAIN) -> list[int]:
        """Parameters at C=36, 20 cells of the genotypes that the searches of a space found."""
        return [found.params for search in self.of(space) if (found := search.of(kind)) is not None]

    @property
    def full(self) -> bool:
        """Whether the verdict rests on the full scale."""
        return self.full_searches and bool(self.settings) and self.settings[0].full

    def difference(self, ours: str, theirs: str) -> Difference | None:
        """The paired difference in the setting that decides the claim."""
        return self.settings[0].difference(ours, theirs) if self.settings else None

    def judgement(self, kind: str) -> Judgement:
        """Evaluate the claim's conditions on the `plain` or on the `steered` genotypes."""
        protocol = self.protocol
        names = protocol.names(kind)
        counts = derived_counts([load_genotype(name) for name in protocol.references])
        evidence = Evidence(
            counts=self.params(protocol.claimed_space, kind),
            baseline_counts=self.params(protocol.baseline_space),
            reference_counts={name: params for name, (params, _) in zip(protocol.references, counts, strict=True)},
            difference=self.difference(*names),
            seeds=protocol.seeds,
            names=names,
            spaces=(protocol.claimed_space, protocol.baseline_space),
        )
        return judge({key: condition.evaluate(evidence) for key, condition in protocol.claim.conditions.items()})

    def judgements(self) -> tuple[Judgement, Judgement | None]:
        """The claim on plain and on steered genotypes; None where the protocol steers none."""
        return self.judgement(PLAIN), None if self.protocol.max_params is None else self.judgement(STEERED)
