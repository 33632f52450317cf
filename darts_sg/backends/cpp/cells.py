"""Cells that the C++ kernels compute on a CPU, a whole cell in one call a pass where they know all its operations."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from darts_sg.backends import ir
from darts_sg.backends.batched import BatchedCell, EdgeWeights, Kernels
from darts_sg.backends.cpp import run as cpp
from darts_sg.backends.cpp.inference import infer
from darts_sg.backends.sampled import SampledEdges, sampled_edges, zero_step
from darts_sg.backends.watch import Watch
from darts_sg.derive import num_edges
from darts_sg.genotype import NUM_INPUTS
from darts_sg.networks.derived import DerivedCell, drop_prob_of
from darts_sg.networks.skeleton import State, join
from darts_sg.networks.supernet import CellWeights, SupernetCell, maybe_recomputed
from darts_sg.ops.drop_path import DrawnPaths, kept_paths
from darts_sg.ops.primitives import ConvBN


def takes(x: Tensor) -> bool:
    """Whether the kernels take x by its device and type."""
    return x.device.type == "cpu" and x.dtype in ir.DTYPES


def run_ops(
    states: Sequence[Tensor], gamma: Tensor, operations: ir.FusedOps, onto: Sequence[Tensor] = ()
) -> list[Tensor]:
    """A single step: the T nodes (N, C, H', W'), added to the tensors in `onto`.

    states: the S states of the first input, then of the next, each (N, C, H, W); gamma: see cpp.run.run.
    """
    nodes = cpp.run(states, [gamma], operations.alone)
    return [before + node for before, node in zip(onto, nodes, strict=True)] if onto else nodes


class CppKernels:
    """The C++ kernels for a batch of edges."""

    side_by_side = False

    def computes(self, x: Tensor, stages: Sequence[ir.FusedStage]) -> bool:
        return takes(x)

    def run(
        self, states: Sequence[Tensor], gamma: Tensor, operations: ir.FusedOps, onto: Sequence[Tensor] = ()
    ) -> list[Tensor]:
        return run_ops(states, gamma, operations, onto)


class CellGraphs:
    """The graphs of a cell, one for each number of parts of its two input states.

    The states enter before their ReLU, which is fused with the 1×1 of the input layers, and in parts: the nodes of the
    cell before are not joined, nor are their gradients split.
    """

    def __init__(
        self, layers: Sequence[nn.Module], steps: Sequence[ir.GraphStep | ir.RouteStep] | None, outputs: Sequence[int]
    ) -> None:
        """layers: the two input layers. steps: the rest of the cell, None if an operation is unknown to the kernels.
        outputs: the joined nodes. States are numbered from the outputs of the input layers on."""
        stages = [ir.stages_of([nn.ReLU(), *(layer if isinstance(layer, ConvBN) else [layer])], 1) for layer in layers]
        self.input_ops = [None if of is None else ir.FusedOps(1, 1, [ir.FusedOp(of)]) for of in stages]
        self.steps, self.outputs = steps or (), outputs
        self.known = steps is not None and None not in self.input_ops
        self.graphs: dict[tuple[int, int], ir.CellGraph] = {}  # cache, by the numbers of parts

    def run(self, s0: Sequence[Tensor], s1: Sequence[Tensor], gammas: Sequence[Tensor]) -> tuple[list[Tensor], ...]:
        """(the joined nodes, s1 as later consumers must read it), in parts. gammas: one for each step."""
        one = s0[0].new_ones(1, 1)  # the BatchNorms of the input layers are not scaled
        found = cpp.run([*s0, *s1], [one, one, *gammas], self._found(s0, s1))
        return found[: len(self.outputs)], found[len(self.outputs) :]

    def inferred(self, s0: Sequence[Tensor], s1: Sequence[Tensor]) -> list[Tensor] | None:
        """The joined nodes where no gradients are wanted, all BatchNorms are in eval mode and all operations count
        once; otherwise None."""
        return infer([*s0, *s1], self._found(s0, s1))

    def _found(self, s0: Sequence[Tensor], s1: Sequence[Tensor]) -> ir.CellGraph:
        """The graph for states in so many parts."""
        sizes = len(s0), len(s1)
        if sizes not in self.graphs:
            self.graphs[sizes] = self._graph(*sizes)
        return self.graphs[sizes]

    def entries(self, states: Sequence[State]) -> list[Tensor]:
        """The tensors that `inputs` reads, where PyTorch computes part of the cell: before the ReLU if it is fused."""
        each = zip(states, self.input_ops, strict=True)
        return [state.rectified() if operations is None else state.joined() for state, operations in each]

    def inputs(self, xs: Sequence[Tensor], layers: Sequence[nn.Module]) -> list[Tensor]:
        """The outputs of the input layers."""
        found: list[Tensor] = []
        for x, layer, operations in zip(xs, layers, self.input_ops, strict=True):
            found += [layer(x)] if operations is None else run_ops([x], x.new_ones(1, 1), operations)
        return found

    def fused(self) -> Iterator[ir.FusedOps | ir.RouteStep]:
        """All operations that the kernels compute in whole graphs."""
        yield from (operations for operations in self.input_ops if operations is not None)
        yield from (step if isinstance(step, ir.RouteStep) else step.operations for step in self.steps)

    def _graph(self, *sizes: int) -> ir.CellGraph:
        given = sum(sizes)
        inputs = range(sizes[0]), range(sizes[0], given)
        steps: list[ir.GraphStep | ir.RouteStep] = []
        for i, (operations, parts, numbers) in enumerate(zip(self.input_ops, sizes, inputs, strict=True)):
            assert operations is not None
            steps.append(ir.GraphStep(replace(operations, parts=parts), numbers, [given + i]))
        steps += [step.moved(given) for step in self.steps]
        return ir.CellGraph(given, steps, [given + state for state in self.outputs], passed_on=inputs[1])


class CppCell(BatchedCell):
    """A batched supernet cell on the C++ kernels. PyTorch computes operations that are unknown to them, and all of the
    cell for other devices and types, and where an input layer or a batch of edges is hooked or replaced."""

    backend = "cpp"

    def __init__(self, cell: SupernetCell | BatchedCell) -> None:
        super().__init__(cell)
        self._known = [batch.all_known() for batch in self.edge_batches()]
        layers = self.input_0, self.input_1
        self.graphs = CellGraphs(layers, *self._steps())
        # all that the graph skips but the insides of batches, which `refuse_changes` watches
        self._skipped = Watch(self, [*self.input_0.modules(), *self.input_1.modules(), *self.batches])

    def make_kernels(self) -> Kernels | None:
        return CppKernels()

    def _steps(self) -> tuple[list[ir.GraphStep | ir.RouteStep] | None, Sequence[int]]:
        """The graph's steps after the input layers, None if they do not make up the whole cell; and its outputs.

        With partial channels a node has three numbers: the sum of its operations, the node itself, and the channels of
        it that later operations read.
        """
        steps: list[ir.GraphStep | ir.RouteStep] = []
        number = itertools.count(NUM_INPUTS)
        sums = [next(number) for _ in range(self.num_nodes)]
        states = taken = list(range(NUM_INPUTS))
        if self.K > 1:
            taken = [next(number) for _ in states]
            steps += [
                ir.RouteStep(ir.TAKE, self.K, [state], [first]) for state, first in zip(states, taken, strict=True)
            ]
            if self.reduction:
                halved = [next(number) for _ in states]
                # after TAKE, so that on the way back it is the first to write these states' gradients
                pairs = zip(states, halved, strict=True)
                steps += [ir.RouteStep(ir.HALVE, self.K, [state], [half]) for state, half in pairs]
                states = halved
        nodes: list[int] = []
        for i, (batch, known) in enumerate(zip(self.edge_batches(), self._known, strict=True)):
            if known is None:
                return None, sums
            steps.append(ir.GraphStep(batch.fused(known), taken, sums[i:]))
            nodes.append(sums[i] if self.K == 1 else next(number))
            taken = [nodes[i]]
            if self.K > 1:
                taken = [next(number)] if i + 1 < self.num_nodes else []
                read = [sums[i], *states, *nodes[:i]]
                steps.append(ir.RouteStep(ir.SHUFFLE, self.K, read, [nodes[i], *taken]))
        return steps, nodes

    def _sampled_graphs(self, chosen: Sequence[int]) -> CellGraphs:
        """The graphs with the chosen operation of each edge alone, one step a node; see `_steps` for the numbers.

        Another sample has other graphs, so that nothing is cached.
        """
        edges = sampled_edges(self)
        unknown = any(edges.operation(e, o) is not None and edges.stages(e, o) is None for e, o in enumerate(chosen))
        steps: list[ir.GraphStep | ir.RouteStep] = []
        number = itertools.count(NUM_INPUTS)
        states = taken = list(range(NUM_INPUTS))
        if self.K > 1:
            taken = [next(number) for _ in states]
            pairs = zip(states, taken, strict=True)
            steps += [ir.RouteStep(ir.TAKE, self.K, [state], [first]) for state, first in pairs]
            if self.reduction:
                halved = [next(number) for _ in states]
                pairs = zip(states, halved, strict=True)
                steps += [ir.RouteStep(ir.HALVE, self.K, [state], [half]) for state, half in pairs]
                states = halved
        nodes: list[int] = []
        for node in range(self.num_nodes if not unknown else 0):
            total = next(number)
            steps.append(self._sampled_step(edges, chosen, node, taken, total))
            nodes.append(total if self.K == 1 else next(number))
            if self.K == 1:
                taken = [*taken, total]
                continue
            read = [total, *states, *nodes[:-1]]
            first = [next(number)] if node + 1 < self.num_nodes else []
            taken = [*taken, *first]
            steps.append(ir.RouteStep(ir.SHUFFLE, self.K, read, [nodes[-1], *first]))
        return CellGraphs((self.input_0, self.input_1), None if unknown else steps, nodes)

    def _sampled_step(
        self, edges: SampledEdges, chosen: Sequence[int], node: int, taken: Sequence[int], to: int
    ) -> ir.GraphStep:
        """The sum of the chosen operations that lead to a node. taken: the numbers of the states before it."""
        read = [state for state, *_ in self._sampled_terms(edges, chosen, node)]
        if not read:
            return zero_step(self.reduction, node, taken, to)
        inputs = list(dict.fromkeys(read))
        each: list[ir.FusedOp] = []
        for state, edge, adds_input in self._sampled_terms(edges, chosen, node):
            stages = [] if adds_input else edges.stages(edge, chosen[edge]) or []
            each.append(ir.FusedOp(stages, inputs.index(state)))
        return ir.GraphStep(ir.FusedOps(1, 1, each), [taken[state] for state in inputs], [to])

    def _sampled_terms(self, edges: SampledEdges, chosen: Sequence[int], node: int) -> Iterator[tuple[int, int, bool]]:
        """The terms of a node, (state, edge, whether it is the input that a residual block adds to its output)."""
        for state in range(NUM_INPUTS + node):
            edge = num_edges(node) + state
            op = edges.operation(edge, chosen[edge])
            if op is not None:
                yield state, edge, False
                if ir.adds_input(op):
                    yield state, edge, True

    def _sampled_gammas(self, weights: CellWeights) -> list[Tensor]:
        """The gamma of each step that computes operations, (number of terms, 1)."""
        assert weights.chosen is not None
        edges, chosen = sampled_edges(self), weights.chosen
        rows = torch.arange(len(chosen))
        of_edges = weights.operations[rows, torch.tensor(chosen)]
        if weights.edges is not None:
            of_edges = of_edges * weights.edges
        found: list[Tensor] = []
        for node in range(self.num_nodes):
            terms = [edge for _, edge, _ in self._sampled_terms(edges, chosen, node)]
            # without terms, the zeros depend on a mixing weight, whose gradient then is 0 and not missing
            found.append(of_edges[terms][:, None] if terms else of_edges[num_edges(node)].view(1, 1) * 0)
        return found

    def _sampled(self, s0: State, s1: State, weights: CellWeights, recompute: bool) -> State:
        """The forward pass with the chosen operation of each edge alone."""
        assert weights.chosen is not None
        graphs = self._sampled_graphs(weights.chosen)
        if not graphs.known:
            xs = graphs.entries((s0, s1))
            return State(maybe_recomputed(self, self._sampled_by_pytorch, xs, weights, recompute=recompute))
        gammas = self._of_steps(graphs, weights.once("sampled nodes", self._sampled_gammas), weights)
        run = partial(self._run_sampled, graphs, weights.chosen)
        found, passed_on = maybe_recomputed(self, run, s0.parts, s1.parts, gammas, recompute=recompute)
        s1.pass_on(passed_on)
        return State(*found)

    def _run_sampled(
        self,
        graphs: CellGraphs,
        chosen: Sequence[int],
        s0: Sequence[Tensor],
        s1: Sequence[Tensor],
        gammas: Sequence[Tensor],
    ) -> tuple[list[Tensor], ...]:
        sampled_edges(self).bind(chosen)  # anew for a recomputed pass, which leaves the statistics alone
        return graphs.run(s0, s1, gammas)

    def _sampled_by_pytorch(self, xs: Sequence[Tensor], weights: CellWeights) -> Tensor:
        return join(self.sampled_nodes(self.graphs.inputs(xs, (self.input_0, self.input_1)), weights))

    def _gammas(self, weights: CellWeights) -> Sequence[Tensor]:
        """The gamma of each step."""
        each = weights.once("batches of edges", self.edge_weights)
        batches = zip(self.edge_batches(), each, self._known, strict=True)
        of_batches = [batch.gamma(of_batch, known or ()) for batch, of_batch, known in batches]
        return self._of_steps(self.graphs, of_batches, weights)

    def _of_steps(self, graphs: CellGraphs, gammas: Sequence[Tensor], weights: CellWeights) -> Sequence[Tensor]:
        """`gammas`, those of the steps that compute operations, with those of the other steps in between."""
        if self.K == 1:
            return gammas
        of_edges = weights.once("edges of each node", self._edges_of_nodes)
        unused = of_edges[0].detach()
        operations, nodes = iter(gammas), iter(of_edges)
        found: list[Tensor] = []
        for step in graphs.steps:
            if isinstance(step, ir.GraphStep):
                found.append(next(operations))
            else:
                found.append(next(nodes) if step.kind == ir.SHUFFLE else unused)
        return found

    def _edges_of_nodes(self, weights: CellWeights) -> Sequence[Tensor]:
        """For each node the weights of the edges that lead to it, (1, number of edges)."""
        each = weights.operations.new_ones(len(weights.operations)) if weights.edges is None else weights.edges
        return each[None].split([NUM_INPUTS + node for node in range(self.num_nodes)], dim=1)

    def fused(self) -> Iterator[ir.FusedOps | ir.RouteStep]:
        """Everything that the kernels compute of this cell."""
        yield from self.graphs.fused()
        yield from (batch.fused(known) for batch in self.edge_batches() if (known := batch.known()))

    def forward(self, s0: State, s1: State, weights: CellWeights, recompute: bool = False) -> State:
        if weights.kept is not None or not takes(s0.first) or not self._skipped.unchanged():
            return super().forward(s0, s1, weights, recompute)
        self.refuse_changes()
        if weights.chosen is not None:
            return self._sampled(s0, s1, weights, recompute)
        if not self.graphs.known:
            each = weights.once("batches of edges", self.edge_weights)
            xs = self.graphs.entries((s0, s1))
            return State(maybe_recomputed(self, self._by_batches, xs, each, recompute=recompute))
        gammas = self._gammas(weights)
        found, passed_on = maybe_recomputed(self, self.graphs.run, s0.parts, s1.parts, gammas, recompute=recompute)
        s1.pass_on(passed_on)
        return State(*found)

    def _by_batches(self, xs: Sequence[Tensor], weights: Sequence[EdgeWeights]) -> Tensor:
        return join(self.nodes(self.graphs.inputs(xs, (self.input_0, self.input_1)), weights))


class CppDerivedCell(DerivedCell):
    """A derived cell on the C++ kernels, which shares the plain cell's modules.

    Where the kernels do not know an operation, PyTorch computes all but the input layers; for other devices and types,
    and once a module is replaced or hooked, all of the cell.
    """

    backend = "cpp"

    def __init__(self, cell: DerivedCell) -> None:
        nn.Module.__init__(self)
        self.cell, self.spec = cell.cell, cell.spec
        self.input_0, self.input_1, self.ops = cell.input_0, cell.input_1, cell.ops
        # states of the graph: the inputs, then the nodes that have edges
        present = [*range(NUM_INPUTS), *(i for i, node in enumerate(self.cell.nodes, start=NUM_INPUTS) if node)]
        self._numbers = {state: number for number, state in enumerate(present)}
        outputs = [self._numbers[state] for state in self.cell.concat]
        self.graphs = CellGraphs((self.input_0, self.input_1), self._steps(), outputs)
        self._watch = Watch(self, [layer for child in self.children() for layer in child.modules()])
        self.training = cell.training

    def plain(self) -> DerivedCell:
        """A plain cell with the same modules."""
        with torch.device("meta"):  # without drawing random numbers: all its modules are replaced
            cell = DerivedCell(self.cell, self.spec)
        cell.input_0, cell.input_1, cell.ops = self.input_0, self.input_1, self.ops
        cell.training = self.training
        return cell

    def _steps(self) -> list[ir.GraphStep] | None:
        """The graph's steps after the input layers, one a node with edges; None if an operation is unknown to the
        kernels."""
        steps: list[ir.GraphStep] = []
        ops = iter(self.ops)
        for state, node in enumerate(self.cell.nodes, start=NUM_INPUTS):
            inputs = list(dict.fromkeys(self._numbers[edge.state] for edge in node))
            each: list[ir.FusedOp] = []
            for edge in node:
                op, place = next(ops), inputs.index(self._numbers[edge.state])
                stages = ir.stages_of_operation(op)
                if stages is None:
                    return None
                each.append(ir.FusedOp(stages, place))
                if ir.adds_input(op):  # the residual is a term of its own, which drop path treats like the block
                    each.append(ir.FusedOp([], place))
            if each:
                steps.append(ir.GraphStep(ir.FusedOps(1, 1, each), inputs, [self._numbers[state]]))
        return steps

    def fused(self) -> Iterator[ir.FusedOps | ir.RouteStep]:
        """Everything that the kernels compute of this cell."""
        yield from self.graphs.fused()

    def forward(self, s0: State, s1: State, drop_path_prob: float | Tensor | DrawnPaths | None) -> State:
        if not takes(s0.first) or not self._watch.unchanged(ignore_global=False):
            return super().forward(s0, s1, drop_path_prob)
        if not self.graphs.known:
            states = self.graphs.inputs(self.graphs.entries((s0, s1)), (self.input_0, self.input_1))
            return State(join(self.nodes(states, drop_path_prob)))
        if drop_path_prob is None and (inferred := self.graphs.inferred(s0.parts, s1.parts)) is not None:
            return State(*inferred)
        found, passed_on = self.graphs.run(s0.parts, s1.parts, self._kept(s0.first, drop_path_prob))
        s1.pass_on(passed_on)
        return State(*found)

    def _kept(self, like: Tensor, drop_path_prob: float | Tensor | DrawnPaths | None) -> list[Tensor]:
        """For each node the factors by which drop path multiplies its terms: (terms, 1, N)."""
        ones = like.new_ones(len(like))
        ops = iter(self.ops)
        gammas = []
        for node in self.cell.nodes:
            factors: list[Tensor] = []
            for _ in node:
                op = next(ops)
                kept = kept_paths(like, drop_prob_of(op, drop_path_prob))
                factors += [ones if kept is None else kept.flatten()] * (2 if ir.adds_input(op) else 1)
            if factors:
                gammas.append(torch.stack(factors)[:, None])
        return gammas
