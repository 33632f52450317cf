"""The options of a fit, with help and validation."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from darts_sg.config import LARGEST_SIDE, SearchConfig, make_config, option
from darts_sg.data.folder import STEP
from darts_sg.engine.export import EXPORT_FORMATS, refuse_missing
from darts_sg.errors import UsageError
from darts_sg.networks.derived import NetworkShape
from darts_sg.networks.skeleton import MOST_CELLS, MOST_CHANNELS
from darts_sg.options import flag, read_options
from darts_sg.quantity import parse_quantity

RECIPE = "pc-darts"
SPACE = "darts+sandglass"
MINUTES = 30.0


@dataclass(frozen=True, kw_only=True)
class FitOptions:
    """What a fit is asked for. Whatever is left out is chosen by the data and by measured steps."""

    data: Path | None = option(None, "Fit", free=True)
    """Folder of your images: a folder for each class, in it or in its train/ and test/ (or val/)."""
    minutes: float | None = option(None, "Fit", free=True)
    """Time from the start of the process to the report. Default: 30, or no limit if both --search-epochs and --epochs
    are given. A continued fit without it has no limit."""
    max_params: str = option("", "Fit")
    """Most parameters of the network, such as 1M."""
    max_macs: str = option("", "Fit")
    """Most multiply-adds of the network for one image, such as 300M."""
    output: Path | None = option(None, "Fit", free=True)
    """File for the exported network: .onnx, or .pt2 for torch.export."""
    run_dir: Path | None = option(None, "Fit", free=True)
    """Folder for everything about this fit. Default: runs/fit-NAME, by the name of the data's folder. If it has a fit
    with the same options, that one is continued."""
    compare: bool = option(False, "Fit", free=True)
    """Train DARTS_V2 and MobileNetV2 of equal cost by the same schedule, too. Their time is added to --minutes."""

    image_size: int | None = option(None, "Choices")
    """Side in pixels that images are brought to."""
    network: NetworkShape | None = option(None, "Choices")
    """Stem: cifar for small images, imagenet, which reduces by 8, for larger ones."""
    channels: int | None = option(None, "Choices")
    """Channels C of the network's first cells."""
    cells: int | None = option(None, "Choices")
    """Cells of the network."""
    search_channels: int | None = option(None, "Choices")
    """Channels C of the supernet's first cells."""
    search_cells: int | None = option(None, "Choices")
    """Cells of the supernet."""
    batch_size: int | None = option(None, "Choices")
    """Images in a batch of the search and of the training."""
    search_epochs: int | None = option(None, "Choices")
    """Epochs of the search."""
    epochs: int | None = option(None, "Choices")
    """Epochs of the training."""
    alpha_learning_rate: float | None = option(None, "Choices")
    """Learning rate of the search's alphas."""
    learning_rate: float | None = option(None, "Choices")
    """Learning rate of the training in its first epochs."""
    space: str = option(SPACE, "Choices")
    """Candidate operations of the search (see darts-sg spaces)."""
    recipe: str = option(RECIPE, "Choices")
    """Recipe of the search; its schedule is scaled to the epochs."""
    seed: int = option(0, "Choices")
    """Seed of search and training."""
    split_seed: int = option(0, "Choices")
    """Seed of the test part, which is split off where there is none."""
    precision: Literal["float32", "bfloat16"] | None = option(None, "Choices")
    """Precision of the training steps."""
    device: str = option("auto", "Choices", free=True)
    """Device to run on: cpu, cuda, …; auto takes a GPU if there is one."""
    threads: int | None = option(None, "Choices", free=True)
    """CPU threads. Default: one per core."""

    def __post_init__(self) -> None:
        for name, least in (
            ("image_size", STEP), ("channels", 2), ("cells", 3), ("search_channels", 2), ("search_cells", 3),
            ("batch_size", 2), ("search_epochs", 1), ("epochs", 1), ("threads", 1), ("seed", 0), ("split_seed", 0),
        ):  # fmt: skip
            value = getattr(self, name)
            if value is not None and value < least:
                raise UsageError(f"{flag(name)} must be at least {least}, found {value}")
        for name, most in (
            ("image_size", LARGEST_SIDE), ("channels", MOST_CHANNELS), ("search_channels", MOST_CHANNELS),
            ("cells", MOST_CELLS), ("search_cells", MOST_CELLS),
        ):  # fmt: skip
            value = getattr(self, name)
            if value is not None and value > most:
                raise UsageError(f"{flag(name)} must be at most {most}, found {value}")
        for name in ("minutes", "alpha_learning_rate", "learning_rate"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UsageError(f"{flag(name)} must be above 0, found {value}")
        for name in ("max_params", "max_macs"):
            if getattr(self, name):
                parse_quantity(flag(name), getattr(self, name))

    @property
    def budget(self) -> float | None:
        """Seconds for a new fit; None for no limit."""
        if self.minutes is not None:
            return 60 * self.minutes
        return None if self.search_epochs and self.epochs else 60 * MINUTES

    def as_dict(self) -> dict[str, Any]:
        """The options as plain values, in order."""
        plain = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: str(value) if isinstance(value, Path) else value for name, value in plain.items()}

    def search_config(self, **more: Any) -> SearchConfig:
        """The search of the recipe and the space; UsageError for one that a fit cannot plan or bound."""
        config = make_config("search", self.recipe, space=self.space, dataset="folder", **more)
        assert isinstance(config, SearchConfig)
        other = f"choose another --recipe, such as {RECIPE}"
        if config.baseline() is not None:
            raise UsageError(f"--recipe {self.recipe} is a search without alphas, and fit searches by them; {other}")
        method = config.method()
        if len(method.stages) > 1:
            raise UsageError(
                f"--recipe {self.recipe} has stages of different cost, and fit plans a single one; {other}"
            )
        if config.selection.partition(":")[0] not in ("argmax", "skip-limit") and (self.max_params or self.max_macs):
            raise UsageError(
                f"--recipe {self.recipe} chooses its cells by --selection {config.selection}, which keeps no bounds; "
                f"{other}, or leave the bounds out"
            )
        return config


def fit_options(given: Mapping[str, Any], source: str = "fit()") -> FitOptions:
    """The options of a fit, typed and checked as far as that needs no data; UsageError for what is wrong with them."""
    options = FitOptions(**read_options(FitOptions, given, source))
    options.search_config()
    if options.output is not None:
        refuse_missing(export_format(options.output))
    return options


def export_format(output: Path) -> str:
    """The export format that a file's name asks for; UsageError if it asks for none."""
    for name in EXPORT_FORMATS:
        if output.suffix == EXPORT_FORMATS[name].suffix:
            return name
    endings = " or ".join(f"{EXPORT_FORMATS[name].suffix} ({name})" for name in EXPORT_FORMATS)
    raise UsageError(f"--output {output}: expected a name that ends in {endings}")
