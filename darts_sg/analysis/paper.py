"""The paper's experiment as a table: what it published, and what the run folders at hand measured."""

import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

from darts_sg.analysis.cost import derived_cost
from darts_sg.analysis.measured import runs_in, scores
from darts_sg.analysis.report import markdown_table
from darts_sg.analysis.run_folder import Run
from darts_sg.genotype import Genotype


class Published(NamedTuple):
    """A row of the paper's table: error on CIFAR-10 in percent, parameters in millions."""

    title: str
    space: str
    error: float
    params: float


ROWS = (
    Published("DARTS", "darts", 3.11, 3.25),
    Published("DARTS + inverted residual", "darts+ir", 3.26, 3.29),
    Published("DARTS + sandglass", "darts+sandglass", 2.98, 2.45),
)
CLAIM = 25  # percent of the parameters that the block saves


class Measured(NamedTuple):
    """What the run folders hold of one space."""

    searches: list[Genotype]
    """The genotypes of finished searches, one a run folder."""
    retrainings: list[Run]
    """Finished retrainings of genotypes that were searched in the space."""

    def params(self) -> list[int]:
        """Parameters at C=36, 20 cells of what the searches found."""
        return [derived_cost(genotype).params for genotype in self.searches]


def measured_in(folder: Path) -> dict[str, Measured]:
    """What the run folders in `folder` hold, by space: of the searches those of one scale, the most common one.

    That is the scale at which the most spaces were searched, and of such the largest. Raises UsageError if there is no
    such folder.
    """
    found: dict[str, Measured] = defaultdict(lambda: Measured([], []))
    for run in runs_in(folder):
        if run.genotype is None or run.genotype.provenance.get("kind") != "searched":
            continue
        here = found[run.genotype.space]
        if run.job == "augment":
            here.retrainings.append(run)
        else:
            here.searches.append(run.genotype)
    spaces_at: dict[tuple[Any, ...], set[str]] = defaultdict(set)
    for space, here in found.items():
        for genotype in here.searches:
            spaces_at[search_scale(genotype)].add(space)
    if spaces_at:
        scale = max(spaces_at, key=lambda key: (len(spaces_at[key]), [float(x or 0) for x in key]))
        for here in found.values():
            here.searches[:] = [genotype for genotype in here.searches if search_scale(genotype) == scale]
    return dict(found)


def search_scale(genotype: Genotype) -> tuple[Any, ...]:
    """What searches must have in common to be compared: epochs, channels, cells and images."""
    options = genotype.provenance.get("options") or {}
    images = [genotype.provenance.get(f"{part}_images") for part in ("train", "validation")]
    return (options.get("epochs"), options.get("channels"), options.get("cells"), *images)


def paper_report(folder: Path) -> str:
    """The table in Markdown, and in a sentence whether the claim of 25% fewer parameters holds in what was measured."""
    found = measured_in(folder)
    body = []
    for row in ROWS:
        here = found.get(row.space, Measured([], []))
        body.append(
            [
                row.title,
                f"{row.error:.2f}",
                f"{row.params:.2f}",
                _error(here),
                _params(here),
                _against(found, row.space),
            ]
        )
    header = [
        "space", "published: error, %", "published: parameters, M", "measured here: error, %",
        "measured here: parameters, M", "parameters against darts",
    ]  # fmt: skip
    lines = [
        "# The paper's experiment",
        "",
        markdown_table(header, body),
        "",
        "Published: ECCV 2020, the table of its experiment with DARTS, quoted from memory. Measured: parameters are "
        "counted at C=36, 20 cells, auxiliary head excluded, of what these searches found, all of one scale:",
        "",
        *_scales(found),
        "",
        _claim(found),
        "",
    ]
    return "\n".join(lines)


def _spread(values: list[float], digits: int) -> str:
    text = f"{statistics.mean(values):.{digits}f}"
    if len(values) > 1:
        text += f" ± {statistics.stdev(values):.{digits}f} ({len(values)} searches)"
    return text if len(values) > 1 else f"{text} (one search)"


def _params(here: Measured) -> str:
    return _spread([count / 1e6 for count in here.params()], 2) if here.searches else "not measured"


def _error(here: Measured) -> str:
    """Errors after the last epoch, at each scale apart."""
    return "; ".join(map(str, scores(here.retrainings))) or "not measured"


def _against(found: dict[str, Measured], space: str) -> str:
    reduction = _reduction(found, space)
    return "" if space == "darts" else "not measured" if reduction is None else f"{-reduction:+.1f}%"


def _reduction(found: dict[str, Measured], space: str) -> float | None:
    """By how many percent the mean of the parameters of `space` is below that of darts."""
    ours, base = (found[name].params() if name in found else [] for name in (space, "darts"))
    return 100 * (1 - statistics.mean(ours) / statistics.mean(base)) if ours and base else None


def _scales(found: dict[str, Measured]) -> list[str]:
    lines = []
    for row in ROWS:
        for genotype in found[row.space].searches if row.space in found else []:
            known = genotype.provenance
            options = known.get("options") or {}
            normal, reduce = genotype.count("sandglass_3x3")
            lines.append(
                f"- {row.space}, seed {known.get('seed')}: {known.get('data')}, C={options.get('channels')}, "
                f"{options.get('cells')} cells, {known.get('train_images')} + {known.get('validation_images')} images, "
                f"{options.get('epochs')} epochs; sandglass operations: {normal} in the normal, {reduce} in the "
                "reduction cell"
            )
    return lines or ["No search was found."]


def _claim(found: dict[str, Measured]) -> str:
    reduction = _reduction(found, "darts+sandglass")
    if reduction is None:
        return (
            f"Whether the block saves {CLAIM}% of the parameters was not measured: that takes searches of both spaces."
        )
    holds = "holds" if reduction >= CLAIM else "does not hold"
    less = "fewer" if reduction >= 0 else "more"
    seeds = min(len(found[name].searches) for name in ("darts", "darts+sandglass"))
    return (
        f"The claim of {CLAIM}% fewer parameters {holds} in what was measured here: darts+sandglass has "
        f"{abs(reduction):.1f}% {less} than darts, from {seeds} search{'es' if seeds > 1 else ''} of each."
        + (" One search of each decides little." if seeds == 1 else "")
    )
