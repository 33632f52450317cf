"""Plug-ins: operations, spaces, data sets, relaxations, regularizers and loggers from outside the package.

A plug-in is Python code that adds entries to the registries when it is imported. There are two ways to load one:

- a file, by `--plugin FILE.py` (or `plugin:` in a YAML file of options, or the field `plugin` of a config);
- an installed distribution with an entry point in the group `darts_sg.plugins`, which names a module to import or a
  function to call. It is loaded when a registry lists its names or does not know one. One that fails to load is skipped
  with a warning in one line, since it may have nothing to do with the command.

**Loading a plug-in runs its code with your rights.** Only the options above and installed distributions load one:
genotype files, weights files, checkpoints, pictures and reports never do. A resumed run loads the files that its
config.yaml records, so resume only run folders that you trust.

A run records the name and SHA-256 hash of its plug-ins in config.yaml. To resume it wants the same ones. The hash
covers the file itself, not the modules that it imports.
"""

import hashlib
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import logging
import os
import re
import sys
import threading
import traceback
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from darts_sg.errors import UsageError, first_line
from darts_sg.registry import HOOKS, PLUGGED, NameTaken, Registration, registering

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

logger = logging.getLogger(__name__)

GROUP = "darts_sg.plugins"
FILES_VARIABLE = "DARTS_SG_PLUGIN_FILES"
"""Environment variable by which spawned data workers find the plug-in files of their parent."""
HASH_DIGITS = 12  # of a hash in messages and module names


@dataclass(frozen=True)
class Plugin:
    """A plug-in that was loaded."""

    name: str
    """Name of the file, or of the entry point."""
    path: Path
    """The file whose hash is taken."""
    sha256: str
    registration: Registration
    distribution: str = ""
    """Name and version of the distribution that an entry point belongs to; empty for a file."""

    @property
    def origin(self) -> str:
        """Where entries come from, as lists and messages say it."""
        return f"{self.name} of {self.distribution}" if self.distribution else self.name

    def as_dict(self) -> dict[str, str]:
        """The record in a run's config.yaml."""
        source = {"distribution": self.distribution} if self.distribution else {"path": str(self.path)}
        return {"name": self.name, **source, "sha256": self.sha256}


class _State:
    """The plug-ins of this process."""

    def __init__(self) -> None:
        self.loaded: list[Plugin] = []
        self.searched = False
        """Whether the entry points were looked through."""
        self.lock = threading.RLock()


STATE = _State()


def load(file: str | Path) -> Plugin:
    """Load a plug-in file, once in a process; a copy with the same content counts as the same plug-in.

    Raises UsageError, one line with file, line and exception, if there is no such file, its code fails, it registers a
    name that is taken, or registers nothing. Nothing that it registered is kept then.
    """
    path = Path(file).expanduser().absolute()
    with STATE.lock:
        content = _read(path, file)
        digest = hashlib.sha256(content).hexdigest()
        for known in STATE.loaded:
            if known.sha256 == digest and not known.distribution:
                return known
            if known.path == path:
                raise UsageError(
                    f"plug-in {file} has changed since this process loaded it; start a new process (in a notebook, "
                    "restart the kernel)"
                )
        name = PLUGGED + "".join(c if c.isalnum() else "_" for c in path.stem) + f"_{digest[:HASH_DIGITS]}"
        with registering(path.name) as registration:
            _execute(name, path, content, file)
            try:
                _check(registration, path, file)
            except UsageError:
                del sys.modules[name]
                raise
        plugin = Plugin(path.name, path, digest, registration)
        STATE.loaded.append(plugin)
        os.environ[FILES_VARIABLE] = os.pathsep.join(str(p.path) for p in STATE.loaded if not p.distribution)
        return plugin


def _read(path: Path, file: str | Path) -> bytes:
    """The content of a plug-in file; UsageError if it is none."""
    if path.is_dir():
        raise UsageError(f"plug-in {file} is a folder; give the .py file in it")
    if not path.is_file():
        raise UsageError(f"plug-in {file} does not exist")
    if path.suffix != ".py":
        raise UsageError(f"plug-in {file} is not a Python file: expected a name that ends in .py")
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"plug-in {file} cannot be read: {error.strerror}") from None


def _execute(name: str, path: Path, content: bytes, file: str | Path) -> ModuleType:
    """Run the code whose hash was taken as a module called `name`; UsageError says where it fails."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look their module up
    try:
        exec(compile(content, str(path), "exec"), module.__dict__)
    except KeyboardInterrupt:
        del sys.modules[name]
        raise
    except BaseException as error:  # a plug-in may also call sys.exit
        del sys.modules[name]
        raise UsageError(f"plug-in {file}{_place(error, path)}: {_said(error)}") from error
    return module


def _check(registration: Registration, path: Path, file: str | Path) -> None:
    """UsageError if nothing was registered, or an entry breaks the contract of its kind.

    After the whole file ran: a factory may use classes that are defined below it.
    """
    if not registration.entries:
        raise UsageError(f"plug-in {file} registers nothing: no operation, space, data set or the like")
    for registry, name in registration.entries:
        if registry.check is not None:
            try:
                registry.check(registry[name])
            except Exception as error:
                place = _place(error, path)
                raise UsageError(f"plug-in {file}{place}: {registry.kind} {name!r}: {_said(error)}") from error
    for registry, name in registration.entries:
        registry.used.discard(name)  # looked up by nobody but us


def _place(error: BaseException, path: Path) -> str:
    """`, line 7`: the innermost line of the plug-in that led to an error; empty if there is none."""
    if isinstance(error, SyntaxError) and error.filename == str(path):
        return f", line {error.lineno}" if error.lineno else ""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    return f", line {lines[-1]}" if lines else ""


def _said(error: BaseException) -> str:
    """An exception in one line; our own messages without the name of their class."""
    if isinstance(error, NameTaken | UsageError):
        return first_line(error)
    text = error.msg if isinstance(error, SyntaxError) else first_line(error)
    kind = type(error).__name__
    return kind if text == kind else f"{kind}: {text}"


def load_installed() -> None:
    """Load the plug-ins of installed distributions, once in a process; one that fails is skipped with a warning."""
    with STATE.lock:
        if STATE.searched:
            return
        STATE.searched = True  # before the plug-ins look names up themselves
        from importlib.metadata import entry_points  # slow to import

        for entry in sorted(entry_points(group=GROUP), key=lambda e: (e.name, e.value)):
            distribution = "" if entry.dist is None else f"{entry.dist.name} {entry.dist.version}"
            try:
                STATE.loaded.append(_load_entry(entry, distribution))
            except (Exception, SystemExit) as error:
                logger.warning(
                    "warning: plug-in %s of %s is skipped%s: %s",
                    entry.name,
                    distribution,
                    _anywhere(error),
                    _said(error),
                )


def _load_entry(entry: "EntryPoint", distribution: str) -> Plugin:
    """Import the module that an entry point names; call what it names in it, if anything."""
    with registering(f"{entry.name} of {distribution}") as registration:
        found = entry.load()
        if callable(found):
            found()
    path = Path(getattr(sys.modules[entry.module], "__file__", None) or "")
    digest = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
    return Plugin(entry.name, path, digest, registration, distribution)


def _anywhere(error: BaseException) -> str:
    """` (FILE, line 7)`: where an error was raised."""
    if isinstance(error, SyntaxError) and error.filename:
        return f" ({error.filename}, line {error.lineno})"
    frames = traceback.extract_tb(error.__traceback__)
    return f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""


def loaded() -> list[Plugin]:
    """The plug-ins of this process, in the order in which they were loaded."""
    return list(STATE.loaded)


def recorded() -> list[dict[str, str]]:
    """What a run records of its plug-ins: all files, and installed ones of which the run looked an entry up."""
    return [plugin.as_dict() for plugin in STATE.loaded if not plugin.distribution or plugin.registration.used]


def credits() -> list[dict[str, str]]:
    """Name and hash of each plug-in of which an entry was looked up, for the provenance of a genotype."""
    used = [plugin for plugin in STATE.loaded if plugin.registration.used]
    return [{"name": plugin.origin, "sha256": plugin.sha256} for plugin in used]


def blamed(error: BaseException) -> str:
    """One line with file, line and exception if code of a plug-in raised `error`; empty if it is not to blame.

    It is if its innermost frame is called by the innermost frame of this package: what lies deeper is a library's.
    """
    frames = traceback.extract_tb(error.__traceback__)
    package = str(Path(__file__).parent) + os.sep
    for frame in reversed(frames):
        for plugin in STATE.loaded:
            if frame.filename == str(plugin.path):
                return f"plug-in {plugin.path}, line {frame.lineno}: {_said(error)}"
        if frame.filename.startswith(package):
            break
    return ""


def restore(records: Iterable[Mapping[str, Any]], given: Sequence[str | Path] = ()) -> tuple[str, ...]:
    """Load the plug-ins that a resumed run recorded, from `given` files or where they were; returns the files.

    records: what `recorded` gave when the run started. Raises UsageError, one line, if one of them is missing or is
    another version.
    """
    offered = {hashlib.sha256(_read(Path(f).expanduser().absolute(), f)).hexdigest(): str(f) for f in given}
    offered |= {plugin.sha256: str(plugin.path) for plugin in STATE.loaded if not plugin.distribution}
    files = []
    for record in records:
        name, then = str(record.get("name")), str(record.get("sha256"))
        if "distribution" in record:
            _require_installed(name, str(record["distribution"]), then)
        elif then in offered:
            files.append(offered[then])
        else:
            files.append(_recorded_file(name, Path(str(record.get("path"))), then, given))
    files += [file for file in map(str, given) if file not in files]
    for file in files:
        load(file)
    return tuple(files)


def _recorded_file(name: str, path: Path, then: str, given: Sequence[str | Path]) -> str:
    """The recorded path, if it holds the recorded version; UsageError if not."""
    way_out = "give the old version with --plugin FILE.py, or start a new run"
    for file in given:
        if Path(file).name == name:
            now = hashlib.sha256(Path(file).expanduser().read_bytes()).hexdigest()
            raise UsageError(
                f"--plugin {file} is another version of {name} than the run was started with (sha256 "
                f"{now[:HASH_DIGITS]}, then {then[:HASH_DIGITS]}); {way_out}"
            )
    if not path.is_file():
        raise UsageError(
            f"the run was started with the plug-in {path}, which is not there; say where it is with --plugin FILE.py"
        )
    now = hashlib.sha256(_read(path, path)).hexdigest()
    if now != then:
        raise UsageError(
            f"plug-in {path} has changed since the run was started (sha256 {now[:HASH_DIGITS]}, then "
            f"{then[:HASH_DIGITS]}); {way_out}"
        )
    return str(path)


def _require_installed(name: str, distribution: str, then: str) -> None:
    """UsageError unless this version of an installed plug-in is loaded."""
    load_installed()
    project = distribution.rpartition(" ")[0]
    for plugin in STATE.loaded:
        if plugin.name == name and plugin.distribution.rpartition(" ")[0] == project:
            if plugin.sha256 != then:
                raise UsageError(
                    f"the run was started with the plug-in {name} of {distribution}, and {plugin.distribution} holds "
                    f"another version of it; install the old one, or start a new run"
                )
            return
    raise UsageError(
        f"the run was started with the plug-in {name} of {distribution}, which is not installed or failed to load"
    )


def files_of(text: str) -> list[str]:
    """The files of the option `plugin`, in which they are joined with +: `a.py+b.py`."""
    return [file.strip() for file in re.split(r"(?<=\.py)\+", text) if file.strip()]


def load_all(text: str) -> None:
    """Load the files of the option `plugin`."""
    for file in files_of(text):
        load(file)


def for_job(given: str, *, base: str = "", resume: Path | None = None) -> str:
    """Load the plug-ins of a job before its options are read; returns the option `plugin` with absolute paths.

    given: the option as the user gave it. base: as a YAML file has it. resume: the run folder to continue, whose own
    plug-ins are loaded by the paths that it records. Raises UsageError as `load` and `restore` do.
    """
    files = [str(Path(file).expanduser().absolute()) for file in files_of(given)]
    if resume is not None:
        return "+".join(restore(_records(resume), files))
    files = list(dict.fromkeys([*(str(Path(file).expanduser().absolute()) for file in files_of(base)), *files]))
    for file in files:
        load(file)
    return "+".join(files)


def _records(run_dir: Path) -> list[dict[str, Any]]:
    """The plug-ins in a run's config.yaml; none if there is no such file, which others complain about."""
    from darts_sg.yaml_files import read_yaml  # PyYAML is slow to import

    try:
        found = read_yaml(run_dir / "config.yaml")["environment"].get("plugins") or []
    except (UsageError, KeyError, TypeError, AttributeError):
        return []
    return [record for record in found if isinstance(record, dict)] if isinstance(found, list) else []


def joined(argv: Sequence[str]) -> list[str]:
    """A command line in which all `--plugin FILE` are one option, `--plugin=a.py+b.py`, at the start."""
    files, rest = taken(argv)
    return [f"--plugin={'+'.join(files)}", *rest] if files else rest


def taken(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """(the files of all `--plugin FILE` and `--plugin=FILE`, the other words); UsageError if a file is missing."""
    files, rest, words = [], [], iter(argv)
    for word in words:
        if word == "--":
            rest += [word, *words]
        elif word == "--plugin":
            file = next(words, "")
            if not file or file.startswith("--"):
                raise UsageError("--plugin needs a file, such as --plugin my_operation.py")
            files.append(file)
        elif word.startswith("--plugin="):
            files.append(word.partition("=")[2])
        else:
            rest.append(word)
    return files, rest


HELP = (
    "Python file that adds operations, spaces, data sets, relaxations, regularizers or loggers; may be given several "
    "times. Its code is executed with your rights: load only files that you trust."
)
"""Help of the option --plugin."""
SHORT_HELP = "Python file to load first; its code runs with your rights: load only files that you trust"
"""The same for commands that only look at things."""


class _WorkerFinder(importlib.abc.MetaPathFinder):
    """Lets a spawned data worker unpickle classes of its parent's plug-in files.

    The worker imports `darts_sg.plugged_NAME_HASH`, which is no file of the package: it is the plug-in with that hash
    among the files that the parent loaded.
    """

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if not fullname.startswith(PLUGGED):
            return None
        for file in filter(None, os.environ.get(FILES_VARIABLE, "").split(os.pathsep)):
            plugin = Path(file)
            if plugin.is_file() and fullname.endswith(hashlib.sha256(plugin.read_bytes()).hexdigest()[:HASH_DIGITS]):
                return importlib.util.spec_from_loader(fullname, _WorkerLoader(plugin))
        return None


class _WorkerLoader(importlib.abc.Loader):
    """Loads a plug-in file under the name that is being imported."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        load(self.path)
        return sys.modules[spec.name]

    def exec_module(self, module: ModuleType) -> None:
        """Nothing: `load` ran the code."""


sys.meta_path.append(_WorkerFinder())
HOOKS.discover = load_installed
