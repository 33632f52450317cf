"""Memory of a step: what it needs, whether it fits, and the way out where it does not."""

import math
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch

from darts_sg.config import RunConfig
from darts_sg.data.memory import available_memory
from darts_sg.engine import environment
from darts_sg.engine.distributed import Ranks
from darts_sg.engine.loop import Job
from darts_sg.errors import RunError

SURELY_FITS = 2**18
"""Pixels of a batch that are not worth a trial: 256 images of CIFAR's size."""
TRIAL_IMAGES, TRIAL_SIDE = 2, 64
PIXELS_TOGETHER = 8  # a suggested image size is a multiple of it


def too_large(job: Job, config: RunConfig, image_size: int, ranks: Ranks, device: torch.device) -> str:
    """One line, if a step surely needs more memory than is available, before it is tried; else empty.

    Linux ends a process that takes more memory than there is without a word, so that a CPU run cannot wait for an
    error. Memory grows with the pixels of a batch: a step with few pixels tells what one with many needs. Nothing is
    tried if the batch is small, or where the system does not say what is available or in use.
    """
    here = ranks.local_size / ranks.size  # of the batch, on this machine
    pixels = config.batch_size * image_size**2 * here
    available = available_memory()
    if device.type != "cpu" or pixels / ranks.local_size <= SURELY_FITS or available is None:
        return ""
    recompute = getattr(config, "recompute", None)
    per_pixel, stage = _largest(job, recompute=bool(recompute))
    if per_pixel is None or per_pixel * pixels <= available:
        return ""
    room = available / per_pixel  # pixels
    ways = []
    if recompute is False and (less := _largest(job, recompute=True)[0]) and less * pixels <= available:
        ways.append("--recompute")
    if (images := int(room / image_size**2 / here)) >= TRIAL_IMAGES * ranks.size:
        ways.append(f"--batch-size {images}")
    side = int(math.sqrt(room / config.batch_size / here)) // PIXELS_TOGETHER * PIXELS_TOGETHER
    if image_size > TRIAL_SIDE and side >= 4 * PIXELS_TOGETHER:
        ways.append(f"--image-size {side}")
    where = f" in {stage}" if stage else ""
    return (
        f"a step of {config.batch_size} images of {image_size}×{image_size} pixels{where} needs about "
        f"{per_pixel * pixels / 1e9:.0f} GB of memory, and {available / 1e9:.0f} GB are available; what fits: "
        f"{', or '.join(ways) or 'fewer --channels or --cells'}"
    )


@runtime_checkable
class Staged(Protocol):
    """A job whose steps take another amount of memory from stage to stage."""

    def as_each_stage(self) -> Iterator[str]:
        """Put the job into each of its stages in turn, and yield the stage's name."""


def _largest(job: Job, *, recompute: bool) -> tuple[float | None, str]:
    """The largest `bytes_per_pixel` of all stages of a job, and the name of that stage."""
    stages = job.as_each_stage() if isinstance(job, Staged) else [""]
    found = [(bytes_per_pixel(job, recompute=recompute), stage) for stage in stages]
    return max(found, key=lambda one: -1 if one[0] is None else one[0])


def bytes_per_pixel(job: Job, *, recompute: bool) -> float | None:
    """Memory that a step takes for each pixel of its batch, measured with a small one; None where it cannot be."""
    with torch.random.fork_rng(devices=[]):
        job.attempt(TRIAL_IMAGES, recompute=recompute, side=TRIAL_SIDE // 2)  # compiles, fills caches
        environment.return_freed_memory()
        if (before := _peak_since_now()) is None:
            return None
        pixels = job.attempt(TRIAL_IMAGES, recompute=recompute, side=TRIAL_SIDE)
    return max(0, peak_memory(torch.device("cpu"), now=True) - before) / pixels


def _peak_since_now() -> int | None:
    """Start the peak of resident memory anew: bytes in use now; None where the system does not allow it."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return None
    return peak_memory(torch.device("cpu"), now=True)


def peak_memory(device: torch.device, *, now: bool = False) -> int:
    """Peak memory in bytes: the allocator's on a GPU, the resident set of this process on a CPU.

    now: the peak since it was started anew (Linux only).
    """
    if now:
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def out_of_memory(job: Job, config: RunConfig, command: str) -> RunError:
    """The error of a step that does not fit into memory, with the way out. command: starts the run, or resumes it."""
    fits = what_fits(job, config.batch_size, command, recompute=getattr(config, "recompute", None))
    return RunError(f"out of memory with --batch-size {config.batch_size}; {fits}")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed. On a CPU PyTorch raises a RuntimeError for that, known by its words only."""
    words_for_it = (
        "can't allocate memory", "not enough memory", "out of memory", "could not create a primitive",
        "can't start new thread",
    )  # fmt: skip
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(words in str(error) for words in words_for_it)


def what_fits(job: Job, batch_size: int, resume_command: str, *, recompute: bool | None) -> str:
    """The way out of a lack of memory, tried on this machine: the same batch with recomputation, else smaller batches.

    recompute: whether the run recomputes already; None if it cannot.
    """

    def fits(size: int, again: bool) -> bool:
        environment.return_freed_memory()
        try:
            job.attempt(size, recompute=again)
        except (MemoryError, RuntimeError, ValueError):  # close to the limit libraries fail in many ways
            return False
        return True

    if recompute is False and fits(batch_size, True):
        return f"with recomputation it fits, and gives the same bits: {resume_command} --recompute"

    def largest(least: int, again: bool) -> int:
        """The first of half the batch size, a quarter and so on that fits; `least` once they get that small."""
        size = batch_size // 2
        while size > least and not fits(size, again):
            size //= 2
        return max(size, least)

    size = largest(0, bool(recompute))
    more = largest(size, True) if recompute is False else size
    if more > size:
        without = f", {size} without it" if size else ""
        return f"{more} fits here with recomputation{without}: start a new run with --batch-size {more} --recompute"
    if not size:
        smaller = "" if batch_size < 4 else f"--batch-size {batch_size // 4} or "
        return f"what is left here is not enough for one image either; start again with {smaller}fewer --channels"
    return f"{size} fits here: start a new run with --batch-size {size}"


@contextmanager
def buffers_kept(network: torch.nn.Module) -> Iterator[None]:
    """A context that leaves running statistics and counters of a network as they were before it."""
    kept = {name: buffer.clone() for name, buffer in network.named_buffers()}
    try:
        yield
    finally:
        with torch.no_grad():
            for name, buffer in network.named_buffers():
                buffer.copy_(kept[name])
