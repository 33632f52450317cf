"""Kernels that a wheel brings: the library for the processor, and a reason where there is none."""

import hashlib
import json
import platform
import sys
from pathlib import Path
from typing import Any

import pytest

from darts_sg.backends.cpp import build, prebuilt
from darts_sg.backends.cpp.prebuilt import LEVELS, Unsuitable, chosen

V3, V4 = LEVELS["x86_64"]["x86-64-v3"], LEVELS["x86_64"]["x86-64-v4"]


@pytest.fixture
def brought(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as that of a wheel for x86-64, with files that are no libraries, on such a machine."""
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    libraries: dict[str, Any] = {}
    for level in LEVELS["x86_64"]:
        path = tmp_path / f"chains-float-{level}.so"
        path.write_bytes(level.encode())
        libraries[level] = {"file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    write(tmp_path, {"libraries": libraries})
    return tmp_path


def write(folder: Path, changes: dict[str, Any]) -> None:
    facts = {
        "format": prebuilt.FORMAT, "platform": sys.platform, "machine": "x86_64", "sources": prebuilt.fingerprint(),
        "compiler": "g++", "libraries": {},
    }  # fmt: skip
    manifest = folder / prebuilt.MANIFEST
    before = json.loads(manifest.read_text()) if manifest.is_file() else facts
    manifest.write_text(json.dumps(before | changes))


def test_the_best_level_that_the_processor_has_is_chosen(brought: Path) -> None:
    for features, level in ((V4, "x86-64-v4"), (V3, "x86-64-v3"), (V4 - {"avx512vl"}, "x86-64-v3")):
        found = chosen("float", features | {"sse2"}, brought)
        assert found is not None
        assert found.name == f"chains-float-{level}.so"
    with pytest.raises(Unsuitable, match="this processor is below x86-64-v3"):
        chosen("float", V3 - {"fma"}, brought)


@pytest.mark.parametrize(
    ("changes", "real", "reason"),
    [
        ({"sources": "0" * 16}, "float", "built from other sources"),
        ({"machine": "aarch64"}, "float", "they are for aarch64, this machine is x86_64"),
        ({"format": "darts_sg kernels 0"}, "float", "their format is"),
        ({"libraries": 3}, "float", "is damaged"),
        ({"libraries": {"x86-64-v4": {"file": "chains-float-x86-64-v4.so", "sha256": ""}}}, "float", "so is damaged"),
        ({}, "double", "they compute with float, and double is asked for"),
    ],
)
def test_libraries_that_do_not_fit_are_refused(brought: Path, changes: dict[str, Any], real: str, reason: str) -> None:
    write(brought, changes)
    with pytest.raises(Unsuitable, match=reason):
        chosen(real, V4, brought)


def test_an_installation_without_libraries_has_none(tmp_path: Path) -> None:
    assert chosen("float", V4, tmp_path) is None


def test_features_are_those_of_the_first_processor(tmp_path: Path) -> None:
    for title in ("flags\t\t", "Features\t"):
        (tmp_path / "cpuinfo").write_text(f"model name\t: x\n{title}: fma avx2 \n{title}: other\n")
        assert prebuilt.features(tmp_path / "cpuinfo") == {"fma", "avx2"}
    assert prebuilt.features(tmp_path / "nothing") == frozenset()


def test_without_a_compiler_the_reason_names_both(brought: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prebuilt, "FOLDER", brought)
    monkeypatch.setattr(build, "_loaded", {})
    monkeypatch.setenv("CXX", "/nonexistent")
    monkeypatch.delenv("DARTS_SG_CXXFLAGS", raising=False)
    monkeypatch.setattr(prebuilt, "features", lambda: V4)
    with pytest.raises(build.Unavailable, match=r"do not fit \(.*x86-64-v4\.so.*\), and there is no C\+\+"):
        build.kernels()  # the file is no library
    write(brought, {"sources": "0"})
    with pytest.raises(build.Unavailable, match=r"built from other sources .*, and there is no") as error:
        build.kernels()
    assert "\n" not in str(error.value)
    monkeypatch.setenv("DARTS_SG_CXXFLAGS", "-g")
    with pytest.raises(build.Unavailable, match=r"^there is no C"):
        build.kernels()


def test_without_a_compiler_the_library_of_the_wheel_is_loaded(brought: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr(prebuilt, "FOLDER", brought)
    monkeypatch.setattr(build, "_loaded", {})
    monkeypatch.setattr(build.ctypes, "CDLL", opened.append)
    monkeypatch.setattr(prebuilt, "features", lambda: V3)
    monkeypatch.delenv("DARTS_SG_CXXFLAGS", raising=False)
    monkeypatch.setenv("CXX", "/nonexistent")
    build.kernels()
    assert opened == [str(brought / "chains-float-x86-64-v3.so")]
    with pytest.raises(build.Unavailable, match="float, and double is asked for"):
        build.kernels(real="double")


def test_the_mark_of_a_check_is_of_this_processor_and_outside_the_installation(
    brought: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Library:
        _name = str(brought / "chains-float-x86-64-v3.so")

    monkeypatch.setattr(prebuilt, "FOLDER", brought)
    monkeypatch.setattr(build, "_loaded", {"float": Library()})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert not build.checked("cell")
    build.set_checked("cell")
    assert build.checked("cell")
    (mark,) = (tmp_path / "cache" / "darts_sg").iterdir()
    assert mark.name.endswith(".cell.checked")
    monkeypatch.setattr(build, "_processor", lambda: "another")
    assert not build.checked("cell")


def test_the_kernels_need_nothing_of_pytorch() -> None:
    """So that a library serves every version of it."""
    for path in prebuilt.SOURCES.iterdir():
        if path.suffix in (".h", ".cpp"):
            lines = path.read_text(encoding="utf-8").splitlines()
            assert not [
                line
                for line in lines
                if line.startswith("#include") and any(n in line for n in ("ATen", "torch", "Python.h"))
            ]
