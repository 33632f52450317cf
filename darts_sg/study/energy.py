"""Energy that a job takes: RAPL counters of the processor, and the power that nvidia-smi tells of the GPU.

Both measure the whole device. Where several jobs share a processor, each of their figures holds that of all.
"""

import os
import shutil
import subprocess
import time
from contextlib import suppress
from pathlib import Path

POWERCAP = Path("/sys/class/powercap")


class Rapl:
    """Energy of all processor packages since this object was made; None if the counters cannot be read."""

    def __init__(self, folder: Path = POWERCAP) -> None:
        packages = sorted(folder.glob("intel-rapl:*")) if folder.is_dir() else []
        self._packages = [path for path in packages if path.name.count(":") == 1]  # others are parts of these
        self._last = {path: value for path in self._packages if (value := _counter(path / "energy_uj")) is not None}
        self._joules = 0.0

    def joules(self) -> float | None:
        """Energy up to now. Must be called more often than a counter wraps around, which takes minutes at least."""
        for path, before in self._last.items():
            value = _counter(path / "energy_uj")
            if value is None:
                continue
            passed = value - before
            if passed < 0:
                passed += _counter(path / "max_energy_range_uj") or 0
            self._joules += max(0, passed) / 1e6
            self._last[path] = value
        return self._joules if self._last else None


class GpuPower:
    """Energy of the visible GPUs since this object was made, from samples of their power; None without nvidia-smi."""

    def __init__(self) -> None:
        self._command = shutil.which("nvidia-smi")
        self._joules = 0.0
        self._last: tuple[float, float] | None = None
        self.joules()

    def joules(self) -> float | None:
        """Energy up to now: the power of two samples is averaged over the time between them."""
        watts, now = self._watts(), time.monotonic()
        if watts is None:
            return None if self._last is None else self._joules
        if self._last is not None:
            self._joules += (watts + self._last[0]) / 2 * (now - self._last[1])
        self._last = watts, now
        return self._joules

    def _watts(self) -> float | None:
        if self._command is None:
            return None
        words = [self._command, "--query-gpu=power.draw", "--format=csv,noheader,nounits"]
        if visible := os.environ.get("CUDA_VISIBLE_DEVICES"):
            words.append(f"--id={visible}")
        try:
            done = subprocess.run(words, capture_output=True, text=True, timeout=10, check=True)
            return sum(float(line) for line in done.stdout.split())
        except (OSError, subprocess.SubprocessError, ValueError):
            self._command = None  # asked once; it will not tell later either
            return None


def _counter(path: Path) -> int | None:
    with suppress(OSError, ValueError):
        return int(path.read_text())
    return None
