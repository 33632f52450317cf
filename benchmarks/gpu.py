"""benchmarks/gpu.sh MINUTES: what only a GPU can show, the most valuable first, within the minutes given.

Each part is a process of its own with its own limit, so that a part that fails, hangs or is cut off takes nothing with
it. After each part OUT/gpu.json and OUT/gpu.md hold all results so far, and OUT/PART.txt what the part printed.

    benchmarks/gpu.sh 12                               # all that fits into 12 minutes
    benchmarks/gpu.sh 4 --only start,bits              # these parts
    benchmarks/gpu.sh 5 --device cpu --tiny            # a rehearsal: what a CPU can do, at small sizes

A bare machine with Python, PyTorch and Triton is enough, with numpy. Packages it lacks come from the folder --packages
(pure Python: rich, PyYAML, docstring-parser); those that only draw or store (`benchmarks/bare.py`) are not needed.
"""

import argparse
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
LEAST_SECONDS = 5
"""A part is not begun with less than this left."""


@dataclass(frozen=True)
class Part:
    """A part: its function in benchmarks/gpu_parts.py has its name, with _ for -."""

    name: str
    title: str
    seconds: int
    """Its limit."""
    needs_gpu: bool = False


PARTS = (
    Part("machine", "versions, compiler, Python.h", 30),
    Part("start", "a search begins: kernels compile and pass the check, float32", 150),
    Part("bits", "captured search steps have the bits of eager ones", 120),
    Part("retraining-bits", "captured retraining steps have the bits of eager ones", 60),
    Part("search-time", "search steps, in turns", 120),
    Part("retraining-time", "retraining steps of DARTS_V2, batch 96, in turns", 100),
    Part("levers", "first-order step with each change of the Triton kernels, in turns", 150, needs_gpu=True),
    Part("resume", "a search that is stopped after its steps were captured goes on to the same bits", 60),
    Part("start-bfloat16", "a search begins: kernels compile and pass the check, bfloat16", 90),
    Part("variance", "variances at mean/deviation 100 and 1,000", 30, needs_gpu=True),
    Part("pinning", "capture while another thread pins memory", 30, needs_gpu=True),
    Part("profile", "one replay of a search step by kernel", 60, needs_gpu=True),
    Part("programs", "first-order step by PROGRAMS and TILE", 90, needs_gpu=True),
    Part("imagenet-time", "retraining steps of the ImageNet shape, C=48, 14 cells, batch 128", 80),
    Part("detection-time", "steps of SSDLite-320, batch 24", 60),
    Part("two-ranks", "two processes on one device, by Gloo", 90),
    Part("ranks-nccl", "a captured step of several processes, by NCCL", 90, needs_gpu=True),
    Part("memory", "the largest batch of a search", 60, needs_gpu=True),
    Part("graph-tests", "tests/engine/test_graphs.py", 90, needs_gpu=True),
    Part("kernel-tests", "tests/backends/test_gpu.py in float64", 300, needs_gpu=True),
)


@dataclass
class Result:
    """The outcome of a part."""

    name: str
    title: str
    status: str
    """passed, failed, skipped, timeout, or needs a GPU."""
    seconds: float = 0.0
    rows: list[dict[str, Any]] = field(default_factory=list)
    """Figures and checks, written by `gpu_parts.Row`."""
    note: str = ""


def parser() -> argparse.ArgumentParser:
    """The options of the command."""
    options = argparse.ArgumentParser(
        prog="benchmarks/gpu.sh", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("minutes", type=float, help="time for all parts together")
    options.add_argument("--device", default="cuda", help="cuda, cuda:1, or cpu for a rehearsal (default: cuda)")
    options.add_argument("--tiny", action="store_true", help="small sizes: a rehearsal, whose figures mean nothing")
    options.add_argument("--only", default="", metavar="PARTS", help="only these parts, separated by commas")
    options.add_argument("--skip", default="", metavar="PARTS", help="without these parts, separated by commas")
    options.add_argument("--list", action="store_true", help="print the parts and their limits")
    options.add_argument(
        "--out", type=Path, default=Path(os.environ.get("OUT") or "results/speed/gpu"), metavar="DIR",
        help="folder of the results (default: $OUT, or results/speed/gpu)",
    )  # fmt: skip
    options.add_argument(
        "--packages", type=Path, default=os.environ.get("PACKAGES") or None, metavar="DIR",
        help="folder of packages that this machine lacks (default: $PACKAGES)",
    )  # fmt: skip
    options.add_argument(
        "--cache", type=Path, default=Path(tempfile.gettempdir()) / "darts_sg_gpu", metavar="DIR",
        help="folder of compiled kernels, outside that of the results (default: %(default)s)",
    )  # fmt: skip
    options.add_argument("--commit", default="", help="the code, where there is no git to tell")
    return options


def chosen(only: str, skip: str) -> list[Part]:
    """The parts that the options name; SystemExit with one line for a name that is none."""
    known = {part.name: part for part in PARTS}
    named = {option: [name for name in text.split(",") if name] for option, text in (("only", only), ("skip", skip))}
    for option, names in named.items():
        if unknown := [name for name in names if name not in known]:
            sys.exit(f"--{option} {unknown[0]}: no such part; there are: {', '.join(known)}")
    wanted = [known[name] for name in named["only"]] or list(PARTS)
    return [part for part in wanted if part.name not in named["skip"]]


def facts(arguments: argparse.Namespace) -> dict[str, Any]:
    """Where and on what the parts run, without importing PyTorch."""

    def version(package: str) -> str:
        try:
            return metadata.version(package)
        except metadata.PackageNotFoundError:
            return "not installed"

    return {
        "device": arguments.device,
        "gpu": _said(["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]),
        "python": platform.python_version(),
        "torch": version("torch"),
        "triton": version("triton"),
        "cores": os.cpu_count(),
        "commit": arguments.commit or _said(["git", "describe", "--always", "--dirty", "--abbrev=12"]) or "no git",
        "began": datetime.now(UTC).isoformat(timespec="seconds"),
        "sizes": "tiny: a rehearsal, whose figures mean nothing" if arguments.tiny else "full",
    }


def _said(command: Sequence[str]) -> str:
    """The output of a command; empty if it fails."""
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def environment_of(arguments: argparse.Namespace) -> dict[str, str]:
    """The environment of a part: imports of this checkout first, then of the carried packages, and a place for
    compiled kernels."""
    paths = [str(ROOT), *([str(arguments.packages.resolve())] if arguments.packages else [])]
    if known := os.environ.get("PYTHONPATH"):
        paths.append(known)
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "TRITON_CACHE_DIR": str(arguments.cache.resolve() / "triton"),
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
        "PYTHONUNBUFFERED": "1",
    }


def command_of(part: Part, arguments: argparse.Namespace, rows: Path) -> list[str]:
    """The command that runs a part, which writes its rows to a file."""
    command = [sys.executable, "-m", "benchmarks.bare", part.name]
    return [*command, "--device", arguments.device, "--rows", str(rows), *(["--tiny"] if arguments.tiny else [])]


def run_part(part: Part, arguments: argparse.Namespace, seconds: float) -> Result:
    """Run a part in a process of its own for at most `seconds`."""
    result = Result(part.name, part.title, "passed")
    if part.needs_gpu and arguments.device == "cpu":
        result.status = "needs a GPU"
        return result
    rows, log = arguments.out / f".{part.name}.jsonl", arguments.out / f"{part.name}.txt"
    rows.unlink(missing_ok=True)
    command = command_of(part, arguments, rows)
    begun = time.monotonic()
    with log.open("w") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment_of(arguments), stdout=output, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
        try:
            code = process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            code = None
        except BaseException:
            _end(process)
            raise
        _end(process)  # and whatever the part has started
    result.seconds = round(time.monotonic() - begun, 1)
    if rows.is_file():
        result.rows = [json.loads(line) for line in rows.read_text().splitlines() if line.endswith("}")]
        rows.unlink()
    tail = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    if code is None:
        result.status, result.note = "timeout", f"cut off after {seconds:.0f} s"
    elif code == SKIPPED:
        result.status, result.note = "skipped", tail[-1] if tail else ""
    elif code:
        result.status, result.note = "failed", (tail[-1] if tail else f"ended with {code}")[:300]
    elif any(row["passed"] is False for row in result.rows):
        result.status = "failed"
    return result


SKIPPED = 77
"""Exit code of a part that cannot run here; its last line says why."""


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Kill the process and its children, whose session it leads."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def markdown(known: Mapping[str, Any], results: Sequence[Result]) -> str:
    """The results as a page in the form of results/speed."""
    lines = [
        f"{known['gpu'] or 'No NVIDIA GPU'}, device {known['device']}, PyTorch {known['torch']}, Triton "
        f"{known['triton']}, Python {known['python']}, {known['cores']} CPU cores, commit {known['commit']}, "
        f"{known['began']}; sizes: {known['sizes']}.",
        "",
        "| part | what | outcome | seconds |",
        "|---|---|---|---|",
        *(
            f"| {r.name} | {r.title} | {r.status}{f': {r.note}' if r.note else ''} | {r.seconds:g} |".replace("\n", " ")
            for r in results
        ),
        "",
        "| part | figure | value | range over rounds | required | met | remark |",
        "|---|---|---|---|---|---|---|",
    ]
    for result in results:
        for row in result.rows:
            met = {True: "yes", False: "no", None: ""}[row["passed"]]
            value = row["value"]
            shown = f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)
            spread = " to ".join(f"{end:.4g}" for end in row["spread"] or ())
            cells = (
                result.name,
                row["what"],
                f"{shown} {row['unit']}".strip(),
                spread,
                row["limit"],
                met,
                row["remark"],
            )
            lines.append("| " + " | ".join(str(cell).replace("|", "¦").replace("\n", " ") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def write(arguments: argparse.Namespace, known: Mapping[str, Any], results: Sequence[Result]) -> None:
    """Write gpu.json and gpu.md, each whole or not at all."""
    content = json.dumps({"machine": known, "parts": [asdict(result) for result in results]}, indent=1) + "\n"
    for name, text in (("gpu.json", content), ("gpu.md", markdown(known, results))):
        new = arguments.out / f".{name}.new"
        new.write_text(text)
        new.replace(arguments.out / name)


def main(given: Sequence[str] | None = None) -> list[Result]:
    """Run the parts that fit into the time, and return their results."""
    arguments = parser().parse_args(given)
    parts = chosen(arguments.only, arguments.skip)
    if arguments.list:
        for part in parts:
            print(f"{part.name:16} {part.seconds:4} s  {part.title}{' (needs a GPU)' if part.needs_gpu else ''}")
        return []
    if shutil.which("nvidia-smi") is None and arguments.device != "cpu":
        print("there is no nvidia-smi here: for a rehearsal give --device cpu --tiny", file=sys.stderr)
    arguments.out.mkdir(parents=True, exist_ok=True)
    arguments.out = arguments.out.resolve()
    deadline = time.monotonic() + 60 * arguments.minutes
    known, results = facts(arguments), []
    for part in parts:
        left = deadline - time.monotonic()
        if left < LEAST_SECONDS:
            results.append(Result(part.name, part.title, "skipped", note="no time left"))
        else:
            results.append(run_part(part, arguments, min(part.seconds, left)))
        result = results[-1]
        print(
            f"{part.name}: {result.status}{f' ({result.note})' if result.note else ''}, {result.seconds:g} s",
            flush=True,
        )
        write(arguments, known, results)
    print(f"written: {arguments.out / 'gpu.json'}, {arguments.out / 'gpu.md'}")
    return results


if __name__ == "__main__":
    main()
