"""report.md of a run folder: setting, results, pictures, and how to go on.

Measures, figures and their names are the task's (`darts_sg.tasks`).
"""

import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from darts_sg.analysis.animation import search_animation
from darts_sg.analysis.cost import cost_caption, cost_text, mobile_verdict
from darts_sg.analysis.curves import augment_panels, draw_curves, draw_mixing_weights, search_panels
from darts_sg.analysis.draw import draw_genotype, save_figure
from darts_sg.analysis.page import search_page
from darts_sg.analysis.run_folder import Run, SearchEpoch, read_run, read_search_epochs
from darts_sg.files import write_atomically
from darts_sg.genotype import Cell, Genotype, state_name
from darts_sg.invocation import argument, evaluate_command, line, program, retrain_command
from darts_sg.networks.mobile import LAST_CHANNELS, STEM_CHANNELS, Model, find_model, stem_stride
from darts_sg.tasks import DEFAULT_TASK, Figure
from darts_sg.tasks.columns import cell as column_cell
from darts_sg.tasks.columns import markdown_table

SHOWN_OPTIONS = (
    "recipe", "strategy", "space", "genotype", "model", "finetune", "network", "epochs", "batch_size", "channels",
    "cells", "nodes", "learning_rate", "relaxation", "hypergradient", "regularizer", "perturbation", "auxiliary_skip",
    "weight_regularizer", "freeze_operations", "selection", "alpha_learning_rate", "alpha_frozen_epochs",
    "partial_channels", "stages", "edge_normalization", "stop_eigenvalue", "stop_skips", "penalty", "target_params",
    "target_macs", "target_latency", "latency_table",
    "cutout_length", "cutout_schedule", "colour_jitter", "drop_path_prob", "auxiliary_weight", "schedule",
    "warmup_epochs", "label_smoothing", "mixup", "cutmix", "rand_augment", "rand_augment_magnitude", "random_erasing",
    "ema", "compile", "detector", "freeze_backbone",
)  # fmt: skip
UNREMARKABLE = {
    "strategy": "gradient",
    "stages": "single",
    "relaxation": "softmax",
    "perturbation": "none",
    "auxiliary_skip": "none",
    "weight_regularizer": "none",
    "freeze_operations": "none",
    "selection": "argmax",
    "cutout_schedule": "constant",
    "detector": "authors",
    "freeze_backbone": False,
    "mixup": 0.0,
    "cutmix": 0.0,
    "rand_augment": 0,
    "rand_augment_magnitude": 9,
    "random_erasing": 0.0,
}  # those of DARTS: not shown


def write_report(run_dir: Path, animate: bool = False) -> Path:
    """Write report.md and pictures/ into the folder of a run, finished or not; return the report's path.

    A search also gets search.html, and with `animate` pictures/search.gif, which takes about 0.2 s an epoch. Raises
    UsageError if `run_dir` is not a run folder or a file in it cannot be read.
    """
    run = read_run(run_dir)
    pictures = run_dir / "pictures"
    sections = [*_head(run), *_setting(run)]
    sections += _augment_result(run) if run.job == "augment" else []
    if run.rows:
        n = None if run.genotype is None else len(run.genotype.operations)
        panels = search_panels(run.task.plots, n) if run.job == "search" else augment_panels(run.task.plots)
        save_figure(draw_curves(run.rows, panels), pictures / "curves")
        sections += [*_epochs(run), f"![Curves over the epochs, {run.data}](pictures/curves.svg)"]
    if run.genotype is not None:
        caption = _cost_line(run, run.genotype)
        save_figure(draw_genotype(run.genotype, caption), pictures / "cells")
        sections += _genotype(run, run.genotype, caption)
        if run.job == "search":  # a retraining's genotype remembers them, too
            sections += [*_decisions(run.genotype), *_candidates(run.genotype)]
    if run.options.get("model"):
        sections += _model(run, find_model(run.options["model"]))
    epochs = read_search_epochs(run_dir) if run.job == "search" else []
    if epochs:
        sections += [*_mixing_weights(run, epochs[-1], pictures), *_all_epochs(run, epochs, animate)]
    sections += [*_going_on(run), *_measured(run)]
    path = run_dir / "report.md"
    write_atomically(path, "\n\n".join(sections) + "\n")
    return path


def _head(run: Run) -> list[str]:
    done, planned = (int(run.rows[-1]["epoch"]) if run.rows else 0), run.planned
    spent = f" in {duration(run.rows[-1]['seconds'])}" if run.rows and "seconds" in run.rows[-1] else ""
    if run.finished and run.stopped is not None:
        state = (
            f"**Stopped early**: {done} of {planned} epochs{spent}, because {run.stopped['reason']}. The genotype is "
            f"that of epoch {run.stopped['chosen_epoch']}."
        )
    elif run.finished:
        state = f"**Finished**: {done} epochs{spent}."
    else:
        written = (run.folder / "metrics.csv" if run.rows else run.folder / "config.yaml").stat().st_mtime
        when = datetime.fromtimestamp(written).astimezone().isoformat(" ", "minutes")
        state = (
            f"**Not finished**: {done} of {planned} epochs{spent}, last written {when}. It is still running "
            "or was interrupted; all figures below are those of an unfinished run."
        )
    return [f"# {run.title}", state]


def _remarkable(key: str, value: object) -> bool:
    return value not in (None, "", UNREMARKABLE.get(key))


def _setting(run: Run) -> list[str]:
    env, data = run.environment, run.environment.get("data") or {}
    images = [
        f"{data[f'{part}_images']:,} {part}"
        for part in ("train", "validation", "test")
        if isinstance(data.get(f"{part}_images"), int)
    ]
    options = [f"{key} {run.options[key]}" for key in SHOWN_OPTIONS if _remarkable(key, run.options.get(key))]
    versions = [f"{key} {env[key]}" for key in ("darts_sg", "python", "torch") if env.get(key)]
    rows = [
        ("data", run.data + (f": {', '.join(images)} images" if images else "")),
        ("data fingerprint", data.get("fingerprint")),
        ("task", None if run.task.name == DEFAULT_TASK else run.task.name),
        ("seed", run.options.get("seed")),
        ("started from the weights", _flat(env.get("finetuned_from"))),
        ("options", ", ".join(options)),
        ("machine", " · ".join(filter(None, [env.get("device") if env.get("device_name") else None, run.machine]))),
        ("versions", ", ".join(versions)),
        ("code", _flat(env.get("git"))),
        ("started", env.get("started")),
        ("command", f"`{_flat(env['command'])}`" if env.get("command") else None),
    ]
    filled = [(name, str(value)) for name, value in rows if value not in (None, "")]
    return ["## What was run", markdown_table(("", ""), filled), "All options are in [config.yaml](config.yaml)."]


def _augment_result(run: Run) -> list[str]:
    if run.result is None:
        return []
    r = run.result
    rows = [row for kind in ("", "ema_") for row in _figures(run, r, kind)]
    if "unusual_images" in r:
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in r["unusual_images"].items())
        rows.append(("images that are no RGB JPEG, or damaged", f"{kinds} ([unusual_images.csv](unusual_images.csv))"))
    verdict = mobile_verdict(str(run.options.get("network")), r["macs"]) if run.task.is_mobile else ""
    macs = f"{r['macs']:,}" + (f", {verdict}" if verdict else "")
    if "params_with_auxiliary" in r:
        rows += [
            ("parameters without auxiliary head", f"{r['params']:,}"),
            ("parameters with auxiliary head (training only)", f"{r['params_with_auxiliary']:,}"),
            ("MACs without auxiliary head", macs),
        ]
    else:
        rows += [("parameters", f"{r['params']:,}"), ("MACs", macs)]
    note = "MACs are multiply-adds of convolutions and linear layers for one image."
    files = [f"[{path.name}]({path.name})" for path in _weight_files(run)]
    weights = [f"Weights with all that is needed to use them: {', '.join(files)}."] if files else []
    table = markdown_table((f"measured on {run.data}", ""), rows)
    return ["## Result", table, note, *weights, *run.task.sections(run.folder, run.data)]


def _figures(run: Run, result: Mapping[str, Any], kind: str) -> list[tuple[str, str]]:
    """The rows of the result about the weights, or with `ema_` about their average: last epoch, best epoch.

    The task's main figure comes first, the others follow in the same cell.
    """
    if f"{kind}{run.task.headline.key('test')}_last" not in result:
        return []
    chosen = {
        "validation": "chosen on the held-out validation images",
        "test": "chosen on the test images themselves, so it flatters: compare the last epoch",
    }.get(result["best_chosen_on"], f"chosen on {result['best_chosen_on']}")
    of = f" of the EMA weights (decay {run.options['ema']:g})" if kind else ""

    def text(figure: Figure, which: str) -> str:
        return figure.text.format(result[f"{kind}{figure.key('test')}_{which}"])

    def others(which: str) -> str:
        there = [f for f in run.task.figures[1:] if f"{kind}{f.key('test')}_{which}" in result]
        return "".join(f", {figure.short} {text(figure, which)}" for figure in there)

    main = run.task.headline
    return [
        (f"{main.title}{of}, last epoch", f"**{text(main, 'last')}**{others('last')}"),
        (
            f"{main.title}{of}, best epoch ({result[f'{kind}best_epoch']})",
            f"{text(main, 'best')} ({chosen}){others('best')}",
        ),
    ]


def _weight_files(run: Run) -> list[Path]:
    """The weights files: of the last epoch, the best one, and those that --keep-every left, by epoch."""

    def order(path: Path) -> tuple[str, int]:
        name, _, epoch = path.stem.rpartition("_")
        return (name, int(epoch)) if epoch.isdecimal() else (path.stem, 0)  # as text 10000 comes before 9999

    return sorted(run.folder.glob("weights*.safetensors"), key=order)


def _epochs(run: Run) -> list[str]:
    """The table of the first, the best and the last epoch."""
    score = run.task.score
    chosen_on = "validation" if any(f"validation_{score}" in row for row in run.rows) else "test"
    measure = f"{chosen_on}_{score}"
    marks: dict[int, list[str]] = {0: ["first"]}
    measured = [i for i, row in enumerate(run.rows) if math.isfinite(row.get(measure, math.nan))]
    if measured:
        best = max(measured, key=lambda i: run.rows[i][measure])
        marks.setdefault(best, []).append(f"best {measure.replace('_', ' ')}")
    marks.setdefault(len(run.rows) - 1, []).append("last")
    columns = [c for c in run.rows[0] if c not in ("epoch", "seconds")]
    header = ("epoch", "", *(column.replace("_", " ") for column in columns))
    body = [
        (f"{run.rows[i]['epoch']:.0f}", ", ".join(names), *(column_cell(c, run.rows[i].get(c)) for c in columns))
        for i, names in sorted(marks.items())
    ]
    return [f"## Epochs, {run.data}", markdown_table(header, body), "Every epoch is in [metrics.csv](metrics.csv)."]


def _genotype(run: Run, genotype: Genotype, caption: str) -> list[str]:
    if run.job == "augment":
        source = "The genotype that is trained here"
    elif run.stopped is not None:
        source = f"Derived after epoch {run.stopped['chosen_epoch']} of a search on {run.data} that was stopped early"
    elif run.genotype_epoch is None:
        source = f"Derived at the end of the search on {run.data}"
    else:
        source = f"Derived after epoch {run.genotype_epoch} of an unfinished search on {run.data}, not final"
    parts = [f"## Genotype {genotype.name}", f"{source}. Space: {genotype.space}. Network: {caption}."]
    measured = genotype.provenance.get("measured")
    if isinstance(measured, Mapping) and isinstance(doubted := measured.get("doubt"), str) and doubted:
        parts.append(f"**{doubted[:1].upper()}{doubted[1:]}.**")
    for title, cell in genotype.cells():
        heading = {"normal": "Normal cell", "reduce": "Reduction cell"}[title]
        parts += [f"**{heading}**", cell_table(cell)]
    return [*parts, f"![Both cells of {genotype.name}](pictures/cells.svg)"]


def _candidates(genotype: Genotype) -> list[str]:
    """The best candidates of a search that compares some, best first."""
    table = _records(genotype, "candidates")
    text = "The best candidates, in the order of their scores. [candidates.json](candidates.json) has them all."
    return ["## Best candidates", text, table] if table else []


def _records(genotype: Genotype, name: str) -> str:
    """The table of a list of mappings in the provenance; empty if there is none."""
    found = genotype.provenance.get(name)
    if not isinstance(found, list) or not all(isinstance(each, dict) for each in found) or not found:
        return ""
    keys = list(dict.fromkeys(str(key) for each in found for key in each))
    rows = [["" if each.get(key) is None else _flat(each[key]) or "" for key in keys] for each in found]
    return markdown_table([key.replace("_", " ") for key in keys], rows)


def _decisions(genotype: Genotype) -> list[str]:
    """The decisions of a selection that is a phase of the search, in the order in which they were made."""
    table = _records(genotype, "decisions")
    text = (
        "The selection measured the supernet without each alternative, on validation images. The margin is the "
        "difference of the score to the next alternative."
    )
    return ["## Decisions of the selection", text, table] if table else []


def _model(run: Run, model: Model) -> list[str]:
    """The stages of the model that is trained."""
    network = run.options["network"]
    channels, stride = model.channels(STEM_CHANNELS), stem_stride(network)
    rows: list[Sequence[str]] = [("3×3 convolution", "", str(channels), "1", str(stride))]
    for stage in model.stages(network):
        rows.append((model.family.title, *(str(number) for number in stage)))
    if model.family.last_conv:
        rows.append(("1×1 convolution", "", str(model.channels(LAST_CHANNELS)), "1", "1"))
    text = f"The model that is trained here, in the {network} shape. {run.task.layers_after}"
    if model.identity_divisor > 1:
        text += f" Shortcuts add the first 1/{model.identity_divisor} of the channels."
    table = markdown_table(("layers", "ratio t", "channels", "blocks", "stride of the first"), rows)
    return [f"## Model {model.name}", text, table]


def cell_table(cell: Cell) -> str:
    """A Markdown table of a cell: for each node its operations with their input states, then the output."""
    most = max(len(node) for node in cell.nodes)
    rows = []
    for i, node in enumerate(cell.nodes):
        edges = [f"{edge.operation} of {state_name(edge.state)}" for edge in node] or ["left out: no edges"]
        rows.append((f"node {i}", *edges, *[""] * (most - len(edges))))
    joined = ", ".join(state_name(state) for state in cell.concat)
    rows.append(("output c_k", f"concat of {joined}", *[""] * (most - 1)))
    return markdown_table(("state", *(f"edge {i + 1}" for i in range(most))), rows)


def _mixing_weights(run: Run, last: SearchEpoch, pictures: Path) -> list[str]:
    operations, num_nodes = last.genotype.operations, last.genotype.normal.num_nodes
    save_figure(draw_mixing_weights(last.weights, operations, num_nodes), pictures / "mixing_weights")
    text = (
        f"After epoch {last.epoch}, on {run.data}. An edge a ← b leads from b to a. Bold: the strongest "
        "operation other than `none`, by which the edge is ranked when the cell is derived. White: even weights."
    )
    return ["## Mixing weights", text, "![Mixing weights of both cells](pictures/mixing_weights.svg)"]


def _all_epochs(run: Run, epochs: Sequence[SearchEpoch], animate: bool) -> list[str]:
    write_atomically(run.folder / "search.html", search_page(run, epochs))
    text = (
        "[search.html](search.html) shows cells, mixing weights and figures of every epoch, in a browser and without "
        f"a network; on {run.data}."
    )
    if not animate:
        return ["## Epoch by epoch", f"{text} `python -m darts_sg report {run.shown_path}` adds an animation."]
    write_atomically(run.folder / "pictures" / "search.gif", search_animation(run, epochs))
    return ["## Epoch by epoch", text, f"![The search, epoch by epoch, {run.data}](pictures/search.gif)"]


def _going_on(run: Run) -> list[str]:
    path = run.shown_path
    steps = []
    if not run.finished:
        steps.append(f"{line(run.job, resume=path)}   # continues to the same result")
    if run.job == "search" and run.genotype is not None:
        if run.genotype_epoch is None:
            genotype = path / "genotype.yaml"
        else:
            genotype = path / "genotypes" / f"epoch_{run.genotype_epoch:04}.yaml"
        steps.append(f"{retrain_command(genotype, run.options)}   # retrains the derived network")
    if run.result is not None and (files := _weight_files(run)):
        weights = path / files[0].name
        steps.append(f"{evaluate_command(weights, run.options)}   # repeats the {run.task.headline.title}")
        steps.append(f"{program('export')} {argument(weights)} --format onnx   # a model for other programs")
    steps.append(f"tensorboard --logdir {argument(path)}")
    return ["## How to go on", "```\n" + "\n".join(steps) + "\n```"]


def _measured(run: Run) -> list[str]:
    if run.baseline:
        text = (
            f"Measured: the candidates of a search without alphas, in the size and for the epochs of the search. They "
            f"say little about a derived network at full size, whose {run.task.headline.title} takes a retraining. "
            "Not measured: the spread over seeds (this is one search), latency."
        )
    elif run.job == "search":
        measures = " and ".join(name.replace("_", " ") for name in ("loss", *run.task.training_measures))
        text = (
            f"Measured: {measures} of the supernet, on the images that train its weights and on those "
            f"that train its alphas. They say little about the derived network, whose {run.task.headline.title} takes "
            "a retraining. Parameters and MACs are counted, not estimated. Not measured: the spread over seeds "
            "(this is one search), latency."
        )
    else:
        text = (
            f"Measured: the {run.task.headline.noun} of one training with one seed. Parameters and MACs are counted, "
            "not estimated. Not measured: the spread over seeds, latency."
        )
    return ["## What is measured and what is not", text]


def _cost_line(run: Run, genotype: Genotype) -> str:
    """Parameters and MACs: of the trained network if there is a result, otherwise in the papers' CIFAR shape."""
    if run.result is None:
        return cost_caption(genotype)
    shape = f"as trained: C={run.options.get('channels')}, {run.options.get('cells')} cells"
    return cost_text(run.result["params"], run.result["macs"], shape)


def duration(seconds: float) -> str:
    """A duration for people: 42 s, 12 min, 3 h 05 min."""
    if not math.isfinite(seconds):
        return "unknown time"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _flat(value: Any) -> str | None:
    """A value of config.yaml in one line."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_flat(inner)}" for key, inner in value.items())
    if isinstance(value, list):
        return " ".join(str(inner) for inner in value)
    return None if value is None else str(value)
