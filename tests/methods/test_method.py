"""Parts chosen by name with options, and the method that the options of a search describe."""

import re
from dataclasses import dataclass

import pytest

from darts_sg.config import SearchConfig, help_texts
from darts_sg.errors import UsageError
from darts_sg.methods.early_stopping import EarlyStopping
from darts_sg.methods.hypergradient import unrolled
from darts_sg.methods.parts import build_part, build_parts, describe_parts
from darts_sg.methods.perturbations.random import UniformNoise
from darts_sg.methods.regularizers.size import Macs, Params
from darts_sg.methods.relaxations.gumbel import Gumbel
from darts_sg.methods.relaxations.softmax import Softmax
from darts_sg.methods.selection.argmax import Argmax
from darts_sg.methods.selection.bounded import Bounded
from darts_sg.methods.selection.skip_limit import SkipLimit
from darts_sg.methods.stages import Stage
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
        ("paint:red,litres=much", "litres: expected a number, found 'much'"),
        ("paint:red,litres=nan", "litres: expected a number, found 'nan'"),
        ("paint:red,litres=1e400", "litres: expected a number, found '1e400'"),
        ("paint:red,glossy=maybe", "glossy: expected true or false, found 'maybe'"),
        ("paint:red,room=none", "room: expected a whole number, found 'none'"),
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
    assert "gumbel:temperature=1.0,temperature_end=0.1,hard=false (" in help_texts(SearchConfig)["relaxation"]


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
    ],
)
def test_methods_that_cannot_be_are_answered_in_one_line(options: dict[str, str], said: str) -> None:
    with pytest.raises(UsageError, match=re.escape(said)) as caught:
        SearchConfig(**options)
    assert "\n" not in str(caught.value)
