"""Data-parallel training in several processes, started by torchrun on one machine or on many.

--batch-size is the batch over all ranks. Each rank computes its share of every batch: the same images, augmented as one
process alone would augment them. Gradients, losses and running statistics are averaged over the ranks, so that weights
and alphas are the same on all of them at any time. A BatchNorm's running mean is that of the whole batch; its running
variance lacks the variance between the shares. That and the order of sums are the only differences from one process.
"""

import hashlib
import os
import re
import signal
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous

from darts_sg import process
from darts_sg.data import keyed_generator
from darts_sg.errors import RunError, UsageError, quoted

T = TypeVar("T")


class RankLost(RunError):
    """Another process of the job has ended."""


@dataclass(frozen=True)
class Ranks:
    """The processes of a job, seen from one of them. A single process has no process group and exchanges nothing."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    """The rank among the processes on this machine."""
    local_size: int = 1

    @classmethod
    def from_environment(cls) -> "Ranks":
        """The ranks that torchrun has set up; a single process without torchrun.

        Raises UsageError if the variables of torchrun hold anything but numbers that fit together.
        """
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        if not os.environ.keys() >= {*names}:
            return cls()
        given = [os.environ[name] for name in names]
        if not all(text.isascii() and text.isdecimal() and len(text) < 10 for text in given):
            found = ", ".join(f"{name} is {quoted(text)}" for name, text in zip(names, given, strict=True))
            raise UsageError(f"expected numbers from torchrun, found: {found}; unset these variables")
        rank, size, local_rank, local_size = map(int, given)
        if not (rank < size and local_rank < local_size <= size):
            raise UsageError(
                f"RANK {rank} of WORLD_SIZE {size} and LOCAL_RANK {local_rank} of LOCAL_WORLD_SIZE {local_size} do not "
                "fit together; start the processes with torchrun, or unset these variables"
            )
        return cls(rank, size, local_rank, local_size)

    @staticmethod
    def may_restart() -> bool:
        """Whether torchrun restarts all processes, with the same command, when one is lost."""
        return int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", 0)) > 0

    @staticmethod
    def has_launcher() -> bool:
        """Whether torchrun, the parent of this process, waits for it."""
        return "TORCHELASTIC_RUN_ID" in os.environ

    @property
    def leads(self) -> bool:
        """Whether this is rank 0, which writes and prints for all."""
        return self.rank == 0

    @property
    def launcher(self) -> str:
        """The beginning of the command line that starts the processes."""
        if self.size == 1:
            return "python"
        return f"torchrun --nproc-per-node {self.local_size}" if self.local_size == self.size else "torchrun …"

    def device(self, chosen: torch.device) -> torch.device:
        """The device of this rank: each has a GPU of its own. UsageError if there are too few GPUs."""
        if self.size == 1 or chosen.type == "cpu":
            return chosen
        if chosen.type != "cuda" or chosen.index is not None:
            raise UsageError(f"{self.size} processes run on --device cpu, or cuda with a GPU each, not on {chosen}")
        num_gpus = torch.cuda.device_count()
        if self.local_rank >= num_gpus:
            raise UsageError(
                f"{self.local_size} processes on a machine with {num_gpus} GPUs: start torchrun with "
                f"--nproc-per-node {num_gpus}, or choose --device cpu"
            )
        return torch.device("cuda", self.local_rank)

    def join(self, device: torch.device) -> None:
        """Create the process group: NCCL for tensors on GPUs, Gloo for those on CPUs.

        From then on the end of torchrun, also by SIGKILL, is a SIGTERM for its ranks: they save and end.
        """
        if self.size == 1:
            return
        if self.has_launcher():
            process.end_with_parent()
        backend = "gloo"
        if device.type == "cuda":
            torch.cuda.set_device(device)
            backend = "cpu:gloo,cuda:nccl"
        with needing_all():
            store = next(rendezvous("env://"))[0]
            store = dist.PrefixStore(self._start_of_all(store), store)
            dist.init_process_group(backend, store=store, rank=self.rank, world_size=self.size)

    @contextmanager
    def one_by_machine(self) -> Iterator[None]:
        """Run the context on the first rank of each machine, then on the others, which find its files."""
        if self.size > 1 and self.local_rank:
            self.largest(0)
        yield
        if self.size > 1 and not self.local_rank:
            self.largest(0)

    # Not DistributedDataParallel: it averages in hooks that backward() calls on the parameters it wraps. Hypergradients
    # come from torch.autograd.grad, for weights and alphas and within the unrolled step, where these hooks do not run.
    def mean(self, tensors: Sequence[Tensor], num_images: int | Tensor) -> list[Tensor]:
        """Means over the images of all ranks, or over other terms, given the means over the `num_images` of this rank.

        One collective for all tensors. A single process gets the same tensors back.
        """
        if self.size == 1 or not tensors:
            return list(tensors)
        with torch.no_grad():
            # the appended 1 becomes the total number of images
            flat = torch.cat([*(t.flatten() for t in tensors), tensors[0].new_ones(1)]) * num_images
            with needing_all():
                dist.all_reduce(flat)
            total = flat[-1].clamp(min=1)  # no terms at all, such as positive priors: all means are 0
            parts = (flat[:-1] / total).split([t.numel() for t in tensors])
            return [torch.empty_like(t).copy_(part.view(t.shape)) for t, part in zip(tensors, parts, strict=True)]

    def means(self, num_images: int | Tensor, **tensors: Tensor) -> dict[str, Tensor]:
        """`mean` of scalars by name, detached from their graphs."""
        detached = [tensor.detach() for tensor in tensors.values()]
        return dict(zip(tensors, self.mean(detached, num_images), strict=True))

    def share_gradients(self, tensors: Sequence[Tensor], num_images: int) -> list[Tensor]:
        """The same tensors, whose gradients in a backward pass become the means over the images of all ranks."""
        return list(_SharedGradients.apply(self, num_images, *tensors))

    def average_statistics(self, model: torch.nn.Module, num_images: int) -> None:
        """Average the running statistics over the ranks, after a step of `num_images` on this one."""
        if self.size > 1:
            buffers = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
            for buffer, mean in zip(buffers, self.mean(buffers, num_images), strict=True):
                buffer.copy_(mean)

    def seed(self, seed: int, position: int) -> None:
        """Give each rank random numbers of its own for a step, such as drop path's. A single process goes on unchanged.

        They depend on the arguments only, so that a checkpoint need not hold the generators of all ranks.
        """
        if self.size > 1:
            torch.manual_seed(keyed_generator(seed, f"rank {self.rank}", "step", position).initial_seed())

    def sum(self, *values: float) -> list[float]:
        """The sums of the values over the ranks."""
        return self._reduced(values, torch.float64, dist.ReduceOp.SUM)

    def largest(self, *values: int) -> list[int]:
        """The maximum of each value over the ranks."""
        return self._reduced(values, torch.int64, dist.ReduceOp.MAX)

    def from_first(self, make: Callable[[], T]) -> T:
        """Call `make` on rank 0 only; returns its result on all ranks."""
        content = [make() if self.leads else None]
        if self.size > 1:
            with needing_all():
                dist.broadcast_object_list(content)
        found: Any = content[0]
        return found

    def gather(self, content: T) -> list[T]:
        """The content of every rank, in the order of the ranks, on all of them."""
        found = [content] * self.size
        if self.size > 1:
            with needing_all():
                dist.all_gather_object(found, content)
        return found

    def compare(self, content: Callable[[], Mapping[str, Any]], way_out: str) -> None:
        """RunError with the first entry that differs between the ranks, and the way out."""
        if self.size == 1:
            return
        found = self.gather(dict(content()))
        for name, value in found[0].items():
            for rank, other in enumerate(found):
                if other[name] != value:
                    raise RunError(
                        f"the processes disagree on {name}: {other[name]} in process {rank}, {value} in process 0; "
                        f"{way_out}"
                    )

    def speaks(self) -> bool:
        """Whether this rank is the first to ask: that one prints why the run ended, the others are silent."""
        if self.size == 1:
            return True
        try:  # the store of torchrun, which outlives the processes
            host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
            store = dist.TCPStore(host, port, is_master=False, timeout=timedelta(seconds=5))
            return store.add(f"darts_sg/ended/{os.environ.get('TORCHELASTIC_RESTART_COUNT')}", 1) == 1
        except (KeyError, RuntimeError):
            return True

    def _start_of_all(self, store: dist.Store) -> str:
        """A name for this start of the processes: the same on all ranks, and new after a restart.

        When torchrun restarts the processes it keeps its store, with the addresses of those that are gone (PyTorch
        issue 135712), and each machine counts restarts by itself. So every process asks under a name of its own, and
        rank 0 answers until all have received it.
        """
        own = uuid.uuid4().hex
        if not self.leads:
            store.set(f"ask/{self.rank}", own)
            name: str = store.get(f"answer/{own}").decode()
            store.add(f"heard/{name}", 1)
            return name
        while store.add(f"heard/{own}", 0) < self.size - 1:
            for key in (f"ask/{rank}" for rank in range(1, self.size)):
                if store.check([key]):
                    store.set(f"answer/{store.get(key).decode()}", own)
            time.sleep(0.01)
        return own

    def _reduced(self, values: Sequence[Any], dtype: torch.dtype, how: Any) -> list[Any]:
        if self.size == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=dtype)
        with needing_all():
            dist.all_reduce(tensor, how)
        return tensor.tolist()


ALONE = Ranks()


class _SharedGradients(torch.autograd.Function):
    """The identity; its backward pass averages the gradients of all its tensors in one collective."""

    @staticmethod
    def forward(ctx: Any, ranks: Ranks, num_images: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.ranks, ctx.num_images = ranks, num_images
        return tuple(tensor.view_as(tensor) for tensor in tensors)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        return None, None, *ctx.ranks.mean(gradients, ctx.num_images)


@contextmanager
def needing_all() -> Iterator[None]:
    """The context of a collective: RankLost if a rank is gone."""
    try:
        yield
    except RuntimeError as error:
        if threading.current_thread() is threading.main_thread():
            # torchrun now terminates the remaining ranks; ignore that until this one has said why
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        reason = re.sub(r"^\[.*?\] ", "", str(error)).split(". ")[0]  # without Gloo's file and line
        raise RankLost(f"another process of this job is gone ({reason})") from None


@contextmanager
def without_sync_batchnorm(network: nn.Module) -> Iterator[None]:
    """Within the context SyncBatchNorm normalises by the statistics of this rank alone, without collectives.

    For what one rank computes while the others do something else: its collectives would wait for them for ever.
    """
    layers = [layer for layer in network.modules() if isinstance(layer, nn.SyncBatchNorm)]
    for layer in layers:
        layer.forward = partial(nn.BatchNorm2d.forward, layer)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def leave() -> None:
    """Destroy the process group, if there is one, at the end of a run."""
    if dist.is_initialized():
        dist.destroy_process_group()


def end(code: int) -> NoReturn:
    """Exit with `code`. One of several ranks skips the clean-up of the interpreter and of C++.

    During that clean-up a running thread of Gloo can end the process with SIGABRT ("terminate called without an active
    exception"), and torchrun would take a finished run for a failed one.
    """
    if Ranks.from_environment().size == 1:
        sys.exit(code)
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # closed, or its reader is gone
            stream.flush()
    os._exit(code)


def fingerprint(state: Any) -> str:
    """16 hex digits of a SHA-256 over nested dicts and lists of tensors, with type and shape, and plain values."""
    digest = hashlib.sha256()

    def add(part: Any) -> None:
        if isinstance(part, Mapping):
            for key in part:
                digest.update(str(key).encode())
                add(part[key])
        elif isinstance(part, list | tuple):
            for item in part:
                add(item)
        elif isinstance(part, Tensor):
            digest.update(f"{part.dtype}{tuple(part.shape)}".encode())
            digest.update(part.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        else:
            digest.update(repr(part).encode())

    add(state)
    return digest.hexdigest()[:16]
