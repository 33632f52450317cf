"""Auxiliary skips: a second skip connection on each edge, beside its candidate operations. Each lives in a file of this
package and registers itself."""

from typing import ClassVar

from torch import Tensor

from darts_sg.methods.parts import import_parts
from darts_sg.registry import Registry


class AuxiliarySkip:
    """Base class of the auxiliary skips: a frozen dataclass whose fields are its options.

    An edge computes o(x) = Σ_k w_k · op_k(x) + β · s(x) (DARTS-, Chu et al., ICLR 2021, equation 2): s is the identity,
    or with stride 2 a factorized reduce with trained weights of its own and no affine BatchNorm. The alphas have no
    entry for s, and neither have logs and genotypes; training steps, evaluation and the eigenvalue compute it.
    """

    needed: ClassVar[bool] = True
    """False if edges do not have the operation s at all."""

    def __call__(self, epochs_done: Tensor) -> Tensor | None:
        """The factor β, a scalar on the device; None for no auxiliary skip.

        epochs_done: the share of the epochs of the search that were done when the current one began, from 0 to below 1:
        a scalar tensor on the device, so that a captured CUDA graph sees it change.
        """
        raise NotImplementedError


AUXILIARY_SKIPS: Registry[type[AuxiliarySkip]] = Registry("auxiliary skip")

import_parts(__name__)
