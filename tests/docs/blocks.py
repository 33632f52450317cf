"""The commands in the code blocks of README.md and docs/, as a reader would type them."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"(?P<mark><!-- (?:run|run slowly) -->\n)?^```(?P<kind>\w*)\n(?P<text>.*?)^```$", re.M | re.S)
SHELLS = {"", "bash", "console", "sh"}
OPTIONAL = re.compile(r" \[((?:-|[A-Z]+ …)[^\]]*)\]")
STARTS = ("python ", "python3 ", "darts-sg ", "torchrun ", "make ", "pip ", "$ ")
SCRIPTS = {"search.py": "search", "augment.py": "augment"}


@dataclass(frozen=True)
class Command:
    """One command of a block."""

    page: Path
    line: int
    text: str
    run: bool
    """Marked by <!-- run -->: small, and run by the tests in the order of its page."""
    slow: bool
    """Marked by <!-- run slowly -->: run as it stands by `make docs-commands`, and with small sizes by `make test`."""

    @property
    def name(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    def variants(self) -> list[list[str]]:
        """The words of the command without its optional parts, and with them: `[--json | --csv]` counts as --json."""
        plain = OPTIONAL.sub("", self.text)
        whole = OPTIONAL.sub(lambda match: " " + match[1].split(" | ")[0], self.text)
        return [words(text) for text in dict.fromkeys((plain, whole))]


def words(text: str) -> list[str]:
    """The words of a shell command, without a comment and without the sign for `and so on`."""
    found = [word for word in shlex.split(text, comments=True) if word != "…"]
    return found[next((i for i, word in enumerate(found) if "=" not in word or word.startswith("-")), 0) :]


def of_package(found: list[str]) -> list[str] | None:
    """The words after `darts-sg`, whichever way the command is started; None for a command of another program."""
    if found[:1] == ["darts-sg"]:
        return found[1:]
    if found[:3] in (["python", "-m", "darts_sg"], ["python3", "-m", "darts_sg"]):
        return found[3:]
    script = next((i for i, word in enumerate(found) if word in SCRIPTS), None)
    if script is not None and found[0] in ("python", "python3", "torchrun"):
        return [SCRIPTS[found[script]], *found[script + 1 :]]
    return None


def commands(page: Path) -> list[Command]:
    """The commands of a page, in order. In a block with `$ `, the other lines are output."""
    content, found = page.read_text(encoding="utf-8"), []
    for block in BLOCK.finditer(content):
        text = block["text"]
        if block["kind"] not in SHELLS or not text.startswith(STARTS):
            continue
        first = content[: block.start("text")].count("\n") + 1
        lines = re.sub(r"\\\n\s*", lambda match: " " * len(match[0]), text).splitlines()
        session = text.startswith("$ ")
        for number, line in enumerate(lines):
            if line.strip() and not line.startswith("#") and (line.startswith("$ ") or not session):
                mark = block["mark"] or ""
                found.append(Command(page, first + number, line.removeprefix("$ "), "-- run" in mark, "slowly" in mark))
    return found
