"""Available memory: that of the machine, within the limit of a container."""

from pathlib import Path

import pytest

from darts_sg.data import memory


@pytest.mark.parametrize(
    ("limit", "expected"), [("max", 8_000_000 * 1024), ("3000000000", 3_000_000_000 - 1_000_000_000 + 200_000_000)]
)
def test_the_smaller_of_machine_and_container_counts(
    limit: str, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    assert memory.available_memory() is None
    (tmp_path / "meminfo").write_text("MemTotal: 9000000 kB\nMemAvailable:  8000000 kB\n")
    (tmp_path / "memory.max").write_text(limit + "\n")
    (tmp_path / "memory.current").write_text("1000000000\n")
    (tmp_path / "memory.stat").write_text("anon 5\ninactive_file 200000000\n")
    assert memory.available_memory() == expected
