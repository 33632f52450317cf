"""The dominant eigenvalue against matrices made with known ones, and against the exact Hessian of the textbook."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from darts_sg.backends import accelerate
from darts_sg.backends.batched import plain_tensors
from darts_sg.backends.cpp import build
from darts_sg.data import Augment, TrainBatches
from darts_sg.engine.distributed import fingerprint
from darts_sg.engine.search import SearchJob
from darts_sg.methods.hessian import EPS, MAX_PRODUCTS, dominant_eigenvalue, lanczos
from tests.engine.test_search_step import search_config, setting
from tests.reference import textbook
from tests.reference.transfer import copy_tensors

SPACE = "sep_conv_3x3+sandglass_3x3+max_pool_3x3+skip_connect"


def matrix(eigenvalues: np.ndarray, seed: int = 0) -> np.ndarray:
    """A symmetric matrix with these eigenvalues, in a random basis."""
    Q, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((len(eigenvalues), len(eigenvalues))))
    return (Q * eigenvalues) @ Q.T


@pytest.mark.parametrize(
    ("eigenvalues", "largest"),
    [
        (np.linspace(-5, 2, 60), 2.0),  # one of larger magnitude is negative
        (np.append(np.full(250, 1e-4), [0.03, 0.3]), 0.3),
        (np.array([-3.0, -1.0, -2.0]), -1.0),
        (np.full(7, 4.0), 4.0),
        (np.array([0.7]), 0.7),
    ],
)
def test_lanczos_finds_the_largest_eigenvalue(eigenvalues: np.ndarray, largest: float) -> None:
    A = matrix(eigenvalues)
    asked = []
    value, vector = lanczos(lambda v: (asked.append(v), A @ v)[1], np.random.default_rng(1).standard_normal(len(A)))
    assert value == pytest.approx(largest, rel=2e-3)
    assert np.linalg.norm(vector) == pytest.approx(1)
    assert np.linalg.norm(A @ vector - value * vector) <= 0.011 * abs(value) or len(asked) == MAX_PRODUCTS
    assert len(asked) <= min(MAX_PRODUCTS, len(A))


def test_of_a_smooth_function_it_is_that_of_the_hessian() -> None:
    A, point = matrix(np.linspace(-1, 0.5, 40) ** 3), np.random.default_rng(2).standard_normal(40)
    exact = np.linalg.eigvalsh(A + np.diag(np.cosh(point)))[-1]
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    assert dominant_eigenvalue(lambda x: A @ x + np.sinh(x), point) == pytest.approx(exact, rel=2e-3)
    assert (np.random.get_state()[1] == state).all()  # noqa: NPY002


def test_a_kink_between_the_points_of_a_difference_is_found_out() -> None:
    A, point, normal = matrix(np.linspace(0, 1, 20)), np.zeros(20), np.zeros(20)
    normal[3] = 1.0
    crossed = []

    def kinked(x: np.ndarray) -> np.ndarray:
        crossed.append(x @ normal > EPS / 20)
        return A @ x + 1e-7 * crossed[-1] * normal

    assert dominant_eigenvalue(kinked, point) == pytest.approx(1.0, rel=0.01)
    assert any(crossed)
    assert math.isnan(dominant_eigenvalue(lambda x: A @ x + np.sign(x), point))
    assert math.isnan(dominant_eigenvalue(lambda x: A @ x * math.nan, point))


def test_of_a_search_it_is_that_of_the_exact_hessian_of_the_textbook() -> None:
    torch.manual_seed(0)
    job = SearchJob(search_config(space=SPACE, kernels="pytorch", alpha_learning_rate=0.05), setting())
    for step in range(4):
        job.step(0, step % job.steps_per_epoch)
    fixed = Augment(crop_padding=0, flip=False)
    x, y = TrainBatches(job.validation_images, job.setting.data.spec, 8, fixed, 0, "eigenvalue")[0]
    old = textbook.Supernet(job.space.operations, channels=4, cells=3, num_classes=3, num_nodes=2).double()
    copy_tensors(old.parameters(), plain_tensors(job.supernet).values())
    shape = job.alphas[0].shape

    def loss(flat: torch.Tensor) -> torch.Tensor:
        mixing = (textbook.softmax_over_operations(part.view(shape)) for part in flat.chunk(2))
        return F.cross_entropy(old(x.double(), *mixing), y)

    point = torch.cat([alpha.detach().flatten() for alpha in job.alphas]).double()
    exact = torch.linalg.eigvalsh(torch.autograd.functional.hessian(loss, point))
    assert exact[-1] > 1e-3
    assert job.eigenvalue() == pytest.approx(exact[-1].item(), rel=1e-3)
    try:
        build.kernels()
    except build.Unavailable as reason:
        pytest.skip(str(reason))
    accelerate(job.supernet, "cpp")
    assert job.eigenvalue() == pytest.approx(exact[-1].item(), rel=1e-3)


def test_measuring_it_changes_nothing_of_the_run() -> None:
    states = []
    for measured in (False, True):
        torch.manual_seed(0)
        options = {"space": "sep_conv_3x3+skip_connect", "partial_channels": 2, "edge_normalization": True}
        job = SearchJob(search_config(**options), setting())
        values = []
        for step in range(4):
            job.step(0, step % job.steps_per_epoch)
            if measured:
                values.append(job.eigenvalue())
        assert all(parameter.grad is None for parameter in job.alphas)
        states.append((fingerprint(job.state_dict()), torch.get_rng_state().tolist(), job.supernet.training))
        assert len(set(values)) == len(values)
        if measured:
            assert job.eigenvalue() == values[-1]
    assert states[0] == states[1]
