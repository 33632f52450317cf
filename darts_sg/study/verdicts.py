"""The claims of a study: each condition evaluated as the study file states it, on whatever has been measured."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from darts_sg.analysis.cost import derived_counts
from darts_sg.genotype import load_genotype
from darts_sg.study.findings import Findings, differences
from darts_sg.study.inference import Pairs, pairs_of
from darts_sg.study.run_records import ERROR, Metric, Record
from darts_sg.study.statistics import Condition, counted, judge, relative
from darts_sg.study.tables import signed


@dataclass(frozen=True)
class Evidence:
    """What one claim is evaluated on, in one setting of the trainings."""

    of: str
    against: str
    counts: Sequence[int]
    """Parameters at C=36, 20 cells of the genotypes that the claim is about."""
    baseline_counts: Sequence[int]
    pairs: Pairs | None
    """Errors of `of` minus errors of `against`. Where a larger figure is better, the other way round: in either case a
    negative difference is one in favour of `of`."""
    searches_missing: int
    """Genotypes of either side that are not known yet."""
    trainings_missing: int
    """Trainings of either side that have no error yet."""
    metric: Metric = ERROR


def evaluate_claims(
    claims: Sequence[Any], found: Findings, jobs: Sequence[Record], known: Mapping[str, int]
) -> list[Record]:
    """Judge each claim in each setting of the trainings, or on the searches alone where none is trained yet.

    claims: as the study file has them (`of`, `against`, `subject`, `kind`, `conditions`, `text`, `name`). jobs: the
    records of all jobs of the plan, which tell what is missing. known: parameters of the genotypes that are known.
    """
    records = []
    for claim in claims:
        for setting in found.settings or [""]:
            evidence = _evidence(claim, found, setting, jobs, known)
            conditions = {
                condition.kind: CONDITIONS[condition.kind](condition.values, evidence) for condition in claim.conditions
            }
            judgement = judge(conditions)
            records.append(
                {
                    "claim": claim.name,
                    "text": claim.text,
                    "setting": setting,
                    "word": judgement.word,
                    "conditions": [
                        {
                            "title": TITLES[condition.kind](condition.values, claim.against, evidence.metric),
                            "word": conditions[condition.kind].word,
                            "text": conditions[condition.kind].text,
                        }
                        for condition in claim.conditions
                    ],
                }
            )
    return records


def _evidence(claim: Any, found: Findings, setting: str, jobs: Sequence[Record], known: Mapping[str, int]) -> Evidence:
    members = [_members(claim, name, jobs) for name in (claim.of, claim.against)]
    counts = [[known[name] for name in names if name in known] for names in members]
    trained = {(one.name, seed) for one in found.of(setting) for seed in one.errors}
    wanted = [(job["genotype"], job["seed"]) for job in jobs if job["kind"] == "retrain"]
    either = {*members[0], *members[1]}
    metric = found.metric(setting)
    first, second = (claim.against, claim.of) if metric.larger_is_better else (claim.of, claim.against)
    return Evidence(
        of=claim.of,
        against=claim.against,
        counts=counts[0],
        baseline_counts=counts[1],
        pairs=pairs_of(differences(found.of(setting), first, second, claim.subject, claim.kind)),
        searches_missing=sum(name not in known for name in either),
        trainings_missing=sum(one not in trained for one in wanted if one[0] in either),
        metric=metric,
    )


def _members(claim: Any, name: str, jobs: Sequence[Record]) -> list[str]:
    """The genotypes that a name of a claim stands for: those of a kind, of a method or space; or itself."""
    if claim.subject == "genotype":
        return [name]
    chosen = (job for job in jobs if job["genotype_kind"] == claim.kind and job[claim.subject] == name)
    return list(dict.fromkeys(job["genotype"] for job in chosen))


def fewer_parameters(values: Mapping[str, Any], found: Evidence) -> Condition:
    """At least `percent` fewer parameters on average than the baseline, and than the published genotype `than`."""
    if not found.counts:
        return Condition(None, f"no genotype of {found.of} is known yet")
    mean, limit = statistics.mean(found.counts), 1 - values["percent"] / 100
    average = " on average" if len(found.counts) > 1 else ""
    text = f"{counted(found.counts, 'genotype')} of {found.of}: {mean / 1e6:.2f}M parameters{average}"
    bases = []
    if found.baseline_counts:
        base = statistics.mean(found.baseline_counts)
        bases.append(base)
        text += f", {relative(mean, base)} than {counted(found.baseline_counts, 'genotype')} of {found.against}"
        text += f" ({base / 1e6:.2f}M)"
    if "than" in values:
        ((published, _),) = derived_counts([load_genotype(values["than"])])
        bases.append(published)
        text += f", {relative(mean, published)} than {values['than']} ({published:,})"
    if found.searches_missing or not found.baseline_counts:
        missing = counted(range(found.searches_missing), "genotype")
        return Condition(None, f"{text}; still without {missing}")
    met = all(mean <= limit * base for base in bases)
    return Condition(met, text, refuted=not met)


def no_worse(values: Mapping[str, Any], found: Evidence) -> Condition:
    """No worse mean, and the 95% interval excludes being worse by `points` or more."""
    if found.pairs is None:
        return _unmeasured(found)
    points = values["points"]
    excluded = found.pairs.interval is not None and found.pairs.interval[1] < points
    text = _measured(found.pairs, found)
    if found.pairs.interval is not None:
        text += f", which {'excludes' if excluded else 'does not exclude'} being worse by {points:g} or more"
    return _decided(found, found.pairs, text, found.pairs.mean <= 0 and excluded)


def better(values: Mapping[str, Any], found: Evidence) -> Condition:
    """The 95% interval lies below 0: a better figure; with `points`, better by more than that."""
    if found.pairs is None:
        return _unmeasured(found)
    points = values.get("points", 0)
    below = found.pairs.interval is not None and found.pairs.interval[1] < -points
    text = _measured(found.pairs, found)
    if found.pairs.interval is not None:
        less = f"a gain of {points:g} points or less" if points else "no gain"
        text += f", which {'excludes' if below else 'does not exclude'} {less}"
    return _decided(found, found.pairs, text, below)


def _unmeasured(found: Evidence) -> Condition:
    return Condition(None, f"{found.of} and {found.against} have no pair yet")


def _measured(pairs: Pairs, found: Evidence) -> str:
    names = (found.against, found.of) if found.metric.larger_is_better else (found.of, found.against)
    text = f"{' − '.join(names)}: {signed(pairs.mean)} points on average of {counted(pairs.keys, 'pair')}, "
    if pairs.interval is None:
        return text + "one pair alone gives no interval"
    return f"{text}95% interval {signed(pairs.interval[0])} to {signed(pairs.interval[1])}"


def _decided(found: Evidence, pairs: Pairs, text: str, met: bool) -> Condition:
    """Undecided while a training is missing; being worse in every pair refutes the claim once none is."""
    if found.trainings_missing:
        return Condition(None, f"{text}; still without {counted(range(found.trainings_missing), 'training')}")
    worse = min(pairs.values) > 0
    if worse:
        text += "; worse in every pair"
    return Condition(None if pairs.interval is None else met, text, refuted=worse)


CONDITIONS: Mapping[str, Callable[[Mapping[str, Any], Evidence], Condition]] = {
    "fewer_parameters": fewer_parameters,
    "no_worse": no_worse,
    "better": better,
}
TITLES: Mapping[str, Callable[[Mapping[str, Any], str, Metric], str]] = {
    "fewer_parameters": lambda values, against, metric: (
        f"At least {values['percent']:g}% fewer parameters than {against}"
        + (f" and than {values['than']}" if "than" in values else "")
    ),
    "no_worse": lambda values, against, metric: (
        f"No {metric.worse} mean {metric.noun} than {against}, and not worse by {values['points']:g} points or more"
    ),
    "better": lambda values, against, metric: (
        f"A {metric.better} {metric.noun} than {against}"
        + (f", by more than {values['points']:g} points" if values.get("points") else "")
    ),
}
"""Each condition in words."""
