"""Kernel ops: one function name each, the implementation chosen by the tensor.

The references in :mod:`orthoopt.kernels.reference` (matrix products) and :mod:`orthoopt.kernels.reference_steps`
(elementwise) define what every op computes.
"""

from orthoopt.kernels.reference import axpy_matmul, gram, gram_polynomial
from orthoopt.kernels.reference_steps import STILL, Moving, momentum_into, subtract_updates

__all__ = ["STILL", "Moving", "axpy_matmul", "gram", "gram_polynomial", "momentum_into", "subtract_updates"]
