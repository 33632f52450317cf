"""Studies of models and of detectors: trained without a search, compared by mAP, of which more is better."""

import json
from pathlib import Path

import pytest

from darts_sg.config import AugmentConfig
from darts_sg.engine import augment
from darts_sg.errors import UsageError
from darts_sg.study.check import check_study
from darts_sg.study.file import parse_study, read_study
from darts_sg.study.findings import compute
from darts_sg.study.plan import jobs_of
from darts_sg.study.results import collect, write_results
from darts_sg.study.verdicts import evaluate_claims
from tests.data.detection_fakes import write_voc
from tests.study.small import run_inline

EXAMPLE = Path(__file__).parents[2] / "examples" / "studies" / "detectors.yaml"
TEXT = """\
title: Detectors
data: {dataset: voc, data: voc}
retrain: {recipe: voc-small, image_size: 64, batch_size: 3, epochs: 1, warmup_epochs: 0, workers: 0}
seeds: {retrain: [0]}
genotypes: {models: [mobilenext_0.1, mobilenetv2_0.1]}
compare: [[mobilenext_0.1, mobilenetv2_0.1]]
"""
IDS = ["retrain_mobilenext_0.1_s0", "retrain_mobilenetv2_0.1_s0"]
CLAIM = """\
claims:
  better: {of: mobilenext_0.1, against: mobilenetv2_0.1, conditions: {better: {points: 1}, no_worse: {points: 2}}}
"""


def test_models_are_trained_and_compared_by_map(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(augment, "write_report", lambda folder: folder)
    write_voc(tmp_path / "voc")
    assert run_inline(Path("S"), TEXT).started == IDS
    results = collect("S")
    expected = {}
    for name in IDS:
        result = json.loads((tmp_path / "S" / "runs" / name / "result.json").read_text())
        assert result["model"] in name
        expected[result["model"]] = result["test_map_voc07_last"]
    assert {one.name: one.errors[0] for one in results.findings.genotypes} == expected
    assert {one.metric.noun for one in results.findings.genotypes} == {"mAP (VOC07)"}
    assert len(results.findings.settings) == 1  # which model it is separates no setting
    tables = json.loads(write_results("S").read_text())["tables"]
    assert [row["mean mAP (VOC07), %"] for row in tables["errors"]["rows"]] == sorted(expected.values(), reverse=True)
    (row,) = tables["comparisons"]["rows"]
    assert row["mean, points"] == pytest.approx(expected["mobilenext_0.1"] - expected["mobilenetv2_0.1"])


def trained(model: str, values: list[float]) -> list[dict[str, object]]:
    """Records of the trainings of a model."""
    return [
        {
            "id": f"retrain_{model}_s{seed}", "state": "done", "genotype": model, "kind": "model", "space": "",
            "method": "", "seed": seed, "setting": "voc", "machine": "here", "hours": 1.0, "metric": "mAP (VOC07)",
            "larger_is_better": True, "figure": value, "error": None,
        }
        for seed, value in enumerate(values)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("ours", "word", "says"),
    [
        ([60.0, 63.0, 62.0], "holds", "excludes a gain of 1 points"),
        ([40.0, 43.0, 42.0], "does not hold", "worse in every pair"),
    ],
)
def test_a_claim_of_a_larger_map_holds_where_the_map_is_larger(ours: list[float], word: str, says: str) -> None:
    study = parse_study(TEXT + CLAIM)
    records = trained("mobilenext_0.1", ours) + trained("mobilenetv2_0.1", [50.0, 52.5, 52.0])
    found = compute([], records, [("mobilenext_0.1", "mobilenetv2_0.1", "genotype")])
    (claim,) = evaluate_claims(study.claims, found, [], {})
    assert claim["word"] == word
    title, condition = (claim["conditions"][0][key] for key in ("title", "text"))
    assert title == "A larger mAP (VOC07) than mobilenetv2_0.1, by more than 1 points"
    assert condition.startswith("mobilenetv2_0.1 − mobilenext_0.1: ")
    assert says in condition
    (comparison,) = found.comparisons["voc"]
    assert comparison.pairs is not None
    assert comparison.pairs.mean == pytest.approx(sum(a - b for a, b in zip(ours, [50, 52.5, 52], strict=True)) / 3)


def test_the_example_can_be_read() -> None:
    study = read_study(EXAMPLE)
    configs = check_study(study, here=False, data=False)
    assert [job.options["model"] for job in jobs_of(study)] == ["mobilenext_1.0", "mobilenetv2_1.0"] * 3
    config = next(iter(configs.values()))
    assert isinstance(config, AugmentConfig)
    assert (config.task, config.model) == ("detection", "mobilenext_1.0")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("mobilenext_0.1, mobilenetv2", "mobilenext, mobilenetv2", r"genotypes\.models.*unknown model 'mobilenext'"),
        ("epochs: 1", "epochs: 1, channels: 8", "--channels 8 is for genotypes, --model mobilenext_0.1 has no cells"),
        ("better: {points: 1}", "fewer_parameters: {percent: 5}", "mobilenext_0.1 is a model without cells"),
    ],
)
def test_what_a_model_cannot_be_is_said_in_one_line(old: str, new: str, message: str) -> None:
    text = TEXT + CLAIM
    assert old in text
    with pytest.raises(UsageError, match=message):
        check_study(parse_study(text.replace(old, new, 1)), here=False, data=False)
