"""Searches by other methods than DARTS: what their steps see, and that a resumed run goes on to the same bits."""

import copy
import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from darts_sg.analysis.run_folder import read_search_epoch
from darts_sg.config import load_recipe
from darts_sg.engine.search import SearchJob
from darts_sg.errors import UsageError
from darts_sg.methods.hypergradient import HYPERGRADIENTS, frozen
from darts_sg.methods.mixing import softmax
from darts_sg.methods.parts import build_part
from darts_sg.methods.perturbations import PERTURBATIONS, Perturbation
from darts_sg.methods.regularizers import REGULARIZERS, Regularizer
from darts_sg.methods.relaxations import RELAXATIONS, Relaxation
from darts_sg.networks.supernet import Mixing
from tests.engine.test_search_step import search_config, setting
from tests.test_command_line import assert_same, in_process, newest_state

GUMBEL = "gumbel:temperature=5,temperature_end=0.5"
SMALL = {"kernels": "pytorch", "space": "sep_conv_3x3+skip_connect+none", "alpha_learning_rate": 0.05}


def job_of(**options: object) -> SearchJob:
    torch.manual_seed(0)
    return SearchJob(search_config(**{**SMALL, **options}), setting())


def mixings_of_a_step(job: SearchJob, epoch: int = 0, step: int = 0) -> list[Mixing]:
    """The mixing weights of each forward pass of a step."""
    seen: list[Mixing] = []
    hook = job.supernet.register_forward_pre_hook(
        lambda net, inputs: seen.append(Mixing(*(None if t is None else t.detach().clone() for t in inputs[1])))
    )
    job.step(epoch, step)
    hook.remove()
    return seen


def test_the_four_passes_of_the_unrolled_gradient_see_one_noise_and_the_weights_another() -> None:
    job = job_of(relaxation=GUMBEL, hypergradient="unrolled", edge_normalization=True)
    *hypergradient, weights = mixings_of_a_step(job)
    assert len(hypergradient) == 4
    for mixing in hypergradient[1:]:
        assert_same(mixing._asdict(), hypergradient[0]._asdict())
    assert not torch.equal(weights.normal, hypergradient[0].normal)
    assert not torch.equal(hypergradient[0].normal, hypergradient[0].reduce)
    assert not torch.equal(hypergradient[0].normal, softmax(job.supernet).normal)


def test_each_step_draws_anew_and_a_repeated_one_the_same() -> None:
    job = job_of(relaxation=GUMBEL, alpha_frozen_epochs=5)
    [first], [second], [again] = (mixings_of_a_step(job, step=step) for step in (0, 1, 0))
    assert not torch.equal(first.normal, second.normal)
    assert_same(first._asdict(), again._asdict())
    [other] = mixings_of_a_step(job_of(relaxation=GUMBEL, alpha_frozen_epochs=5, seed=1))
    assert not torch.equal(first.normal, other.normal)


def test_the_noise_does_not_disturb_other_random_numbers() -> None:
    states = []
    for relaxation in ("softmax", GUMBEL):
        job = job_of(relaxation=relaxation, perturbation="random")
        job.step(0, 0)
        states.append((torch.get_rng_state(), job.train[1], job.validation[1]))
    assert_same(*states)


@pytest.mark.parametrize("hard", [False, True])
def test_a_gumbel_step_is_the_formula_written_out(hard: bool) -> None:
    """Alphas by Adam and weights by SGD, each with its own sample of noise, in float64."""
    job = job_of(relaxation=f"{GUMBEL},hard={hard},gradient=all", gradient_clip=float("inf"))
    job.supernet.double().register_forward_pre_hook(lambda net, inputs: (inputs[0].double(), *inputs[1:]))
    net = copy.deepcopy(job.supernet)
    step = 3
    job.step(1, step)
    job_generator = torch.Generator().manual_seed(job.generator.initial_seed())
    done = (job.steps_per_epoch + step) / (5 * job.steps_per_epoch)

    def mixing() -> Mixing:
        samples = []
        for alpha in net.alphas():
            noise = -torch.empty(alpha.shape, dtype=torch.float64).exponential_(generator=job_generator).log()
            scores = torch.exp((alpha + noise) / (5 + (0.5 - 5) * done))
            soft = scores / scores.sum(dim=1, keepdim=True)
            one_hot = (soft == soft.max(dim=1, keepdim=True).values).double()
            samples.append(one_hot - soft.detach() + soft if hard else soft)
        return Mixing(*samples)

    x, y = job.validation[job.steps_per_epoch + step]
    gradients = torch.autograd.grad(F.cross_entropy(net(x, mixing()), y), net.alphas())
    for alpha, gradient in zip(net.alphas(), gradients, strict=True):
        g = gradient + job.config.alpha_weight_decay * alpha.detach()
        alpha.data -= job.config.alpha_learning_rate * g / (g.abs() + 1e-8)
    for mine, expected in zip(job.alphas, net.alphas(), strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-5, atol=1e-7)
    x, y = job.train[job.steps_per_epoch + step]
    with frozen(net.alphas()):
        gradients = torch.autograd.grad(F.cross_entropy(net(x, mixing()), y), net.weights())
    for weight, gradient in zip(net.weights(), gradients, strict=True):
        weight.data -= job.weight_optimizer.param_groups[0]["lr"] * (
            gradient + job.config.weight_decay * weight.detach()
        )
    for mine, expected in zip(job.weights, net.weights(), strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-5, atol=1e-7)


def test_logs_evaluation_and_derivation_see_the_expected_weights_not_a_sample(tmp_path: Path) -> None:
    job = job_of(relaxation=GUMBEL + ",hard=true")
    for step in range(3):
        job.step(0, step)
    mixing = softmax(job.supernet)
    expected = {title: getattr(mixing, title).detach().double().numpy() for title in ("normal", "reduce")}
    for _ in range(2):
        found = job.mixing()
        assert found.keys() == expected.keys()
        assert all(np.array_equal(found[title], weights) for title, weights in expected.items())
    seen: list[Mixing] = []
    job.supernet.register_forward_pre_hook(lambda net, inputs: seen.append(inputs[1]))
    job.evaluate()
    job.eigenvalue()
    assert len(seen) > 3
    for mixing in seen[:3]:
        np.testing.assert_allclose(mixing.normal.detach().double().numpy(), expected["normal"], rtol=1e-6, atol=1e-6)
    plain = job_of()
    plain.supernet.load_state_dict(job.supernet.state_dict())
    assert job.select(job.mixing()) == plain.select(plain.mixing())


@pytest.mark.parametrize(
    "options",
    [
        {"relaxation": GUMBEL},
        {"relaxation": GUMBEL + ",hard=true", "hypergradient": "unrolled", "kernels": "auto"},
        {"perturbation": "adversarial:steps=2", "relaxation": "dirichlet", "regularizer": "kl"},
        {"relaxation": "reinmax", "hypergradient": "single_level", "regularizer": "beta-decay", "recompute": True},
        {"perturbation": "random", "partial_channels": 2, "edge_normalization": True, "regularizer": "macs:0.5"},
    ],
)
def test_a_resumed_job_goes_on_to_the_same_bits_within_a_schedule(options: dict[str, object]) -> None:
    whole, begun = job_of(**options), job_of(**options)
    for job in (whole, begun):
        for step in range(2):
            job.step(0, step)
    resumed = job_of(**options)
    resumed.load_state_dict(copy.deepcopy(begun.state_dict()))
    for job in (whole, resumed):
        for epoch, step in ((0, 2), (1, 0)):
            means = job.step(epoch, step).means
        assert means["train_loss"].isfinite()
    assert_same(whole.state_dict(), resumed.state_dict())


@dataclass(frozen=True)
class Sharpened(Relaxation):
    """A softmax at a fixed temperature: a relaxation from outside, without a thought for edge weights."""

    temperature: float = 0.5

    def sample(self, alphas: torch.Tensor, progress: torch.Tensor, drawn: torch.Tensor | None) -> torch.Tensor:
        return self.expected(alphas)

    def expected(self, alphas: torch.Tensor) -> torch.Tensor:
        return (alphas / self.temperature).softmax(dim=-1)


HARD = "gumbel:hard=true"
EVERY_RELAXATION = [*RELAXATIONS, "sharpened:temperature=0.1"]
# each relaxation with one hypergradient in turns, and hard samples with all of them
PAIRS = [
    *zip(EVERY_RELAXATION, itertools.cycle(HYPERGRADIENTS), strict=False),
    *((HARD, name) for name in HYPERGRADIENTS),
]


def goes_with(part: Regularizer | Perturbation, relaxation: Relaxation) -> bool:
    try:
        part.refuse(relaxation)
    except UsageError:
        return False
    return True


@pytest.mark.parametrize(("relaxation", "hypergradient"), PAIRS)
def test_every_relaxation_combines_with_all_parts_that_have_a_meaning_with_it(
    relaxation: str, hypergradient: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(RELAXATIONS._entries, "sharpened", Sharpened)
    made = build_part(RELAXATIONS, relaxation, "")
    terms = [name for name in REGULARIZERS if name != "latency" and goes_with(REGULARIZERS[name](), made)]
    perturbed = hypergradient != "single_level" and goes_with(PERTURBATIONS["random"](), made)
    job = job_of(
        relaxation=relaxation, hypergradient=hypergradient, partial_channels=2, edge_normalization=True,
        regularizer="+".join(terms), perturbation="random" if perturbed else "none",
        selection="bounded:max_skips=1",
    )  # fmt: skip
    before = [alpha.detach().clone() for alpha in job.alphas]
    means = job.step(0, 0).means
    assert {f"penalty_{name}" for name in terms} <= means.keys()
    assert all(value.isfinite() for value in means.values())
    assert not any(torch.equal(a, b) for a, b in zip(before, job.alphas, strict=True))
    assert set(job.mixing()) == {"normal", "reduce", "edge_normal", "edge_reduce"}
    assert job.select(job.mixing())


@pytest.mark.parametrize(
    ("relaxation", "options"),
    [
        (HARD, {}),
        (HARD, {"space": "S1", "nodes": 4}),
        ("reinmax", {}),
        ("gumbel:hard=true,gradient=all", {}),
    ],
)
def test_hard_samples_compute_the_chosen_operations_alone(relaxation: str, options: dict[str, object]) -> None:
    """In the weights' step always, in that of the alphas unless their gradient is to see all operations."""
    job = job_of(relaxation=relaxation, **options)
    seen: list[bool] = []
    job.supernet.register_forward_pre_hook(lambda net, inputs: seen.append(inputs[2:] not in ((), (None,))))
    job.step(0, 0)
    assert seen == ["all" not in relaxation, True]
    job.evaluate()
    assert not any(seen[2:])
    assert {parameter.grad is None for parameter in job.weights} == {False}  # zeros where nothing was computed


def test_perturbed_hard_samples_are_computed_in_full() -> None:
    job = job_of(relaxation=HARD, perturbation="random")
    seen: list[bool] = []
    job.supernet.register_forward_pre_hook(lambda net, inputs: seen.append(inputs[2:] not in ((), (None,))))
    job.step(0, 0)
    assert seen == [True, False]


def test_an_attack_leaves_statistics_modes_and_other_random_numbers_alone() -> None:
    """The step after it is that of the same noise, and the supernet sees each batch twice in train mode, as always."""
    states = []
    for perturbation in ("none", "adversarial:epsilon=0,epsilon_end=0"):
        job = job_of(perturbation=perturbation)
        job.supernet.cells[0].eval()  # a mode of its own
        job.step(0, 0)
        modes = [module.training for module in job.supernet.modules()]
        states.append((job.supernet.state_dict(), modes, torch.get_rng_state()))
    assert_same(*states)


def test_a_single_level_search_learns_from_one_pass_over_all_images() -> None:
    job = job_of(hypergradient="single_level", relaxation=GUMBEL)
    assert len(job.train_images) == len(job.validation_images) == 48
    assert not job.holds_out
    before = [tensor.detach().clone() for tensor in (*job.alphas, job.weights[0])]
    assert len(mixings_of_a_step(job)) == 1
    assert not any(torch.equal(a, b) for a, b in zip(before, (*job.alphas, job.weights[0]), strict=True))
    assert "48 for the weights, 48 for the alphas" in job.facts()[-1]
    held_out = job_of(hypergradient="single_level", validation_images=8)
    assert (len(held_out.train_images), len(held_out.validation_images)) == (40, 8)
    assert held_out.holds_out
    assert "40 for the weights, 40 for the alphas" in held_out.facts()[-1]
    frozen_one = job_of(hypergradient="single_level", alpha_frozen_epochs=1)
    before = [alpha.detach().clone() for alpha in frozen_one.alphas]
    frozen_one.step(0, 0)
    assert all(torch.equal(a, b) for a, b in zip(before, frozen_one.alphas, strict=True))


def test_options_of_the_alphas_and_of_the_optimizers_are_used() -> None:
    job = job_of(alpha_mean=3.0, alpha_deviation=0.0, alpha_beta1=0.3, alpha_beta2=0.4, nesterov=True)
    assert job.alphas[0].unique().tolist() == [3.0]
    assert job.alpha_optimizer.param_groups[0]["betas"] == (0.3, 0.4)
    assert job.weight_optimizer.param_groups[0]["nesterov"]
    assert job_of(relaxation="sigmoid").alphas[0].unique().tolist() == [0.0]
    assert job_of(relaxation="sigmoid", alpha_deviation=1.0).alphas[0].std() > 0.3
    deviation = job_of(alpha_mean=1.0).alphas[0].std()
    assert 0 < deviation < 0.01


def test_only_the_step_of_the_weights_is_perturbed() -> None:
    plain, perturbed = (mixings_of_a_step(job_of(perturbation=name)) for name in ("none", "random:0.2,epsilon_end=0.2"))
    assert len(plain) == len(perturbed) == 2
    assert torch.equal(plain[0].normal, perturbed[0].normal)
    difference = (plain[1].normal - perturbed[1].normal).abs().max()
    assert 0.01 < difference < 0.5


def test_bounds_that_no_genotype_meets_are_refused_before_the_first_step(
    capsys: pytest.CaptureFixture[str], rendered_once: None
) -> None:
    options = ["--train-images=16", "--validation-images=16", "--batch-size=8", "--space=skip_connect+none"]
    small = ["--dataset=synthetic", "--channels=4", "--cells=3", "--nodes=1", "--selection=bounded:max_skips=0"]
    code, _, err = in_process(capsys, "search", *options, *small, "--dry-run")
    assert code == 2
    assert "no genotype of this space has at most 0 skip_connect in the normal cell" in err


def test_a_search_by_recipe_with_parts_leaves_raw_alphas_and_is_resumed_to_the_same_bits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], rendered_once: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert load_recipe("search", "gumbel")["relaxation"].startswith("gumbel:")
    command = [
        "search", "--recipe=gumbel", "--dataset=synthetic", "--batch-size=8", "--train-images=16", "--epochs=2",
        "--validation-images=16", "--channels=4", "--cells=3", "--nodes=2", "--space=sep_conv_3x3+skip_connect",
        "--selection=skip-limit:most=1", "--perturbation=random", "--threads=1",
    ]  # fmt: skip
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    code, _, err = in_process(capsys, *command, f"--run-dir={whole}")
    assert code == 0, err
    step = SearchJob.step

    def killed_step(job: SearchJob, epoch: int, number: int) -> object:
        if (epoch, number) == (1, 1):
            raise KeyboardInterrupt
        return step(job, epoch, number)

    monkeypatch.setattr(SearchJob, "step", killed_step)
    assert in_process(capsys, *command, f"--run-dir={killed}")[0] == 130
    monkeypatch.undo()
    assert in_process(capsys, "search", "--resume", str(killed))[0] == 0
    assert_same(newest_state(whole)["state"], newest_state(killed)["state"])
    for epoch in (1, 2):
        one, two = (np.load(run / "alphas" / f"epoch_{epoch:04}.npz") for run in (whole, killed))
        assert set(one.files) == {"normal", "reduce", "alpha_normal", "alpha_reduce"}
        assert all(np.array_equal(one[name], two[name]) for name in one.files)
    state = newest_state(whole)["state"]["supernet"]
    assert np.array_equal(one["alpha_normal"], state["alpha_normal"].numpy())
    record = read_search_epoch(whole)
    assert set(record.weights) == {"normal", "reduce"}
    assert record.genotype.count("skip_connect")[0] <= 1
    assert record.genotype.provenance["options"]["selection"] == "skip-limit:most=1"
    report = (whole / "report.md").read_text()
    assert "relaxation gumbel:temperature=10," in report
    assert "perturbation random, selection skip-limit:most=1" in report


def test_a_method_that_cannot_be_is_one_line_and_exit_2(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = in_process(capsys, "search", "--relaxation=gumbel:tau=3")
    assert code == 2
    assert (
        "--relaxation gumbel:tau=3: unknown option 'tau'; choices: temperature, temperature_end, hard, gradient" in err
    )
    assert err.count("\n") == 1
    with pytest.raises(UsageError, match="--regularizer size"):
        search_config(regularizer="size:1")
