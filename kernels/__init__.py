"""Kernel ops: one function name each, the implementation chosen by the tensor.

The reference in :mod:`orthoopt.kernels.reference` defines what every op computes.
"""

from orthoopt.kernels.reference import axpy_matmul, gram, gram_polynomial

__all__ = ["axpy_matmul", "gram", "gram_polynomial"]
