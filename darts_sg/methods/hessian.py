"""The dominant eigenvalue of the Hessian of the validation loss in the alphas; its rise announces a collapse.

Zela et al., "Understanding and Robustifying Differentiable Architecture Search", ICLR 2020, section 4: if it grows
during a search, the derived cells generalise badly. Written over flat vectors and a gradient function, so that the same
code serves the supernet and a function whose Hessian is known.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]
Gradient = Callable[[Vector], Vector]
"""Point to gradient, both (size,), computed in float64."""

# A network of ReLUs and max pools is smooth only between its kinks. A finite difference across a kink adds a term that
# is not part of the Hessian as autograd computes it, and hundreds of times as large. A step of 1e-9 rarely meets a
# kink, and in float64 the difference is still exact to about 1e-4.
EPS = 1e-9
TRIES = 3  # if there is a kink: another direction, and a tenth of the step
AGREEMENT = 0.02  # required between forward and backward difference along the eigenvector
TOLERANCE = 0.01  # residual relative to the eigenvalue, whose error is of second order in it
MAX_PRODUCTS = 30
MIN_PRODUCTS = 4


def dominant_eigenvalue(gradient: Gradient, point: Vector, seed: int = 0) -> float:
    """The largest eigenvalue (algebraically, as in RobustDARTS) of the Hessian of a function at `point`.

    Hessian-vector products are forward differences of the gradient, one gradient each, six to fifteen in all. The
    eigenvector is checked with a backward difference, which disagrees if a kink was crossed. Random numbers come from a
    generator of its own. Returns nan if the gradient is not finite or every try met a kink.
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
    """The largest eigenvalue of a symmetric matrix and its eigenvector, from its products with vectors (size,).

    Lanczos' method with full orthogonalisation, from `start`, until the residual is below TOLERANCE or, with a lower
    bound as the result, after MAX_PRODUCTS. Returns nan and zeros if a product is not finite.
    """
    from scipy.linalg import eigh_tridiagonal  # slow to import, and most searches measure no eigenvalue

    basis = [start / np.linalg.norm(start)]
    diagonal: list[float] = []
    beside: list[float] = []
    while True:
        w = product(basis[-1])
        diagonal.append(float(basis[-1] @ w))
        if not np.isfinite(w).all():
            return float("nan"), np.zeros_like(start)
        Q = np.stack(basis)  # (number of products, size)
        for _ in range(2):  # once is not enough where much cancels
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
