"""The same examples in every run, one thread (the machine's cores are for the test workers), and without a GPU Triton's
interpreter, which has to be chosen before anything imports Triton."""

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings

from darts_sg.data import ImageSet, synthetic
from darts_sg.files import write_atomically

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")
torch.set_num_threads(int(os.environ.get("TEST_THREADS", 1)))  # more under ThreadSanitizer

RENDERED: dict[tuple[int, int], ImageSet] = {}
"""By the number of images and the state of the generator."""


@pytest.fixture(scope="module")
def rendered_once() -> Iterator[None]:
    """Runs in this process on the rendered figures share them: rendering takes longer than a short run's training."""
    render = synthetic.render

    def known(num_images: int, rng: np.random.Generator) -> ImageSet:
        key = num_images, rng.bit_generator.state["state"]["state"]
        if key not in RENDERED:
            RENDERED[key] = render(num_images, rng)
        return RENDERED[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(synthetic, "render", known)
        yield


DRAWN = ("analysis", "docs", "study", "fitting", "tasks")
"""Folders of tests in which reports get their pictures. Elsewhere drawing would take longer than the runs."""
WITH_FIGURES = ("test_loggers", "test_fit")
"""Test files in which TensorBoard gets the figures of each epoch."""


@pytest.fixture(autouse=True, scope="module")
def blank_pictures(request: pytest.FixtureRequest) -> Iterator[None]:
    """Reports of runs in this process show blank pictures, and TensorBoard none, except where pictures are tested."""
    from darts_sg.analysis import report
    from darts_sg.engine.loggers.tensorboard import TensorBoardLogger

    def save_blank(figure: object, path: Path) -> None:
        for suffix in ("svg", "png"):
            write_atomically(path.with_name(f"{path.name}.{suffix}"), b"")

    with pytest.MonkeyPatch.context() as patch:
        if request.path.parent.name not in DRAWN:
            patch.setattr(report, "save_figure", save_blank)
        if request.path.stem not in WITH_FIGURES:
            patch.setattr(TensorBoardLogger, "wants_figures", False)
        yield


def pytest_collection_finish() -> None:
    """Keep modules and tests out of garbage collections, which otherwise take a tenth of the time of all tests."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)
