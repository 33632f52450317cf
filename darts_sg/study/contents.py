"""The report of a study as data: sections with their texts, tables and charts, in the order in which they are read."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from darts_sg.files import size_text
from darts_sg.study.chart import Chart, Interval, Series
from darts_sg.study.collected import DONE, StudyResults
from darts_sg.study.components import Component
from darts_sg.study.findings import Findings, Trained
from darts_sg.study.inference import ALPHA, MOST_PAIRS, POWER, Comparison
from darts_sg.study.run_records import ERROR, Metric, Record, arm_name
from darts_sg.study.statistics import counted
from darts_sg.study.tables import Column, Linked, Table, by_seed, fixed, interval, p_text, signed, whole

OPEN_JOBS = "open_jobs"
"""The name of the table of jobs without a result."""
TOO_MANY = f"more than {MOST_PAIRS:,}"


@dataclass(frozen=True)
class Section:
    """A part of the report."""

    name: str
    """For links within the page."""
    title: str
    text: str = ""
    tables: Sequence[Table] = ()
    charts: Sequence[Chart] = ()


def contents(results: StudyResults) -> list[Section]:
    """All sections that have something to say."""
    found = results.findings
    sections = [
        _claims(results),
        _retrained(results, found),
        _compared(results, found),
        _spread(found),
        _believed(results, found),
        _power(found),
        _anytime(results),
        _searched(results),
        _published(results),
        _cost(results),
        _open(results),
    ]
    return [one for one in sections if one is not None]


# Claims


def _claims(results: StudyResults) -> Section | None:
    if not results.claims:
        return None
    rows = [
        [claim["text"] or claim["claim"], claim["word"], condition["title"], condition["word"], condition["text"]]
        for claim in results.claims
        for condition in claim["conditions"]
    ]
    columns = [Column("claim"), Column("verdict"), Column("condition"), Column("condition is"), Column("measured")]
    notes = [
        "A claim holds if all of its conditions are met, does not hold if one of them is refuted, and is open "
        "otherwise; conditions are those of the study file. Parameters are counted at C=36, 20 cells, without the "
        "auxiliary head; errors and other figures are those of the test after the last epoch.",
        *(setting_note(setting, results.findings.of(setting)) for setting in results.findings.settings),
    ]
    note = " ".join(notes)
    return Section(
        "claims", "Claims", tables=[Table("claims", "Claims and their conditions", columns, rows, note, True)]
    )


# Retrainings


def _retrained(results: StudyResults, found: Findings) -> Section | None:
    if all(job["kind"] == "search" for job in results.jobs):
        return None
    if not found.genotypes:
        return Section("errors", "Errors after retraining", "No retraining is finished yet.")
    metrics = dict.fromkeys(found.metric(setting) for setting in found.settings)
    heading = f"{_capital(' and '.join(map(_several, metrics)))} after retraining"
    looks = Looks(results)
    tables, charts = [], []
    for k, setting in enumerate(found.settings):
        metric = found.metric(setting)
        noun = metric.noun
        trained = sorted(found.of(setting), key=lambda one: metric.order(one.spread.mean))
        rows = [
            [
                one.name, one.group, one.search_seed, len(one.errors), one.spread.mean, one.spread.deviation,
                dict(one.errors), one.params, one.genotype_params, one.hours,
            ]
            for one in trained
        ]  # fmt: skip
        columns = [
            Column("genotype"), Column("from"), Column("search seed", str, number=True),
            Column("trainings", str, number=True), Column(f"mean {noun}, %", fixed(2), number=True),
            Column("deviation, points", fixed(2), number=True), Column(f"{noun} by seed, %", by_seed),
            Column("parameters as trained", whole, number=True),
            Column("parameters at C=36, 20 cells", whole, number=True), Column("hours", fixed(2), number=True),
        ]  # fmt: skip
        caption = setting_note(setting, trained)
        note = (
            f"Measured: test {noun} after the last epoch. {caption} Deviation: sample standard deviation over the "
            "seeds of the training; a single training has none. Parameters without the auxiliary head. Hours: all "
            "trainings of the genotype."
        )
        tables.append(
            Table(f"errors{_suffix(k)}", f"Test {noun} of each {_trained_noun(trained)}", columns, rows, note)
        )
        charts += [_errors_chart(trained, caption, looks, k), *_sizes_chart(trained, caption, looks, k)]
    return Section("errors", heading, tables=tables, charts=charts)


def _nouns(found: Findings) -> str:
    """What the trainings of a study are compared by: error, mAP (VOC07), or both."""
    return " or ".join(dict.fromkeys(found.metric(setting).noun for setting in found.settings))


def _capital(text: str) -> str:
    """With a capital first letter, but for abbreviations such as mAP."""
    return text if text[:2] != text[:2].lower() else text[0].upper() + text[1:]


def _trained_noun(trained: Sequence[Trained]) -> str:
    kinds = {one.kind == "model" for one in trained}
    return "model" if kinds == {True} else "genotype or model" if len(kinds) == 2 else "genotype"


def _errors_chart(trained: Sequence[Trained], caption: str, looks: "Looks", k: int) -> Chart:
    series, intervals, noun = [], [], trained[0].metric.noun
    for row, one in enumerate(trained):
        points = [(error, float(row)) for error in one.errors.values()]
        titles = [f"{one.name}, seed {seed}: {error:.2f}%" for seed, error in one.errors.items()]
        series.append(Series(one.group, points, looks.of(one.group), titles=titles))
        values = list(one.errors.values())
        if len(values) > 1:
            intervals.append(Interval(row, min(values), one.spread.mean, max(values)))
    return Chart(
        name=f"errors{_suffix(k)}",
        title=f"Test {noun} by {_trained_noun(trained)}, best mean first",
        caption=f"Each sign is a training, the bar their mean, the line their range. {caption}",
        x_label=f"test {noun} after the last epoch, %",
        series=series,
        rows=[one.name for one in trained],
        intervals=intervals,
    )


def _sizes_chart(trained: Sequence[Trained], caption: str, looks: "Looks", k: int) -> Iterable[Chart]:
    series = [
        Series(
            one.group, [(one.genotype_params / 1e6, one.spread.mean)], looks.of(one.group),
            titles=[f"{one.name}: {one.genotype_params / 1e6:.2f}M, {one.spread.mean:.2f}%"],
        )
        for one in trained
        if one.genotype_params is not None
    ]  # fmt: skip
    if len(series) > 1:
        noun = trained[0].metric.noun
        yield Chart(
            name=f"error_and_size{_suffix(k)}",
            title=f"{_capital(noun)} against size",
            caption=f"Each sign is the mean of one genotype's trainings. {caption}",
            x_label="parameters at C=36, 20 cells, M",
            y_label=f"mean test {noun}, %",
            series=series,
        )


# Comparisons


def _compared(results: StudyResults, found: Findings) -> Section | None:
    tables, charts = [], []
    for k, (setting, comparisons) in enumerate(found.comparisons.items()):
        if not any(one.pairs for one in comparisons):
            continue
        metric = found.metric(setting)
        rows = [_comparison_row(one, metric) for one in comparisons]
        columns = [
            Column(f"difference of {_several(metric)}"), Column("paired by"), Column("pairs", str, number=True),
            Column("by seed, points"), Column("mean, points", fixed(2, sign=True), number=True),
            Column("95% interval, points", interval(2, sign=True), is_interval=True), Column("p", p_text, number=True),
            Column("p, Holm" if results.correct else "p, not corrected", p_text, number=True), Column("says"),
        ]  # fmt: skip
        tests = sum(one.p is not None for one in comparisons)
        correction = f", and Holm's correction is over {counted(range(tests), 'test')}" if results.correct else ""
        note = (
            f"{_capital(_several(metric))} of the first minus {_several(metric)} of the second; negative: the first "
            f"has the smaller {metric.noun}. Paired t test; intervals are for one comparison alone{correction}. "
            f"{setting_note(setting, found.of(setting))}"
        )
        tables.append(Table(f"comparisons{_suffix(k)}", "Paired differences", columns, rows, note))
        drawn = [one for one in comparisons if one.pairs is not None]
        charts.append(
            Chart(
                name=f"differences{_suffix(k)}",
                title="Paired differences with 95% intervals",
                caption=f"Signs are pairs. Left of the dashed line the first has the smaller {metric.noun}. "
                f"{setting_note(setting, found.of(setting))}",
                x_label=f"difference of test {_several(metric)}, points",
                rows=[f"{one.ours} − {one.theirs}" for one in drawn],
                series=[
                    Series(
                        "pairs", [(value, float(row)) for value in one.pairs.values], 7,
                        titles=[
                            f"{one.paired_by} {key}: {signed(value)} points"
                            for key, value in zip(one.pairs.keys, one.pairs.values, strict=True)
                        ],
                        in_legend=False,
                    )
                    for row, one in enumerate(drawn)
                    if one.pairs is not None
                ],
                intervals=[
                    Interval(row, one.pairs.interval[0], one.pairs.mean, one.pairs.interval[1])
                    for row, one in enumerate(drawn)
                    if one.pairs is not None and one.pairs.interval is not None
                ],
                marks=(0.0,),
            )
        )  # fmt: skip
    return Section("comparisons", "Comparisons", tables=tables, charts=charts) if tables else None


def _several(metric: Metric) -> str:
    return "errors" if metric == ERROR else metric.noun


def _comparison_row(one: Comparison, metric: Metric) -> list[Any]:
    title, pairs = f"{one.ours} − {one.theirs}", one.pairs
    if pairs is None:
        return [title, one.paired_by, 0, None, None, None, None, None, "no common seed yet"]
    by = ", ".join(f"{key}: {signed(value)}" for key, value in zip(pairs.keys, pairs.values, strict=True))
    return [
        title, one.paired_by, len(pairs.keys), by, pairs.mean, pairs.interval, one.p,
        one.p_holm, says(one, metric),
    ]  # fmt: skip


def says(one: Comparison, metric: Metric = ERROR) -> str:
    """What a comparison settles at 5% after the correction, in words."""
    if one.pairs is None or one.p_holm is None:
        return "one pair decides nothing"
    if one.p_holm > ALPHA:
        return "not settled"
    first_is_better = metric.order(one.pairs.mean) < 0
    return f"{one.ours if first_is_better else one.theirs} has the {metric.better} {metric.noun}"


# Variances


def _spread(found: Findings) -> Section | None:
    rows = []
    several = len(found.settings) > 1
    for arm in found.arms:
        parts = arm.components
        rows.append(
            [
                arm.name, *([arm.setting] if several else []), parts.groups, parts.values, parts.mean,
                _deviation(parts.between), _interval(parts.between), _deviation(parts.within), _interval(parts.within),
                parts.total,
            ]
        )  # fmt: skip
    for setting, parts in found.pooled_within.items():
        if parts.within is not None:
            name = "all genotypes, each around its own mean"
            rows.append(
                [
                    name, *([setting] if several else []), parts.groups, parts.values, None, None, None,
                    _deviation(parts.within), _interval(parts.within), None,
                ]
            )  # fmt: skip
    if not rows:
        return None
    columns = [
        Column("space · method"), *([Column("setting")] if several else []), Column("searches", str, number=True),
        Column("trainings", str, number=True), Column(f"mean {_nouns(found)}, %", fixed(2), number=True),
        Column("between searches: deviation, points", fixed(2), number=True),
        Column("between searches: 95% interval", interval(2), is_interval=True),
        Column("between trainings: deviation, points", fixed(2), number=True),
        Column("between trainings: 95% interval", interval(2), is_interval=True),
        Column("means of the genotypes: deviation, points", fixed(2), number=True),
    ]  # fmt: skip
    notes = [
        "Standard deviations of a model with random searches and random trainings (analysis of variance, unbalanced). "
        "Between searches: how much another seed of the search changes the result, training noise taken out. Between "
        "trainings: how much another seed of the training changes the result of one genotype. A dash: the runs cannot "
        "tell the two apart (one search, or each genotype trained once). The last column is the plain deviation of the "
        "genotypes' means, which mixes both.",
        *(setting_note(setting, found.of(setting)) for setting in found.settings),
    ]
    table = Table("variances", "Spread of the searches, spread of the trainings", columns, rows, " ".join(notes))
    return Section("spread", "Search variance and training variance", tables=[table])


def _deviation(part: Component | None) -> float | None:
    return None if part is None else part.deviation


def _interval(part: Component | None) -> tuple[float, float] | None:
    return None if part is None else part.interval


# Beliefs


def _believed(results: StudyResults, found: Findings) -> Section | None:
    if not found.rankings:
        return None
    several = len(found.settings) > 1
    rows = [
        [
            one.correlation.belief, one.where, *([one.setting] if several else []), one.correlation.number,
            one.correlation.spearman, one.correlation.spearman_interval, one.correlation.spearman_p,
            one.correlation.kendall, one.correlation.kendall_p,
        ]
        for one in found.rankings
    ]  # fmt: skip
    columns = [
        Column("belief of the search"), Column("over"), *([Column("setting")] if several else []),
        Column("genotypes", str, number=True), Column("Spearman ρ", fixed(2, sign=True), number=True),
        Column("95% interval of ρ", interval(2, sign=True), is_interval=True), Column("p of ρ", p_text, number=True),
        Column("Kendall τ", fixed(2, sign=True), number=True), Column("p of τ", p_text, number=True),
    ]  # fmt: skip
    notes = [
        "+1: the search ranks its genotypes exactly as their retraining does; −1: the other way round. Mean test error "
        "of each genotype against the belief of the search that found it. Over all searches, differences between "
        "spaces and methods count, too; supernets of different spaces or methods are hardly comparable.",
        *(setting_note(setting, found.of(setting)) for setting in found.settings),
    ]
    arms = {one.search: one.group for one in found.genotypes if one.search}
    looks, charts = Looks(results), []
    for one in found.rankings:
        if one.where != "all searches":
            continue
        by_arm: dict[str, list[tuple[str, float, float]]] = {}
        for point in one.points:
            by_arm.setdefault(arms[point[0]], []).append(point)
        charts.append(
            Chart(
                name=f"belief_{'_'.join(one.correlation.belief.split())}{_suffix(found.settings.index(one.setting))}",
                title=f"Retrained error against the {one.correlation.belief}",
                caption=f"Spearman {signed(one.correlation.spearman)}, Kendall {signed(one.correlation.kendall)} over "
                f"{one.correlation.number} genotypes. {setting_note(one.setting, found.of(one.setting))}",
                x_label=one.correlation.belief + (", %" if "accuracy" in one.correlation.belief else ""),
                y_label="mean test error, %",
                series=[
                    Series(
                        arm, [(believed, error) for _, believed, error in points], looks.of(arm),
                        titles=[f"{name}: {believed:.4g}, {error:.2f}%" for name, believed, error in points],
                    )
                    for arm, points in by_arm.items()
                ],
            )
        )  # fmt: skip
    table = Table("beliefs", "Rank correlation with the retrained error", columns, rows, " ".join(notes))
    return Section("beliefs", "What the searches believed", tables=[table], charts=charts)


# Power


def _power(found: Findings) -> Section | None:
    rows = []
    several, target = len(found.settings) > 1, 0.1
    for setting, all_designs in found.designs.items():
        for one in all_designs:
            target = one.target
            pair = one.comparison
            rows.append(
                [
                    f"{pair.ours} − {pair.theirs}", *([setting] if several else []), pair.paired_by,
                    len(pair.pairs.values) if pair.pairs else 0, one.deviation, one.detectable,
                    one.needed or TOO_MANY, _range(one.needed_range), one.needed_corrected or TOO_MANY,
                ]
            )  # fmt: skip
    if not rows:
        return None
    columns = [
        Column(f"difference of {' or '.join(dict.fromkeys(_several(found.metric(s)) for s in found.settings))}"),
        *([Column("setting")] if several else []), Column("paired by"),
        Column("pairs now", str, number=True), Column("deviation of the differences, points", fixed(3), number=True),
        Column("smallest difference found now, points", fixed(2), number=True),
        Column(f"pairs for {target:g} points", _count, number=True), Column("from … to"),
        Column("pairs with all comparisons corrected", _count, number=True),
    ]  # fmt: skip
    notes = [
        f"Non-central t distribution: a two-sided paired t test at {ALPHA:.0%} finds the difference with a probability "
        f"of {POWER:.0%}. From … to: the same at both ends of the 95% interval of the deviation, which few pairs leave "
        f"wide. Corrected: at {ALPHA:.0%} divided by the number of comparisons, the first step of Holm.",
        *(setting_note(setting, found.of(setting)) for setting in found.designs if found.designs[setting]),
    ]
    title = f"How many seeds a difference of {target:g} points needs"
    return Section("power", "Power of the design", tables=[Table("power", title, columns, rows, " ".join(notes))])


def _count(value: int | str) -> str:
    return value if isinstance(value, str) else f"{value:,}"


def _range(ends: tuple[int | None, int | None]) -> str:
    low, high = (TOO_MANY if end is None else f"{end:,}" for end in ends)
    return f"{low} to {high}"


# Anytime


def _anytime(results: StudyResults) -> Section | None:
    charts, looks = [], Looks(results)
    for kind, title, y_label in (
        ("search", "Searches: best validation error of the supernet", "best validation error so far, %"),
        ("training", "Retrainings: best error", "best error so far, %"),
    ):
        curves = [one for one in results.curves if one["kind"] == kind and one["curve"]]
        for k, (setting, group) in enumerate(_grouped(curves, "setting").items()):
            names = list(dict.fromkeys(one["group"] for one in group))
            series = []
            for name in names:
                each = [one for one in group if one["group"] == name]
                series += [
                    Series(name, one["curve"], looks.of(name), "steps", [one["id"]], in_legend=j == 0)
                    for j, one in enumerate(each)
                ]
            seeds = ", ".join(map(str, sorted({one["seed"] for one in group})))
            part = sorted({one["part"] for one in group})
            machines = "; ".join(dict.fromkeys(one["machine"] for one in group))
            remark = " The best is chosen on the test images themselves, so it flatters." if part == ["test"] else ""
            caption = (
                f"One curve a run, on the {' or '.join(part)} images.{remark} {setting}; seeds {seeds}; {machines}."
            )
            chart = Chart(f"anytime_{kind}{_suffix(k)}", title, caption, "hours of the run", y_label, series)
            charts.append(chart)
    if not charts:
        return None
    text = (
        "The best error up to each moment of a run, against its own hours. Supernets of different spaces or methods "
        "have errors of different meaning; the errors after retraining above are what counts."
    )
    return Section("anytime", "Error against hours", text, charts=charts)


# Searches


def _searched(results: StudyResults) -> Section | None:
    if not results.searches:
        return None
    proxies = list(dict.fromkeys(name for one in results.searches for name in one if name.startswith("proxy ")))
    tables = []
    for k, (setting, group) in enumerate(_grouped(results.searches, "setting").items()):
        rows = [
            [
                Linked(one["id"], f"runs/{one['id']}/report.md"), one["space"], one["method"], one["seed"],
                _state(one), one.get("validation_error"), one.get("mixing_weight"), one.get("entropy_normal"),
                one.get("entropy_reduce"), one.get("skips_normal"), one.get("skips_reduce"), one.get("genotype_params"),
                one.get("hours"), *(one.get(name) for name in proxies),
            ]
            for one in group
        ]  # fmt: skip
        columns = [
            Column("run"), Column("space"), Column("method"), Column("seed", str, number=True), Column("state"),
            Column("validation error of the supernet, %", fixed(2), number=True),
            Column("mean weight of the chosen", fixed(3), number=True),
            Column("entropy, normal", fixed(3), number=True), Column("entropy, reduction", fixed(3), number=True),
            Column("skips, normal", str, number=True), Column("skips, reduction", str, number=True),
            Column("parameters at C=36, 20 cells", whole, number=True), Column("hours", fixed(2), number=True),
            *(Column(name.removeprefix("proxy "), "{:.4g}".format, number=True) for name in proxies),
        ]  # fmt: skip
        machines = "; ".join(dict.fromkeys(one["machine"] for one in group if one.get("machine")))
        note = (
            f"Measured: {setting}; {machines}. Entropy of the mixing weights in nats, averaged over the edges. Skips: "
            "skip connections in the derived cell."
        )
        tables.append(Table(f"searches{_suffix(k)}", "Searches", columns, rows, note))
    tables.append(_what_they_did(results))
    return Section("searches", "Searches", tables=tables, charts=list(_entropy_charts(results)))


def _what_they_did(results: StudyResults) -> Table:
    """A row for each space and method: how its searches went and which networks they led to."""
    several = len(results.findings.settings) > 1  # errors of different trainings have no common mean
    errors = {one.search: one.spread.mean for one in results.findings.genotypes if one.search and one.kind == "plain"}
    jobs = {job["id"]: job for job in results.jobs}
    groups: dict[tuple[str, str], list[Record]] = {}
    for one in results.searches:
        groups.setdefault((one["space"], one["method"]), []).append(one)
    rows = []
    for (space, method), each in groups.items():
        skips = [f"seed {one['seed']}: {one['skips_by_epoch']}" for one in each if one.get("skips_by_epoch")]
        eigenvalues = {one["seed"]: one["eigenvalue"] for one in each if one.get("eigenvalue") is not None}
        found = [] if several else [errors[one["id"]] for one in each if one["id"] in errors]
        rows.append(
            [
                space, method, ", ".join(str(one["seed"]) for one in each), _mean(each, "alpha_steps"),
                "; ".join(skips) or None, eigenvalues or None, _mean(each, "genotype_params"), _sum(each, "hours"),
                _processor_hours(job for one in each if (job := jobs.get(one["id"]))),
                sum(found) / len(found) if found else None,
            ]
        )  # fmt: skip
    columns = [
        Column("space"), Column("method"), Column("seeds"), Column("alpha steps", "{:,.0f}".format, number=True),
        Column("skips in the normal cell, epoch: number"), Column("eigenvalue by seed", _values_by_seed),
        Column("parameters at C=36, 20 cells", "{:,.0f}".format, number=True),
        Column("hours", fixed(2), number=True), Column("processor hours", fixed(2), number=True),
        Column("mean test error, %", fixed(2), number=True),
    ]  # fmt: skip
    notes = [
        "Alpha steps and parameters: means over the seeds. Skips: skip connections of the normal cell as it would be "
        "derived after an epoch. Eigenvalue: the largest of the Hessian of the validation loss in the alphas, as last "
        "measured. Hours: all searches together, to the last epoch. Processor hours: of all their threads, with the "
        "reports and repeated attempts. Error: of the networks derived, each after its "
        "training; a dash where none is trained yet, or where trainings have several settings.",
        *dict.fromkeys(f"{one['setting']}; {one['machine']}." for one in results.searches),
        *(setting_note(one, results.findings.of(one)) for one in results.findings.settings if not several),
    ]
    return Table("what_the_searches_did", "What the searches did", columns, rows, " ".join(notes))


def _mean(records: Iterable[Mapping[str, Any]], key: str) -> float | None:
    """The mean of a value over the records that have it; None if none does."""
    values = [one[key] for one in records if one.get(key) is not None]
    return sum(values) / len(values) if values else None


def _values_by_seed(values: Mapping[int, float]) -> str:
    return ", ".join(f"{seed}: {value:.3g}" for seed, value in values.items())


def _entropy_charts(results: StudyResults) -> Iterable[Chart]:
    """Entropy of the mixing weights over the epochs, one curve for each search."""
    looks = Looks(results)
    settings = "; ".join(dict.fromkeys(one["setting"] for one in results.searches))
    machines = "; ".join(dict.fromkeys(one["machine"] for one in results.searches))
    for cell, title in (("normal", "normal cell"), ("reduce", "reduction cell")):
        series, seen = [], dict[str, list[int]]()
        for one in results.searches:
            rows = ((row["epoch"], row.get(f"entropy_{cell}", math.nan)) for row in results.runs[one["id"]].rows)
            if points := [(epoch, value) for epoch, value in rows if math.isfinite(value)]:
                name = arm_name(one["space"], one["method"])
                series.append(Series(name, points, looks.of(name), "line", [one["id"]], in_legend=name not in seen))
                seen.setdefault(name, []).append(one["seed"])
        if series:
            seeds = ", ".join(map(str, sorted({seed for each in seen.values() for seed in each})))
            yield Chart(
                name=f"entropy_{cell}",
                title=f"Entropy of the mixing weights, {title}",
                caption=f"One curve a search, in nats. {settings}; seeds {seeds}; {machines}.",
                x_label="epoch",
                y_label="entropy, averaged over the edges",
                series=series,
            )


def _state(record: Mapping[str, Any]) -> str:
    state = str(record["state"])
    if state == DONE or not record.get("epochs"):
        return state
    return f"{state}, {record['epochs']} of {record['planned_epochs']} epochs"


# Published figures


def _published(results: StudyResults) -> Section | None:
    if not results.published:
        return None
    rows = [
        [one["title"], one.get("error"), one.get("deviation"), one.get("params"), one.get("source")]
        for one in results.published
    ]
    columns = [
        Column("published as"), Column("published error on CIFAR-10, %", fixed(2), number=True),
        Column("published deviation, points", fixed(2), number=True),
        Column("published parameters, M", fixed(2), number=True), Column("source"),
    ]  # fmt: skip
    note = (
        "Quoted, not measured here: other data, schedules and machines. No figure of this table stands in a column "
        "with a measured one."
    )
    return Section(
        "published", "Published figures", tables=[Table("published", "Published figures", columns, rows, note)]
    )


# Cost and open jobs


def _cost(results: StudyResults) -> Section | None:
    groups: dict[str, list[Record]] = {}
    for job in results.jobs:
        if job.get("seconds"):
            what = f"searches, {arm_name(job['space'], job['method'])}" if job["kind"] == "search" else "retrainings"
            groups.setdefault(what, []).append(job)
    if not groups:
        return None
    rows = []
    for name, jobs in groups.items():
        rates = [job["images_per_second"] for job in jobs if job.get("images_per_second")]
        memory = [job["peak_memory"] for job in jobs if job.get("peak_memory")]
        rows.append(
            [
                name, len(jobs), sum(job["seconds"] for job in jobs) / 3600, _processor_hours(jobs),
                _sum(jobs, "cpu_joules"),
                _sum(jobs, "gpu_joules"), sum(rates) / len(rates) if rates else None, max(memory, default=None),
                _sum(jobs, "out_of_memory"), _sum(jobs, "attempts"),
                "; ".join(dict.fromkeys(str(job["device"]) for job in jobs if job.get("device"))) or None,
            ]
        )  # fmt: skip
    columns = [
        Column("jobs of"), Column("jobs", str, number=True), Column("hours", fixed(2), number=True),
        Column("processor hours", fixed(2), number=True),
        Column("energy of the processor, kWh", fixed(3, 3.6e6), number=True),
        Column("energy of the GPU, kWh", fixed(3, 3.6e6), number=True),
        Column("images/s, mean", fixed(1), number=True), Column("peak memory", size_text, number=True),
        Column("out of memory", str, number=True), Column("failed attempts", str, number=True), Column("devices"),
    ]  # fmt: skip
    note = (
        "Hours of all attempts, also those that failed or were stopped. Processor hours: of all threads of a job's "
        "processes together; other work on the machine adds to the hours, but hardly to these. Energy where the "
        "machine tells it: of the whole processor package while the job ran, so jobs side by side count it twice, and "
        "of the GPU. A dash: it does not tell."
    )
    return Section("cost", "Cost", tables=[Table("cost", "Cost of the jobs", columns, rows, note)])


def _sum(jobs: Iterable[Record], key: str) -> float | None:
    """The sum of a value over the jobs that have it; None if none does."""
    values = [job[key] for job in jobs if job.get(key) is not None]
    return sum(values) if values else None


def _processor_hours(jobs: Iterable[Record]) -> float | None:
    """The processor hours of jobs that tell theirs; None if none does (folders from before they were counted)."""
    seconds = _sum(jobs, "cpu_seconds")
    return None if not seconds else seconds / 3600


def _open(results: StudyResults) -> Section | None:
    jobs = [job for job in results.jobs if job["state"] != DONE]
    if not jobs:
        return None
    rows = [[job["id"], job["kind"], job["state"], job.get("attempts"), job.get("failure") or None] for job in jobs]
    columns = [
        Column("job"), Column("kind"), Column("state"), Column("failed attempts", str, number=True),
        Column("last line"),
    ]  # fmt: skip
    note = "Figures above are those of the finished jobs; a table that lacks a job says so by its counts."
    table = Table(OPEN_JOBS, "Jobs without a result", columns, rows, note, True)
    return Section("open", "Jobs without a result", tables=[table])


# Shared


class Looks:
    """The look of each space and method, and of what else was trained, the same in all charts of a study."""

    def __init__(self, results: StudyResults) -> None:
        arms = [arm_name(one["space"], one["method"]) for one in results.searches]
        order = ("plain", "bounded", "reference", "random", "model")
        trained = sorted({(order.index(one.kind), one.group) for one in results.findings.genotypes})
        groups = dict.fromkeys([*arms, *(group for _, group in trained)])
        self._numbers = {group: k for k, group in enumerate(groups)}

    def of(self, group: str) -> int:
        """The index of a group's look."""
        return self._numbers.get(group, len(self._numbers))


def setting_note(setting: str, trained: Sequence[Trained]) -> str:
    """Data, scale, seeds and machines of trainings, in a sentence."""
    seeds = sorted({seed for one in trained for seed in one.errors})
    machines = "; ".join(dict.fromkeys(machine for one in trained for machine in one.machines))
    return f"{setting}; seed{'s' * (len(seeds) != 1)} {', '.join(map(str, seeds))}; {machines}."


def _suffix(k: int) -> str:
    """Of file names: nothing for the first setting, then _2, _3."""
    return "" if k == 0 else f"_{k + 1}"


def _grouped(records: Iterable[Mapping[str, Any]], key: str) -> dict[Any, list[Any]]:
    groups: dict[Any, list[Any]] = {}
    for record in records:
        groups.setdefault(record.get(key), []).append(record)
    return groups
