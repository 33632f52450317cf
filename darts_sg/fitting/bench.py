"""Short dry runs of the real steps: seconds of search, training and test, and memory, on images of random pixels."""

import io
import time
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from statistics import median
from typing import Any, TypeVar

import numpy as np
import torch

from darts_sg.config import AugmentConfig, make_config
from darts_sg.data import Dataset, DataSpec, ImageSet
from darts_sg.data.memory import available_memory
from darts_sg.derive import random_cell
from darts_sg.engine import environment
from darts_sg.engine.augment import AugmentJob
from darts_sg.engine.loop import Job
from darts_sg.engine.memory import SURELY_FITS, bytes_per_pixel, is_out_of_memory
from darts_sg.engine.search import SearchJob
from darts_sg.engine.setup import Setting, timed_step
from darts_sg.errors import RunError
from darts_sg.fitting.choices import DataFacts, Level, Timing, batch_in_memory, batch_size
from darts_sg.fitting.options import FitOptions
from darts_sg.genotype import Genotype
from darts_sg.networks.mobile import Model
from darts_sg.spaces import Space

MOST_STEPS, LONGEST = 4, 0.5
"""Steps that are timed, and seconds after which no further one is."""
Made = TypeVar("Made", bound=Job)


class Bench:
    """Measures steps of a fit on the device. Leaves no files."""

    def __init__(self, options: FitOptions, facts: DataFacts, space: Space, loading: Callable[[int], float]) -> None:
        """loading: seconds in which all images are read and brought to a size."""
        self.options, self.facts, self.space, self.loading = options, facts, space, loading
        self.device = environment.choose_device(options.device)
        environment.prepare_device(self.device, options.threads)
        self.nodes = options.search_config().nodes
        self.cells = self._cells()

    def _cells(self) -> Genotype:
        """A genotype to time trainings with before there is a searched one: drawn from the space."""
        generator = np.random.default_rng(0)
        allowed = self.space.allowed or (None, None)
        normal, reduce = (random_cell(self.nodes, self.space.operations, generator, each) for each in allowed)
        return Genotype("drawn", self.space.name, self.space.operations, normal, reduce)

    @property
    def searched(self) -> int:
        """Images for the weights of a search: all for one with a single level, else half of them."""
        single = self.options.search_config().method().is_single_level
        return self.facts.images if single else max(1, self.facts.images // 2)

    def batches(self) -> tuple[int, int]:
        """Batch sizes of search and training, before memory is looked at."""
        asked = self.options.batch_size
        return (asked, asked) if asked else (batch_size(self.searched), batch_size(self.facts.images))

    def level(self, level: Level, precision: str) -> Timing | None:
        """The timing of a level, with batches that fit into memory; None if not even two images do."""
        search_batch, train_batch = self.batches()
        search = self._fitting(lambda batch: self._search(level, batch, precision), search_batch, level)
        if search is None:
            return None
        train = self._fitting(lambda batch: self._train(level, self.cells, batch, precision), train_batch, level)
        if train is None:
            return None
        loading = self.loading(level.image_size)
        return Timing(
            search[1]["step"], search[0], train[1]["step"], train[0], train[1]["test"],
            search[1]["start"] + loading, train[1]["start"] + loading, search[1]["epoch"], train[1]["epoch"],
        )  # fmt: skip

    def training(self, level: Level, trained: Genotype | Model, timing: Timing, precision: str) -> Timing:
        """`timing` with the training of another network measured anew, with the same batch."""
        found = self._train(level, trained, timing.train_batch, precision)
        return timing._replace(
            train_step=found["step"], test_image=found["test"], train_epoch=found["epoch"],
            train_start=found["start"] + self.loading(level.image_size),
        )  # fmt: skip

    def _fitting(
        self, measure: Callable[[int], dict[str, float]], batch: int, level: Level
    ) -> tuple[int, dict[str, float]] | None:
        """The measured figures with the largest batch up to `batch` that fits into memory, halved until it does."""
        while batch > 1:
            try:
                return batch, measure(batch)
            except _Smaller as told:
                batch = min(told.batch, batch // 2)
            except (MemoryError, RuntimeError) as error:
                if isinstance(error, RunError) or not is_out_of_memory(error):
                    raise
                batch //= 2
            environment.return_freed_memory()
        return None

    def _search(self, level: Level, batch: int, precision: str) -> dict[str, float]:
        config = self.options.search_config(
            network=level.network, channels=level.search_channels, cells=level.search_cells,
            batch_size=batch, image_size=level.image_size, precision=precision, device=str(self.device),
            alpha_frozen_epochs=0,
        )  # fmt: skip
        setting = self._setting(level.image_size, batch)
        job, start = _quietly(lambda: SearchJob(config, setting))
        return self._steps(job, level, batch, start)

    def _train(self, level: Level, trained: Genotype | Model, batch: int, precision: str) -> dict[str, float]:
        config = training_config(
            level, trained, {"batch_size": batch, "precision": precision, "device": str(self.device)}
        )
        setting = self._setting(level.image_size, batch)
        job, start = _quietly(lambda: AugmentJob(config, trained, setting))
        found = self._steps(job, level, batch, start)
        begun = time.perf_counter()
        job.measure(setting.data.test)
        return found | {"test": (time.perf_counter() - begun) / len(setting.data.test)}

    def _steps(self, job: Job, level: Level, batch: int, start: float) -> dict[str, float]:
        """Seconds of a step, of the start and between epochs. Raises _Smaller if the batch needs too much memory."""
        pixels = level.image_size**2
        if self.device.type == "cpu" and batch * pixels > SURELY_FITS:
            needed = bytes_per_pixel(job, recompute=False)
            if (fits := batch_in_memory(batch, pixels, needed, available_memory())) < batch:
                raise _Smaller(fits)
        seconds = [timed_step(job, 0)[1]]
        while len(seconds) < MOST_STEPS and sum(seconds) < LONGEST:
            begun = time.perf_counter()
            for value in job.step(0, 0).means.values():
                value.item()  # waits for the device
            seconds.append(time.perf_counter() - begun)
        begun = time.perf_counter()
        torch.save(job.state_dict(), io.BytesIO())
        for figure in job.figures(1).values():  # drawn for TensorBoard after each epoch
            figure.canvas.draw()
        return {"step": median(seconds), "start": start, "epoch": 1.5 * (time.perf_counter() - begun)}

    def _setting(self, size: int, batch: int) -> Setting:
        """A setting with random pixels: two steps of full batches an epoch."""
        facts, count = self.facts, 4 * batch
        generator = torch.Generator().manual_seed(0)
        pixels = torch.randint(0, 256, (count, size, size, 3), dtype=torch.uint8, generator=generator)
        images = ImageSet(pixels, torch.arange(count) % facts.classes)
        names = tuple(map(str, range(facts.classes)))
        spec = DataSpec("folder", facts.classes, size, 3, (0.5,) * 3, (0.25,) * 3, names)
        test = images.select(torch.arange(min(count, 2 * batch)))
        return Setting(self.device, Dataset(spec, images, test), {}, {})


class _Smaller(Exception):
    """A batch needs too much memory; `batch` fits."""

    def __init__(self, batch: int) -> None:
        super().__init__(batch)
        self.batch = batch


def _quietly(make: Callable[[], Made]) -> tuple[Made, float]:
    """A job, and the seconds that making it took; what it prints about kernels is said by the run itself."""
    begun = time.perf_counter()
    with redirect_stdout(io.StringIO()):
        job = make()
    return job, time.perf_counter() - begun


def training_config(level: Level, trained: Genotype | Model, options: Mapping[str, Any]) -> AugmentConfig:
    """The training of a genotype's network at this level, or of a model, with further options of augment."""
    more = dict(options)
    if isinstance(trained, Model):  # it has no cells
        subject: dict[str, Any] = {"model": trained.name}
        for name in ("channels", "cells", "drop_path_prob", "auxiliary_weight"):
            more.pop(name, None)
    else:
        subject = {"genotype": trained.name}
        more = {"drop_path_prob": 0.0, "auxiliary_weight": 0.0} | more
        more |= {"channels": level.channels, "cells": level.cells}  # those of a baseline differ from the searched ones
    data = {"dataset": "folder", "image_size": level.image_size, "network": level.network}
    config = make_config("augment", **{**data, **subject, **more})
    assert isinstance(config, AugmentConfig)
    return config
