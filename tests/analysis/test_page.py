"""search.html: its data against the run folder, and in a browser the figures against its data."""

import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from darts_sg.analysis.cost import derived_cost
from darts_sg.analysis.page import search_page
from darts_sg.analysis.run_folder import read_metrics, read_run, read_search_epochs
from darts_sg.analysis.sheet import short_name
from darts_sg.derive import num_edges
from darts_sg.errors import UsageError
from darts_sg.genotype import Cell, load_genotype
from tests.analysis.fakes import OPERATIONS, varied_search

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
QUIET = ["headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking"]
QUIET += ["disable-component-update", "disable-sync"]
STEPS = """
<script>
const log = [];
const all = selector => [...document.querySelectorAll(selector)];
function cell(title) {
  return {
    edges: all(`#cell-${title} .edge`).map(group => [Number(group.dataset.edge), group.dataset.operation]),
    fresh: all(`#cell-${title} .new`).length,
    table: all(`#weights-${title} tbody tr:not(.gap)`).map(row =>
      [...row.querySelectorAll("td")].map(field => [field.textContent, field.classList.contains("chosen")])),
  };
}
function note(step) {
  log.push({
    step, epoch: output.textContent, says: slider.getAttribute("aria-valuetext"), play: play.textContent,
    numbers: Object.fromEntries(all("b[data-column]").map(b => [b.dataset.column, b.textContent])),
    normal: cell("normal"), reduce: cell("reduce"),
  });
}
function press(key) {
  document.body.dispatchEvent(new KeyboardEvent("keydown", {key, bubbles: true, cancelable: true}));
}
note("opened");
slider.value = 0;
slider.dispatchEvent(new Event("input"));
note("dragged to the first");
press("ArrowLeft");
note("left of the first");
press("ArrowRight");
note("right");
const chart = document.querySelector("#charts svg"), box = chart.getBoundingClientRect();
chart.dispatchEvent(new MouseEvent("click", {clientX: box.right, clientY: box.top + 5}));
note("clicked at the end of a curve");
play.click();
note("playing from the first");
setTimeout(() => {
  note("played to the end");
  press(" ");
  press(" ");
  note("played and paused");
  const result = document.createElement("pre");
  result.id = "log";
  result.textContent = JSON.stringify(log);
  document.body.append(result);
}, 5000);
</script>
"""


class Elements(HTMLParser):
    """The contents of the elements of a page, by their tag, in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: dict[str, list[str]] = {}
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.setdefault(tag, []).append("")
        self.tag = tag

    def handle_data(self, data: str) -> None:
        if getattr(self, "tag", None):
            self.found[self.tag][-1] += data


def page_of(folder: Path) -> str:
    return search_page(read_run(folder), read_search_epochs(folder))


def data_of(page: str) -> dict[str, Any]:
    content = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, flags=re.DOTALL)
    assert content
    found = json.loads(content[1])
    assert isinstance(found, dict)
    return found


def chosen(cell: Cell) -> list[tuple[int, str]]:
    return [(num_edges(state - 2) + edge.state, edge.operation) for state, edge in cell.edges()]


@pytest.mark.parametrize("edge_weights", [False, True])
def test_the_data_are_those_of_the_run_folder(edge_weights: bool, tmp_path: Path) -> None:
    folder = varied_search(tmp_path / "run", epochs=3, edge_weights=edge_weights)
    page = page_of(folder)
    assert not re.search(r"\w:/|\bsrc=|@import|url\(|<link", page)  # it loads nothing
    data = data_of(page)
    assert data["operations"] == list(OPERATIONS)
    assert [record["epoch"] for record in data["epochs"]] == [1, 2, 3]
    rows = read_metrics(folder / "metrics.csv")
    for record, row in zip(data["epochs"], [*rows, {}], strict=True):
        genotype = load_genotype(folder / "genotypes" / f"epoch_{record['epoch']:04}.yaml")
        weights = np.load(folder / "alphas" / f"epoch_{record['epoch']:04}.npz")
        for title, cell in genotype.cells():
            edges = record[title]["cell"]["edges"]
            assert [(e["edge"], OPERATIONS[e["operation"]]) for e in edges] == chosen(cell)
            assert [e["label"] for e in edges] == [short_name(name) for _, name in chosen(cell)]
            shown = np.array(record[title]["weights"])
            np.testing.assert_allclose(shown[:, : len(OPERATIONS)], weights[title], atol=1e-6)
            assert shown.shape[1] == len(OPERATIONS) + edge_weights
            if edge_weights:
                np.testing.assert_allclose(shown[:, -1], weights[f"edge_{title}"], atol=1e-6)
            expected = stats.entropy(weights[title], axis=1)
            np.testing.assert_allclose(record["entropy"][title], expected, atol=1e-6)
            assert record["figures"][f"entropy_{title}"] == pytest.approx(expected.mean(), abs=1e-6)
            assert record["figures"][f"skips_{title}"] == [name for _, name in chosen(cell)].count("skip_connect")
        figures = record["figures"]
        assert figures["derived_params"] == derived_cost(genotype).params
        for column in row.keys() - {"epoch", "validation_accuracy"}:
            assert figures[column] == pytest.approx(row[column], abs=1e-6)
        assert ("train_loss" in figures) == bool(row)
        assert figures.get("validation_accuracy") is None  # an empty field


def test_the_expected_parameters_are_the_mean_over_all_cells(tmp_path: Path) -> None:
    """With a single node both edges are kept: each of the cells over four operations has a product as its chance."""
    folder = varied_search(tmp_path / "run", epochs=1, nodes=1)
    (record,) = data_of(page_of(folder))["epochs"]
    genotype = load_genotype(folder / "genotype.yaml")
    total = 0.0
    base = derived_cost(genotype).params
    weights = np.load(folder / "alphas" / "epoch_0001.npz")
    for title, cell in genotype.cells():
        for edge, (kept,) in enumerate(zip(cell.nodes[0], strict=True)):
            chances = weights[title][edge, 1:] / weights[title][edge, 1:].sum()
            for chance, name in zip(chances, OPERATIONS[1:], strict=True):
                nodes = list(cell.nodes[0])
                nodes[edge] = type(kept)(name, kept.state)
                other = {**dict(genotype.cells()), title: Cell((tuple(nodes),), cell.concat)}
                total += chance * (derived_cost(type(genotype)("a", "", OPERATIONS, **other)).params - base)
    assert record["figures"]["expected_params"] == pytest.approx(base + total)


def test_no_name_can_break_the_page(tmp_path: Path) -> None:
    nasty = '</script><script>alert("1")</script> {{json}} & <b>'
    folder = varied_search(tmp_path / "run", epochs=2, note=nasty, space=nasty)
    page = page_of(folder)
    said = nasty.replace('("1")', ', "1"')  # no brackets within brackets
    found = Elements(page).found
    assert len(found["script"]) == 2
    assert "b" not in found
    assert [text.strip() for text in found["h1"]] == [f"Search: {nasty} on cifar10 ({said})"]
    assert [text.strip() for text in found["title"]] == [text.strip() for text in found["h1"]]
    config = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(config.replace("epochs: 2", "epochs: '</script><b>'"))
    with pytest.raises(UsageError, match=r"config\.yaml: options: epochs: expected a whole number, found '</script>"):
        page_of(folder)


def test_a_missing_epoch_is_named_and_an_unfinished_search_says_so(tmp_path: Path) -> None:
    folder = varied_search(tmp_path / "run", epochs=4)
    (folder / "alphas" / "epoch_0002.npz").unlink()
    (folder / "genotypes" / "epoch_0003.yaml").unlink()
    (folder / "genotype.yaml").unlink()
    page = page_of(folder)
    assert [record["epoch"] for record in data_of(page)["epochs"]] == [1, 4]
    assert "Not finished: 4 of 4 epochs. Without a record: epoch 2, 3." in page
    assert f"python -m darts_sg report {folder}" in page


@pytest.mark.skipif(CHROMIUM is None, reason="needs a browser: chromium, chromium-browser or google-chrome")
def test_in_a_browser_the_page_follows_slider_keys_clicks_and_playback(tmp_path: Path) -> None:
    folder = varied_search(tmp_path / "run", epochs=5, edge_weights=True)
    page = page_of(folder)
    data = data_of(page)
    (tmp_path / "driven.html").write_text(page.replace("</body>", STEPS + "</body>"), encoding="utf-8")
    options = [*QUIET, f"user-data-dir={tmp_path / 'profile'}", "virtual-time-budget=20000", "dump-dom"]
    command = [str(CHROMIUM), *(f"--{option}" for option in options), (tmp_path / "driven.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    found = re.search(r'<pre id="log">(.*?)</pre>', done.stdout, flags=re.DOTALL)
    assert found, done.stderr[-2000:]
    steps = {step.pop("step"): step for step in json.loads(html.unescape(found[1]))}
    assert {name: (step["epoch"], step["play"]) for name, step in steps.items()} == {
        "opened": ("5 of 5", "Play"),
        "dragged to the first": ("1 of 5", "Play"),
        "left of the first": ("1 of 5", "Play"),
        "right": ("2 of 5", "Play"),
        "clicked at the end of a curve": ("5 of 5", "Play"),
        "playing from the first": ("1 of 5", "Pause"),
        "played to the end": ("5 of 5", "Play"),
        "played and paused": ("1 of 5", "Play"),
    }
    for step in steps.values():
        index = int(step["epoch"].split()[0]) - 1
        record, before = data["epochs"][index], data["epochs"][index - 1] if index else None
        assert step["says"] == f"epoch {record['epoch']}"
        for title in ("normal", "reduce"):
            edges = {(e["edge"], OPERATIONS[e["operation"]]) for e in record[title]["cell"]["edges"]}
            assert {(edge, name) for edge, name in step[title]["edges"]} == edges
            old = {(e["edge"], OPERATIONS[e["operation"]]) for e in before[title]["cell"]["edges"]} if before else edges
            assert step[title]["fresh"] == len(edges - old)
            for i, (fields, weights) in enumerate(zip(step[title]["table"], record[title]["weights"], strict=True)):
                numbers = [float(text) for text, _ in fields]
                assert numbers[:-1] == pytest.approx(weights, abs=6e-4)
                assert numbers[-1] == pytest.approx(record["entropy"][title][i], abs=6e-3)
                marked = {(i, OPERATIONS[j]) for j, (_, is_chosen) in enumerate(fields) if is_chosen}
                assert marked == {(edge, name) for edge, name in edges if edge == i}
        numbers, figures = step["numbers"], record["figures"]
        assert float(numbers["expected_params"]) == pytest.approx(figures["expected_params"] / 1e6, abs=6e-3)
        assert float(numbers["entropy_normal"]) == pytest.approx(figures["entropy_normal"], abs=6e-4)
        assert numbers["skips_reduce"] == str(figures["skips_reduce"])
        assert numbers["train_accuracy"] == ("–" if index == 4 else f"{5 * (index + 1):.1f}%")
        assert "validation_accuracy" not in numbers  # measured in no epoch
