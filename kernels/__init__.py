"""Kernel ops: one function name each, the implementation chosen by the tensor.

The references in :mod:`orthoopt.kernels.reference` (matrix products) and :mod:`orthoopt.kernels.reference_steps`
(elementwise) define what every op computes; :mod:`orthoopt.kernels.steps` chooses among implementations of the latter.
"""

from orthoopt.kernels.reference import axpy_matmul, symm_matmul, symm_poly, symmetric_share, syrk
from orthoopt.kernels.reference_steps import STILL, Moving
from orthoopt.kernels.steps import auon_step, momentum_into, row_norm_step, subtract_updates

__all__ = [
    "STILL",
    "Moving",
    "auon_step",
    "axpy_matmul",
    "momentum_into",
    "row_norm_step",
    "subtract_updates",
    "symm_matmul",
    "symm_poly",
    "symmetric_share",
    "syrk",
]
