"""A search method is data: its parts, each chosen by name with its options. A recipe names them."""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from darts_sg.errors import UsageError, cut
from darts_sg.methods.auxiliary_skips import AUXILIARY_SKIPS, AuxiliarySkip
from darts_sg.methods.drop_path import EdgeDropPath
from darts_sg.methods.early_stopping import EarlyStopping
from darts_sg.methods.hypergradient import (
    HYPERGRADIENTS,
    HypergradientMethod,
    first_order_with_weights,
    single_level,
    unrolled,
)
from darts_sg.methods.operation_freezing import OPERATION_FREEZING, OperationFreezing
from darts_sg.methods.parts import build_part, build_parts
from darts_sg.methods.perturbations import PERTURBATIONS, Perturbation
from darts_sg.methods.perturbations.none import Unperturbed
from darts_sg.methods.regularizers import REGULARIZERS, Regularizer
from darts_sg.methods.regularizers.size import Macs, MeasuredLatency, Params, Size
from darts_sg.methods.relaxations import RELAXATIONS, Relaxation
from darts_sg.methods.selection import SELECTIONS, Selection
from darts_sg.methods.selection.argmax import Argmax
from darts_sg.methods.selection.bounded import Bounded
from darts_sg.methods.stages import STAGE_PLANS, Stage, StageOptions
from darts_sg.methods.weight_regularizers import WEIGHT_REGULARIZERS, WeightRegularizer
from darts_sg.spaces import parse_space

NUM_REDUCTIONS = 2  # cells of a network that are reductions
PENALTIES: dict[str, type[Size]] = {"params": Params, "macs": Macs, "latency": MeasuredLatency}


class MethodOptions(StageOptions, Protocol):
    """The options of a search that a method is built from."""

    @property
    def relaxation(self) -> str: ...
    @property
    def hypergradient(self) -> str: ...
    @property
    def regularizer(self) -> str: ...
    @property
    def penalty(self) -> str: ...
    @property
    def target_params(self) -> str: ...
    @property
    def target_macs(self) -> str: ...
    @property
    def target_latency(self) -> str: ...
    @property
    def latency_table(self) -> Path | None: ...
    @property
    def perturbation(self) -> str: ...
    @property
    def auxiliary_skip(self) -> str: ...
    @property
    def weight_regularizer(self) -> str: ...
    @property
    def freeze_operations(self) -> str: ...
    @property
    def drop_path_prob(self) -> float | None: ...
    @property
    def selection(self) -> str: ...
    @property
    def nesterov(self) -> bool: ...
    @property
    def stages(self) -> str: ...
    @property
    def stop_eigenvalue(self) -> float | None: ...
    @property
    def stop_skips(self) -> int | None: ...


@dataclass(frozen=True)
class Method:
    """How a search turns losses into a genotype."""

    relaxation: Relaxation
    hypergradient: HypergradientMethod
    regularizers: dict[str, Regularizer]
    """By name, to be prepared for the search (`Regularizer.prepare`)."""
    perturbation: Perturbation
    auxiliary_skip: AuxiliarySkip
    drop_path: EdgeDropPath | None
    weight_regularizer: WeightRegularizer
    operation_freezing: OperationFreezing
    stages: tuple[Stage, ...]
    early_stopping: EarlyStopping
    selection: Selection

    @property
    def is_single_level(self) -> bool:
        """Whether weights and alphas learn from the same pass over the same images (SNAS)."""
        return self.hypergradient is single_level

    @property
    def has_skip_dropout(self) -> bool:
        """Whether dropout follows skip connections in any stage."""
        return any(stage.skip_dropout for stage in self.stages)

    @property
    def is_capturable(self) -> bool:
        """Whether a step on a GPU may be captured as a CUDA graph, which replays the same launches each time.

        Hard samples launch other operations in each step; the other methods ruled out count steps or draw random
        numbers in Python.
        """
        unlike = self.weight_regularizer.needed or self.operation_freezing.needed or self.has_skip_dropout
        return not (unlike or self.relaxation.is_one_hot)


def method_of(options: MethodOptions) -> Method:
    """The method that the options of a search describe; UsageError in one line if they describe none."""
    regularizers = _regularizers(options)
    freezing = build_part(OPERATION_FREEZING, options.freeze_operations, "--freeze-operations")
    selection = _selection(options, any(isinstance(r, Size) and r.target for r in regularizers.values()))
    if selection.has_phase and (options.stop_eigenvalue is not None or options.stop_skips is not None):
        early = "--stop-eigenvalue" if options.stop_eigenvalue is not None else "--stop-skips"
        raise UsageError(
            f"{early} returns the genotype of an earlier epoch, and --selection {cut(options.selection)} selects on "
            "the supernet of the last one; leave one of them out"
        )
    method = Method(
        relaxation=build_part(RELAXATIONS, options.relaxation, "--relaxation"),
        hypergradient=_hypergradient(options, freezing),
        regularizers=regularizers,
        perturbation=build_part(PERTURBATIONS, options.perturbation, "--perturbation"),
        auxiliary_skip=build_part(AUXILIARY_SKIPS, options.auxiliary_skip, "--auxiliary-skip"),
        drop_path=EdgeDropPath(options.drop_path_prob) if options.drop_path_prob else None,
        weight_regularizer=_weight_regularizer(options),
        operation_freezing=freezing,
        stages=_stages(options),
        early_stopping=EarlyStopping(options.stop_eigenvalue, options.stop_skips),
        selection=selection,
    )
    _refuse_combinations(method, options)
    _refuse_with_stages(method, options)
    return method


def _refuse_combinations(method: Method, options: MethodOptions) -> None:
    """UsageError for parts that have no meaning together."""
    for name, regularizer in method.regularizers.items():
        try:
            regularizer.refuse(method.relaxation)
        except UsageError as error:
            raise UsageError(f"--regularizer {name} with --relaxation {cut(options.relaxation)}: {error}") from None
    try:
        method.perturbation.refuse(method.relaxation)
    except UsageError as error:
        raise UsageError(
            f"--perturbation {cut(options.perturbation)} with --relaxation {cut(options.relaxation)}: {error}"
        ) from None
    if method.is_single_level and not isinstance(method.perturbation, Unperturbed):
        raise UsageError(
            f"--perturbation {cut(options.perturbation)} with --hypergradient single_level: only the weights may see "
            "perturbed mixing weights, and a single pass gives the gradients of both; leave one of them out"
        )
    if method.is_single_level and method.weight_regularizer.needed:
        raise UsageError(
            f"--weight-regularizer {cut(options.weight_regularizer)} with --hypergradient single_level: a single pass "
            "gives the gradients of weights and alphas, and the term is for the weights alone; leave one of them out"
        )
    if method.hypergradient is unrolled and options.nesterov:
        raise UsageError(
            "--nesterov with --hypergradient unrolled: the virtual step looks through plain momentum; leave one of "
            "them out"
        )


def _stages(options: MethodOptions) -> tuple[Stage, ...]:
    plan = build_part(STAGE_PLANS, options.stages, "--stages")
    try:
        return plan.stages(options)
    except UsageError as error:
        raise UsageError(f"--stages {cut(options.stages)}: {error}") from None


def _refuse_with_stages(method: Method, options: MethodOptions) -> None:
    """UsageError for parts that have no meaning in a search of several stages."""
    if len(method.stages) == 1:
        return
    fewest = min(stage.cells for stage in method.stages)
    wrong = {
        "--stop-eigenvalue": (
            options.stop_eigenvalue is not None,
            "compares eigenvalues of one supernet, and each stage has its own",
        ),
        "--stop-skips": (options.stop_skips is not None, "would end the search before its last stage"),
        f"--selection {cut(options.selection)}": (method.selection.has_phase, "decides on a supernet of one stage"),
        f"--freeze-operations {cut(options.freeze_operations)}": (
            method.operation_freezing.needed,
            "freezes operations for good, and stages give them new weights",
        ),
        "a target": (
            any(isinstance(term, Size) and term.target for term in method.regularizers.values()),
            "may be out of reach once operations are pruned",
        ),
        f"space {cut(options.space)}": (
            parse_space(options.space).allowed is not None,
            "has a list of operations for each edge, which stages would prune",
        ),
        f"--weight-regularizer {cut(options.weight_regularizer)} in {fewest} cells": (
            fewest < method.weight_regularizer.min_normal_cells + NUM_REDUCTIONS,
            "compares normal cells, and a stage has too few",
        ),
        f"--hypergradient {options.hypergradient}": (
            method.has_skip_dropout and method.hypergradient is unrolled,
            "takes the difference of passes, and the dropout after skip connections draws anew in each",
        ),
        f"--weight-regularizer {cut(options.weight_regularizer)}": (
            method.has_skip_dropout and method.weight_regularizer.needed,
            "takes the difference of passes, and the dropout after skip connections draws anew in each",
        ),
    }
    for name, (found, reason) in wrong.items():
        if found:
            raise UsageError(f"--stages {cut(options.stages)} with {name}: it {reason}; leave one of them out")


def _hypergradient(options: MethodOptions, freezing: OperationFreezing) -> HypergradientMethod:
    if not freezing.needed:
        return HYPERGRADIENTS[options.hypergradient]
    if options.hypergradient != "first_order":
        raise UsageError(
            f"--freeze-operations {cut(options.freeze_operations)} compares both gradients at the same weights, "
            f"which --hypergradient {options.hypergradient} does not take; choose first_order"
        )
    return first_order_with_weights


def _weight_regularizer(options: MethodOptions) -> WeightRegularizer:
    found = build_part(WEIGHT_REGULARIZERS, options.weight_regularizer, "--weight-regularizer")
    least = found.min_normal_cells + NUM_REDUCTIONS
    if options.cells < least:
        raise UsageError(
            f"--weight-regularizer {cut(options.weight_regularizer)} compares normal cells, of which --cells "
            f"{options.cells} leaves {options.cells - NUM_REDUCTIONS}; give --cells {least} or more"
        )
    return found


def _regularizers(options: MethodOptions) -> dict[str, Regularizer]:
    """Those of --target-params, --target-macs, --target-latency and --penalty, and of --regularizer."""
    weights: dict[str, float] = {}
    targets = {"params": options.target_params, "macs": options.target_macs, "latency": options.target_latency}
    for name, target in targets.items():
        if target:
            PENALTIES[name].parse(f"--target-{name}", target)
            weights[name] = 1.0
    if options.penalty:
        name, _, text = options.penalty.partition(":")
        number = re.fullmatch(r"\d+(\.\d+)?(e-?\d+)?", text)
        if name not in PENALTIES or number is None or not math.isfinite(float(text)):
            raise UsageError(
                f"--penalty {cut(options.penalty)}: expected params:WEIGHT, macs:WEIGHT or latency:WEIGHT, such as "
                "params:0.1"
            )
        weights[name] = float(text)
    found: dict[str, Regularizer] = {name: PENALTIES[name](w, targets[name]) for name, w in weights.items()}
    for name, regularizer in build_parts(REGULARIZERS, options.regularizer, "--regularizer").items():
        if name in found:
            flag = "--penalty" if (options.penalty or "").startswith(name) else f"--target-{name}"
            raise UsageError(f"--regularizer {name} and {flag} are the same term; give one of them")
        found[name] = regularizer
    if any(isinstance(regularizer, MeasuredLatency) for regularizer in found.values()) != (
        options.latency_table is not None
    ):
        raise UsageError(
            "a latency is that of measured operations: add --latency-table FILE (see python -m darts_sg latency-table)"
            if options.latency_table is None
            else "--latency-table is for --penalty latency:WEIGHT and --target-latency; add one, or leave it out"
        )
    return found


def _selection(options: MethodOptions, bounded: bool) -> Selection:
    """argmax becomes `bounded` beside a target, any other selection that does not keep bounds is refused."""
    found = build_part(SELECTIONS, options.selection, "--selection")
    if bounded and isinstance(found, Argmax):
        return Bounded()
    if bounded and not found.keeps_bounds:
        raise UsageError(
            f"--selection {cut(options.selection)} does not keep the bounds of a target; take bounded, or leave the "
            "target out"
        )
    return found
