"""Runs graphs in eval mode without gradients: nothing is kept for a backward pass, and hardly any Python runs.

The weights are packed for the kernels once, and again when one of them or of the running statistics has changed. Each
thread takes an image through all steps of a graph before the next one, so that what passes between the stages stays in
its cache, and no thread waits for others. With fewer images than threads, all threads share each stage.
"""

import ctypes
import itertools
import weakref
from collections.abc import Hashable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from darts_sg.backends.cpp.build import kernels
from darts_sg.backends.cpp.run import STAGE_FIELDS, Layout, _channels_last, _Planner, _statistics, training_passes
from darts_sg.backends.ir import DTYPES, CellGraph, GraphStep


class Inference:
    """A graph for one kind of inputs: the table of its arguments, its buffers, and the kernels' packed weights."""

    def __init__(self, graph: CellGraph, layouts: Sequence[Layout], dtype: torch.dtype, threads: int) -> None:
        """layouts: those of the inputs, for as many images as go through the graph at a time."""
        like = torch.empty(0, dtype=dtype)
        gammas = [like.new_ones(len(step.operations.each), 1) for step in graph.steps if isinstance(step, GraphStep)]
        plan = _Planner(graph, layouts, gammas).plan()
        outside = {*range(graph.num_inputs), *graph.outputs}
        states = [None if i in outside else like.new_empty(plan.layouts[i].shape) for i in range(len(plan.layouts))]
        self.weights = [weight.contiguous() for weight in graph.weights()]
        statistics = [tensor for norm in plan.norms for tensor in _statistics(norm)]
        buffers = [*states, *gammas, plan.normalisations.tensor(), *self.weights, plan.outputs.tensor(), *statistics]
        starts = [0 if tensor is None else tensor.data_ptr() for tensor in [None, *buffers]]
        starts += [0] * (sum(plan.counts.values()) - len(starts))
        self.words = plan.forward.filled(starts)
        self._buffers = buffers  # must outlive the kernels
        for step in plan.steps:
            self.words[step.start + 6] = threads
        rows = self.words[plan.first_stage :].reshape(-1, len(STAGE_FIELDS))
        rows[:, STAGE_FIELDS.index("threads")] = threads
        rows.view(np.float64)[:, STAGE_FIELDS.index("eps")] = [0.0 if norm is None else norm.eps for norm in plan.norms]
        # where the addresses of inputs and outputs stand, and how far they move on from chunk to chunk
        places, numbers = plan.forward.places_of("states", sorted(outside))
        self.places, self.numbers = places, numbers
        size = like.element_size()
        images = layouts[0].shape[0]
        self.strides = np.array([plan.layouts[number].image * images * size for number in numbers], dtype=np.int64)
        self.layouts = plan.layouts
        self.places_pointer, self.strides_pointer = _pointer(self.places), _pointer(self.strides)
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


def _run(each: Sequence[Inference], chunks: Sequence[int]) -> None:
    """Run inferences of one kind at a time, each for so many chunks."""
    first = each[0]
    handles = np.array([one.kernels for one in each], dtype=np.int64)
    counts = np.array(chunks, dtype=np.int64)
    failed = first.library.inference_run(
        _pointer(handles), ctypes.c_int64(len(each)), _pointer(counts), first.places_pointer, first.strides_pointer,
        ctypes.c_int64(len(first.places)),
    )  # fmt: skip
    if failed:
        raise MemoryError("not enough memory for the planes of the C++ kernels")


def _pointer(array: np.ndarray) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


class _Cached:
    """The inferences of a graph, and what they depend on."""

    def __init__(self, graph: CellGraph) -> None:
        self.norms = [stage.norm for stage in graph.stages if stage.norm is not None]
        self.weights = graph.slots()
        self.kinds: dict[Hashable, list[Inference]] = {}
        self.state: Hashable = None

    def find(self, key: Hashable) -> list[Inference] | None:
        """The inferences of a kind, one for each thread; None once a weight or a running statistic has changed.

        Changes are seen as autograd sees them: those of `weight.data` in place, which it does not notice, are not.
        """
        tensors = [owner[name] for owner, name in self.weights]
        try:
            versions = [tensor._version for tensor in tensors]
        except RuntimeError:  # made in inference mode, where versions are not counted
            versions = [object()]
        state = versions, [t.data_ptr() for t in tensors], [norm.eps for norm in self.norms], training_passes()
        if state != self.state:
            self.kinds.clear()
            self.state = state
        return self.kinds.get(key)


CACHE: weakref.WeakKeyDictionary[CellGraph, _Cached] = weakref.WeakKeyDictionary()


def possible(norms: Sequence[nn.BatchNorm2d | None]) -> bool:
    """Whether no gradients are wanted and all BatchNorms use their running statistics."""
    return not torch.is_grad_enabled() and not any(
        norm is not None and (norm.training or norm.running_mean is None) for norm in norms
    )


def infer(inputs: Sequence[Tensor], graph: CellGraph) -> list[Tensor]:
    """The outputs of a graph whose operations all have the weight 1, each (N, C, H, W).

    inputs: the states that the graph is given, (N, C, H, W), on the CPU and of one type.
    """
    taken = [_channels_last(x) for x in inputs]
    if any(taken[state][1] != taken[states[0]][1] for states in graph.together for state in states):
        taken = [_channels_last(x.contiguous(memory_format=torch.channels_last)) for x in inputs]
    tensors = [x for x, _ in taken]
    layouts = [layout for _, layout in taken]
    N, dtype, threads = len(inputs[0]), inputs[0].dtype, torch.get_num_threads()
    cached = CACHE.get(graph)
    if cached is None:
        cached = CACHE[graph] = _Cached(graph)
    # with enough images each thread takes its share of them, one at a time; otherwise all work on all of them
    size, shares = (1, threads) if threads <= N else (N, 1)
    of_chunk = tuple(layout._replace(shape=(size, *layout.shape[1:])) for layout in layouts)
    key = dtype, threads, shares, of_chunk
    found = cached.find(key)
    if found is None:
        found = [Inference(graph, of_chunk, dtype, threads // shares) for _ in range(shares)]
        cached.kinds[key] = found
    value_size = inputs[0].element_size()
    starts, steps = np.zeros((2, len(found[0].layouts)), dtype=np.int64)
    outputs: list[Tensor] = []
    for state, x in enumerate(tensors):
        starts[state], steps[state] = x.data_ptr(), layouts[state].image * value_size
    for state in graph.outputs:
        _, C, H, W = found[0].layouts[state].shape
        outputs.append(inputs[0].new_empty(N, H, W, C))
        starts[state], steps[state] = outputs[-1].data_ptr(), H * W * C * value_size
    firsts = [i * N // shares for i in range(shares + 1)]
    for one, begin in zip(found, firsts, strict=False):
        one.place(starts + begin * steps)
    _run(found, [(end - begin) // size for begin, end in itertools.pairwise(firsts)])
    return [output.permute(0, 3, 1, 2) for output in outputs]
