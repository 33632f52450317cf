"""What is collected from the folder of a study, its statistics and verdicts; checked by hand or by scipy."""

import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from darts_sg.analysis.cost import derived_counts
from darts_sg.derive import num_edges
from darts_sg.errors import UsageError
from darts_sg.genotype import NUM_INPUTS, load_genotype
from darts_sg.study.collected import StudyResults
from darts_sg.study.contents import contents
from darts_sg.study.findings import differences
from darts_sg.study.results import collect, write_results
from darts_sg.study.run_records import any_seed
from tests.study.studies import ERRORS, cells_of, made_up_study

LEFT_OUT = ("retrain_SG_1_s2", "retrain_DARTS_0_s1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("results") / "study"
    made_up_study(path)
    return path


@pytest.fixture(scope="module")
def results(folder: Path) -> StudyResults:
    return collect(folder)


@pytest.fixture(scope="module")
def partial(tmp_path_factory: pytest.TempPathFactory) -> StudyResults:
    path = tmp_path_factory.mktemp("partial") / "study"
    made_up_study(path, without=LEFT_OUT[:1], failed=LEFT_OUT[1:])
    return collect(path)


def test_records_are_plain_dicts_of_every_run(results: StudyResults) -> None:
    assert results.is_complete
    assert results.state == "Finished: 21 jobs done."
    assert (len(results.searches), len(results.trainings)) == (4, 17)
    search = next(one for one in results.searches if one["genotype"] == "DARTS_0")
    assert (search["space"], search["method"], search["seed"], search["validation_error"]) == (
        "darts",
        "first",
        0,
        40.0,
    )
    assert search["genotype_params"] == derived_counts([load_genotype("PDARTS")])[0][0]
    training = next(one for one in results.trainings if one["id"] == "retrain_SG_0_s1")
    assert (training["error"], training["genotype"], training["search_seed"]) == (11.0, "SG_0", 0)
    assert training["search"] == "search_darts+sandglass_first_s0"
    assert training["setting"].startswith("cifar10 (noted; remarkable): C=16, 8 cells, 15 epochs of 4,000 images")
    random = next(one for one in results.trainings if one["kind"] == "random")
    assert (random["search"], random["search_seed"]) == (None, None)
    for record in (*results.searches, *results.trainings, *results.jobs):
        assert all(value is None or isinstance(value, str | int | float) for value in record.values())


def test_the_mean_weight_of_the_chosen_is_that_of_the_last_epoch(folder: Path, results: StudyResults) -> None:
    record = next(one for one in results.searches if one["genotype"] == "SG_1")
    run = folder / "runs" / record["id"]
    genotype, weights = load_genotype(run / "genotype.yaml"), np.load(run / "alphas" / "epoch_0003.npz")
    chosen = [
        weights[title][num_edges(state - NUM_INPUTS) + edge.state][genotype.operations.index(edge.operation)]
        for title, cell in genotype.cells()
        for state, edge in cell.edges()
    ]
    assert record["mixing_weight"] == pytest.approx(statistics.mean(chosen))
    table = weights["normal"]
    assert record["entropy_normal"] == pytest.approx(stats.entropy(table, axis=1).mean())
    assert record["hours"] == 3.0
    (curve,) = [one for one in results.curves if one["id"] == record["id"]]
    assert [(hours, round(error, 6)) for hours, error in curve["curve"]] == [(1.0, 60.0), (2.0, 60.0), (3.0, 41.0)]


def test_a_table_says_what_the_searches_of_each_method_did(results: StudyResults) -> None:
    (section,) = [one for one in contents(results) if one.name == "searches"]
    (table,) = [one for one in section.tables if one.name == "what_the_searches_did"]
    (row,) = [one for one in table.records() if one["space"] == "darts+sandglass"]
    assert row["seeds"] == "0, 1"
    assert row["skips in the normal cell, epoch: number"] == "seed 1: 1: 2, 2: 4, 3: 6"  # that of seed 0 wrote none
    assert row["eigenvalue by seed"] == {"1": 0.25}  # the last one that was measured
    assert row["mean test error, %"] == pytest.approx(
        statistics.mean([statistics.mean(ERRORS[n]) for n in ("SG_0", "SG_1")])
    )
    text = dict(zip((column.title for column in table.columns), table.texts()[-1], strict=True))
    assert text["eigenvalue by seed"] == "1: 0.25"
    assert text["processor hours"] == "2.00"  # an hour each


def test_methods_and_spaces_are_paired_search_by_search(results: StudyResults) -> None:
    (comparisons,) = results.findings.comparisons.values()
    spaces, genotypes, published = comparisons
    means = {name: statistics.mean(errors) for name, errors in ERRORS.items()}
    expected = [means[f"SG_{seed}"] - means[f"DARTS_{seed}"] for seed in (0, 1)]
    assert spaces.pairs is not None
    assert spaces.pairs.keys == ("0", "1")
    assert spaces.pairs.values == pytest.approx(expected)
    assert spaces.p == pytest.approx(stats.ttest_1samp(expected, 0).pvalue)
    assert spaces.pairs.interval == pytest.approx(tuple(stats.ttest_1samp(expected, 0).confidence_interval(0.95)))
    paired = stats.ttest_rel(ERRORS["SG_0"], ERRORS["DARTS_0"])
    assert genotypes.p == pytest.approx(paired.pvalue)
    assert genotypes.pairs is not None
    assert genotypes.pairs.interval == pytest.approx(tuple(paired.confidence_interval(0.95)))
    assert published.p == pytest.approx(stats.ttest_rel(ERRORS["SG_1"], ERRORS["DARTS_V2"]).pvalue)
    assert genotypes.p_holm is not None
    assert genotypes.p_holm >= genotypes.p


def test_a_missing_training_takes_its_partner_with_it(partial: StudyResults) -> None:
    trained = partial.findings.genotypes
    found = differences(trained, "darts+sandglass", "darts", "space")
    first = statistics.mean([12.0 - 12.4, 12.5 - 12.6])  # DARTS_0 has no training of seed 1
    second = statistics.mean([12.2 - 13.0, 12.1 - 12.8])  # SG_1 has none of seed 2
    assert found == pytest.approx({"0": first, "1": second})
    assert differences(trained, "SG_0", "DARTS_0", "genotype") == pytest.approx({"0": -0.4, "2": -0.1})


def test_arms_hold_the_plain_genotypes_of_the_searches(results: StudyResults) -> None:
    arms = {arm.name: arm for arm in results.findings.arms}
    assert set(arms) == {"darts · first", "darts+sandglass · first"}
    parts = arms["darts · first"].components
    groups = [ERRORS["DARTS_0"], ERRORS["DARTS_1"]]
    assert parts.within is not None
    assert parts.within.deviation**2 == pytest.approx(statistics.mean(statistics.variance(group) for group in groups))
    pooled = next(iter(results.findings.pooled_within.values()))
    assert (pooled.groups, pooled.values) == (7, 17)


def test_beliefs_are_ranked_against_the_retrained_error(results: StudyResults) -> None:
    found = {(one.correlation.belief, one.where): one.correlation for one in results.findings.rankings}
    accuracies, errors = (
        [60.0, 58.0, 61.0, 59.0],
        [statistics.mean(ERRORS[n]) for n in ("DARTS_0", "DARTS_1", "SG_0", "SG_1")],
    )
    expected = stats.spearmanr(accuracies, [-error for error in errors]).statistic
    assert found["accuracy of the supernet", "all searches"].spearman == pytest.approx(expected)
    assert len(found) == 1  # one search has mixing weights, and two searches of a space have no order to speak of


def test_claims_are_evaluated_as_written(results: StudyResults) -> None:
    (claim,) = results.claims
    ours, base = (
        statistics.mean(params for params, _ in derived_counts(genotypes))
        for genotypes in (
            [cells_of("SG_0"), load_genotype(results.runs["search_darts+sandglass_first_s1"].folder / "genotype.yaml")],
            [cells_of("DARTS_0"), cells_of("DARTS_1")],
        )
    )
    fewer, no_worse = claim["conditions"]
    met = ours <= 0.75 * base and ours <= 0.75 * 3_349_342
    assert fewer["word"] == ("met" if met else "not met")
    assert f"{ours / 1e6:.2f}M parameters on average" in fewer["text"]
    expected = [statistics.mean(ERRORS[f"SG_{s}"]) - statistics.mean(ERRORS[f"DARTS_{s}"]) for s in (0, 1)]
    high = stats.ttest_1samp(expected, 0).confidence_interval(0.95).high
    assert no_worse["word"] == ("met" if high < 2 else "not met")
    assert no_worse["title"] == "No larger mean error than darts, and not worse by 2 points or more"


def test_an_unfinished_study_decides_nothing_and_says_what_is_missing(partial: StudyResults) -> None:
    assert partial.counts == {"done": 19, "failed": 1, "waiting": 1}
    assert partial.state == "Not finished: 19 done, 1 failed, 1 waiting of 21 jobs."
    (claim,) = partial.claims
    assert claim["word"] in ("open", "does not hold")
    no_worse = claim["conditions"][1]
    assert no_worse["word"] == "undecided"
    assert no_worse["text"].endswith("still without 2 trainings")


@pytest.fixture(scope="module")
def written(folder: Path) -> dict[str, Any]:
    """The content of results.json."""
    path = write_results(folder)
    assert path == folder / "results.json"
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def test_results_json_holds_the_tables(written: dict[str, Any]) -> None:
    found = written
    assert found["complete"] is True
    assert found["open_jobs"] == []
    row = next(row for row in found["tables"]["errors"]["rows"] if row["genotype"] == "SG_0")
    assert row["mean error, %"] == pytest.approx(statistics.mean(ERRORS["SG_0"]))
    assert row["error by seed, %"] == {"0": 12.0, "1": 11.0, "2": 12.5}


def test_published_figures_share_no_column_with_measured_ones(written: dict[str, Any]) -> None:
    tables = written["tables"]
    columns = {name: set(table["rows"][0]) for name, table in tables.items()}
    assert {name for name in columns["published"] if "error" in name} == {"published error on CIFAR-10, %"}
    assert not any("published" in column for name, each in columns.items() if name != "published" for column in each)
    assert tables["published"]["rows"][0]["published error on CIFAR-10, %"] == 2.76


def test_what_is_no_study_is_answered(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"is not the folder of a study: it has no study\.yaml"):
        collect(tmp_path)


def test_rendered_data_differ_in_their_seed_only() -> None:
    assert any_seed("synthetic (rendered from seed 12)") == any_seed("synthetic (rendered from seed 0)")
    assert any_seed("cifar10 (JPEG q75; seed 3)") == "cifar10 (JPEG q75; seed 3)"
