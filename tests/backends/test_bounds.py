"""Triton kernels load and store nothing outside their tensors; and the check for it finds one that does."""

import pytest
import torch

pytest.importorskip("triton", reason="Triton comes with PyTorch for GPUs, and is not installed here")

import triton
import triton.language as tl

from benchmarks.machine_code import triton_kernels_on_any_device
from darts_sg.backends.triton import run as gpu
from tests.backends.bounds import checked_bounds
from tests.backends.test_gpu import batch_of, compare

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="the interpreter is used without a GPU only")


@triton.jit
def copy(x, y, n, SIZE: tl.constexpr, AHEAD: tl.constexpr):
    """y[i] = x[i + AHEAD] for i < n."""
    i = tl.arange(0, SIZE)
    tl.store(y + i, tl.load(x + i + AHEAD, mask=i < n, other=0.0), mask=i < n)


def test_one_element_too_far_is_found() -> None:
    whole, y = torch.arange(8.0), torch.empty(6)
    with checked_bounds() as found:
        copy[(1,)](whole[1:7], y, 6, 8, 0)
        assert y.tolist() == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
        assert (found.launches, found.addresses) == (1, 12)
        for n, ahead, message in (
            (6, 1, "copy loads 1 of 6"),
            (6, -1, "copy loads 1 of 6"),
            (7, 0, "copy loads 1 of 7"),
        ):
            with pytest.raises(Exception, match=f"{message} elements outside its tensors"):
                copy[(1,)](whole[1:7], y, n, 8, ahead)
        with pytest.raises(Exception, match="copy stores 1 of 7 elements outside its tensors"):
            copy[(1,)](whole, y, 7, 8, 0)
        assert torch.empty(3).isnan().all()


def test_kernels_stay_within_their_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Odd sizes, several programs, channels that no power of two holds. `make sanitize` checks all of test_gpu.py."""
    for name, value in {"TILE": 256, "LONGEST": 2, "PROGRAMS": 2}.items():
        monkeypatch.setattr(gpu, name, value)
    names = ["dil_conv_3x3", "sandglass_3x3", "max_pool_3x3", "skip_connect"]
    with triton_kernels_on_any_device(), checked_bounds() as found:
        compare(batch_of(names, 1, 1, 3, 2), 3, 3, images=1, onto=True)
    assert found.launches > 10
    assert found.addresses > 1000
