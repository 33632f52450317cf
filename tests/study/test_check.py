"""A whole study is checked before its first job starts; what is wrong is said with the line of the file."""

import functools
from dataclasses import replace
from pathlib import Path

import pytest

from darts_sg import Study
from darts_sg.analysis.deriving import derive_genotype
from darts_sg.analysis.latency import read_latency_table
from darts_sg.cli.latency_table import _text
from darts_sg.config import recipe_names
from darts_sg.data import load_dataset
from darts_sg.errors import RunError, UsageError
from darts_sg.spaces import Space, parse_space
from darts_sg.study import check
from darts_sg.study.check import check_study
from darts_sg.study.file import TEMPLATE, parse_study, read_study
from darts_sg.study.folder import StudyFolder
from darts_sg.study.genotypes import make_genotype
from darts_sg.study.measure import makespan, parse_dry_run
from darts_sg.study.plan import jobs_of
from tests.analysis.fakes import LATENCY_SHAPE, OPERATIONS, made_up_latencies, varied_search
from tests.study.small import SMALL


@pytest.fixture(autouse=True)
def rendered_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rendering the images takes longer than checking them."""
    monkeypatch.setattr(check, "load_dataset", LOAD)


LOAD = functools.cache(load_dataset)
EXAMPLES = sorted((Path(__file__).parents[2] / "examples" / "studies").glob("*.yaml"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_is_a_valid_plan(path: Path) -> None:
    study = read_study(path)
    configs = check_study(study, data=path.stem == "demo")
    assert configs.keys() == {job.id for job in jobs_of(study)}


def test_the_file_of_study_new_is_a_valid_plan() -> None:
    check_study(read_study(TEMPLATE), data=False)


def test_the_methods_are_there() -> None:
    study = read_study(next(path for path in EXAMPLES if path.stem == "methods"))
    assert {method.options["recipe"] for method in study.methods} <= set(recipe_names("search"))


@pytest.mark.parametrize(
    ("old", "new", "line", "words"),
    [
        ("max_pool_3x3]", "max_pol_3x3]", 5, "unknown space or operation 'max_pol_3x3' (did you mean 'max_pool_3x3'?)"),
        ("recipe: darts-first", "recipe: dart-first", 7, "unknown search recipe 'dart-first'"),
        ("first: {recipe: darts-first}", "first: {relaxation: gumble}", 7, "unknown relaxation 'gumble'"),
        ("recipe: demo", "recipe: dmeo", 4, "unknown augment recipe 'dmeo'"),
        ("channels: 2, cells: 3, nodes", "channels: 2, cells: 2, nodes", 3, "search.cells: --cells must be at least 3"),
        ("auxiliary_weight: 0", "auxiliary_weight: -1", 4, "retrain.auxiliary_weight: --auxiliary-weight must be at"),
        ("{dataset: synthetic", "{dataset: synthetik", 2, "unknown data set 'synthetik'"),
        ("{dataset: synthetic", "{dataset: folder, data: nowhere", 2, "nowhere"),
        ("{dataset: synthetic", "{dataset: synthetic, device: 'cuda:77'", 2, "device 'cuda:77' is not available"),
        ("{dataset: synthetic", "{dataset: synthetic, device: nvidia", 2, "device 'nvidia' is not available"),
        ("train_images: 16, validation", "train_images: 99_999, validation", 3, "the training set of synthetic has"),
        ("genotypes: {", "genotypes: {bounded: {max_params: 1k}, ", 9, "no genotype of this space has params at most"),
        ("nodes: 1", "nodes: 1, target_macs: 1k", 3, "no genotype of this space has MACs at most 1,000"),
        ("{dataset: synthetic", "{dataset: synthetic, plugin: nothing.py", 2, "nothing.py"),
        ("recipe: darts-first", "recipe: random-search}\n  other: {", 9, ""),
    ],
)  # fmt: skip
def test_what_cannot_work_is_named_with_its_line(old: str, new: str, line: int, words: str) -> None:
    assert old in SMALL
    study = SMALL.replace(old, new, 1)
    if not words:
        study, words = study.replace("genotypes: {", "genotypes: {bounded: {max_skips: 1}, "), "no mixing weights"
        line = 10
    with pytest.raises(UsageError) as error:
        check_study(parse_study(study))
    assert f"study, line {line}: " in str(error.value)
    assert words in str(error.value)


def test_a_bound_on_latency_is_checked_before_the_first_job(tmp_path: Path) -> None:
    table = made_up_latencies(parse_space("skip_connect+max_pool_3x3"), replace(LATENCY_SHAPE, nodes=1))
    (tmp_path / "t.yaml").write_text(_text(table))

    def refused(bounds: str, file: str = "t.yaml", nodes: int = 1) -> str:
        text = _bounded(f"{bounds}, latency_table: '{tmp_path / file}'").replace("nodes: 1", f"nodes: {nodes}")
        with pytest.raises(UsageError, match=r"study, line 9: genotypes\.bounded: ") as error:
            check_study(parse_study(text), data=False)
        return str(error.value)

    assert "no genotype of this space has latency at most 1 µs at C=4, 3 cells" in refused("max_latency: 1us")
    assert "of cells of 2 nodes" in refused("max_latency: 1s", nodes=2)
    assert "none.yaml" in refused("max_latency: 1s", "none.yaml")
    assert "give them a bound of their own" in refused("max_params: 10M, max_latency: 1s")
    (tmp_path / "other.yaml").write_text(_text(made_up_latencies(shape=replace(LATENCY_SHAPE, nodes=1))))
    assert "without max_pool_3x3" in refused("max_latency: 1s", "other.yaml")


def test_a_genotype_is_derived_within_the_latency_of_a_bound(tmp_path: Path) -> None:
    path, folder = tmp_path / "t.yaml", StudyFolder(tmp_path)
    shape = replace(LATENCY_SHAPE, nodes=3)
    path.write_text(_text(made_up_latencies(Space("darts+sandglass", OPERATIONS), shape)))
    table, run_dir = read_latency_table(path), varied_search(folder.run_dir("search"), epochs=2)
    most = round(0.8 * table.predict(derive_genotype(run_dir)))
    study = parse_study(_bounded(f"max_latency: {most}us, latency_table: '{path}'"))
    wanted = next(one for one in study.genotypes() if one.kind == "bounded")
    assert wanted.name == f"first_0_{most / 1e3:g}ms"
    found = make_genotype(folder, study, wanted, "search")
    assert table.predict(found) <= most
    assert found.provenance["derived"]["max_latency"] == most


@pytest.mark.parametrize(
    ("device", "executor", "words"),
    [
        ("cpu", "{gpus: 2}", "executor.gpus: the jobs have --device cpu; leave gpus out"),
        ("auto", "{gpus: {retrain: 3}}", "executor.gpus: jobs ask for 3 GPUs, this machine has 2; lower gpus"),
        ("auto", "{processes: 2}", "executor.processes: jobs run on GPUs here, one process each; write gpus"),
        ("cpu", "{processes: 5}", "executor.processes: jobs ask for 5 processes, this machine has 4 cores"),
    ],
)
def test_more_processes_than_the_machine_has_are_refused(
    device: str, executor: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "gpus_of", lambda name: [] if name == "cpu" else ["0", "1"])
    monkeypatch.setattr(check, "usable_cores", lambda: 4)
    text = SMALL.replace("data: {", f"data: {{device: {device}, ") + f"executor: {executor}\n"
    with pytest.raises(UsageError) as error:
        check_study(parse_study(text), data=False)
    assert words in str(error.value)


def _bounded(bounds: str) -> str:
    """The text of the small study, with genotypes within bounds."""
    return SMALL.replace("genotypes: {", f"genotypes: {{bounded: {{{bounds}}}, ")


def test_a_study_in_python() -> None:
    import yaml

    study = Study(yaml.safe_load(SMALL))
    assert [job.kind for job in study.plan()] == ["search", "retrain"]
    assert repr(study) == "Study('Small', 2 jobs)"
    with pytest.raises(UsageError, match="is not the folder of a study"):
        study.results("nowhere")


DRY_RUN = """\
supernet: 2,233,466 weights, 252 alphas, 362.4M MACs an image (C=16, 8 cells)
device: cpu (AMD EPYC, AVX512, 2 threads)
one step of batch 64: 3.00 s (21.3 images/s), validation loss 2.4410, train accuracy 0.0625
peak memory: 3860 MiB
whole run: 50 epochs of 391 steps, about 16:46:53 (h:mm:ss), evaluation not counted
"""


def test_a_dry_run_gives_the_time_of_a_job() -> None:
    shape = parse_dry_run(DRY_RUN)
    assert shape.seconds == 16 * 3600 + 46 * 60 + 53  # not 50 * 391 * 3.0: some epochs may be shorter
    assert shape.images_per_second == 21.3
    assert shape.memory == 3860 * 2**20
    assert shape.device == "cpu (AMD EPYC, AVX512, 2 threads)"
    with pytest.raises(RunError, match="printed no times"):
        parse_dry_run("nothing")


def test_the_end_of_a_plan_waits_for_dependencies() -> None:
    text = SMALL.replace("search: [0]", "search: [0, 1]")
    jobs = jobs_of(parse_study(text))
    seconds = {job.id: 10.0 if job.kind == "search" else 5.0 for job in jobs}
    assert makespan(jobs, seconds, 1) == 30.0
    assert makespan(jobs, seconds, 4) == 15.0
