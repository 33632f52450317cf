"""The retrainings of a study in Markdown: errors, paired comparisons, spreads."""

from collections.abc import Iterable, Sequence

from darts_sg.study.protocol import PLAIN
from darts_sg.study.records import Experiment, Setting, Trained
from darts_sg.study.searches import ABSENT
from darts_sg.study.statistics import Spread, counted, spread
from darts_sg.tasks.columns import markdown_table


def retrainings_section(found: Experiment, picture: str | None) -> list[str]:
    if not found.settings:
        return [f"{ABSENT.capitalize()}: no genotype of the experiment was trained."]
    sections = []
    for setting in found.settings:
        header = [
            "genotype", "error by seed, %", "mean, %", "deviation, points", "parameters as trained",
            "parameters at C=36, 20 cells",
        ]  # fmt: skip
        body = [_trained_row(row) for row in setting.rows if not row.is_random]
        for space in found.protocol.space_names:
            body += _random_row(space, [row for row in setting.rows if row.group == f"random {space}"])
        text = (
            f"{'; '.join(filter(None, [setting.title, setting.recipe, *setting.machines]))}. "
            f"{'The full' if setting.full else 'Not the full'} scale of the protocol. Test error after the last epoch."
        )
        sections += [text, markdown_table(header, body)]
    if picture is not None:
        alt = "Error after the last epoch against parameters at C=36, 20 cells"
        sections.append(f"![{alt}, {found.settings[0].data}]({picture})")
    return sections


def _trained_row(row: Trained) -> list[str]:
    deviation = row.spread.deviation
    return [
        row.title,
        ", ".join(f"{seed}: {error:.2f}" for seed, error in row.errors.items()),
        f"{row.spread.mean:.2f}",
        "one training" if deviation is None else f"{deviation:.2f}",
        f"{row.params:,}",
        f"{row.full_params:,}",
    ]


def _random_row(space: str, rows: Sequence[Trained]) -> Iterable[list[str]]:
    """One row for all random genotypes of a space; its deviation is over the genotypes."""
    errors = spread([row.spread.mean for row in rows])
    if errors is None:
        return
    params = [spread([count(row) for row in rows]) for count in (lambda row: row.params, lambda row: row.full_params)]
    yield [
        f"{counted(rows, 'random genotype')} of {space}",
        ", ".join(f"{row.spread.mean:.2f}" for row in rows),
        f"{errors.mean:.2f}",
        "one genotype" if errors.deviation is None else f"{errors.deviation:.2f} over genotypes",
        *(p.text(digits, 1e6) + "M" for p, digits in zip(params, (3, 2), strict=True) if p is not None),
    ]


def comparisons_section(found: Experiment) -> list[str]:
    comparisons = found.protocol.comparisons
    header = ["difference of errors", "pairs", "by seed, points", "mean, points", "95% interval, points"]
    sections = [
        "Of trainings with the same seed in the same setting; negative: the first has the smaller error. The interval "
        "is that of a paired t test (`scipy.stats.ttest_rel`)."
    ]
    for setting in found.settings:
        if any(setting.difference(*names) for names in comparisons):
            sections += [f"{setting.title}:", markdown_table(header, [_pair(setting, *n) for n in comparisons])]
    if len(sections) == 1:
        sections.append(f"{ABSENT.capitalize()}: no seed has both genotypes of a comparison.")
    return sections


def _pair(setting: Setting, ours: str, theirs: str) -> list[str]:
    title, difference = f"{ours} − {theirs}", setting.difference(ours, theirs)
    if difference is None:
        return [title, "0", ABSENT, ABSENT, ABSENT]
    by_seed = zip(difference.seeds, difference.values, strict=True)
    interval = difference.interval
    return [
        title,
        str(len(difference.seeds)),
        ", ".join(f"{seed}: {value:+.2f}" for seed, value in by_seed),
        f"{difference.mean:+.2f}",
        "none: one pair alone gives no interval" if interval is None else f"{interval[0]:+.2f} to {interval[1]:+.2f}",
    ]


def spreads_section(found: Experiment) -> list[str]:
    here = found.settings[0].rows if found.settings else ()
    rows = []
    for space in found.protocol.space_names:
        params = spread(found.params(space))
        accuracy = spread([s.accuracy for s in found.of(space) if s.accuracy is not None])
        titles = {search.title(PLAIN) for search in found.of(space)}
        trained = [row for row in here if titles & set(row.titles)]
        seed = min((seed for row in trained for seed in row.errors), default=0)
        searched = spread([row.errors[seed] for row in trained if seed in row.errors])
        random = spread([row.spread.mean for row in here if row.group == f"random {space}"])
        named = next((row.spread for row in here if found.protocol.space(space).genotype in row.titles), None)
        rows.append(
            [
                space,
                _deviation(params, 2, 1e6),
                _deviation(accuracy, 2),
                _deviation(searched, 2),
                _deviation(random, 2),
                _deviation(named, 2),
            ]
        )
    header = [
        "space", "searches: parameters, M", "searches: accuracy of the supernet, points",
        "searches: error of their plain genotypes, one training each, points",
        "random genotypes: error, points", "trainings: error of the named genotype over seeds, points",
    ]  # fmt: skip
    text = (
        "Sample standard deviations with the number of values. The seed of a search decides which cell is found, that "
        "of a training with which error a given cell ends; neither stands for the other."
    )
    return [text, markdown_table(header, rows)]


def _deviation(found: Spread | None, digits: int, scale: float = 1.0) -> str:
    if found is None or found.deviation is None:
        return ABSENT
    return f"{found.deviation / scale:.{digits}f} ({found.number})"
