"""Kernel ops: one function name each, the implementation chosen by the tensor.

The reference in :mod:`orthoopt.kernels.reference` defines what every op computes.
"""

from orthoopt.kernels.reference import axpy_matmul, symm_matmul, symm_poly, symmetric_share, syrk

__all__ = ["axpy_matmul", "symm_matmul", "symm_poly", "symmetric_share", "syrk"]
