"""Genotypes: round trips of random ones, errors that say where, and text that wants to be run."""

import copy
import json
import re
import string
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from darts_sg.genotype import (
    Cell,
    Edge,
    Genotype,
    GenotypeError,
    from_dict,
    load_genotype,
    parse_classic,
    parse_yaml,
    renamed,
    zoo_names,
)
from darts_sg.ops import OPERATIONS

NAMES = ("max_pool_3x3", "skip_connect", "sep_conv_3x3", "sandglass_3x3", "dil_conv_5x5")


@st.composite
def cells(draw: st.DrawFn, edges: st.SearchStrategy[int]) -> Cell:
    """A random cell of 1 to 6 nodes, with as many edges into each as `edges` says."""
    num_nodes = draw(st.integers(1, 6))
    nodes = tuple(
        tuple(Edge(draw(st.sampled_from(NAMES)), draw(st.integers(0, 1 + node))) for _ in range(draw(edges)))
        for node in range(num_nodes)
    )
    concat = draw(st.lists(st.integers(2, 1 + num_nodes), min_size=1, unique=True))
    return Cell(nodes, tuple(concat))


# PyYAML writes U+0085 as it is and reads it as a line break
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x85"))
PLAIN_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)


def genotypes(edges: st.SearchStrategy[int]) -> st.SearchStrategy[Genotype]:
    """Random genotypes with random provenance."""
    return st.builds(
        Genotype,
        name=st.text(string.ascii_letters + string.digits, min_size=1, max_size=8),
        space=TEXTS,
        operations=st.permutations(["none", *NAMES]).map(tuple),
        normal=cells(edges),
        reduce=cells(edges),
        provenance=st.dictionaries(TEXTS, PLAIN_VALUES, max_size=3),
    )


@given(genotypes(edges=st.integers(1, 3)))
@settings(max_examples=150)
def test_yaml_round_trip(genotype: Genotype) -> None:
    again = parse_yaml(genotype.to_yaml())
    assert again == genotype
    assert dict(again.provenance) == dict(genotype.provenance)
    assert from_dict(genotype.as_dict()) == genotype


@given(genotypes(edges=st.just(2)))
@settings(max_examples=100)
def test_classic_round_trip_keeps_the_cells(genotype: Genotype) -> None:
    for text in (genotype.to_classic(), f"found = {genotype.to_classic()}\n"):
        again = parse_classic(text)
        assert (again.normal, again.reduce) == (genotype.normal, genotype.reduce)
        used = {edge.operation for _, cell in genotype.cells() for _, edge in cell.edges()}
        assert set(again.operations) == used | {"none"}


def small_genotype() -> Genotype:
    """One node a cell, written on lines that the tests below name."""
    cell = Cell(((Edge("sep_conv_3x3", 0), Edge("skip_connect", 1)), (Edge("skip_connect", 2),)), (2, 3))
    return Genotype("small", "tiny", ("none", "skip_connect", "sep_conv_3x3"), cell, cell, {"seed": 1})


@given(st.data())
@settings(max_examples=400, suppress_health_check=[HealthCheck.too_slow])
def test_damaged_yaml_raises_nothing_but_genotype_error(data: st.DataObject) -> None:
    text = small_genotype().to_yaml()
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(text)))
        stop = data.draw(st.integers(start, min(len(text), start + 8)))
        piece = data.draw(st.sampled_from(["", " ", "\n", ":", "[", "]", "{", "- ", "&a", "*a", "!!int ", "0"]) | TEXTS)
        text = text[:start] + piece + text[stop:]
    refused_or_read(text)


@given(st.dictionaries(st.sampled_from([*small_genotype().as_dict(), "x"]), PLAIN_VALUES, max_size=4))
@settings(max_examples=200)
def test_wrong_values_raise_nothing_but_genotype_error(changes: dict[str, object]) -> None:
    plain = small_genotype().as_dict() | changes
    refused_or_read(yaml.safe_dump(plain, sort_keys=False))


def refused_or_read(text: str, read: Callable[[str], Genotype] = parse_yaml) -> None:
    """A genotype that can be written and read again comes out, or a GenotypeError of one line."""
    try:
        genotype = read(text)
    except GenotypeError as error:
        message = str(error)
    else:
        message = "" if parse_yaml(genotype.to_yaml()) == genotype else "changed by\nits round trip"
    assert "\n" not in message


@pytest.mark.parametrize(
    "value",
    [
        "!!timestamp x",
        "!!bool x",
        "!!int ''",
        "!!float ''",
        "!!python/object/apply:os.system [exit 1]",
        "0x" + "f" * 5000,
        "9" * 5000,
        "[" * 500,
        "2020-13-45",
        "&a [*a]",
        '"\\0"',
    ],
    ids=lambda value: value[:24],
)
@pytest.mark.parametrize("field", ["schema", "name", "operations", "normal", "reduce_concat", "provenance"])
def test_values_that_yaml_readers_trip_over_are_refused(field: str, value: str) -> None:
    plain = small_genotype().as_dict()
    lines = [f"{key}: {value if key == field else json.dumps(plain[key])}" for key in plain]
    refused_or_read("\n".join(lines))


@pytest.mark.parametrize("key", ["? [a]", '"a\\nb"', "{a: b}", "1", "!!bool x"])
def test_keys_that_are_no_fields_are_refused(key: str) -> None:
    with pytest.raises(GenotypeError) as caught:
        parse_yaml(small_genotype().to_yaml() + f"{key}: 1\n")
    assert "\n" not in str(caught.value)


def test_an_error_stays_short_whatever_the_value() -> None:
    """Nine aliases of nine aliases of … unfold to 59,049 lists when they are printed."""
    text = "a: &a [x]\n"
    for above, name in zip("abcde", "bcdef", strict=True):
        text += f"{name}: &{name} [{', '.join([f'*{above}'] * 9)}]\n"
    plain = small_genotype().as_dict()
    for field in ("name", "operations", "normal", "normal_concat", "provenance"):
        expanded = yaml.safe_load(text)["f"]
        with pytest.raises(GenotypeError) as caught:
            from_dict(plain | {field: expanded})
        assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("old", "new", "line", "field"),
    [
        ("schema: 1", "schema: 99", 1, "schema"),
        ("name: small", "name: sm all", 2, "name"),
        ("name: small", "name: [small]", 2, "name"),
        ("space: tiny", "space: 3", 3, "space"),
        ("operations: [none,", "operations: [7,", 4, "operations"),
        ("- [[sep_conv_3x3, 0],", "- [[sep_conv_3x4, 0],", 6, "normal[0][0]"),
        ("- [[sep_conv_3x3, 0],", "- [[none, 0],", 6, "normal[0][0]"),
        ("[skip_connect, 1]]", "[skip_connect, 2]]", 6, "normal[0][1]"),
        ("[skip_connect, 1]]", "[skip_connect, -1]]", 6, "normal[0][1]"),
        ("[skip_connect, 1]]", "[skip_connect, true]]", 6, "normal[0][1]"),
        ("[skip_connect, 1]]", "[skip_connect]]", 6, "normal[0][1]"),
        ("- [[skip_connect, 2]]", "- []", 7, "normal[1]"),
        ("- [[skip_connect, 2]]", "- skip_connect", 7, "normal[1]"),
        ("normal_concat: [2, 3]", "normal_concat: [2, 2]", 8, "normal_concat"),
        ("normal_concat: [2, 3]", "normal_concat: [2, 4]", 8, "normal_concat"),
        ("normal_concat: [2, 3]", "normal_concat: []", 8, "normal_concat"),
        ("normal_concat: [2, 3]", "normal_concat: all", 8, "normal_concat"),
        ("reduce:\n", "reduced:\n", 9, "reduced"),
        ("provenance:\n", "provenance: 3\n#", 13, "provenance"),
    ],
)
def test_error_names_line_and_field(tmp_path: Path, old: str, new: str, line: int, field: str) -> None:
    text = small_genotype().to_yaml()
    assert old in text
    path = tmp_path / "cell.yaml"
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(GenotypeError) as caught:
        load_genotype(path)
    assert str(caught.value).startswith(f"{path}: line {line}: {field}: ")


@pytest.mark.parametrize("field", [key for key in small_genotype().as_dict() if key != "provenance"])
def test_missing_field_is_named(field: str) -> None:
    plain = small_genotype().as_dict()
    del plain[field]
    with pytest.raises(GenotypeError, match=f"{field}: missing"):
        parse_yaml(yaml.safe_dump(plain, sort_keys=False))


def test_what_is_not_yaml_is_answered_with_its_line() -> None:
    with pytest.raises(GenotypeError, match=r"^line 4: not YAML"):
        parse_yaml("schema: 1\nname: a\nspace: [b\nnormal: 3\n")


@pytest.mark.parametrize("schema", ["true", "1.0", "'1'", "2", "null"])
def test_schema_is_the_number_one(schema: str) -> None:
    with pytest.raises(GenotypeError, match="schema"):
        parse_yaml(small_genotype().to_yaml().replace("schema: 1", f"schema: {schema}"))


def test_operations_outside_the_known_ones_are_refused_with_a_suggestion() -> None:
    text = small_genotype().to_yaml().replace("sep_conv_3x3", "sep_conv_3x33")
    with pytest.raises(GenotypeError, match=r"line 4: operations\[2\].*did you mean 'sep_conv_3x3'"):
        parse_yaml(text, known=OPERATIONS)


CLASSIC_TEXT = (
    "Genotype(normal=[('sep_conv_3x3', 0), ('skip_connect', 1)], normal_concat=range(2, 3), "
    "reduce=[('skip_connect', 0), ('skip_connect', 1)], reduce_concat=[2])"
)


def test_classic_text_with_range_as_the_original_code_prints_it() -> None:
    genotype = parse_classic(CLASSIC_TEXT)
    assert genotype.normal == Cell(((Edge("sep_conv_3x3", 0), Edge("skip_connect", 1)),), (2,))
    assert genotype.reduce == Cell(((Edge("skip_connect", 0), Edge("skip_connect", 1)),), (2,))


@pytest.mark.parametrize(
    "malicious",
    [
        CLASSIC_TEXT.replace("range(2, 3)", "{act}"),
        CLASSIC_TEXT.replace("range(2, 3)", "range({act})"),
        CLASSIC_TEXT.replace("range(2, 3)", "[{act}]"),
        CLASSIC_TEXT.replace("range(2, 3)", "[2 for _ in [{act}]]"),
        CLASSIC_TEXT.replace("range(2, 3)", "(lambda: {act})()"),
        CLASSIC_TEXT.replace("'sep_conv_3x3'", "f'{{{act}}}'"),
        CLASSIC_TEXT.replace("reduce_concat=[2]", "reduce_concat=[2], more={act}"),
        CLASSIC_TEXT.replace("reduce_concat=[2]", "reduce_concat=[2], **{act}"),
        "Genotype({act}, " + CLASSIC_TEXT.removeprefix("Genotype("),
        "Genotype({act})." + CLASSIC_TEXT.replace("Genotype(", "found("),
        CLASSIC_TEXT + "; {act}",
        CLASSIC_TEXT + "\n{act}",
        CLASSIC_TEXT + " or {act}",
        CLASSIC_TEXT + " if {act} else 0",
    ],
)
def test_malicious_classic_text_is_refused_and_not_run(tmp_path: Path, malicious: str) -> None:
    trace = tmp_path / "was-run"
    text = malicious.format(act=f"open('{trace}', 'w')")
    path = tmp_path / "cell.txt"
    path.write_text(text)
    with pytest.raises(GenotypeError):
        load_genotype(path)
    assert not trace.exists()


@given(st.data())
@settings(max_examples=200)
def test_damaged_classic_text_raises_nothing_but_genotype_error(data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(CLASSIC_TEXT)))
    stop = data.draw(st.integers(start, min(len(CLASSIC_TEXT), start + 12)))
    piece = data.draw(st.sampled_from(["", "(", ")", "[", "'", ",", "**", "10**10**10", "\0", "1e999"]) | TEXTS)
    refused_or_read(CLASSIC_TEXT[:start] + piece + CLASSIC_TEXT[stop:], parse_classic)


def test_files_that_cannot_be_read_are_answered_in_one_line(tmp_path: Path) -> None:
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00\x80")
    (tmp_path / "run").mkdir()
    small_genotype().save(tmp_path / "run" / "genotype.yaml")
    for path, message in (
        (binary, "not a text file"),
        (tmp_path / "absent.yaml", "does not exist"),
        (tmp_path / "run", "did you mean its genotype.yaml"),
        (Path("DARTS_V3"), "did you mean 'DARTS_V"),
    ):
        with pytest.raises(GenotypeError, match=message) as caught:
            load_genotype(path)
        assert "\n" not in str(caught.value)


def test_save_replaces_the_file_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "genotype.yaml"
    small_genotype().save(path)
    other = renamed(small_genotype(), "other")
    other.save(path)
    assert load_genotype(path).name == "other"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", zoo_names())
def test_the_zoo_is_valid_named_and_says_where_it_comes_from(name: str) -> None:
    genotype = load_genotype(name, known=OPERATIONS)
    assert genotype.name == name
    assert genotype.provenance["kind"] in {"published", "found"}
    assert parse_yaml(genotype.to_yaml(), known=OPERATIONS) == genotype
    in_classic = parse_classic(genotype.to_classic())
    assert (in_classic.normal, in_classic.reduce) == (genotype.normal, genotype.reduce)


def test_a_genotype_cannot_be_changed_by_its_copies() -> None:
    genotype = small_genotype()
    plain = genotype.as_dict()
    before = copy.deepcopy(plain)
    plain["normal"][0][0][0] = "changed"
    plain["operations"].append("changed")
    assert genotype.as_dict() == before


def test_count_says_how_often_an_operation_stands_in_each_cell() -> None:
    assert load_genotype("DARTS_V2").count("sep_conv_3x3") == (5, 0)
    assert load_genotype("DARTS_V2").count("skip_connect") == (2, 3)


def test_the_text_of_a_genotype_file_can_be_read_by_eye() -> None:
    """One line a node: a difference of two files shows the edges that differ."""
    lines = load_genotype("DARTS_V1").to_yaml().splitlines()
    assert sum(bool(re.match(r"- \[\[\w+, \d\], \[\w+, \d\]\]$", line)) for line in lines) == 8
