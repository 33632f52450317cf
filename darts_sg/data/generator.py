"""Random choices that depend on what they are for, and on nothing else."""

import hashlib

import numpy as np
import torch


def keyed_seed(seed: int, stream: str, purpose: str, number: int) -> int:
    """A seed that depends on the four arguments alone, in every process."""
    key = hashlib.sha256(f"{seed}/{stream}/{purpose}/{number}".encode()).digest()
    return int.from_bytes(key[:8], "big") >> 1


def keyed_generator(seed: int, stream: str, purpose: str, number: int) -> torch.Generator:
    """A CPU generator whose state depends on the four arguments alone, in every process."""
    return torch.Generator().manual_seed(keyed_seed(seed, stream, purpose, number))


def keyed_numpy(seed: int, stream: str, purpose: str, number: int) -> np.random.Generator:
    """The same for NumPy, which has distributions that PyTorch draws from its global generator only."""
    return np.random.default_rng(keyed_seed(seed, stream, purpose, number))
