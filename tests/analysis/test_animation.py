"""search.gif: a frame for each epoch, the last held longer, what belongs to the epoch in it and no other change."""

import io
import itertools
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from darts_sg.analysis import animation
from darts_sg.analysis.animation import EPOCH_MS, LAST_MS, search_animation
from darts_sg.analysis.run_folder import read_run, read_search_epochs
from tests.analysis.fakes import varied_search


def frames_of(folder: Path) -> tuple[list[np.ndarray], list[int], int]:
    """Frames (height, width, 3), how long each is shown in ms, and the size of the file."""
    content = search_animation(read_run(folder), read_search_epochs(folder))
    picture = Image.open(io.BytesIO(content))
    frames, durations = [], []
    for i in range(picture.n_frames):
        picture.seek(i)
        durations.append(picture.info["duration"])
        frames.append(np.array(picture.convert("RGB")))
    assert picture.info["loop"] == 0
    return frames, durations, len(content)


@pytest.mark.parametrize("edge_weights", [False, True])
def test_a_frame_for_each_epoch(edge_weights: bool, tmp_path: Path) -> None:
    folder = varied_search(tmp_path / "run", epochs=4, edge_weights=edge_weights)
    frames, durations, size = frames_of(folder)
    assert durations == [EPOCH_MS] * 3 + [LAST_MS]
    assert size < 50_000 * len(frames)
    height, width, _ = frames[0].shape
    assert 500 < height < 1200
    assert 800 < width < 1400
    for before, after in itertools.pairwise(frames):
        changed = (before != after).any(axis=2)
        assert changed[:60, :150].any()  # the epoch's number
        rows = changed[70 : height - 180]
        assert rows[:, : width // 2].any()  # cells
        assert rows[:, -100:].mean() > 0.3  # shades of the heat maps: more than the dots on them
        assert changed.mean() < 0.2
    np.testing.assert_array_equal(frames[0][0, 0], 255)


def test_an_epoch_looks_the_same_whatever_stands_around_it(tmp_path: Path) -> None:
    """The epoch that is twice the same differs in its number and the mark on the curves only."""
    folder = varied_search(tmp_path / "run", epochs=3)
    for name in ("alphas/epoch_{}.npz", "genotypes/epoch_{}.yaml"):
        (folder / name.format("0002")).write_bytes((folder / name.format("0001")).read_bytes())
    (first, second, third), _, _ = frames_of(folder)
    cells = slice(70, len(first) - 180)
    np.testing.assert_array_equal(first[cells], second[cells])
    assert (second[cells] != third[cells]).any()


def test_a_single_epoch_and_no_metrics(tmp_path: Path) -> None:
    folder = varied_search(tmp_path / "run", epochs=1)  # its metrics.csv has a header only
    frames, durations, _ = frames_of(folder)
    assert len(frames) == 1
    assert durations == [LAST_MS]


def test_long_searches_skip_epochs_but_not_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(animation, "MAX_FRAMES", 3)
    folder = varied_search(tmp_path / "run", epochs=7, nodes=1)
    frames, durations, _ = frames_of(folder)
    assert len(frames) == 3  # epochs 1, 4 and 7
    assert durations[-1] == LAST_MS
    monkeypatch.setattr(animation, "MAX_FRAMES", 100)
    whole, _, _ = frames_of(folder)
    np.testing.assert_array_equal(frames[-1], whole[-1])
