"""The dominant eigenvalue of the Hessian of the validation loss in the alphas, by which a collapse announces itself.

Zela et al., "Understanding and Robustifying Differentiable Architecture Search", ICLR 2020, section 4: where it grows
along a search, the derived cells generalise badly. Written over flat vectors and a gradient, so that the same code
serves the supernet and a function with a known Hessian.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh_tridiagonal

Vector = NDArray[np.float64]
Gradient = Callable[[Vector], Vector]
"""Point to gradient, both (size,), computed in float64."""

# A network of ReLUs and max pools is smooth between kinks only, and a finite difference must not reach over one: what
# it then adds is no part of the Hessian that autograd computes, and hundreds of times as large. Between +EPS and -EPS
# there is rarely a kink at all, and in float64 the difference is still exact to about 1e-4.
EPS = 1e-9
TRIES = 3  # with other directions and a tenth of the step each, should there be a kink after all
AGREEMENT = 0.02  # of the differences to either side, in the end
TOLERANCE = 0.01  # of the residual, relative to the eigenvalue, whose own error is of second order in it
MAX_PRODUCTS = 30
MIN_PRODUCTS = 4


def dominant_eigenvalue(gradient: Gradient, point: Vector, seed: int = 0) -> float:
    """The largest eigenvalue (algebraically, as RobustDARTS takes it) of the Hessian of a function at `point`.

    Products with the Hessian are forward differences of the gradient: one gradient a product, six to fifteen in all.
    The eigenvector is tried again with a backward difference, which does not agree if a kink was crossed. Random
    numbers come from a generator of its own. nan if the gradient is not finite, or kinks are everywhere.
    """
    here = gradient(point)
    for attempt in range(TRIES):
        start = np.random.default_rng((seed, attempt)).standard_normal(len(point))
        eps = EPS / 10**attempt

        def product(v: Vector, step: float = eps) -> Vector:
            return (gradient(point + step * v) - here) / step

        value, vector = lanczos(product, start)
        if not np.isfinite(value):
            break
        if abs(vector @ product(vector, -eps) - value) <= AGREEMENT * abs(value):
            return value
    return float("nan")


def lanczos(product: Callable[[Vector], Vector], start: Vector) -> tuple[float, Vector]:
    """Largest eigenvalue and its eigenvector of a symmetric matrix, given its products with vectors (size,).

    Lanczos' method with full orthogonalisation, from `start`, until the residual is below TOLERANCE or after
    MAX_PRODUCTS; what it gives then is a lower bound. nan and zeros if a product is not finite.
    """
    basis = [start / np.linalg.norm(start)]
    diagonal: list[float] = []
    beside: list[float] = []
    while True:
        w = product(basis[-1])
        diagonal.append(float(basis[-1] @ w))
        if not np.isfinite(w).all():
            return float("nan"), np.zeros_like(start)
        Q = np.stack(basis)  # (number of products, size)
        for _ in range(2):  # once does not suffice where much is taken off
            w = w - Q.T @ (Q @ w)
        values, vectors = eigh_tridiagonal(np.array(diagonal), np.array(beside))
        norm = float(np.linalg.norm(w))
        value, weights = float(values[-1]), vectors[:, -1]
        exact = norm <= 1e-12 * np.abs(values).max() or len(basis) == len(start)
        settled = len(basis) >= MIN_PRODUCTS and norm * abs(weights[-1]) <= TOLERANCE * abs(value)
        if exact or settled or len(basis) == MAX_PRODUCTS:
            vector = weights @ Q
            return value, vector / np.linalg.norm(vector)
        beside.append(norm)
        basis.append(w / norm)
