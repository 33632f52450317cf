"""python -m darts_sg diagnose FILE …: gradient confusion and information loss of trained networks, side by side."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from darts_sg.cli.parser import not_negative, picture_kind, two_or_more
from darts_sg.cli.terminal import console
from darts_sg.errors import UsageError

if TYPE_CHECKING:
    from darts_sg.engine.diagnosis import Diagnosis

EPILOG = (
    "The cosines are between the gradients of all pairs of minibatches: the lower their minimum and the wider their "
    "spread, the more the minibatches contradict each other (gradient confusion, ICML 2020). R² is the share of an "
    "image patch that a linear map recovers from the features at its position. It is measured where features are "
    "carried on, by a shortcut or from cell to cell; compare it at the same size."
)


def add_parser(commands: Any) -> None:
    """Add `diagnose` to the commands of the package."""
    diagnose = commands.add_parser(
        "diagnose",
        description="Compare the gradient confusion and information loss of trained networks.",
        epilog=EPILOG,
    )
    diagnose.add_argument(
        "files",
        metavar="FILE",
        nargs="+",
        type=Path,
        help="weights.safetensors of augment runs on the same data, or their folders",
    )
    diagnose.add_argument(
        "--data", type=Path, default=Path("data"), metavar="DIR", help="folder of the data set (default: data)"
    )
    diagnose.add_argument(
        "--batches",
        type=two_or_more,
        default=32,
        metavar="B",
        help="number of minibatches of training images (default: 32)",
    )
    diagnose.add_argument(
        "--batch-size", type=two_or_more, default=64, metavar="N", help="images in a minibatch (default: 64)"
    )
    diagnose.add_argument("--seed", type=not_negative, default=0, help="seed of the choice of images (default: 0)")
    diagnose.add_argument(
        "--device", default="auto", help="device to compute on (default: auto, a GPU if there is one)"
    )
    diagnose.add_argument(
        "--json", action="store_true", help="print JSON, with every place where features are carried on"
    )
    diagnose.add_argument("--markdown", action="store_true", help="print a Markdown table")
    diagnose.add_argument("-o", "--output", type=Path, help="also write a picture: FILE.svg, .png or .pdf")


def run(arguments: argparse.Namespace) -> None:
    """Measure each network, and show the results; also those so far when one fails or Ctrl-C is pressed."""
    from darts_sg.engine.diagnosis import Comparison

    if arguments.json and arguments.markdown:
        raise UsageError("choose one of --json and --markdown")
    kind = "" if arguments.output is None else picture_kind(arguments.output)
    comparison = Comparison(
        arguments.files,
        arguments.data,
        batches=arguments.batches,
        batch_size=arguments.batch_size,
        seed=arguments.seed,
        device=arguments.device,
    )
    found: list[Diagnosis] = []
    try:
        for diagnosis in comparison:  # minutes each
            found.append(diagnosis)
    except (KeyboardInterrupt, UsageError):
        if found:
            print(f"ended early: {len(found)} of {len(arguments.files)} networks were measured", file=sys.stderr)
            show(found, comparison.setting(), kind, arguments)
        raise
    show(found, comparison.setting(), kind, arguments)


def show(found: Sequence["Diagnosis"], setting: str, kind: str, arguments: argparse.Namespace) -> None:
    """Print the diagnoses, and draw them as a picture of this kind if there is an --output."""
    from darts_sg.analysis.draw import save_figure
    from darts_sg.analysis.draw_diagnosis import draw_diagnosis
    from darts_sg.tasks.columns import markdown_table

    if arguments.output is not None:
        figure = draw_diagnosis([diagnosis.portrait() for diagnosis in found], setting)
        for path in save_figure(figure, arguments.output.with_suffix(""), formats=(kind,)):
            print(path, file=sys.stderr if arguments.json or arguments.markdown else sys.stdout)
    if arguments.json:
        print(json.dumps({"setting": setting, "networks": [diagnosis.as_dict() for diagnosis in found]}, indent=1))
        return
    header, rows = diagnosis_table(found)
    if arguments.markdown:
        print(f"{setting}\n\n{markdown_table(header, rows)}")
        return
    table = Table(*header, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*row)
    out = console()
    out.print(f"{setting}\n", highlight=False, markup=False)
    out.print(table)


def diagnosis_table(found: Sequence["Diagnosis"]) -> tuple[list[str], list[list[str]]]:
    """Header, and a row for each network. R² has a column for each feature size of any network, largest first."""
    sizes = sorted({site.size for diagnosis in found for site in diagnosis.retained}, reverse=True)
    header = ["network", "parameters", "test error, recorded", "training loss"]
    header += [f"cosine: {which}" for which in ("minimum", "mean", "deviation", "negative")]
    header += [f"R² at {size}×{size}" for size in sizes] + ["mean R²"]
    rows = []
    for diagnosis in found:
        cosines = diagnosis.gradients.cosines
        shares = [diagnosis.r2(size) for size in (*sizes, None)]
        rows.append(
            [
                diagnosis.label,
                f"{diagnosis.params:,}",
                diagnosis.recorded,
                f"{diagnosis.gradients.loss:.3f}",
                *(f"{value:+.3f}" for value in (cosines.min(), cosines.mean())),
                f"{cosines.std(correction=0):.3f}",
                f"{100 * (cosines < 0).double().mean():.1f}%",
                *("none" if share is None else f"{share:.3f}" for share in shares),
            ]
        )
    return header, rows
