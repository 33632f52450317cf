"""Parts chosen by name with options, and the method that the options of a search describe."""

import itertools
import re
from dataclasses import dataclass
from types import SimpleNamespace

import pytest

from darts_sg.config import SearchConfig, help_texts
from darts_sg.errors import UsageError
from darts_sg.methods.auxiliary_skips import AUXILIARY_SKIPS
from darts_sg.methods.early_stopping import EarlyStopping
from darts_sg.methods.hypergradient import HYPERGRADIENTS, unrolled
from darts_sg.methods.method import method_of
from darts_sg.methods.operation_freezing import OPERATION_FREEZING
from darts_sg.methods.parts import build_part, build_parts, describe_parts
from darts_sg.methods.perturbations import PERTURBATIONS
from darts_sg.methods.perturbations.random import UniformNoise
from darts_sg.methods.regularizers import REGULARIZERS
from darts_sg.methods.regularizers.size import Macs, Params
from darts_sg.methods.relaxations.gumbel import Gumbel
from darts_sg.methods.relaxations.softmax import Softmax
from darts_sg.methods.selection import SELECTIONS
from darts_sg.methods.selection.argmax import Argmax
from darts_sg.methods.selection.bounded import Bounded
from darts_sg.methods.selection.skip_limit import SkipLimit
from darts_sg.methods.stages import Stage
from darts_sg.methods.weight_regularizers import WEIGHT_REGULARIZERS
from darts_sg.registry import Registry


@dataclass(frozen=True)
class Paint:
    """Paints a wall.

    More about it.
    """

    colour: str
    coats: int = 2
    litres: float = 1.5
    glossy: bool = False
    room: int | None = None

    def __post_init__(self) -> None:
        if self.coats < 1:
            raise UsageError(f"coats must be at least 1, found {self.coats}")


@dataclass(frozen=True)
class Nothing:
    """Does nothing."""


class Plain:
    """Neither has options nor is a dataclass."""


WORKS: Registry[type] = Registry("work")
WORKS.add("paint", Paint)
WORKS.add("nothing", Nothing)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("nothing", Nothing()),
        ("nothing:", Nothing()),
        ("paint:red", Paint("red")),
        ("paint:colour=red,coats=3,litres=1e+1,glossy=true,room=4", Paint("red", 3, 10.0, True, 4)),
        (" paint : colour = red , glossy = False ", Paint("red")),
    ],
)
def test_a_part_is_built_from_its_name_and_typed_options(text: str, expected: object) -> None:
    assert build_part(WORKS, text, "--work") == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("pain:red", "--work pain:red: unknown work 'pain' (did you mean 'paint'?); choices: paint, nothing"),
        ("", "--work : unknown work ''"),
        ("paint", "--work paint: colour is missing, such as colour=VALUE"),
        ("paint:red,coat=3", "unknown option 'coat' (did you mean 'coats'?); choices: colour, coats, litres, glossy"),
        ("paint:red,coats=two", "coats: expected a whole number, found 'two'"),
        ("paint:red,coats=1.5", "coats: expected a whole number, found '1.5'"),
        ("paint:red,litres=much", "litres: expected a finite number, found 'much'"),
        ("paint:red,litres=nan", "litres: expected a finite number, found 'nan'"),
        ("paint:red,litres=1e400", "litres: expected a finite number, found '1e400'"),
        ("paint:red,glossy=maybe", "glossy: expected true or false, found 'maybe'"),
        ("paint:red,room=none", "room: expected a whole number or null, found 'none'"),
        ("paint:red,coats=2,coats=3", "coats is given twice"),
        ("paint:red,green", "colour is given twice"),
        ("paint:red,coats=0", "--work paint:red,coats=0: coats must be at least 1, found 0"),
        ("nothing:x=1", "it has no options, found 'x=1'"),
        ("nothing:\nx", "it has no options, found 'x'"),
    ],
)
def test_a_part_that_cannot_be_built_is_answered_in_one_line(text: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        build_part(WORKS, text, "--work")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_several_parts_are_joined_with_plus() -> None:
    assert build_parts(WORKS, "", "--work") == {}
    found = build_parts(WORKS, "paint:red,litres=1e+1+nothing", "--work")
    assert found == {"paint": Paint("red", litres=10.0), "nothing": Nothing()}
    with pytest.raises(UsageError, match="nothing is named twice"):
        build_parts(WORKS, "nothing+nothing", "--work")


def test_a_class_that_is_no_dataclass_is_a_part_without_options() -> None:
    works: Registry[type] = Registry("work")
    works.add("plain", Plain)
    assert isinstance(build_part(works, "plain", "--work"), Plain)
    assert describe_parts(works) == "plain (Neither has options nor is a dataclass)"
    with pytest.raises(UsageError, match="--work plain:3: it has no options, found '3'"):
        build_part(works, "plain:3", "--work")


def test_choices_are_described_by_options_and_docstrings() -> None:
    assert describe_parts(WORKS) == (
        "paint:colour=COLOUR,coats=2,litres=1.5,glossy=false,[room=ROOM] (Paints a wall); nothing (Does nothing)"
    )
    for name in ("relaxation", "regularizer", "perturbation", "selection"):
        assert "Choices: " in help_texts(SearchConfig)[name]
    assert (
        "gumbel:temperature=1.0,temperature_end=0.1,hard=false,gradient=chosen ("
        in help_texts(SearchConfig)["relaxation"]
    )


def test_the_defaults_are_the_method_of_darts() -> None:
    method = SearchConfig().method()
    assert method.relaxation == Softmax()
    assert (method.regularizers, method.selection) == ({}, Argmax())
    assert method.stages == (Stage(epochs=50, cells=8, partial_channels=1, alpha_frozen_epochs=0),)
    assert method.early_stopping == EarlyStopping()


def test_every_part_is_chosen_by_an_option() -> None:
    method = SearchConfig(
        relaxation="gumbel:temperature=10,temperature-end=0.1,hard=true",
        hypergradient="unrolled",
        regularizer="params:0.1,target=2.45M",
        perturbation="random:epsilon_end=0.2",
        selection="bounded:max_skips=2",
        partial_channels=4,
        alpha_frozen_epochs=15,
        stop_skips=3,
    ).method()
    assert method.relaxation == Gumbel(10.0, 0.1, True)
    assert method.hypergradient is unrolled
    assert method.regularizers == {"params": Params(0.1, "2.45M")}
    assert method.perturbation == UniformNoise(0.03, 0.2)
    assert method.selection == Bounded(2)
    assert method.stages == (Stage(50, 8, 4, 15),)
    assert method.early_stopping == EarlyStopping(None, 3)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"penalty": "params:0.1"}, {"params": Params(0.1)}),
        ({"target_macs": "600M"}, {"macs": Macs(1.0, "600M")}),
        ({"target_macs": "600M", "penalty": "macs:3e-1"}, {"macs": Macs(0.3, "600M")}),
        ({"target_macs": "600M", "penalty": "params:2"}, {"macs": Macs(1.0, "600M"), "params": Params(2.0)}),
        ({"target_macs": "600M", "regularizer": "params:2"}, {"macs": Macs(1.0, "600M"), "params": Params(2.0)}),
    ],
)
def test_penalties_and_targets_are_regularizers(options: dict[str, str], expected: dict[str, object]) -> None:
    assert SearchConfig(**options).method().regularizers == expected


def test_argmax_is_bounded_beside_a_target() -> None:
    assert SearchConfig(target_params="2.45M").method().selection == Bounded()
    assert SearchConfig(regularizer="params:target=2.45M").method().selection == Bounded()
    assert SearchConfig(penalty="params:1").method().selection == Argmax()
    assert SearchConfig(selection="skip-limit:most=1").method().selection == SkipLimit(1)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"relaxation": "gumble"}, "--relaxation gumble: unknown relaxation 'gumble' (did you mean 'gumbel'?)"),
        ({"relaxation": "gumbel:temperature=0"}, "temperature must be above 0, found 0.0"),
        ({"relaxation": "softmax:1"}, "--relaxation softmax:1: it has no options"),
        ({"perturbation": "random:-1"}, "--perturbation random:-1: epsilon must be at least 0, found -1.0"),
        ({"regularizer": "params:-1"}, "--regularizer params:-1: weight must be at least 0"),
        ({"regularizer": "params:target=few"}, "--regularizer params:target=few: target: expected a number such as"),
        ({"regularizer": "params", "penalty": "params:1"}, "--regularizer params and --penalty are the same term"),
        ({"regularizer": "macs", "target_macs": "1G"}, "--regularizer macs and --target-macs are the same term"),
        ({"penalty": "params:1e400"}, "--penalty params:1e400: expected params:WEIGHT"),
        ({"selection": "skip-limit", "target_params": "2M"}, "--selection skip-limit does not keep the bounds"),
        ({"selection": "threshold", "target_params": "2M"}, "--selection threshold does not keep the bounds"),
        ({"selection": "threshold:2"}, "--selection threshold:2: least must be from 0 to 1, found 2.0"),
        ({"relaxation": "reinmax:gradient=some"}, "gradient must be chosen or all, found 'some'"),
        ({"relaxation": "reinmax:temperature=0"}, "temperature must be above 0, found 0.0"),
        ({"regularizer": "kl"}, "--regularizer kl with --relaxation softmax: kl measures Dirichlet distributions"),
        ({"regularizer": "beta-decay:-1"}, "weight must be at least 0, found -1.0"),
        ({"perturbation": "adversarial:steps=0"}, "steps must be at least 1, found 0"),
        ({"nesterov": True, "hypergradient": "unrolled"}, "--nesterov with --hypergradient unrolled: the virtual step"),
        ({"nesterov": True, "momentum": 0.0}, "--nesterov needs momentum"),
        ({"alpha_beta1": 1.0}, "--alpha-beta1 must be from 0 up to, not including, 1: 1.0"),
        ({"alpha_gradient_clip": 0.0}, "--alpha-gradient-clip must be above 0, found 0.0"),
        ({"alpha_deviation": -1.0}, "--alpha-deviation must be at least 0, found -1.0"),
    ],
)
def test_methods_that_cannot_be_are_answered_in_one_line(options: dict[str, str], said: str) -> None:
    with pytest.raises(UsageError, match=re.escape(said)) as caught:
        SearchConfig(**options)
    assert "\n" not in str(caught.value)


def refusal(options: SimpleNamespace) -> str:
    """What is said of options that describe no method; nothing if they describe one."""
    try:
        method_of(options)
    except UsageError as error:
        return str(error)
    return ""


RELAXED = ("softmax", "gumbel", "gumbel:hard=true", "reinmax:gradient=all", "dirichlet", "sigmoid")


@pytest.mark.parametrize("relaxation", RELAXED)
def test_combinations_are_a_method_or_are_refused_with_the_reason(relaxation: str) -> None:
    """The whole grid. Refused are the terms of another relaxation, and perturbations of what is no distribution, or of
    a pass that both learn from."""
    each = [HYPERGRADIENTS, ["", *REGULARIZERS], PERTURBATIONS, SELECTIONS, (False, True), ("", "2M")]
    for hypergradient, regularizer, perturbation, selection, nesterov, target in itertools.product(*each):
        options = SimpleNamespace(
            relaxation=relaxation, hypergradient=hypergradient, regularizer=regularizer, perturbation=perturbation,
            selection=selection, nesterov=nesterov, penalty="", target_params=target, target_macs="", target_latency="",
            latency_table=None, epochs=1, cells=3,
            partial_channels=2, alpha_frozen_epochs=0, stop_eigenvalue=None, stop_skips=None, auxiliary_skip="none",
            weight_regularizer="none", freeze_operations="none", drop_path_prob=None, stages="single",
        )  # fmt: skip
        wrong = {
            "kl": regularizer == "kl" and relaxation != "dirichlet",
            "zero-one": regularizer == "zero-one" and relaxation != "sigmoid",
            "perturbed mixing weights": perturbation != "none" and relaxation == "sigmoid",
            "a single pass": perturbation != "none" and hypergradient == "single_level",
            "plain momentum": nesterov and hypergradient == "unrolled",
            "does not keep the bounds": bool(target) and selection not in {"argmax", "bounded"},
            "the same term": bool(target) and regularizer == "params",
            "add --latency-table": regularizer == "latency",
        }
        said = refusal(options)
        assert bool(said) == any(wrong.values()), options
        assert "\n" not in said
        assert not said or any(reason in said for reason, holds in wrong.items() if holds), (options, said)


def test_parts_of_the_weights_step_combine_or_are_refused_with_the_reason() -> None:
    each = [HYPERGRADIENTS, WEIGHT_REGULARIZERS, OPERATION_FREEZING, AUXILIARY_SKIPS, (None, 0.5)]
    for hypergradient, regularizer, freezing, skip, drop in itertools.product(*each):
        options = {
            "hypergradient": hypergradient, "weight_regularizer": regularizer, "freeze_operations": freezing,
            "auxiliary_skip": skip, "drop_path_prob": drop,
        }  # fmt: skip
        wrong = {
            "compares both gradients at the same weights": freezing != "none" and hypergradient != "first_order",
            "a single pass": regularizer != "none" and hypergradient == "single_level",
        }
        said = ""
        try:
            SearchConfig(**options)
        except UsageError as error:
            said = str(error)
        assert bool(said) == any(wrong.values()), options
        assert not said or any(reason in said for reason, holds in wrong.items() if holds), (options, said)
