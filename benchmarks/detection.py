"""Speed of SSDLite's parts on a CPU core against plain code, each pair taking turns in one process.

    OMP_NUM_THREADS=1 python -m benchmarks.detection --data VOC_FOLDER --json results/speed/detection.json

1. Loading and augmenting training images to 320×320, against a loop of Pillow and numpy, and against decoding alone.
2. A training step of batch 24 at 320×320, against the textbook network with loss and layout as torchvision writes them.
3. Non-maximum suppression of an untrained detector's boxes, against the usual greedy loop for each class.
4. The figures of 5,000 images' detections: COCO's against pycocotools, and all of them together.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from benchmarks.images import decode
from benchmarks.machine import interleave, median
from darts_sg.boxes import box_iou
from darts_sg.data import load_dataset
from darts_sg.data.batches import normalise
from darts_sg.data.detection.augment import FILL, SSD
from darts_sg.data.detection.batches import BoxReader
from darts_sg.data.detection.objects import DetectionImages, Objects
from darts_sg.data.imagenet import MEAN, STD
from darts_sg.data.spec import DataSpec
from darts_sg.engine.distributed import Ranks
from darts_sg.engine.steps import apply_weight_step
from darts_sg.networks.build import NetworkPlan
from darts_sg.networks.mobile import find_model
from darts_sg.networks.ssdlite import encode, prior_boxes, to_corners
from darts_sg.tasks import task_of
from darts_sg.tasks.average_precision import average_precision, coco_figures
from darts_sg.tasks.detection import match_objects
from darts_sg.tasks.detections import SELECTIONS, select_objects
from tests.reference import detection
from tests.reference.transfer import copy_tensors
from tests.tasks.test_average_precision import CLASSES, figures_of_pycocotools, random_scene

SIZE, BATCH, VOC_CLASSES, IMAGES = 320, 24, 20, 5_000
NAMES = tuple(map(str, range(VOC_CLASSES)))
SPEC = DataSpec("voc", VOC_CLASSES, SIZE, 3, MEAN, STD, NAMES)
SGD = {"lr": 1e-3, "momentum": 0.9, "weight_decay": 5e-4}
Steps = dict[str, Callable[[], object]]


# --- loading


def plain_image(path: str, boxes: np.ndarray, random: np.random.Generator) -> tuple[Tensor, np.ndarray]:
    """A training image by SSD's steps on the whole image, as a loop of Pillow and numpy has them."""
    with Image.open(path) as opened:
        x = np.asarray(opened.convert("RGB")).astype(np.float32)
    if random.random() < 0.5:
        x += random.uniform(-32, 32)
    if random.random() < 0.5:
        x *= random.uniform(0.5, 1.5)
    hsv = np.array(Image.fromarray(x.clip(0, 255).astype(np.uint8)).convert("HSV")).astype(np.float32)
    if random.random() < 0.5:
        hsv[..., 1] *= random.uniform(0.5, 1.5)
    if random.random() < 0.5:
        hsv[..., 0] = (hsv[..., 0] + random.uniform(-18, 18) * 255 / 360) % 255
    x = np.array(Image.fromarray(hsv.clip(0, 255).astype(np.uint8), "HSV").convert("RGB"))
    if random.random() < 0.5:
        x = x[..., random.permutation(3)]
    if random.random() < 0.5:
        ratio, (height, width, _) = random.uniform(1, 4), x.shape
        left, top = (int(random.uniform(0, side * ratio - side)) for side in (width, height))
        canvas = np.empty((int(height * ratio), int(width * ratio), 3), np.uint8)
        canvas[:] = FILL
        canvas[top : top + height, left : left + width] = x
        x, boxes = canvas, boxes + np.array([left, top] * 2)
    x, boxes = plain_crop(x, boxes, random)
    if random.random() < 0.5:
        x, boxes = x[:, ::-1], boxes.copy()
        boxes[:, ::2] = x.shape[1] - boxes[:, 2::-2]
    square = Image.fromarray(np.ascontiguousarray(x)).resize((SIZE, SIZE), Image.Resampling.BILINEAR)
    pixels = torch.from_numpy(np.array(square)).permute(2, 0, 1).contiguous().float().div(255)
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    return (pixels - mean) / std, boxes


def plain_crop(x: np.ndarray, boxes: np.ndarray, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """SSD's crop: tries one after another."""
    height, width, _ = x.shape
    while len(boxes):
        least = (None, 0.1, 0.3, 0.7, 0.9, 0.0)[random.integers(6)]
        if least is None:
            break
        for _ in range(50):
            w, h = random.uniform(0.3 * width, width), random.uniform(0.3 * height, height)
            if not 0.5 <= h / w <= 2:
                continue
            left, top = random.uniform(0, width - w), random.uniform(0, height - h)
            view = np.array([int(left), int(top), int(left + w), int(top + h)])
            shared = np.minimum(boxes[:, 2:], view[2:]) - np.maximum(boxes[:, :2], view[:2])
            inside = shared.clip(min=0).prod(axis=1)
            area = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
            centres = (boxes[:, :2] + boxes[:, 2:]) / 2
            kept = ((centres > view[:2]) & (centres < view[2:])).all(axis=1)
            if (inside / (area + (view[2:] - view[:2]).prod() - inside)).max() < least or not kept.any():
                continue
            moved = boxes[kept].clip(np.tile(view[:2], 2), np.tile(view[2:], 2)) - np.tile(view[:2], 2)
            return x[view[1] : view[3], view[0] : view[2]], moved
    return x, boxes


def loading(data: Path, count: int = 200) -> Steps:
    images = load_dataset("voc", data, image_size=SIZE).train
    assert isinstance(images, DetectionImages)
    paths = [str(images.path(index)) for index in range(min(count, len(images)))]
    reader = BoxReader(images, SSD, 0, "weights")

    def own() -> None:
        for index in range(len(paths)):
            normalise(torch.from_numpy(np.asarray(reader[0, index].pixels))[None], SPEC)

    def plain() -> None:
        for index, path in enumerate(paths):
            plain_image(path, images.table[index][0], np.random.default_rng(index))

    return {"baseline": plain, "own": own, "decoding alone": lambda: [decode(path) for path in paths]}


# --- a step


class PlainDetector(detection.Detector):
    """The textbook detector with its outputs put in order as torchvision does it."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        fine, coarse, x = self.taps(x)
        maps = [fine, coarse]
        for level in self.levels:
            maps.append(x := level(x))
        found: list[list[Tensor]] = [[], []]
        for x, *heads in zip(maps, self.class_heads, self.box_heads, strict=True):
            for into, head, size in zip(found, heads, (self.num_classes + 1, 4), strict=True):
                y = head(x)
                N, _, H, W = y.shape
                into.append(y.view(N, -1, size, H, W).permute(0, 3, 4, 1, 2).reshape(N, -1, size))
        return torch.cat(found[0], dim=1), torch.cat(found[1], dim=1)


def plain_loss(outputs: tuple[Tensor, Tensor], targets: Sequence[Objects], priors: Tensor) -> Tensor:
    """Matching and loss of torchvision's SSD: image after image."""
    logits, offsets = outputs
    corners, labels, box_losses, positives = to_corners(priors), [], [], 0
    for n, target in enumerate(targets):
        overlaps = box_iou(target.boxes, corners)
        values, matched = overlaps.max(dim=0)
        matched[values < 0.5] = -1
        best = overlaps.argmax(dim=1)
        matched[best] = torch.arange(len(best))
        chosen = (matched >= 0).nonzero().flatten()
        wanted = encode(target.boxes[matched[chosen]], priors[chosen])
        box_losses.append(F.smooth_l1_loss(offsets[n, chosen], wanted, reduction="sum"))
        label = torch.zeros(len(priors), dtype=torch.int64)
        label[chosen] = target.labels[matched[chosen]] + 1
        labels.append(label)
        positives += len(chosen)
    all_labels = torch.stack(labels)
    losses = F.cross_entropy(logits.flatten(0, 1), all_labels.flatten(), reduction="none").view(all_labels.shape)
    foreground = all_labels > 0
    negative = losses.clone()
    negative[foreground] = -torch.inf
    order = negative.sort(1, descending=True)[1]
    background = order.sort(1)[1] < 3 * foreground.sum(1, keepdim=True)
    return (torch.stack(box_losses).sum() + losses[foreground].sum() + losses[background].sum()) / max(1, positives)


def random_objects(generator: torch.Generator) -> Objects:
    n = int(torch.randint(1, 6, (), generator=generator))
    corner, side = torch.rand(2, n, 2, generator=generator)
    boxes, no = torch.cat([0.6 * corner, 0.6 * corner + 0.05 + 0.35 * side], dim=1), torch.zeros(n, dtype=torch.bool)
    return Objects(boxes, torch.randint(VOC_CLASSES, (n,), generator=generator), no, no, torch.ones(n))


def step(name: str) -> Steps:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(BATCH, 3, SIZE, SIZE, generator=generator)
    targets = [random_objects(generator) for _ in range(BATCH)]
    task = task_of({"task": "detection"})
    own = task.build(NetworkPlan(trained=find_model(name), shape="imagenet"), SPEC)
    family, _, width = name.rpartition("_")
    plain = PlainDetector(family, float(width), VOC_CLASSES)
    copy_tensors(plain.parameters(), own.parameters())
    own = own.to(memory_format=torch.channels_last)
    priors, last = prior_boxes("authors", SIZE), x.contiguous(memory_format=torch.channels_last)
    sgd, plain_sgd = (torch.optim.SGD(network.parameters(), **SGD) for network in (own, plain))
    weights = [*own.parameters()]

    def own_step() -> None:
        loss = task.loss(own(last)[0], match_objects(targets, "authors", SIZE))
        apply_weight_step(sgd, weights, loss, float("inf"), Ranks(), 0)

    def plain_step() -> None:
        plain_sgd.zero_grad()
        plain_loss(plain(x), targets, priors).backward()
        plain_sgd.step()

    matched = match_objects(targets, "authors", SIZE)
    difference = plain_loss(plain(x), targets, priors) - task.loss(own(last)[0], matched)
    assert abs(float(difference.detach())) < 1e-3, difference
    return {"baseline": plain_step, "own": own_step}


# --- selection and figures


def greedy(boxes: np.ndarray, scores: np.ndarray, threshold: float) -> list[int]:
    """The usual loop of non-maximum suppression over the boxes of a class, in the order of the scores."""
    left, top, right, bottom = boxes.T
    areas, order, kept = (right - left) * (bottom - top), scores.argsort()[::-1], []
    while len(order):
        i, rest = order[0], order[1:]
        kept.append(int(i))
        width = (np.minimum(right[i], right[rest]) - np.maximum(left[i], left[rest])).clip(min=0)
        height = (np.minimum(bottom[i], bottom[rest]) - np.maximum(top[i], top[rest])).clip(min=0)
        order = rest[width * height / (areas[i] + areas[rest] - width * height) <= threshold]
    return kept


def suppression(count: int = 24) -> Steps:
    """Images in which every box of every class has a score above the threshold: an untrained detector's."""
    generator, selection = torch.Generator().manual_seed(0), SELECTIONS["authors"]
    corners = to_corners(prior_boxes("authors", SIZE)).clamp(0, 1)
    boxes = [(corners + 0.02 * torch.randn(corners.shape, generator=generator)).clamp(0, 1) for _ in range(count)]
    scores = [torch.randn(len(corners), VOC_CLASSES + 1, generator=generator).softmax(dim=1)[:, 1:] for _ in boxes]

    def plain() -> None:
        for b, s in zip(boxes, scores, strict=True):
            for label in range(VOC_CLASSES):
                above = (s[:, label] > selection.score).nonzero().flatten()
                best = above[s[above, label].argsort(descending=True)[: selection.candidates]]
                greedy(b[best].numpy(), s[best, label].numpy(), selection.iou)

    return {
        "baseline": plain,
        "own": lambda: [select_objects(b, s, selection) for b, s in zip(boxes, scores, strict=True)],
    }


def figures() -> Steps:
    objects, found = random_scene(0, IMAGES)
    return {
        "baseline": partial(figures_of_pycocotools, objects, found),
        "own": partial(coco_figures, objects, found, CLASSES),
        "all figures, of VOC and COCO": partial(average_precision, objects, found, CLASSES),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="photographs in the layout of Pascal VOC")
    parser.add_argument("--json", type=Path, help="file to write all times to")
    parser.add_argument("--only", default="", help="measure the parts whose name contains this")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    parts: dict[str, tuple[Callable[[], Steps], int]] = {
        "loading and augmentation of 200 images to 320×320": (partial(loading, arguments.data), 3),
        "a step of batch 24, mobilenetv2_1.0": (partial(step, "mobilenetv2_1.0"), 3),
        "a step of batch 24, mobilenext_1.0": (partial(step, "mobilenext_1.0"), 3),
        "non-maximum suppression, 24 images of an untrained detector": (suppression, 3),
        f"COCO's figures of {IMAGES:,} images": (figures, 2),
    }
    found: dict[str, Any] = {}
    for name, (make, rounds) in parts.items():
        if arguments.only not in name:
            continue
        times = interleave(make(), rounds)
        ratios = [b / o for b, o in zip(times["baseline"], times["own"], strict=True)]
        found[name] = {"ratio": median(ratios), "range": [min(ratios), max(ratios)], "seconds": times}
        shown = ", ".join(f"{key} {median(values):.3f} s" for key, values in times.items())
        print(f"{name}: {median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}); {shown}", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps({"threads": torch.get_num_threads(), "figures": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
