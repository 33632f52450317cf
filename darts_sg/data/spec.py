"""A data set: its description, and its images in memory or in files."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from darts_sg.data.stream import ImageFiles, Reading, UnusualImages
from darts_sg.errors import UsageError


@dataclass(frozen=True)
class DataSpec:
    """Properties of a data set that networks and the augmentation depend on."""

    name: str
    num_classes: int
    image_size: int
    """Side of the square images, in pixels."""
    in_channels: int
    mean: tuple[float, ...]
    """Per channel, for pixels scaled to 0..1, over the training images."""
    std: tuple[float, ...]
    """Standard deviation, likewise."""
    class_names: tuple[str, ...]
    flip: bool = True
    """Whether a horizontal flip keeps the label."""
    top5: bool = False
    """Whether results are reported as top-1 and top-5."""

    def __post_init__(self) -> None:
        if len(self.mean) != self.in_channels or len(self.std) != self.in_channels:
            raise ValueError(f"{self.name}: mean and std must have {self.in_channels} entries")
        if len(self.class_names) != self.num_classes:
            raise ValueError(f"{self.name}: {len(self.class_names)} class names, {self.num_classes} classes")


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images and their labels, on one device."""

    images: Tensor
    """uint8 (N, H, W, C)."""
    labels: Tensor
    """int64 (N,)."""
    num_damaged = 0
    """None, or they would not be in memory."""

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.ndim != 4:
            raise ValueError(f"images must be uint8 (N, H, W, C), got {self.images.dtype} {self.images.shape}")
        if self.labels.dtype != torch.int64 or self.labels.shape != self.images.shape[:1]:
            raise ValueError(f"labels must be int64 (N,), got {self.labels.dtype} {self.labels.shape}")

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str) -> "ImageSet":
        """The same images on `device`."""
        return ImageSet(self.images.to(device), self.labels.to(device))

    def select(self, indices: Tensor) -> "ImageSet":
        """The images with these indices (int64 (M,)), in this order, as a copy on the same device."""
        indices = indices.to(self.labels.device)
        return ImageSet(self.images[indices], self.labels[indices])

    def parts(self, batch_size: int, rank: int = 0, num_ranks: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
        """Every image once, in order: uint8 (B, H, W, C) and labels (B,). The ranks take turns."""
        parts = zip(self.images.split(batch_size), self.labels.split(batch_size), strict=True)
        return islice(parts, rank, None, num_ranks)

    def update(self, digest: Any) -> None:
        """Add shapes, pixels and labels to a hash."""
        for tensor in (self.images, self.labels):
            digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
            digest.update(tensor.cpu().contiguous().numpy().data)


Images = ImageSet | ImageFiles


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set with its training and test parts."""

    spec: DataSpec
    train: Images
    test: Images
    remark: str = ""
    """A remark that goes with every result measured on it, such as that files differ from the published ones."""

    def fingerprint(self) -> str:
        """16 hex digits of a SHA-256 over both parts: pixels and labels; for images in files their names and labels."""
        digest = hashlib.sha256()
        for part in (self.train, self.test):
            part.update(digest)
        return digest.hexdigest()[:16]

    @property
    def unusual(self) -> UnusualImages:
        """The images found so far that are damaged or no RGB JPEG. Empty for a set in memory."""
        return self.train.unusual if isinstance(self.train, ImageFiles) else UnusualImages()

    def read_by(self, reading: Reading) -> "Dataset":
        """The same data set with `reading` for images in files; no change for images in memory."""
        train, test = (replace(p, reading=reading) if isinstance(p, ImageFiles) else p for p in (self.train, self.test))
        return replace(self, train=train, test=test)


class Loader(Protocol):
    """The function that loads a data set."""

    def __call__(self, directory: Path, *, image_size: int | None, seed: int, download: bool) -> Dataset:
        """Load from `directory`; the options are those of `load_dataset`. `split_seed` is optional, see there."""
        ...


def refuse_other_size(name: str, image_size: int | None, native: int) -> None:
    """UsageError if `image_size` is not the `native` size of a data set with one size only."""
    if image_size not in (None, native):
        raise UsageError(f"{name} has images of {native}×{native} pixels: leave the image size out, not {image_size}")
