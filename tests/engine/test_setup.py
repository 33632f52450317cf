"""What a run does when memory is lacking."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from darts_sg.config import SearchConfig
from darts_sg.engine.distributed import ALONE
from darts_sg.engine.memory import is_out_of_memory, too_large, what_fits


class FakeJob:
    """A job of which `limit` images fit into memory, four times as many with recomputation."""

    def __init__(self, limit: float) -> None:
        self.limit = limit

    def attempt(self, batch_size: int, *, recompute: bool) -> None:
        if batch_size > self.limit * (4 if recompute else 1):
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")


@pytest.mark.parametrize(
    ("limit", "recompute", "expected"),
    [
        (16, False, "with recomputation it fits, and gives the same bits: python search.py --resume X --recompute"),
        (
            10,
            False,
            "32 fits here with recomputation, 8 without it: start a new run with --batch-size 32 --recompute",
        ),
        (0.5, False, "2 fits here with recomputation: start a new run with --batch-size 2 --recompute"),
        (0, False, "what is left here is not enough for one image either; start again with --batch-size 16 or fewer"),
        (10, True, "32 fits here: start a new run with --batch-size 32"),
        (10, None, "8 fits here: start a new run with --batch-size 8"),
        (0, None, "what is left here is not enough for one image either; start again with --batch-size 16 or fewer"),
    ],
)
def test_the_way_out_is_tried(limit: float, recompute: bool | None, expected: str) -> None:
    found = what_fits(FakeJob(limit), 64, "python search.py --resume X", recompute=recompute)  # type: ignore[arg-type]
    assert found.startswith(expected)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("shapes do not fit"), False),
    ],
)
def test_a_lack_of_memory_is_told_from_other_errors(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) == expected


class HungryJob:
    """A job whose step takes `per_pixel` bytes for each pixel of its batch."""

    def __init__(self, per_pixel: int) -> None:
        self.per_pixel = per_pixel
        self.largest = 0

    def attempt(self, batch_size: int, *, recompute: bool, side: int | None = None) -> int:
        assert side is not None
        pixels = batch_size * side**2
        bytes_needed = pixels * self.per_pixel // (2 if recompute else 1)
        self.largest = max(self.largest, bytes_needed)
        torch.ones(bytes_needed // 4)
        return pixels


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="measures memory through Linux's /proc")
@pytest.mark.parametrize(
    ("available", "expected"),
    [
        (200e9, ""),
        (100e9, "what fits: --recompute, or --batch-size 43, or --image-size 168"),
        (20e9, "what fits: --batch-size 8, or --image-size 72"),
        (1e8, "what fits: fewer --channels or --cells"),
    ],
)
def test_a_step_that_cannot_fit_is_answered_before_it_is_tried(
    available: float, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("darts_sg.engine.memory.available_memory", lambda: int(available))
    job, config = HungryJob(53_000), SearchConfig(batch_size=64)
    told = too_large(job, config, 208, ALONE, torch.device("cpu"))  # type: ignore[arg-type]
    assert job.largest < 1e9
    if not expected:
        assert not told
        return
    assert told.startswith("a step of 64 images of 208×208 pixels needs about 14")
    numbers = [int(n) for n in re.findall(r"\d+", told.partition("what fits")[2])]
    wanted = [int(n) for n in re.findall(r"\d+", expected)]
    assert numbers == pytest.approx(wanted, rel=0.15)  # memory is measured
    assert re.sub(r"\d+", "", told).endswith(re.sub(r"\d+", "", expected))


class StagedJob(HungryJob):
    """A job whose second stage takes four times the memory of the first, and the third half of it."""

    def as_each_stage(self) -> Iterator[str]:
        first = self.per_pixel
        for number, factor in enumerate((2, 8, 1), start=1):
            self.per_pixel = first * factor // 2
            yield f"stage {number}/3"
        self.per_pixel = first


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="measures memory through Linux's /proc")
def test_the_stage_that_takes_the_most_memory_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("darts_sg.engine.memory.available_memory", lambda: int(100e9))
    config = SearchConfig(batch_size=64, recompute=True)
    told = too_large(StagedJob(53_000), config, 208, ALONE, torch.device("cpu"))  # type: ignore[arg-type]
    assert told.startswith("a step of 64 images of 208×208 pixels in stage 2/3 needs about 29")
    assert not too_large(HungryJob(53_000), config, 208, ALONE, torch.device("cpu"))  # type: ignore[arg-type]


def test_a_batch_of_small_images_needs_no_trial() -> None:
    assert not too_large(HungryJob(10**9), SearchConfig(), 32, ALONE, torch.device("cpu"))  # type: ignore[arg-type]
