"""search.html: a self-contained page to leaf through the epochs of a search, offline."""

import html
import json
import math
import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib.path
import numpy as np
import torch

from darts_sg.analysis.cost import CELLS, CHANNELS, choice_costs
from darts_sg.analysis.curves import (
    CELL_TITLES,
    Panel,
    edge_names,
    even_weights,
    heat_map_columns,
    largest_ratio,
    scale_labels,
    search_panels,
    subscripted,
)
from darts_sg.analysis.draw import (
    CellPlan,
    Wire,
    edge_wires,
    label_width,
    output_wire,
    plan_cells,
    rounded,
    state_boxes,
)
from darts_sg.analysis.run_folder import Run, SearchEpoch
from darts_sg.analysis.sheet import (
    LIGHT,
    STYLES,
    Point,
    Style,
    arrow_corners,
    family,
    plugged_families,
    short_name,
    style_of,
)
from darts_sg.derive import Costs, entropy, num_edges
from darts_sg.genotype import state_name
from darts_sg.invocation import argument, program
from darts_sg.methods.regularizers.size import expected_cost

MOST_NAMED = 20  # epochs without a record that the page names
TEMPLATE = Path(__file__).with_name("search.html")
SHAPE = f"CIFAR, C={CHANNELS['cifar']}, {CELLS['cifar']} cells; auxiliary head excluded"
PARAMS = Panel(
    "Parameters, M",
    (("expected_params", "expected", ""), ("derived_params", "derived", "")),
)


def search_page(run: Run, epochs: Sequence[SearchEpoch]) -> str:
    """The page of a search, with its data embedded as JSON (see search_data)."""
    data = json.dumps(_plain(search_data(run, epochs)), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    last, planned = epochs[-1].epoch, run.planned
    state = "Finished" if run.finished else "Not finished"
    early = "" if run.stopped is None else f" Stopped early, with the genotype of epoch {run.stopped['chosen_epoch']}."
    again = "" if run.finished else f" To see more of them: {program('report')} {argument(run.shown_path)}"
    there = [0, *(record.epoch for record in epochs)]
    gaps = [(before + 1, after - 1) for before, after in pairwise(there) if after - before > 1]
    missing = [epoch for first, end in gaps for epoch in range(first, min(end, first + MOST_NAMED) + 1)]
    named = ", ".join(map(str, missing[:MOST_NAMED])) + (", …" if len(missing) > MOST_NAMED else "")
    without = f" Without a record: epoch {named}." if missing else ""
    texts = {
        "title": run.title,
        "state": f"{state}: {last} of {planned} epochs.{early}{without}{again}",
        "data": run.data,
        "shape": SHAPE,
    }
    filled = {name: html.escape(text) for name, text in texts.items()}
    filled["json"] = data.replace("<", "\\u003c")  # so that no name in the data can end the script
    return re.sub(r"\{\{(\w+)\}\}", lambda match: filled[match[1]], TEMPLATE.read_text(encoding="utf-8"))


def search_data(run: Run, epochs: Sequence[SearchEpoch]) -> dict[str, Any]:
    """The data of the page: layout and names once, then cells, mixing weights and figures of each epoch."""
    operations, num_nodes = epochs[-1].genotype.operations, epochs[-1].genotype.normal.num_nodes
    params, _ = choice_costs(operations, num_nodes=num_nodes)
    rows = {row["epoch"]: row for row in run.rows}
    records = [
        {
            "epoch": epoch.epoch,
            "figures": {**rows.get(epoch.epoch, {}), **_figures(epoch, params)},
            "entropy": {title: entropy(epoch.weights[title]) for title in CELL_TITLES},
        }
        for epoch in epochs
    ]
    shown: dict[str, Any] = {}
    ratios, evens = [], []
    for title, heading in CELL_TITLES.items():
        plans = plan_cells([epoch.cell(title) for epoch in epochs])
        columns = [heat_map_columns(epoch.weights, title, operations) for epoch in epochs]
        for record, plan, (_, values) in zip(records, plans, columns, strict=True):
            even = even_weights(values, len(operations))
            record[title] = {"cell": cell_shapes(plan, operations), "weights": values, "even": even[:, 0]}
            ratios.append(values / even)
            evens.append(even.ravel())
        shown[title] = {
            "heading": heading,
            "columns": columns[-1][0],
            "even_edge": even[:, -1],
            "width": plans[0].width,
            "top": plans[0].top,
            "bottom": plans[0].bottom,
            "states": [
                {"text": subscripted(name), "x": left, "y": -top, "width": right - left, "height": top - bottom,
                 "kind": state_kind(name)}
                for name, _, left, right, bottom, top in state_boxes(plans[0])
            ],
        }  # fmt: skip
    most = largest_ratio(ratios)
    return {
        "operations": operations,
        "most": most,
        "scale": scale_labels(np.concatenate(evens), most),
        "edges": edge_names(num_nodes),
        "planned": run.planned,
        "panels": [_panel(panel) for panel in (*search_panels(run.task.plots, len(operations)), PARAMS)],
        "styles": {name: _style(style_of(name)) for name in (*STYLES, *plugged_families(operations))},
        "cells": shown,
        "epochs": records,
    }


def _figures(epoch: SearchEpoch, params: Costs) -> dict[str, float]:
    """Figures computed from the mixing weights and the genotype of an epoch, by column as in metrics.csv."""
    genotype = epoch.genotype
    normal, reduce = (torch.from_numpy(epoch.weights[title]) for title in CELL_TITLES)
    skips = genotype.count("skip_connect")
    return {
        **{f"entropy_{title}": float(entropy(epoch.weights[title]).mean()) for title in CELL_TITLES},
        **{f"skips_{title}": count for title, count in zip(CELL_TITLES, skips, strict=True)},
        "expected_params": expected_cost(normal, reduce, genotype.operations, params).item(),
        "derived_params": params.of((genotype.normal, genotype.reduce), genotype.operations),
    }


def _panel(panel: Panel) -> dict[str, Any]:
    kind = "percent" if panel.percent else "whole" if panel.whole else "millions" if panel is PARAMS else "number"
    curves = [{"column": column, "name": name} for column, name, _ in panel.curves]
    return {"title": panel.title, "kind": kind, "top": panel.top, "top_name": panel.top_name, "curves": curves}


def state_kind(state: str) -> str:
    """Whether a state is an `input`, a `node` or the `output` of its cell."""
    return "output" if state == "c_k" else "input" if state.startswith("c_") else "node"


def _style(style: Style) -> dict[str, Any]:
    paint = style.paint(LIGHT)
    colors = {"color": paint.line, "tint": paint.tint, "text": paint.text}
    return {"title": style.title, **colors, "width": style.width, "dashes": style.dashes}


def cell_shapes(plan: CellPlan, operations: Sequence[str]) -> dict[str, Any]:
    """SVG shapes of a cell's edges and of the lines to its output; `edge` is the row of the mixing weights."""
    edges = []
    for track, wire in zip(plan.tracks, edge_wires(plan), strict=True):
        operation, state = track.edge.operation, track.edge.state
        edges.append(
            {
                "edge": num_edges(track.stop - 1) + state,
                "operation": operations.index(operation),
                "says": f"{operation} of {state_name(state)} to {state_name(track.stop + 1)}",
                "family": family(operation),
                **_wire(wire, style_of(family(operation)).arrow_scale, short_name(operation)),
            }
        )
    return {"edges": edges, "output": _wire(output_wire(plan), 1.0, "concat")}


def _wire(wire: Wire, arrow_scale: float, label: str) -> dict[str, Any]:
    corners = arrow_corners(wire.tip, wire.direction, arrow_scale)
    return {
        "line": " ".join(_svg_path(rounded(points)) for points in wire.lines),
        "head": " ".join(_svg_point(point) for point in corners),
        "x": wire.label[0],
        "y": -wire.label[1],
        "label": label,
        "width": label_width(label),
    }


def _svg_path(path: matplotlib.path.Path) -> str:
    letters = {matplotlib.path.Path.MOVETO: "M", matplotlib.path.Path.LINETO: "L", matplotlib.path.Path.CURVE3: "Q"}
    segments = path.iter_segments(simplify=False)
    return "".join(
        letters[code] + " ".join(_svg_point((x, y)) for x, y in vertices.reshape(-1, 2)) for vertices, code in segments
    )


def _svg_point(point: Point) -> str:
    return f"{point[0]:.1f},{-point[1]:.1f}"  # y grows downwards there


def _plain(value: Any) -> Any:
    """A value for JSON: numbers rounded to six decimals, None instead of NaN and infinities."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, float):
        return round(float(value), 6) if math.isfinite(value) else None
    return value
