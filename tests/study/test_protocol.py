"""A protocol is read from a file, whatever is wrong with it is said in one line, and the code knows no one study."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

import darts_sg.study
from darts_sg.__main__ import run
from darts_sg.errors import UsageError
from darts_sg.genotype import load_genotype, renamed
from darts_sg.study.draw import draw_experiment
from darts_sg.study.protocol import PROTOCOLS, load_protocol, protocol_names, read_protocol
from darts_sg.study.read import read_experiment
from darts_sg.study.report import study_report
from tests.analysis.runs import make_run, searched
from tests.study.runs import search_with_weights

WIDE = {
    "title": "Do dilated convolutions matter?",
    "data": {"dataset": "fashion_mnist"},
    "spaces": {
        "sep_conv_3x3+skip_connect": {"genotype": "NARROW"},
        "sep_conv_3x3+dil_conv_3x3+skip_connect": {"genotype": "WIDE", "block": "dil_conv"},
    },
    "references": ["NASNet"],
    "seeds": {"retrain": [4, 5]},
    "full_scale": {
        "search": {"channels": 8, "cells": 5},
        "retrain": {"channels": 16, "epochs": 15},
        "missing": "Small scale settles nothing.",
    },
    "comparisons": [["WIDE", "NARROW"], ["WIDE", "NASNet"]],
    "claim": {"genotype": "WIDE", "baseline": "NARROW", "conditions": {"no_worse": {"points": 1}}},
}
"""A study with nothing in common with the packaged one: other spaces, names, data, seeds and conditions."""


def written(folder: Path, content: Any) -> Path:
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def wide_runs(root: Path) -> None:
    """Two searches of either space and retrainings at the protocol's seeds, on another data set."""
    narrow, wide = WIDE["spaces"]
    on_mnist = {"dataset": "fashion_mnist"}
    for space, cells in ((narrow, "DARTS_V1"), (wide, "DARTS_V2")):
        for seed, accuracy in ((4, 50.0), (5, 60.0)):
            name = cells if seed == 5 else "GDAS_V1"
            made = make_run(root / f"{space}_{seed}", searched(name, space, seed, accuracy, channels=8, cells=5))
            on_other_data(made, on_mnist)
    for name, cells, errors in (("WIDE", "DARTS_V2", (7.0, 8.0)), ("NARROW", "DARTS_V1", (7.5, 9.0))):
        for seed, error in zip((4, 5), errors, strict=True):
            made = make_run(root / f"{name}_{seed}", renamed(load_genotype(cells), name), error, seed=seed)
            on_other_data(made, on_mnist)
    make_run(root / "on_cifar10", load_genotype("DARTS_V2"), 1.0, seed=4)


def on_other_data(folder: Path, options: dict[str, Any]) -> None:
    path = folder / "config.yaml"
    content = yaml.safe_load(path.read_text())
    content["options"] |= options
    content["environment"]["data"]["name"] = options["dataset"]
    path.write_text(yaml.safe_dump(content))


def test_another_study_is_reported_by_its_own_protocol(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wide_runs(tmp_path / "runs")
    path = written(tmp_path, WIDE)
    run(["report", str(path), "--results", str(tmp_path / "runs")])
    text = capsys.readouterr().out
    assert text.startswith("# Do dilated convolutions matter?\n")
    assert "| space | measured here: error, % | " in text  # nothing was published
    assert "parameters against sep_conv_3x3+skip_connect, measured here |" in text
    assert "- WIDE is that of seed 5: the highest accuracy of the supernet, 60.00%." in text
    assert "steered" not in text.lower()  # the protocol has no bounds
    assert "collapsed" not in text
    assert "The full scale of the protocol. Test error after the last epoch." in text
    assert "| WIDE = DARTS" not in text  # DARTS_V2 is no reference of this study
    assert "| WIDE − NARROW | 2 | 4: -0.50, 5: -1.00 | -0.75 | " in text
    assert "| WIDE − NASNet | 0 | not measured |" in text
    verdict = text.partition("## Verdict")[2]
    # paired t test of two pairs: -0.75 ± 12.706 · 0.25, whose upper end is above 1
    assert "1. No larger mean error, and not worse by 1 points or more: **not met**. WIDE − NARROW: -0.75" in verdict
    assert "interval -3.93 to +2.43, which does not exclude being worse by 1 or more" in verdict
    assert "**The claim is open** in what was measured here." in verdict
    assert "Small scale" not in verdict  # all runs are of the full scale
    assert "on_cifar10" not in text
    run(["report", str(path), "--results", str(tmp_path / "runs"), "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["published"] == []
    assert found["verdict"]["steered"] is None
    assert list(found["verdict"]["plain"]) == ["word", "no_worse"]
    run(["report", str(path), "--results", str(tmp_path / "runs"), "-o", str(tmp_path / "report.md")])
    assert (tmp_path / "report.svg").is_file()


def test_blocks_are_reported_by_the_protocol(tmp_path: Path) -> None:
    wide_runs(tmp_path / "runs")
    found = read_experiment(tmp_path / "runs", read_protocol(written(tmp_path, WIDE)))
    text = study_report(found)
    # DARTS_V2 has a single dilated convolution, at node 3 of its normal cell
    row = next(line for line in text.splitlines() if "| 5 | plain: WIDE |" in line)
    assert "normal 1 (node 3 from node 0); reduce 0 |" in row
    plain = replace(read_protocol(written(tmp_path, WIDE)).spaces[1], block="sandglass")
    protocol = replace(found.protocol, spaces=(found.protocol.spaces[0], plain))
    text = study_report(read_experiment(tmp_path / "runs", protocol))
    assert "WIDE has no sandglass operation: what is said here is said of the space, not of the block." in text


def test_a_bound_and_a_limit_come_from_the_protocol(tmp_path: Path) -> None:
    search_with_weights(tmp_path / "runs" / "search", 3)
    protocol = replace(load_protocol("sandglass"), max_params=3_000_000, max_skips=1)
    (search,) = read_experiment(tmp_path / "runs", protocol).searches
    assert [found.kind for found in search.found] == ["plain", "steered", "few skips"]
    assert search.found[1].params <= 3_000_000
    assert search.found[2].genotype.count("skip_connect")[0] <= 1
    assert search.title("steered").endswith("_3M")


def test_the_picture_has_a_form_for_each_space(tmp_path: Path) -> None:
    wide_runs(tmp_path / "runs")
    figure = draw_experiment(read_experiment(tmp_path / "runs", read_protocol(written(tmp_path, WIDE))))
    (axes,) = figure.axes
    legend = axes.get_legend()
    assert legend is not None
    titles = [text.get_text() for text in legend.get_texts()]
    assert titles[:2] == [f"searched in {space}" for space in reversed(WIDE["spaces"])]  # the claim's space first
    dots = [line for line in axes.lines if line.get_linestyle() == "None" and line.get_marker() != "_"]
    assert len({line.get_marker() for line in dots}) == 2


def test_the_packaged_protocols_can_be_read() -> None:
    assert protocol_names() == ["sandglass"]
    for name in protocol_names():
        assert load_protocol(name).spaces
    with pytest.raises(UsageError, match=r"unknown protocol 'sandglas'.*did you mean 'sandglass'"):
        load_protocol("sandglas")


def test_the_code_knows_no_study() -> None:
    words = re.compile("sandglass|SG_DARTS|inverted_residual|MobileNeXt|DARTS_OURS|IR_DARTS", re.IGNORECASE)
    for path in Path(darts_sg.study.__file__).parent.rglob("*.py"):
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if "protocols/" not in line]
        assert not words.search("\n".join(lines)), path


def changed(*path: str, to: Any) -> dict[str, Any]:
    """A copy of WIDE with another value at a key; ... takes the key away."""
    content: dict[str, Any] = json.loads(json.dumps(WIDE))
    inner = content
    for key in path[:-1]:
        inner = inner[key]
    if to is ...:
        del inner[path[-1]]
    else:
        inner[path[-1]] = to
    return content


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "expected a mapping with title, data, spaces, seeds"),
        (changed("title", to=...), "title: missing"),
        (changed("title", to=3), "title: expected a text, found 3"),
        (changed("titel", to="x"), "unknown key 'titel' (did you mean 'title'?)"),
        (changed("data", to={}), "data.dataset: missing"),
        (changed("data", "network", to="vgg"), "data.network: unknown network 'vgg'"),
        (changed("spaces", to={}), "spaces: expected a mapping from spaces to genotypes, found {}"),
        (changed("spaces", "darst", to={"genotype": "X"}), "spaces.darst: unknown"),
        (changed("spaces", "darts", to={"genotype": "WIDE"}), "spaces: sep_conv_3x3+dil_conv_3x3+skip_connect and"),
        (changed("spaces", "darts", to={"genotype": "a b"}), "spaces.darts.genotype: expected the name of a genotype"),
        (
            changed("spaces", "darts", to={"genotype": "X", "block": "sandglass"}),
            "spaces.darts.block: unknown family of operations in this space 'sandglass'; choices: pool, skip, sep_conv",
        ),
        (changed("bounds", to={"max_params": "many"}), "bounds.max_params: expected a number such as 2.45M, found 'ma"),
        (changed("bounds", to={"max_params": 0}), "bounds.max_params: expected a number above 0"),
        (changed("bounds", to={"max_skips": -1}), "bounds.max_skips: expected a whole number of at least 0, found -1"),
        (changed("references", to=["DARTS_V3"]), "references[0]: unknown genotype 'DARTS_V3' (did you mean"),
        (changed("seeds", "retrain", to=[]), "seeds.retrain: expected a list of seeds, found []"),
        (
            changed("seeds", "retrain", to=[0, "1"]),
            "seeds.retrain[1]: expected a whole number of at least 0, found '1'",
        ),
        (changed("full_scale", "search", to={"chanels": 3}), "full_scale.search: unknown option 'chanels'"),
        (changed("full_scale", "retrain", to={"epochs": 1.5}), "full_scale.retrain.epochs: expected a whole number"),
        (changed("comparisons", to=[["WIDE"]]), "comparisons[0]: expected a pair of genotypes, found ['WIDE']"),
        (changed("comparisons", to=[["WIDE", "X"]]), "comparisons[0][1]: unknown genotype 'X'"),
        (changed("comparisons", to=[["WIDE_2M", "WIDE"]]), "comparisons[0][0]: unknown genotype 'WIDE_2M'"),
        (changed("claim", "genotype", to="NASNet"), "claim.genotype: unknown genotype 'NASNet'"),
        (changed("claim", "baseline", to="WIDE"), "claim.baseline: WIDE is the claim's genotype, too"),
        (changed("claim", "conditions", to={}), "claim.conditions: expected a mapping of conditions: fewer_parameters"),
        (changed("claim", "conditions", to={"better": {}}), "claim.conditions: unknown condition 'better'"),
        (
            changed("claim", "conditions", "no_worse", to={"points": "x"}),
            "no_worse.points: expected a number of at lea",
        ),
        (
            changed("claim", "conditions", to={"fewer_parameters": {"percent": 5, "than": "DARTS_V2"}}),
            "claim.conditions.fewer_parameters.than: unknown reference 'DARTS_V2'; choices: NASNet",
        ),
        (
            changed("published", to={"source": "a paper", "rows": [{"title": "A", "space": "darts", "error": 1}]}),
            "published.rows[0].params: missing",
        ),
    ],
)
def test_what_is_wrong_is_said_in_one_line(content: Any, message: str, tmp_path: Path) -> None:
    path = written(tmp_path, content)
    with pytest.raises(UsageError) as error:
        read_protocol(path)
    assert str(error.value).startswith(f"{path}: ")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_files_that_are_no_protocol(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    with pytest.raises(UsageError, match=r"cannot read .*study\.yaml: No such file"):
        run(["report", str(path)])
    path.write_text("title: x\n  spaces: [")
    with pytest.raises(UsageError, match=r"study\.yaml is not YAML: mapping values are not allowed here, line 2"):
        run(["report", str(path)])


def test_protocols_are_packaged() -> None:
    assert PROTOCOLS.parent == Path(darts_sg.study.__file__).parent  # below the package: hatch takes every file there
