"""A detector learns a few images by heart: if it cannot, matching, loss, decoding or measures are wrong.

    python benchmarks/overfit_detector.py --data VOCdevkit --model mobilenext_1.0

Trains on the first images of a data set in the layout of Pascal VOC without augmentation, tests on the same images, and
exits with 1 if the mAP (VOC07) stays at 0.9 or below. About 20 minutes on two CPU cores at 160 pixels.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

from darts_sg import retrain
from darts_sg.data import load_dataset
from darts_sg.data.detection.objects import DetectionImages

WANTED = 90.0  # percent


def few_images(data: Path, count: int, folder: Path) -> None:
    """A data set in the layout of VOC whose training and test part are the same few images."""
    train = load_dataset("voc", data).train
    assert isinstance(train, DetectionImages)
    first = Path(os.fsdecode(train.root)) / train.name(0)
    original = first.parent.parent  # the folder with JPEGImages and Annotations
    names = [Path(train.name(index)).stem for index in range(min(count, len(train)))]
    lists = folder / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    for part, prefix in (("trainval", ""), ("test", "again_")):  # the same name in both parts would be refused
        (lists / f"{part}.txt").write_text("".join(f"{prefix}{name}\n" for name in names))
        for kind in ("JPEGImages", "Annotations"):
            (folder / kind).mkdir(exist_ok=True)
            for name in names:
                source = next((original / kind).glob(f"{name}.*")).resolve()
                (folder / kind / f"{prefix}{name}{source.suffix}").symlink_to(source)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder in the layout of Pascal VOC")
    parser.add_argument("--model", default="mobilenext_1.0")
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--image-size", type=int, default=160)
    parser.add_argument("--epochs", type=int, default=300, help="of two steps each")
    parser.add_argument("--run-dir", type=Path, help="where to keep the run (default: nowhere)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        few_images(arguments.data, arguments.images, Path(folder) / "VOC2007")
        result = retrain(
            recipe="voc-small", model=arguments.model, data=folder, image_size=arguments.image_size,
            epochs=arguments.epochs, batch_size=max(2, arguments.images // 2), learning_rate=0.02, warmup_epochs=5,
            weight_decay=0.0, box_augment="none", workers=0, run_dir=arguments.run_dir or Path(folder) / "run",
        )  # fmt: skip
        assert result is not None
        found = result.result["test_map_voc07_last"]
    print(f"mAP (VOC07) on the {arguments.images} training images: {found:.2f}%, wanted more than {WANTED}%")
    sys.exit(0 if found > WANTED else 1)


if __name__ == "__main__":
    main()
