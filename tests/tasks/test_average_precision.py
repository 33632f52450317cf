"""Average precision against COCO's own program and against VOC's rule written as loops."""

import contextlib
import io

import numpy as np
import pytest

from darts_sg.data.detection.objects import ObjectTable, make_table
from darts_sg.data.detection.predictions import Detections, join_detections
from darts_sg.tasks import average_precision
from darts_sg.tasks.average_precision import coco_figures, confusion, mean_over_classes, voc_curves

CLASSES = 4


def random_scene(seed: int, num_images: int = 30, side: int = 400) -> tuple[ObjectTable, Detections]:
    """Objects, some of them difficult, and detections: moved copies of them, others at random, equal scores among them.

    No object has the last class.
    """
    random = np.random.default_rng(seed)
    rows, found = [], []
    for image in range(num_images):
        objects = []
        for _ in range(random.integers(0, 9)):
            x, y = random.integers(0, side // 2, 2)
            w, h = random.integers(2, side // 2, 2)
            label, difficult = int(random.integers(CLASSES - 1)), bool(random.random() < 0.2)
            objects.append([x, y, x + w, y + h, label, difficult, False, float(w * h * random.uniform(0.3, 1))])
            for _ in range(random.integers(0, 3)):
                moved = np.array([x, y, x + w, y + h]) + random.integers(-w // 8 - 1, w // 8 + 2, 4)
                moved[2:] = np.maximum(moved[2:], moved[:2] + 1)
                found.append((image, *moved, label, random.integers(0, 20) / 20))
        for _ in range(random.integers(0, 5)):
            x, y, w, h = *random.integers(0, side // 2, 2), *random.integers(1, side // 2, 2)
            found.append((image, x, y, x + w, y + h, random.integers(CLASSES), random.random()))
        rows.append(objects)
    d = np.array(found, np.float64)
    return make_table(rows), Detections(d[:, 0].astype(int), d[:, 1:5], d[:, 5].astype(int), d[:, 6])


def with_crowds(objects: ObjectTable, share: float) -> ObjectTable:
    crowd = np.random.default_rng(0).random(len(objects.labels)) < share
    no = np.zeros_like(objects.difficult)
    return ObjectTable(objects.starts, objects.boxes, objects.labels, no, crowd, objects.area)


def figures_of_pycocotools(objects: ObjectTable, detections: Detections) -> np.ndarray:
    """The twelve numbers of COCO's evaluation."""
    coco = pytest.importorskip("pycocotools.coco", reason="pycocotools is not installed (extra test)")
    from pycocotools.cocoeval import COCOeval

    def as_list(boxes: np.ndarray) -> list[list[float]]:
        return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1).astype(float).tolist()

    known, categories = range(len(objects)), [{"id": label, "name": str(label)} for label in range(CLASSES)]
    annotations = [
        {"id": row + 1, "image_id": int(image), "category_id": int(label), "bbox": box, "area": float(area),
         "iscrowd": int(crowd)}
        for row, (image, label, box, area, crowd) in enumerate(
            zip(objects.images, objects.labels, as_list(objects.boxes), objects.area, objects.crowd, strict=True)
        )
    ]  # fmt: skip
    results = [
        {"image_id": int(image), "category_id": int(label), "bbox": box, "score": float(score)}
        for image, label, box, score in zip(
            detections.images, detections.labels, as_list(detections.boxes), detections.scores, strict=True
        )
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = coco.COCO()
        truth.dataset = {"images": [{"id": i} for i in known], "annotations": annotations, "categories": categories}
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats


@pytest.mark.parametrize("seed", range(3))
def test_coco_figures_are_those_of_pycocotools(seed: int) -> None:
    objects, detections = random_scene(seed)
    objects = with_crowds(objects, 0.15)
    stats = figures_of_pycocotools(objects, detections)
    found = coco_figures(objects, detections, CLASSES).figures()
    names = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
    np.testing.assert_allclose([found[name] for name in names], stats[:6], atol=1e-9)
    assert found["ar"] == pytest.approx(stats[8], abs=1e-12)
    assert all(0 < found[name] < 0.9 for name in names)


def test_only_the_best_hundred_detections_of_a_class_and_image_count() -> None:
    objects = make_table([[[0, 0, 10, 10, 0, False, False, 100]]])
    scores = np.linspace(1, 0, 101)
    boxes = np.tile([50.0, 50.0, 60.0, 60.0], (101, 1))
    boxes[-1] = 0, 0, 10, 10
    many = Detections(np.zeros(101, int), boxes, np.zeros(101, int), scores)
    assert coco_figures(objects, many, 1).figures()["ar"] == 0
    assert coco_figures(objects, many.select(np.arange(1, 101)), 1).figures()["ar"] == 1


def voc_by_loops(objects: ObjectTable, detections: Detections, label: int, *, eleven: bool) -> float:
    """AP of a class after the devkit: a loop over detections, and one over recalls."""
    flags, found = [], set()
    of_class = [row for row in range(len(detections)) if detections.labels[row] == label]
    wanted = [row for row in range(len(objects.labels)) if objects.labels[row] == label and not objects.difficult[row]]
    if not wanted:
        return float("nan")
    for row in sorted(of_class, key=lambda row: -detections.scores[row]):
        a, best, target = detections.boxes[row], -1.0, -1
        for gt in range(len(objects.labels)):
            if objects.labels[gt] != label or objects.images[gt] != detections.images[row]:
                continue
            b = objects.boxes[gt].astype(float)
            w = min(a[2], b[2]) - max(a[0], b[0]) + 1
            h = min(a[3], b[3]) - max(a[1], b[1]) + 1
            shared = max(w, 0) * max(h, 0)
            areas = (a[2] - a[0] + 1) * (a[3] - a[1] + 1) + (b[2] - b[0] + 1) * (b[3] - b[1] + 1)
            if shared / (areas - shared) > best:
                best, target = shared / (areas - shared), gt
        if best >= 0.5 and objects.difficult[target]:
            continue
        flags.append(best >= 0.5 and target not in found)
        if best >= 0.5:
            found.add(target)
    points = [(sum(flags[: n + 1]) / len(wanted), sum(flags[: n + 1]) / (n + 1)) for n in range(len(flags))]
    if eleven:
        return sum(max((p for r, p in points if 10 * r >= t - 1e-9), default=0) for t in range(11)) / 11
    total, before = 0.0, 0.0
    for recall, _ in points:
        total += (recall - before) * max(p for r, p in points if r >= recall)
        before = recall
    return total


@pytest.mark.parametrize("seed", [3, 4])
def test_voc_figures_follow_the_rule_of_the_devkit(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(average_precision, "CHUNK", 7)  # as a large set is compared, part by part
    objects, detections = random_scene(seed)
    curves = voc_curves(objects, detections, CLASSES)
    for label, curve in enumerate(curves):
        for eleven, value in ((True, curve.eleven_points()), (False, curve.area())):
            expected = voc_by_loops(objects, detections, label, eleven=eleven)
            assert value == pytest.approx(expected, abs=1e-9, nan_ok=True)
    assert np.isnan(curves[-1].area())
    assert mean_over_classes(np.array([curve.area() for curve in curves])) > 0.1


def test_without_detections_the_precision_is_zero_and_without_objects_there_is_none() -> None:
    objects, _ = random_scene(5)
    none = join_detections([])
    assert [curve.eleven_points() for curve in voc_curves(objects, none, CLASSES)][:3] == [0, 0, 0]
    assert coco_figures(objects, none, CLASSES).figures()["ap"] == 0
    empty = make_table([[], []])
    assert np.isnan(coco_figures(empty, none, CLASSES).figures()["ap"])
    assert mean_over_classes(np.array([np.nan])) == 0


def test_a_confusion_matrix_counts_each_object_and_each_detection_once() -> None:
    table = make_table(
        [
            [[0, 0, 10, 10, 0, False, False, 100], [20, 0, 30, 10, 1, False, False, 100]],
            [[0, 0, 10, 10, 2, True, False, 100], [50, 50, 60, 60, 2, False, False, 100]],
        ]
    )
    found = Detections(
        np.array([0, 0, 0, 0, 1]),
        np.array([[0, 0, 10, 10], [0, 0, 10, 9], [20, 0, 30, 10], [80, 80, 90, 90], [0, 0, 10, 10]], float),
        np.array([0, 0, 2, 1, 2]),
        np.array([0.9, 0.8, 0.7, 0.6, 0.9]),
    )
    matrix = confusion(table, found, 3)
    expected = np.zeros((4, 4), int)
    expected[0, 0] = 1  # found
    expected[1, 2] = 1  # taken for another class
    expected[2, 3] = 1  # missed; the difficult object and its detection are left out
    expected[3, 0] = expected[3, 1] = 1  # found twice; nothing there
    assert (matrix == expected).all()
    assert confusion(table, found, 3, score=0.85)[3].sum() == 0
