"""Steps whose launches a GPU is given at once: captured as a CUDA graph, and replayed from then on."""

import copy
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from darts_sg.methods.hypergradient import frozen
from darts_sg.networks.supernet import Mixing, Supernet

WARM_UP = 2  # steps of a kind that run launch by launch, so that all they need is there before one is captured
KEPT = 4  # kinds of steps that are kept

Step = Callable[..., Mapping[str, Tensor]]


class _Graph(NamedTuple):
    graph: torch.cuda.CUDAGraph
    inputs: Sequence[Tensor]
    names: Sequence[str]
    values: Tensor


class Captured:
    """`step` of some tensors, to scalars by name. It may change weights, statistics and the like in place, each time
    the same tensors, but must not read a value back to the CPU, nor depend on anything but these.

    Of each kind, which is what it is called with and the shapes of the tensors, the first steps run as they are; the
    next one is captured, and with it what the CPU does in them. The results are the same, to the bit: random numbers,
    too, as a replay moves the generators on as the steps would.
    """

    def __init__(self, step: Step, generators: Sequence[torch.Generator] = ()) -> None:
        """generators: those that the step draws from, on the GPU, beside the default one; seed them between steps, not
        in one."""
        self.step, self.generators = step, generators
        self.stream = torch.cuda.Stream()
        self.seen: dict[Hashable, int] = {}
        self.graphs: dict[Hashable, _Graph] = {}

    def __call__(self, kind: Hashable, *tensors: Tensor, **options: Hashable) -> dict[str, Tensor]:
        """A step on `tensors`. kind: tells steps apart that launch other kernels; `options`, which the step is called
        with as well, do so, too."""
        key = kind, tuple(sorted(options.items())), tuple(tensor.shape for tensor in tensors)
        found = self.graphs.get(key)
        if found is None:
            self.seen[key] = self.seen.get(key, 0) + 1
            if self.seen[key] <= WARM_UP:
                return self._run(tensors, options)
            found = self._capture(key, tensors, options)
        for own, given in zip(found.inputs, tensors, strict=True):
            own.copy_(given)
        found.graph.replay()
        return dict(zip(found.names, found.values.clone().unbind(), strict=True))

    def forget(self) -> None:
        """Drop all graphs and the memory that they hold; the next steps are captured anew."""
        self.graphs.clear()
        self.seen.clear()

    def _run(self, tensors: Sequence[Tensor], options: Mapping[str, Hashable]) -> dict[str, Tensor]:
        """As it is, on the stream of the captures: gradients are added up on the stream of the first backward pass."""
        current = torch.cuda.current_stream()
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            means = dict(self.step(*tensors, **options))
        current.wait_stream(self.stream)
        return means

    def _capture(self, key: Hashable, tensors: Sequence[Tensor], options: Mapping[str, Hashable]) -> _Graph:
        while len(self.graphs) >= KEPT:
            del self.graphs[next(iter(self.graphs))]
        pool = next(iter(self.graphs.values())).graph.pool() if self.graphs else None
        inputs = [torch.empty_like(tensor).copy_(tensor) for tensor in tensors]
        graph = torch.cuda.CUDAGraph()
        for generator in self.generators:
            graph.register_generator_state(generator)
        # thread_local: meanwhile another thread may pin memory for the next batches, which is no error of this capture
        with torch.cuda.graph(graph, pool=pool, stream=self.stream, capture_error_mode="thread_local"):
            means = self.step(*inputs, **options)
            values = torch.stack([value.detach().float() for value in means.values()])
        self.graphs[key] = _Graph(graph, inputs, list(means), values)
        return self.graphs[key]


def compile_step(
    supernet: Supernet,
    mixing_of: Callable[[Supernet], Mixing],
    images: Tensor,
    autocast: torch.autocast,
    *,
    evaluation: bool = False,
    eigenvalue: bool = False,
) -> None:
    """Compile the Triton kernels of a search step, all at a time instead of one after the other in the first steps.

    They are the same for any number of images. evaluation, eigenvalue: also those of an evaluation in float32, and of
    gradients of the alphas in float64. The supernet is left as it is. Raises Unavailable if Triton cannot.
    """
    from darts_sg.backends.triton import run as gpu

    net = copy.deepcopy(supernet)

    def passes() -> None:
        alphas, weights = net.alphas(), net.weights()
        for wanted, others in ((alphas, weights), (weights, alphas)):
            with frozen(others):
                with autocast:
                    total = net(images, mixing_of(net)).sum()
                torch.autograd.grad(total, wanted)
        if evaluation:
            with torch.no_grad():
                net(images, mixing_of(net))
        if eigenvalue:
            exact = copy.deepcopy(net).double()
            with frozen(exact.weights()):
                torch.autograd.grad(exact(images.double(), mixing_of(exact)).sum(), exact.alphas())

    gpu.compile_ahead(passes, images.device)
