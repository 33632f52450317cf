"""Detection by the ordinary commands: trained, resumed, tested, finetuned, exported, and applied to images."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import darts_sg
from darts_sg.__main__ import run
from darts_sg.api import RetrainResult
from darts_sg.config import AugmentConfig, SearchConfig
from darts_sg.data import ImageSet, load_dataset
from darts_sg.engine import augment
from darts_sg.engine.augment import AugmentJob
from darts_sg.engine.distributed import Ranks
from darts_sg.engine.export import export
from darts_sg.engine.published import read_published
from darts_sg.engine.setup import Setting
from darts_sg.engine.steps import apply_weight_step, evaluate_all
from darts_sg.engine.weights import read_weights
from darts_sg.errors import UsageError
from darts_sg.networks.build import NetworkPlan
from darts_sg.networks.mobile import MobileNetwork, find_model
from darts_sg.networks.ssdlite import SSDLite, decode, prior_boxes
from darts_sg.tasks import task_of
from darts_sg.tasks.detection import Detection
from darts_sg.tasks.detections import SELECTIONS, Selection, select_objects, selected
from tests.data.detection_fakes import BOXES, write_voc
from tests.reference import mobile
from tests.reference.transfer import assert_equal_tensors, copy_tensors
from tests.tasks.test_seam import Joined
from tests.test_command_line import assert_same, newest_state

pytestmark = pytest.mark.xdist_group("detection")

MODEL = "mobilenetv2_0.1"
PLAN = NetworkPlan(trained=find_model(MODEL), shape="imagenet")
SHORT = ["--image-size=64", "--batch-size=3", "--workers=0", "--threads=1", "--device=cpu", "--warmup-epochs=0"]
VOC = ["augment", "--recipe=voc-small", "--data=voc", *SHORT]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that holds the data set `voc` and `plain`, a short training on it."""
    folder = tmp_path_factory.mktemp("detection")
    write_voc(folder / "voc")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run([*VOC, f"--model={MODEL}", "--epochs=2", "--ema=0.5", "--run-dir=plain"])
    return folder


@pytest.fixture(autouse=True)
def _in_the_folder(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(trained)


def test_a_result_shows_the_figure_of_the_task(trained: Path) -> None:
    assert "test mAP (VOC07), last epoch: " in repr(RetrainResult(trained / "plain"))


def rows(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "metrics.csv").read_text().splitlines()))


def test_results_report_and_pictures(trained: Path) -> None:
    folder = trained / "plain"
    assert set(rows(folder)[0]) > {
        "train_loss", "train_class_loss", "train_box_loss", "test_loss", "test_map_voc07", "test_map_area",
        "test_map_50", "test_map_coco", "ema_test_map_coco",
    }  # fmt: skip
    result = json.loads((folder / "result.json").read_text())
    for measure in ("map_voc07", "map_area", "map_50", "map_coco"):
        last = 100 * float(rows(folder)[-1][f"test_{measure}"])
        assert result[f"test_{measure}_last"] == pytest.approx(last, abs=1e-3)
    assert {name: figures["objects"] for name, figures in result["by_class"].items()} == {"green": 2, "red": 1}
    assert "params_with_auxiliary" not in result
    predictions = json.loads((folder / "predictions.json").read_text())
    assert {entry["image"] for entry in predictions} <= {"JPEGImages/d.jpg", "JPEGImages/e.jpg"}
    report = (folder / "report.md").read_text()
    for text in ("| task | detection |", "test mAP (VOC07), last epoch", "| green | 2 |", "heads of SSDLite follow"):
        assert text in report
    assert "mobile limit" not in report
    for name in ("training_batch", "precision_recall", "confusion", "predictions_best", "predictions_worst"):
        assert f"(pictures/{name}.png)" in report
        with Image.open(folder / "pictures" / f"{name}.png") as picture:
            assert min(picture.size) > 60


def test_a_resumed_run_comes_to_the_same_bits(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(augment, "write_report", lambda folder: None)  # it is the same, and takes as long as an epoch
    shutil.copytree("plain", "resumed")
    for name in ("result.json", "predictions.json", "checkpoints/epoch_0002_step_000000.pt"):
        Path("resumed", name).unlink()
    run(["augment", "--resume=resumed"])
    assert_same(newest_state(Path("resumed"))["state"], newest_state(Path("plain"))["state"])
    for name in ("predictions.json", "pictures/training_batch.png"):
        assert Path("resumed", name).read_bytes() == Path("plain", name).read_bytes()


def test_weights_alone_repeat_the_figure(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = read_weights(Path("plain"))
    assert (weights.metadata.task, weights.metadata.image_size) == ("detection", 64)
    run(["augment", "--evaluate=plain", "--data=voc", "--threads=1", "--workers=0", "--device=cpu"])
    out = capsys.readouterr().out
    assert "test mAP (VOC07) on voc" in out
    assert f"equals the recorded {weights.recorded:.2f}%" in out


def test_a_few_images_are_learnt_by_heart() -> None:
    made = load_dataset("voc", Path("voc"), image_size=64)
    task = task_of({"task": "detection", "box_augment": "none"})
    torch.manual_seed(0)
    network = task.build(PLAN, made.spec)
    x, targets = task.train_batches(made.train, made.spec, 3, 0, "weights")[0]
    evaluator = task.evaluator(made.spec)
    optimizer = torch.optim.Adam(network.parameters(), 0.01)
    for _ in range(40):
        optimizer.zero_grad()
        task.loss(network(x)[0], targets).backward()
        optimizer.step()
    with torch.no_grad():
        evaluator.update(network(x)[0], targets.objects)
    found = evaluator.measures(evaluator.sums(), [evaluator.records()], 3)
    assert found["map_voc07"] > 0.9
    assert found["map_coco"] > 0.5


def test_measures_are_those_of_all_ranks() -> None:
    made = load_dataset("voc", Path("voc"), image_size=64)
    task = task_of({"task": "detection"})
    network = task.build(PLAN, made.spec)
    models = {network: lambda x: network(x)[0]}
    images = made.train
    (alone,) = evaluate_all(models, task.evaluation_batches(images, made.spec, 3), lambda: task.evaluator(made.spec))
    other = task.evaluator(made.spec)
    network.eval()
    with torch.no_grad():
        for x, targets in task.evaluation_batches(images, made.spec, 1, 0, 2):
            other.update(network(x)[0], targets)
    ranks: Any = Joined([*other.sums(), 2], other.records())
    batches = task.evaluation_batches(images, made.spec, 1, 1, 2)
    (joined,) = evaluate_all(models, batches, lambda: task.evaluator(made.spec), ranks)
    assert joined.measures == pytest.approx(alone.measures, rel=1e-5)
    found = [json.loads(one.evaluator.files()["predictions.json"]) for one in (alone, joined)]
    assert [entry["image"] for entry in found[0]] == [entry["image"] for entry in found[1]]


def test_two_ranks_take_the_step_of_one() -> None:
    """The loss is a mean over positives, which the ranks have different numbers of; the third image has none."""
    made = load_dataset("voc", Path("voc"), image_size=64)
    task = task_of({"task": "detection", "box_augment": "none"})
    network = task.build(PLAN, made.spec).double().eval()
    parts = [task.train_batches(made.train, made.spec, 3, 0, "weights", rank, size)[0] for rank, size in PARTS]
    weights = [p for p in network.parameters() if p.requires_grad]

    def gradients(x: torch.Tensor, targets: Any) -> list[torch.Tensor]:
        loss = task.loss(network(x.double())[0], targets)
        return list(torch.autograd.grad(loss, weights, materialize_grads=True))

    whole, first, second = (gradients(*part) for part in parts)
    n, m = (task.num_terms(targets) for _, targets in parts[1:])
    assert {n, m} != {n}
    joined = [(n * a + m * b) / (n + m) for a, b in zip(first, second, strict=True)]
    assert_equal_tensors(joined, whole, relative=1e-6)


PARTS = ((0, 1), (0, 2), (1, 2))


def test_images_without_objects_train_nothing_and_break_nothing() -> None:
    task = task_of({"task": "detection"})
    network = nn.Linear(2, 2)
    made = load_dataset("voc", Path("voc"), image_size=64)
    empty = made.train.select(torch.tensor([2]))
    x, targets = task.train_batches(empty, made.spec, 1, 0, "weights")[0]
    assert task.num_terms(targets) == 0
    detector = task.build(PLAN, made.spec).eval()
    loss = task.loss(detector(x)[0], targets)
    assert loss.item() == 0
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    before = network.weight.clone()
    apply_weight_step(optimizer, list(network.parameters()), 0 * network(torch.ones(1, 2)).sum(), 1.0, Ranks(), 0)
    assert torch.equal(network.weight, before)


def test_a_frozen_backbone_stays_that_of_the_classifier() -> None:
    torch.manual_seed(1)
    classifier = MobileNetwork(find_model("mobilenetv2_0.35"), network="imagenet", num_classes=1000)
    path, published = Path("mobilenet.pth"), as_published(classifier, "mobilenetv2", 0.35)
    torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in published.items()}}, path)
    weights = read_published(path)
    config = AugmentConfig(
        recipe="voc-small", model="mobilenetv2_0.35", finetune=str(path), freeze_backbone=True, batch_size=3,
        image_size=32, weight_decay=0.1, ema=0.5,
    )  # fmt: skip
    data = load_dataset("voc", Path("voc"), image_size=32)
    job = AugmentJob(config, weights.trained, Setting(torch.device("cpu"), data, {}, {}), weights)
    assert job.started.endswith("extra levels and heads new")
    start = {name: tensor.clone() for name, tensor in job.network.state_dict().items()}
    job.attempt(2, recompute=False)
    job.step(0, 0)
    job.measure(data.test)
    job.step(0, 0)
    after, before = job.network.state_dict(), classifier.state_dict()
    kept = [name for name in before if name.startswith("features")]
    assert all(torch.equal(after[f"backbone.{name}"], before[name]) for name in kept)
    changed = {name for name in after if not torch.equal(after[name], start[name])}
    assert not any(name.startswith("backbone.") for name in changed)
    assert {"extras.0.0.0.weight", "class_heads.5.weight"} <= changed
    assert weights.origin()["published"] == "mobilenetv2_0.35"


def as_published(network: MobileNetwork, family: str, width: float) -> dict[str, torch.Tensor]:
    """The tensors of a network under the names that its publishers' code gives them, written out from that code."""
    plain = mobile.Network(family, width, 1, 224, 1000)
    copy_tensors(plain.parameters(), network.parameters())
    copy_tensors(plain.buffers(), network.buffers())
    found = {}
    for k in (0, 1):
        found |= {f"features.0.{k}.{name}": t for name, t in plain.layers[k].state_dict().items()}
    blocks = [layer for layer in plain.layers if isinstance(layer, mobile.Block)]
    for number, block in enumerate(blocks, start=1):
        layers = list(block.layers)
        if family == "mobilenext":
            names = [str(k) for k in range(len(layers))]
        elif len(layers) == 8:
            names = ["0.0", "0.1", "0.2", "1.0", "1.1", "1.2", "2", "3"]
        else:
            names = ["0.0", "0.1", "0.2", "1", "2"]
        for name, layer in zip(names, layers, strict=True):
            found |= {f"features.{number}.conv.{name}.{kind}": t for kind, t in layer.state_dict().items()}
    if family == "mobilenetv2":
        for k in (0, 1):
            found |= {f"features.18.{k}.{name}": t for name, t in plain.layers[-3 + k].state_dict().items()}
    return found | {f"classifier.1.{name}": t for name, t in plain.linear.state_dict().items()}


def test_the_authors_checkpoint_is_read_tensor_by_tensor(tmp_path: Path) -> None:
    network = MobileNetwork(find_model("mobilenext_0.35"), network="imagenet", num_classes=1000)
    published = as_published(network, "mobilenext", 0.35)
    path = tmp_path / "mnext.pth.tar"
    torch.save(published, path)
    found = read_published(path)
    assert found.trained.name == "mobilenext_0.35"
    assert_same(found.tensors, dict(network.state_dict()))
    with pytest.raises(UsageError, match=r"not those of mobilenetv2_0\.35: features\.1\.conv\.0\.0\.weight is missing"):
        read_published(path, "mobilenetv2_0.35")
    torch.save(published | {"extra": torch.ones(1)}, path)
    with pytest.raises(UsageError, match="extra is not in the network"):
        read_published(path, "mobilenext_0.35")
    torch.save({"state_dict": {"a": object}}, path)
    with pytest.raises(UsageError, match="no checkpoint that holds tensors only") as caught:
        read_published(path)
    assert "\n" not in str(caught.value)


def test_other_classes_get_new_class_heads() -> None:
    task = Detection({})
    made = load_dataset("voc", Path("voc"), image_size=64)
    weights = read_weights(Path("plain"))
    more = type(made.spec)("voc", 3, 64, 3, made.spec.mean, made.spec.std, ("red", "green", "blue"))
    network = task.build(PLAN, more)
    state, changes = task.start_state(network, more, weights.tensors, task, weights.spec)
    assert changes == ["class heads new, for 3 classes instead of 2"]
    network.load_state_dict(state)
    assert torch.equal(state["box_heads.0.3.weight"], weights.tensors["box_heads.0.3.weight"])
    assert task.output_layers(network) == [*(f"class_heads.{i}.3" for i in range(5)), "class_heads.5"]
    assert isinstance(network, SSDLite)


def test_predictions_of_files_and_arrays(capsys: pytest.CaptureFixture[str]) -> None:
    Path("voc/JPEGImages/broken.jpg").write_bytes(b"no picture")
    run(["predict", "plain", "voc/JPEGImages", "--score=0.05", "--json=p.json", "--csv=p.csv", "-o", "drawn"])
    Path("voc/JPEGImages/broken.jpg").unlink()
    printed = capsys.readouterr()
    assert "images/s with reading" in printed.out
    assert "1 left out" in printed.out
    assert "broken.jpg cannot be read" in printed.err
    content = json.loads(Path("p.json").read_text())
    assert content["classes"] == ["green", "red"]
    assert [Path(one["image"]).stem for one in content["images"]] == sorted(BOXES)
    table = list(csv.DictReader(Path("p.csv").read_text().splitlines()))
    assert len(table) == sum(len(one["found"]) for one in content["images"])
    assert sorted(path.stem for path in Path("drawn").iterdir()) == sorted(BOXES)
    file = Path("voc/JPEGImages/a.jpg")
    (by_file,) = darts_sg.predict("plain", file, score=0.05)
    (by_array,) = darts_sg.predict("plain", np.array(Image.open(file)), score=0.05)
    assert by_file.boxes is not None
    assert by_file.boxes.shape == (len(by_file.scores), 4)
    assert np.array_equal(by_file.boxes, by_array.boxes)
    assert by_file.as_dict()["found"] == content["images"][0]["found"]
    assert (by_file.boxes >= 0).all()
    assert (by_file.boxes <= [40, 30, 40, 30]).all()


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["predict", "plain", "nowhere.jpg"], "nowhere.jpg does not exist"),
        (["predict", "plain", "plain"], "has no images"),
        (["predict", "plain", "voc/JPEGImages/a.jpg", "--score=2"], "a score is from 0 to 1"),
        ([*VOC, "--model=mobilenext_0.1", "--freeze-backbone"], "give a file to start from"),
        ([*VOC, "--model=mobilenext_0.1", "--cutout-length=8"], "--cutout-length 8 is for classification"),
        ([*VOC, "--model=mobilenext_0.1", "--network=cifar"], "give --network imagenet"),
        ([*VOC, "--model=mobilenext_0.1", "--image-size=24"], "at least 32 pixels"),
        ([*VOC, "--genotype=DARTS_V2", "--auxiliary-weight=0.4"], "--auxiliary-weight 0.4 is for classification"),
        (["export", "plain", "--format=torch", "-o", "m.onnx"], "expected a name that ends in .pt2"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(command: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        run(command)
    assert "\n" not in str(caught.value)


def test_images_need_boxes() -> None:
    labelled: Any = ImageSet(torch.zeros(4, 8, 8, 3, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64))
    with pytest.raises(UsageError, match="images of voc have no boxes; choose --dataset voc, coco or yolo"):
        Detection({}).train_batches(labelled, read_weights(Path("plain")).spec, 2, 0, "weights")


def test_options_of_detectors_are_for_detectors() -> None:
    with pytest.raises(UsageError, match="--detector torchvision is for --task detection, not for classification"):
        AugmentConfig(model="mobilenext_1.0", detector="torchvision")
    with pytest.raises(UsageError, match="a search trains a classifier"):
        SearchConfig(task="detection")


def test_objects_selected_in_a_batch_are_those_of_each_image() -> None:
    generator = torch.Generator().manual_seed(0)
    corner, side = torch.rand(2, 3, 60, 2, generator=generator)
    boxes, scores = torch.cat([corner, corner + side / 2], dim=2), torch.rand(3, 60, 4, generator=generator)
    scores[1] = 0  # an image in which nothing is found
    selection = Selection(score=0.3, iou=0.45, most=20, candidates=30)
    image, *found = selected(boxes, scores, selection)
    assert image.tolist() == sorted(image.tolist())
    for number in range(3):
        own = select_objects(boxes[number], scores[number], selection)
        assert len(own.scores) == (0 if number == 1 else 20)
        assert_equal_tensors([part[image == number] for part in found], own)


def test_selection_keeps_the_best_of_boxes_that_overlap() -> None:
    boxes = torch.tensor([[0, 0, 0.5, 0.5], [0, 0, 0.5, 0.4], [0, 0, 0.4, 0.35], [0.6, 0.6, 1, 1]])
    scores = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.7, 0.005], [0.3, 0.0]])
    found = select_objects(boxes, scores, SELECTIONS["authors"])
    # the third box overlaps the first by 0.56, the second of class 1 is better than the first
    assert found.labels.tolist() == [0, 0, 1]
    assert_equal_tensors([found.boxes], [boxes[[0, 3, 1]]])


def test_a_detector_is_exported_with_decoded_boxes() -> None:
    weights = read_weights(Path("plain"))
    model, network = weights.task.inference(weights.build()), weights.build()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        boxes, scores = model(x)
        logits, offsets = network(x)[0]
    assert_equal_tensors([scores], [logits.softmax(dim=2)[:, :, 1:]])
    assert_equal_tensors([boxes], [decode(offsets, prior_boxes("authors", 64)).clamp(0, 1)], relative=1e-6)
    with pytest.raises(UsageError, match="cannot hold the selection of boxes"):
        export(weights, "torch", select=True)
