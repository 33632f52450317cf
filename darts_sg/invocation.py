"""Command lines to print: each runs as it stands, in the current directory, the way the user started this process."""

import shlex
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

CONSOLE_COMMAND = "darts-sg"
SCRIPTS = ("search.py", "augment.py")
"""The scripts of a checkout; each runs the job of its name."""
DATA_DEFAULTS: Mapping[str, Any] = {
    "task": "classification",
    "dataset": "cifar10",
    "data": "data",
    "image_size": None,
    "split_seed": 0,
    "network": "cifar",
    "plugin": "",
}
"""Options, with their defaults, that a retraining must share with the search: the data, what they are seen as, and the
plug-ins that may be needed to read them."""


def program(command: str, launcher: str = "") -> str:
    """The beginning of a command line that runs `command`: that of the script, the module or the console command.

    launcher: starts the processes instead of Python, such as `torchrun --nproc-per-node 2`.
    """
    started = Path(sys.argv[0])
    script = started.with_name(f"{command}.py")
    if started.name in SCRIPTS and script.name in SCRIPTS and script.is_file():
        return f"{launcher or python()} {argument(_shown(script))}"
    if started.name == CONSOLE_COMMAND and not launcher:
        return f"{_on_path(started) or argument(_shown(started))} {command}"
    return f"{launcher or python()} -m darts_sg {command}"


def again(command: str, launcher: str = "") -> str:
    """The command line that started this process to run `command`, to be typed once more or with options added."""
    words = sys.argv[1:]
    if Path(sys.argv[0]).name not in SCRIPTS and command in words:
        words.remove(command)  # `program` names it
    return " ".join([program(command, launcher), *map(argument, words)])


def python() -> str:
    """The interpreter as one types it: its name if the shell finds it by that, otherwise its path."""
    here = Path(sys.executable)
    for name in ("python", "python3", here.name):
        found = shutil.which(name)
        # A virtual environment is told by the folder: what its interpreter links to is the same for all of them.
        if found and (there := Path(found)).parent == here.parent and there.resolve() == here.resolve():
            return name
    return argument(_shown(here))


def line(command: str, *, launcher: str = "", **options: Any) -> str:
    """A command line of `command` with these options, quoted for a shell; those that are None are left out."""
    words = [program(command, launcher)]
    for name, value in options.items():
        if value is not None:
            words += [f"--{name.replace('_', '-')}", argument(value)]
    return " ".join(words)


def retrain_command(genotype: Path, options: Mapping[str, Any]) -> str:
    """The command that retrains a genotype on the data of the run with these options."""
    return line("augment", genotype=genotype, **_unlike_default(options, *DATA_DEFAULTS))


def evaluate_command(weights: Path, options: Mapping[str, Any]) -> str:
    """The command that tests weights again, on the data of the run with these options; the rest is in the file."""
    return line("augment", evaluate=weights, **_unlike_default(options, "data", "plugin"))


def _unlike_default(options: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """The options with these names that differ from DATA_DEFAULTS."""
    found = {name: options.get(name, DATA_DEFAULTS[name]) for name in names}
    return {name: value for name, value in found.items() if value not in (None, DATA_DEFAULTS[name])}


def argument(value: Any) -> str:
    """A value quoted for a shell; a path that begins with a dash is written so that it is not taken for an option."""
    text = str(value)
    return shlex.quote(f"./{text}" if text.startswith("-") and isinstance(value, Path) else text)


def _on_path(started: Path) -> str:
    found = shutil.which(started.name)
    return started.name if found and Path(found).absolute() == started.absolute() else ""


def _shown(path: Path) -> Path:
    """A path relative to the current directory where it lies in it, for a command that is short and can be shared."""
    whole, here = path.absolute(), Path.cwd()
    return whole.relative_to(here) if whole.is_relative_to(here) else path
