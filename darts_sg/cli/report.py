"""darts-sg report: rewrite a run's report.md and pictures, or write the report of a study."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from darts_sg.cli.parser import argument_type
from darts_sg.errors import UsageError
from darts_sg.files import write_atomically

WATCH_PORT = 8128
PAPER_PROTOCOL = "sandglass"  # what `report paper` shows


def add_parser(commands: Any) -> None:
    """Add `report` to the commands of the package."""
    report = commands.add_parser(
        "report", description="Rewrite a run's report.md and pictures, or write the report of a study."
    )
    report.add_argument(
        "run_dir",
        metavar="RUN_DIR",
        type=Path,
        help="a run folder, a study's PROTOCOL.yaml, or `paper`: the experiment of results/sandglass/pilot",
    )
    report.add_argument(
        "--results", type=Path, help="with a study: the folder that holds run folders, at any depth (default: results)"
    )
    report.add_argument(
        "-o",
        "--output",
        type=Path,
        help="with a study: FILE.md for the report, with its picture FILE.svg; or the picture: .svg, .png or .pdf",
    )
    report.add_argument("--json", action="store_true", help="with a study: print JSON")
    report.add_argument(
        "--watch", action="store_true", help="serve a page of the run that follows it, to this machine only"
    )
    report.add_argument(
        "--port", type=argument_type(int), help=f"with --watch: port (default: {WATCH_PORT}; 0: any free one)"
    )
    report.add_argument(
        "--no-animation", action="store_true", help="leave out pictures/search.gif (about 0.2 s an epoch of a search)"
    )


def run(arguments: argparse.Namespace) -> None:
    """Rewrite the report of a run, or print or write that of a study."""
    from darts_sg.analysis.report import write_report

    target: Path = arguments.run_dir
    if arguments.watch:
        watch_run(arguments)
        return
    if arguments.port is not None:
        raise UsageError("--port is for --watch: add --watch, or leave it out")
    if not target.is_dir() and (str(target) == "paper" or target.suffix in {".yaml", ".yml"}):
        report_study(arguments)
    else:
        for name in ("results", "output", "json"):
            if getattr(arguments, name):
                raise UsageError(f"--{name} is for studies (`report paper`); a run's report is written into its folder")
        print(write_report(arguments.run_dir, animate=not arguments.no_animation))


def watch_run(arguments: argparse.Namespace) -> None:
    """Serve the page of a run until Ctrl-C."""
    from darts_sg.analysis.run_folder import read_run
    from darts_sg.analysis.run_page import RunPage
    from darts_sg.analysis.serving import serve

    for name in ("results", "output", "json", "no_animation"):
        if getattr(arguments, name):
            raise UsageError(
                f"--{name.replace('_', '-')} writes a report, and --watch shows a run: leave one of them out"
            )
    port = WATCH_PORT if arguments.port is None else arguments.port
    if not 0 <= port <= 65535:
        raise UsageError(f"--port must be from 0 to 65535, found {port}")
    read_run(arguments.run_dir)  # say at once what is wrong with the folder
    serve(RunPage(arguments.run_dir), port, lambda line: print(line, flush=True))


def report_study(arguments: argparse.Namespace) -> None:
    """Print the report of a study or write it; its picture goes beside the report, or into a file alone."""
    from darts_sg.analysis.draw import save_figure
    from darts_sg.study.as_dict import report_dict
    from darts_sg.study.draw import draw_experiment, drawable
    from darts_sg.study.protocol import load_protocol, read_protocol
    from darts_sg.study.read import read_experiment
    from darts_sg.study.report import heading, study_report

    named = str(arguments.run_dir) == "paper"
    protocol = load_protocol(PAPER_PROTOCOL) if named else read_protocol(arguments.run_dir)
    first = heading(protocol.title)
    output: Path | None = arguments.output
    written = output is not None and output.suffix == ".md"
    if output is not None:
        if not written and output.suffix not in {".svg", ".png", ".pdf"}:
            raise UsageError(f"--output {output}: expected a name that ends in .md, .svg, .png or .pdf")
        if written and output.exists() and not output.read_text(encoding="utf-8", errors="replace").startswith(first):
            raise UsageError(f"{output} exists and is no such report; choose another --output")
    found = read_experiment(arguments.results or Path("results"), protocol)
    picture: Path | None = None
    if output is not None and (not written or drawable(found)):
        kind = "svg" if written else output.suffix.removeprefix(".")
        (picture,) = save_figure(draw_experiment(found), output.with_suffix(""), formats=(kind,))
    if output is not None and written:
        write_atomically(output, study_report(found, picture.name if picture else None))
    shown = sys.stdout if written and not arguments.json else sys.stderr
    for path in (output if written else None, picture):
        if path is not None:
            print(path, file=shown)
    if arguments.json:
        print(json.dumps(report_dict(found), indent=1))
    elif not written:
        print(study_report(found), end="")
