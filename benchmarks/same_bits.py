"""Do two checkouts compute the same bits? Ten short runs in each, compared value by value.

    python -m benchmarks.same_bits OLD_CHECKOUT NEW_CHECKOUT [--keep DIR]

Run it before and after a change that must not alter results: a refactoring, a new backend, another order of the same
sums. The runs cover a search of each method, a resumed run, a retraining with either backend, a mobile network, an
evaluation and an export, on rendered images, in about five minutes on two CPU cores. A run's genotypes, mixing weights,
metrics, supernet weights, trained weights and exported logits must be equal; times, paths and versions may differ.
Exits with 1 at a difference.

Bits are compared on one machine only: another processor, thread count or PyTorch may round differently.
"""

import argparse
import csv
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import yaml
from safetensors import safe_open

SMALL_SEARCH = (
    "search --dataset synthetic --channels 8 --cells 4 --nodes 3 --epochs 2 --batch-size 16 --train-images 64 "
    "--validation-images 64 --space darts+sandglass"
)
SMALL_TRAINING = "augment --dataset synthetic --epochs 2 --batch-size 16 --train-images 96 --ema 0.9"
CELLS = "--genotype DARTS_V2 --channels 8 --cells 5"
TIMES = {"seconds", "images_per_second"}


class Case(NamedTuple):
    """One of the ten runs: its commands in order, `{run}` being its folder and `{runs}` the folder of all runs."""

    name: str
    commands: tuple[str, ...]


CASES = (
    Case("first-order", (f"{SMALL_SEARCH} --kernels native --run-dir {{run}}",)),
    Case("first-order-pytorch", (f"{SMALL_SEARCH} --kernels pytorch --run-dir {{run}}",)),
    Case("second-order", (f"{SMALL_SEARCH} --recipe darts-second --kernels native --run-dir {{run}}",)),
    Case(
        "pc-darts",
        (
            f"{SMALL_SEARCH} --recipe pc-darts --partial-channels 4 --alpha-frozen-epochs 1 --kernels native "
            "--run-dir {run}",
        ),
    ),
    Case(
        "bounded-recomputed",
        (f"{SMALL_SEARCH} --penalty params:0.1 --target-params 3M --recompute --kernels native --run-dir {{run}}",),
    ),
    Case(
        "early-stopping-resumed",
        (
            f"{SMALL_SEARCH} --eigenvalue-every 1 --stop-skips 1 --kernels native --time-budget 0.01 --run-dir {{run}}",
            "search --resume {run}",
        ),
    ),
    Case("retraining", (f"{SMALL_TRAINING} {CELLS} --drop-path-prob 0.2 --kernels native --run-dir {{run}}",)),
    Case("retraining-pytorch", (f"{SMALL_TRAINING} {CELLS} --drop-path-prob 0.2 --kernels pytorch --run-dir {{run}}",)),
    Case("mobilenext", (f"{SMALL_TRAINING} --model mobilenext_0.35 --run-dir {{run}}",)),
    Case(
        "evaluate-export",
        (
            "augment --evaluate {runs}/retraining/weights.safetensors",
            "export {runs}/retraining/weights.safetensors --format onnx -o {run}/model.onnx",
            "export {runs}/retraining/weights.safetensors --format torch -o {run}/model.pt2",
        ),
    ),
)


def run_case(case: Case, checkout: Path, runs: Path) -> str:
    """Run the commands of a case in a checkout; returns the lines of their output that speak of errors in percent."""
    folder, said = runs / case.name, []
    for command in case.commands:
        if "{run}/" in command:
            folder.mkdir(exist_ok=True)
        words = command.format(run=folder, runs=runs).split()
        done = subprocess.run(
            [sys.executable, "-m", "darts_sg", *words],
            cwd=checkout,
            env={**os.environ, "PYTHONPATH": str(checkout)},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            last = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()[-1]
            raise SystemExit(f"same_bits: {checkout}: {' '.join(words)} ended with {done.returncode}: {last}")
        said += [line for line in done.stdout.splitlines() if line.startswith(("test error", "top-5 error", "loss"))]
    return "\n".join(said)


def read_cells(path: Path) -> Any:
    """The cells of a genotype file, without its provenance."""
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    return {key: value for key, value in content.items() if key != "provenance"}


def read_rows(path: Path) -> Any:
    """metrics.csv without the columns that measure time."""
    with path.open(encoding="utf-8", newline="") as file:
        return [{key: value for key, value in row.items() if key not in TIMES} for row in csv.DictReader(file)]


def read_arrays(path: Path) -> Any:
    """Digests of the arrays of an .npz, by name."""
    with np.load(path) as file:
        return {name: hashlib.sha256(file[name].tobytes()).hexdigest() for name in file.files}


def read_weights(path: Path) -> Any:
    """Digests of the tensors of a weights file, by name."""
    with safe_open(path, "pt") as file:
        return {name: digest(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118 (no mapping)


def read_checkpoint(path: Path) -> Any:
    """One digest of all weights, statistics and alphas of a supernet: their distinct values, sorted.

    A checkout may store the weights of edges one by one or stacked, in any order, and statistics that edges share once
    or for each edge; the distinct values are the same.
    """
    state = torch.load(path, weights_only=True, map_location="cpu")["state"]["supernet"]
    values = [t.flatten() for t in state.values() if t.is_floating_point() and t.numel() and not t.isnan().any()]
    return digest(torch.cat(values).unique())


def read_logits(path: Path) -> Any:
    """The logits of an exported model on fixed noise."""
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    if path.suffix == ".onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
        return digest(torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0]))
    return digest(torch.export.load(path).module()(images))


def digest(tensor: torch.Tensor) -> str:
    return hashlib.sha256(tensor.detach().contiguous().numpy().tobytes()).hexdigest()


def read_result(path: Path) -> Any:
    """result.json without times and versions."""
    content = json.loads(path.read_text(encoding="utf-8"))
    return {key: value for key, value in content.items() if key not in TIMES | {"code"}}


READERS: dict[str, Callable[[Path], Any]] = {
    "genotype.yaml": read_cells,
    "genotypes/*.yaml": read_cells,
    "alphas/*.npz": read_arrays,
    "metrics.csv": read_rows,
    "result.json": read_result,
    "weights*.safetensors": read_weights,
    "model.*": read_logits,
}


def compared(run: Path) -> Iterator[tuple[str, Any]]:
    """The content of a run folder that must be equal, file by file."""
    for pattern, read in READERS.items():
        for path in sorted(run.glob(pattern)):
            yield str(path.relative_to(run)), read(path)
    checkpoints = sorted(run.glob("checkpoints/*.pt"))
    if checkpoints and list(run.glob("alphas/*.npz")):
        yield "the newest checkpoint", read_checkpoint(checkpoints[-1])


def differences(old: Path, new: Path) -> tuple[int, list[str]]:
    """The number of files compared, and the differences. Files that only the new run holds do not count."""
    before, after = dict(compared(old)), dict(compared(new))
    found = []
    for name, value in before.items():
        if name not in after:
            found.append(f"{name} is missing")
        elif isinstance(value, dict):
            found += [f"{name}: {key}" for key in value if after[name].get(key) != value[key]]
        elif isinstance(value, list):
            pairs = zip(value, after[name], strict=False)
            rows = len(value) != len(after[name]) or any(
                {key: theirs.get(key) for key in ours} != ours for ours, theirs in pairs
            )
            found += [name] if rows else []
        elif value != after[name]:
            found.append(name)
    return len(before), found


def main() -> None:
    parser = argparse.ArgumentParser(description="Do two checkouts compute the same bits?")
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--keep", type=Path, help="folder for the runs (default: a temporary one)")
    parser.add_argument("--only", nargs="+", choices=[case.name for case in CASES], help="these cases (default: all)")
    arguments = parser.parse_args()
    for checkout in (arguments.old, arguments.new):
        if not (checkout / "darts_sg").is_dir():
            parser.error(f"{checkout} is no checkout: it has no folder darts_sg")
    broken = 0
    with tempfile.TemporaryDirectory() as temporary:
        place = arguments.keep or Path(temporary)
        for case in CASES:
            if arguments.only and case.name not in arguments.only:
                continue
            said = []
            for side, checkout in (("old", arguments.old), ("new", arguments.new)):
                (place / side).mkdir(parents=True, exist_ok=True)
                said.append(run_case(case, checkout.resolve(), (place / side).resolve()))
            count, found = differences(place / "old" / case.name, place / "new" / case.name)
            if said[0] != said[1]:
                found.append("the printed errors")
            broken += bool(found)
            print(
                f"{case.name}: {count} files, " + (f"DIFFERENT: {'; '.join(found)}" if found else "equal"), flush=True
            )
    sys.exit(1 if broken else 0)


if __name__ == "__main__":
    main()
