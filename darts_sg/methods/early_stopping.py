"""Early stopping: when a search ends before its last epoch, and which epoch's genotype it then returns.

Pure functions of the rows of metrics.csv, so that a resumed run stops where an uninterrupted one does. Epochs count
from 1.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

Row = Mapping[str, float]

WINDOW = 5  # epochs over which eigenvalues are averaged
BACK = 5  # k, epochs between the two averages, and to go back
EARLIEST = 11  # first epoch whose genotype is returned: es_start_epoch 10, from 0, in the authors' code


class EarlyStop(NamedTuple):
    """A search that ends early."""

    after_epoch: int
    """The last epoch that ran."""
    chosen_epoch: int
    """The epoch whose genotype is the result."""
    reason: str


def stop_by_eigenvalue(rows: Sequence[Row], ratio: float, frozen_epochs: int = 0) -> EarlyStop | None:
    """Stop after the last of `rows` if the eigenvalue has grown: mean(i - k) / mean(i) < ratio; returns epoch i - k.

    RobustDARTS (Zela et al., ICLR 2020, section 4.3) with k = 5 and ratio 0.75. mean(i) is over the 5 epochs around i,
    fewer at the start, so that i is 2 epochs ago. Window and earliest epoch to return are those of the authors' code
    (whose defaults are k = 4 and 1 / 1.3). The first `frozen_epochs` have no eigenvalue and are never returned.
    """
    after = int(rows[-1]["epoch"]) if rows else 0
    now = after - WINDOW // 2
    before = now - BACK
    if before < max(EARLIEST, frozen_epochs + 1):
        return None
    values = {int(row["epoch"]): row.get("eigenvalue", math.nan) for row in rows if row["epoch"] > frozen_epochs}

    def mean(epoch: int) -> float:
        around = (values.get(e, math.nan) for e in range(epoch - WINDOW // 2, epoch + WINDOW // 2 + 1))
        finite = [value for value in around if math.isfinite(value)]
        return sum(finite) / len(finite) if finite else math.nan

    old, new = mean(before), mean(now)
    if not (new > 0 and old < ratio * new):
        return None
    reason = (
        f"the dominant eigenvalue rose from {old:.4g} around epoch {before} to {new:.4g} around epoch {now}, "
        f"a ratio of {old / new:.3f}, below {ratio:g}"
    )
    return EarlyStop(after, before, reason)


def stop_by_skips(rows: Sequence[Row], most: int, frozen_epochs: int = 0) -> EarlyStop | None:
    """Stop after the last of `rows` if its normal cell has more than `most` skip connections.

    Returns the last epoch that has at most `most`, after the frozen ones; if there is none, the search goes on.
    """
    if not rows or rows[-1]["skips_normal"] <= most:
        return None
    kept = [row for row in rows if row["skips_normal"] <= most and row["epoch"] > frozen_epochs]
    if not kept:
        return None
    after, chosen, skips = int(rows[-1]["epoch"]), int(kept[-1]["epoch"]), int(rows[-1]["skips_normal"])
    plural = "" if skips == 1 else "s"
    return EarlyStop(after, chosen, f"the normal cell has {skips} skip connection{plural}, more than {most}")


@dataclass(frozen=True)
class EarlyStopping:
    """Both criteria, None for not asked for; the eigenvalue is looked at first."""

    eigenvalue_ratio: float | None = None
    max_skips: int | None = None

    def __call__(self, rows: Sequence[Row], frozen_epochs: int) -> EarlyStop | None:
        """Whether the search ends after the last of `rows`, those of metrics.csv so far."""
        found = None
        if self.eigenvalue_ratio is not None:
            found = stop_by_eigenvalue(rows, self.eigenvalue_ratio, frozen_epochs)
        if self.max_skips is not None:
            found = found or stop_by_skips(rows, self.max_skips, frozen_epochs)
        return found
