"""report.md of a run folder: what was run on what, what came out, pictures, and how to go on."""

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import yaml

from darts_sg.analysis.cost import CELLS, CHANNELS, derived_cost, mobile_verdict
from darts_sg.analysis.curves import draw_augment_curves, draw_mixing_weights, draw_search_curves
from darts_sg.analysis.draw import draw_genotype, save_figure
from darts_sg.derive import Array
from darts_sg.errors import UsageError
from darts_sg.files import write_atomically
from darts_sg.genotype import NUM_INPUTS, Cell, Genotype, load_genotype
from darts_sg.networks.mobile import LAST_CHANNELS, STEM_CHANNELS, Model, find_model, stem_stride

Row = dict[str, float]

SCRIPTS = {"search": "search.py", "augment": "augment.py"}
SHOWN_OPTIONS = (
    "recipe", "space", "genotype", "model", "network", "epochs", "batch_size", "channels", "cells", "nodes",
    "learning_rate", "hypergradient", "alpha_learning_rate", "alpha_frozen_epochs", "partial_channels",
    "edge_normalization", "penalty", "target_params", "target_macs",
    "cutout_length", "colour_jitter", "drop_path_prob", "auxiliary_weight", "schedule", "warmup_epochs",
    "label_smoothing", "compile",
)  # fmt: skip


@dataclass(frozen=True)
class Run:
    """What a run folder holds so far."""

    folder: Path
    job: str
    options: Mapping[str, Any]
    environment: Mapping[str, Any]
    rows: Sequence[Row]
    genotype: Genotype | None
    genotype_epoch: int | None
    """The epoch after which the genotype was derived, None if it is final (or the one being trained)."""
    result: Mapping[str, Any] | None

    @property
    def finished(self) -> bool:
        if self.job == "augment":
            return self.result is not None
        return self.genotype is not None and self.genotype_epoch is None

    @property
    def data(self) -> str:
        """The data as it must stand beside every figure: name, and what is unlike the published set."""
        data = self.environment.get("data") or {}
        name = str(data.get("name") or self.options.get("dataset", "unknown data"))
        remarks = [str(data[key]) for key in ("note", "remark") if data.get(key)]
        return f"{name} ({'; '.join(remarks)})" if remarks else name

    @property
    def shown_path(self) -> str:
        """The folder as a user in the current directory would type it."""
        path = self.folder.resolve()
        return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(self.folder)


def write_report(run_dir: Path) -> Path:
    """Write report.md and pictures/ into the folder of a run, finished or not; return the report's path.

    Raises UsageError if `run_dir` is not the folder of a run or a file in it cannot be read.
    """
    run = read_run(run_dir)
    pictures = run_dir / "pictures"
    sections = [*_head(run), *_setting(run)]
    sections += _augment_result(run) if run.job == "augment" else []
    if run.rows:
        draw = draw_search_curves if run.job == "search" else draw_augment_curves
        save_figure(draw(run.rows), pictures / "curves")
        sections += [*_epochs(run), f"![Curves over the epochs, {run.data}](pictures/curves.svg)"]
    if run.genotype is not None:
        caption = _cost_line(run, run.genotype)
        save_figure(draw_genotype(run.genotype, caption), pictures / "cells")
        sections += _genotype(run, run.genotype, caption)
    if run.options.get("model"):
        sections += _model(run, find_model(run.options["model"]))
    if run.job == "search":
        sections += _mixing_weights(run, pictures)
    sections += [*_going_on(run), *_measured(run)]
    path = run_dir / "report.md"
    write_atomically(path, "\n\n".join(sections) + "\n")
    return path


def read_run(run_dir: Path) -> Run:
    """Read what a run folder holds so far; UsageError names the file that is missing or damaged."""
    config_path = run_dir / "config.yaml"
    if not config_path.is_file():
        why = "it has no config.yaml" if run_dir.is_dir() else "there is no such folder"
        raise UsageError(
            f"{run_dir} is not the folder of a run: {why}; give the folder that search.py or augment.py named"
        )
    try:
        config = yaml.safe_load(config_path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{config_path} is not YAML: {str(error).splitlines()[0]}") from None
    job = config.get("job") if isinstance(config, dict) else None
    if job not in SCRIPTS or not isinstance(config.get("options"), dict):
        raise UsageError(f"{config_path} does not belong to a run: it needs job (search or augment) and options")
    metrics, final = run_dir / "metrics.csv", run_dir / "genotype.yaml"
    derived = sorted((run_dir / "genotypes").glob("epoch_*.yaml"))
    genotype, epoch = None, None
    if final.is_file():
        genotype = load_genotype(final)
    elif derived:
        genotype, epoch = load_genotype(derived[-1]), _epoch_of(derived[-1])
    return Run(
        folder=run_dir,
        job=job,
        options=config["options"],
        environment=config.get("environment") or {},
        rows=read_metrics(metrics) if metrics.is_file() else [],
        genotype=genotype,
        genotype_epoch=epoch,
        result=_read_result(run_dir / "result.json") if job == "augment" else None,
    )


def read_metrics(path: Path) -> list[Row]:
    """The rows of a metrics.csv; an empty field becomes nan, a line still being written is left out.

    Raises UsageError with file, line and column for anything that is not a number.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UsageError(f"{path} does not exist: no epoch of this run is finished, or it is not a run") from None
    lines = text[: text.rfind("\n") + 1].splitlines()
    rows = []
    for number, fields in enumerate(csv.DictReader(lines), start=2):
        row = {}
        for column, value in fields.items():
            if column is None or value is None:
                raise UsageError(f"{path}, line {number}: expected as many fields as the first line has")
            try:
                row[column] = float(value) if value else math.nan
            except ValueError:
                raise UsageError(f"{path}, line {number}, {column}: {value!r} is not a number") from None
        if "epoch" not in row:
            raise UsageError(f"{path} has no column epoch: it is not the metrics.csv of a run")
        rows.append(row)
    return rows


def _read_result(path: Path) -> Mapping[str, Any] | None:
    if not path.is_file():
        return None
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UsageError(f"{path} is not JSON: {error}") from None
    needed = ("test_error_last", "test_error_best", "best_epoch", "best_chosen_on", "params", "macs")
    for key in needed:
        if not isinstance(result, dict) or key not in result:
            raise UsageError(f"{path} lacks {key}: it is not the result of a retraining")
    return result


def _head(run: Run) -> list[str]:
    what = "Search" if run.job == "search" else "Training" if run.options.get("model") else "Retraining"
    if run.job == "search":
        subject = run.options.get("space")
    else:
        subject = run.options.get("model") or (run.genotype and run.genotype.name)
    done, planned = (int(run.rows[-1]["epoch"]) if run.rows else 0), run.options.get("epochs")
    spent = f" in {duration(run.rows[-1]['seconds'])}" if run.rows and "seconds" in run.rows[-1] else ""
    if run.finished:
        state = f"**Finished**: {done} epochs{spent}."
    else:
        written = (run.folder / "metrics.csv" if run.rows else run.folder / "config.yaml").stat().st_mtime
        when = datetime.fromtimestamp(written).astimezone().isoformat(" ", "minutes")
        state = (
            f"**Not finished**: {done} of {planned} epochs{spent}, last written {when}. It is still running "
            "or was interrupted; all figures below are those of an unfinished run."
        )
    return [f"# {what}: {subject} on {run.data}", state]


def _setting(run: Run) -> list[str]:
    env, data = run.environment, run.environment.get("data") or {}
    images = [
        f"{data[f'{part}_images']:,} {part}"
        for part in ("train", "validation", "test")
        if isinstance(data.get(f"{part}_images"), int)
    ]
    options = [f"{key} {run.options[key]}" for key in SHOWN_OPTIONS if run.options.get(key) not in (None, "")]
    device = " · ".join(str(env[key]) for key in ("device", "device_name") if env.get(key))
    threads = f", {env['threads']} threads" if env.get("threads") else ""
    versions = [f"{key} {env[key]}" for key in ("darts_sg", "python", "torch") if env.get(key)]
    rows = [
        ("data", run.data + (f": {', '.join(images)} images" if images else "")),
        ("data fingerprint", data.get("fingerprint")),
        ("seed", run.options.get("seed")),
        ("options", ", ".join(options)),
        ("machine", device + threads),
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
    chosen = {
        "validation": "chosen on the held-out validation images",
        "test": "chosen on the test images themselves, so it flatters: compare the last epoch",
    }.get(r["best_chosen_on"], f"chosen on {r['best_chosen_on']}")
    rows = [
        ("test error, last epoch", f"**{r['test_error_last']:.2f}%**"),
        (f"test error, best epoch ({r['best_epoch']})", f"{r['test_error_best']:.2f}% ({chosen})"),
    ]
    if "test_top5_error_last" in r:
        rows[0] = (rows[0][0], f"{rows[0][1]}, top-5 {r['test_top5_error_last']:.2f}%")
        rows[1] = (rows[1][0], f"{rows[1][1]}, top-5 {r['test_top5_error_best']:.2f}%")
    if "unusual_images" in r:
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in r["unusual_images"].items())
        rows.append(("images that are no RGB JPEG, or damaged", f"{kinds} ([unusual_images.csv](unusual_images.csv))"))
    verdict = mobile_verdict(str(run.options.get("network")), r["macs"])
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
    return ["## Result", markdown_table((f"measured on {run.data}", ""), rows), note]


def _epochs(run: Run) -> list[str]:
    """A table of the first, the best and the last epoch."""
    chosen_on = "validation" if any("validation_accuracy" in row for row in run.rows) else "test"
    measure = f"{chosen_on}_accuracy"
    marks: dict[int, list[str]] = {0: ["first"]}
    measured = [i for i, row in enumerate(run.rows) if math.isfinite(row.get(measure, math.nan))]
    if measured:
        best = max(measured, key=lambda i: run.rows[i][measure])
        marks.setdefault(best, []).append(f"best {chosen_on} accuracy")
    marks.setdefault(len(run.rows) - 1, []).append("last")
    columns = [c for c in run.rows[0] if c not in ("epoch", "seconds")]
    header = ("epoch", "", *(column.replace("_", " ") for column in columns))
    body = [
        (f"{run.rows[i]['epoch']:.0f}", ", ".join(names), *(_number(c, run.rows[i].get(c)) for c in columns))
        for i, names in sorted(marks.items())
    ]
    return [f"## Epochs, {run.data}", markdown_table(header, body), "Every epoch is in [metrics.csv](metrics.csv)."]


def _genotype(run: Run, genotype: Genotype, caption: str) -> list[str]:
    if run.job == "augment":
        source = "The genotype that is trained here"
    elif run.genotype_epoch is None:
        source = f"Derived at the end of the search on {run.data}"
    else:
        source = f"Derived after epoch {run.genotype_epoch} of an unfinished search on {run.data}, not final"
    parts = [f"## Genotype {genotype.name}", f"{source}. Space: {genotype.space}. Network: {caption}."]
    for title, cell in genotype.cells():
        heading = {"normal": "Normal cell", "reduce": "Reduction cell"}[title]
        parts += [f"**{heading}**", cellmarkdown_table(cell)]
    return [*parts, f"![Both cells of {genotype.name}](pictures/cells.svg)"]


def _model(run: Run, model: Model) -> list[str]:
    """The stages of the model that is trained."""
    network = run.options["network"]
    channels, stride = model.channels(STEM_CHANNELS), stem_stride(network)
    rows: list[Sequence[str]] = [("3×3 convolution", "", str(channels), "1", str(stride))]
    for stage in model.stages(network):
        rows.append((model.family.title, *(str(number) for number in stage)))
    if model.family.last_conv:
        rows.append(("1×1 convolution", "", str(model.channels(LAST_CHANNELS)), "1", "1"))
    text = f"The model that is trained here, in the {network} shape. Pooling, dropout and a linear layer follow."
    if model.identity_divisor > 1:
        text += f" Shortcuts add the first 1/{model.identity_divisor} of the channels."
    table = markdown_table(("layers", "ratio t", "channels", "blocks", "stride of the first"), rows)
    return [f"## Model {model.name}", text, table]


def cellmarkdown_table(cell: Cell) -> str:
    """A Markdown table of a cell: for each node its operations with the states they take, and the output."""
    most = max(len(node) for node in cell.nodes)
    rows = []
    for i, node in enumerate(cell.nodes):
        edges = [f"{edge.operation} of {state_name(edge.state)}" for edge in node]
        rows.append((f"node {i}", *edges, *[""] * (most - len(edges))))
    joined = ", ".join(state_name(state) for state in cell.concat)
    rows.append(("output c_k", f"concat of {joined}", *[""] * (most - 1)))
    return markdown_table(("state", *(f"edge {i + 1}" for i in range(most))), rows)


def state_name(state: int) -> str:
    """A state as the papers call it: c_{k-2}, c_{k-1}, node 0, …"""
    return ("c_{k-2}", "c_{k-1}")[state] if state < NUM_INPUTS else f"node {state - NUM_INPUTS}"


def _mixing_weights(run: Run, pictures: Path) -> list[str]:
    saved = sorted((run.folder / "alphas").glob("epoch_*.npz"))
    if not saved or run.genotype is None:
        return []
    weights = _read_arrays(saved[-1])
    operations, num_nodes = run.genotype.operations, run.genotype.normal.num_nodes
    save_figure(draw_mixing_weights(weights, operations, num_nodes), pictures / "mixing_weights")
    text = (
        f"After epoch {_epoch_of(saved[-1])}, on {run.data}. An edge a ← b leads from state b to state a; "
        "states 0 and 1 are the inputs c_{k-2} and c_{k-1}, state 2 is node 0. Bold: the strongest operation "
        "other than `none`, by which the edge is ranked when the cell is derived."
    )
    return ["## Mixing weights", text, "![Mixing weights of both cells](pictures/mixing_weights.svg)"]


def read_mixing_weights(run_dir: Path, epoch: int | None = None) -> tuple[Genotype, tuple[Array, Array]]:
    """The genotype of a search after an epoch, by default the last, and what it was derived from.

    That is (normal, reduce) of (num_edges, num_operations), multiplied by the edge weights if there are any.
    Raises UsageError if `run_dir` is no search, or has no such epoch.
    """
    run = read_run(run_dir)
    if run.job != "search":
        raise UsageError(f"{run_dir} is the folder of a retraining; mixing weights are in that of a search")
    there = sorted(_epoch_of(path) for path in (run_dir / "alphas").glob("epoch_*.npz"))
    if not there:
        raise UsageError(f"{run_dir} has no finished epoch yet")
    if epoch is not None and epoch not in there:
        raise UsageError(f"{run_dir} has no epoch {epoch}; there are {there[0]} to {there[-1]}")
    chosen = epoch or there[-1]
    genotype = load_genotype(run_dir / "genotypes" / f"epoch_{chosen:04d}.yaml")
    arrays = _read_arrays(run_dir / "alphas" / f"epoch_{chosen:04d}.npz")
    found = []
    for title in ("normal", "reduce"):
        edge_weights = arrays.get(f"edge_{title}", np.ones(len(arrays[title])))
        found.append(np.asarray(arrays[title] * edge_weights[:, None], dtype=np.float64))
    return genotype, (found[0], found[1])


def _read_arrays(path: Path) -> dict[str, Array]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (ValueError, OSError, EOFError, BadZipFile) as error:
        raise UsageError(f"{path} cannot be read: {error}") from None


def _going_on(run: Run) -> list[str]:
    path = run.shown_path
    steps = []
    if not run.finished:
        steps.append(f"python {SCRIPTS[run.job]} --resume {path}   # continues to the same result")
    if run.job == "search" and run.genotype is not None:
        if run.genotype_epoch is None:
            genotype = f"{path}/genotype.yaml"
        else:
            genotype = f"{path}/genotypes/epoch_{run.genotype_epoch:04}.yaml"
        steps.append(f"python augment.py --genotype {genotype}   # retrains the derived network")
    steps.append(f"tensorboard --logdir {path}")
    return ["## How to go on", "```\n" + "\n".join(steps) + "\n```"]


def _measured(run: Run) -> list[str]:
    if run.job == "search":
        text = (
            "Measured: loss and accuracy of the supernet, on the images that train its weights and on those "
            "that train its alphas. They say little about the derived network, whose test error takes a "
            "retraining. Parameters and MACs are counted, not estimated. Not measured: the spread over seeds "
            "(this is one search), latency."
        )
    else:
        text = (
            "Measured: the error of one training with one seed. Parameters and MACs are counted, not "
            "estimated. Not measured: the spread over seeds, latency."
        )
    return ["## What is measured and what is not", text]


def _cost_line(run: Run, genotype: Genotype) -> str:
    """Parameters and MACs: as trained for a finished retraining, otherwise in the papers' CIFAR shape."""
    if run.result is not None:
        params, macs = run.result["params"], run.result["macs"]
        shape = f"as trained: C={run.options.get('channels')}, {run.options.get('cells')} cells"
    else:
        cost = derived_cost(genotype)
        params, macs = cost.params, cost.macs
        shape = f"CIFAR, C={CHANNELS['cifar']}, {CELLS['cifar']} cells"
    return f"{params:,} parameters, {macs / 1e6:.1f}M MACs ({shape}; auxiliary head excluded)"


def duration(seconds: float) -> str:
    """A time as people say it: 42 s, 12 min, 3 h 05 min."""
    if not math.isfinite(seconds):
        return "unknown time"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _number(column: str, value: float | None) -> str:
    if value is None or not math.isfinite(value):
        return "–"
    if column.endswith("accuracy"):
        return f"{100 * value:.2f}%"
    if column.startswith(("skips", "expected")) or column == "images_per_second":
        return f"{value:,.0f}"
    return f"{value:.4g}"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    cells = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in cells)


def _flat(value: Any) -> str | None:
    """A value of config.yaml in one line."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_flat(inner)}" for key, inner in value.items())
    if isinstance(value, list):
        return " ".join(str(inner) for inner in value)
    return None if value is None else str(value)


def _epoch_of(path: Path) -> int:
    """The epoch in a file name such as epoch_0012.npz."""
    return int(path.stem.removeprefix("epoch_"))
