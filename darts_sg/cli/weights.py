"""darts-sg weights: trained weights in folders of runs, and their way to the Hugging Face hub."""

import argparse
import json
import re
import tempfile
from pathlib import Path
from typing import Any

from rich.table import Table

from darts_sg.cli.parser import Parser
from darts_sg.cli.terminal import console
from darts_sg.errors import UsageError, quoted

LOOKED_IN = ("results", "runs")
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


def add_parser(commands: Any) -> None:
    """Add `weights` with its actions to the commands of the package."""
    weights = commands.add_parser("weights", description="List trained weights, and publish those of a run.")
    actions = weights.add_subparsers(dest="action", metavar="ACTION", parser_class=Parser)
    found = actions.add_parser("list", help="weights files with sizes, errors and data (the default action)")
    found.add_argument(
        "folders", metavar="DIR", nargs="*", type=Path, help="folders to look in (default: results and runs)"
    )
    found.add_argument("--json", action="store_true", help="print JSON")
    push = actions.add_parser("push", help="upload the weights of a run with a model card to the Hugging Face hub")
    push.add_argument("run_dir", metavar="RUN_DIR", type=Path, help="folder of a finished augment run")
    push.add_argument("repository", metavar="USER/NAME", help="repository of the hub; made if there is none")
    push.add_argument("--dry-run", action="store_true", help="write the folder only, and upload nothing")
    push.add_argument(
        "-o", "--output", type=Path, metavar="DIR", help="new folder to write (default with --dry-run: NAME)"
    )
    push.add_argument("--license", default="mit", metavar="ID", help="licence of the weights, as the hub spells it")
    push.add_argument("--private", action="store_true", help="a new repository is visible to its owner only")


def run(arguments: argparse.Namespace) -> None:
    """List or push."""
    if arguments.action == "push":
        _push(arguments)
    else:
        _list(getattr(arguments, "folders", []), getattr(arguments, "json", False))


def _list(folders: list[Path], as_json: bool) -> None:
    """Print the weights files below the folders; what cannot be read is named beneath."""
    from darts_sg.analysis.cost import count_params
    from darts_sg.engine.weights import read_weights

    for folder in folders:
        if not folder.is_dir():
            raise UsageError(f"{folder} is not a folder; name one that holds runs")
    looked_in = folders or [Path(name) for name in LOOKED_IN if Path(name).is_dir()]
    rows: list[dict[str, Any]] = []
    problems = []
    for path in sorted({path for folder in looked_in for path in folder.rglob("*.safetensors")}):
        try:
            weights = read_weights(path)
        except UsageError as error:
            problems.append(str(error))
            continue
        m, figure = weights.metadata, weights.task.headline
        facts = {"file": str(path), "bytes": path.stat().st_size, "params": count_params(weights.build())}
        facts |= {"network": weights.title, figure.key("test"): weights.recorded, "data": weights.data}
        rows.append(facts | {"epoch": m.epoch, "epochs": m.epochs, "seed": m.seed, "ema": m.ema})
        rows[-1]["shown"] = f"{figure.noun} {figure.text.format(weights.recorded)}"
    if as_json:
        print(
            json.dumps([{k: v for k, v in row.items() if k != "shown"} for row in rows], indent=1, ensure_ascii=False)
        )
    else:
        out = console()
        table = Table("file", "MB", "network", "parameters", "test", "data", "epochs", "seed", box=None, pad_edge=False)
        for row in rows:
            size, epochs = f"{row['bytes'] / 1e6:.2f}", f"{row['epoch']} of {row['epochs']}"
            cells = (row["file"], size, row["network"], f"{row['params']:,}", row["shown"], row["data"], epochs)
            table.add_row(*cells, str(row["seed"]))
        if rows:
            out.print(table)
        where = ", ".join(map(str, looked_in)) or f"here, where there is neither {' nor '.join(LOOKED_IN)}"
        out.print(
            f"{len(rows)} weights files in {where}; the genotypes without weights: darts-sg genotype list",
            highlight=False,
        )
    for problem in problems:
        print(f"left out: {problem}")


def _push(arguments: argparse.Namespace) -> None:
    """Write the card and the files, and upload them unless it is a dry run."""
    from darts_sg.engine.model_card import CARD, make_card, sha256, upload, write_folder
    from darts_sg.remote import refuse_missing_hub

    repository = arguments.repository
    if not _REPOSITORY.fullmatch(repository) or ".." in repository:
        raise UsageError(f"{quoted(repository)}: expected the name of a repository, user/name")
    if not re.fullmatch(r"[a-z0-9][a-z0-9.-]{0,40}", arguments.license):
        raise UsageError(f"--license {quoted(arguments.license)}: expected an identifier such as mit or cc-by-4.0")
    if not arguments.dry_run:
        refuse_missing_hub("weights push")
    card = make_card(arguments.run_dir, repository, arguments.license)
    output = arguments.output or (Path(repository.partition("/")[2]) if arguments.dry_run else None)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "model" if output is None else output
        write_folder(card, folder)
        if output is not None:
            print(f"{output}: {', '.join([CARD, *card.files])}")
        for file, content in card.files.items():
            if file.endswith(".safetensors"):
                print(f"{file}: sha256 {sha256(content)}")
        if not arguments.dry_run:
            print(upload(folder, repository, private=arguments.private))
