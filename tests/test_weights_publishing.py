"""Weights listed, described and uploaded: the card says what the files say."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from darts_sg.cli.main import run
from darts_sg.engine.model_card import limits
from darts_sg.engine.weights import read_weights
from darts_sg.errors import UsageError
from tests import fake_hub
from tests.engine.test_weights import metadata, written

Capture = pytest.CaptureFixture[str]
COMMAND = "darts-sg augment --genotype DARTS_V2 --epochs 3"


@pytest.fixture
def run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "runs" / "one"
    folder.mkdir(parents=True)
    written(folder / "weights.safetensors", metadata("DARTS_V2"))
    (folder / "config.yaml").write_text(yaml.safe_dump({"environment": {"command": COMMAND}}))
    (folder / "result.json").write_text('{"train_images": 1234}')
    return folder


def test_weights_are_listed_with_their_errors(run_dir: Path, capsys: Capture) -> None:
    (run_dir / "damaged.safetensors").write_bytes(b"x")
    run(["weights"])
    out = capsys.readouterr().out
    for text in ("runs/one/weights.safetensors", "error 12.34%", "cats (noise", "2 of 3", "1 weights files in runs"):
        assert text in out
    assert "left out: runs/one/damaged.safetensors is not a weights file" in out
    run(["weights", "list", "runs", "--json"])
    (row,) = json.loads(capsys.readouterr().out.partition("\nleft out")[0])
    weights = read_weights(run_dir)
    assert row["test_error"] == 12.34
    assert row["params"] == sum(p.numel() for p in weights.build().parameters())
    with pytest.raises(UsageError, match="nowhere is not a folder"):
        run(["weights", "list", "nowhere"])


def test_a_dry_run_writes_the_card_and_uploads_nothing(run_dir: Path, capsys: Capture) -> None:
    arguments = ["weights", "push", str(run_dir), "me/small", "--dry-run", "--license=cc-by-4.0"]
    run(arguments)  # huggingface_hub is not needed
    assert sorted(path.name for path in Path("small").iterdir()) == ["README.md", "result.json", "weights.safetensors"]
    _, front, text = Path("small/README.md").read_text().split("---\n", 2)
    facts = yaml.safe_load(front)
    (result,) = facts["model-index"][0]["results"]
    assert (facts["license"], facts["library_name"], facts["datasets"]) == ("cc-by-4.0", "darts_sg", ["cats"])
    assert result["metrics"] == [{"type": "error", "name": "test error", "value": 12.34}]
    weights = read_weights(run_dir)
    for said in (
        COMMAND,
        weights.title,
        weights.history,
        "12.34%",
        "hf://me/small",
        "seed 1: there is no spread",
        "1,234 training images, 3 epochs",
    ):
        assert said in text
    assert "published figures of such networks come from 600" in text
    with pytest.raises(UsageError, match="small exists; choose another --output"):
        run(arguments)


def test_a_push_uploads_what_a_dry_run_writes(run_dir: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = run_dir.parent / "hub"
    fake_hub.install(monkeypatch, hub)
    run(["weights", "push", str(run_dir), "me/small", "--private"])
    assert capsys.readouterr().out.endswith("https://huggingface.co/me/small\n")
    run(["weights", "push", str(run_dir), "me/small", "--dry-run", "-o", "dry"])
    for path in Path("dry").iterdir():
        assert (hub / "me" / "small" / path.name).read_bytes() == path.read_bytes()
    assert (hub / "me" / "small.private").read_text() == "True"
    assert read_weights(Path("hf://me/small")).recorded == 12.34
    with pytest.raises(UsageError, match="not logged in: hf auth login"):
        run(["weights", "push", str(run_dir), "nobody/small"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "me/small"], "nowhere is not a folder"),
        (["runs", "me/small"], "without weights.safetensors"),
        (["runs/one", "small"], "expected the name of a repository, user/name"),
        (["runs/one", "me/small", "--license=x y"], "expected an identifier such as mit"),
    ],
)
def test_what_cannot_be_pushed_is_one_line(run_dir: Path, arguments: list[str], message: str) -> None:
    with pytest.raises(UsageError) as error:
        run(["weights", "push", *arguments, "--dry-run"])
    assert message in str(error.value)


def test_without_the_extra_nothing_is_pushed(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("darts_sg.remote.find_spec", lambda name: None)
    with pytest.raises(UsageError, match="weights push needs huggingface_hub"):
        run(["weights", "push", str(run_dir), "me/small"])


def test_limits_follow_from_the_facts(run_dir: Path) -> None:
    weights = read_weights(run_dir)
    said = " ".join(limits(weights))
    assert "The data are not quite the published ones: noise." in said
    assert "Saved after epoch 2 of 3." in said
    whole = replace(weights.metadata, epoch=600, epochs=600, data_note="", dataset="synthetic")
    said = " ".join(limits(replace(weights, metadata=whole)))
    assert "rendered images" in said
    assert "published" not in said
    assert "Saved after" not in said
