"""How a device is prepared, and what a resumed run says of another environment."""

import os
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from darts_sg.engine import environment
from darts_sg.engine.setup import _warn_of_other_code


@pytest.mark.parametrize(("name", "expected"), [("cuda:1", [torch.device("cuda:1")]), ("cuda", [])])
def test_the_chosen_gpu_becomes_the_current_device(
    name: str, expected: list[torch.device], monkeypatch: pytest.MonkeyPatch
) -> None:
    """New streams and Triton launches are on the current device, whatever the device of their tensors."""
    chosen: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(torch, "use_deterministic_algorithms", lambda *_, **__: None)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", torch.backends.cudnn.benchmark)
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    environment.prepare_device(torch.device(name), None)
    assert chosen == expected


def test_the_environment_of_a_gpu_names_the_version_of_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100")
    monkeypatch.setattr(environment, "version", lambda name: {"triton": "3.9.0"}.get(name, "0"))
    found = environment.describe(torch.device("cuda"))
    assert (found["device_name"], found["triton"]) == ("NVIDIA H100", "3.9.0")
    assert "triton" not in environment.describe(torch.device("cpu"))


class FakeRun:
    """Keeps what a run folder is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def log(self, text: str) -> None:
        self.told.append(text)

    warn = log


@pytest.mark.parametrize(
    ("then", "expected"),
    [
        ({"device_name": "NVIDIA A100", "triton": "3.9.0"}, ["device_name NVIDIA A100, now it is NVIDIA H100"]),
        ({"device_name": "NVIDIA H100", "triton": "3.8.0"}, ["triton 3.8.0, now it is 3.9.0"]),
        ({"device_name": "NVIDIA H100", "triton": "3.9.0"}, []),
        ({}, []),  # an earlier version did not record them
    ],
)
def test_resuming_on_another_gpu_or_with_another_triton_is_warned_of(then: dict[str, str], expected: list[str]) -> None:
    run: Any = FakeRun()
    now = {"processes": 1, "device_name": "NVIDIA H100", "triton": "3.9.0"}
    _warn_of_other_code(run, SimpleNamespace(earlier={"environment": then}, environment=now))  # type: ignore[arg-type]
    assert len(run.told) == len(expected)
    assert all(f"started with {one}: the bits may differ" in told for one, told in zip(expected, run.told, strict=True))
