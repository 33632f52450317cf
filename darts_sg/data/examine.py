"""Look into every image file of a data set: is it whole, what is it, and is it there twice?"""

import hashlib
import io
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import track

from darts_sg.data.folder import MANY_FILES
from darts_sg.data.stream import UNREADABLE, refuse_bomb, to_rgb
from darts_sg.errors import first_line
from darts_sg.files import read_bytes, why

SIDE = 16
"""Side of the thumbnails that near duplicates are found by, in pixels."""
MOST_BYTES = 2**29
"""Size limit for an image file."""
NEAR = 4.0
"""Root mean square difference of two thumbnails, of 255, from which on images count as different."""
FLAT = 6.0
"""Standard deviation of a thumbnail below which an image has too little in it to be compared."""
MOST_PAIRS = 4 * 10**9
"""Pairs of images that are compared for near duplicates; beyond, only identical files are found."""
CHUNK = 2**24
"""Pairs compared at once."""
AT_ONCE = 256
"""Files that are handed to the threads before the next ones."""
EXIF_ORIENTATION = 0x0112


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """Facts about one image file."""

    width: int = 0
    height: int = 0
    kind: str = ""
    """Format and mode: "JPEG RGB"."""
    rotated: bool = False
    """True if EXIF data turn or mirror the image."""
    damaged: str = ""
    """Why it cannot be read; empty if it can."""
    digest: bytes = b""
    """A hash of the content."""
    thumbnail: bytes = b""
    """16×16 grey values."""


class Twin(NamedTuple):
    """Two images that are the same, or nearly so: their indices."""

    first: int
    second: int


def image_facts(path: Path) -> ImageFacts:
    """Read and decode a file as a whole."""
    try:
        content = read_bytes(path, MOST_BYTES)
        with Image.open(io.BytesIO(content)) as image:
            refuse_bomb(image, path)
            (width, height), kind = image.size, f"{image.format} {image.mode}"
            rotated = image.getexif().get(EXIF_ORIENTATION, 1) not in (0, 1)
            # a JPEG is decoded at 1/8 of its size where that is enough: all of its bytes are read even so
            image.draft(None, (4 * SIDE, 4 * SIDE))
            small = to_rgb(image).convert("L").resize((SIDE, SIDE), Image.Resampling.BOX)
    except UNREADABLE as error:
        return ImageFacts(damaged=why(error) if isinstance(error, OSError) else first_line(error))
    digest = hashlib.blake2b(content, digest_size=16).digest()
    return ImageFacts(width, height, kind, rotated, "", digest, small.tobytes())


def examine(paths: Sequence[Path], threads: int) -> list[ImageFacts]:
    """Facts about each of the files, in their order."""
    found: list[ImageFacts] = []
    starts = range(0, len(paths), AT_ONCE)
    console, hidden = Console(stderr=True), len(paths) < MANY_FILES
    with ThreadPoolExecutor(threads) as pool:  # Pillow decodes without holding Python's lock
        for start in track(starts, "reading images", console=console, transient=True, disable=hidden):
            found += pool.map(image_facts, paths[start : start + AT_ONCE])
    return found


def identical(facts: Sequence[ImageFacts]) -> list[list[int]]:
    """Groups of files with the same content, by their indices."""
    groups: dict[bytes, list[int]] = defaultdict(list)
    for index, one in enumerate(facts):
        if one.digest:
            groups[one.digest].append(index)
    return [group for group in groups.values() if len(group) > 1]


def nearly_identical(first: Sequence[ImageFacts], second: Sequence[ImageFacts]) -> list[Twin] | None:
    """Pairs, one image of each set, that look the same but are not the same file, such as one saved again.

    None if the sets are too large to be compared.
    """
    if len(first) * len(second) > MOST_PAIRS:
        return None
    (a, own), (b, other) = _thumbnails(first), _thumbnails(second)
    pairs = []
    for start, distance in _distances(a, b):
        for i, j in zip(*np.nonzero(distance < NEAR), strict=True):
            twin = Twin(int(own[start + i]), int(other[j]))
            if first[twin.first].digest != second[twin.second].digest:
                pairs.append(twin)
    return pairs


def _thumbnails(facts: Sequence[ImageFacts]) -> tuple[np.ndarray, np.ndarray]:
    """The thumbnails that can be compared, float32 (N, 256), and the indices of their images."""
    indices = np.array([index for index, one in enumerate(facts) if one.thumbnail], np.int64)
    bytes_ = b"".join(one.thumbnail for one in facts)
    pixels = np.frombuffer(bytes_, np.uint8).reshape(-1, SIDE * SIDE).astype(np.float32)
    kept = pixels.std(axis=1) >= FLAT if len(pixels) else np.zeros(0, bool)
    return pixels[kept], indices[kept]


def _distances(a: np.ndarray, b: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Root mean square distances (n, M) of n rows of `a` from all rows of `b`, with the number of the first row."""
    if not len(b):
        return
    rows = max(1, CHUNK // len(b))
    squares = (b**2).sum(axis=1)
    for start in range(0, len(a), rows):
        part = a[start : start + rows]
        distance = (part**2).sum(axis=1)[:, None] + squares - 2 * part @ b.T
        yield start, np.sqrt(distance.clip(min=0) / a.shape[1])
