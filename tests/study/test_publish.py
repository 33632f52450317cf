"""The files of a study's report, and its page: whole, without a network, and in a browser if there is one."""

import csv
import json
import re
import statistics
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

from darts_sg.cli.main import run
from darts_sg.errors import UsageError
from darts_sg.study.contents import contents
from darts_sg.study.page import study_page
from darts_sg.study.publish import markdown_report
from darts_sg.study.results import collect, results_text
from tests.analysis.test_page import CHROMIUM, QUIET
from tests.study.studies import ERRORS, made_up_study

CLICKS = """
<script>
const table = document.getElementById("table-errors"), log = [];
const names = () => [...table.tBodies[0].rows].map(row => row.cells[0].textContent);
const heads = [...table.tHead.rows[0].cells];
const press = i => { heads[i].firstChild.click(); log.push([heads[i].getAttribute("aria-sort"), names()]); };
press(4); press(4); press(2);
const wide = document.documentElement.scrollWidth > document.documentElement.clientWidth;
document.body.innerHTML = "";
const result = document.createElement("pre");
result.textContent = JSON.stringify({log, wide});
document.body.append(result);
</script>
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("published") / "study"
    made_up_study(path, without=("retrain_SG_1_s2",), failed=("retrain_DARTS_0_s1",))
    run(["study", "report", str(path)])
    return path


class Links(HTMLParser):
    """What a page refers to: links, and anything that a browser would load."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        for name, value in attributes:
            if name == "href" and tag == "a" and value:
                self.links.append(value)
            elif name in ("src", "href", "srcset", "data", "action"):
                self.loaded.append(f"{tag} {name}={value}")


def test_the_page_is_self_contained_and_its_links_lead_to_files(folder: Path) -> None:
    page = (folder / "report.html").read_text()
    found = Links(page)
    assert found.loaded == []
    assert not re.search(r"https?://|url\(|@import|fetch\(", page)
    assert "default-src 'none'" in page
    ids = set(re.findall(r'id="([^"]+)"', page))
    for link in found.links:
        if link.startswith("#"):
            assert link[1:] in ids
        elif not link.endswith("report.md"):  # made-up runs have none
            assert (folder / unquote(link)).is_file(), link
    assert sum(link.endswith(".tex") for link in found.links) == len(list((folder / "tables").glob("*.tex")))


def test_the_page_says_how_far_the_study_is_and_escapes_its_texts(folder: Path) -> None:
    page = (folder / "report.html").read_text()
    assert "<title>Does the block &lt;help&gt;?</title>" in page
    assert "Not finished: 19 done, 1 failed, 1 waiting of 21 jobs." in page
    assert "OSError: the disk is full" in page
    assert page.count('<details id="search-') == 4
    assert "Normal cell: mixing weights by epoch" in page  # of the search that has them


def test_each_table_and_figure_has_its_files_and_its_setting(folder: Path) -> None:
    text = (folder / "report.md").read_text()
    pictures = re.findall(r"!\[[^]]*\]\((.+?)\)\n\n(.+)", text)
    assert {"figures/errors.svg", "figures/differences.svg", "figures/anytime_search.svg"} <= {
        path for path, _ in pictures
    }
    for path, caption in pictures:
        assert (folder / path).read_text().startswith("<?xml")
        assert (folder / path).with_suffix(".pdf").read_bytes().startswith(b"%PDF")
        assert re.search(r"cifar10.*C=\d+.*seeds? \d.*(a machine|unknown machine)", caption), caption
    with (folder / "tables" / "errors.csv").open() as file:
        rows = {row["genotype"]: row for row in csv.DictReader(file)}
    assert float(rows["DARTS_V2"]["mean error, %"]) == pytest.approx(statistics.mean(ERRORS["DARTS_V2"]))
    assert rows["DARTS_0"]["trainings"] == "2"
    assert "| SG_0 − DARTS_0 | seed of the training | 2 | 0: −0.40, 2: −0.10 |" in text


def test_the_report_is_the_same_each_time(folder: Path) -> None:
    results = collect(folder)
    sections = contents(results)
    assert (folder / "report.html").read_text() == study_page(results, sections)
    assert (folder / "report.md").read_text() == markdown_report(results, sections)
    assert (folder / "results.json").read_text() == results_text(results, sections)


def test_what_the_commands_are_given_wrong_is_answered(tmp_path: Path) -> None:
    for command in ("report", "watch"):
        with pytest.raises(UsageError, match=r"is not the folder of a study: it has no study\.yaml"):
            run(["study", command, str(tmp_path)])
    with pytest.raises(UsageError, match="--port must be from 0 to 65535, found 65536"):
        run(["study", "watch", str(tmp_path), "--port", "65536"])


@pytest.mark.skipif(CHROMIUM is None, reason="needs a browser: chromium, chromium-browser or google-chrome")
def test_in_a_browser_tables_sort_by_a_click(folder: Path, tmp_path: Path) -> None:
    page = (folder / "report.html").read_text().replace("</body>", f"{CLICKS}</body>")
    (tmp_path / "driven.html").write_text(page)
    options = [*QUIET, f"user-data-dir={tmp_path / 'profile'}", "window-size=390,844", "dump-dom"]
    command = [str(CHROMIUM), *(f"--{option}" for option in options), (tmp_path / "driven.html").as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    found = json.loads(re.findall(r"<pre>(.*?)</pre>", dom, re.DOTALL)[-1].replace("&gt;", ">").replace("&lt;", "<"))
    (first, rising), (second, falling), (third, _) = found["log"]
    means = {name: statistics.mean(errors) for name, errors in ERRORS.items()}
    means |= {"DARTS_0": statistics.mean((12.4, 12.6)), "SG_1": statistics.mean((12.2, 12.1))}
    assert (first, second, third) == ("ascending", "descending", "ascending")
    assert rising == sorted(means, key=lambda name: means[name])
    assert falling == rising[::-1]
    assert not found["wide"]  # only tables scroll sideways
