"""Hooks of mkdocs: pages made from the options, the docstrings and the notebooks, and links into the repository.

- `reference/…`: a page for each command from its argument parser, and the Python reference by mkdocstrings;
- `notebooks/*.md` from `docs/notebooks/*.ipynb`, with the outputs that the notebooks hold;
- a link from a page to a file of the repository outside docs/ gets a copy of that file in the site. Markdown files are
  shown as text: pages of the repository are read there, not here.

So every text has one home, and every link works in the repository as well as in the site.
"""

import argparse
import html
import json
import posixpath
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

from darts_sg.cli.main import COMMANDS, every_parser
from darts_sg.cli.parser import Parser

ROOT = Path(__file__).resolve().parents[2]
SHARED = ("help", "plugin")  # options of every action
COPIED = "repository"  # folder of the site for files of the repository
LINK = re.compile(r"(!?\[(?:[^\]\[]|\[[^\]]*\])*\])\(([^)\s#]+)(#[^)\s]*)?\)")
FENCED = re.compile(r"(^```.*?^```|`{1,2}[^`\n]+`{1,2})", re.MULTILINE | re.DOTALL)
REMOTE = re.compile(
    r"<(?:script|img|iframe|source)[^>]+src=\"?(?:https?:)?//[^>]*>|<link[^>]+(?:stylesheet|preconnect)[^>]*//[^>]*>"
)

PYTHON = {
    "Jobs": {
        "darts_sg.api": ["search", "retrain", "evaluate", "predict", "RunResult", "SearchResult", "RetrainResult"],
        "darts_sg.engine.evaluation": ["Evaluated"],
        "darts_sg.tasks.task": ["Prediction"],
        "darts_sg.errors": ["UsageError", "RunError", "Stopped"],
    },
    "Studies": {
        "darts_sg.study.run": ["Study"],
        "darts_sg.study.results": ["collect"],
        "darts_sg.study.compare": ["compare_genotypes"],
    },
    "Genotypes": {
        "darts_sg.genotype": ["load_genotype", "zoo_names", "parse_genotype", "Genotype", "Cell", "Edge"],
        "darts_sg.analysis.cost": ["derived_cost"],
        "darts_sg.analysis.deriving": ["derive_genotype"],
        "darts_sg.analysis.draw": ["draw_genotype", "draw_genotypes", "save_figure"],
        "darts_sg.analysis.draw_network": ["draw_network"],
        "darts_sg.networks.derived": ["DerivedNetwork"],
    },
    "Registries and plug-ins": {
        "darts_sg.registry": ["Registry"],
        "darts_sg.plugins": ["load"],
        "darts_sg.ops": ["register_operation"],
        "darts_sg.methods.relaxations": ["Relaxation"],
        "darts_sg.methods.regularizers": ["Regularizer"],
        "darts_sg.methods.perturbations": ["Perturbation"],
        "darts_sg.methods.selection": ["Selection"],
        "darts_sg.baselines": ["CandidateStrategy"],
        "darts_sg.engine.loggers.logger": ["Logger"],
        "darts_sg.tasks.task": ["Task"],
    },
}
"""The public API by page title and module."""


def on_config(config: Any) -> Any:
    """Add the pages of the reference to the navigation."""
    (reference,) = [section["Reference"] for section in config["nav"] if "Reference" in section]
    for section in reference:
        if "Commands" in section:
            section["Commands"] += [{name: f"reference/{name}.md"} for name in COMMANDS]
        if "Python" in section:
            section["Python"] += [{title: f"reference/{slug(title)}.md"} for title in PYTHON]
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are made here, and the files of the repository that pages link to."""
    made = {"reference/commands.md": command_index(), "reference/python.md": python_index()}
    for command in COMMANDS:
        made[f"reference/{command}.md"] = command_page(command)
    for title, modules in PYTHON.items():
        made[f"reference/{slug(title)}.md"] = python_page(title, modules)
    for path in sorted((ROOT / "docs" / "notebooks").glob("*.ipynb")):
        made[f"notebooks/{path.stem}.md"] = notebook_page(path)
    for name, text in made.items():
        files.append(File.generated(config, name, content=text))
    wanted = set()
    for file in files.documentation_pages():
        if file.src_uri not in made:
            wanted |= {path for _, path in outside(Path(file.abs_src_path).read_text(encoding="utf-8"), file.src_uri)}
    for path in sorted(wanted):
        name = f"{COPIED}/{path}" + (".txt" if path.endswith(".md") else "")
        files.append(File.generated(config, name, content=(ROOT / path).read_bytes()))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Let links to files of the repository point at their copies in the site, and those to notebooks at their pages."""
    uri = page.file.src_uri
    known = dict(outside(markdown, uri))

    def moved(match: re.Match[str]) -> str:
        if (path := known.get(match[2])) is None:
            return match[0].replace(".ipynb", ".md")  # the page that shows the notebook
        name = f"{COPIED}/{path}" + (".txt" if path.endswith(".md") else "")
        return f"{match[1]}({posixpath.relpath(name, posixpath.dirname(uri) or '.')})"

    parts = FENCED.split(markdown)
    return "".join(part if i % 2 else LINK.sub(moved, part) for i, part in enumerate(parts))


def on_post_page(output: str, page: Any, config: Any) -> str:
    """Refuse a page that loads anything from another host."""
    if found := REMOTE.search(output):
        raise PluginError(f"{page.file.src_uri} loads something from another host: {found[0]}")
    return output


def outside(markdown: str, uri: str) -> Iterator[tuple[str, str]]:
    """(link, path in the repository) of every link of a page of docs/ to a file outside docs/."""
    for part in FENCED.split(markdown)[::2]:
        for match in LINK.finditer(part):
            link = match[2]
            path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(uri), unquote(link)))
            if "://" not in link and not path.startswith(("docs/", "..")) and (ROOT / path).is_file():
                yield link, path


# --- commands


@cache
def parsers() -> dict[str, Parser]:
    return dict(every_parser())


def command_index() -> str:
    """All commands with their actions."""
    rows = [f"| [`{name}`]({name}.md) | {text} |" for name, text in COMMANDS.items()]
    lines = ["# Commands", "", "`darts-sg COMMAND`, or `python -m darts_sg COMMAND` in a checkout. `python search.py`"]
    lines += ["and `python augment.py` equal `search` and `augment`.", "", "| command | what it does |", "|---|---|"]
    return "\n".join([*lines, *rows, ""])


def command_page(command: str) -> str:
    """Every option of a command and of its actions, from the parsers that read them."""
    lines = [f"# {command}", ""]
    for name, parser in parsers().items():
        if name.split()[0] == command:
            lines += [] if name == command else [f"## {name}", ""]
            lines += parser_text(parser, 2 if name == command else 3)
    return "\n".join(lines)


def parser_text(parser: Parser, level: int) -> list[str]:
    """Usage, description and options of one parser. What all actions share is told once, for their command."""
    usage = parser.format_usage().removeprefix("usage: ").split()
    lines = [f"```text\n{' '.join(usage)}\n```", "", escaped(parser.description or ""), ""]
    for group in parser._action_groups:
        shared = SHARED if level > 2 else ()
        actions = [one for one in group._group_actions if one.help is not argparse.SUPPRESS and one.dest not in shared]
        if not actions or any(isinstance(action, argparse._SubParsersAction) for action in actions):
            for action in actions:
                if isinstance(action, argparse._SubParsersAction):
                    lines += [f"- `{choice.dest}`: {escaped(choice.help or '')}" for choice in action._choices_actions]
            lines.append("")
            continue
        lines += [f"{'#' * level} {(group.title or '').capitalize()}", ""]
        lines += [escaped(group.description or ""), ""]
        for action in actions:
            name = parser._get_formatter()._format_action_invocation(action)
            note = " (often used)" if parser.rare and action.dest not in parser.rare else ""
            lines.append(f"<dl><dt><code>{html.escape(name)}</code>{note}</dt><dd>{option_text(action)}</dd></dl>")
        lines.append("")
    if parser.epilog:
        lines += [escaped(parser.epilog), ""]
    return lines


def option_text(action: argparse.Action) -> str:
    """The help of an option as HTML; indented lines are a list."""
    first, *more = (action.help or "").replace("%%", "%").splitlines() or [""]
    text, items = html.escape(first), [line for line in more if line.startswith("  ")]
    rest = " ".join(line for line in more if not line.startswith("  "))
    if items:
        text += "<ul>" + "".join(f"<li>{html.escape(item.strip())}</li>" for item in items) + "</ul>"
    return text + html.escape(rest)


def escaped(text: str) -> str:
    return re.sub(r"([<>*_\[\]])", r"\\\1", text.replace("%(prog)s", "darts-sg"))


# --- Python


def python_index() -> str:
    lines = ["# Python", "", "The [Python API](../api.md) by example; here every signature.", ""]
    for title, modules in PYTHON.items():
        names = ", ".join(f"`{name}`" for found in modules.values() for name in found)
        lines.append(f"- [{title}]({slug(title)}.md): {names}")
    return "\n".join([*lines, ""])


def python_page(title: str, modules: dict[str, list[str]]) -> str:
    lines = [f"# {title}", ""]
    for module, names in modules.items():
        for name in names:
            lines += [f"::: {module}.{name}", ""]
    return "\n".join(lines)


def slug(title: str) -> str:
    return title.lower().replace(" ", "-")


# --- notebooks


def notebook_page(path: Path) -> str:
    """A notebook as Markdown: its cells, and the outputs that it holds."""
    lines = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            lines += [source, ""]
            continue
        lines += [f"```python\n{source}\n```", ""]
        for output in cell["outputs"]:
            data = output.get("data", {})
            if output["output_type"] == "stream":
                lines += [f"```text\n{''.join(output['text']).rstrip()}\n```", ""]
            elif "image/png" in data:
                lines += [f"![output](data:image/png;base64,{''.join(data['image/png']).strip()})", ""]
            elif "text/plain" in data:
                lines += [f"```text\n{''.join(data['text/plain']).rstrip()}\n```", ""]
    return "\n".join(lines)
