"""Measured errors, read from run folders made up here and from the committed ones."""

from collections.abc import Iterable
from dataclasses import fields, replace
from pathlib import Path

import pytest

from darts_sg.analysis.measured import Score, option_values, runs_in, same_cells
from darts_sg.analysis.measured import scores as pooled
from darts_sg.analysis.run_folder import Run
from darts_sg.config import AugmentConfig, compared_options
from darts_sg.errors import UsageError
from darts_sg.genotype import Cell, Genotype, load_genotype, zoo_names
from tests.analysis.runs import make_run

RESULTS = Path(__file__).parent.parent.parent / "results"
V2 = load_genotype("DARTS_V2")
COMPARED = compared_options("augment")


def scores(runs: Iterable[Run]) -> list[Score]:
    """The trainings pooled as `genotype compare` pools them."""
    return pooled(runs, COMPARED)


def turned(genotype: Genotype) -> Genotype:
    """The same network under another name, with the edges of each node in another order."""
    cells = [Cell(tuple(tuple(reversed(node)) for node in cell.nodes), cell.concat) for _, cell in genotype.cells()]
    return replace(genotype, name="turned", space="other", normal=cells[0], reduce=cells[1])


@pytest.mark.parametrize("name", zoo_names())
def test_a_genotype_is_known_by_its_cells(name: str) -> None:
    genotype = load_genotype(name)
    assert [other for other in zoo_names() if same_cells(load_genotype(other), turned(genotype))] == [name]
    assert not same_cells(genotype, replace(genotype, normal=genotype.reduce))


def test_trainings_alike_but_for_the_seed_make_one_score(tmp_path: Path) -> None:
    for seed, error in enumerate((14.0, 12.0, 13.0)):
        make_run(tmp_path / f"seed{seed}", V2, error, seed=seed)
    make_run(tmp_path / "copy", V2, 14.0, seed=0)  # the same run once more
    make_run(tmp_path / "larger", V2, 9.0, channels=36)
    make_run(tmp_path / "faster", V2, 11.0, learning_rate=0.1)
    make_run(tmp_path / "search", V2)
    (make_run(tmp_path / "unfinished", V2, 1.0) / "result.json").unlink()
    small, larger, faster = sorted(scores(runs_in(tmp_path)), key=lambda score: (-len(score.errors), score.mean))
    assert (small.mean, small.deviation) == (13.0, 1.0)
    assert sorted(zip(small.seeds, small.errors, strict=True)) == [(0, 14.0), (1, 12.0), (2, 13.0)]
    assert (larger.errors, faster.errors) == ((9.0,), (11.0,))
    assert str(larger) == (
        "9.00 on cifar10 (noted; remarkable): C=36, 8 cells, 15 epochs of 4,000 images, cutout 0, drop path 0.2; "
        "1 trained to the last epoch, seed 0; a machine, 2 threads"
    )
    assert str(small).startswith("13.00 ± 1.00 on ")


def test_runs_are_found_at_any_depth(tmp_path: Path) -> None:
    for seed, place in enumerate(("b", "deep/er/a", "deep/c")):
        make_run(tmp_path / place, V2, 10.0 + seed, seed=seed)
    make_run(tmp_path / "b" / "checkpoints" / "inner", V2, 1.0)  # part of the run b
    make_run(tmp_path / ".hidden" / "d", V2, 2.0)
    make_run(tmp_path.with_name("elsewhere") / "e", V2, 3.0)
    (tmp_path / "link").symlink_to(tmp_path.with_name("elsewhere") / "e")
    (tmp_path / "up").symlink_to(tmp_path.parent)  # leads round in a circle
    make_run(tmp_path / "deep" / "unfinished", V2, 4.0)
    (tmp_path / "deep" / "unfinished" / "result.json").unlink()
    found = [str(run.folder.relative_to(tmp_path)) for run in runs_in(tmp_path)]
    assert found == ["b", "deep/c", "deep/er/a", "link"]
    assert [run.folder.name for run in runs_in(tmp_path / "deep")] == ["c", "a"]
    assert runs_in(tmp_path / "b" / "checkpoints" / "inner") == []


def test_an_older_run_is_as_the_options_were(tmp_path: Path) -> None:
    make_run(tmp_path / "old", V2, 9.0, seed=0)
    make_run(tmp_path / "new", V2, 10.0, seed=1, precision="float32", schedule="cosine", label_smoothing=0.0)
    make_run(tmp_path / "half", V2, 11.0, seed=2, precision="bfloat16")
    make_run(tmp_path / "tuned", V2, 12.0, seed=3, finetune="weights.safetensors")
    assert sorted(sorted(score.seeds) for score in scores(runs_in(tmp_path))) == [[0, 1], [2], [3]]


OTHER_VALUES = {
    "learning_rate_batch": 256, "sync_batchnorm": True, "weight_decay": 1e-4, "schedule": "linear", "compile": True,
    "reduced_decoding": True, "finetune": "weights.safetensors", "ema": 0.999, "image_size": 48,
}  # fmt: skip


@pytest.mark.parametrize("name", OTHER_VALUES)
def test_trainings_with_other_options_are_not_pooled(name: str, tmp_path: Path) -> None:
    make_run(tmp_path / "old", V2, 9.0, seed=0)  # older than the option: it had the default
    make_run(tmp_path / "default", V2, 10.0, seed=1, **{name: COMPARED[name]})
    make_run(tmp_path / "other", V2, 11.0, seed=2, **{name: OTHER_VALUES[name]})
    found = scores(runs_in(tmp_path))
    assert sorted(sorted(score.seeds) for score in found) == [[0, 1], [2]]
    shown = sorted(score.scale.partition("drop path 0.2")[2].partition(" ")[2].partition(" ")[0] for score in found)
    assert shown == [name, name]  # the only thing that tells the two


@pytest.mark.parametrize(
    ("read", "default"), [([], ()), (["a", 1], ("a", 1)), ("x/y", Path("x/y")), ({"a": [1]}, {"a": (1,)}), (1, 1.0)]
)
def test_a_value_that_was_read_equals_the_same_default(read: object, default: object) -> None:
    compared = {"option": default}
    assert option_values({"option": read}, compared) == option_values({}, compared)
    assert hash(option_values({"option": read}, compared))


def test_only_options_that_change_a_result_are_compared(tmp_path: Path) -> None:
    free = {f.name for f in fields(AugmentConfig) if f.metadata["free"]}
    assert {"threads", "run_dir", "kernels", "time_budget"} <= free
    assert COMPARED.keys() == {f.name for f in fields(AugmentConfig)} - free - {"seed", "recipe", "genotype"}
    make_run(tmp_path / "a", V2, 9.0, seed=0, threads=1, kernels="native", recipe="darts")
    make_run(tmp_path / "b", V2, 9.5, seed=1, threads=2, kernels="pytorch", recipe="")
    assert [score.seeds for score in scores(runs_in(tmp_path))] == [(0, 1)]


def test_the_committed_retraining_keeps_its_remark() -> None:
    runs = [run for run in runs_in(RESULTS) if run.genotype and same_cells(run.genotype, V2)]
    found = next(score for score in scores(runs) if score.errors == (14.87,))
    assert (found.seeds, found.params) == ((0,), (246_106,))
    assert found.data == "cifar10 (CIFAR-10, JPEG q75; files differ from the published ones, md5)"
    assert found.scale == "C=16, 8 cells, 15 epochs of 50,000 images, cutout 0, drop path 0"


def test_a_damaged_result_is_named(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "a", V2, 9.0)
    (folder / "result.json").write_text("{")
    with pytest.raises(UsageError, match=r"a/result\.json is not JSON"):
        runs_in(tmp_path)
