"""The report of a study in Markdown: what was published, and what the run folders at hand measured."""

from darts_sg.study.detectors import detectors_section
from darts_sg.study.protocol import FEW_SKIPS, PublishedRow
from darts_sg.study.records import Experiment, Trained
from darts_sg.study.searches import ABSENT, searches_section
from darts_sg.study.statistics import Judgement, counted, relative, spread, verdict
from darts_sg.study.trainings import comparisons_section, retrainings_section, spreads_section
from darts_sg.tasks.columns import markdown_table


def study_report(found: Experiment, picture: str | None = None) -> str:
    """The report; `picture` is the file name of a picture to show in it."""
    sections = [
        heading(found.protocol.title),
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
    if found.protocol.detectors is not None:
        sections += ["## Detectors", *detectors_section(found.detectors, found.protocol.detectors)]
    if found.remarks:
        sections += ["## Remarks", "\n".join(f"- {remark}" for remark in found.remarks)]
    return "\n\n".join(sections) + "\n"


def heading(title: str) -> str:
    """The first line of a report; a file that begins with it may be overwritten by the next report."""
    return f"# {title}"


def _published_and_measured(found: Experiment) -> list[str]:
    """A table of the spaces: published figures in columns of their own, where there are any."""
    protocol, baseline = found.protocol, found.protocol.baseline_space
    base = spread(found.params(baseline))
    rows: list[tuple[str, str, PublishedRow | None]] = [(row.title, row.space, row) for row in protocol.published]
    rows = rows or [(space, space, None) for space in protocol.space_names]
    body = []
    for title, space, published in rows:
        params = spread(found.params(space))
        searches = counted(found.of(space), "search", "searches")
        against = relative(params.mean, base.mean) if params and base else ABSENT
        body.append(
            [
                title,
                *([] if published is None else [f"{published.error:.2f}", f"{published.params:.2f}"]),
                _errors_of(found, protocol.space(space).genotype),
                f"{params.text(2, 1e6)} ({searches})" if params else ABSENT,
                "" if space == baseline else against,
            ]
        )
    header = [
        "space", *(["published: error, %", "published: parameters, M"] if protocol.published else []),
        "measured here: error, %", "measured here: parameters, M", f"parameters against {baseline}, measured here",
    ]  # fmt: skip
    source = f"Published: {protocol.published_source}. " if protocol.published else ""
    return [
        markdown_table(header, body),
        f"{source}Measured: parameters are counted at C=36, 20 cells, auxiliary head excluded, of the plain genotypes "
        "that the searches below found; errors are those of the genotype that has the name, after the last epoch, each "
        "with its own setting. ± is the sample standard deviation.",
    ]


def _errors_of(found: Experiment, title: str) -> str:
    """The errors of a genotype in all settings, each with its setting."""
    rows = ((setting, setting.find(title)) for setting in found.settings)
    texts = [f"{row.spread.text(2)}: {title}; {_seeds(row)}; {s.title}" for s, row in rows if row is not None]
    return "; ".join(texts) or ABSENT


def _seeds(row: Trained) -> str:
    return f"seed{'s' * (len(row.errors) > 1)} {', '.join(map(str, row.errors))}"


def _verdict(found: Experiment) -> list[str]:
    protocol = found.protocol
    plain, steered = found.judgements()
    word = verdict(plain, steered)
    text = f"**The claim {'is ' if word == 'open' else ''}{word}** in what was measured here"
    if word == "holds when steered":
        text += f"; of the plain genotypes it {'is ' if plain.word == 'open' else ''}{plain.word}"
    if not found.full:
        text += f". {protocol.full_scale.missing}"
    if 1 in (len(found.params(space)) for space in (protocol.baseline_space, protocol.claimed_space)):
        text += ". One search of a space decides little"
    sections = [f"{text}.", _judged("Plain genotypes", plain, found)]
    if steered is not None:
        note = protocol.claim.steered_note
        sections.append(_judged("Steered genotypes", steered, found) + (f" {note}" if note else ""))
    if (without := _without_block(found)) is not None:
        sections.append(without)
    return sections


def _judged(title: str, judgement: Judgement, found: Experiment) -> str:
    lines = [f"{title}: {judgement.word}.", ""]
    for i, (key, condition) in enumerate(found.protocol.claim.conditions.items(), start=1):
        evaluated = judgement.conditions[key]
        asked = condition.title(found.protocol.baseline_space)
        lines.append(f"{i}. {asked}: **{evaluated.word}**. {_sentence(evaluated.text)}")
    return "\n".join(lines)


def _without_block(found: Experiment) -> str | None:
    """The warning due where genotypes that stand for the claim's space do not contain its block."""
    space = found.protocol.space(found.protocol.claimed_space)
    if space.block is None:
        return None
    named = [(search, one) for search in found.of(space.name) if search.name for one in search.found]
    without = [
        search.title(one.kind)
        for search, one in named
        if one.kind != FEW_SKIPS and not any((one.places(space.block) or {}).values())
    ]
    if not without:
        return None
    have = "has" if len(without) == 1 else "have"
    block = space.block.replace("_", " ")
    names = " and ".join(without)
    return f"{names} {have} no {block} operation: what is said here is said of the space, not of the block."


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."
