"""Seeded, class-balanced parts of a labelled set, and the files that list them."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from darts_sg.data.stream import ImageFiles
from darts_sg.errors import UsageError, first_line, quoted
from darts_sg.files import read_text, why

SPLIT_FORMAT = "darts_sg split 1"
JSON_BYTES = 6
"""Characters of JSON for a byte of a name at most: \\u00e4."""


def balanced_split(labels: Tensor, sizes: Sequence[int], seed: int) -> list[Tensor]:
    """Disjoint random index sets of the given `sizes`, each with the class proportions of `labels`.

    labels: int64 (N,). Classes of equal size get equal shares, up to one image that remains from the division. Returns
    sorted int64 index tensors on the CPU, the same for the same arguments. Raises UsageError if a size is negative or
    the sizes sum to more than N.
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


def split_text(files: ImageFiles, fractions: Sequence[float], seed: int) -> str:
    """Disjoint class-balanced parts of `files`, as JSON text with one file name a line.

    Raises UsageError if a fraction is not positive, they sum to more than 1, or a part would be empty.
    """
    if not all(0 < fraction <= 1 for fraction in fractions) or sum(fractions) > 1 + 1e-9:
        asked = ", ".join(f"{fraction:g}" for fraction in fractions)
        raise UsageError(f"fractions {asked}: each must be above 0, and their sum at most 1")
    sizes = [round(fraction * len(files)) for fraction in fractions]
    if not all(sizes):
        raise UsageError(f"of {len(files)} images a fraction of {min(fractions):g} is none: ask for more")
    content = {
        "format": SPLIT_FORMAT,
        "seed": seed,
        "fractions": list(fractions),
        "of_images": len(files),
        "parts": [
            [os.fsdecode(name) for name in files.select(indices).names.tolist()]
            for indices in balanced_split(files.labels, sizes, seed)
        ],
    }
    return json.dumps(content, indent=0) + "\n"


def read_split(path: Path, files: ImageFiles) -> list[Tensor]:
    """The parts listed in a file made by `split_text`, as sorted int64 indices into `files`.

    Raises UsageError if it is no such file, lists an image twice, or lists one that is not in `files`.
    """
    most = len(files) * (JSON_BYTES * files.names.itemsize + 16) + 2**24  # each name once, in JSON's longest spelling
    try:
        content = json.loads(read_text(path, most))
    except OSError as error:
        raise UsageError(f"cannot read {path}: {why(error)}") from None
    except (ValueError, RecursionError) as error:
        reason = first_line(error)[:200]
        raise UsageError(f"{path} is no split file ({reason}): write one with python -m darts_sg data subset") from None
    if not _is_split(content):
        raise UsageError(f"{path} is no split file: write one with python -m darts_sg data subset")
    order = np.argsort(files.names)
    parts = []
    for names in content["parts"]:
        wanted = _encoded(names, path)
        found = order[np.searchsorted(files.names, wanted, sorter=order).clip(max=len(files) - 1)]
        missing = np.flatnonzero(files.names[found] != wanted)
        if len(missing):
            raise UsageError(
                f"{path} lists {quoted(names[missing[0]])} and {len(missing) - 1} others that are not among the "
                f"training images of {files.root}: write another with python -m darts_sg data subset"
            )
        parts.append(torch.from_numpy(np.sort(found)))
    if len(torch.cat(parts).unique()) < sum(map(len, parts)):
        raise UsageError(f"{path} lists an image twice: write it anew with python -m darts_sg data subset")
    return parts


def _is_split(content: Any) -> bool:
    """Whether this is a mapping of the known format with non-empty parts, all of them lists of texts."""
    if not isinstance(content, dict) or content.get("format") != SPLIT_FORMAT:
        return False
    parts = content.get("parts")
    if not isinstance(parts, list) or not parts:
        return False
    return all(isinstance(names, list) and names and all(isinstance(n, str) for n in names) for names in parts)


def _encoded(names: list[str], path: Path) -> np.ndarray:
    """Names of files as bytes; UsageError if one cannot be that of a file."""
    try:
        return np.array([os.fsencode(name) for name in names])
    except UnicodeEncodeError:  # half of a surrogate pair
        raise UsageError(f"{path} lists a name that no file can have") from None
