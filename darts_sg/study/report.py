"""The paper's experiment in Markdown: what it published, and what the run folders at hand measured of it."""

from typing import NamedTuple

from darts_sg.analysis.report import markdown_table
from darts_sg.study.protocol import (
    CLAIM,
    DARTS,
    FULL,
    IR,
    MARGIN,
    NAMES,
    SANDGLASS,
    Judgement,
    counted,
    relative,
    spread,
    verdict,
)
from darts_sg.study.records import Experiment, Trained
from darts_sg.study.searches import ABSENT, searches_section
from darts_sg.study.trainings import comparisons_section, retrainings_section, spreads_section

TITLE = "# The paper's experiment"


class Published(NamedTuple):
    """A row of the paper's table: error on CIFAR-10 in percent, parameters in millions."""

    title: str
    space: str
    error: float
    params: float


ROWS = (
    Published("DARTS", DARTS, 3.11, 3.25),
    Published("DARTS + inverted residual", IR, 3.26, 3.29),
    Published("DARTS + sandglass", SANDGLASS, 2.98, 2.45),
)


def paper_report(found: Experiment, picture: str | None = None) -> str:
    """The report; `picture` is the file name of one to show in it."""
    sections = [
        TITLE,
        *_published_and_measured(found),
        "## Searches",
        *searches_section(found),
        "## Retrainings",
        *retrainings_section(found, picture),
        "## Paired comparisons",
        *comparisons_section(found),
        "## Spread of the searches, spread of the trainings",
        *spreads_section(found),
        "## Verdict",
        *_verdict(found),
    ]
    if found.remarks:
        sections += ["## Remarks", "\n".join(f"- {remark}" for remark in found.remarks)]
    return "\n\n".join(sections) + "\n"


def _published_and_measured(found: Experiment) -> list[str]:
    body = []
    for row in ROWS:
        params = spread(found.params(row.space))
        darts = spread(found.params(DARTS))
        searches = counted(found.of(row.space), "search", "searches")
        against = relative(params.mean, darts.mean) if params and darts else ABSENT
        body.append(
            [
                row.title,
                f"{row.error:.2f}",
                f"{row.params:.2f}",
                _errors_of(found, NAMES[row.space]),
                f"{params.text(2, 1e6)} ({searches})" if params else ABSENT,
                "" if row.space == DARTS else against,
            ]
        )
    header = [
        "space", "published: error, %", "published: parameters, M", "measured here: error, %",
        "measured here: parameters, M", "parameters against darts, measured here",
    ]  # fmt: skip
    return [
        markdown_table(header, body),
        "Published: ECCV 2020, the table of its experiment with DARTS, quoted from memory. Measured: parameters are "
        "counted at C=36, 20 cells, auxiliary head excluded, of the plain genotypes that the searches below found; "
        "errors are those of the genotype that has the name, after the last epoch, each with its own setting. "
        "± is the sample standard deviation.",
    ]


def _errors_of(found: Experiment, title: str) -> str:
    """The errors of a genotype in all settings, each with its setting."""
    rows = ((setting, setting.find(title)) for setting in found.settings)
    texts = [f"{row.spread.text(2)} ({title}; {_seeds(row)}; {s.title})" for s, row in rows if row is not None]
    return "; ".join(texts) or ABSENT


def _seeds(row: Trained) -> str:
    return f"seed{'s' * (len(row.errors) > 1)} {', '.join(map(str, row.errors))}"


def _verdict(found: Experiment) -> list[str]:
    plain, steered = found.judgement("plain"), found.judgement("steered")
    word = verdict(plain, steered)
    text = f"**The claim {'is ' if word == 'open' else ''}{word}** in what was measured here"
    if word == "holds when steered":
        text += f"; of the plain genotypes it {'is ' if plain.word == 'open' else ''}{plain.word}"
    if not found.full:
        text += f". This is small scale, and small scale cannot confirm the paper's claim: the full scale is {FULL}"
    if 1 in (len(found.params(space)) for space in (DARTS, SANDGLASS)):
        text += ". One search of a space decides little"
    sections = [
        f"{text}.",
        _judged("Plain genotypes", plain),
        _judged("Steered genotypes", steered) + " Of steered genotypes the first says only that there are such.",
    ]
    if (without := _without_block(found)) is not None:
        sections.append(without)
    return sections


def _judged(title: str, judgement: Judgement) -> str:
    fewer, error = judgement.fewer, judgement.no_worse
    return "\n".join(
        [
            f"{title}: {judgement.word}.",
            "",
            f"1. At least {CLAIM}% fewer parameters than DARTS_V2 and than our plain genotypes of {DARTS}: "
            f"**{fewer.word}**. {_sentence(fewer.text)}",
            f"2. No larger mean error, and not worse by {MARGIN:g} points or more: **{error.word}**. "
            f"{_sentence(error.text)}",
        ]
    )


def _without_block(found: Experiment) -> str | None:
    """What must be said where genotypes that stand for the block's space do not contain it."""
    named = [(search, one) for search in found.of(SANDGLASS) if search.name for one in search.found]
    without = [
        search.title(one.kind)
        for search, one in named
        if one.kind != "few skips" and not any((one.blocks(SANDGLASS) or {}).values())
    ]
    if not without:
        return None
    have = "has" if len(without) == 1 else "have"
    names = " and ".join(without)
    return f"{names} {have} no sandglass operation: what is said here is said of the space, not of the block."


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."
