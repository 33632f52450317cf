"""How steps are captured as CUDA graphs, with a CUDA that only records; test_graphs.py is the same on a GPU."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from darts_sg.engine.graphs import WARM_UP, Captured
from darts_sg.engine.search import SearchJob
from tests.engine.test_search_step import search_config, setting


class FakeStream:
    def wait_stream(self, other: "FakeStream") -> None: ...


class FakeGraph:
    """A graph whose replay is counted, but computes nothing."""

    replays = 0

    def pool(self) -> None: ...

    def replay(self) -> None:
        self.replays += 1


@pytest.fixture
def captures(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The options of each capture."""
    found: list[dict[str, Any]] = []

    @contextmanager
    def graph(graph: FakeGraph, **options: Any) -> Iterator[None]:
        found.append(options)
        yield

    @contextmanager
    def stream(stream: FakeStream) -> Iterator[None]:
        yield

    for name, fake in {
        "Stream": FakeStream, "current_stream": FakeStream, "stream": stream, "CUDAGraph": FakeGraph, "graph": graph
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, fake)
    return found


def test_a_capture_allows_other_threads_to_pin_memory(captures: list[dict[str, Any]]) -> None:
    calls: list[Tensor] = []

    def step(x: Tensor) -> dict[str, Tensor]:
        calls.append(x)
        return {"sum": x.sum()}

    captured = Captured(step)
    for _ in range(WARM_UP + 3):
        captured(None, torch.ones(2))
    assert len(calls) == WARM_UP + 1  # the last of them is the captured one
    assert [options["capture_error_mode"] for options in captures] == ["thread_local"]
    assert [found.graph.replays for found in captured.graphs.values()] == [3]


def test_the_unrolled_step_is_captured_once_for_all_learning_rates() -> None:
    job = SearchJob(search_config(hypergradient="unrolled", epochs=4), setting(64))
    kinds: list[Any] = []

    def record(kind: Any, *tensors: Tensor) -> dict[str, Tensor]:
        kinds.append(kind)
        return {}

    job.captured = record  # type: ignore[assignment]
    for epoch in range(2):
        job.step(epoch, 0)
    assert job.learning_rate(0) != job.learning_rate(1)
    assert len(set(kinds)) == 1
