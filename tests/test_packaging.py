"""What surrounds the package: sdist, workflows, Dockerfile and citation agree with the project."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parent.parent
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
TARGETS = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


def steps(workflow: Path) -> list[dict[str, Any]]:
    jobs = yaml.safe_load(workflow.read_text(encoding="utf-8"))["jobs"]
    return [step for job in jobs.values() for step in job["steps"]]


def test_there_are_workflows() -> None:
    assert [path.name for path in WORKFLOWS] == ["release.yml", "test.yml"]


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_name_pinned_actions_and_targets_of_the_makefile(workflow: Path) -> None:
    found = yaml.safe_load(workflow.read_text(encoding="utf-8"))
    assert found["permissions"] == {"contents": "read"}
    for step in steps(workflow):
        assert ("uses" in step) != ("run" in step)
        if "uses" in step:
            assert re.fullmatch(r"[\w-]+/[\w-]+@(release/)?v\d+", step["uses"])
        for target in re.findall(r"\bmake (\w+)", step.get("run", "")):
            assert target in TARGETS


def test_the_workflow_runs_what_ci_runs_on_the_supported_pythons() -> None:
    workflow = next(path for path in WORKFLOWS if path.name == "test.yml")
    script = ROOT / ".ci" / "run"
    if not script.is_file():
        pytest.skip("an sdist has no .ci/run")
    wanted = re.findall(r"^make \w+", script.read_text(encoding="utf-8"), re.MULTILINE)
    assert wanted
    assert [step["run"] for step in steps(workflow) if step.get("run") in wanted] == wanted
    job = yaml.safe_load(workflow.read_text(encoding="utf-8"))["jobs"]["test"]
    listed = {entry.rpartition(" ")[2] for entry in PROJECT["project"]["classifiers"] if "Python :: 3." in entry}
    assert set(job["strategy"]["matrix"]["python"]) == listed


def test_the_sdist_holds_what_tests_and_builds_need() -> None:
    included = PROJECT["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]
    assert not [name for name in included if not (ROOT / name.removeprefix("/")).exists()]
    for name in ("tests", "benchmarks", "docs", "results", "genotypes", "Makefile", "hatch_build.py", ".github"):
        assert f"/{name}" in included
    assert (ROOT / "darts_sg" / "py.typed").is_file()
    hook = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["hooks"]["custom"]["path"]
    assert (ROOT / hook).is_file()


def test_the_citation_is_of_this_version_and_of_the_paper() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    project = PROJECT["project"]
    assert (cited["title"], cited["version"], cited["license"]) == tuple(
        project[key] for key in ("name", "version", "license")
    )
    titles = [reference["title"] for reference in cited["references"]]
    assert "Rethinking Bottleneck Structure for Efficient Mobile Network Design" in titles
    assert all(reference["authors"] and reference["identifiers"] for reference in cited["references"])


def test_the_image_starts_the_command_as_an_ordinary_user() -> None:
    lines = (ROOT / "Dockerfile").read_text(encoding="utf-8").splitlines()
    assert 'ENTRYPOINT ["darts-sg"]' in lines
    assert "darts-sg" in PROJECT["project"]["scripts"]
    bases = [line.split()[1] for line in lines if line.startswith("FROM ")]
    assert set(bases) == {"python:3.12-slim"}
    (user,) = (line.split()[1] for line in lines if line.startswith("USER "))
    assert user not in ("root", "0")
    kept = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    assert {"pyproject.toml", "README.md", "LICENSE", "hatch_build.py", "darts_sg", "genotypes"} == set(kept)
    assert all((ROOT / name).exists() for name in kept)
