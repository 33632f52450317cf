"""What a run records of its epochs, in the words that every layer shares."""

from collections.abc import Mapping

MetricsRow = Mapping[str, float]
"""The figures of one epoch by column: a row of metrics.csv. NaN where a column was not measured in that epoch."""
