"""Search spaces and the grammar that joins them."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from darts_sg.errors import UsageError
from darts_sg.ops import OPERATIONS
from darts_sg.spaces import SPACES, parse_space

DARTS = (
    "none",
    "max_pool_3x3",
    "avg_pool_3x3",
    "skip_connect",
    "sep_conv_3x3",
    "sep_conv_5x5",
    "dil_conv_3x3",
    "dil_conv_5x5",
)


@pytest.mark.parametrize(
    ("text", "operations"),
    [
        ("darts", DARTS),
        ("darts+sandglass", (*DARTS, "sandglass_3x3")),
        ("darts+ir", (*DARTS, "inverted_residual_3x3")),
        ("darts+sandglass_3x3_r6", (*DARTS, "sandglass_3x3_r6")),
        ("sandglass", ("sandglass_3x3",)),
        ("sandglass+sandglass_3x3+none+darts", ("sandglass_3x3", *DARTS)),
        ("skip_connect + darts", ("skip_connect", *(op for op in DARTS if op != "skip_connect"))),
    ],
)
def test_the_grammar(text: str, operations: tuple[str, ...]) -> None:
    assert parse_space(text).operations == operations


@pytest.mark.parametrize("name", SPACES)
def test_a_named_space_holds_registered_operations_once_each(name: str) -> None:
    assert len(set(SPACES[name])) == len(SPACES[name])
    assert set(SPACES[name]) <= set(OPERATIONS)
    assert parse_space(name).operations == SPACES[name]


def test_no_operation_hides_behind_the_name_of_a_space() -> None:
    assert not set(SPACES) & set(OPERATIONS)


@given(st.lists(st.sampled_from([*SPACES, *OPERATIONS]), min_size=1, max_size=8))
def test_order_is_kept_and_nothing_comes_twice(terms: list[str]) -> None:
    named = {name: SPACES[name] for name in SPACES}
    expected = []
    for term in terms:
        for name in named.get(term, (term,)):
            if name not in expected:
                expected.append(name)
    assume(expected != ["none"])
    space = parse_space("+".join(terms))
    assert space.operations == tuple(expected)
    assert space.name == "+".join(terms)
    assert parse_space("+".join(space.operations)).operations == space.operations


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dart", "did you mean 'darts'"),
        ("darts+sandglas", "did you mean 'sandglass'"),
        ("darts+sep_conv_3x4", "did you mean 'sep_conv_3x3'"),
        ("", "choices: darts, sandglass, ir, "),
        ("darts++ir", "choices: "),
        ("darts+", "choices: "),
        ("none", "none"),
        ("none+none", "none"),
    ],
)
def test_what_is_no_space_is_answered_in_one_line(text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_space(text)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
