"""python -m benchmarks.machine_code: machine code of the Triton kernels of a search step, without a GPU.

Triton can compile for a GPU that is not there. The machine code tells how many registers a kernel needs, what it spills
and, with the trip counts of its loops, how many instructions all warps of all launches issue. It does not tell the
time.
"""

import argparse
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from math import prod
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
import triton
from rich.table import Table
from triton.backends.compiler import GPUTarget

from benchmarks.subjects import LAST, Shape
from darts_sg.backends import accelerate
from darts_sg.backends.cpp import build
from darts_sg.backends.triton import run as gpu
from darts_sg.backends.triton.levers import Levers
from darts_sg.cli.terminal import answer, console
from darts_sg.engine.graphs import compile_step
from darts_sg.errors import RunError, UsageError
from darts_sg.methods.mixing import softmax

PROG = "python -m benchmarks.machine_code"
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
Values = dict[str, Any]
TRIPS: dict[str, Callable[[Values], Sequence[int]]] = {  # trip counts of each kernel's loops, outermost first
    "stage_forward": lambda of: (of["rounds"], of["K"]),
    "stage_backward": lambda of: (of["rounds"], of["K"]),
    "taps_backward": lambda of: (of["rounds"],),
    "depthwise_backward": lambda of: (of["rounds"], of["T"] * of["K"]),
    "mix_forward": lambda of: (),
    "mix_backward": lambda of: (of["rounds"],),
    "identity_backward": lambda of: (of["T"],),
    "statistics": lambda of: (triton.cdiv(of["G"], of["R"]),),
}


class Absent:
    """A stand-in for Triton's driver that compiles for a GPU of this compute capability (90: 9.0)."""

    def __init__(self, capability: int) -> None:
        self.target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


class Code(NamedTuple):
    """Machine code of a kernel: instructions by loop depth, registers of a thread, spilled bytes, warps.

    A loop is the code that a backward branch spans.
    """

    instructions: Mapping[int, int]
    registers: int
    spilled: int
    warps: int

    @classmethod
    def of(cls, compiled: Any) -> "Code":
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(compiled.asm["cubin"])
            file.flush()
            command = [str(TOOLS / "cuobjdump"), "-sass", "-res-usage", file.name]
            done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RunError(
                f"Triton {triton.__version__} compiles for this GPU, but cannot read its code: {done.stderr.strip()}"
            )
        usage = {name: int(number) for name, number in re.findall(r"(REG|STACK|LOCAL):(\d+)", done.stdout)}
        lines = re.findall(r"^\s+/\*([0-9a-f]{4,})\*/\s+(.*?);", done.stdout, re.MULTILINE)
        branches = ((int(address, 16), re.search(r"\bBRA\b.*?(0x[0-9a-f]+)", line)) for address, line in lines)
        jumps = [(int(found[1], 16), address) for address, found in branches if found]
        loops = [range(begin, end + 1) for begin, end in jumps if begin < end]
        depths = Counter(sum(int(address, 16) in loop for loop in loops) for address, _ in lines)
        return cls(depths, usage["REG"], usage["STACK"] + usage["LOCAL"], compiled.metadata.num_warps)

    def issued(self, trips: Sequence[int]) -> int:
        """Instructions of a warp; loops deeper than `trips` count once."""
        return sum(number * prod(trips[:depth]) for depth, number in self.instructions.items())


class Launched(NamedTuple):
    name: str
    variant: tuple[Any, ...]
    programs: int
    values: Values


@contextmanager
def triton_kernels_on_any_device() -> Iterator[None]:
    """The Triton backend launches its kernels on any device."""
    with patch.object(gpu, "takes", lambda x: True):
        yield


def compiled(prepare: Callable[[], None], capability: int) -> tuple[list[Launched], dict[tuple[Any, ...], Code]]:
    """All launches whose kernels `prepare` compiles in advance (`gpu.compile_ahead`), with their machine code."""
    launched: list[Launched] = []
    codes: dict[tuple[Any, ...], Code] = {}
    launch, warmup = gpu.launch, triton.JITFunction.warmup

    def record(kernel: Any, grid: tuple[int, ...], *arguments: Any, **sizes: Any) -> None:
        values = dict(zip(kernel.arg_names, arguments, strict=False)) | sizes
        launched.append(Launched(kernel.__name__, gpu.variant(kernel, arguments, sizes), prod(grid), values))
        launch(kernel, grid, *arguments, **sizes)

    def compile_one(kernel: Any, *arguments: Any, grid: tuple[int, ...], **sizes: Any) -> None:
        codes[gpu.variant(kernel, arguments, sizes)] = Code.of(warmup(kernel, *arguments, grid=grid, **sizes))

    triton.runtime.driver.set_active(Absent(capability))
    with (
        triton_kernels_on_any_device(),
        patch.object(torch.cuda, "set_device", lambda device: None),
        patch.object(gpu, "launch", record),
        patch.object(triton.JITFunction, "warmup", compile_one),
    ):
        prepare()
    return launched, codes


def prepare_step(shape: Shape) -> None:
    """Compile the kernels of the two passes of a first-order step."""
    net = shape.supernet(native=False)
    accelerate(net, "triton")
    compile_step(net, softmax, shape.images()[0].contiguous(memory_format=LAST), nullcontext())


def table_of(launched: Sequence[Launched], codes: dict[tuple[Any, ...], Code], title: str) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    table.add_column("kernel")
    for column in ("launches", "compiled", "registers, up to", "bytes spilled, up to", "instructions of warps, 10⁶"):
        table.add_column(column, justify="right")
    for name in (*TRIPS, None):
        mine = [one for one in launched if name in (None, one.name)]
        found = [codes[known] for known in {one.variant for one in mine}]
        if not found:
            continue
        issued = sum(
            codes[one.variant].issued(TRIPS[one.name](one.values)) * codes[one.variant].warps * one.programs
            for one in mine
        )
        registers, spilled = max(code.registers for code in found), max(code.spilled for code in found)
        numbers = len(mine), len(found), registers, spilled, f"{issued / 1e6:.1f}"
        table.add_row(name or "all", *(str(number) for number in numbers))
    return table


def main() -> None:
    parser = argparse.ArgumentParser(prog=PROG, description=__doc__)
    defaults = Shape(batch=64)
    parser.add_argument("--space", default=defaults.space)
    for name in ("batch", "channels", "cells", "size"):
        parser.add_argument(f"--{name}", type=int, default=getattr(defaults, name))
    parser.add_argument("--capability", type=int, default=90, help="of the GPU: 80 an A100, 90 an H100 (default: 90)")
    parser.add_argument("--levers", default="", help="levers of the Triton backend, such as flat,tf32x3")
    arguments = parser.parse_args()
    gpu.LEVERS = Levers.named(arguments.levers)
    if missing := build.triton_missing(divmod(arguments.capability, 10)):
        raise UsageError(missing)
    shape = Shape(arguments.space, arguments.batch, arguments.channels, arguments.cells, arguments.size)
    target = f"compute capability {arguments.capability}, Triton {triton.__version__}"
    levers = f", levers {arguments.levers}" if arguments.levers else ""
    title = f"First-order step of {shape.space}, batch {shape.batch}{levers}; {target}"
    console().print(table_of(*compiled(lambda: prepare_step(shape), arguments.capability), title))


if __name__ == "__main__":
    answer(main, PROG)
