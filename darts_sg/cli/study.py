"""darts-sg study: a whole comparison from one file, spaces × methods × seeds."""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from darts_sg import process
from darts_sg.cli.parser import Parser, argument_type, positive
from darts_sg.cli.terminal import console, refuse_existing
from darts_sg.errors import UsageError
from darts_sg.invocation import argument, program

EXECUTORS = ("local", "ray", "slurm")
WATCH_PORT = 8765


def add_parser(commands: Any) -> None:
    """Add `study` to the commands of the package."""
    study = commands.add_parser(
        "study", description="Run a whole comparison from one file: spaces × methods × seeds, on one machine or many."
    )
    actions = study.add_subparsers(dest="action", required=True, metavar="ACTION", parser_class=Parser)

    new = actions.add_parser("new", help="write a commented file to start from", description="Write a commented file.")
    new.add_argument("name", metavar="NAME", help="the file is NAME.yaml")

    plan = actions.add_parser(
        "plan",
        help="show jobs, order and hours; check the whole study",
        description="Show the jobs of a study with their order and hours, measured by a dry run of each kind of job.",
    )
    _add_file(plan)
    plan.add_argument("--no-measure", action="store_true", help="check and list only: no dry runs, no hours")
    plan.add_argument("--jobs", type=positive, metavar="N", help="jobs at a time (default: one per core or GPU)")
    plan.add_argument("--json", action="store_true", help="print JSON")

    run = actions.add_parser(
        "run",
        help="run a study, or continue it",
        description="Run a study in a folder, new or continued. It may be killed at any moment and run again.",
    )
    _add_file(run)
    run.add_argument(
        "--dir", type=Path, metavar="STUDY", help="folder of the study (default: studies/ and the file's name)"
    )
    run.add_argument("--executor", choices=EXECUTORS, default="local", help="where jobs run (default: local)")
    run.add_argument("--jobs", type=positive, metavar="N", help="most jobs at a time (default: one per core or GPU)")
    run.add_argument(
        "--time-budget",
        type=argument_type(float),
        metavar="MINUTES",
        help="minutes after which all jobs save and the command ends; the same command continues",
    )
    run.add_argument("--address", help="ray: the cluster to join (default: one on this machine)")
    run.add_argument("--partition", help="slurm: the partition")
    run.add_argument(
        "--slurm", action="append", default=[], metavar="KEY=VALUE", help="slurm: any setting of sbatch; repeatable"
    )

    for name, text in (
        ("status", "show the jobs with state, attempts and costs"),
        ("stop", "have all jobs saved, wherever they run, and the coordinators end"),
        ("retry", "let failed jobs start again at the next run"),
        ("report", "write report.html, report.md, tables, figures and results.json from what is finished"),
        ("watch", "serve the report as a page that follows the study, to this machine only"),
    ):
        action = actions.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        action.add_argument("folder", metavar="DIR", type=Path, help="folder of the study")
        if name == "status":
            action.add_argument("--json", action="store_true", help="print JSON")
        if name == "watch":
            action.add_argument(
                "--port", type=argument_type(int), help=f"port (default: {WATCH_PORT}; 0: any free one)"
            )
        if name == "retry":
            action.add_argument("jobs", metavar="ID", nargs="*", help="jobs to start again (default: all that failed)")


def _add_file(parser: Parser) -> None:
    parser.add_argument("file", metavar="FILE", type=Path, help="the study's YAML file; see `study new`")


def run(arguments: argparse.Namespace) -> None:
    """Carry out an action on a study."""
    actions: dict[str, Callable[[argparse.Namespace], None]] = {
        "new": new_study,
        "plan": show_plan,
        "run": run_study,
        "status": show_status,
        "stop": stop_study,
        "retry": retry_jobs,
        "report": report_study,
        "watch": watch_study,
    }
    actions[arguments.action](arguments)


def new_study(arguments: argparse.Namespace) -> None:
    """Write a commented file."""
    from darts_sg.files import write_atomically
    from darts_sg.study.file import TEMPLATE

    path = Path(arguments.name)
    path = path if path.suffix in (".yaml", ".yml") else path.with_name(f"{path.name}.yaml")
    refuse_existing(path)
    write_atomically(path, TEMPLATE.read_text(encoding="utf-8").replace("TITLE", path.stem))
    print(f"{path}; next: {program('study')} plan {argument(path)}")


def run_study(arguments: argparse.Namespace) -> None:
    """Run a study, or continue it."""
    from darts_sg.study.file import read_study
    from darts_sg.study.run import run_study as start

    if arguments.executor != "slurm" and (arguments.slurm or arguments.partition):
        raise UsageError("--slurm and --partition are for --executor slurm; leave them out")
    if arguments.executor != "ray" and arguments.address:
        raise UsageError("--address is for --executor ray; leave it out")
    if arguments.time_budget is not None and not arguments.time_budget > 0:
        raise UsageError(f"--time-budget must be above 0, found {arguments.time_budget}")
    slurm: dict[str, str | int] = {} if arguments.partition is None else {"partition": arguments.partition}
    for pair in arguments.slurm:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise UsageError(f"--slurm {pair}: expected KEY=VALUE, such as account=me")
        slurm[key] = int(value) if value.isdecimal() else value
    start(
        read_study(arguments.file),
        arguments.dir or Path("studies") / arguments.file.stem,
        executor=arguments.executor,
        jobs=arguments.jobs,
        time_budget=arguments.time_budget,
        address=arguments.address,
        slurm=slurm,
        started=process.started(),
        say=lambda line: print(line, flush=True),
    )


def show_plan(arguments: argparse.Namespace) -> None:
    """Check a study and list its jobs, with what they take."""
    from darts_sg.analysis.report import duration
    from darts_sg.study.check import check_study
    from darts_sg.study.executors import Settings
    from darts_sg.study.executors.local import slots_of
    from darts_sg.study.file import read_study
    from darts_sg.study.measure import makespan, measured
    from darts_sg.study.plan import jobs_of
    from darts_sg.tasks.columns import markdown_table

    study = read_study(arguments.file)
    configs, jobs = check_study(study), jobs_of(study)
    device = next(iter(configs.values())).device
    options = study.executor
    settings = Settings(jobs=arguments.jobs, threads=options.threads, processes=options.most_processes, device=device)
    threads, slots = slots_of(settings)
    shapes = {}
    if not arguments.no_measure:
        say = lambda line: print(line, file=sys.stderr, flush=True)  # noqa: E731 - a one-line printer
        shapes = measured(study, jobs, configs, threads, say)
    seconds = {job_id: shape.seconds for job_id, shape in shapes.items()}
    if arguments.json:
        rows = [
            {
                "id": job.id,
                "kind": job.kind,
                "depends_on": list(job.depends_on),
                "options": {key: str(v) if isinstance(v, Path) else v for key, v in job.options.items()},
                **({"measured": asdict(shapes[job.id])} if job.id in shapes else {}),
            }
            for job in jobs
        ]
        print(json.dumps({"title": study.title, "jobs": rows}, indent=1, ensure_ascii=False))
        return
    table = []
    for number, job in enumerate(jobs, 1):
        row = [str(number), job.id, ", ".join(job.depends_on)]
        if shapes:
            shape = shapes[job.id]
            row += [duration(shape.seconds), f"{shape.images_per_second:.0f}", f"{shape.memory / 2**20:.0f}"]
        table.append(row)
    header = ["", "job", "after", *(["time", "images/s", "peak memory, MiB"] if shapes else [])]
    print(markdown_table(header, table))
    kinds = Counter(job.kind for job in jobs)
    summary = f"\n{len(jobs)} jobs: {kinds['search']} searches, {kinds['retrain']} retrainings"
    if shapes:
        whole, wall = sum(seconds.values()), makespan(jobs, seconds, max(1, len(slots) // options.most_processes))
        memory = max(shape.memory for shape in shapes.values())
        summary += (
            f"\n{whole / 3600:.2f} hours of jobs, about {wall / 3600:.2f} hours with {len(slots)} at a time "
            f"({slots[0].title}, {threads} thread{'' if threads == 1 else 's'} each), evaluation not counted; "
            f"at most {memory / 2**20:.0f} MiB a job\nmeasured on {next(iter(shapes.values())).device}"
        )
    print(summary)


def show_status(arguments: argparse.Namespace) -> None:
    """List the jobs with their states."""
    from rich.table import Table

    from darts_sg.study.folder import StudyFolder, now
    from darts_sg.study.plan import jobs_of

    folder = StudyFolder.open(arguments.folder)
    states = folder.states()
    if arguments.json:
        print(json.dumps([asdict(state) for state in states.values()], indent=1, ensure_ascii=False))
        return
    ordered = [states[job.id] for job in jobs_of(folder.study()) if job.id in states]
    table = Table(
        "job", "state", "seconds", "images/s", "attempts", "owner, device or failure", box=None, pad_edge=False
    )
    for state in ordered:
        speed = "" if state.images_per_second is None else f"{state.images_per_second:.0f}"
        text = state.device
        if state.state == "running":
            age = "" if state.heartbeat is None else f", heartbeat {now() - state.heartbeat:.0f} s ago"
            text = f"{state.owner}{age}"
        elif state.failure and state.state != "done":
            text = state.failure
        table.add_row(state.id, state.state, f"{state.seconds:.0f}", speed, str(state.attempts), text)
    console().print(table)
    counts = Counter(state.state for state in ordered)
    seconds = sum(state.seconds for state in ordered)
    print(f"{', '.join(f'{counts[name]} {name}' for name in counts)}; {seconds / 3600:.2f} hours so far")
    if old := states.keys() - {state.id for state in ordered}:
        print(f"{len(old)} more jobs are in the folder that the file does not have any more")


def stop_study(arguments: argparse.Namespace) -> None:
    """Have all jobs saved."""
    from darts_sg.study.coordinator import stop
    from darts_sg.study.folder import StudyFolder

    stop(StudyFolder.open(arguments.folder))


def retry_jobs(arguments: argparse.Namespace) -> None:
    """Let failed jobs start again."""
    from darts_sg.study.coordinator import continue_command, reset
    from darts_sg.study.folder import StudyFolder

    folder = StudyFolder.open(arguments.folder)
    found = reset(folder, arguments.jobs)
    if not found:
        print("no job has failed")
        return
    number = f"{len(found)} job{'s' * (len(found) > 1)}"
    print(f"{number} will start again: {', '.join(found)}; continue with {continue_command(folder)}")


def report_study(arguments: argparse.Namespace) -> None:
    """Write the report of a study from what is finished."""
    from darts_sg.study.publish import write_study_report

    print(write_study_report(arguments.folder))


def watch_study(arguments: argparse.Namespace) -> None:
    """Serve the report of a study until Ctrl-C."""
    from darts_sg.study.watch import watch

    port = WATCH_PORT if arguments.port is None else arguments.port
    if not 0 <= port <= 65535:
        raise UsageError(f"--port must be from 0 to 65535, found {port}")
    watch(arguments.folder, port, lambda line: print(line, flush=True))
