"""Adds a finished training of a detector to results/detection, and rewrites the tables there.

    python benchmarks/detection_results.py runs/bccd_mobilenext_1.0_s0 …
    python benchmarks/detection_results.py                             # rewrites the tables alone

Copies what is small: options, figures, report, and the pictures as JPEG files of at most 900 pixels a side. Weights,
predictions and checkpoints stay where they are. The tables are the section `Detectors` of `report paper`.
"""

import argparse
import re
import shutil
from pathlib import Path

from PIL import Image

from darts_sg.analysis.run_folder import read_run
from darts_sg.errors import UsageError
from darts_sg.study.detectors import detectors_section
from darts_sg.study.protocol import load_protocol
from darts_sg.study.read import read_experiment

TARGET = Path(__file__).parent.parent / "results" / "detection"
FILES = ("config.yaml", "metrics.csv", "result.json")
PICTURES = ("training_batch", "predictions_random", "precision_recall", "confusion", "curves")
MOST_BYTES, SIDE = 300_000, 900
START, END = "<!-- tables: written by benchmarks/detection_results.py -->", "<!-- end of the tables -->"


def add(run_dir: Path) -> None:
    """Copy the small files of a finished run. Raises UsageError for another kind of run."""
    run = read_run(run_dir)
    if run.result is None or run.options.get("task") != "detection":
        raise UsageError(f"{run_dir} is no finished training of a detector")
    folder = TARGET / run_dir.resolve().name
    if folder.exists():
        raise UsageError(f"{folder} exists")
    (folder / "pictures").mkdir(parents=True)
    for name in FILES:
        shutil.copy(run_dir / name, folder / name)
    config, report = run_dir / "config.yaml", (run_dir / "report.md").read_text(encoding="utf-8")
    for name in PICTURES:
        with Image.open(run_dir / "pictures" / f"{name}.png") as picture:
            picture.thumbnail((SIDE, SIDE))
            picture.convert("RGB").save(folder / "pictures" / f"{name}.jpg", quality=70, optimize=True)
        report = report.replace(f"pictures/{name}.png", f"pictures/{name}.jpg")
    # paths of the machine say nothing; pictures and files that are not copied are not linked
    data = str(run.options.get("data") or "data")
    for text, target in ((config.read_text(encoding="utf-8"), "config.yaml"), (report, "report.md")):
        text = re.sub(rf"\S*{re.escape(str(run_dir.name))}\b", f"runs/{run_dir.name}", text)
        (folder / target).write_text(text.replace(data, Path(data).name), encoding="utf-8")
    written = (folder / "report.md").read_text(encoding="utf-8")
    kept = [line for line in written.split("\n\n") if not _lost(line, folder)]
    unlinked = re.sub(r"\[([^]]+)\]\((?!pictures|config)[^)]+\)", r"\1", "\n\n".join(kept))
    (folder / "report.md").write_text(unlinked, encoding="utf-8")
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(f"{folder}: {size / 1000:.0f} kB" + (f", more than {MOST_BYTES / 1000:.0f}" if size > MOST_BYTES else ""))


def _lost(paragraph: str, folder: Path) -> bool:
    """Whether a paragraph shows a picture that was not copied."""
    shown = re.match(r"!\[.*\]\((\S+)\)", paragraph)
    return shown is not None and not (folder / shown[1]).is_file()


def rewrite() -> None:
    """Write the tables into README.md, from all run folders beside it."""
    protocol = load_protocol("sandglass")
    assert protocol.detectors is not None
    found = read_experiment(TARGET, protocol)
    tables = "\n\n".join([START, *detectors_section(found.detectors, protocol.detectors), END])
    path = TARGET / "README.md"
    before, _, rest = path.read_text(encoding="utf-8").partition(START)
    path.write_text(before + tables + rest.partition(END)[2], encoding="utf-8")
    print(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dir", nargs="*", type=Path, help="finished runs to add")
    try:
        for run_dir in parser.parse_args().run_dir:
            add(run_dir)
        rewrite()
    except UsageError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
