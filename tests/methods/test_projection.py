"""Selection by perturbation: the rule against one written out, and what a trial measures against the textbook."""

import itertools
from collections.abc import Callable, Mapping

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from darts_sg.backends.batched import plain_tensors
from darts_sg.derive import num_edges
from darts_sg.errors import UsageError
from darts_sg.methods.mixing import softmax
from darts_sg.methods.parts import build_part
from darts_sg.methods.selection import SELECTIONS, SelectionPhase, Setup
from darts_sg.methods.selection.projection import Projection
from darts_sg.networks.supernet import Mixing
from tests.engine.test_search_method import job_of
from tests.reference import textbook
from tests.reference.transfer import copy_tensors

NAMES = ("none", "skip_connect", "sep_conv_3x3", "max_pool_3x3")
NODES = 3
Tables = dict[str, np.ndarray]


def phase_of(seed: int = 0, text: str = "projection:tuning_epochs=0") -> SelectionPhase:
    found = build_part(SELECTIONS, text, "--selection").phase(Setup(NAMES, NODES, 50, seed))
    assert found is not None
    return found


def mixing(seed: int = 0) -> Mixing:
    rng = np.random.default_rng(seed)
    return Mixing(*(torch.from_numpy(rng.dirichlet(np.ones(len(NAMES)), num_edges(NODES))) for _ in range(2)))


def made_up_accuracy(seed: int) -> Callable[[Tables], float]:
    """A function of both tables of mixing weights in which edges and cells depend on each other."""
    rng = np.random.default_rng(seed)
    size = 2 * num_edges(NODES) * len(NAMES)
    linear, mixed = rng.normal(size=size), rng.normal(size=(size, size))

    def accuracy(tables: Tables) -> float:
        w = np.concatenate([tables["normal"].ravel(), tables["reduce"].ravel()])
        return float(linear @ w + w @ mixed @ w)

    return accuracy


def decide_all(phase: SelectionPhase, accuracy: Callable[[Tables], float], weights: Mixing, due: int = 10**6) -> int:
    """Answer all trials that are due; returns their number."""
    for count in itertools.count():
        if (trial := phase.next_trial(due)) is None:
            return count
        found = trial.mixing(weights)
        tables = {name: getattr(found, name).numpy() for name in ("normal", "reduce")}
        phase.note(trial, {"accuracy": accuracy(tables), "loss": 0.0}, "accuracy")
    raise AssertionError


def brute_force(
    orders: Mapping[str, list[tuple[str, int]]], accuracy: Callable[[Tables], float], weights: Mixing
) -> Tables:
    """The rule of the paper on tables: in turns one subject of each cell, all alternatives tried on copies."""
    tables = {name: getattr(weights, name).numpy().copy() for name in ("normal", "reduce")}
    for turn, name in itertools.product(range(len(orders["normal"])), ("normal", "reduce")):
        kind, subject = orders[name][turn]

        def without(*place: int, name: str = name) -> float:
            tried = {title: table.copy() for title, table in tables.items()}
            tried[name][place] = 0
            return accuracy(tried)

        if kind == "edge":
            worst = min((without(subject, op), op) for op in range(len(NAMES)) if NAMES[op] != "none")
            tables[name][subject] = np.eye(len(NAMES))[worst[1]]
            continue
        start = sum(2 + i for i in range(subject))
        inputs = list(range(start, start + 2 + subject))
        while len(inputs) > 2:
            best = max((without(edge), edge) for edge in inputs)
            tables[name][best[1]] = 0
            inputs.remove(best[1])
    return tables


@pytest.mark.parametrize("seed", range(4))
def test_the_rule_is_that_of_the_paper(seed: int) -> None:
    phase, weights, accuracy = phase_of(seed), mixing(seed), made_up_accuracy(seed)
    orders = dict(zip(("normal", "reduce"), phase.subjects, strict=True))  # type: ignore[attr-defined]
    assert decide_all(phase, accuracy, weights) == phase.num_trials()
    expected = brute_force(orders, accuracy, weights)
    found = phase.mixing(weights)
    for name, table in expected.items():
        assert np.array_equal(getattr(found, name).numpy(), table)
    tables = {name: getattr(found, name).numpy() for name in expected}
    for name, cell in zip(expected, phase.cells(tables), strict=True):
        kept = {(sum(2 + i for i in range(s - 2)) + e.state, NAMES.index(e.operation)) for s, e in cell.edges()}
        assert kept == {tuple(place) for place in np.argwhere(expected[name]).tolist()}
        assert len(kept) == 2 * NODES
    assert len(phase.decisions()) == 2 * (num_edges(NODES) + NODES - 1)


def test_edges_come_before_nodes_in_an_order_of_the_seed() -> None:
    one, same, other = (phase_of(seed).subjects for seed in (0, 0, 1))  # type: ignore[attr-defined]
    assert one == same != other
    assert one[0] != one[1]
    for subjects in one:
        assert sorted(subjects[:9]) == [("edge", edge) for edge in range(9)]
        assert sorted(subjects[9:]) == [("node", 1), ("node", 2)]


def test_one_decision_a_cell_is_due_after_each_tuning_and_the_last_one_at_the_end() -> None:
    phase = phase_of(text="projection:tuning_epochs=3")
    assert phase.epochs == 3 * (num_edges(NODES) + NODES - 1 - 1)
    counts = []
    for due in range(phase.epochs + 1):
        decide_all(phase, made_up_accuracy(0), mixing(), due)
        counts.append(len(phase.decisions()))
    assert counts == [2 * (1 + due // 3) for due in range(phase.epochs + 1)]


@pytest.mark.parametrize(("epochs", "tuning"), [(50, 5), (5, 1), (100, 10), (1, 1)])
def test_tuning_takes_a_tenth_of_the_epochs_unless_the_option_says_otherwise(epochs: int, tuning: int) -> None:
    assert Projection().phase(Setup(NAMES, NODES, epochs, 0)).tuning_epochs == tuning


def test_state_within_a_decision_goes_on_to_the_same_decisions() -> None:
    weights, accuracy = mixing(), made_up_accuracy(2)
    whole = phase_of()
    decide_all(whole, accuracy, weights)
    begun = phase_of()
    for _ in range(40):
        trial = begun.next_trial(0)
        assert trial is not None
        tables = trial.mixing(weights)
        measures = {"accuracy": accuracy({"normal": tables.normal.numpy(), "reduce": tables.reduce.numpy()})}
        begun.note(trial, measures, "accuracy")
    resumed = phase_of()
    resumed.load_state_dict(begun.state_dict())
    assert decide_all(resumed, accuracy, weights) == whole.num_trials() - 40
    assert resumed.decisions() == whole.decisions()
    assert torch.equal(resumed.mixing(weights).normal, whole.mixing(weights).normal)


def test_ties_go_to_the_loss_and_then_to_the_first() -> None:
    phase = phase_of()
    for loss in (1.0, 3.0, 3.0):
        trial = phase.next_trial(0)
        assert trial is not None
        phase.note(trial, {"accuracy": 0.5, "loss": loss}, "accuracy")
    assert phase.decisions()[0]["kept"] == "sep_conv_3x3"  # the first with the highest loss without it


def test_a_trial_measures_the_supernet_without_the_operation_and_leaves_it_as_it_was() -> None:
    """Against the textbook supernet with the operation taken out, normalised by the statistics of the batch."""
    job = job_of(selection="projection", nodes=2)
    job.step(0, 0)
    before = {name: value.clone() for name, value in job.supernet.state_dict().items()}
    assert job.phase is not None
    weights, edge = softmax(job.supernet), job.phase.subjects[0][0][1]  # type: ignore[attr-defined]
    for removed in ("sep_conv_3x3", "skip_connect"):
        net = textbook.Supernet(job.supernet.operations, channels=4, cells=3, num_classes=3, num_nodes=2)
        copy_tensors(net.parameters(), plain_tensors(job.supernet).values())
        for cell in net.cells:
            if not cell.reduction:
                cell.edges[edge].ops[job.supernet.operations.index(removed)] = textbook.Zero(1)
        trial = job.phase.next_trial(0)
        assert trial is not None
        measures = job._measure(trial)
        with torch.no_grad():
            found = [(net(x, weights.normal, weights.reduce), y) for x, y in job.trial_batches]  # type: ignore[attr-defined]
        losses = [F.cross_entropy(logits, y, reduction="sum") for logits, y in found]
        right = sum(int((logits.argmax(dim=1) == y).sum()) for logits, y in found)
        count = len(job.validation_images)
        assert measures["loss"] == pytest.approx(float(torch.stack(losses).sum()) / count, rel=1e-5)
        assert measures["accuracy"] == right / count
        job.phase.note(trial, measures, "accuracy")
    after = job.supernet.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"selection": "projection:tuning_epochs=-1"}, "tuning_epochs must be at least 0, found -1"),
        ({"selection": "projection:learning_rate=0"}, "learning_rate must be above 0, found 0.0"),
        ({"selection": "projection", "stop_skips": 2}, "--stop-skips returns the genotype of an earlier epoch"),
        ({"selection": "projection", "target_params": "3M"}, "does not keep the bounds of a target"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        job_of(**options)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
