"""Texts of the columns of metrics.csv, in the line of an epoch and in tables."""

import math

import pytest

from darts_sg.tasks import columns
from darts_sg.tasks.columns import FORMATS, cell, summary

ROW = {
    "epoch": 3.0, "learning_rate": 0.025, "drop_path_prob": 0.1, "expected_params": 2456789.5,
    "penalty_params": 0.12345,
    "train_loss": 1.23456, "train_accuracy": 0.51234, "validation_loss": math.nan, "ema_test_top5_accuracy": 0.9,
    "skips_normal": 2.0, "entropy_normal": 1.23456, "eigenvalue": 0.123456, "images_per_second": 1234.56,
    "seconds": 3723.4,
}  # fmt: skip


def test_the_line_of_an_epoch_leaves_out_what_was_not_measured_and_what_has_no_text() -> None:
    assert summary(ROW) == (
        "train loss 1.2346, train accuracy 51.23%, ema test top5 accuracy 90.00%, skips normal 2, eigenvalue 0.1235, "
        "1234.6 images/s, 1:02:03"
    )


def test_cells_of_a_table() -> None:
    shown = {name: cell(name, value) for name, value in ROW.items() if name not in ("epoch", "seconds")}
    assert shown == {
        "learning_rate": "0.025", "drop_path_prob": "0.1", "expected_params": "2,456,790", "penalty_params": "0.1235",
        "train_loss": "1.235", "train_accuracy": "51.23%", "validation_loss": "–", "ema_test_top5_accuracy": "90.00%",
        "skips_normal": "2", "entropy_normal": "1.235", "eigenvalue": "0.1235", "images_per_second": "1,235",
    }  # fmt: skip
    assert cell("train_loss", None) == cell("train_loss", math.inf) == "–"


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_takes_any_number(name: str) -> None:
    for value in (-1.5, 0.0, 1e9):
        assert FORMATS[name].in_cell(value)
        assert FORMATS[name].in_line(name, abs(value)) or not FORMATS[name].line


def test_the_longest_name_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    special = columns.ColumnFormat("{name}!")
    monkeypatch.setitem(FORMATS._entries, "box_loss", special)
    assert columns.format_of("train_box_loss") is special
    assert columns.format_of("train_loss") is FORMATS["loss"]
    assert columns.format_of("closed") is columns.OTHER
