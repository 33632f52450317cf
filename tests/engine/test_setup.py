"""What a run does when memory is lacking."""

import pytest
import torch

from darts_sg.engine.setup import is_out_of_memory, what_fits


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
