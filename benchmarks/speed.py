"""python -m darts_sg bench: supernet and retraining against their textbook counterparts, interleaved in one process.

--images measures the reading of image files instead (benchmarks/images.py).
"""

import argparse
import errno
import json
import os
import platform
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks import images, launches, peers
from benchmarks.machine import interleave, median, roofline, step_gflop
from benchmarks.memory import peak_mib
from benchmarks.networks import evaluation_passes, inference_passes, mobile_steps
from benchmarks.subjects import (
    Shape,
    Step,
    compile_kernels,
    loading,
    method_step,
    native_kernels,
    own_step,
    passes,
    retraining_steps,
    textbook_second_order_step,
    textbook_step,
)
from darts_sg.cli.parser import positive
from darts_sg.engine import environment
from darts_sg.engine.export import missing_packages
from darts_sg.errors import UsageError
from darts_sg.files import write_atomically

SCALES = {"channels": (8, 16, 32), "cells": (5, 8, 11), "batch": (8, 16, 32, 64)}
RETRAINING = "retraining step of DARTS_V2, C=36, 20 cells, batch 32"
MOBILE = "mobile networks: training step of {}, 224×224, batch 16"
MOBILE_NETWORKS = ("mobilenext_1.0", "mobilenetv2_1.0")
EVALUATION = "evaluation of DARTS_V2, C=36, 20 cells, batch 256"
INFERENCE = "inference with DARTS_V2, C=48, 14 cells, 25 single images of 224×224"
PARTIAL = "methods: step with partial channels (K=4) against the full step, batch 64"
METHODS: dict[str, dict[str, str]] = {
    "soft Gumbel samples (snas)": {"relaxation": "gumbel"},
    "Dirichlet samples (drnas)": {"relaxation": "dirichlet"},
    "sigmoid weights (fair-darts)": {"relaxation": "sigmoid"},
    "beta-decay (beta-darts)": {"regularizer": "beta-decay"},
    "an auxiliary skip (darts-minus)": {"auxiliary_skip": "linear"},
    "a random perturbation (sdarts-rs)": {"perturbation": "random"},
}
"""The parts of a search by the name of the figure that measures its step."""
HARD_SAMPLES = {"relaxation": "gumbel:temperature=10,temperature_end=0.1,hard=true"}
LOADING = "augmentation and loading, share of a step of batch 64"
ROUNDS = 3  # for steps of seconds; slower ones get two
PEER_ROUNDS = 5  # first steps of foreign code may be slow
INFERENCE_ROUNDS = 9  # each takes less than a second


@dataclass
class BenchRow:
    """A figure: baseline and own value in `unit`, their ratio, and the range of the ratio over rounds.

    The ratio is baseline / own for times (how many times faster), own / baseline for memory, operators and shares of
    the time.
    """

    name: str
    unit: str
    baseline: float
    value: float
    ratio: float
    spread: tuple[float, float]
    rounds: int
    at_least: float | None = None
    aim: float | None = None
    baseline_name: str = "textbook"
    times: dict[str, list[float]] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """The row for the JSON file; times are in seconds."""
        plain = asdict(self)
        if self.unit == "s":
            plain["baseline_seconds"], plain["seconds"] = plain.pop("baseline"), plain.pop("value")
        return plain

    def met(self) -> str:
        if self.at_least is None or self.aim is None:
            return ""
        better = (lambda a, b: a <= b) if self.aim < self.at_least else (lambda a, b: a >= b)
        return "aim" if better(self.ratio, self.aim) else "yes" if better(self.ratio, self.at_least) else "no"


def timed(
    name: str, baseline: Step, own: Step, rounds: int, at_least: float | None, aim: float | None, **more: Any
) -> BenchRow:
    return row_of(name, interleave({"baseline": baseline, "own": own}, rounds), at_least, aim, **more)


def row_of(
    name: str, times: dict[str, list[float]], at_least: float | None, aim: float | None, **more: Any
) -> BenchRow:
    """Make a row from the seconds of `baseline` and `own` in each round."""
    ratios = [b / o for b, o in zip(times["baseline"], times["own"], strict=True)]
    middle = [median(times[key]) for key in ("baseline", "own")]
    spread = min(ratios), max(ratios)
    return BenchRow(name, "s", *middle, median(ratios), spread, len(ratios), at_least, aim, times=times, **more)


def share_of_time(
    name: str, times: dict[str, list[float]], at_least: float | None, aim: float | None, **more: Any
) -> BenchRow:
    """Make a row whose ratio is the part of the baseline's time that our own step takes."""
    shares = [own / baseline for baseline, own in zip(times["baseline"], times["own"], strict=True)]
    middle = [median(times[key]) for key in ("baseline", "own")]
    spread = min(shares), max(shares)
    return BenchRow(name, "s", *middle, median(shares), spread, len(shares), at_least, aim, times=times, **more)


def method_row(name: str) -> str:
    """The name of the figure of a method's step."""
    return f"methods: step with {name} against the plain step, batch 64"


def search_rows(native: bool) -> dict[str, Callable[[], BenchRow]]:
    """The figures of the supernet, by name."""

    def first_order(batch: int, space: str, rounds: int, at_least: float, aim: float) -> BenchRow:
        shape = Shape(space=space, batch=batch)
        name = f"first-order step, batch {batch}" + ("" if space == Shape.space else f", {space}")
        return timed(name, textbook_step(shape), own_step(shape, native=native), rounds, at_least, aim)

    def second_order() -> BenchRow:
        shape = Shape(batch=16)
        own = own_step(shape, native=native, second_order=True)
        return timed("second-order step, batch 16", textbook_second_order_step(shape), own, 2, 5, 8)

    def recomputation() -> BenchRow:
        shape = Shape(batch=64)
        fast, again = (own_step(shape, native=native, recompute=recompute) for recompute in (False, True))
        name = "first-order step with recomputation, batch 64"
        return timed(name, fast, again, 3, 1 / 1.4, 1.0, baseline_name="without recomputation")

    def partial_channels() -> BenchRow:
        full, quarter = (own_step(Shape("darts", 64, partial_channels=K), native=native) for K in (1, 4))
        times = interleave({"baseline": full, "own": quarter}, ROUNDS)
        return share_of_time(PARTIAL, times, 0.3, 0.25, baseline_name="the full step")

    def method(name: str, parts: Mapping[str, str], kernels: bool, at_least: float, aim: float) -> BenchRow:
        shape = Shape("darts", 64)
        steps = {"baseline": own_step(shape, native=kernels), "own": method_step(shape, native=kernels, **parts)}
        return share_of_time(method_row(name), interleave(steps, ROUNDS), at_least, aim, baseline_name="the plain step")

    methods = {name: partial(method, name, parts, native, 1.05, 1.02) for name, parts in METHODS.items()}
    for kernels in (True, False) if native else (False,):
        name = f"hard samples (gdas), {'C++' if kernels else 'PyTorch'} kernels,"
        methods[name] = partial(method, name, HARD_SAMPLES, kernels, 0.3, 0.2)
    return {
        "first-order step, batch 16": lambda: first_order(16, "darts+sandglass", ROUNDS, 6, 10),
        "first-order step, batch 16, darts": lambda: first_order(16, "darts", ROUNDS, 6, 10),
        "first-order step, batch 64": lambda: first_order(64, "darts+sandglass", 2, 5, 8),
        "second-order step, batch 16": second_order,
        "first-order step with recomputation, batch 64": recomputation,
        PARTIAL: partial_channels,
        **{method_row(name): measure for name, measure in methods.items()},
    }


def memory_row(name: str, which: str, at_least: float, aim: float) -> BenchRow:
    threads = torch.get_num_threads()
    baseline, own = (peak_mib(kind, 64, threads) for kind in ("textbook", which))
    ratio = own / baseline
    return BenchRow(name, "MiB", baseline, own, ratio, (ratio, ratio), 1, at_least, aim)


def launch_rows(native: bool, device: str = "cpu") -> list[BenchRow]:
    shape = Shape(batch=2, device=device)
    cuda = torch.device(device).type == "cuda"
    baseline = sum(launches.count(passes(shape, own=False)).values())
    rows = []
    names = "operator launches, forward and backward", f"the same with the {'Triton' if cuda else 'C++'} kernels"
    for name, kernels in zip(names, (False, True), strict=True):
        if kernels and not native:
            continue
        own = sum(launches.count(passes(shape, own=True, native=kernels)).values())
        ratio = own / baseline
        targets = (None, None) if kernels and not cuda else (3500 / 15004, 2000 / 15004)
        rows.append(BenchRow(name, "calls", baseline, own, ratio, (ratio, ratio), 1, *targets))
    return rows


def accelerator_rows(device: str, compiled: bool) -> Iterator[BenchRow]:
    """First-order steps on a GPU in the ways a search can run them there, all in turns with the textbook's.

    On a device other than a CUDA GPU those that need no CUDA.
    """
    cuda = torch.device(device).type == "cuda"
    ways: dict[str, dict[str, Any]] = {
        "": {"native": True, "captured": True},
        ", bfloat16": {"native": True, "captured": True, "precision": torch.bfloat16},
        ", launch by launch": {"native": True},
        ", PyTorch kernels, captured": {"captured": True},
    }
    ways = ways if cuda else {", PyTorch kernels, bfloat16": {"precision": torch.bfloat16}}
    ways[", PyTorch kernels"] = {}
    if compiled:
        ways[", PyTorch kernels, bfloat16, compiled"] = {"precision": torch.bfloat16, "compiled": True}
    for batch in (64, 16):
        shape = Shape(batch=batch, device=device)
        for precision in (torch.float32, torch.bfloat16) if cuda else ():
            compile_kernels(shape, precision)
        steps = {how: own_step(shape, **{"native": False, **options}) for how, options in ways.items()}
        times = interleave({"textbook": textbook_step(shape), **steps}, ROUNDS)
        targets = (8, 15) if batch == 64 else (None, None)
        for how in ways:
            both = {"baseline": times["textbook"], "own": times[how]}
            yield row_of(f"first-order step on {device}, batch {batch}{how}", both, *targets)


def network_rows(native: bool) -> dict[str, Callable[[], BenchRow]]:
    """The figures of networks that are trained or used, by name."""

    def retraining() -> BenchRow:
        old, own = retraining_steps("DARTS_V2", 32, native=native)
        return timed(RETRAINING, old, own, ROUNDS, 3.2, 4.5, baseline_name="NCHW eager")

    def mobile(name: str) -> BenchRow:
        plain, own = mobile_steps(name, 16, native=native)
        return timed(MOBILE.format(name), plain, own, ROUNDS, 2, 3, baseline_name="plain PyTorch, NCHW")

    def evaluation() -> BenchRow:
        old, own = evaluation_passes("DARTS_V2", 256, native=native)
        return timed(EVALUATION, old, own, ROUNDS, 2, 3, baseline_name="NCHW eager")

    def inference() -> BenchRow:
        other, own = inference_passes("DARTS_V2", native=native)
        return timed(INFERENCE, other, own, INFERENCE_ROUNDS, 1.0, 1.3, baseline_name="onnxruntime")

    rows = {RETRAINING: retraining}
    rows |= {MOBILE.format(name): partial(mobile, name) for name in MOBILE_NETWORKS}
    rows[EVALUATION] = evaluation
    if not missing_packages("onnx"):
        rows[INFERENCE] = inference
    return rows


def loading_row(native: bool) -> BenchRow:
    """The time to make a step's two batches, as a share of the step."""
    times = interleave({"step": own_step(Shape(batch=64), native=native), "loading": loading(64)}, ROUNDS)
    shares = [2 * load / step for load, step in zip(times["loading"], times["step"], strict=True)]
    middle = [median(times["step"]), 2 * median(times["loading"])]
    return BenchRow(
        LOADING, "s", *middle, median(shares), (min(shares), max(shares)), ROUNDS, 0.02, 0.01, "a step", times
    )


def figures(native: bool) -> dict[str, Callable[[], list[BenchRow]]]:
    """All CPU figures in the order of measurement; memory comes first, while this process is still small."""
    memory = {
        "peak memory of a step, batch 64": ("own", 0.5, 0.35),
        "peak memory with recomputation, batch 64": ("recompute", 0.2, 0.12),
    }
    return {
        **{name: lambda name=name, how=how: [memory_row(name, *how)] for name, how in memory.items()},
        **{name: lambda measure=measure: [measure()] for name, measure in search_rows(native).items()},
        "operator launches": lambda: launch_rows(native),
        **{name: lambda measure=measure: [measure()] for name, measure in network_rows(native).items()},
        LOADING: lambda: [loading_row(native)],
    }


def ablation(native: bool, rounds: int) -> list[BenchRow]:
    """A first-order step of batch 16, each row with one more rewrite, all in one process."""
    shape = Shape()
    steps: dict[str, Step] = {
        "textbook (NCHW, a module an edge, all gradients)": textbook_step(shape),
        "+ channels_last": textbook_step(shape, channels_last=True),
        "+ only the gradients that are used": textbook_step(shape, channels_last=True, only_used=True),
        "+ edges in batches (PyTorch kernels)": own_step(shape, native=False),
    }
    if native:
        steps["+ C++ kernels"] = own_step(shape, native=True)
        steps["with recomputation"] = own_step(shape, native=True, recompute=True)
    times = interleave(steps, rounds)
    base = next(iter(times.values()))
    rows = []
    for name, own in times.items():
        ratios = [b / o for b, o in zip(base, own, strict=True)]
        spread = (min(ratios), max(ratios))
        rows.append(BenchRow(name, "s", median(base), median(own), median(ratios), spread, rounds))
    return rows


def scaling(native: bool) -> list[dict[str, Any]]:
    """Seconds of a first-order step against its arithmetic, one dimension at a time."""
    shapes = {
        "channels": [Shape(channels=C) for C in SCALES["channels"]],
        "cells": [Shape(cells=n) for n in SCALES["cells"]],
        "operations": [Shape(space=s) for s in ("darts", "darts+sandglass", "darts+sandglass+ir")],
        "batch": [Shape(batch=B) for B in SCALES["batch"]],
    }
    found = []
    for dimension, list_of_shapes in shapes.items():
        times = interleave({str(shape): own_step(shape, native=native) for shape in list_of_shapes}, 2)
        for shape in list_of_shapes:
            gflop = step_gflop(shape)
            seconds = median(times[str(shape)])
            at = {"channels": shape.channels, "cells": shape.cells, "operations": shape.space, "batch": shape.batch}
            found.append({"dimension": dimension, "at": at[dimension], "seconds": seconds, "gflop": gflop})
    return found


def machine_facts(device: torch.device) -> dict[str, Any]:
    return {
        "device": environment.device_name(device),
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "git": environment.git_state(),
        "kernels": native_kernels() or "native",
        "date": datetime.now().astimezone().date().isoformat(),
        "command": environment.command_line(),
    }


def table_of(rows: Sequence[BenchRow], title: str) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for column in ("figure", "baseline", "here", "ratio", "of the rounds", "at least", "aim", "met"):
        table.add_column(column, justify="left" if column == "figure" else "right")

    def shown(value: float | None) -> str:
        return "" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"

    for row in rows:
        spread = f"{row.spread[0]:.3g} to {row.spread[1]:.3g}" if row.rounds > 1 else "once"
        figures = [f"{shown(value)} {row.unit}" for value in (row.baseline, row.value)]
        table.add_row(row.name, *figures, f"{row.ratio:.3g}", spread, shown(row.at_least), shown(row.aim), row.met())
    return table


def drawn(rows: Sequence[BenchRow]) -> list[BenchRow]:
    """The rows that the picture shows as bars: ratios of times."""
    return [row for row in rows if row.unit == "s" and row.ratio >= 0.5]


def draw_bars(rows: Sequence[BenchRow], path: Path) -> None:
    """Draw the ratios of times as bars, at least one, with the range over rounds and the targets as marks."""
    from matplotlib.figure import Figure

    timed_rows = drawn(rows)[::-1]
    figure = Figure(figsize=(8.5, 0.5 * len(timed_rows) + 1.2), layout="constrained")
    axes = figure.subplots()
    for y, row in enumerate(timed_rows):
        axes.barh(y, row.ratio, color="#3b7dd8", height=0.6)
        axes.plot(row.spread, (y, y), color="#12305a", linewidth=2)
        for target, style in ((row.at_least, "-"), (row.aim, ":")):
            if target is not None:
                axes.plot((target, target), (y - 0.38, y + 0.38), color="#c0392b", linewidth=2, linestyle=style)
        right = max(row.ratio, row.spread[1], row.aim or 0)
        axes.text(right + 0.2, y, f"{row.ratio:.3g}×  ({row.baseline:.2f} s to {row.value:.2f} s)", va="center")
    axes.set_yticks(range(len(timed_rows)), [row.name for row in timed_rows])
    axes.set_xlim(0, max(max(row.ratio, row.spread[1], row.aim or 0) for row in timed_rows) * 1.4)
    axes.set_xlabel("times faster than the baseline (red: at least, dotted: aim; dark: range of the rounds)")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, bbox_inches="tight")


def write_json(path: Path | None, content: Mapping[str, Any], out: Console) -> None:
    """Write all figures to a file, if one was requested."""
    if path is not None:
        write_atomically(path, json.dumps(content, indent=1) + "\n")
        out.print(f"written: {path}", highlight=False)


def add_options(options: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    options.add_argument(
        "--quick", action="store_true", help="only the first-order step and the launches, under a minute"
    )
    options.add_argument(
        "--images", type=Path, metavar="DIR", help="only how fast the image files below a folder are read, on one core"
    )
    options.add_argument(
        "--only", default="", metavar="TEXT", help="only the figures with TEXT in their name, such as retraining"
    )
    options.add_argument("--json", type=Path, metavar="FILE", help="write all figures as JSON")
    options.add_argument("--picture", type=Path, metavar="FILE", help="draw the ratios as bars (.svg, .png or .pdf)")
    options.add_argument(
        "--device",
        default="cpu",
        help="cpu, or a GPU: there only the first-order steps and the launches are measured",
    )
    options.add_argument("--compile", action="store_true", help="on a GPU measure torch.compile as well (minutes)")
    options.add_argument("--threads", type=positive, help="CPU threads (default: one a core)")
    options.add_argument(
        "--peer",
        action="append",
        default=[],
        metavar="NAME=DIR",
        help=f"also measure a checkout of another implementation: {', '.join(peers.PEERS)}",
    )


def _make_place(option: str, path: Path | None) -> None:
    """Make the folder of an output file; UsageError if the file could not be written there."""
    if path is None:
        return
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise UsageError(f"{option} {path} cannot be written: {error.strerror}; choose another") from None


def main(arguments: argparse.Namespace) -> None:
    """Measure, print and write the figures.

    Raises UsageError, before anything is measured, for an unknown peer and for files that could not be written.
    """
    out = Console(width=None if Console().is_terminal else 160)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    if arguments.picture and arguments.picture.suffix not in (".svg", ".png", ".pdf"):
        raise UsageError(f"--picture {arguments.picture}: expected a name that ends with .svg, .png or .pdf")
    for name in ("json", "picture"):
        _make_place(f"--{name}", getattr(arguments, name))
    others = [peers.load(text) for text in arguments.peer]
    device = environment.choose_device(arguments.device)
    environment.make_current(device)
    missing = native_kernels()
    native = missing is None
    facts = machine_facts(device)
    out.print(f"{environment.machine(device)}, PyTorch {facts['torch']}, {facts['git']}", highlight=False)
    if arguments.images:
        write_json(arguments.json, {"machine": facts, **images.measure(arguments.images, out)}, out)
        return
    if arguments.only and (arguments.quick or device.type != "cpu"):
        raise UsageError("--only chooses among the figures of a whole run on a CPU; leave out --quick and --device")
    known = figures(native)
    wanted = {name: measure for name, measure in known.items() if arguments.only in name}
    if not wanted:
        raise UsageError(f"--only {arguments.only}: no figure has that in its name; there are: {'; '.join(known)}")
    if missing:
        out.print(f"without the C++ kernels: {missing}", highlight=False)
    rows: list[BenchRow] = []
    of_peers = []  # measured first, since they may not run here
    for peer in others:
        environment.keep_freed_memory()
        name = f"first-order step, batch 16, darts, {peer.name}"
        own = own_step(peer.shape(Shape(space="darts")), native=native)
        of_peers.append(
            timed(name, peer.step(Shape(space="darts")), own, PEER_ROUNDS, None, None, baseline_name=peer.name)
        )

    def add(*more: BenchRow) -> None:
        rows.extend(more)
        for row in more:
            out.print(f"{row.name}: {row.ratio:.3g}", highlight=False)

    if device.type != "cpu":
        for row in accelerator_rows(str(device), arguments.compile):
            add(row)
        add(*launch_rows(device.type == "cuda", str(device)))
    elif arguments.quick:
        environment.keep_freed_memory()
        shape = Shape()
        name = "first-order step, batch 16"
        add(timed(name, textbook_step(shape), own_step(shape, native=native), 3, 6, 10), *launch_rows(native))
    else:
        for name, measure in wanted.items():
            if not name.startswith("peak memory"):
                environment.keep_freed_memory()
            add(*measure())
            environment.return_freed_memory()
    add(*of_peers)
    content: dict[str, Any] = {"machine": facts, "rows": [row.as_json() for row in rows]}
    out.print(table_of(rows, "\nagainst the textbook, interleaved (times: times faster; else: the part that is left)"))
    whole = device.type == "cpu" and not arguments.quick and not arguments.only
    if whole:
        steps = ablation(native, 2)
        out.print(table_of(steps, "\neach rewrite, first-order step, batch 16"))
        grown = scaling(native)
        growth = Table(
            "against", "at", "s a step", "GFLOP", "GFLOPS", title="\nscaling", title_justify="left", box=None
        )
        for item in grown:
            rate = f"{item['gflop'] / item['seconds']:.0f}"
            growth.add_row(item["dimension"], str(item["at"]), f"{item['seconds']:.3f}", f"{item['gflop']:.1f}", rate)
        out.print(growth)
        content |= {"ablation": [row.as_json() for row in steps], "scaling": grown}
    of_shapes = [Shape()] if arguments.quick else [Shape(), Shape(space="darts"), Shape(batch=64)]
    for shape in of_shapes if whole or arguments.quick else []:
        bound = roofline(shape, native)
        names = {Shape(): "first-order step, batch 16", Shape(space="darts"): "first-order step, batch 16, darts"}
        row = next(r for r in rows if r.name == names.get(shape, "first-order step, batch 64"))
        out.print(
            f"roofline, {row.name}: {bound.step_gflop:.1f} GFLOP at {bound.gflops:.0f} GFLOPS (measured sgemm) take "
            f"{bound.arithmetic_seconds:.2f} s, {bound.step_gigabytes:.1f} GB at {bound.gigabytes_a_second:.1f} GB/s "
            f"(measured copy) {bound.traffic_seconds:.2f} s; the step takes {row.value:.2f} s, "
            f"{row.value / bound.bound_seconds:.1f} times the larger, the baseline "
            f"{row.baseline / bound.bound_seconds:.1f} times",
            highlight=False,
        )
        content.setdefault("roofline", []).append({"name": row.name, **bound._asdict(), "seconds": row.value})
    write_json(arguments.json, content, out)
    if arguments.picture and drawn(rows):
        draw_bars(rows, arguments.picture)
        out.print(f"written: {arguments.picture}", highlight=False)
    elif arguments.picture:
        out.print(f"not written: {arguments.picture}, since none of these figures is a ratio of times", highlight=False)
