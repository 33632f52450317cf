"""Foreign genotype formats: published examples, round trips, errors with their place, and texts that hold code."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from darts_sg.formats import DARTS_OPERATIONS, FORMATS, GenotypeError, recognised
from darts_sg.genotype import Cell, Edge, Genotype, load_genotype, parse_genotype, zoo_names
from darts_sg.ops import OPERATIONS
from tests.strategies import damaged, genotypes, joined, refused_or_read
from tests.test_command_line import in_process

FIVE_NODES = {"AmoebaNet", "NASNet"}
FOREIGN = {"IR_DARTS"}
"""Genotypes of the zoo with operations outside the DARTS space."""
HELD = {
    "yaml": {*zoo_names()},
    "classic": {*zoo_names()},
    "nni": {*zoo_names()} - FIVE_NODES,
    "nni-loose-ends": FIVE_NODES,
    "naslib": {*zoo_names()} - FIVE_NODES - FOREIGN,
}
"""Genotypes of the zoo that each format can hold."""

V2_OF_NNI = {  # microsoft/nni, nni/nas/hub/pytorch/nasnet.py: the architecture darts-v2
    "normal/op_2_0": "sep_conv_3x3",
    "normal/op_2_1": "sep_conv_3x3",
    "normal/input_2_0": [0],
    "normal/input_2_1": [1],
    "normal/op_3_0": "sep_conv_3x3",
    "normal/op_3_1": "sep_conv_3x3",
    "normal/input_3_0": [0],
    "normal/input_3_1": [1],
    "normal/op_4_0": "sep_conv_3x3",
    "normal/op_4_1": "skip_connect",
    "normal/input_4_0": [1],
    "normal/input_4_1": [0],
    "normal/op_5_0": "skip_connect",
    "normal/op_5_1": "dil_conv_3x3",
    "normal/input_5_0": [0],
    "normal/input_5_1": [2],
    "reduce/op_2_0": "max_pool_3x3",
    "reduce/op_2_1": "max_pool_3x3",
    "reduce/input_2_0": [0],
    "reduce/input_2_1": [1],
    "reduce/op_3_0": "skip_connect",
    "reduce/op_3_1": "max_pool_3x3",
    "reduce/input_3_0": [2],
    "reduce/input_3_1": [1],
    "reduce/op_4_0": "max_pool_3x3",
    "reduce/op_4_1": "skip_connect",
    "reduce/input_4_0": [0],
    "reduce/input_4_1": [2],
    "reduce/op_5_0": "skip_connect",
    "reduce/op_5_1": "max_pool_3x3",
    "reduce/input_5_0": [2],
    "reduce/input_5_1": [1],
}
V2_OF_NASLIB = (  # DARTS_V2 by hand, after automl/NASLib, naslib/search_spaces/nasbench301/conversions.py
    ((0, 3), (1, 3), (0, 3), (1, 3), (1, 3), (0, 2), (0, 2), (2, 5)),
    ((0, 0), (1, 0), (2, 2), (1, 0), (0, 0), (2, 2), (2, 2), (1, 0)),
)
CLASSIC_TEXT = (
    "Genotype(normal=[('sep_conv_3x3', 0), ('skip_connect', 1)], normal_concat=range(2, 3), "
    "reduce=[('skip_connect', 0), ('skip_connect', 1)], reduce_concat=[2])"
)
TEXTS_OF_V2 = {
    "yaml": load_genotype("DARTS_V2").to_yaml(),
    "classic": load_genotype("DARTS_V2").to_text("classic").replace("(normal", "(\nnormal").replace("), ", "),\n"),
    "nni": load_genotype("DARTS_V2").to_text("nni"),
    "naslib": repr(V2_OF_NASLIB).replace("), ", "),\n"),
}


@pytest.mark.parametrize(
    ("format", "text"),
    [
        ("nni", json.dumps(V2_OF_NNI)),
        ("nni", repr({"width": 36, "depth": 20} | V2_OF_NNI)),
        ("nni", "arch = " + repr({key: v[0] if isinstance(v, list) else v for key, v in V2_OF_NNI.items()})),  # NNI 2
        ("nni", json.dumps(dict(sorted(V2_OF_NNI.items(), reverse=True)), indent=1)),
        ("naslib", repr(V2_OF_NASLIB)),
        ("naslib", f"\n\ncompact = {json.dumps(V2_OF_NASLIB, indent=1)}"),
    ],
)
def test_published_texts_of_darts_v2_equal_the_zoo(format: str, text: str) -> None:
    assert recognised(text) == [format]
    found, known = parse_genotype(text), load_genotype("DARTS_V2")
    assert replace(found, name=known.name) == known
    assert found.provenance["kind"] == "imported"


def test_darts_v2_is_written_as_other_codes_write_it() -> None:
    genotype = load_genotype("DARTS_V2")
    assert list(json.loads(genotype.to_text("nni")).items()) == list(V2_OF_NNI.items())
    assert genotype.to_text("naslib") == f"{V2_OF_NASLIB!r}\n"


@pytest.mark.parametrize("name", zoo_names())
@pytest.mark.parametrize("format", FORMATS)
def test_the_zoo_comes_back_from_the_formats_that_can_hold_it(format: str, name: str, tmp_path: Path) -> None:
    genotype = load_genotype(name)
    if name not in HELD[format]:
        with pytest.raises(GenotypeError, match=f"^{name} cannot be written as {format}: (normal|reduce)"):
            genotype.to_text(format)
        return
    path = tmp_path / f"{name}.txt"
    path.write_text(genotype.to_text(format))
    again = load_genotype(path, known=OPERATIONS, format=None if format != "nni-loose-ends" else format)
    assert (again.name, again.normal, again.reduce) == (name, genotype.normal, genotype.reduce)
    if format == "yaml":
        assert again == genotype
        assert again.provenance == genotype.provenance
    elif format in {"nni", "naslib"} and name not in FOREIGN:  # their space is that of DARTS
        assert (again.space, again.operations) == ("darts", ("none", *DARTS_OPERATIONS))
    else:
        used = dict.fromkeys(edge.operation for _, cell in genotype.cells() for _, edge in cell.edges())
        assert (again.space, again.operations) == ("+".join(used), ("none", *used))


def fitting(format: str) -> st.SearchStrategy[Genotype]:
    """Random genotypes that a format can hold."""
    if format in {"nni", "nni-loose-ends"}:
        same = st.integers(1, 3).flatmap(lambda edges: genotypes(st.just(edges)))
        return same.map(lambda genotype: joined(genotype, loose_ends=format == "nni-loose-ends"))
    if format == "naslib":
        drawn = genotypes(st.just(2), st.just(4), DARTS_OPERATIONS).map(joined)
        return drawn.map(
            lambda genotype: replace(genotype, normal=spread(genotype.normal), reduce=spread(genotype.reduce))
        )
    return genotypes(st.just(2)) if format == "classic" else genotypes()


def spread(cell: Cell) -> Cell:
    """The same cell, but where both edges of a node leave one state the second leaves another."""
    nodes = []
    for i, (first, second) in enumerate(cell.nodes):
        other = (first.state + 1) % (i + 2) if first.state == second.state else second.state
        nodes.append((first, replace(second, state=other)))
    return replace(cell, nodes=tuple(nodes))


@pytest.mark.parametrize("format", FORMATS)
def test_a_random_genotype_comes_back_from_the_formats_that_can_hold_it(format: str) -> None:
    @given(fitting(format))
    @settings(max_examples=40)
    def check(genotype: Genotype) -> None:
        text = genotype.to_text(format)
        again = parse_genotype(text, format)
        assert (again.normal, again.reduce) == (genotype.normal, genotype.reduce)
        assert again.to_text(format).partition("=")[2] == text.partition("=")[2]
        assert format in (recognised(text) or ["yaml"]) or format == "nni-loose-ends"

    check()


@pytest.mark.parametrize("name", ["2nd", "class", "PC-DARTS", "_x", "a b", "ü"])
def test_names_that_are_not_identifiers_survive_a_round_trip(name: str, tmp_path: Path) -> None:
    path = tmp_path / f"{name}.json"
    path.write_text(TEXTS_OF_V2["nni"])
    genotype = load_genotype(path)
    again = parse_genotype(genotype.to_text("classic"))
    assert again.name == genotype.name.replace("-", "_")


V2 = load_genotype("DARTS_V2")
ONE_EDGE = replace(V2, normal=replace(V2.normal, nodes=((Edge("skip_connect", 0),), *V2.normal.nodes[1:])))
SANDGLASS = replace(
    V2,
    operations=(*V2.operations, "sandglass_3x3"),
    reduce=replace(V2.reduce, nodes=((Edge("max_pool_3x3", 0), Edge("sandglass_3x3", 1)), *V2.reduce.nodes[1:])),
)
TWICE = replace(V2, normal=replace(V2.normal, nodes=((Edge("skip_connect", 0),) * 2, *V2.normal.nodes[1:])))
THREE_JOINED = replace(V2, reduce=replace(V2.reduce, concat=(2, 3, 5)))


@pytest.mark.parametrize(
    ("format", "genotype", "problem"),
    [
        ("classic", ONE_EDGE, "normal[0]: in this format each node has 2 edges, found 1"),
        ("nni", ONE_EDGE, "normal[1]: in this format each node has 1 edges, found 2"),
        ("nni", THREE_JOINED, "reduce_concat: this format concatenates all nodes, [2, 3, 4, 5], found [2, 3, 5]"),
        (
            "nni-loose-ends",
            V2,
            "normal_concat: this format concatenates the loose ends, [3, 4, 5], found [2, 3, 4, 5]",
        ),
        ("naslib", ONE_EDGE, "normal[0]: in this format each node has 2 edges, found 1"),
        ("naslib", SANDGLASS, "reduce[0][1][0]: unknown operation 'sandglass_3x3'"),
        ("naslib", TWICE, "normal[0]: this format allows one edge from a state to a node, found two"),
        ("naslib", THREE_JOINED, "reduce_concat: this format has four nodes, all concatenated, found [2, 3, 5]"),
    ],
)
def test_genotypes_outside_a_format_are_refused_in_one_line(format: str, genotype: Genotype, problem: str) -> None:
    with pytest.raises(GenotypeError) as caught:
        genotype.to_text(format)
    assert str(caught.value).startswith(f"DARTS_V2 cannot be written as {format}: {problem}")
    assert "\n" not in str(caught.value)


def test_operations_that_nni_does_not_know_pass() -> None:
    again = parse_genotype(SANDGLASS.to_text("nni"), known=OPERATIONS)
    assert (again.normal, again.reduce) == (SANDGLASS.normal, SANDGLASS.reduce)
    assert "sandglass_3x3" in again.space


def test_a_dictionary_of_nni_with_five_nodes_asks_what_is_joined() -> None:
    text = load_genotype("AmoebaNet").to_text("nni-loose-ends")
    with pytest.raises(
        GenotypeError, match=r"^file: ambiguous, may be nni or nni-loose-ends; import it with --format$"
    ):
        parse_genotype(text)
    assert parse_genotype(text, "nni").normal.concat == (2, 3, 4, 5, 6)
    assert parse_genotype(text, "nni-loose-ends").normal.concat == (4, 5, 6)


def test_classic_text_with_range_as_the_original_code_prints_it() -> None:
    genotype = parse_genotype(CLASSIC_TEXT)
    assert genotype.normal == Cell(((Edge("sep_conv_3x3", 0), Edge("skip_connect", 1)),), (2,))
    assert genotype.reduce == Cell(((Edge("skip_connect", 0), Edge("skip_connect", 1)),), (2,))


@pytest.mark.parametrize(
    ("format", "old", "new", "place"),
    [
        ("classic", "('dil_conv_3x3', 2)", "('dil_conv_3x4', 2)", "line 9: normal[3][1][0]: unknown operation"),
        ("classic", "('dil_conv_3x3', 2)", "('dil_conv_3x3', 6)", "line 9: normal[3][1][1]: node 3 takes"),
        ("classic", "('dil_conv_3x3', 2)", "('dil_conv_3x3',)", "line 9: normal[3][1]: expected [operation"),
        ("classic", "('dil_conv_3x3', 2)", "", "line 2: normal: expected two"),
        ("classic", "normal_concat", "normal_join", "line 9: normal_join: unknown field"),
        ("classic", "normal_concat=", "normal=[], normal_concat=", "line 9: normal: repeated"),
        ("classic", "reduce_concat=[2, 3, 4, 5]", "reduce_concat=[2, 3, 4, 4]", "line 16: reduce_concat[3]: state 4"),
        ("classic", ", reduce_concat=[2, 3, 4, 5]", "", "reduce_concat: missing"),
        ("classic", "reduce_concat=[2, 3, 4, 5]", "reduce_concat=open", "line 16: reduce_concat: expected names"),
        ("classic", "'dil_conv_3x3', 2", "'dil_conv_3x3', 2 3", "line 9: not Genotype(normal"),
        ("nni", '"dil_conv_3x3"', '"dil_conv_3x4"', "line 15: normal/op_5_1: unknown operation 'dil_conv_3x4'"),
        ("nni", '"dil_conv_3x3"', '"none"', "line 15: normal/op_5_1: 'none' cannot be chosen"),
        ("nni", '"dil_conv_3x3"', "3", "line 15: normal/op_5_1: expected an operation's name"),
        (
            "nni",
            '"normal/input_5_1": [2',
            '"normal/input_5_1": [5',
            "line 17: normal/input_5_1: node 3 takes",
        ),
        ("nni", '"normal/input_5_1": [2', '"normal/input_5_1": [0, 2', "line 17: normal/input_5_1: expected"),
        ("nni", '"normal/input_5_1": [2', '"normal/input_5_1": [True', "line 17: normal/input_5_1: expected"),
        ("nni", '"normal/input_5_1"', '"normal/input_4_1"', "line 17: normal/input_4_1: repeated"),
        ("nni", '"normal/input_5_1"', '"normal/input_1_1"', "normal/input_5_1: missing"),
        ("nni", '"normal/input_5_1"', '"normal/inputs_5_1"', "line 17: 'normal/inputs_5_1': expected keys such as"),
        ("nni", "{\n", '{\n"normal/op_1_0": "skip_connect",', "line 2: normal/op_1_0: nodes are numbered from 2"),
        ("nni", "{\n", "{\n**open,", "line 2: None: expected keys"),
        ("naslib", "(2, 5)", "(2, 7)", "line 8: [0][7][1]: expected an index from 0 to 6, found 7"),
        ("naslib", "(2, 5)", "(5, 5)", "line 8: [0][7]: node 3 takes states 0 to 4, found 5"),
        ("naslib", "(2, 5)", "(2, True)", "line 8: [0][7]: expected (state, index"),
        ("naslib", "(2, 5)", "(2, open)", "line 8: [0][7]: expected names"),
        ("naslib", ",\n(2, 5)", "", "line 1: [0]: expected 8 pairs, two for each node, found 7"),
        ("naslib", "(2, 5)),", "(2, 5)), (),", "line 1: file: expected one pair of cells"),
        ("naslib", "(2, 5)),", "(2, 5)), 3) or (", "line 1: file: expected one pair of cells"),
    ],
)
def test_errors_name_line_and_field_as_the_text_has_them(
    format: str, old: str, new: str, place: str, tmp_path: Path
) -> None:
    text = TEXTS_OF_V2[format]
    assert old in text
    path = tmp_path / "cell.txt"
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(GenotypeError) as caught:
        load_genotype(path, known=OPERATIONS, format=format)
    assert str(caught.value).startswith(f"{path}: {place}"), caught.value
    assert "\n" not in str(caught.value)


ACTS = {
    "yaml": [
        ("name: DARTS_V2", "name: !!python/object/apply:builtins.open [PATH, w]"),
        ("kind: published", "kind: !!python/object/apply:os.mkdir [PATH]"),
        ("name: DARTS_V2", "? !!python/object/apply:os.mkdir [PATH]\n: 1\nname: DARTS_V2"),
    ],
    "classic": [
        ("[2, 3, 4, 5]", "open(PATH, 'w')"),
        ("[2, 3, 4, 5]", "range(open(PATH, 'w'))"),
        ("[2, 3, 4, 5]", "[open(PATH, 'w')]"),
        ("[2, 3, 4, 5]", "[2 for _ in [open(PATH, 'w')]]"),
        ("[2, 3, 4, 5]", "(lambda: open(PATH, 'w'))()"),
        ("'dil_conv_3x3'", "f\"{open(PATH, 'w')}\""),
        ("reduce_concat=", "more=open(PATH, 'w'), reduce_concat="),
        ("reduce_concat=", "**open(PATH, 'w'), reduce_concat="),
        ("Genotype(", "Genotype(open(PATH, 'w'), "),
        ("Genotype(", "Genotype(open(PATH, 'w')).found("),
        ("DARTS_V2 =", "DARTS_V2 = open(PATH, 'w') or"),
        ("DARTS_V2 =", "open(PATH, 'w'); DARTS_V2 ="),
        ("DARTS_V2 =", "x[open(PATH, 'w')] ="),
    ],
    "nni": [
        ("{\n", "{\nopen(PATH, 'w'): 3,"),
        ("{\n", "{\n**open(PATH, 'w'),"),
        ('"dil_conv_3x3"', "open(PATH, 'w')"),
        ("[2]", "open(PATH, 'w')"),
    ],
    "naslib": [
        ("(2, 5)", "(2, open(PATH, 'w'))"),
        ("(2, 5)", "*open(PATH, 'w')"),
        ("((", "(open(PATH, 'w'), ("),
    ],
}


@pytest.mark.parametrize(("format", "old", "new"), [(name, *act) for name, acts in ACTS.items() for act in acts])
def test_code_is_refused_and_not_run(format: str, old: str, new: str, tmp_path: Path) -> None:
    trace = tmp_path / "was-run"
    text = TEXTS_OF_V2[format]
    assert old in text
    path = tmp_path / "cell.txt"
    path.write_text(text.replace(old, new.replace("PATH", repr(str(trace))), 1))
    for said in (format, None):
        with pytest.raises(GenotypeError):
            load_genotype(path, format=said)
    assert not trace.exists()


@pytest.mark.parametrize("format", ["classic", "nni", "naslib"])
def test_damaged_texts_raise_nothing_but_genotype_error(format: str) -> None:
    @given(damaged(TEXTS_OF_V2[format]))
    @settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
    def check(text: str) -> None:
        refused_or_read(text)
        refused_or_read(text, format)

    check()


@pytest.mark.parametrize(
    "text", ["", "-" * 20_000 + "1", "(" * 5000, "[" * 20_000, "((" + "+" * 10_000 + "0,", "\0", "a.b" * 9000]
)
@pytest.mark.parametrize("format", FORMATS)
def test_texts_that_parsers_trip_over_are_refused(format: str, text: str) -> None:
    for start in ("", "Genotype(normal=", '{"normal/op_2_0":', "(((0, "):
        refused_or_read(start + text, format)


def test_every_format_through_the_command_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for format in FORMATS:
        name = min(HELD[format] - {"DARTS_V1"})
        text, back = tmp_path / f"{format}.txt", tmp_path / f"{format}.yaml"
        code, _, err = in_process(capsys, "genotype", "export", name, "--format", format, "-o", str(text))
        assert code == 0, err
        options = ["--format", format, "--name", "BACK", "-o", str(back)]
        code, _, err = in_process(capsys, "genotype", "import", str(text), *options)
        assert code == 0, err
        again, original = load_genotype(back), load_genotype(name)
        assert (again.name, again.normal, again.reduce) == ("BACK", original.normal, original.reduce)
    code, out, _ = in_process(capsys, "genotype", "import", repr(V2_OF_NASLIB))
    assert parse_genotype(out).normal == V2.normal


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["export", "AmoebaNet", "--format", "nni"], "AmoebaNet cannot be written as nni: normal_concat: "),
        (
            ["export", "DARTS_V2", "--format", "onnx"],
            "expected one of yaml, classic, nni, nni-loose-ends, naslib, found 'onnx'",
        ),
        (["import", "{'normal/op_2_0': 'skip_connect'}"], "normal/input_2_0: missing"),
        (["import", "((0, 1), 2)"], "does not exist"),
        (["import", "x" * 5000], "expected a file, or a text in a known format"),
        (["import", "(((0, 1),),)", "--format", "nni"], "file: expected one dictionary"),
    ],
)
def test_import_and_export_refuse_in_one_line(
    capsys: pytest.CaptureFixture[str], arguments: list[str], problem: str
) -> None:
    code, out, err = in_process(capsys, "genotype", *arguments)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert problem in err
