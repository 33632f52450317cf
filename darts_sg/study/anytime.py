"""Anytime curves: the best error so far against the hours spent."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

Curve = list[tuple[float, float]]
"""(hours, best error so far in percent), one point for each measurement, in order of time."""


def anytime_curve(rows: Sequence[Mapping[str, float]], column: str) -> Curve:
    """The curve of a run's metrics.csv; `column` is an accuracy between 0 and 1, `seconds` the time since the start.

    Rows without a measurement or a time are left out.
    """
    best, curve = math.inf, []
    for row in rows:
        accuracy, seconds = row.get(column, math.nan), row.get("seconds", math.nan)
        if math.isfinite(accuracy) and math.isfinite(seconds):
            best = min(best, 100 * (1 - accuracy))
            curve.append((seconds / 3600, best))
    return curve


def mean_curve(curves: Sequence[Curve]) -> Curve:
    """The mean of several curves, at each time at which one of them changes, from where all have begun.

    It ends where the shortest one ends: later points would average over fewer runs.
    """
    filled = [curve for curve in curves if curve]
    if not filled:
        return []
    start, end = max(curve[0][0] for curve in filled), min(curve[-1][0] for curve in filled)
    times = sorted({hours for curve in filled for hours, _ in curve if start <= hours <= end})
    values = [[curve[_last(curve, hours)][1] for curve in filled] for hours in times]
    return [(hours, float(np.mean(each))) for hours, each in zip(times, values, strict=True)]


def _last(curve: Curve, hours: float) -> int:
    """Index of the last point at or before a time."""
    return int(np.searchsorted([time for time, _ in curve], hours, side="right")) - 1
