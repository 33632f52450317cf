"""Runs graphs in eval mode without gradients: nothing is kept for a backward pass, and hardly any Python runs.

The weights are packed for the kernels once, and again when one of them or of the running statistics has changed. Each
thread takes an image through all steps of a graph before the next one, so that what passes between the stages stays in
its cache, and no thread waits for others. With fewer images than threads, all threads share each stage.
"""

import ctypes
import weakref
from collections.abc import Hashable, Sequence
from operator import getitem, itemgetter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from darts_sg.backends.cpp.build import kernels
from darts_sg.backends.cpp.run import (
    MIX_FIELDS,
    STAGE_FIELDS,
    Layout,
    Planner,
    readable_inputs,
    running_statistics,
    training_passes,
)
from darts_sg.backends.ir import DTYPES, CellGraph, GraphStep


class Inference:
    """A graph for one kind of inputs: the table of its arguments, its buffers, and the kernels' packed weights."""

    def __init__(self, graph: CellGraph, layouts: Sequence[Layout], dtype: torch.dtype, threads: int) -> None:
        """layouts: those of the inputs, for as many images as go through the graph at a time."""
        like = torch.empty(0, dtype=dtype)
        gammas = [like.new_ones(len(step.operations.each), 1) for step in graph.steps if isinstance(step, GraphStep)]
        plan = Planner(graph, layouts, gammas).plan()
        outside = {*range(graph.num_inputs), *graph.outputs}
        states = [None if i in outside else like.new_empty(plan.layouts[i].shape) for i in range(len(plan.layouts))]
        self.weights = [weight.contiguous() for weight in graph.weights()]
        statistics = [tensor for norm in plan.norms for tensor in running_statistics(norm)]
        buffers = [*states, *gammas, plan.normalisations.tensor(), *self.weights, plan.outputs.tensor(), *statistics]
        starts = [0 if tensor is None else tensor.data_ptr() for tensor in [None, *buffers]]
        starts += [0] * (sum(plan.counts.values()) - len(starts))
        self.words = plan.forward.filled(starts)
        self._buffers = buffers  # must outlive the kernels
        for step in plan.steps:
            self.words[step.start + MIX_FIELDS.index("threads")] = threads
        rows = self.words[plan.first_stage :].reshape(-1, len(STAGE_FIELDS))
        rows[:, STAGE_FIELDS.index("threads")] = threads
        rows.view(np.float64)[:, STAGE_FIELDS.index("eps")] = [0.0 if norm is None else norm.eps for norm in plan.norms]
        # where the addresses of inputs and outputs stand, and how far they move on from chunk to chunk
        self.places, self.numbers = plan.forward.places_of("states", sorted(outside))
        chunk = layouts[0].shape[0] * like.element_size()
        self.strides = np.array([plan.layouts[number].image * chunk for number in self.numbers], dtype=np.int64)
        self.layouts = plan.layouts
        self.library = kernels(real=DTYPES[dtype])
        begin = np.array([step.start for step in plan.steps], dtype=np.int64)
        self.library.inference_new.restype = ctypes.c_void_p
        self.kernels = self.library.inference_new(
            _pointer(self.words), _pointer(begin), ctypes.c_int64(len(begin)), ctypes.c_int64(plan.first_stage)
        )
        if not self.kernels:
            raise MemoryError("not enough memory for the weights of the C++ kernels")
        weakref.finalize(self, self.library.inference_delete, ctypes.c_void_p(self.kernels)).atexit = False

    def place(self, addresses: NDArray[np.int64]) -> None:
        """Fill in the addresses of the states, of which those of inputs and outputs count."""
        self.words[self.places] = addresses[self.numbers]


def _pointer(array: np.ndarray) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


class Shares:
    """The inferences of a batch, one for each share of its images."""

    def __init__(
        self, graph: CellGraph, layouts: Sequence[Layout], dtype: torch.dtype, threads: int, *, dense: bool
    ) -> None:
        """layouts: those of the inputs. dense: whether the inputs were read as they are, without a copy."""
        N = layouts[0].shape[0]
        # with enough images each thread takes its share of them, one at a time; otherwise all work on all of them
        size, shares = (1, threads) if threads <= N else (N, 1)
        of_chunk = [layout._replace(shape=(size, *layout.shape[1:])) for layout in layouts]
        self.dense = dense
        self.each = [Inference(graph, of_chunk, dtype, threads // shares) for _ in range(shares)]
        self.firsts = [i * N // shares for i in range(shares)]
        ends = [*self.firsts[1:], N]
        self.handles = np.array([one.kernels for one in self.each], dtype=np.int64)
        self.chunks = np.array([end - i for i, end in zip(self.firsts, ends, strict=True)], dtype=np.int64) // size
        self.addresses, self.steps = np.zeros((2, len(self.each[0].layouts)), dtype=np.int64)
        value_size = torch.empty(0, dtype=dtype).element_size()
        self.outputs: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
        """Shape and strides of each output."""
        for state in graph.outputs:
            _, C, H, W = self.each[0].layouts[state].shape
            self.outputs.append(((N, C, H, W), (H * W * C, 1, W * C, C)))
        images = [layout.image for layout in layouts] + [strides[0] for _, strides in self.outputs]
        self.outside = [*range(graph.num_inputs), *graph.outputs]
        self.steps[self.outside] = np.array(images) * value_size
        first = self.each[0]
        self.call = (
            _pointer(self.handles), ctypes.c_int64(shares), _pointer(self.chunks), _pointer(first.places),
            _pointer(first.strides), ctypes.c_int64(len(first.places)),
        )  # fmt: skip

    def run(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """The outputs, (N, C, H, W) each."""
        like = inputs[0]
        outputs = [like.new_empty_strided(shape, strides) for shape, strides in self.outputs]
        self.addresses[self.outside] = [*map(Tensor.data_ptr, inputs), *map(Tensor.data_ptr, outputs)]
        for one, begin in zip(self.each, self.firsts, strict=True):
            one.place(self.addresses + begin * self.steps if begin else self.addresses)
        if self.each[0].library.inference_run(*self.call):
            raise MemoryError("not enough memory for the planes of the C++ kernels")
        return outputs


class _Cached:
    """The inferences of a graph by the kind of its inputs, and what they depend on.

    Changes of weights are seen as autograd sees them: those of `weight.data` in place, which it does not notice, are
    not.
    """

    def __init__(self, graph: CellGraph) -> None:
        # dictionaries of modules and loops in C: this runs for each cell of each pass
        self.norms = [vars(stage.norm) for stage in graph.stages if stage.norm is not None]
        slots = graph.slots()
        self.owners, self.names = [owner for owner, _ in slots], [name for _, name in slots]
        self.complete = all(owner[name] is not None for owner, name in slots)
        """True if all BatchNorms have running statistics."""
        self.kinds: dict[Hashable, Shares] = {}
        self.state: Hashable = None

    def possible(self) -> bool:
        """True if all BatchNorms use their running statistics."""
        return self.complete and not any(map(TRAINING, self.norms))

    def find(self, key: Hashable) -> Shares | None:
        """The inferences for inputs of a kind; None once a weight or a running statistic has changed."""
        tensors = [*map(getitem, self.owners, self.names)]
        try:
            versions: list[Any] = [*map(VERSION, tensors)]
        except RuntimeError:  # made in inference mode, where versions are not counted
            versions = [object()]
        state = versions, [*map(Tensor.data_ptr, tensors)], [*map(EPS, self.norms)], training_passes()
        if state != self.state:
            self.kinds.clear()
            self.state = state
        return self.kinds.get(key)


TRAINING, EPS = itemgetter("training"), itemgetter("eps")
VERSION = Tensor._version.__get__  # type: ignore[attr-defined]
CACHE: weakref.WeakKeyDictionary[CellGraph, _Cached] = weakref.WeakKeyDictionary()


def infer(inputs: Sequence[Tensor], graph: CellGraph) -> list[Tensor] | None:
    """The outputs of a graph whose operations all have the weight 1, each (N, C, H, W).

    None where gradients are wanted, a BatchNorm is in train mode, or there are no images. inputs: the states that the
    graph is given, (N, C, H, W), on the CPU and of one type. Raises TypeError if types differ.
    """
    if torch.is_grad_enabled() or not len(inputs[0]):
        return None
    cached = CACHE.get(graph)
    if cached is None:
        cached = CACHE[graph] = _Cached(graph)
    if not cached.possible():
        return None
    dtype, threads = inputs[0].dtype, torch.get_num_threads()
    key = threads, *((x.dtype, x.shape, x.stride()) for x in inputs)
    shares = cached.find(key)
    if shares is not None and shares.dense:
        return shares.run(inputs)
    tensors, layouts = readable_inputs(inputs, graph)
    if shares is None:
        if any(tensor.dtype != dtype for tensor in (*inputs, *graph.weights())):
            raise TypeError(f"the C++ kernels need all tensors of one type, {dtype} as the first input")
        dense = all(x is tensor for x, tensor in zip(inputs, tensors, strict=True))
        shares = cached.kinds[key] = Shares(graph, layouts, dtype, threads, dense=dense)
    return shares.run(tensors)
