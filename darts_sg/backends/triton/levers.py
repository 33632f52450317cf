"""Changes to how the Triton kernels are launched that no GPU has timed yet; each is off until one has.

DARTS_SG_TRITON=flat,branches switches some of them on, and `benchmarks/gpu.sh --only levers` times them one by one.
They change the last bits of a result, except for `branches`, so that a run records which it has.
"""

import os
from dataclasses import dataclass, fields

from darts_sg.errors import UsageError

VARIABLE = "DARTS_SG_TRITON"


@dataclass(frozen=True)
class Levers:
    """Each lever on or off."""

    flat: bool = False
    """The backward pass of a stage that reads no neighbours takes single pixels instead of runs: fewer registers."""
    tf32x3: bool = False
    """Products of matrices with 32 channels or more, behind a depthwise convolution, on tensor cores: each factor is
    split into TensorFloat-32 parts, which keeps about the precision of float32."""
    bf16: bool = False
    """With --precision bfloat16 products of matrices take both factors in bfloat16, on tensor cores, and add up in
    float32, as PyTorch's autocast does."""
    parts: bool = False
    """Each weight's gradient has as many parts as programs write it: nothing is filled with zeros."""
    branches: bool = False
    """In a captured step the operations of one depth run beside each other on several streams: the same bits."""

    @classmethod
    def named(cls, text: str) -> "Levers":
        """From names separated by commas. Raises UsageError for an unknown one."""
        names = [name.strip() for name in text.split(",") if name.strip()]
        known = [field.name for field in fields(cls)]
        for name in names:
            if name not in known:
                raise UsageError(f"{VARIABLE}: {name!r} is no lever of the Triton kernels; choices: {', '.join(known)}")
        return cls(**dict.fromkeys(names, True))


def chosen() -> str:
    """The levers that the environment switches on, as a run records them; empty for none."""
    levers = Levers.named(os.environ.get(VARIABLE, ""))
    return ",".join(field.name for field in fields(Levers) if getattr(levers, field.name))
