"""Augmentation and batches of detection images: the boxes stay where the paint is."""

import colorsys
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from darts_sg.data import DetectionImages, Reading, load_dataset
from darts_sg.data.detection import augment as steps
from darts_sg.data.detection.augment import (
    BOX_AUGMENTS,
    FILL,
    NONE,
    SSD,
    BoxAugment,
    Colours,
    View,
    augmented,
    crop,
    draw_colours,
    overlaps,
    recolour,
)
from darts_sg.data.detection.batches import BoxReader, DetectionBatches, detection_evaluation_batches, read_reduced
from darts_sg.registry import unknown_name
from tests.data.detection_fakes import BOXES, COLOURS, SIZE, painted, voc_object, voc_xml, write_voc

STEPS = {
    "none": NONE,
    "expansion": BoxAugment(expansion=1.0),
    "crop": BoxAugment(overlaps=(0.0, 0.3, 0.7)),
    "mirror": BoxAugment(mirror=1.0),
    "all": replace(SSD, photometric=0.0),
}
BOX = np.array([[8, 6, 26, 24]], np.float32)


@pytest.mark.parametrize("name", STEPS)
def test_boxes_follow_the_pixels(name: str) -> None:
    """The red pixels of the augmented image fill exactly the box that comes with it, up to the warp's blur."""
    pixels, size, seen = painted([("red", 8, 6, 26, 24)]), 160, set()
    for seed in range(25):
        picture, kept, shares = augmented(pixels, BOX, STEPS[name], size, np.random.default_rng(seed))
        assert kept.tolist() == [0], "crops keep the centre of an object, here of the only one"
        red = (picture[..., 0] > 180) & (picture[..., 1] < 90) & (picture[..., 2] < 90)
        rows, columns = np.flatnonzero(red.any(axis=1)), np.flatnonzero(red.any(axis=0))
        found = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]) / size
        # half a pixel of the original is up to 7 pixels of a crop of 12×9 warped to 160
        np.testing.assert_allclose(shares[0], found, atol=0.05)
        x1, y1, x2, y2 = (shares[0] * size).astype(int)
        assert red[y1 + 7 : y2 - 7, x1 + 7 : x2 - 7].all()
        seen.add(tuple(shares[0].tolist()))
    assert len(seen) == 1 if name in ("none", "mirror") else len(seen) > 15


@pytest.mark.parametrize(
    "view", [View(0, 0, 40, 30), View(3, 4, 20, 9), View(-30, -11, 160, 120), View(-5, 7, 90, 40), View(50, 40, 9, 9)]
)
def test_a_view_is_that_of_the_whole_canvas(view: View) -> None:
    """Only the part around the image is resampled, and the result is that of resampling everything."""
    pixels = painted([("red", 8, 6, 26, 24)])
    canvas = np.full((300, 300, 3), FILL, np.uint8)
    canvas[100:130, 100:140] = pixels
    left, top = int(view.left) + 100, int(view.top) + 100
    expected = steps.warp(canvas[top : top + int(view.height), left : left + int(view.width)], 48)
    found = steps.render(pixels, view, 48, None)
    assert np.abs(found.astype(int) - expected).max() <= 1


@pytest.mark.parametrize("name", ["none", "expansion", "crop", "mirror", "all"])
def test_a_large_photograph_is_reduced_first(name: str) -> None:
    """The picture of a reduced image is that of the whole image, up to what the filters differ in at edges."""
    large = painted([("red", 8, 6, 26, 24)]).repeat(16, 0).repeat(16, 1)
    factors = set()
    for seed in range(12):
        plan = steps.make_plan(640, 480, 16 * BOX, STEPS[name], np.random.default_rng(seed))
        factor = plan.reduction(24)
        factors.add(factor)
        assert 2 * 24 * factor <= min(plan.view.width, plan.view.height) or factor == 1
        reduced, found = read_reduced(Image.fromarray(large), factor, decoding=False)
        assert found == factor
        whole, few = steps.carry_out(plan, large, 24), steps.carry_out(plan, reduced, 24, factor)
        difference = np.abs(whole.astype(int) - few)
        assert difference.mean() < 3
        assert np.median(difference) <= 1
    assert max(factors) > 3


def test_a_jpeg_is_decoded_at_a_part_of_its_size(tmp_path: Path) -> None:
    large = painted([("red", 8, 6, 26, 24)]).repeat(16, 0).repeat(16, 1)
    Image.fromarray(large).save(tmp_path / "x.jpg", quality=95)
    for factor, expected in ((1, 1), (2, 2), (3, 2), (5, 4), (9, 8), (17, 16)):
        with Image.open(tmp_path / "x.jpg") as image:
            pixels, found = read_reduced(image, factor, decoding=True)
        assert found == expected
        assert pixels.shape == (480 // expected, 640 // expected, 3)


def test_a_mirrored_box_is_the_reflection() -> None:
    picture, _, shares = augmented(painted([]), BOX, STEPS["mirror"], 40, np.random.default_rng(0))
    plain, _, straight = augmented(painted([]), BOX, NONE, 40, np.random.default_rng(0))
    np.testing.assert_allclose(shares[0], [1 - 26 / 40, 6 / 30, 1 - 8 / 40, 24 / 30], atol=1e-6)
    np.testing.assert_allclose(straight[0], [8 / 40, 6 / 30, 26 / 40, 24 / 30], atol=1e-6)
    assert (picture[:, ::-1] == plain).all()


def test_an_expanded_image_lies_in_the_mean_colour() -> None:
    white = np.full((20, 20, 3), 255, np.uint8)
    ratios = []
    for seed in range(40):
        picture, _, shares = augmented(
            white, BOX[:, [0, 1, 0, 1]] + [0, 0, 9, 9], STEPS["expansion"], 64, np.random.default_rng(seed)
        )
        outside = (picture == FILL).all(axis=2).mean()
        inside = (picture == 255).all(axis=2).mean()
        assert outside + inside > 0.75
        ratios.append(9 / 20 / (shares[0, 2] - shares[0, 0]))
    assert min(ratios) < 1.5
    assert max(ratios) > 3.4
    assert all(0.99 < ratio < 4.01 for ratio in ratios)


@pytest.mark.parametrize("overlap", [0.1, 0.5, 0.9])
def test_a_crop_overlaps_its_best_box_enough(overlap: float) -> None:
    boxes = np.array([[2, 2, 30, 28], [32, 5, 38, 12]], np.float32)
    canvas, cropped = View(-10, -20, 80, 60), 0
    for seed in range(20):
        view = crop(canvas, boxes, BoxAugment(overlaps=(overlap,)), np.random.default_rng(seed))
        if view == canvas:
            continue  # no try fits
        cropped += 1
        corners = np.array([[view.left, view.top, view.left + view.width, view.top + view.height]])
        assert overlaps(boxes, corners).max() >= overlap
        assert 0.3 * 80 - 1 <= view.width <= 80
        assert 0.3 * 60 - 1 <= view.height <= 60
        assert 0.45 <= view.height / view.width <= 2.2
        assert view.left >= -10
        assert view.top >= -20
        assert view.left + view.width <= 70
        assert view.top + view.height <= 40
    assert cropped > 8 or overlap == 0.9


def test_overlaps_are_ious() -> None:
    boxes = np.array([[0, 0, 10, 10], [5, 0, 15, 10], [20, 20, 30, 30], [0, 0, 5, 5]], np.float32)
    np.testing.assert_allclose(
        overlaps(boxes, np.array([[0.0, 0, 10, 10], [20, 20, 30, 30]])), [[1, 1 / 3, 0, 0.25], [0, 0, 1, 0]]
    )


def test_objects_whose_centre_is_cut_off_are_left_out() -> None:
    boxes = np.array([[0, 0, 8, 8], [6, 6, 20, 20], [30, 0, 40, 10]], np.float32)
    kept, shares = steps.follow(boxes, View(5, 5, 10, 10), mirrored=False)
    assert kept.tolist() == [1]
    np.testing.assert_allclose(shares, [[0.1, 0.1, 1, 1]])


def test_an_image_without_objects_stays_whole() -> None:
    none = np.empty((0, 4), np.float32)
    picture, kept, shares = augmented(painted([]), none, STEPS["crop"], 40, np.random.default_rng(0))
    assert (picture == steps.warp(painted([]), 40)).all()
    assert kept.shape == (0,)
    assert shares.shape == (0, 4)


def hsv_changed(colour: np.ndarray, colours: Colours) -> np.ndarray:
    """One pixel, with colorsys of the standard library."""
    scaled = (colour.astype(float) + colours.brightness) * (colours.contrast if colours.contrast_first else 1)
    h, s, v = colorsys.rgb_to_hsv(*(scaled / 255))
    changed = 255 * np.array(colorsys.hsv_to_rgb((h + colours.hue / 360) % 1, s * colours.saturation, v))
    if not colours.contrast_first:
        changed *= colours.contrast
    return changed[list(colours.channels)].clip(0, 255)


@pytest.mark.parametrize(
    "colours",
    [
        Colours(0, 1, False, 1, 0, (0, 1, 2)),
        Colours(30, 1.4, True, 1, 0, (2, 0, 1)),
        Colours(20, 0.6, False, 0.5, 0, (0, 1, 2)),
        Colours(0, 1, True, 1, 18, (0, 1, 2)),
        Colours(10, 1.2, False, 0.7, -18, (1, 2, 0)),
    ],
)
def test_colours_change_as_in_hsv(colours: Colours) -> None:
    pixels = np.random.default_rng(0).integers(0, 226, (7, 9, 3), dtype=np.uint8)
    pixels[0, 0], pixels[0, 1] = 50, (200, 200, 10)  # grey, and two equal channels
    found = recolour(pixels, colours)
    expected = np.array([[hsv_changed(pixel, colours) for pixel in row] for row in pixels])
    np.testing.assert_allclose(found, expected, atol=0.51)


def test_each_colour_change_is_drawn_half_of_the_time() -> None:
    drawn = [draw_colours(SSD, np.random.default_rng(seed)) for seed in range(400)]
    assert draw_colours(NONE, np.random.default_rng(0)) is None
    neutral = Colours(0, 1, False, 1, 0, (0, 1, 2))
    for name, low, high in (
        ("brightness", -32, 32),
        ("contrast", 0.5, 1.5),
        ("saturation", 0.5, 1.5),
        ("hue", -18, 18),
    ):
        values = np.array([getattr(one, name) for one in drawn])
        changed = values[values != getattr(neutral, name)]
        assert 0.4 < len(changed) / len(drawn) < 0.6
        assert low <= changed.min() < low + (high - low) / 10
        assert high - (high - low) / 10 < changed.max() <= high
    assert 0.33 < np.mean([one.channels != (0, 1, 2) for one in drawn]) < 0.5, "5 of 6 orders, half of the time"


def test_an_unknown_augmentation_is_answered_with_the_choices() -> None:
    assert [*BOX_AUGMENTS] == ["ssd", "crop", "mirror", "none"]
    assert "choices: ssd, crop, mirror, none" in unknown_name("augmentation", "sdd", [*BOX_AUGMENTS])


# --- batches


@pytest.fixture
def images(tmp_path: Path) -> DetectionImages:
    write_voc(tmp_path, BOXES, {"trainval": [*BOXES], "test": []})
    (tmp_path / "ImageSets" / "Main" / "test.txt").unlink()
    dataset = load_dataset("voc", tmp_path, image_size=64)
    both = [dataset.train, dataset.test]
    assert all(isinstance(part, DetectionImages) for part in both)
    return dataset.train  # type: ignore[return-value]


def test_batches_depend_on_the_position_alone(images: DetectionImages) -> None:
    spec = load_dataset("voc", images.root, image_size=64).spec
    batches = DetectionBatches(images, spec, 3, SSD, seed=5)
    x, targets = batches[3]
    assert x.shape == (3 if len(images) % 3 == 0 else len(batches[3][1]), 3, 64, 64)
    assert x.dtype == torch.float32
    again = DetectionBatches(images, spec, 3, SSD, seed=5)
    later = again[5]
    for found, expected in ((again[3], (x, targets)), (batches[5], later)):
        assert torch.equal(found[0], expected[0])
        for one, other in zip(found[1], expected[1], strict=True):
            assert torch.equal(one.boxes, other.boxes)
            assert one.image == other.image
    assert not torch.equal(DetectionBatches(images, spec, 3, SSD, seed=6)[3][0], x)
    assert not torch.equal(DetectionBatches(images, spec, 3, SSD, seed=5, stream="alphas")[3][0], x)


def test_ranks_share_a_batch(images: DetectionImages) -> None:
    spec = load_dataset("voc", images.root, image_size=64).spec
    whole, targets = DetectionBatches(images, spec, 4)[0]
    shares = [DetectionBatches(images, spec, 4, rank=rank, num_ranks=2)[0] for rank in range(2)]
    assert torch.equal(torch.cat([x for x, _ in shares]), whole)
    assert [one.image for _, part in shares for one in part] == [one.image for one in targets]


def test_a_reader_gives_the_same_in_another_process(images: DetectionImages) -> None:
    """Pickled and read, as in a worker, but without starting one."""
    reader = BoxReader(images, SSD, 1, "weights")
    there = pickle.loads(pickle.dumps(reader))
    for key in ((0, 1), (3, 0)):
        own, other = reader[key], there[key]
        assert torch.equal(own.pixels, other.pixels)
        assert all(np.array_equal(a, b) for a, b in zip(own.target[1], other.target[1], strict=True))


def test_targets_lie_where_the_paint_is(images: DetectionImages) -> None:
    spec = load_dataset("voc", images.root, image_size=64).spec
    checked = 0
    for position in range(6):
        x, targets = DetectionBatches(images, spec, 2, STEPS["all"])[position]
        pixels = x.permute(0, 2, 3, 1) * torch.tensor(spec.std) + torch.tensor(spec.mean)
        for picture, one in zip(pixels, targets, strict=True):
            for (x1, y1, x2, y2), label in zip((64 * one.boxes).tolist(), one.labels.tolist(), strict=True):
                if min(x2 - x1, y2 - y1) < 8:
                    continue
                middle = picture[int((y1 + y2) / 2), int((x1 + x2) / 2)]
                colour = torch.tensor(COLOURS[images.class_names[label]]) / 255
                assert (middle - colour).abs().max() < 0.3
                checked += 1
    assert checked > 5


def test_difficult_objects_are_evaluated_but_not_trained_on(tmp_path: Path) -> None:
    write_voc(tmp_path)
    for stem in "ad":
        objects = voc_object("red", 5, 6, 20, 25, difficult=1) + voc_object("green", 2, 2, 20, 20)
        (tmp_path / "Annotations" / f"{stem}.xml").write_text(voc_xml(objects))
    dataset = load_dataset("voc", tmp_path, image_size=32)
    assert isinstance(dataset.train, DetectionImages)
    assert isinstance(dataset.test, DetectionImages)
    _, targets = DetectionBatches(dataset.train, dataset.spec, 3, NONE)[0]
    assert {one.image: one.labels.tolist() for one in targets}["JPEGImages/a.jpg"] == [0]
    ((x, tested),) = detection_evaluation_batches(dataset.test, dataset.spec, 8)
    assert x.shape == (2, 3, 32, 32)
    assert tested[0].labels.tolist() == [1, 0]
    assert tested[0].difficult.tolist() == [True, False]
    assert (tested[0].width, tested[0].height) == SIZE
    np.testing.assert_allclose(tested[0].boxes[0], [4 / 40, 5 / 30, 19 / 40, 24 / 30])


def test_evaluation_sees_each_image_once_and_ranks_take_turns(images: DetectionImages) -> None:
    spec = load_dataset("voc", images.root, image_size=64).spec
    names = [images.name(index) for index in range(len(images))]
    found = [one.image for _, part in detection_evaluation_batches(images, spec, 2) for one in part]
    assert found == names
    ranks = [
        [one.image for _, part in detection_evaluation_batches(images, spec, 1, rank, 2) for one in part]
        for rank in range(2)
    ]
    assert ranks == [names[0::2], names[1::2]]


def test_a_damaged_image_is_replaced_in_training_and_left_out_of_a_test(tmp_path: Path) -> None:
    write_voc(tmp_path)
    for stem in "bd":
        path = tmp_path / "JPEGImages" / f"{stem}.jpg"
        path.write_bytes(path.read_bytes()[:-200])
    dataset = load_dataset("voc", tmp_path, image_size=32)
    assert isinstance(dataset.train, DetectionImages)
    assert isinstance(dataset.test, DetectionImages)
    _, targets = DetectionBatches(dataset.train, dataset.spec, 3, NONE)[0]
    assert sorted(one.image[-5] for one in targets) == ["a", "c", "c"]
    assert [one.boxes.shape[0] for one in targets if "c.jpg" in one.image] == [0, 0], "with objects of its own"
    ((_, tested),) = detection_evaluation_batches(dataset.test, dataset.spec, 8)
    assert [one.image[-5] for one in tested] == ["e"]
    assert dataset.test.num_damaged == 1
    assert {name: what[:7] for name, what in dataset.unusual.items()} == {
        "JPEGImages/b.jpg": "damaged", "JPEGImages/d.jpg": "damaged"
    }  # fmt: skip
    stopping = dataset.read_by(Reading(0, "stop"))
    with pytest.raises(RuntimeError, match="repair it, or choose --damaged skip"):
        DetectionBatches(stopping.train, stopping.spec, 3)[0]  # type: ignore[arg-type]
