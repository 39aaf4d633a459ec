"""The Newton-Schulz iteration in its two forms, on a batch of matrices.

Standard: X ← (aI + bR + cR²)X with R = X Xᵀ. Gram, with Q = I: Z = bR + cR², Q ← (aI + Z)Q, R ← (aI + Z)R(aI + Z), and
at the end, or before a restart, X ← QX. All are polynomials of one symmetric matrix and commute.

Where ``a`` stands differs by precision. In 16 bits aI is never added: it would round Z away. There ``a`` is the
coefficient of the other operand. On a host aI + Z is formed instead: by the compiled products, which add in passing;
by torch's, where adding to a product costs a pass over memory, from R alone: c(R + hI)² + (a − ch²)I with h = b/2c,
whose only elementwise work is on diagonals.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from orthoopt.coefficients import Table, Triple
from orthoopt.iteration_form import Form, FormName
from orthoopt.kernels import adds_in_passing, axpy_matmul, symm_matmul, symm_poly, symmetric_products_are_compiled, syrk
from orthoopt.start import Start, start, start_on_host
from orthoopt.workspace import borrow, elements_needed

CHUNK_BYTES = 2**26
"""On a CPU, the work buffers of the matrices that are iterated together; one matrix may need more."""

_SQUARES = {"standard": 2, "gram": 4}
_CANCELLATION = 4.0


def iterate(x: Tensor, table: Table, form: Form, dtype: torch.dtype) -> Tensor:
    """The iterated matrices in ``dtype``, in memory of their own; ``x`` is not written.

    Args:
        x: ``(..., rows, cols)``.
        table: the coefficients, one row a step.
        form: see :func:`orthoopt.iteration_form.choose_form`.
        dtype: of the iteration.
    """
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    if may_read_values(x, dtype):
        result = _on_host(x, table, form, dtype)
    else:
        result = _FORMS[form.name](start(x, table, dtype), table.rows, form.restarts, _Room())
    return result.mT if tall else result


def bytes_needed(
    batch: int,
    rows: int,
    cols: int,
    form: FormName,
    dtype: torch.dtype = torch.float32,
    restarts: int = 1,
    device: str = "cpu",
) -> int:
    """The most memory that a call holds beside its input: its result and its work buffers.

    Args:
        batch: matrices in the call.
        rows: of a matrix.
        cols: of a matrix.
        form: of the iteration.
        dtype: of the iteration. Matrices of another one are copied too, on a CPU as many at a time as are iterated
            together.
        restarts: of the Gram form; without any it needs no second buffer for the matrices themselves.
        device: its type. A CPU works on a part of the batch at a time, in buffers that it keeps; accelerators on all of
            it, in new tensors.
    """
    m, n = sorted((rows, cols))
    if device != "cpu":
        return batch * (2 * m * n + _SQUARES[form] * m * m) * dtype.itemsize
    work = _buffers(min(batch, _together(m, n, form, restarts, dtype)), m, n, form, restarts)
    return (batch * m * n + elements_needed(work, dtype)) * dtype.itemsize


def may_read_values(x: Tensor, dtype: torch.dtype) -> bool:
    """Whether the host has the values of ``x``, to be iterated in a dtype in which it is fast."""
    return (
        not torch.compiler.is_compiling()
        and x.device.type == "cpu"
        and type(x) in (Tensor, torch.nn.Parameter)  # fake tensors and those of other libraries have no values
        and dtype in (torch.float32, torch.float64)
        and x.numel() > 0
    )


class _Room:
    """Where results of products go: given buffers, or new tensors where there are none.

    Args:
        squares: buffers shaped like X Xᵀ.
        out: for the last X.
        spare: for others, by turns with ``out``; None where there is one X alone.
    """

    def __init__(
        self, squares: Sequence[Tensor] | None = None, out: Tensor | None = None, spare: Tensor | None = None
    ) -> None:
        self._squares = None if squares is None else list(squares)
        self._long = (out, spare)
        self.on_host = squares is not None

    def take(self) -> Tensor | None:
        """A free square buffer."""
        return None if self._squares is None else self._squares.pop()

    def give(self, square: Tensor) -> None:
        """Say that one is free again."""
        if self._squares is not None:
            self._squares.append(square)

    def long(self, left: int) -> Tensor | None:
        """The buffer of an X after which so many are still to come."""
        return self._long[left % 2]


def _on_host(x: Tensor, table: Table, form: Form, dtype: torch.dtype) -> Tensor:
    """In chunks of the batch whose buffers stay within :data:`CHUNK_BYTES`, every product into one of them."""
    rows, cols = x.shape[-2:]
    flat = x.reshape(-1, rows, cols)
    result = torch.empty_like(flat, dtype=dtype)
    restarts = len(form.restarts)
    size = min(len(flat), _together(rows, cols, form.name, restarts, dtype))
    with borrow(_buffers(size, rows, cols, form.name, restarts), dtype, x.device) as buffers:
        for part, out in zip(flat.split(size), result.split(size), strict=True):
            count = _SQUARES[form.name]
            mine = [buffer[: len(part), ..., :rows] for buffer in buffers[:count]]
            spare = None
            if buffers[count:]:
                # Laid out as the result, so that every step finds its operands the same way.
                flat_spare = buffers[count][: len(part)]
                spare = flat_spare.view_as(out) if out.is_contiguous() else flat_spare.view_as(out.mT).mT
            first = start_on_host(part.to(dtype), table, mine[0])
            _FORMS[form.name](first, table.rows, form.restarts, _Room(mine[1:], out, spare))
    return result.view(x.shape)


def _standard(first: Start, steps: Sequence[Triple], restarts: Sequence[int], room: _Room) -> Tensor:
    x, r, scale = first
    for step, (a, b, c) in enumerate(steps):
        if step:
            r = syrk(x, out=r if room.on_host else None)
        z, rest = _polynomial(r, a, b, c, room)
        x = _times(_as_left(z, room), rest, x, scale, room, len(steps) - step - 1)
        scale = None
        room.give(z)
    return x


def _gram(first: Start, steps: Sequence[Triple], restarts: Sequence[int], room: _Room) -> Tensor:
    x, r, scale = first
    q: Tensor | None = None  # None for the identity
    left = len(restarts)
    for step, (a, b, c) in enumerate(steps):
        z, rest = _polynomial(r, a, b, c, room)
        ends = step + 1 == len(steps) or step + 1 in restarts
        if not ends:
            t = symm_matmul(r, z, c=r, beta=rest, out=room.take())
            room.give(r)
            r = symm_matmul(t, z, c=t, beta=rest, out=room.take())
            room.give(t)
        if q is not None:
            # Not as a symmetric product: rounding makes it large in nearly null rows, and mirroring spreads that. Z on
            # the left meets what is already bounded there.
            moved = axpy_matmul(q, _as_left(z, room), rest, out=room.take())
            room.give(q)
            room.give(z)
            q, rest = moved, 0.0
        elif ends or rest == 0:
            q = z
        else:
            # The only place where aI is added rather than multiplied into a product's epilogue: there is no product.
            q, rest = z.diagonal_scatter(z.diagonal(dim1=-2, dim2=-1) + a, dim1=-2, dim2=-1), 0.0
        if not ends:
            continue
        x = _times(q, rest, x, scale, room, left)
        scale = None
        room.give(q)
        q = None
        left -= 1
        if step + 1 < len(steps):
            r = syrk(x, out=r if room.on_host else None)
    return x


def gram_factor(products: Tensor, steps: Sequence[Triple]) -> Tensor:
    """Q of the Gram form without restarts: Q X is what these steps make of any X with X Xᵀ = ``products``.

    Args:
        products: ``(..., rows, rows)``; not written.
        steps: (a, b, c), one a step.
    """
    one = torch.eye(products.shape[-1], dtype=products.dtype, device=products.device)
    return _gram(Start(one.expand(products.shape).contiguous(), products, None), steps, (), _Room())


def _times(z: Tensor, rest: float, x: Tensor, scale: Tensor | None, room: _Room, left: int) -> Tensor:
    """``(rest·I + Z) diag(scale) X``; Z may be written."""
    if scale is None:
        return axpy_matmul(x, z, rest, out=room.long(left))
    if room.on_host:
        return axpy_matmul(x, z.mul_(scale.mT), rest, out=room.long(left))
    number = scale[..., 0, 0]
    return axpy_matmul(x, z, number * rest if rest else 0.0, alpha=number, out=room.long(left))


_FORMS = {"standard": _standard, "gram": _gram}


def _as_left(z: Tensor, room: _Room) -> Tensor:
    """A symmetric matrix on the left of a product: compiled loops read it by columns, which then lie side by side."""
    return z.mT if room.on_host else z


def _polynomial(r: Tensor, a: float, b: float, c: float, room: _Room) -> tuple[Tensor, float]:
    """Z and the multiple of the identity that is still to be added to it, of aI + bR + cR²."""
    if not room.on_host:
        return symm_poly(r, b, c), a
    if adds_in_passing(r):
        return symm_poly(r, b, c, identity=a, out=room.take()), 0.0
    diagonal = r.diagonal(dim1=-2, dim2=-1)
    if b * b >= 4 * abs(c) * _CANCELLATION * max(abs(a), 1.0):
        z, identity = symm_poly(r, b, c, out=room.take()), a
    else:
        half = b / (2 * c)
        kept = diagonal.clone()
        diagonal.add_(half)
        z, identity = symm_matmul(r, r, alpha=c, out=room.take()), a - c * half * half
        diagonal.copy_(kept)
    z.diagonal(dim1=-2, dim2=-1).add_(identity)
    return z, 0.0


def _buffers(batch: int, rows: int, cols: int, form: FormName, restarts: int) -> list[tuple[int, ...]]:
    """The shapes of the buffers that so many matrices need, the one for X flat."""
    spare = form == "standard" or restarts > 0
    return [(batch, rows, rows + _pad(rows))] * _SQUARES[form] + [(batch, rows * cols)] * spare


def _pad(rows: int) -> int:
    """Makes rows an odd number of cache lines long: a power of two apart, the lines of a column evict each other.

    Torch's products are slower into padded matrices where they are small; the compiled ones read them as they are.
    """
    if rows < (32 if symmetric_products_are_compiled() else 256):
        return 0
    return 16 * (-(-rows // 16) | 1) - rows


def _together(rows: int, cols: int, form: FormName, restarts: int, dtype: torch.dtype) -> int:
    """How many matrices are iterated together."""
    one = sum(math.prod(shape) for shape in _buffers(1, rows, cols, form, restarts)) * dtype.itemsize
    return max(1, CHUNK_BYTES // one)
