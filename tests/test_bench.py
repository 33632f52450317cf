"""The benchmarks at toy sizes: what they count, print and write. What they find is no test's business."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from benchmarks import machine, networks, peers, speed, subjects
from benchmarks.launches import count
from benchmarks.speed import BenchRow, interleave
from darts_sg.cli.main import PROG, run
from darts_sg.cli.terminal import answer
from darts_sg.spaces import parse_space
from tests.data.fakes import write_imagenet


@dataclass(frozen=True)
class Toy(subjects.Shape):
    batch: int = 2
    channels: int = 8
    cells: int = 3
    size: int = 8


TOY_SPACES = {
    "darts": "dil_conv_3x3+skip_connect",
    "darts+sandglass": "dil_conv_3x3+skip_connect+sandglass_3x3",
    "darts+sandglass+ir": "dil_conv_3x3+skip_connect+sandglass_3x3+inverted_residual_3x3",
}


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Toy shapes in spaces of a few operations, and one round."""
    monkeypatch.setattr(speed, "Shape", Toy)
    for module in (subjects, machine):
        monkeypatch.setattr(module, "parse_space", lambda text: parse_space(TOY_SPACES[text]))
    monkeypatch.setattr(speed, "ROUNDS", 1)


def command(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        answer(lambda: run(["bench", *arguments]), PROG)
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


def test_launches_are_operators_without_views_and_allocations() -> None:
    x = torch.randn(3, 4, requires_grad=True)
    counts = count(lambda: torch.autograd.grad((x.t().contiguous().relu() + torch.empty(4, 3)).sum(), x))
    assert dict(counts) == {
        "aten.clone": 1, "aten.relu": 1, "aten.add": 1, "aten.sum": 1,
        "aten.ones_like": 1, "aten.threshold_backward": 1,
    }  # fmt: skip


def test_steps_are_interleaved_and_the_first_round_does_not_count() -> None:
    order: list[str] = []
    times = interleave({name: lambda name=name: order.append(name) for name in "ab"}, 2)
    assert order == list("ababab")
    assert [len(found) for found in times.values()] == [2, 2]


@pytest.mark.parametrize(
    ("ratio", "at_least", "aim", "expected"),
    [(5, 6, 10, "no"), (7, 6, 10, "yes"), (11, 6, 10, "aim"), (0.3, 0.5, 0.35, "aim"), (0.6, 0.5, 0.35, "no")],
)
def test_targets(ratio: float, at_least: float, aim: float, expected: str) -> None:
    assert BenchRow("x", "s", 1, 1, ratio, (ratio, ratio), 1, at_least, aim).met() == expected


def test_a_share_of_the_time_is_a_part_of_the_baseline() -> None:
    row = speed.share_of_time("partial", {"baseline": [4.0, 2.0, 8.0], "own": [1.0, 1.0, 1.0]}, 0.3, 0.25)
    assert (row.baseline, row.value, row.ratio, row.spread) == (4, 1, 0.25, (0.125, 0.5))
    assert row.met() == "aim"


def test_the_steps_that_are_compared_do_the_same() -> None:
    """Second order, too: alphas and weights after two steps, as far as float32 carries."""
    shape = Toy(space="sep_conv_3x3+skip_connect+sandglass")
    for old, own in (
        (subjects.textbook_step(shape), subjects.own_step(shape, native=False)),
        (subjects.textbook_second_order_step(shape), subjects.own_step(shape, native=False, second_order=True)),
    ):
        alphas = []
        for step in (old, own):
            step()
            step()
            cells = dict(zip(step.__code__.co_freevars, step.__closure__, strict=True))  # type: ignore[attr-defined]
            alphas.append(cells["adam"].cell_contents.param_groups[0]["params"])
        for a, b in zip(*alphas, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-2, atol=2e-5)


def test_an_evaluation_gives_the_same_logits_as_its_baseline() -> None:
    native = subjects.native_kernels() is None
    old, own = networks.evaluation_passes("DARTS_V2", 2, channels=4, cells=3, native=native)
    torch.testing.assert_close(old()[0], own()[0], rtol=1e-3, atol=1e-4)  # type: ignore[index]


@pytest.mark.slow
def test_the_ways_of_a_gpu_that_need_no_cuda_run_on_any_device(toy: None) -> None:
    rows = list(speed.accelerator_rows("cpu", compiled=False))
    assert [row.name for row in rows] == [
        f"first-order step on cpu, batch {batch}, PyTorch kernels{how}"
        for batch in (64, 16)
        for how in (", bfloat16", "")
    ]
    assert all(len(row.times["own"]) == speed.ROUNDS for row in rows)


def test_quick_prints_the_table_and_writes_json_and_picture(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed, "Shape", Toy)
    monkeypatch.setattr("benchmarks.machine.measured_peaks", lambda: (100.0, 10.0))
    picture = tmp_path / "bars.svg"
    code, out, err = command(capsys, "--quick", "--json", str(tmp_path / "a.json"), "--picture", str(picture))
    assert code == 0, err
    assert "first-order step, batch 16" in out
    assert "roofline" in out
    content = json.loads((tmp_path / "a.json").read_text())
    first = content["rows"][0]
    assert first["name"] == "first-order step, batch 16"
    assert {"baseline_seconds", "seconds", "ratio", "spread"} <= first.keys()
    ratios = [b / o for b, o in zip(first["times"]["baseline"], first["times"]["own"], strict=True)]
    assert first["ratio"] == pytest.approx(sorted(ratios)[1])
    assert picture.read_text().count("<svg") == 1


def test_what_cannot_be_written_is_refused_before_anything_is_measured(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    for options in (["--json", str(tmp_path)], ["--picture", str(tmp_path / "file" / "x.svg")]):
        code, out, err = command(capsys, *options)
        assert (code, out) == (2, "")
        assert f"{' '.join(options)} cannot be written: " in err


def test_figures_that_are_no_bars_are_not_drawn(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = BenchRow("peak memory", "MiB", 800, 200, 0.25, (0.25, 0.25), 1, None, None)
    monkeypatch.setattr(speed, "figures", lambda native: {"peak memory": lambda: [memory]})
    picture = tmp_path / "bars.svg"
    code, out, err = command(capsys, "--only", "memory", "--picture", str(picture))
    assert code == 0, err
    assert "none of these figures is a ratio of times" in out
    assert not picture.exists()


@pytest.mark.slow
def test_the_whole_bench_prints_every_table(
    toy: None, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.machine.measured_peaks", lambda: (100.0, 10.0))
    monkeypatch.setattr(speed, "interleave", lambda steps, rounds: interleave(steps, 1))
    monkeypatch.setattr(speed, "peak_mib", lambda which, batch, threads: {"textbook": 800.0}.get(which, 200.0))
    monkeypatch.setattr(speed, "SCALES", {"channels": (4,), "cells": (3,), "batch": (2,)})
    monkeypatch.setattr(speed, "step_gflop", lambda shape: 1.0)  # counted above
    small = {"channels": 4, "cells": 3}
    monkeypatch.setattr(
        speed, "retraining_steps", lambda name, batch, **how: subjects.retraining_steps(name, 2, **small, **how)
    )
    monkeypatch.setattr(
        speed, "mobile_steps", lambda name, batch, **how: networks.mobile_steps(name, 2, size=32, **how)
    )
    monkeypatch.setattr(
        speed, "evaluation_passes", lambda name, batch, **how: networks.evaluation_passes(name, 2, **small, **how)
    )
    monkeypatch.setattr(
        speed, "inference_passes", lambda name, **how: networks.inference_passes(name, size=64, **small, **how)
    )
    code, out, err = command(capsys, "--json", str(tmp_path / "all.json"))
    assert code == 0, err
    for title in ("each rewrite", "scaling", "roofline, first-order step, batch 64", "peak memory", "retraining step"):
        assert title in out
    content = json.loads((tmp_path / "all.json").read_text())
    assert content["rows"][0]["ratio"] == 0.25
    assert {row["dimension"] for row in content["scaling"]} == {"channels", "cells", "operations", "batch"}
    assert content["ablation"][0]["ratio"] == 1
    names = {row["name"] for row in content["rows"]}
    assert len(names) == len(content["rows"])
    assert "methods: step with partial channels (K=4) against the full step, batch 64" in names
    assert {"methods: step with an auxiliary skip (darts-minus) against the plain step, batch 64"} <= names


def test_only_the_figures_asked_for_are_measured(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed, "Shape", Toy)
    code, out, err = command(capsys, "--only", "batch 16, darts", "--json", str(tmp_path / "some.json"))
    assert code == 0, err
    assert "roofline" not in out
    content = json.loads((tmp_path / "some.json").read_text())
    assert content.keys() == {"machine", "rows"}
    assert [row["name"] for row in content["rows"]] == ["first-order step, batch 16, darts"]
    code, _, err = command(capsys, "--only", "nonsense")
    assert code == 2
    assert "no figure has that in its name; there are: peak memory of a step, batch 64; " in err
    code, _, err = command(capsys, "--only", "retraining", "--quick")
    assert (code, err.count("leave out --quick")) == (2, 1)


ORIGINAL = """
import torch
from torch import nn
class Network(nn.Module):
    def __init__(self, C, classes, layers, criterion):
        super().__init__()
        self.body = nn.Linear(3, classes)
        self.alphas = [(1e-3 * torch.randn(14, 8)).cuda().requires_grad_()]
    def arch_parameters(self):
        return self.alphas
    def forward(self, x):
        return self.body(x.mean(dim=(2, 3))) * self.alphas[0].softmax(1).pow(2).sum()
"""
CHECKOUTS = {
    "quark0": ("cnn/model_search.py", ORIGINAL),
    "pc-darts": ("model_search.py", ORIGINAL),
    "confopt": (
        "src/confopt/searchspace.py",
        """
import torch
from torch import nn
class DARTSSearchSpace(nn.Module):
    def __init__(self, C, num_classes, layers):
        super().__init__()
        self.body = nn.Linear(3, num_classes)
        self.alpha = nn.Parameter(torch.zeros(14, 8))
    @property
    def arch_parameters(self):
        return [self.alpha]
    def model_weight_parameters(self):
        return list(self.body.parameters())
    def forward(self, x):
        features = x.mean(dim=(2, 3))
        return features, self.body(features) * self.alpha.exp().sum()
""",
    ),
    "pt.darts": (
        "models/search_cnn.py",
        """
import torch
from torch import nn
class SearchCNNController(nn.Module):
    def __init__(self, C_in, C, n_classes, n_layers, criterion, n_nodes=4, stem_multiplier=3, device_ids=None):
        super().__init__()
        self.criterion, self.body = criterion, nn.Linear(C_in, n_classes)
        self.alpha = nn.Parameter(torch.zeros(14, 8))
    def weights(self):
        return self.body.parameters()
    def alphas(self):
        yield self.alpha
    def forward(self, x):
        return self.body(x.mean(dim=(2, 3))) * self.alpha.exp().sum()
""",
    ),
}


@pytest.mark.parametrize("name", CHECKOUTS)
def test_a_peer_is_measured_from_its_checkout(name: str, tmp_path: Path) -> None:
    path, text = CHECKOUTS[name]
    (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / path).write_text(text)
    peer = peers.load(f"{name}={tmp_path}")
    assert peer.shape(Toy()).partial_channels == (4 if name == "pc-darts" else 1)
    step = peer.step(Toy())
    step()
    step()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--peer", "nas=."], "--peer nas=.: expected NAME=DIR with NAME one of quark0, pt.darts, pc-darts, confopt"),
        (["--peer", "quark0=missing"], "missing is no folder"),
        (["--picture", "bars.gif"], "--picture bars.gif: expected a name that ends with .svg, .png or .pdf"),
    ],
)
def test_bad_input_is_answered_in_one_line(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = command(capsys, "--quick", *arguments)
    assert code == 2
    assert said in err
    assert err.count("\n") == 1


def test_a_folder_that_is_no_checkout_of_the_peer_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(peers.UsageError, match="does not run here: ModuleNotFoundError"):
        peers.load(f"quark0={tmp_path}").step(Toy())


def test_images_prints_rates_and_differences_and_writes_them(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    write_imagenet(tmp_path / "pictures", 2, 3)
    (tmp_path / "empty").mkdir()
    code, out, err = command(
        capsys, "--images", str(tmp_path / "pictures"), "--threads", "1", "--json", str(tmp_path / "a.json")
    )
    assert code == 0, err
    assert "12 files, crops of 224×224" in out
    assert "--reduced-decoding, training crops: 0 of 12 images differ" in out  # they are small
    content = json.loads((tmp_path / "a.json").read_text())
    assert all(len(values) == 3 and min(values) > 0 for values in content["images_a_second"].values())
    assert content["reduced_decoding"]["evaluation"]["largest"] == 0
    code, _, err = command(capsys, "--images", str(tmp_path / "empty"))
    assert code == 2
    assert "no image files are below it" in err
