"""fit.json: the choices of a fit and how far it has got. The folder is the only truth; any process may go on."""

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from darts_sg.config import known_options
from darts_sg.errors import UsageError, first_line, quoted
from darts_sg.files import read_text, why, write_atomically
from darts_sg.fitting.choices import Choice, DataFacts, Level, Plan, Timing
from darts_sg.fitting.options import FitOptions
from darts_sg.options import flag, read_options

FORMAT = "darts_sg fit 1"
FILE = "fit.json"
MOST_BYTES = 2**24
MOST = 2**53
NEEDED: Mapping[str, type] = {
    "options": dict, "data": dict, "level": list, "choices": list, "plan": dict, "timing": list, "search": dict,
    "training": dict, "done": dict,
}  # fmt: skip


class State:
    """The content of fit.json."""

    def __init__(self, folder: Path, content: dict[str, Any]) -> None:
        self.folder, self.content = folder, content

    @classmethod
    def read(cls, folder: Path) -> "State":
        """The state of a fit; UsageError if the folder has none, or a damaged one."""
        path = folder / FILE
        if not path.is_file():
            raise UsageError(f"{folder} is not the folder of a fit: it has no {FILE}")
        try:
            content = json.loads(read_text(path, MOST_BYTES))
        except OSError as error:
            raise UsageError(f"cannot read {path}: {why(error)}") from None
        except (ValueError, RecursionError):
            raise UsageError(f"{path} is damaged: it is not JSON") from None
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise UsageError(f"{path} is not the state of a fit, or one of another version of darts_sg")
        for name, kind in NEEDED.items():
            if not isinstance(content.get(name), kind):
                raise UsageError(f"{path} is damaged: {name} is missing, or has another type")
        found = cls(folder, content)
        try:
            found.check()
        except (KeyError, TypeError, ValueError) as error:
            raise UsageError(f"{path} is damaged: {first_line(error)[:200]}") from None
        return found

    def check(self) -> None:
        """KeyError, TypeError or ValueError if a value that the stages read is missing, or is none."""
        numbers = (*self.level[2:], *self.timing, self.level.image_size, *vars(self.facts).values())
        for value in (*numbers, self["compare_seconds"], *(Plan(**self["plan"]))):
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < MOST:
                raise ValueError(f"expected a number, found {quoted(value)}")
        if self.level.network not in ("cifar", "imagenet") or not all(isinstance(each, int) for each in self.level[2:]):
            raise ValueError(f"level is {quoted(self.content['level'])}")
        for choice in self["choices"]:
            if not all(isinstance(text, str) for text in Choice(*choice)):
                raise ValueError(f"expected texts, found {quoted(choice)}")
        data = self["data"]
        texts = (*data["notes"], data["name"], data["listing"], data["described"], self["machine"])
        if not all(isinstance(text, str) for text in texts):
            raise ValueError("data: expected texts")
        if not all(isinstance(facts, dict) for facts in self["done"].values()):
            raise ValueError("done: expected mappings")
        known_options("search", self["search"], "search")
        known_options("augment", self["training"], "training")

    @property
    def facts(self) -> DataFacts:
        """The numbers of the data."""
        return DataFacts(**self["data"]["facts"])

    @property
    def level(self) -> Level:
        """The size of the work."""
        return Level(*self["level"])

    @property
    def timing(self) -> Timing:
        """Seconds as they were last measured."""
        return Timing(*self["timing"])

    def options(self, given: Mapping[str, Any], started: bool) -> FitOptions:
        """The options to go on with: those of the fit, with the given ones that change no result.

        started: whether the whole command was given again, so that an option left out has its default.
        UsageError if an option that would change the result differs.
        """
        stored = FitOptions(**read_options(FitOptions, self.content["options"], str(self.folder / FILE)))
        asked = read_options(FitOptions, given, "fit()")
        for f in fields(FitOptions):
            if f.metadata["free"] or (f.name not in asked and not started):
                continue
            value, then = asked.get(f.name, f.default), getattr(stored, f.name)
            if value != then:
                raise UsageError(
                    f"{flag(f.name)} {value} would change the result of {self.folder}, which was started with {then}; "
                    "leave it out, or choose another --run-dir"
                )
        of_process = {"minutes": None, "output": None, "run_dir": self.folder}
        kept = {f.name: getattr(stored, f.name) for f in fields(FitOptions)}
        return FitOptions(**(kept | of_process | asked | {"run_dir": self.folder}))

    def __getitem__(self, name: str) -> Any:
        return self.content[name]

    def update(self, **values: Any) -> None:
        """Set entries and write the file."""
        self.content.update(values)
        text = json.dumps(self.content, indent=1, ensure_ascii=False, default=str) + "\n"
        write_atomically(self.folder / FILE, text)

    def finish(self, stage: str, **facts: Any) -> None:
        """Note that a stage is done."""
        self.update(done={**self.content["done"], stage: facts})

    def done(self, stage: str) -> dict[str, Any] | None:
        """What was noted of a stage that is done; None of any other."""
        found: dict[str, Any] | None = self.content["done"].get(stage)
        return found
