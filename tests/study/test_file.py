"""A study is read from its file, and whatever is wrong with it is said in one line that names the line of the file."""

from pathlib import Path
from typing import Any

import pytest

from darts_sg.errors import UsageError
from darts_sg.study.file import Condition, Limits, StudyFile, parse_study, read_study, study_of
from darts_sg.study.plan import jobs_of

STUDY = """\
title: A study
data: {dataset: synthetic}
search: {epochs: 2, channels: 4}
retrain: {recipe: demo, epochs: 2}
spaces: [darts, darts+sandglass]
methods:
  first: {recipe: darts-first}
  gumbel:
    recipe: gumbel
seeds: {search: [0, 1], retrain: [0, 3]}
genotypes:
  bounded: {max_params: 2.45M, max_skips: 2}
  random: {count: 2, seeds: [0]}
  references: [DARTS_V2]
compare:
  - [darts+sandglass, darts]
  - [first, gumbel]
  - [darts_first_s0, DARTS_V2]
claims:
  smaller:
    of: darts+sandglass
    against: darts
    conditions:
      fewer_parameters: {percent: 25, than: DARTS_V2}
      better:
executor: {retries: 1, memory: 4G}
"""


def changed(old: str, new: str) -> str:
    assert old in STUDY
    return STUDY.replace(old, new, 1)


def test_a_study_is_read() -> None:
    study = parse_study(STUDY)
    assert study.title == "A study"
    assert study.search == {"epochs": 2, "channels": 4}
    assert [method.options for method in study.methods] == [{"recipe": "darts-first"}, {"recipe": "gumbel"}]
    assert study.wanted.bounded == (Limits(max_params=2_450_000, max_skips=2),)
    assert [comparison.subject for comparison in study.comparisons] == ["space", "method", "genotype"]
    [claim] = study.claims
    expected = (Condition("fewer_parameters", {"percent": 25.0, "than": "DARTS_V2"}), Condition("better", {}))
    assert claim.conditions == expected
    assert (study.executor.retries, study.executor.memory) == (1, 4_000_000_000)
    assert study.correction == "holm"


def test_jobs_have_stable_names_and_come_seed_by_seed() -> None:
    jobs = jobs_of(parse_study(STUDY))
    ids = [job.id for job in jobs]
    assert len(set(ids)) == len(ids) == 8 + 8 * 2 * 2 + 2 * 2 + 2
    assert ids[:2] == ["search_darts_first_s0", "search_darts_gumbel_s0"]
    assert ids.index("retrain_darts_first_s0_s0") < ids.index("search_darts_first_s1")
    by_id = {job.id: job for job in jobs}
    bounded = by_id["retrain_darts+sandglass_gumbel_s1_2.45M_2-skips_s3"]
    assert bounded.depends_on == ("search_darts+sandglass_gumbel_s1",)
    assert bounded.genotype_kind == "bounded"
    assert bounded.seed == 3
    assert by_id["search_darts+sandglass_gumbel_s1"].options == {
        "dataset": "synthetic", "epochs": 2, "channels": 4, "recipe": "gumbel", "space": "darts+sandglass", "seed": 1,
    }  # fmt: skip
    assert "retrain_darts_random_1_s3" not in by_id  # random genotypes at seed 0 only
    place = {name: i for i, name in enumerate(ids)}
    assert all(place[needed] < place[job.id] for job in jobs for needed in job.depends_on)


def test_processes_are_those_of_all_jobs_or_of_a_kind() -> None:
    all_alike, retraining = (
        parse_study(changed("memory: 4G", text)).executor for text in ("gpus: 2", "processes: {retrain: 4}")
    )
    assert [all_alike.processes_of(kind) for kind in ("search", "retrain")] == [2, 2]
    assert [retraining.processes_of(kind) for kind in ("search", "retrain")] == [1, 4]
    assert retraining.most_processes == 4


def test_adding_a_seed_or_a_method_keeps_all_ids() -> None:
    ids = {job.id for job in jobs_of(parse_study(STUDY))}
    for larger in (
        changed("search: [0, 1]", "search: [0, 1, 2]"),
        changed("    recipe: gumbel", "    recipe: gumbel\n  dirichlet: {recipe: dirichlet}"),
    ):
        assert ids < {job.id for job in jobs_of(parse_study(larger))}


def test_a_sweep_becomes_part_of_the_method() -> None:
    swept = changed("seeds:", "sweep: {alpha_learning_rate: [3e-4, 0.003], nodes: [2, 3]}\nseeds:")
    study = parse_study(swept.partition("compare:")[0])
    assert len(study.methods) == 8
    assert study.methods[1].name == "first_alpha_learning_rate-0.0003_nodes-3"
    assert study.methods[1].options == {"recipe": "darts-first", "alpha_learning_rate": 3e-4, "nodes": 3}
    assert study.methods[1].base == "first"


def test_spaces_name_their_genotypes() -> None:
    spaces = "spaces: {wide: {space: darts+sandglass, genotype: 'WIDE_{method}_{seed}'}, darts: }"
    study = parse_study(changed("spaces: [darts, darts+sandglass]", spaces).partition("compare:")[0])
    names = [genotype.name for genotype in study.genotypes()]
    assert "WIDE_gumbel_1" in names
    assert "darts_first_s0" in names
    assert {job.options["space"] for job in jobs_of(study) if job.space == "wide" and job.kind == "search"} == {
        "darts+sandglass"
    }


def test_a_study_may_retrain_references_only() -> None:
    study = study_of(
        {
            "title": "Published cells",
            "data": {"dataset": "synthetic", "data": Path("data")},
            "retrain": {"recipe": "demo"},
            "seeds": {"retrain": (0, 1)},
            "genotypes": {"references": ["DARTS_V1"]},
        }
    )
    assert [job.id for job in jobs_of(study)] == ["retrain_DARTS_V1_s0", "retrain_DARTS_V1_s1"]


def test_a_mapping_from_python_is_read_like_a_file() -> None:
    import yaml

    content: dict[str, Any] = yaml.safe_load(STUDY)
    assert jobs_of(study_of(content)) == jobs_of(parse_study(STUDY))


@pytest.mark.parametrize(
    ("old", "new", "line", "words"),
    [
        ("title: A study", "titel: A study", 1, "titel: unknown key 'titel' (did you mean 'title'?)"),
        ("title: A study", "title: 3", 1, "title: expected a text, found 3"),
        ("epochs: 2, channels: 4", "epochs: two", 3, "search.epochs: expected a whole number, found 'two'"),
        ("epochs: 2, channels: 4", "epoch: 2", 3, "unknown option 'epoch' (did you mean 'epochs'?)"),
        ("epochs: 2, channels: 4", "seed: 2", 3, "search.seed: is set by the study; see seeds"),
        ("recipe: demo", "nodes: 3", 4, "retrain.nodes: is no option that belongs here; it is an option of section"),
        ("{dataset: synthetic}", "{channels: 4}", 2, "data.channels: is no option that belongs here"),
        ("[darts, darts+sandglass]", "[darts, 3]", 5, "spaces[1]: expected a name"),
        ("[darts, darts+sandglass]", "[darts, Darts]", 5, "spaces: two are called Darts"),
        ("  gumbel:", "  first:", 8, "key 'first' stands twice"),
        ("retrain: [0, 3]", "retrain: [0, 0]", 10, "seeds.retrain: a seed stands twice"),
        ("retrain: [0, 3]", "retrain: [-1]", 10, "seeds.retrain[0]: expected a whole number of at least 0"),
        ("2.45M, max_skips", "many, max_skips", 12, "genotypes.bounded.max_params: expected a number above 0"),
        ("2.45M, max_skips", "2.45M, max_latency: 1ms, max_skips", 12, "max_latency: needs measured operations: add"),
        ("2.45M, max_skips", "2.45M, latency_table: t.yaml, max_skips", 12, "latency_table: is for a bound on latency"),
        (
            "2.45M, max_skips",
            "2.45M, max_latency: 1, latency_table: t, max_skips",
            12,
            "max_latency: expected a time such as 12ms",
        ),
        ("2.45M, max_skips", "2.45M, max_latency: 1h, latency_table: t, max_skips", 12, "expected a time such as 12ms"),
        ("seeds: [0]", "seeds: [7]", 13, "7 is none of seeds.retrain"),
        ("[DARTS_V2]\n", "[DARTS_V3]\n", 14, "genotypes.references[0]: unknown genotype 'DARTS_V3'"),
        ("[darts+sandglass, darts]", "[darts+sandglass, first]", 16, "first is a method, darts+sandglass a space"),
        ("[first, gumbel]", "[first, gumble]", 17, "unknown method, space or genotype 'gumble' (did you mean 'gumbel'"),
        ("[first, gumbel]", "[first, first]", 17, "compare[1][1]: first is compared with itself"),
        ("[first, gumbel]", "[first]", 17, "compare[1]: expected a pair of names"),
        ("percent: 25", "percent: many", 24, "claims.smaller.conditions.fewer_parameters.percent: expected a number"),
        ("      better:", "      best:", 25, "claims.smaller.conditions.best: unknown condition 'best'"),
        ("memory: 4G", "gpus: 2, processes: 2", 26, "executor.processes: each GPU has a process: leave processes or"),
        ("memory: 4G", "gpus: {searches: 2}", 26, "executor.gpus.searches: unknown key"),
        ("memory: 4G", "processes: 0", 26, "executor.processes: expected a whole number of at least 1"),
        ("memory: 4G", "memory: 0", 26, "executor.memory: expected a number above 0"),
        ("genotypes:", "genotypes:\n  name: '{spaces}'", 12, "genotypes.name: expected a name with {space}"),
        ("genotypes:", "genotypes:\n  name: '{space}'", 11, "genotypes: two are called darts: each needs {space}"),
        ("seeds:", "sweep: {nodes: [3, 3]}\nseeds:", 10, "sweep.nodes: two values are equal"),
        ("seeds:", "sweep: {nodes: [many]}\nseeds:", 10, "sweep.nodes[0]: expected a whole number"),
        (
            "retrain: {recipe: demo, epochs: 2}\n",
            "",
            9,
            "there is no section retrain; add it, or leave these seeds out",
        ),
        ("methods:", "methods: {darts: }\nmethod:", 7, "unknown key 'method'"),
    ],
)
def test_an_error_names_the_line(tmp_path: Path, old: str, new: str, line: int, words: str) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(changed(old, new))
    with pytest.raises(UsageError) as error:
        read_study(path)
    message = str(error.value)
    assert message.startswith(f"{path}")
    assert f"line {line}" in message
    assert words in message


def test_a_name_of_two_things_needs_a_prefix() -> None:
    ambiguous = changed("  first: {recipe", "  darts: {recipe").partition("compare:")[0]
    with pytest.raises(UsageError, match="darts is a method and a space; write method:darts or space:darts"):
        parse_study(ambiguous + "compare: [[darts, gumbel]]")
    study = parse_study(ambiguous + "compare: [[method:darts, gumbel]]")
    assert study.comparisons[0].subject == "method"
    assert study.comparisons[0].a == "darts"


def test_runs_with_one_name_are_refused() -> None:
    study = changed("[darts, darts+sandglass]", "{a: {space: darts}, a_b: {space: darts}}").partition("compare:")[0]
    study = study.replace("  first:", "  b_c:").replace("  gumbel:", "  c:")
    with pytest.raises(UsageError, match="have one name"):
        parse_study(study)


def test_an_empty_file_is_refused() -> None:
    with pytest.raises(UsageError, match="expected a mapping with title"):
        parse_study("")


def test_the_study_keeps_its_text() -> None:
    study: StudyFile = parse_study(STUDY)
    assert study.text == STUDY
