"""Seeded, class-balanced parts of a labelled set."""

from collections.abc import Sequence

import torch
from torch import Tensor

from darts_sg.errors import UsageError


def balanced_split(labels: Tensor, sizes: Sequence[int], seed: int) -> list[Tensor]:
    """Disjoint random index sets of the given `sizes`, each with the class proportions of `labels`.

    labels: int64 (N,). Classes of equal size get equal shares, up to the one image that does not divide.
    Returns sorted int64 index tensors on the CPU, the same for the same arguments. Raises UsageError when a
    size is negative or the sizes sum to more than N.
    """
    if any(size < 0 for size in sizes):
        raise UsageError(f"a number of images must not be negative: {', '.join(map(str, sizes))}")
    if sum(sizes) > len(labels):
        asked = " + ".join(map(str, sizes))
        raise UsageError(f"{asked} = {sum(sizes)} images are asked for, and there are {len(labels)}: ask for fewer")
    generator = torch.Generator().manual_seed(seed)
    labels = labels.cpu()
    shuffled = torch.randperm(len(labels), generator=generator)
    by_class = [shuffled[labels[shuffled] == label] for label in labels.unique()]
    sets = []
    for size in sizes:
        counts = shares([len(indices) for indices in by_class], size, generator)
        taken = [indices[:count] for indices, count in zip(by_class, counts, strict=True)]
        by_class = [indices[count:] for indices, count in zip(by_class, counts, strict=True)]
        sets.append(torch.cat([*taken, shuffled[:0]]).sort().values)
    return sets


def shares(available: Sequence[int], size: int, generator: torch.Generator) -> list[int]:
    """Split `size` in proportion to `available`, rounding by largest remainder with ties at random."""
    total = sum(available)
    if total == 0:
        return [0] * len(available)
    counts = [size * count // total for count in available]
    tie_break = torch.rand(len(available), generator=generator).tolist()
    ranked = sorted(range(len(available)), key=lambda c: (-(size * available[c] % total), tie_break[c]))
    for index in ranked[: size - sum(counts)]:
        counts[index] += 1
    return counts
