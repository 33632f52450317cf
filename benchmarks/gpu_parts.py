"""The parts of benchmarks/gpu.sh: python -m benchmarks.bare PART --device cuda --rows FILE. See benchmarks/gpu.py.

A part writes its rows one by one, so that those before a failure or the end of its time are kept.
"""

import argparse
import contextlib
import io
import json
import os
import re
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks import bare
from benchmarks.gpu import SKIPPED
from darts_sg.backends.cpp import build
from darts_sg.config import AugmentConfig, SearchConfig
from darts_sg.data import Dataset, DataSpec, ImageSet
from darts_sg.engine import environment, kernels
from darts_sg.engine.augment import AugmentJob
from darts_sg.engine.distributed import ALONE, Ranks, fingerprint
from darts_sg.engine.graphs import WARM_UP, Captured
from darts_sg.engine.memory import is_out_of_memory, peak_memory
from darts_sg.engine.search import SearchJob
from darts_sg.engine.setup import Setting, timed_step
from darts_sg.engine.steps import apply_weight_step, weight_optimizer
from darts_sg.genotype import load_genotype

Job = SearchJob | AugmentJob
STEP_BEFORE = 0.0684
"""Seconds of the last first-order step measured on a GPU: batch 64, float32, older kernels (results/speed)."""
ROUNDS, STEPS = 3, 10


@dataclass(frozen=True)
class Row:
    """A figure, or a check that passed or not."""

    what: str
    value: float | int | str | None = None
    unit: str = ""
    spread: tuple[float, float] | None = None
    passed: bool | None = None
    limit: str = ""
    remark: str = ""


@dataclass(frozen=True)
class Here:
    """Where a part runs, at which sizes, and where its rows go."""

    device: torch.device
    tiny: bool
    rows: Path

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    def add(self, what: str, value: float | int | str | None = None, unit: str = "", **more: Any) -> None:
        """Write a row."""
        row = Row(what, value, unit, **more)
        with self.rows.open("a") as file:
            file.write(json.dumps(asdict(row)) + "\n")
        print(row, flush=True)

    def wait(self) -> None:
        """Wait until the device has computed everything."""
        if self.on_gpu:
            torch.cuda.synchronize(self.device)


def skip(reason: str) -> NoReturn:
    """End the part: it cannot run here."""
    print(reason)
    sys.exit(SKIPPED)


# --- jobs on noise


def noise(here: Here, num_images: int, size: int, num_classes: int = 10, ranks: Ranks = ALONE) -> Setting:
    """A setting with images of noise on the device, the same in every process."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (num_images, size, size, 3), dtype=torch.uint8, generator=generator)
    labels = torch.arange(num_images) % num_classes
    spec = DataSpec("noise", num_classes, size, 3, (0.5,) * 3, (0.25,) * 3, tuple(map(str, range(num_classes))))
    part = ImageSet(images, labels)
    return Setting(here.device, Dataset(spec, part, part), {}, {}, ranks)


def search_job(here: Here, *, batches: int = 2, ranks: Ranks = ALONE, **options: Any) -> SearchJob:
    """A search at the paper's size: C=16, 8 cells, `darts+sandglass`, batch 64; `batches` full ones a pass."""
    full = {"space": "darts+sandglass", "channels": 16, "cells": 8, "batch_size": 64}
    tiny = {
        "space": "sep_conv_3x3+max_pool_3x3+skip_connect", "channels": 4, "cells": 3, "nodes": 1, "batch_size": 4,
        "kernels": "pytorch",
    }  # fmt: skip
    chosen = {**(tiny if here.tiny else full), "epochs": 50, "data": Path(), **options}
    if here.tiny:
        chosen["batch_size"] = min(chosen["batch_size"], 4)
        chosen["channels"] = 8 if chosen.get("partial_channels") else 4
    config = SearchConfig(**chosen)
    torch.manual_seed(0)
    return SearchJob(config, noise(here, 2 * batches * config.batch_size, 8 if here.tiny else 32, ranks=ranks))


def augment_job(
    here: Here, *, batches: int = 2, size: int = 32, num_classes: int = 10, ranks: Ranks = ALONE, **options: Any
) -> AugmentJob:
    """The retraining of DARTS_V2: C=36, 20 cells, batch 96, cutout, auxiliary head, drop path 0.2."""
    full = {"channels": 36, "cells": 20, "batch_size": 96}
    tiny = {"channels": 4, "cells": 3, "batch_size": 4, "kernels": "pytorch"}
    chosen = {**full, "genotype": "DARTS_V2", "cutout_length": 16, "epochs": 600, "data": Path(), **options}
    chosen |= tiny if here.tiny else {}
    config = AugmentConfig(**chosen)
    torch.manual_seed(0)
    images = noise(here, batches * config.batch_size, min(size, 64) if here.tiny else size, num_classes, ranks)
    return AugmentJob(config, load_genotype("DARTS_V2"), images)


def is_captured(job: Job) -> bool:
    return job.captured is not None


def take(job: Job, steps: int, epoch: int = 0) -> None:
    """Take steps of an epoch; they are not waited for."""
    for number in range(steps):
        job.step(epoch, number % job.steps_per_epoch)


def warm(here: Here, job: Job, epoch: int = 1) -> None:
    """Take the steps that are slower than the others."""
    take(job, job.warm_up_steps, epoch)
    here.wait()


def time_in_turns(here: Here, jobs: Mapping[str, Job], epoch: int = 1) -> dict[str, list[float]]:
    """Seconds of a step of each job in each round, in turns."""
    steps = 1 if here.tiny else STEPS
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(ROUNDS):
        for name, job in jobs.items():
            here.wait()
            begun = time.perf_counter()
            take(job, steps, epoch)
            here.wait()
            times[name].append((time.perf_counter() - begun) / steps)
    return times


def built(here: Here, makers: Mapping[str, Callable[[], Job]]) -> dict[str, Job]:
    """The jobs that fit, each warmed up, with a row about the memory of each; one that fails has a row that says so."""
    jobs: dict[str, Job] = {}
    for name, make in makers.items():
        try:
            reserved = torch.cuda.memory_reserved(here.device) if here.on_gpu else 0
            begun = time.perf_counter()
            job = make()
            warm(here, job)
        except Exception as error:
            here.add(name, remark=f"{type(error).__name__}: {str(error)[:200]}", passed=False)
            continue
        jobs[name] = job
        if here.on_gpu and isinstance(job, SearchJob) and job.setting.environment["kernels"] != "native":
            here.add(f"{name}: kernels", "pytorch", passed=False, limit="native")
        if here.on_gpu:
            reserved = torch.cuda.memory_reserved(here.device) - reserved
            remark = f"built and warmed up in {time.perf_counter() - begun:.0f} s"
            here.add(f"{name}: memory reserved", reserved / 2**20, "MiB", remark=remark)
    return jobs


def report(here: Here, jobs: Mapping[str, Job], times: Mapping[str, Sequence[float]], **limits: float) -> None:
    """A row for each job: seconds of a step, images a second, and whether the rounds agree."""
    for name, found in times.items():
        middle, spread = statistics.median(found), (min(found), max(found))
        limit = limits.get(name)
        own = jobs[name]
        remark = f"{own.config.batch_size / middle:,.0f} images/s, {'captured' if is_captured(own) else 'eager'}"
        if isinstance(own, SearchJob) or own.derived is not None:
            remark += f", kernels {own.setting.environment.get('kernels')}"
        here.add(
            name, middle, "s", spread=spread, remark=remark,
            passed=None if limit is None or here.tiny else middle < limit,
            limit="" if limit is None else f"below {limit:g} s",
        )  # fmt: skip


def states(job: Job) -> dict[str, Tensor]:
    """All tensors that steps change, by name."""
    found: dict[str, Tensor] = {}

    def walk(name: str, part: Any) -> None:
        if isinstance(part, Mapping):
            for key, value in part.items():
                walk(f"{name}.{key}", value)
        elif isinstance(part, list | tuple):
            for key, value in enumerate(part):
                walk(f"{name}.{key}", value)
        elif isinstance(part, Tensor):
            found[name] = part.detach().clone()

    walk("state", job.state_dict())
    return found


def different(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> list[str]:
    """Names of tensors whose bits differ, or that only one side has."""

    def content(tensor: Tensor) -> bytes:
        return tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()

    both = sorted(one.keys() & other.keys())
    return sorted(one.keys() ^ other.keys()) + [name for name in both if content(one[name]) != content(other[name])]


def compare(here: Here, what: str, makers: Mapping[str, Callable[[], Job]], steps: int, epochs: Sequence[int]) -> None:
    """Rows that say whether all jobs come to the same bits, generator of the device included."""
    first: tuple[str, dict[str, Tensor]] | None = None
    for name, make in makers.items():
        environment.return_freed_memory()
        job = make()
        torch.manual_seed(1)
        losses = [job.step(e, s).means for e in epochs for s in range(steps)]
        here.wait()
        found = states(job) | {"losses": torch.stack([value.float() for means in losses for value in means.values()])}
        found["generator"] = torch.cuda.get_rng_state(here.device) if here.on_gpu else torch.get_rng_state()
        how = "captured" if is_captured(job) else "eager"
        if first is None:
            first = name, found
            continue
        differ = different(first[1], found)
        remark = f"{len(differ)} of {len(found)} tensors differ, such as {', '.join(differ[:3])}" if differ else how
        here.add(f"{what}: {name} as {first[0]}", passed=not differ, limit="equal bits", remark=remark)
        del job


# --- parts


def machine(here: Here) -> None:
    """Everything a search on a GPU needs is there."""
    here.add("Python", sys.version.split()[0], passed=sys.version_info >= (3, 11), limit="3.11 or newer")
    here.add("PyTorch", str(torch.__version__), remark=f"CUDA {torch.version.cuda}")
    here.add("Triton", environment.triton_version())
    for name in bare.lacking():
        here.add(name, "not installed", remark="not needed here")
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    here.add("Python.h", str(header), passed=header.is_file() or not here.on_gpu, limit="there, for Triton")
    if here.on_gpu:
        properties = torch.cuda.get_device_properties(here.device)
        missing = build.triton_missing(torch.cuda.get_device_capability(here.device))
        here.add("GPU", properties.name, remark=f"{properties.total_memory / 2**30:.0f} GiB")
        here.add("Triton kernels", missing or "can be compiled", passed=missing is None, limit="can be compiled")
    here.add("device", str(here.device), passed=torch.ones(2, device=here.device).sum().item() == 2, limit="computes")


def _start(here: Here, precision: str, limit: float) -> None:
    """Build a search, take a dry run's steps, and read what the check of the kernels printed."""
    printed, begun = io.StringIO(), time.perf_counter()
    with contextlib.redirect_stdout(printed):
        job = search_job(here, batches=5, precision=precision)
        built_in = time.perf_counter() - begun
        result, seconds = timed_step(job, 0)
    print(printed.getvalue())
    kernels = job.setting.environment["kernels"]
    expected = "native" if here.on_gpu else kernels
    here.add("kernels", kernels, passed=kernels == expected, limit=expected)
    found = re.search(r"off by at most ([\d.e+-]+)", printed.getvalue())
    if found:
        error = float(found[1])
        here.add("largest error against float64", error, passed=error < limit, limit=f"below {limit:g}")
    elif here.on_gpu:
        here.add("largest error against float64", passed=False, remark="the check printed nothing")
    here.add("compiled, checked, built", built_in, "s")
    here.add(
        "a step after warm-up", seconds, "s", remark=", ".join(f"{n} {v.item():.4f}" for n, v in result.means.items())
    )
    here.add("captured", str(is_captured(job)), passed=is_captured(job) == here.on_gpu, limit=str(here.on_gpu))
    here.add("peak memory", peak_memory(here.device) / 2**20, "MiB")


def start(here: Here) -> None:
    _start(here, "float32", 1e-3)


def start_bfloat16(here: Here) -> None:
    _start(here, "bfloat16", 0.3)


METHODS: dict[str, dict[str, Any]] = {
    "first order": {},
    "second order": {"hypergradient": "unrolled"},
    "bfloat16": {"precision": "bfloat16"},
    "Gumbel samples": {"relaxation": "gumbel"},
    "penalty": {"penalty": "params:0.1"},
    "beta-decay": {"regularizer": "beta-decay"},
    "partial channels": {"partial_channels": 4},
    "single level": {"hypergradient": "single_level", "relaxation": "gumbel"},
    "drop path": {"drop_path_prob": 0.2},
    "attack": {"perturbation": "adversarial:steps=1"},
}
"""Searches whose steps are captured."""


def bits(here: Here) -> None:
    """8 steps over two epochs of each kind of search: eager, captured, captured again; recomputed as well."""
    for what, options in METHODS.items():
        makers: dict[str, Callable[[], Job]] = {
            name: lambda more=more, options=options: search_job(here, batches=4, **options, **more)  # type: ignore[misc]
            for name, more in {"eager": {"capture": False}, "captured": {}, "captured again": {}}.items()
        }
        if what == "first order":
            makers["recomputed"] = lambda: search_job(here, batches=4, recompute=True)
        compare(here, what, makers, 2 if here.tiny else 4, (0, 1))


def retraining_bits(here: Here) -> None:
    """8 steps over two epochs with drop path, auxiliary head, cutout and EMA: eager, captured, captured again."""
    # on a CPU two equal steps in bfloat16 differ: its convolutions add up in an order of their own
    for precision in ("float32", "bfloat16") if here.on_gpu else ("float32",):
        options = {"precision": precision, "ema": 0.99, "epochs": 4}
        makers: dict[str, Callable[[], Job]] = {
            name: lambda more=more, options=options: augment_job(here, batches=4, **options, **more)  # type: ignore[misc]
            for name, more in {"eager": {"capture": False}, "eager again": {"capture": False}, "captured": {}}.items()
        }
        compare(here, precision, makers, 2 if here.tiny else 4, (0, 1))


def search_time(here: Here) -> None:
    """Steps of the kinds of search that the aims name."""
    makers: dict[str, Callable[[], Job]] = {
        name: lambda options=options: search_job(here, **options)  # type: ignore[misc]
        for name, options in {
            "first order, batch 64": {},
            "the same, bfloat16": {"precision": "bfloat16"},
            "the same, recomputed": {"recompute": True},
            "second order, batch 64": {"hypergradient": "unrolled"},
            "darts, partial channels, K=4, batch 256": {
                **({} if here.tiny else {"space": "darts"}),
                "partial_channels": 4,
                "batch_size": 256,
            },
            "first order, batch 16": {"batch_size": 16},
            "first order, batch 64, launch by launch": {"capture": False},
        }.items()
    }
    jobs = built(here, makers)
    report(here, jobs, time_in_turns(here, jobs), **{"first order, batch 64": STEP_BEFORE})


def _retraining_makers(here: Here, **options: Any) -> dict[str, Callable[[], Job]]:
    return {
        f"{precision}, {'captured' if capture else 'eager'}": lambda precision=precision, capture=capture: augment_job(  # type: ignore[misc]
            here, precision=precision, capture=capture, **options
        )
        for precision in ("float32", "bfloat16")
        for capture in (True, False)
    }


def retraining_time(here: Here) -> None:
    """Steps of a retraining of DARTS_V2 with all that the paper's has."""
    jobs = built(here, _retraining_makers(here))
    report(here, jobs, time_in_turns(here, jobs))


def imagenet_time(here: Here) -> None:
    """Steps of the ImageNet shape on images of 224×224 that are on the device."""
    options = {
        "network": "imagenet", "channels": 48, "cells": 14, "batch_size": 128, "cutout_length": 0, "size": 224,
        "num_classes": 1000, "drop_path_prob": 0.0, "label_smoothing": 0.1,
    }  # fmt: skip
    jobs = built(here, _retraining_makers(here, **options))
    report(here, jobs, time_in_turns(here, jobs))


def detection_time(here: Here) -> None:
    """Forward and backward pass of SSDLite-320 with loss and SGD, on matched boxes of noise."""
    from darts_sg.networks.build import NetworkPlan
    from darts_sg.networks.mobile import find_model
    from darts_sg.networks.ssdlite import SSDLite, prior_boxes
    from darts_sg.tasks.detection import Detection, MatchedObjects
    from darts_sg.tasks.matching import Matched

    size, batch = (96, 2) if here.tiny else (320, 24)
    task = Detection({"detector": "authors"})
    torch.manual_seed(0)
    network = SSDLite(
        NetworkPlan(trained=find_model("mobilenext_1.0"), shape="imagenet"), num_classes=20, style="authors",
        image_size=size, in_channels=3,
    )  # fmt: skip
    network = network.to(here.device, memory_format=torch.channels_last)
    priors = len(prior_boxes("authors", size))
    generator = torch.Generator().manual_seed(0)
    labels = (torch.rand(batch, priors, generator=generator) < 0.01).long() * 3
    matched = Matched(labels.to(here.device), torch.zeros(batch, priors, 4, device=here.device))
    targets = MatchedObjects([None] * batch, matched, int(labels.sum()) // 3)  # type: ignore[list-item]
    x = torch.randn(batch, 3, size, size, generator=generator).to(here.device, memory_format=torch.channels_last)
    weights = [p for p in network.parameters() if p.requires_grad]
    optimizer = weight_optimizer(weights, AugmentConfig(genotype="DARTS_V2", data=Path()), here.device)
    for precision in ("float32", "bfloat16"):

        def step(precision: str = precision) -> dict[str, Tensor]:
            with torch.autocast(here.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
                loss = task.loss(network(x)[0], targets)
            apply_weight_step(optimizer, weights, loss, 5.0)
            return {"loss": loss}

        ways: dict[str, Callable[[], object]] = {"eager": step}
        if here.on_gpu:
            captured = Captured(step)
            ways["captured"] = lambda captured=captured: captured(None)  # type: ignore[misc]
        for how, run in ways.items():
            for _ in range(WARM_UP + 1 if here.on_gpu else 1):
                run()
            here.wait()
            found = []
            for _ in range(ROUNDS):
                steps = 1 if here.tiny else STEPS
                begun = time.perf_counter()
                for _ in range(steps):
                    run()
                here.wait()
                found.append((time.perf_counter() - begun) / steps)
            middle = statistics.median(found)
            here.add(
                f"{precision}, {how}",
                middle,
                "s",
                spread=(min(found), max(found)),
                remark=f"{batch / middle:,.0f} images/s",
            )


def resume(here: Here) -> None:
    """A search of two epochs whole, and one whose state is loaded into a new job after 5 steps."""
    whole = search_job(here, batches=5)
    for epoch in range(2):
        take(whole, 5, epoch)
    first = search_job(here, batches=5)
    take(first, 5, 0)
    saved = io.BytesIO()
    torch.save(first.state_dict(), saved)
    saved.seek(0)
    second = search_job(here, batches=5)
    second.load_state_dict(torch.load(saved, weights_only=False, map_location="cpu"))
    take(second, 5, 1)
    here.wait()
    differ = different(states(whole), states(second))
    remark = f"{len(differ)} tensors differ, such as {', '.join(differ[:3])}" if differ else ""
    here.add("whole and resumed after 5 steps", passed=not differ, limit="equal bits", remark=remark)


def variance(here: Here) -> None:
    """Running variances of the Triton kernels at large means, against float64."""
    from darts_sg.backends import ir
    from darts_sg.backends.triton import run as gpu

    pool = torch.nn.AvgPool2d(3, 1, padding=1, count_include_pad=False)
    images = torch.randn(64, 16, 32, 32, generator=torch.Generator().manual_seed(0)).to(here.device)
    for ratio, limit in ((100, 1e-5), (1000, 1e-4)):
        norm = torch.nn.BatchNorm2d(16, affine=False, momentum=1.0).to(here.device)
        x = (images + ratio * pool(images).std()).contiguous(memory_format=torch.channels_last)
        stage = ir.pool_of([pool, norm])
        assert stage is not None
        gpu.run(x, torch.ones(1, 1, device=here.device), ir.FusedOps(1, 1, [ir.FusedOp([stage])]))
        assert norm.running_var is not None
        exact = pool(x.double()).var(dim=(0, 2, 3))
        error = ((norm.running_var.double() - exact).abs() / exact).max().item()
        here.add(f"relative error at mean/deviation {ratio}", error, passed=error < limit, limit=f"below {limit:g}")


def pinning(here: Here) -> None:
    """Steps are captured while another thread pins growing blocks of memory."""
    stop, failures = threading.Event(), []

    def pin() -> None:
        size = 1024
        while not stop.is_set():
            try:
                torch.empty(size, dtype=torch.uint8, pin_memory=True)
            except RuntimeError as error:
                failures.append(str(error))
                return
            size = size * 2 if size < 2**26 else 1024

    thread = threading.Thread(target=pin)
    thread.start()
    try:
        job = search_job(here, batches=5)
        take(job, 5)
        here.wait()
    finally:
        stop.set()
        thread.join()
    here.add("capture beside a pinning thread", passed=not failures, limit="no error", remark=" ".join(failures)[:200])


def profile(here: Here) -> None:
    """Kernels of one replay by time, the GPU's busy time and the gaps."""
    job = search_job(here)
    warm(here, job)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as traced:
        take(job, 1, 1)
        here.wait()
    events = [event for event in traced.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    by_name: dict[str, list[float]] = {}
    for event in events:
        by_name.setdefault(event.name, []).append(event.time_range.elapsed_us())
    total = sum(map(sum, by_name.values()))
    begin, end = (
        pick(edge)
        for pick, edge in ((min, [e.time_range.start for e in events]), (max, [e.time_range.end for e in events]))
    )
    here.add("kernels of a step", len(events), "launches")
    here.add("busy", total / 1e3, "ms")
    here.add(
        "from the first to the last", (end - begin) / 1e3, "ms", remark=f"gaps {(end - begin - total) / 1e3:.1f} ms"
    )
    for name, found in sorted(by_name.items(), key=lambda item: -sum(item[1]))[:20]:
        here.add(
            name[:80], sum(found) / 1e3, "ms", remark=f"{len(found)} launches, {statistics.mean(found):.1f} µs each"
        )


def _first_order_with(here: Here, settings: Mapping[str, Mapping[str, Any]], **options: Any) -> None:
    """Time the first-order step under settings of the Triton backend, in turns: {title: {name: value}}."""
    from darts_sg.backends.triton import run as gpu

    jobs: dict[str, Job] = {}
    for title, values in settings.items():
        with contextlib.ExitStack() as patches:
            for name, value in values.items():
                patches.enter_context(patch.object(gpu, name, value))
            jobs |= built(here, {title: lambda: search_job(here, **options)})
    report(here, jobs, time_in_turns(here, jobs))


def levers(here: Here) -> None:
    """Each lever of the Triton kernels on its own, then all of them, in float32 and in bfloat16."""
    from darts_sg.backends.triton.levers import Levers

    for precision, names in (
        ("float32", ["", "flat", "branches", "parts", "tf32x3", "flat,branches,parts", "flat,branches,parts,tf32x3"]),
        ("bfloat16", ["", "bf16", "flat,branches,parts,bf16"]),
    ):
        settings = {f"{precision}, {name or 'no lever'}": {"LEVERS": Levers.named(name)} for name in names}
        _first_order_with(here, settings, precision=precision)


def programs(here: Here) -> None:
    """PROGRAMS and TILE of the Triton backend."""
    pairs = [(512, 512), (256, 512), (1024, 512), (512, 1024)]
    _first_order_with(here, {f"PROGRAMS {p}, TILE {t}": {"PROGRAMS": p, "TILE": t} for p, t in pairs})


def memory(here: Here) -> None:
    """The largest batch whose step fits, by doubling."""
    total = torch.cuda.get_device_properties(here.device).total_memory
    for recompute in (False, True):
        size, fits = 128, 0
        while size <= 8192:
            try:
                environment.return_freed_memory()
                torch.cuda.reset_peak_memory_stats(here.device)
                own = search_job(here, batches=1, batch_size=size, recompute=recompute)
                warm(here, own, 0)
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                break
            fits = size
            peak = torch.cuda.max_memory_reserved(here.device)
            here.add(
                f"batch {size}{', recomputed' if recompute else ''}: memory reserved", peak / 2**20, "MiB",
                remark=f"{peak / total:.0%} of the GPU",
            )  # fmt: skip
            del own
            size *= 2
        here.add(f"largest batch{', recomputed' if recompute else ''}, in powers of 2", fits, "images")


def _rank(rank: int, size: int, folder: str, device: str, tiny: bool, backend: str, capture: bool) -> None:
    """One of several processes: a few steps of a search and of a retraining; leaves what it came to in a file."""
    own = torch.device(device if backend == "gloo" or device == "cpu" else f"cuda:{rank}")
    environment.prepare_device(own, max(1, (os.cpu_count() or 1) // size))
    dist.init_process_group(backend, init_method=f"file://{folder}/store", rank=rank, world_size=size)
    here = Here(own, tiny, Path(folder) / f"rows_{rank}")
    ranks = Ranks(rank, size, rank, size)
    found: dict[str, Any] = {}
    for name, make in (("search", search_job), ("retraining", augment_job)):
        torch.manual_seed(0)
        options = {"drop_path_prob": 0.0} if name == "retraining" else {}
        job = make(here, batches=3, ranks=ranks, capture=capture, **options)  # type: ignore[operator]
        take(job, 2 if tiny else 5)
        here.wait()
        found[name] = fingerprint(states(job))
        found[f"{name} captured"] = is_captured(job)
        found[f"{name} alphas or weights"] = [
            p.detach().cpu() for p in (job.alphas if name == "search" else job.weights)
        ]
    torch.save(found, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def _several(here: Here, backend: str, size: int, *, capture: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        arguments = (size, folder, str(here.device), here.tiny, backend, capture)
        torch.multiprocessing.spawn(_rank, arguments, nprocs=size)
        found = [torch.load(Path(folder) / f"{rank}.pt", weights_only=False) for rank in range(size)]
    for name in ("search", "retraining"):
        same = all(one[name] == found[0][name] for one in found)
        how = "captured" if found[0][f"{name} captured"] else "eager"
        here.add(f"{name}: all {size} processes have the same state", passed=same, limit="equal bits", remark=how)


def two_ranks(here: Here) -> None:
    """Two processes share the device; Gloo copies their gradients through the CPU."""
    _several(here, "gloo", 2, capture=False)


def ranks_nccl(here: Here) -> None:
    """Captured steps with NCCL's collectives, a GPU for each process."""
    if torch.cuda.device_count() < 2:
        skip("needs two GPUs: NCCL allows one process on each")
    _several(here, "nccl", 2, capture=True)


def _pytest(here: Here, *arguments: str) -> None:
    """Run tests of the repository, and count those that passed."""
    try:
        import pytest  # noqa: F401
    except ModuleNotFoundError:
        skip("pytest is not installed")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *arguments],
        capture_output=True,
        text=True,
    )
    print(done.stdout, done.stderr)
    lines = done.stdout.strip().splitlines()
    here.add(" ".join(arguments), lines[-1] if lines else "", passed=done.returncode == 0, limit="all pass")


def graph_tests(here: Here) -> None:
    _pytest(here, "tests/engine/test_graphs.py")


def kernel_tests(here: Here) -> None:
    _pytest(here, "tests/backends/test_gpu.py")


def main() -> None:
    """Run one part."""
    options = argparse.ArgumentParser(prog="python -m benchmarks.bare", description=__doc__)
    options.add_argument("part")
    options.add_argument("--device", default="cuda")
    options.add_argument("--tiny", action="store_true")
    options.add_argument("--rows", type=Path, required=True)
    arguments = options.parse_args()
    device = environment.choose_device(arguments.device)
    environment.prepare_device(device, 1 if arguments.tiny else None)
    part: Callable[[Here], None] = globals()[arguments.part.replace("-", "_")]
    # `start` has compared the kernels with PyTorch in float64; here every job would again, for many seconds
    keeps = arguments.part in ("start", "start-bfloat16", "levers")
    with contextlib.nullcontext() if keeps else patch.object(kernels, "check_kernels"):
        part(Here(device, arguments.tiny, arguments.rows))


if __name__ == "__main__":
    main()
