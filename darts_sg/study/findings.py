"""The statistics of a study, from the records of its runs; trainings of different settings are never pooled."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from darts_sg.study.components import Components, variance_components
from darts_sg.study.inference import Asked, Comparison, Design, compare, designs
from darts_sg.study.ranking import RankCorrelation, rank_correlation
from darts_sg.study.run_records import ERROR, Metric, Record, group_name
from darts_sg.study.statistics import Spread, spread

ASKED = tuple[str, str, str]
"""A comparison that the study asks for: two names, and what they name: genotype, method or space."""

BELIEFS = {
    "validation_accuracy": "accuracy of the supernet",
    "mixing_weight": "mean mixing weight of the chosen operations",
}
"""Beliefs of a search with their titles; proxies follow under their own names."""


@dataclass(frozen=True)
class Trained:
    """A genotype with its finished trainings in one setting."""

    name: str
    kind: str
    """plain or bounded (of a search of the study), random, reference (a published genotype), or model."""
    space: str
    method: str
    group: str
    """What it stands for: its space and method, or what else it is; see `group_name`."""
    search: str | None
    """The job that found it."""
    search_seed: int | None
    setting: str
    machines: tuple[str, ...]
    errors: Mapping[int, float]
    """Test error after the last epoch in percent, or what else `metric` says, by the seed of the training."""
    params: int | None
    """As trained, without the auxiliary head."""
    genotype_params: int | None
    """At C=36, 20 cells."""
    hours: float | None
    """Of all its trainings together."""
    metric: Metric = ERROR

    @property
    def spread(self) -> Spread:
        found = spread(list(self.errors.values()))
        assert found is not None  # it is made of at least one training
        return found


@dataclass(frozen=True)
class Arm:
    """The plain genotypes that the searches of one space and method found, in one setting of the trainings."""

    name: str
    setting: str
    genotypes: tuple[Trained, ...]
    components: Components


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

    def metric(self, setting: str) -> Metric:
        """What the trainings of a setting, which share their data and so their task, are compared by."""
        return next((one.metric for one in self.of(setting)), ERROR)


def compute(
    searches: Sequence[Record],
    trainings: Sequence[Record],
    asked: Sequence[ASKED] = (),
    correct: bool = True,
    target: float = 0.1,
) -> Findings:
    """Compute the statistics of a study.

    searches, trainings: records as `results.collect` gives them; only finished trainings with an error count.
    asked: what to compare. correct: whether Holm's correction is asked for.
    target: the difference in points whose price the power analysis states.
    """
    genotypes = _trained(trainings)
    arms = _arms(genotypes)
    settings = list(dict.fromkeys(one.setting for one in genotypes))
    comparisons = {
        setting: _comparisons([one for one in genotypes if one.setting == setting], asked, correct)
        for setting in settings
    }
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
        if _figure(record) is not None:
            groups.setdefault((record["setting"], record["genotype"]), []).append(record)
    found = []
    for (setting, name), group in groups.items():
        first, hours = group[0], [record["hours"] for record in group if record.get("hours") is not None]
        errors = {record["seed"]: float(_figure(record)) for record in group}
        found.append(
            Trained(
                name=name,
                kind=first["kind"],
                space=first["space"],
                method=first["method"],
                group=group_name(first),
                search=first.get("search"),
                search_seed=first.get("search_seed"),
                setting=setting,
                machines=tuple(dict.fromkeys(record["machine"] for record in group)),
                errors=dict(sorted(errors.items())),
                params=first.get("params"),
                genotype_params=first.get("genotype_params"),
                hours=sum(hours) if hours else None,
                metric=Metric(first["metric"], first["larger_is_better"]) if "metric" in first else ERROR,
            )
        )
    return found


def _figure(record: Record) -> Any:
    """What a training is compared by; None without it. A record without a metric is one of a classifier."""
    return record.get("figure", record.get("error"))


def _arms(genotypes: Iterable[Trained]) -> list[Arm]:
    groups: dict[tuple[str, str], list[Trained]] = {}
    for one in genotypes:
        if one.kind == "plain":
            groups.setdefault((one.setting, one.group), []).append(one)
    arms = []
    for (setting, name), group in groups.items():
        components = variance_components([list(one.errors.values()) for one in group])
        assert components is not None  # a genotype has at least one error
        arms.append(Arm(name, setting, tuple(group), components))
    return arms


def _comparisons(genotypes: Sequence[Trained], asked: Sequence[ASKED], correct: bool) -> list[Comparison]:
    """All comparisons of one setting, corrected together, whatever they are paired by."""
    tests = []
    for ours, theirs, subject in asked:
        by = "seed of the training" if subject == "genotype" else "seed of the search"
        tests.append(Asked(ours, theirs, by, differences(genotypes, ours, theirs, subject)))
    return compare(tests, correct)


def differences(
    genotypes: Iterable[Trained], ours: str, theirs: str, subject: str, kind: str = "plain"
) -> dict[str, float]:
    """Errors (or what else the trainings are compared by) of one minus those of the other, by pair.

    Two genotypes are paired by the seed of the training. Two methods (or spaces) are paired search by search: the same
    space (or method) and seed of the search, genotypes of that `kind`. A pair's value is then the mean over the seeds
    at which both genotypes were trained, so that a missing training takes nothing but its partner with it.
    """
    if subject == "genotype":
        errors = {one.name: one.errors for one in genotypes}
        a, b = errors.get(ours, {}), errors.get(theirs, {})
        return {str(seed): a[seed] - b[seed] for seed in sorted(a.keys() & b.keys())}
    sides: tuple[dict[tuple[str, int], Trained], ...] = ({}, {})
    for one in genotypes:
        if one.kind == kind and one.search_seed is not None:
            name, other = (one.method, one.space) if subject == "method" else (one.space, one.method)
            for side, wanted in zip(sides, (ours, theirs), strict=True):
                if name == wanted:  # the first: several bounds have a genotype each
                    side.setdefault((other, one.search_seed), one)
    shared = sorted(sides[0].keys() & sides[1].keys())
    several = len({other for other, _ in (*sides[0], *sides[1])}) > 1
    found = {}
    for key in shared:
        a, b = (side[key].errors for side in sides)
        if both := a.keys() & b.keys():
            label = f"{key[0]} {key[1]}" if several else str(key[1])
            found[label] = sum(a[seed] - b[seed] for seed in both) / len(both)
    return found


def _rankings(searches: Sequence[Record], genotypes: Sequence[Trained]) -> Iterable[Ranking]:
    """Every belief against the retrained error: over all searches, and within each space and method."""
    by_id = {record["id"]: record for record in searches}
    titles = dict(BELIEFS)
    for record in searches:
        titles |= {name: name for name in record if name.startswith("proxy ")}
    for setting in dict.fromkeys(one.setting for one in genotypes):
        first: dict[str, Trained] = {}
        for one in genotypes:
            if one.setting == setting and one.kind == "plain" and one.search in by_id:
                first[str(one.search)] = one
        arms = list(dict.fromkeys(one.group for one in first.values()))
        for key, title in titles.items():
            for where in ("all searches", *(arms if len(arms) > 1 else ())):
                points = [
                    (name, float(value), one.spread.mean)
                    for name, one in first.items()
                    if where in ("all searches", one.group) and (value := by_id[name].get(key)) is not None
                ]
                found = rank_correlation(title, [b for _, b, _ in points], [e for _, _, e in points])
                if found is not None:
                    yield Ranking(setting, where, found, tuple(points))
