"""The experiment of results/sg_darts as its run folders hold it: searches, what they found, and retrainings of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from darts_sg.analysis.cost import derived_counts
from darts_sg.analysis.sheet import family
from darts_sg.genotype import Genotype, load_genotype, state_name
from darts_sg.study.protocol import (
    BOUND,
    DARTS,
    IR,
    MAX_SKIPS,
    NAMES,
    OURS,
    SANDGLASS,
    Difference,
    Judgement,
    Spread,
    fewer_parameters,
    judge,
    no_worse,
    paired,
    spread,
    steered_name,
)

BLOCKS = {IR: "inverted_residual", SANDGLASS: "sandglass"}
"""By space, the family of the operations that it adds to those of darts."""


@dataclass(frozen=True)
class Found:
    """A genotype that a search led to, with exact counts of its networks in the papers' shapes."""

    genotype: Genotype
    kind: str
    """plain, steered (at most BOUND parameters), or few skips (at most MAX_SKIPS)."""
    params: int
    """At C=36, 20 cells, auxiliary head excluded, as all counts here."""
    macs: int
    imagenet_params: int
    """At C=48, 14 cells."""
    imagenet_macs: int

    def blocks(self, space: str) -> dict[str, list[str]] | None:
        """By cell, the places (`node 0 from c_{k-2}`) of the block that `space` adds to darts; None if it adds none."""
        if space not in BLOCKS:
            return None
        return {
            title: [
                f"{state_name(state)} from {state_name(edge.state)}"
                for state, edge in cell.edges()
                if family(edge.operation) == BLOCKS[space]
            ]
            for title, cell in self.genotype.cells()
        }


@dataclass(frozen=True)
class Search:
    """A finished search."""

    folder: Path
    space: str
    seed: int
    accuracy: float | None
    """Of the supernet on the validation images after the last epoch, in percent."""
    found: tuple[Found, ...]
    name: str | None = None
    """What its genotypes are called, if they are those that stand for the space."""

    def of(self, kind: str) -> Found | None:
        """Its genotype of that kind, if there is one."""
        return next((found for found in self.found if found.kind == kind), None)

    @property
    def plain(self) -> Found:
        """The genotype of the usual rule."""
        return self.found[0]

    @property
    def collapsed(self) -> bool:
        """Whether the plain normal cell has more than MAX_SKIPS skip connections."""
        return self.plain.genotype.count("skip_connect")[0] > MAX_SKIPS

    def title(self, kind: str) -> str:
        """What a genotype of it is called: SG_DARTS, SG_DARTS_2.45M, or by space and seed."""
        if self.name and kind in ("plain", "steered"):
            return self.name if kind == "plain" else steered_name(self.name)
        limit = {"steered": f", at most {BOUND / 1e6:g}M", "few skips": f", at most {MAX_SKIPS} skips"}.get(kind, "")
        return f"{self.name or f'{self.space}, search seed {self.seed}'}{limit}"


@dataclass(frozen=True)
class Trained:
    """A genotype with the trainings of it in one setting."""

    titles: tuple[str, ...]
    """What it is called in the experiment: mostly one name, several where two genotypes turned out the same."""
    group: str
    """What it stands for: a space of SPACES, published, random SPACE, or other."""
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
    def spread(self) -> Spread:
        """Over the seeds of the training."""
        found = spread(list(self.errors.values()))
        assert found is not None  # a row begins with a training
        return found


@dataclass(frozen=True)
class Setting:
    """Trainings of one setting: of the same data, shape and options."""

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
    """All that the run folders hold of the experiment."""

    searches: tuple[Search, ...]
    """Of one scale and one set of options, by space and seed."""
    full_searches: bool
    """Whether they are of the full scale of the protocol."""
    left_out: int
    """Finished searches of the three spaces at other scales."""
    settings: tuple[Setting, ...]
    """Those in which something of the experiment was trained; that of the verdict first."""
    remarks: tuple[str, ...]

    def of(self, space: str) -> list[Search]:
        return [search for search in self.searches if search.space == space]

    def params(self, space: str, kind: str = "plain") -> list[int]:
        """Parameters at C=36, 20 cells of what the searches of a space found."""
        return [found.params for search in self.of(space) if (found := search.of(kind)) is not None]

    @property
    def full(self) -> bool:
        """Whether the verdict is of the full scale."""
        return self.full_searches and bool(self.settings) and self.settings[0].full

    def difference(self, ours: str, theirs: str) -> Difference | None:
        """In the setting of the verdict."""
        return self.settings[0].difference(ours, theirs) if self.settings else None

    def judgement(self, kind: str) -> Judgement:
        """The protocol's two conditions, asked of the `plain` or of the `steered` genotypes."""
        ours, theirs = (name if kind == "plain" else steered_name(name) for name in (OURS, NAMES[DARTS]))
        published = load_genotype("DARTS_V2")
        counted = derived_counts([published])[0][0]
        difference = self.difference(ours, theirs)
        return judge(
            fewer_parameters(self.params(SANDGLASS, kind), self.params(DARTS), counted),
            no_worse(difference, ours, theirs),
            difference,
        )
