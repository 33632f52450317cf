"""Random choices that depend on what they are for, and on nothing else."""

import hashlib

import torch


def keyed_seed(seed: int, stream: str, purpose: str, number: int) -> int:
    """A seed that depends on the four arguments alone, in every process."""
    key = hashlib.sha256(f"{seed}/{stream}/{purpose}/{number}".encode()).digest()
    return int.from_bytes(key[:8], "big") >> 1


def keyed_generator(seed: int, stream: str, purpose: str, number: int) -> torch.Generator:
    """A CPU generator whose state depends on the four arguments alone, in every process."""
    return torch.Generator().manual_seed(keyed_seed(seed, stream, purpose, number))
