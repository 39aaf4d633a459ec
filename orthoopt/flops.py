"""What a step costs: the operations that it performs, counted while it runs on tensors without memory.

``step_flops`` runs :meth:`OrthoOpt.step` itself on the meta device, where every operation knows its shapes and computes
nothing, and adds up what each one would cost. So a rule needs no formula of its own, and one that changes changes its
count. The meta device counts as an accelerator: the host reads no values, so rules take the way they take there.

==================  ======================================================================================
matrix products     2mnk for (m, k)(k, n); scaling and adding in the same call are free, as in
                    ``torch.utils.flop_counter``
elementwise         1 for each element of the result, whatever the function; a comparison is one too
reductions          1 for each element that is read
sorting             log₂n for each of n elements; a partial selection 1
QR                  4mn² − 4n³/3, m ≥ n: R and the thin Q by Householder's reflections
SVD                 6mn² + 20n³ with thin factors, m ≥ n; 2mn² + 2n³ for singular values alone
eigenvectors        9n³ of a symmetric matrix; 4n³/3 for eigenvalues alone
Cholesky, LU        n³/3 and 2n³/3; 2n³/3 more for the inverse; triangular systems n² for a right-hand side
Fourier transforms  5n·log₂n for n complex numbers, half of that for real ones
views, copies       0
==================  ======================================================================================

The formulas of factorizations are those of Golub and Van Loan, Matrix Computations, chapters 4, 5 and 8.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from orthoopt.optimizer import OrthoOpt


class Flops(NamedTuple):
    """Floating point operations."""

    matmul: int
    """Of matrix products."""
    other: int
    """Of everything else."""

    @property
    def total(self) -> int:
        """Both together."""
        return self.matmul + self.other


class FlopCounter(TorchDispatchMode):
    """Counts operations while it is entered, on tensors of any device; see the module for what each one costs."""

    def __init__(self) -> None:
        super().__init__()
        self.by_operation: Counter[str] = Counter()
        """Operation, as ``aten`` names it -> FLOPs."""
        self.unlisted: set[str] = set()
        """Operations that the table does not have; they count as elementwise."""

    @property
    def flops(self) -> Flops:
        """What has been counted."""
        products = sum(count for name, count in self.by_operation.items() if name in _PRODUCTS)
        return Flops(products, self.by_operation.total() - products)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run one operation and count it."""
        result = func(*args, **(kwargs or {}))
        name = func._schema.name.removeprefix("aten::")
        if not func.is_view and name not in _FREE and not name.startswith("profiler::"):
            rest = func._schema.arguments[len(args) :]
            bound = (*args, *((kwargs or {}).get(argument.name, argument.default_value) for argument in rest))
            self.by_operation[name] += self._cost(func, name, bound, result)
        return result

    def _cost(self, func: Any, name: str, args: tuple[Any, ...], result: Any) -> int:
        if name in _PRODUCTS:
            return _PRODUCTS[name](*args)
        if name in _FACTORIZATIONS:
            return round(_FACTORIZATIONS[name](*args))
        if name.removesuffix("_") in _REDUCTIONS:
            return _elements(args[0])
        if name in _SEARCHES:
            return round(_SEARCHES[name](*args))
        if name.startswith("_foreach_"):
            return _elements(args[0])  # those in place return nothing
        if torch.Tag.pointwise not in func.tags:
            self.unlisted.add(name)
        return _elements(result)


def step_flops(shape: Iterable[int], group: Mapping[str, Any], dtype: torch.dtype = torch.float32) -> Flops:
    """What one step of :class:`OrthoOpt` costs for one parameter; nothing is allocated.

    It is the second step: what is made once, such as state or a cosine basis, is there. A step on many parameters is
    the sum of theirs.

    Args:
        shape: of the parameter.
        group: its param group without ``params``.
        dtype: of parameter and gradient.

    Raises:
        RuntimeError, NotImplementedError: a rule that looks at values, of which there are none; that of torch.
    """
    # Whatever mode the caller is in, an optimizer's step has none.
    with torch.device("meta"), torch.inference_mode(False):
        param = nn.Parameter(torch.empty(tuple(shape), dtype=dtype))
        param.grad = torch.empty_like(param)
        optimizer = OrthoOpt([{**group, "params": [param]}])
        optimizer.step()
        counter = FlopCounter()
        with counter:
            optimizer.step()
    return counter.flops


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


def _elements(value: Any) -> int:
    if isinstance(value, Tensor):
        return value.numel()
    return sum(map(_elements, value)) if isinstance(value, list | tuple) else 0


def _product(a: Tensor, b: Tensor, *_: Any) -> int:
    return 2 * a.numel() * (b.shape[-1] if b.ndim > 1 else 1)


def _added_product(c: Tensor, a: Tensor, b: Tensor, *_: Any) -> int:
    return _product(a, b)


_PRODUCTS: dict[str, Callable[..., int]] = {
    "mm": _product,
    "bmm": _product,
    "mv": _product,
    "addmm": _added_product,
    "addmm_": _added_product,
    "baddbmm": _added_product,
    "baddbmm_": _added_product,
    "addmv": _added_product,
    "_addmm_activation": _added_product,
    "dot": lambda a, b, *_: 2 * a.numel(),
    "vdot": lambda a, b, *_: 2 * a.numel(),
}


def _sides(x: Tensor) -> tuple[int, int, int]:
    """How many matrices, and their longer and shorter side."""
    return x.shape[:-2].numel(), max(x.shape[-2:]), min(x.shape[-2:])


def _qr(x: Tensor, mode: str, *_: Any) -> float:
    batch, m, n = _sides(x)
    factor = 2 * m * n * n - 2 * n**3 / 3
    return batch * (factor if mode == "r" else 2 * factor)


def _svd(x: Tensor, full: bool, vectors: bool, *_: Any) -> float:
    batch, m, n = _sides(x)
    return batch * (6 * m * n * n + 20 * n**3 if vectors else 2 * m * n * n + 2 * n**3)


def _cubed(factor: float) -> Callable[..., float]:
    return lambda x, *_: factor * x.shape[:-2].numel() * x.shape[-1] ** 3


def _triangular(a: Tensor, b: Tensor, *_: Any) -> float:
    """n² for each column of b."""
    return b.numel() * a.shape[-1]


def _transform(x: Tensor, dims: Iterable[int], *_: Any) -> float:
    """Of as many complex numbers as ``x`` has; log₂ of the product of the transformed sizes."""
    return 5 * x.numel() * math.log2(max(2, math.prod(x.shape[dim] for dim in dims)))


def _from_half(x: Tensor, dims: Iterable[int], normalization: int, last: int) -> float:
    dims = list(dims)
    sizes = [x.shape[dim] for dim in dims[:-1]] + [last]
    count = x.numel() // max(1, x.shape[dims[-1]]) * last
    return 2.5 * count * math.log2(max(2, math.prod(sizes)))


_FACTORIZATIONS: dict[str, Callable[..., float]] = {
    "linalg_qr": _qr,
    "_linalg_svd": _svd,
    "_linalg_eigh": lambda x, uplo, vectors, *_: _cubed(9 if vectors else 4 / 3)(x),
    "linalg_cholesky_ex": _cubed(1 / 3),
    "cholesky": _cubed(1 / 3),
    "cholesky_inverse": _cubed(2 / 3),
    "cholesky_solve": lambda b, a, *_: 2 * _triangular(a, b),
    "linalg_solve_triangular": _triangular,
    "triangular_solve": lambda b, a, *_: _triangular(a, b),
    "linalg_lu_factor_ex": _cubed(2 / 3),
    "linalg_inv_ex": _cubed(2),
    "_linalg_solve_ex": lambda a, b, *_: _cubed(2 / 3)(a) + 2 * _triangular(a, b),
    "_fft_c2c": _transform,
    "_fft_r2c": lambda x, dims, *_: _transform(x, dims) / 2,
    "_fft_c2r": _from_half,
}

_REDUCTIONS = _words(
    "sum mean prod amax amin aminmax max min argmax argmin all any norm linalg_vector_norm var std var_mean std_mean "
    "logsumexp count_nonzero cumsum cumprod nansum trace _foreach_norm _foreach_max"
)


def _sorted(x: Tensor, *_: Any) -> float:
    return x.numel() * math.log2(max(2, x.shape[-1] if x.ndim else 1))


_SEARCHES: dict[str, Callable[..., float]] = {
    "sort": _sorted,
    "argsort": _sorted,
    "topk": lambda x, *_: x.numel(),
    "kthvalue": lambda x, *_: x.numel(),
    "searchsorted": lambda edges, values, *_: _elements(values) * math.log2(max(2, edges.shape[-1])),
}

_FREE = _words(
    "_to_copy _unsafe_view _local_scalar_dense arange cat clone complex constant_pad_nd contiguous copy copy_ "
    "diag_embed diagonal_scatter empty empty_like empty_permuted empty_strided expand_copy eye fill fill_ flip full "
    "full_like gather index index_copy index_put index_put_ index_select lift_fresh linspace masked_select new_empty "
    "new_empty_strided new_full new_ones new_zeros ones ones_like promote_types repeat resize_ roll scalar_tensor "
    "scatter scatter_ select_scatter set_ slice_scatter split split_with_sizes split_with_sizes_copy stack tril triu "
    "unbind unfold_copy view_copy zero_ zeros zeros_like _foreach_copy _foreach_copy_ _foreach_zero_"
)
