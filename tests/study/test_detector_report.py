"""Detectors in the report of a study: published and measured figures apart, differences paired by seed."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from scipy import stats

from darts_sg.errors import UsageError
from darts_sg.study.as_dict import report_dict
from darts_sg.study.detectors import DetectorSetting, detectors_section, direction
from darts_sg.study.protocol import Detectors, load_protocol, read_protocol
from darts_sg.study.read import read_experiment
from darts_sg.study.report import study_report

NEXT, V2 = "mobilenext_1.0", "mobilenetv2_1.0"
MAPS = {NEXT: {0: 61.0, 1: 63.0, 2: 62.5}, V2: {0: 60.0, 1: 61.0, 2: 61.25}}


def detector_run(folder: Path, model: str, seed: int, found: float, **options: Any) -> None:
    """The folder of a finished training of a detector."""
    folder.mkdir(parents=True)
    values = {"task": "detection", "model": model, "seed": seed, "epochs": 40, "batch_size": 8, "network": "imagenet"}
    environment = {
        "data": {"name": "voc", "note": "BCCD", "train_images": 292},
        "device_name": "a machine",
        "threads": 1,
    }
    content = {"job": "augment", "options": {**values, **options}, "environment": environment}
    (folder / "config.yaml").write_text(yaml.safe_dump(content))
    result = {"task": "detection", "test_map_voc07_last": found, "test_map_voc07_best": found, "best_epoch": 3}
    result |= {"best_chosen_on": "test", "params": 3_168_880, "macs": 169_266_944}
    (folder / "result.json").write_text(json.dumps(result))


@pytest.fixture
def results(tmp_path: Path) -> Path:
    for model, by_seed in MAPS.items():
        for seed, found in by_seed.items():
            detector_run(tmp_path / f"{model}_{seed}", model, seed, found)
    detector_run(tmp_path / "longer", NEXT, 0, 70.0, epochs=80)
    detector_run(tmp_path / "other_model", "mobilenext_0.5", 0, 50.0)
    return tmp_path


def test_published_and_measured_have_columns_of_their_own(results: Path) -> None:
    text = study_report(read_experiment(results, load_protocol("sandglass"))).partition("## Detectors")[2]
    assert (
        "| mobilenext_1.0 | 72.6 | 23.3 | 70.00 (seed 0; voc (BCCD)); 62.17 ± 1.04 (seeds 0, 1, 2; voc (BCCD)) |"
        in text
    )
    assert "| mobilenetv2_1.0 | 71.8 | 22.3 | 60.75 ± 0.66 (seeds 0, 1, 2; voc (BCCD)) |" in text
    assert "voc (BCCD): 40 epochs of 292 images, batch 8, augmentation ssd, from scratch; a machine, 1 thread." in text
    low, high = stats.ttest_rel([*MAPS[NEXT].values()], [*MAPS[V2].values()]).confidence_interval(0.95)
    assert f"| 0: +1.00, 1: +2.00, 2: +1.25; mean +1.42, 95% interval {low:+.2f} to {high:+.2f} |" in text
    assert "**shows** here" in text
    assert "is **not measured** here: no seed has both detectors." in text  # of the longer training


def test_as_data(results: Path) -> None:
    found = report_dict(read_experiment(results, load_protocol("sandglass")))["detectors"]
    assert found["published"][NEXT]["map_voc07"] == 72.6
    assert [one["maps"][V2] for one in found["measured"]] == [{}, MAPS[V2]]
    assert found["measured"][1]["difference"]["mean"] == pytest.approx(17 / 12)


def test_another_run_of_the_same_seed_is_named(results: Path) -> None:
    detector_run(results / "mobilenext_1.0_0_again", NEXT, 0, 65.0)
    found = read_experiment(results, load_protocol("sandglass"))
    assert found.detectors[1].maps[NEXT][0] == 61.0
    assert [remark for remark in found.remarks if "mobilenext_1.0_0_again is left out" in remark]


@pytest.mark.parametrize(
    ("ours", "theirs", "words"),
    [
        ({0: 60.0, 1: 61.0}, {0: 62.0, 1: 63.1}, "**does not show** here"),
        ({0: 60.0, 1: 64.0}, {0: 61.0, 1: 61.0}, "**undecided** here: the interval holds 0."),
        ({0: 60.0}, {0: 61.0}, "**undecided** here: -1.00 points in one pair"),
        ({0: 9.0}, {0: 8.0}, "The mAP is low"),
    ],
)
def test_the_direction(ours: dict[int, float], theirs: dict[int, float], words: str) -> None:
    assert words in direction(DetectorSetting("voc", "", (), {NEXT: ours, V2: theirs}), (NEXT, V2))


def test_nothing_measured() -> None:
    table, *_ = detectors_section([], Detectors((NEXT, V2), "A note."))
    assert table.count("not measured |") == 2


@pytest.mark.parametrize(
    ("models", "message"), [([NEXT, NEXT], "two different models"), ([NEXT, "x"], "unknown detector")]
)
def test_bad_protocols(models: list[str], message: str, tmp_path: Path) -> None:
    content = yaml.safe_load((Path(read_protocol.__code__.co_filename).parent / "protocols/sandglass.yaml").read_text())
    (tmp_path / "p.yaml").write_text(yaml.safe_dump(content | {"detectors": {"models": models, "note": "a"}}))
    with pytest.raises(UsageError, match=message):
        read_protocol(tmp_path / "p.yaml")
