"""Detectors of two models in a report: their published mAP, and what run folders measured, paired by seed."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from darts_sg.analysis.measured import machines, option_values, runs_in
from darts_sg.analysis.run_folder import Run
from darts_sg.networks.ssdlite import PUBLISHED
from darts_sg.study.protocol import Detectors
from darts_sg.study.statistics import Difference, paired, spread
from darts_sg.tasks.columns import markdown_table

FIGURE = "test_map_voc07_last"
LOW = 50.0
"""mAP in percent below which a detector misses so much that the report says so."""
ABSENT = "not measured"


@dataclass(frozen=True)
class DetectorSetting:
    """The trainings of detectors that differ in model and seed alone."""

    data: str
    scale: str
    machines: tuple[str, ...]
    maps: Mapping[str, Mapping[int, float]]
    """mAP (VOC07) on the test images after the last epoch in percent, by model and seed."""

    def difference(self, models: Sequence[str]) -> Difference | None:
        """mAP of the first model minus that of the second, over the seeds that both have."""
        first, second = (self.maps.get(model, {}) for model in models)
        return paired(first, second)


def read_detectors(
    folder: Path, wanted: Detectors | None, compared: Mapping[str, Any], remarks: list[str]
) -> Iterator[DetectorSetting]:
    """The settings in which the wanted detectors were trained, by the runs below `folder`.

    compared: the options that trainings of one setting share, with their defaults (config.compared_options). A remark
    names each run that repeats another one's setting, model and seed with another figure.
    """
    if wanted is None:
        return
    models = wanted.models
    groups: dict[tuple[Any, ...], list[Run]] = {}
    shared = {name: default for name, default in compared.items() if name != "model"}
    for run in runs_in(folder, of_models=True):
        if run.options.get("model") in models and FIGURE in (run.result or {}):
            groups.setdefault((run.data, *option_values(run.options, shared)), []).append(run)
    for runs in groups.values():
        maps: dict[str, dict[int, float]] = {}
        for run in runs:
            figure, seed = float((run.result or {})[FIGURE]), int(run.options.get("seed") or 0)
            if maps.setdefault(str(run.options["model"]), {}).setdefault(seed, figure) != figure:
                remarks.append(f"{run.shown_path} is left out: another run has its model, setting and seed.")
        in_order = {model: dict(sorted(maps.get(model, {}).items())) for model in models}
        yield DetectorSetting(runs[0].data, _scale(runs[0]), machines(runs), in_order)


def _scale(run: Run) -> str:
    options, data = run.options, run.environment.get("data") or {}
    images = data.get("train_images")
    start = "from given weights" if options.get("finetune") else "from scratch"
    return (
        f"{options.get('epochs')} epochs" + (f" of {images:,} images" if isinstance(images, int) else "")
        + f", batch {options.get('batch_size')}, augmentation {options.get('box_augment') or 'ssd'}, {start}"
    )  # fmt: skip


def detectors_section(settings: Sequence[DetectorSetting], wanted: Detectors) -> list[str]:
    """Published and measured figures in columns of their own, then the differences in each setting."""
    models, rows = wanted.models, []
    for model in models:
        published = PUBLISHED[model]
        measured = [
            f"{found.text(2)} (seed{'s' * (found.number > 1)} {', '.join(map(str, one.maps[model]))}; {one.data})"
            for one in settings
            if (found := spread([*one.maps[model].values()])) is not None
        ]
        figures = f"{published.map_voc07:.1f}", f"{published.map_coco:.1f}"
        rows.append([model, *figures, "; ".join(measured) or ABSENT])
    header = [
        "SSDLite on", "published: mAP on VOC07 test, %", "published: AP on COCO, %", "measured here: mAP (VOC07), %",
    ]  # fmt: skip
    sources = " and ".join(dict.fromkeys(PUBLISHED[model].source for model in models))
    sections = [
        markdown_table(header, rows),
        f"Published: {sources}. {wanted.note} Measured: test images, last epoch, on the data in parentheses; these "
        "columns are not comparable. ± is the sample standard deviation.",
    ]
    for one in settings:
        sections += _setting(one, models)
    return sections


def _setting(one: DetectorSetting, models: Sequence[str]) -> list[str]:
    rows = [[model, _by_seed(one.maps[model], "{:.2f}") or ABSENT] for model in models]
    difference = one.difference(models)
    if difference is not None:
        values = dict(zip(difference.seeds, difference.values, strict=True))
        interval = difference.interval
        text = "" if interval is None else f", 95% interval {interval[0]:+.2f} to {interval[1]:+.2f}"
        whole = f"{_by_seed(values, '{:+.2f}')}; mean {difference.mean:+.2f}{text}"
        rows.append([f"{models[0]} − {models[1]}, points", whole])
    return [
        f"{one.data}: {one.scale}; {', '.join(one.machines)}.",
        markdown_table(["detector", "mAP (VOC07) by seed, %"], rows),
        direction(one, models),
    ]


def _by_seed(values: Mapping[int, float], form: str) -> str:
    return ", ".join(f"{seed}: {form.format(value)}" for seed, value in values.items())


def direction(one: DetectorSetting, models: Sequence[str]) -> str:
    """Whether the expected direction, a higher mAP of the first model, shows in a setting: a sentence or two."""
    difference = one.difference(models)
    claim = f"The expected direction (a higher mAP of {models[0]})"
    if difference is None:
        return f"{claim} is **not measured** here: no seed has both detectors."
    if difference.interval is None:
        text = f"{claim} is **undecided** here: {difference.mean:+.2f} points in one pair, which gives no interval."
    elif difference.interval[0] > 0:
        text = f"{claim} **shows** here: the interval lies above 0."
    elif difference.interval[1] < 0:
        text = f"{claim} **does not show** here: the interval lies below 0, {models[1]} has the higher mAP."
    else:
        text = f"{claim} is **undecided** here: the interval holds 0."
    if max(max(maps.values(), default=0.0) for maps in one.maps.values()) < LOW:
        text += " The mAP is low, these detectors miss most objects or find too much: their order says little."
    return text


def detectors_dict(settings: Sequence[DetectorSetting], wanted: Detectors) -> dict[str, Any]:
    """The section as plain data; published and measured values stand under different keys."""
    models = wanted.models
    measured = []
    for one in settings:
        difference = one.difference(models)
        measured.append({**asdict(one), "difference": difference.as_dict() if difference else None})
    return {"published": {model: PUBLISHED[model]._asdict() for model in models}, "measured": measured}
