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
from darts_sg.cli.main import run
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
    found = read_run(run_dir)
    if found.result is None or found.options.get("task") != "detection":
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
        for suffix in ("png", "svg"):
            report = report.replace(f"pictures/{name}.{suffix}", f"pictures/{name}.jpg")
    # the machine's paths say nothing; pictures and files that are not copied are not linked
    data = str(found.options.get("data") or "data")
    for text, target in ((config.read_text(encoding="utf-8"), "config.yaml"), (report, "report.md")):
        text = re.sub(rf"\S*{re.escape(str(run_dir.name))}\b", f"runs/{run_dir.name}", text)
        (folder / target).write_text(text.replace(data, Path(data).name), encoding="utf-8")
    (folder / "report.md").write_text(
        _linked((folder / "report.md").read_text(encoding="utf-8"), folder), encoding="utf-8"
    )
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(f"{folder}: {size / 1000:.0f} kB" + (f", more than {MOST_BYTES / 1000:.0f}" if size > MOST_BYTES else ""))


def _linked(report: str, folder: Path) -> str:
    """A report without the pictures that were not copied, their captions, and the links to other such files."""
    kept: list[str] = []
    for paragraph in report.split("\n\n"):
        shown = re.match(r"!\[.*\]\((\S+)\)", paragraph)
        if shown is None or (folder / shown[1]).is_file():
            kept.append(paragraph)
        elif kept and kept[-1].endswith(":"):
            kept.pop()  # the caption

    def link(found: re.Match[str]) -> str:
        return found[0] if (folder / found[2]).is_file() else found[1]

    return re.sub(r"\[([^]]+)\]\(([^)]+)\)", link, "\n\n".join(kept))


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
    # the report of the whole paper, which a test compares with what is printed today
    report = TARGET.parent / "sandglass" / "pilot" / "report.md"
    run(["report", "paper", "--results", str(TARGET.parent), "-o", str(report)])


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
