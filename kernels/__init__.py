"""Kernel ops: one function name each, the implementation chosen by the tensor.

The references in :mod:`orthoopt.kernels.reference` (matrix products) and :mod:`orthoopt.kernels.reference_steps`
(elementwise) define what every op computes; :mod:`orthoopt.kernels.products` and :mod:`orthoopt.kernels.steps` choose.
"""

from orthoopt.kernels.native_products import is_on as symmetric_products_are_compiled
from orthoopt.kernels.products import adds_in_passing, axpy_matmul, symm_matmul, symm_poly, symmetric_share, syrk
from orthoopt.kernels.reference_steps import STILL, Moving
from orthoopt.kernels.steps import (
    all_finite,
    finite_gate,
    momentum_into,
    prepare_auon_step,
    prepare_row_norm_step,
    subtract_updates,
)

__all__ = [
    "STILL",
    "Moving",
    "adds_in_passing",
    "all_finite",
    "axpy_matmul",
    "finite_gate",
    "momentum_into",
    "prepare_auon_step",
    "prepare_row_norm_step",
    "subtract_updates",
    "symm_matmul",
    "symm_poly",
    "symmetric_products_are_compiled",
    "symmetric_share",
    "syrk",
]
