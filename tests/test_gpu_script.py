"""benchmarks/gpu.sh without a GPU: the runner, and a rehearsal of the cheap parts at small sizes."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import bare, gpu, gpu_parts
from benchmarks.gpu_parts import Here

PARTS = {
    "good": "print('{}', file=open(rows, 'w'))".format('{"what": "x", "value": 1.5, "unit": "s", "spread": [1, 2], '
    '"passed": true, "limit": "below 2 s", "remark": "a|b"}'),
    "wrong": "print('{}', file=open(rows, 'w'))".format('{"what": "y", "value": null, "unit": "", "spread": null, '
    '"passed": false, "limit": "equal bits", "remark": ""}'),
    "broken": "raise ValueError('no such kernel')",
    "absent": "print('needs two GPUs'); sys.exit(77)",
    "endless": "import time; print('begun', flush=True); time.sleep(60)",
    "on_gpu": "",
}  # fmt: skip


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts that need no PyTorch."""
    made = tuple(gpu.Part(name, f"part {name}", 1 if name == "endless" else 20, name == "on_gpu") for name in PARTS)
    monkeypatch.setattr(gpu, "PARTS", made)

    def command(part: gpu.Part, arguments: Any, rows: Path) -> list[str]:
        return [sys.executable, "-c", f"import sys; rows = {str(rows)!r}; {PARTS[part.name]}"]

    monkeypatch.setattr(gpu, "command_of", command)


@pytest.mark.usefixtures("parts")
def test_a_part_that_fails_or_hangs_takes_nothing_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu, "facts", lambda arguments: {**dict.fromkeys(FACTS, ""), "commit": "abc", "gpu": "H100"})
    results = gpu.main(["1", "--device", "cpu", "--out", str(tmp_path / "out")])
    assert {result.name: result.status for result in results} == {
        "good": "passed", "wrong": "failed", "broken": "failed", "absent": "skipped", "endless": "timeout",
        "on_gpu": "needs a GPU",
    }  # fmt: skip
    assert [result.note for result in results[2:5]] == [
        "ValueError: no such kernel", "needs two GPUs", "cut off after 1 s",
    ]  # fmt: skip
    written = json.loads((tmp_path / "out" / "gpu.json").read_text())
    assert written["machine"]["commit"] == "abc"
    assert [part["status"] for part in written["parts"]] == [result.status for result in results]
    page = (tmp_path / "out" / "gpu.md").read_text()
    assert "| good | x | 1.5 s | 1 to 2 | below 2 s | yes | a¦b |" in page
    assert "| wrong | y |  |  | equal bits | no |  |" in page
    assert "| endless | part endless | timeout: cut off after 1 s |" in page
    assert (tmp_path / "out" / "endless.txt").read_text() == "begun\n"
    assert capsys.readouterr().out.splitlines()[0].startswith("good: passed, ")


FACTS = ("device", "gpu", "python", "torch", "triton", "cores", "commit", "began", "sizes")


@pytest.mark.usefixtures("parts")
def test_parts_are_chosen_by_name_and_skipped_without_time(tmp_path: Path) -> None:
    assert [part.name for part in gpu.chosen("broken,good", "good")] == ["broken"]
    with pytest.raises(SystemExit, match=r"--skip nonsense: no such part; there are: good, wrong, "):
        gpu.chosen("", "nonsense")
    [result] = gpu.main(["0", "--device", "cpu", "--only", "good", "--out", str(tmp_path)])
    assert (result.status, result.note) == ("skipped", "no time left")


def test_compiled_kernels_stay_out_of_the_results_and_packages_come_second(tmp_path: Path) -> None:
    given = [
        "1",
        "--out",
        str(tmp_path / "out"),
        "--cache",
        str(tmp_path / "cache"),
        "--packages",
        str(tmp_path / "more"),
    ]
    environment = gpu.environment_of(gpu.parser().parse_args(given))
    assert environment["TRITON_CACHE_DIR"] == str(tmp_path / "cache" / "triton")
    assert environment["PYTHONPATH"].startswith(f"{gpu.ROOT}:{tmp_path / 'more'}")


def test_every_part_is_a_function() -> None:
    for part in gpu.PARTS:
        assert callable(getattr(gpu_parts, part.name.replace("-", "_")))


REHEARSED = ("machine", "start", "bits", "resume")


@pytest.mark.parametrize("name", REHEARSED)
def test_a_rehearsal_passes_on_a_cpu(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_parts, "METHODS", {"single level": gpu_parts.METHODS["single level"]})
    here = Here(torch.device("cpu"), tiny=True, rows=tmp_path / "rows")
    getattr(gpu_parts, name.replace("-", "_"))(here)
    rows = [json.loads(line) for line in here.rows.read_text().splitlines()]
    assert rows
    assert not [row for row in rows if row["passed"] is False]
    assert any(row["passed"] for row in rows)


def test_different_bits_are_found() -> None:
    """Also those of two zeros; two equal NaNs are no difference."""
    one = {"a": torch.tensor([0.0, float("nan")]), "b": torch.ones(2)}
    assert gpu_parts.different(one, {name: tensor.clone() for name, tensor in one.items()}) == []
    assert gpu_parts.different(one, {**one, "a": torch.tensor([-0.0, float("nan")])}) == ["a"]
    assert gpu_parts.different(one, {"a": one["a"]}) == ["b"]


@pytest.fixture
def without_scipy() -> Iterator[None]:
    before = sys.meta_path[:]
    sys.meta_path.insert(0, bare.Finder({"not_installed"}))  # type: ignore[arg-type]
    yield
    sys.meta_path[:] = before
    for name in [name for name in sys.modules if name.startswith("not_installed")]:
        del sys.modules[name]


@pytest.mark.usefixtures("without_scipy")
def test_a_missing_package_can_be_imported_but_not_used() -> None:
    from not_installed.part import Thing  # type: ignore[import-not-found]

    assert issubclass(Thing.Error, Exception)
    with pytest.raises(AttributeError):
        _ = Thing().method
