"""Genotypes and their files: round trips of random genotypes, and errors with their place."""

import copy
import json
import re
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from darts_sg.formats import GenotypeError
from darts_sg.genotype import (
    MAX_BYTES,
    Cell,
    Edge,
    Genotype,
    from_dict,
    load_genotype,
    parse_genotype,
    renamed,
    zoo_names,
)
from darts_sg.ops import OPERATIONS
from tests.strategies import PLAIN_VALUES, damaged, genotypes, refused_or_read


@given(genotypes(facts=True))
@settings(max_examples=100)
def test_a_random_genotype_comes_back_whole(genotype: Genotype) -> None:
    again = parse_genotype(genotype.to_yaml())
    assert again == genotype
    assert dict(again.provenance) == dict(genotype.provenance)
    assert from_dict(genotype.as_dict()) == genotype


def small_genotype() -> Genotype:
    """One node for each cell; the tests below refer to its lines."""
    cell = Cell(((Edge("sep_conv_3x3", 0), Edge("skip_connect", 1)), (Edge("skip_connect", 2),)), (2, 3))
    return Genotype("small", "tiny", ("none", "skip_connect", "sep_conv_3x3"), cell, cell, {"seed": 1})


@given(damaged(small_genotype().to_yaml()))
@settings(max_examples=400, suppress_health_check=[HealthCheck.too_slow])
def test_damaged_yaml_raises_nothing_but_genotype_error(text: str) -> None:
    refused_or_read(text)


@given(st.dictionaries(st.sampled_from([*small_genotype().as_dict(), "x"]), PLAIN_VALUES, max_size=4))
@settings(max_examples=200)
def test_wrong_values_raise_nothing_but_genotype_error(changes: dict[str, object]) -> None:
    plain = small_genotype().as_dict() | changes
    refused_or_read(yaml.safe_dump(plain, sort_keys=False))


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
        parse_genotype(small_genotype().to_yaml() + f"{key}: 1\n")
    assert "\n" not in str(caught.value)


def test_an_error_stays_short_whatever_the_value() -> None:
    """Nested aliases that unfold to 59,049 lists when printed."""
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
        ("operations: [none,", "operations: [7,", 4, "operations[0]"),
        ("- [[sep_conv_3x3, 0],", "- [[sep_conv_3x4, 0],", 6, "normal[0][0][0]"),
        ("- [[sep_conv_3x3, 0],", "- [[none, 0],", 6, "normal[0][0][0]"),
        ("[skip_connect, 1]]", "[skip_connect, 2]]", 6, "normal[0][1][1]"),
        ("[skip_connect, 1]]", "[skip_connect, -1]]", 6, "normal[0][1][1]"),
        ("[skip_connect, 1]]", "[skip_connect, true]]", 6, "normal[0][1]"),
        ("[skip_connect, 1]]", "[skip_connect]]", 6, "normal[0][1]"),
        ("- [[skip_connect, 2]]", "- []", 8, "normal_concat[1]"),
        ("- [[sep_conv_3x3, 0], [skip_connect, 1]]", "- []", 7, "normal[1][0][1]"),
        ("- [[skip_connect, 2]]", "- skip_connect", 7, "normal[1]"),
        ("normal_concat: [2, 3]", "normal_concat: [2, 2]", 8, "normal_concat[1]"),
        ("normal_concat: [2, 3]", "normal_concat: [2, 4]", 8, "normal_concat[1]"),
        ("normal_concat: [2, 3]", "normal_concat:\n- 2\n- yes", 10, "normal_concat[1]"),
        ("normal_concat: [2, 3]", "normal_concat: []", 8, "normal_concat"),
        ("normal_concat: [2, 3]", "normal_concat: all", 8, "normal_concat"),
        ("- [[sep_conv_3x3, 0],", "-\n  - - sep_conv_3x3\n    - 5\n  - [skip_connect, 1]\n#", 8, "normal[0][0][1]"),
        ("skip_connect, sep_conv_3x3]", "skip_connect, skip_connect]", 4, "operations[2]"),
        ("reduce:\n", "reduced:\n", 9, "reduced"),
        ("reduce:\n", "normal:\n", 9, "normal"),
        ("space: tiny", "space: &a tiny\nname: *a", 4, "file"),
        ("space: tiny", f"space: {'[' * 40}{']' * 40}", 3, "file"),
        ("  seed: 1", "  kind: found\n  seeds:\n  - 1\n  - 2020-01-01", 17, "provenance.seeds[1]"),
        ("  seed: 1", "  kind: found\n  1: 2", 13, "provenance"),
        ("  seed: 1", "  published: 3.1", 14, "provenance.published"),
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
        parse_genotype(yaml.safe_dump(plain, sort_keys=False))


def test_what_is_not_yaml_is_answered_with_its_line() -> None:
    with pytest.raises(GenotypeError, match=r"^line 4: not YAML"):
        parse_genotype("schema: 1\nname: a\nspace: [b\nnormal: 3\n")


@pytest.mark.parametrize("schema", ["true", "1.0", "'1'", "2", "null"])
def test_schema_is_the_number_one(schema: str) -> None:
    with pytest.raises(GenotypeError, match="schema"):
        parse_genotype(small_genotype().to_yaml().replace("schema: 1", f"schema: {schema}"))


def test_operations_outside_the_known_ones_are_refused_with_a_suggestion() -> None:
    text = small_genotype().to_yaml().replace("sep_conv_3x3", "sep_conv_3x33")
    with pytest.raises(GenotypeError, match=r"line 4: operations\[2\].*did you mean 'sep_conv_3x3'"):
        parse_genotype(text, known=OPERATIONS)


def test_files_that_cannot_be_read_are_answered_in_one_line(tmp_path: Path) -> None:
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00\x80")
    large = tmp_path / "large.yaml"
    large.write_bytes(bytes(MAX_BYTES + 1))
    (tmp_path / "run").mkdir()
    small_genotype().save(tmp_path / "run" / "genotype.yaml")
    for path, message in (
        (binary, "not a text file"),
        (large, "larger than 128 KiB"),
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
    assert genotype.provenance["kind"] in {"published", "searched"}
    if genotype.provenance["kind"] == "searched":
        assert {"command", "data", "data_fingerprint", "seed", "code", "options"} <= genotype.provenance.keys()
        assert "validation_accuracy_percent" in genotype.provenance["measured"]
        assert re.match(r"our own search of seed \d+: .* images for the weights and .* for the alphas", genotype.origin)
    assert parse_genotype(genotype.to_yaml(), known=OPERATIONS) == genotype


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
    """One line per node: a diff of two files shows the edges that differ."""
    lines = load_genotype("DARTS_V1").to_yaml().splitlines()
    assert sum(bool(re.match(r"- \[\[\w+, \d\], \[\w+, \d\]\]$", line)) for line in lines) == 8
