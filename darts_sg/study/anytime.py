"""Anytime curves: the best error so far against the hours spent."""

import math
from collections.abc import Mapping, Sequence

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
