"""The statistics of a study, computed from the records of its runs; trainings of different settings are never pooled."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from darts_sg.study.components import Components, variance_components
from darts_sg.study.inference import Comparison, Design, compare, designs
from darts_sg.study.ranking import RankCorrelation, rank_correlation
from darts_sg.study.run_records import Record
from darts_sg.study.statistics import Spread, spread

SEARCHED, PUBLISHED, RANDOM = "searched", "published", "random"
"""Where a trained genotype comes from: a search of the study, a publication, or chance."""

BELIEFS = {
    "validation_accuracy": "accuracy of the supernet",
    "mixing_weight": "mean mixing weight of the chosen operations",
}
"""Beliefs of a search with their titles; proxies follow under their own names."""


@dataclass(frozen=True)
class Trained:
    """A genotype with its finished trainings in one setting."""

    name: str
    source: str
    """SEARCHED, PUBLISHED or RANDOM."""
    space: str | None
    method: str | None
    search: str | None
    """The job that found it."""
    search_seed: int | None
    setting: str
    machines: tuple[str, ...]
    errors: Mapping[int, float]
    """Test error after the last epoch in percent, by the seed of the training."""
    params: int | None
    """As trained, without the auxiliary head."""
    genotype_params: int | None
    """At C=36, 20 cells."""
    hours: float | None
    """Of all its trainings together."""

    @property
    def spread(self) -> Spread:
        found = spread(list(self.errors.values()))
        assert found is not None  # it is made of at least one training
        return found

    @property
    def arm(self) -> str:
        """The space and method that found it, or what else it stands for."""
        if self.source == SEARCHED:
            return arm_name(self.space, self.method)
        return f"random, {self.space}" if self.source == RANDOM and self.space else self.source


@dataclass(frozen=True)
class Arm:
    """All genotypes that the searches of one space and method found, in one setting of the trainings."""

    name: str
    setting: str
    genotypes: tuple[Trained, ...]
    components: Components

    def error_by_search(self) -> dict[int, float]:
        """Mean error of each search's genotype, by the seed of the search."""
        return {one.search_seed: one.spread.mean for one in self.genotypes if one.search_seed is not None}


@dataclass(frozen=True)
class Ranking:
    """The rank correlation of one belief, over some of the searches."""

    setting: str
    where: str
    """`all searches`, or the space and method."""
    correlation: RankCorrelation
    points: tuple[tuple[str, float, float], ...]
    """(search, belief, mean error)."""


@dataclass(frozen=True)
class Findings:
    """Everything that is computed of a study."""

    genotypes: tuple[Trained, ...]
    arms: tuple[Arm, ...]
    pooled_within: Mapping[str, Components]
    """By setting: trainings of every genotype, each around its own mean."""
    comparisons: Mapping[str, Sequence[Comparison]]
    """By setting."""
    designs: Mapping[str, Sequence[Design]]
    rankings: tuple[Ranking, ...]

    @property
    def settings(self) -> list[str]:
        """The settings of the trainings, in order."""
        return list(dict.fromkeys(one.setting for one in self.genotypes))

    def of(self, setting: str) -> list[Trained]:
        return [one for one in self.genotypes if one.setting == setting]

    def find(self, setting: str, name: str) -> Trained | None:
        """The genotype of that name, if it was trained in this setting."""
        return next((one for one in self.of(setting) if one.name == name), None)


def arm_name(space: str | None, method: str | None) -> str:
    """How a space and a method are called together: `darts · pc-darts`."""
    return " · ".join(part for part in (space, method) if part)


def find(
    searches: Sequence[Record],
    trainings: Sequence[Record],
    pairs: Sequence[tuple[str, str]] = (),
    correct: bool = True,
    target: float = 0.1,
) -> Findings:
    """Compute the statistics of a study.

    searches, trainings: records as `results.collect` gives them; only finished trainings with an error count.
    pairs: names of genotypes, or of arms, to compare. correct: whether Holm's correction is asked for.
    target: the difference in points whose price the power analysis states.
    """
    genotypes = _trained(trainings)
    arms = _arms(genotypes)
    settings = list(dict.fromkeys(one.setting for one in genotypes))
    comparisons = {setting: _comparisons(setting, genotypes, arms, pairs, correct) for setting in settings}
    pooled = {
        setting: found
        for setting in settings
        if (found := variance_components(list(o.errors.values()) for o in genotypes if o.setting == setting))
    }
    return Findings(
        genotypes=tuple(genotypes),
        arms=tuple(arms),
        pooled_within=pooled,
        comparisons=comparisons,
        designs={setting: designs(found, target) for setting, found in comparisons.items()},
        rankings=tuple(_rankings(searches, genotypes)),
    )


def _trained(trainings: Iterable[Record]) -> list[Trained]:
    groups: dict[tuple[str, str], list[Record]] = {}
    for record in trainings:
        if record.get("error") is not None:
            groups.setdefault((record["setting"], record["genotype"]), []).append(record)
    found = []
    for (setting, name), group in groups.items():
        first, hours = group[0], [record["hours"] for record in group if record.get("hours") is not None]
        errors = {record["seed"]: float(record["error"]) for record in group}
        found.append(
            Trained(
                name=name,
                source=first["source"],
                space=first.get("space"),
                method=first.get("method"),
                search=first.get("search"),
                search_seed=first.get("search_seed"),
                setting=setting,
                machines=tuple(dict.fromkeys(record["machine"] for record in group)),
                errors=dict(sorted(errors.items())),
                params=first.get("params"),
                genotype_params=first.get("genotype_params"),
                hours=sum(hours) if hours else None,
            )
        )
    return found


def _arms(genotypes: Iterable[Trained]) -> list[Arm]:
    """The arms, each with one genotype a search: a second one, such as a bounded one, stands only in the tables."""
    groups: dict[tuple[str, str], dict[Any, Trained]] = {}
    for one in genotypes:
        if one.source == SEARCHED:
            groups.setdefault((one.setting, one.arm), {}).setdefault(one.search or one.name, one)
    arms = []
    for (setting, name), group in groups.items():
        members = tuple(group.values())
        components = variance_components([list(one.errors.values()) for one in members])
        assert components is not None  # a genotype has at least one error
        arms.append(Arm(name, setting, members, components))
    return arms


def _comparisons(
    setting: str, genotypes: Sequence[Trained], arms: Sequence[Arm], pairs: Sequence[tuple[str, str]], correct: bool
) -> list[Comparison]:
    """All comparisons of one setting, corrected together, whatever they are paired by."""
    errors: dict[str, Mapping[int, float]] = {arm.name: arm.error_by_search() for arm in arms if arm.setting == setting}
    errors |= {one.name: one.errors for one in genotypes if one.setting == setting}
    named = {one.name for one in genotypes if one.setting == setting}
    by = {pair: "training seed" if named & set(pair) else "search seed" for pair in pairs}
    return [
        Comparison(one.ours, one.theirs, by[one.ours, one.theirs], one.difference, one.p, one.p_holm)
        for one in compare(pairs, errors, correct=correct)
    ]


def _rankings(searches: Sequence[Record], genotypes: Sequence[Trained]) -> Iterable[Ranking]:
    """Every belief against the retrained error: over all searches, and within each space and method."""
    by_id = {record["id"]: record for record in searches}
    titles = dict(BELIEFS)
    for record in searches:
        titles |= {name: name for name in record if name.startswith("proxy ")}
    for setting in dict.fromkeys(one.setting for one in genotypes):
        first: dict[str, Trained] = {}
        for one in genotypes:
            if one.setting == setting and one.search in by_id:
                first.setdefault(str(one.search), one)
        arms = list(dict.fromkeys(one.arm for one in first.values()))
        for key, title in titles.items():
            for where in ("all searches", *(arms if len(arms) > 1 else ())):
                points = [
                    (name, float(value), one.spread.mean)
                    for name, one in first.items()
                    if where in ("all searches", one.arm) and (value := by_id[name].get(key)) is not None
                ]
                found = rank_correlation(title, [b for _, b, _ in points], [e for _, _, e in points])
                if found is not None:
                    yield Ranking(setting, where, found, tuple(points))
