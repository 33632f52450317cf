"""Energy from counters and samples of power."""

import subprocess
from pathlib import Path
from typing import Any

import pytest

from darts_sg.study import energy
from darts_sg.study.energy import GpuPower, Rapl


def counter(folder: Path, name: str, microjoules: int) -> None:
    package = folder / name
    package.mkdir(exist_ok=True)
    (package / "energy_uj").write_text(f"{microjoules}\n")
    (package / "max_energy_range_uj").write_text("1000000000\n")


def test_the_packages_of_a_processor_are_added_up(tmp_path: Path) -> None:
    counter(tmp_path, "intel-rapl:0", 5_000_000)
    counter(tmp_path, "intel-rapl:1", 999_000_000)
    counter(tmp_path, "intel-rapl:0:0", 0)  # a part of package 0
    rapl = Rapl(tmp_path)
    assert rapl.joules() == 0.0
    counter(tmp_path, "intel-rapl:0", 7_500_000)
    counter(tmp_path, "intel-rapl:1", 1_000_000)  # it has wrapped around at 1,000 J
    counter(tmp_path, "intel-rapl:0:0", 90_000_000)
    assert rapl.joules() == pytest.approx(2.5 + 2.0)


def test_without_counters_there_is_no_figure(tmp_path: Path) -> None:
    assert Rapl(tmp_path / "nowhere").joules() is None
    (tmp_path / "intel-rapl:0").mkdir()
    assert Rapl(tmp_path).joules() is None


def test_the_power_of_a_gpu_is_integrated(monkeypatch: pytest.MonkeyPatch) -> None:
    watts, clock = iter(["100\n50\n", "200\n100\n", "[N/A]\n"]), iter([0.0, 10.0, 20.0])

    def run(words: Any, **ignored: Any) -> "subprocess.CompletedProcess[str]":
        assert words[-1] == "--id=2,3"
        return subprocess.CompletedProcess(words, 0, next(watts), "")

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    monkeypatch.setattr(energy.shutil, "which", lambda name: name)
    monkeypatch.setattr(energy.subprocess, "run", run)
    monkeypatch.setattr(energy.time, "monotonic", lambda: next(clock))
    gpu = GpuPower()
    assert gpu.joules() == pytest.approx((150 + 300) / 2 * 10)
    assert gpu.joules() == pytest.approx(2250)  # it does not tell any more


def test_without_a_gpu_there_is_no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(energy.shutil, "which", lambda name: None)
    assert GpuPower().joules() is None
