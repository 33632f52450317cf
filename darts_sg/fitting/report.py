"""report.md and report.html of a fit: result, data, choices with their reasons, cells, curves, test, next steps."""

import base64
import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment
from markupsafe import Markup

from darts_sg import __version__
from darts_sg.analysis.cost import cost_text, human
from darts_sg.analysis.curves import augment_panels, draw_curves, search_panels
from darts_sg.analysis.draw import draw_genotype, save_figure
from darts_sg.analysis.report import duration
from darts_sg.analysis.run_folder import read_metrics
from darts_sg.errors import one_line
from darts_sg.files import write_atomically
from darts_sg.fitting.job import next_commands
from darts_sg.fitting.state import State
from darts_sg.genotype import load_genotype
from darts_sg.tasks import task_of
from darts_sg.tasks.classification_pictures import (
    CLASS_HEADER,
    CONFUSION_HEADER,
    PICTURES,
    calibration_text,
    class_rows,
    confusion_rows,
    draw_test,
    mean_over_classes,
)
from darts_sg.tasks.classified import FILE, Classified, read_classified
from darts_sg.tasks.columns import markdown_table

TEMPLATE = Path(__file__).with_name("report.html")
KINDS = {".svg": "image/svg+xml", ".png": "image/png"}
LINK = re.compile(r"\[([^\]]+)\]\(([^)]+)\)")


class Table(NamedTuple):
    """A table of the report."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]


class Image(NamedTuple):
    """A picture of the report."""

    path: str
    """In the folder of the fit."""
    says: str


class Lines(NamedTuple):
    """Command lines."""

    texts: Sequence[str]


class Section(NamedTuple):
    """A section: texts (`**strong**`, `[text](file)`), tables, pictures and command lines."""

    title: str
    parts: Sequence[str | Table | Image | Lines]


def write_report(folder: Path) -> Path:
    """Write report.md, report.html and pictures/ of a fit that is done with its test; returns the page's path."""
    state = State.read(folder)
    sections = report_sections(folder, state)
    title = f"Fit of {one_line(state['data']['name'])}"
    write_atomically(folder / "report.md", _markdown(title, sections))
    page = folder / "report.html"
    write_atomically(page, _page(title, sections, folder))
    return page


def report_sections(folder: Path, state: State) -> list[Section]:
    """The report as data; draws its pictures."""
    return [
        _result(folder, state),
        *_compared(state),
        _data(state),
        _choices(state),
        _cells(folder, state),
        _curves(folder),
        _test(folder, state),
        Section("How to go on", [Lines(next_commands(folder, state))]),
        _measured(state),
    ]


def _result(folder: Path, state: State) -> Section:
    test, derived, train, search = (state.done(stage) or {} for stage in ("test", "derive", "train", "search"))
    low, high = test["interval"]
    rows = [
        ("test accuracy", f"**{test['accuracy']:.1%}** of {test['images']:,} images"),
        ("95% interval", f"{low:.1%} to {high:.1%}: by the choice of the test images (Wilson)"),
        ("parameters, MACs", f"{derived['params']:,} parameters, {human(derived['macs'])} MACs for an image"),
        ("network", "[weights.safetensors](weights.safetensors), [genotype.yaml](genotype.yaml)"),
    ]
    if (exported := state.done("export")) is not None:
        rows.append(
            (
                "exported",
                f"{exported['path']}: {exported['title']}, {exported['size'] / 1e6:.2f} MB, {exported['latency']} an "
                f"image; input {exported['input']}, (pixel / 255 - mean) / std with mean "
                f"{_numbers(exported['mean'])} and std {_numbers(exported['std'])}",
            )
        )
    rows.append(("runs", "[search](search/report.md), [training](retrain/report.md)"))
    seconds = (read_metrics(folder / run / "metrics.csv")[-1]["seconds"] for run in ("search", "retrain"))
    rows.append(("time", "search {}, training {}".format(*map(duration, seconds))))
    rows.append(("machine", state["machine"]))
    parts: list[str | Table | Image | Lines] = []
    if derived["doubt"]:
        parts.append(f"**The search chose nothing:** {derived['doubt']}.")
    if search.get("cut"):
        parts.append(
            f"The search was ended by its share of the time, after {search['epochs']} of {state['search']['epochs']} "
            "epochs."
        )
    if train.get("cut"):
        parts.append(
            f"**The time was over** after {train['epochs']} of {state['training']['epochs']} epochs of the training. "
            "The network is that of the best epoch so far, chosen on the test images, so that its accuracy flatters."
        )
    return Section("Result", [*parts, Table(("", ""), rows)])


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.4g}" for value in values)


def _compared(state: State) -> list[Section]:
    """The comparison with baselines, if it was asked for."""
    found = state.done("compare")
    if not found:
        return []
    test, derived = state.done("test") or {}, state.done("derive") or {}
    rows = [("searched", f"{derived['params']:,}", human(derived["macs"]), f"{test['accuracy']:.1%}", "", "", "")]
    verdicts: list[str | Table | Image | Lines] = []
    for facts in found.values():
        cost = (facts["title"], f"{facts['params']:,}", human(facts["macs"]))
        if facts["cut"]:
            rows.append((*cost, "not finished", "", "", ""))
            continue
        only = str(facts["only_searched_right"]), str(facts["only_other_right"])
        rows.append((*cost, f"{facts['accuracy']:.1%}", *only, f"{facts['p']:.2g}"))
        verdicts.append(f"**{facts['verdict'][:1].upper()}{facts['verdict'][1:]}.**")
    header = ("network", "parameters", "MACs", "test accuracy", "only searched right", "only this right", "McNemar's p")
    text = (
        "All networks have the same data, image size, schedule and seed; the baselines are the widest that cost no "
        "more than the searched network. One training each: a difference of a few points may be the seed's."
    )
    return [Section("Compared with known networks", [*verdicts, Table(header, rows), text])]


def _data(state: State) -> Section:
    data, notes = state["data"], state["data"]["notes"]
    found = [f"- {note}" for note in notes] or ["No problems were found."]
    return Section(
        "Data",
        [f"{data['described']}.", "\n".join(found), Image("pictures/data.png", "Classes, sizes and some images")],
    )


def _choices(state: State) -> Section:
    text = "Measured on this machine with dry runs of the real steps. Each can be overridden by an option of its name."
    return Section("What was chosen, and why", [Table(("choice", "value", "reason"), state["choices"]), text])


def _cells(folder: Path, state: State) -> Section:
    genotype, derived = load_genotype(folder / "genotype.yaml"), state.done("derive") or {}
    training = state["training"]
    caption = cost_text(derived["params"], derived["macs"], f"C={training['channels']}, {training['cells']} cells")
    save_figure(draw_genotype(genotype, caption), folder / "pictures" / "cells", formats=("svg",))
    parts: list[str | Table | Image | Lines] = []
    if derived["derived"]:
        kept = derived["derived"]["mixing_weight_kept"]
        parts.append(
            f"The strongest cells of the search exceed the bounds; these are the best ones within them, with "
            f"{kept:.1%} of the mixing weight."
        )
    if derived["doubt"]:
        parts.append(f"{derived['doubt'][:1].upper()}{derived['doubt'][1:]}.")
    return Section("Cells", [*parts, Image("pictures/cells.svg", "The normal and the reduction cell")])


def _curves(folder: Path) -> Section:
    task, pictures = task_of({}), folder / "pictures"
    num_operations = len(load_genotype(folder / "genotype.yaml").operations)
    rows = read_metrics(folder / "search" / "metrics.csv")
    save_figure(
        draw_curves(rows, search_panels(task.plots, num_operations)), pictures / "search_curves", formats=("svg",)
    )
    rows = read_metrics(folder / "retrain" / "metrics.csv")
    save_figure(draw_curves(rows, augment_panels(task.plots)), pictures / "training_curves", formats=("svg",))
    return Section(
        "Curves",
        [
            "The training:",
            Image("pictures/training_curves.svg", "Curves of the training"),
            "The search, whose accuracies are those of the supernet ([every epoch of its cells](search/search.html)):",
            Image("pictures/search_curves.svg", "Curves of the search"),
        ],
    )


def _test(folder: Path, state: State) -> Section:
    found = read_classified(folder / FILE)
    parts: list[str | Table | Image | Lines] = [
        Table(CLASS_HEADER, class_rows(found)),
        mean_over_classes(found),
    ]
    if mistakes := confusion_rows(found):
        parts += ["The most frequent mistakes:", Table(CONFUSION_HEADER, mistakes)]
    parts.append(f"{calibration_text(found)}.")
    for path, caption in _drawn(folder, state, found).items():
        parts += [f"{caption}:", Image(path, caption)]
    return Section("Test, image by image", parts)


def _drawn(folder: Path, state: State, found: Classified) -> dict[str, str]:
    """The captions of the test's pictures by their paths: those of the training, where it tested this network."""
    run = folder / "retrain"
    if not (state.done("train") or {})["cut"] and (run / FILE).is_file():
        there = {f"retrain/pictures/{name}": caption for name, (_, caption) in PICTURES.items()}
        if there := {path: caption for path, caption in there.items() if (folder / path).is_file()}:
            return there
    return {f"pictures/{name}": caption for name, caption in draw_test(found, folder).items()}


def _measured(state: State) -> Section:
    text = (
        "Measured: one search and one training with one seed. The interval says how far the accuracy depends on the "
        "choice of the test images. Not measured: the spread over seeds of search and training, which a study shows "
        "(`study new`)."
    )
    options = {key: value for key, value in state["options"].items() if value not in (None, "", False)}
    said = ", ".join(f"{key} {value}" for key, value in options.items())
    return Section("What is measured and what is not", [text, f"Options: {said}. All of it: [fit.json](fit.json)."])


# --- the two forms


def _markdown(title: str, sections: Sequence[Section]) -> str:
    blocks = [f"# {title}"]
    for section in sections:
        blocks.append(f"## {section.title}")
        for part in section.parts:
            match part:
                case Table():
                    blocks.append(markdown_table(part.header, part.rows))
                case Image():
                    blocks.append(f"![{part.says}]({part.path})")
                case Lines():
                    blocks.append("```\n" + "\n".join(part.texts) + "\n```")
                case _:
                    blocks.append(part)
    return "\n\n".join(blocks) + "\n"


def _page(title: str, sections: Sequence[Section], folder: Path) -> str:
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    shown: list[Mapping[str, Any]] = [
        {"title": section.title, "parts": [_part(part, folder) for part in section.parts]} for section in sections
    ]
    return template.render(title=title, sections=shown, version=__version__)


def _part(part: str | Table | Image | Lines, folder: Path) -> Markup:
    """A part of a section as HTML; whatever comes from names or files is escaped."""
    match part:
        case Table():
            head = "".join(f"<th>{escape(name)}</th>" for name in part.header)
            head = f"<thead><tr>{head}</tr></thead>" if any(part.header) else ""
            rows = ("<tr>" + "".join(f"<td>{_inline(cell)}</td>" for cell in row) + "</tr>" for row in part.rows)
            return Markup(f'<div class="scroll"><table>{head}<tbody>{"".join(rows)}</tbody></table></div>')
        case Image():
            path = folder / part.path
            content = base64.b64encode(path.read_bytes()).decode()
            return Markup(
                f'<figure><img alt="{escape(part.says)}" src="data:{KINDS[path.suffix]};base64,{content}"></figure>'
            )
        case Lines():
            return Markup(f"<pre>{escape(chr(10).join(part.texts))}</pre>")
    if part.startswith("- "):
        items = "".join(f"<li>{_inline(each.removeprefix('- '))}</li>" for each in part.split("\n"))
        return Markup(f"<ul>{items}</ul>")
    return Markup(f"<p>{_inline(part)}</p>")


def _inline(text: str) -> str:
    """A text with **strong** parts, `code` and [links](file) as HTML."""
    escaped = escape(text)
    escaped = re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", escaped)
    escaped = re.sub(r"`([^`]+)`", r"<code>\1</code>", escaped)
    return LINK.sub(r'<a href="\2">\1</a>', escaped)
