"""Tables of a study as data, written as Markdown, CSV and LaTeX."""

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from darts_sg.tasks.columns import markdown_table

ABSENT = "–"
"""A value that does not exist, or not yet."""

LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "−": "$-$", "–": "--", "±": r"$\pm$", "×": r"$\times$",
    "ρ": r"$\rho$", "τ": r"$\tau$", "≤": r"$\le$", "≥": r"$\ge$", "<": r"$<$", ">": r"$>$", "·": r"$\cdot$",
    "σ": r"$\sigma$", "‑": "-", "→": r"$\to$", "←": r"$\leftarrow$",
}  # fmt: skip


@dataclass(frozen=True)
class Column:
    """A column: its heading, and how its values become text."""

    title: str
    text: Callable[[Any], str] = str
    number: bool = False
    """Whether values are numbers: then they stand to the right, and sort as numbers."""
    is_interval: bool = False
    """Whether values are (low, high): CSV has a column for each."""


@dataclass(frozen=True)
class Linked:
    """A text that links to a file of the study."""

    text: str
    path: str
    """Relative to the study's folder."""

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Table:
    """A table with everything that must stand beside it."""

    name: str
    """File name without its ending."""
    title: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Any]]
    """Values, not texts; None for what does not exist."""
    note: str = ""
    """Data, scale, seeds and machine of the figures, and how to read them."""
    stacked: bool = False
    """Whether a narrow page shows each row as a block of lines, for tables of texts."""

    def cell(self, column: Column, value: Any) -> str:
        """The text of a value."""
        return ABSENT if value is None else column.text(value)

    def texts(self) -> list[list[str]]:
        return [
            [self.cell(column, value) for column, value in zip(self.columns, row, strict=True)] for row in self.rows
        ]

    def markdown(self) -> str:
        """As a Markdown table; links stay links."""
        header = [column.title for column in self.columns]
        body = [
            [
                f"[{text}]({value.path})" if isinstance(value, Linked) else text
                for text, value in zip(texts, row, strict=True)
            ]
            for texts, row in zip(self.texts(), self.rows, strict=True)
        ]
        return markdown_table(header, body)

    def csv(self) -> str:
        """As CSV with plain numbers; an interval has two columns, and what does not exist is empty."""
        output = io.StringIO()
        writer = csv.writer(output, lineterminator="\n")
        header: list[str] = []
        for column in self.columns:
            header += [f"{column.title}, {end}" for end in ("low", "high")] if column.is_interval else [column.title]
        writer.writerow(header)
        for row in self.rows:
            fields: list[Any] = []
            for column, value in zip(self.columns, row, strict=True):
                if column.is_interval:
                    fields += ["", ""] if value is None else list(value)
                else:
                    fields.append(_csv_value(column, value))
            writer.writerow(fields)
        return output.getvalue()

    def latex(self) -> str:
        """As a LaTeX table for the package booktabs."""
        alignment = "".join("r" if column.number or column.is_interval else "l" for column in self.columns)
        lines = ["% Needs \\usepackage{booktabs}."]
        body = [[column.title for column in self.columns], *self.texts()]
        rows = [" & ".join(latex_text(text) for text in row) + r" \\" for row in body]
        lines += [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{latex_text(self.title)}}}",
            rf"\label{{tab:{self.name}}}",
        ]
        lines += [rf"\begin{{tabular}}{{{alignment}}}", r"\toprule", rows[0], r"\midrule", *rows[1:], r"\bottomrule"]
        note = rf"\par\medskip\begin{{minipage}}{{\linewidth}}\footnotesize {latex_text(self.note)}\end{{minipage}}"
        return "\n".join([*lines, r"\end{tabular}", *([note] if self.note else []), r"\end{table}"]) + "\n"

    def records(self) -> list[dict[str, Any]]:
        """The rows as dicts by column title, for JSON and pandas."""
        return [
            {column.title: _plain(value) for column, value in zip(self.columns, row, strict=True)} for row in self.rows
        ]


def latex_text(text: str) -> str:
    """A text for LaTeX."""
    return "".join(LATEX.get(letter, letter) for letter in text)


def _csv_value(column: Column, value: Any) -> Any:
    if value is None:
        return ""
    return value if isinstance(value, int | float) else column.text(value)


def _plain(value: Any) -> Any:
    if isinstance(value, Linked):
        return value.text
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(inner) for inner in value]
    return value


# Texts of values


def fixed(digits: int, scale: float = 1.0, sign: bool = False) -> Callable[[float], str]:
    """A number with so many decimals, divided by `scale`."""
    return lambda value: f"{value / scale:{'+' if sign else ''}.{digits}f}".replace("-", "−")


signed = fixed(2, sign=True)
"""A difference in points."""


def interval(digits: int, sign: bool = False) -> Callable[[tuple[float, float]], str]:
    """`low to high`."""
    text = fixed(digits, sign=sign)
    return lambda value: f"{text(value[0])} to {text(value[1])}"


def p_text(value: float) -> str:
    """A p-value with two significant digits; tiny ones as a bound."""
    return "< 0.0001" if value < 1e-4 else f"{value:.2g}" if value < 0.1 else f"{value:.2f}"


def by_seed(values: Mapping[int, float]) -> str:
    """`0: 12.00, 1: 11.80`."""
    return ", ".join(f"{seed}: {value:.2f}" for seed, value in values.items())


def whole(value: int) -> str:
    """A count with commas."""
    return f"{value:,}"
