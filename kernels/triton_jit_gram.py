"""The Triton kernel of a whole Gram iteration, one matrix a program. Imports Triton: read only once it is launched."""

# mypy: disable-error-code="no-untyped-def"

import triton
import triton.language as tl


@triton.jit
def iterate(gram, coefficients, first, last, at_m, at_k, OPERAND: tl.constexpr, PRECISION: tl.constexpr):
    """Q with Q X = the steps ``first`` to ``last`` on X, from R = X Xᵀ; R, Z and Q are held in OPERAND."""
    q = tl.where(at_m == at_k, 1.0, 0.0).to(OPERAND)
    zero = tl.zeros_like(gram)
    r = gram.to(OPERAND)
    for step in range(first, last):
        a = tl.load(coefficients + 3 * step)
        b = tl.load(coefficients + 3 * step + 1)
        c = tl.load(coefficients + 3 * step + 2)
        # The scalars stay in float32: aI + Z is never formed, its identity would swallow Z's small entries.
        square = tl.dot(r, r, zero, input_precision=PRECISION)
        z = (b * r.to(tl.float32) + c * square).to(OPERAND)
        q = tl.dot(q, z, a * q.to(tl.float32), input_precision=PRECISION).to(OPERAND)
        if step + 1 < last:
            r = tl.dot(r, z, a * r.to(tl.float32), input_precision=PRECISION).to(OPERAND)
            r = tl.dot(r, z, a * r.to(tl.float32), input_precision=PRECISION).to(OPERAND)
    return q


@triton.jit
def small_gram_kernel(
    x, out, coefficients, kappa,
    size, length, restart, steps,
    x_batch, x_row, x_col, out_batch, out_row, out_col,
    AOL: tl.constexpr, RESTART: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
    SIDE: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Normalize, iterate in Gram form and multiply out; ``(size, length)`` with size <= SIDE.

    X is read in chunks of CHUNK columns: for its Gram matrix, where RESTART is set once more for that of the step
    ``restart``, and for the result. R and Q never leave the chip.
    """
    batch = tl.program_id(0).to(tl.int64)
    x += batch * x_batch
    out += batch * out_batch
    at_m = tl.arange(0, SIDE)[:, None]
    at_n = tl.arange(0, CHUNK)[None, :]
    at_k = tl.arange(0, SIDE)[None, :]
    x_step = tl.cast(x_col, tl.int64) * CHUNK
    xs = x + (at_m * x_row + at_n * x_col)
    # R is kept of X over the largest magnitude seen so far, so that no square leaves float32.
    peak = 0.0
    gram = tl.zeros((SIDE, SIDE), tl.float32)
    for start in range(0, length, CHUNK):
        chunk = tl.load(xs, mask=(at_m < size) & (at_n < length - start), other=0.0).to(tl.float32)
        larger = tl.maximum(peak, tl.max(tl.max(tl.abs(chunk), 1), 0))
        divisor = tl.where(larger == 0, 1.0, larger)
        shrink = peak / divisor
        scaled = (chunk / divisor).to(OPERAND)
        gram = tl.dot(scaled, tl.trans(scaled), gram * (shrink * shrink), input_precision=PRECISION)
        peak = larger
        xs += x_step
    peak = tl.where(peak == 0, 1.0, peak)

    # The trace is the squared norm. Not-a-number there reaches every entry, as where a norm is taken first.
    squared = tl.sum(tl.where(at_m == at_k, gram, 0.0))
    inverse = 1.0 / (tl.sqrt(tl.where(squared == 0, 1.0, squared)) * kappa)
    gram = gram * inverse * inverse
    factor = tl.zeros((SIDE,), tl.float32) + inverse
    if AOL:
        sums = tl.sum(tl.abs(gram), 1)
        rows = 1.0 / tl.sqrt(tl.where(sums > 0, sums, 1.0))
        # Summed along the other side too, for the same numbers in the other layout.
        sums = tl.sum(tl.abs(gram), 0)
        gram = gram * rows[:, None] * (1.0 / tl.sqrt(tl.where(sums > 0, sums, 1.0)))[None, :]
        factor = factor * rows

    zero = tl.zeros((SIDE, CHUNK), tl.float32)
    q = iterate(gram, coefficients, 0, restart, at_m, at_k, OPERAND, PRECISION)
    before = q
    if RESTART:
        gram = tl.zeros((SIDE, SIDE), tl.float32)
        xs = x + (at_m * x_row + at_n * x_col)
        for start in range(0, length, CHUNK):
            chunk = tl.load(xs, mask=(at_m < size) & (at_n < length - start), other=0.0).to(tl.float32)
            scaled = (chunk / peak * factor[:, None]).to(OPERAND)
            scaled = tl.dot(before, scaled, zero, input_precision=PRECISION).to(OPERAND)
            gram = tl.dot(scaled, tl.trans(scaled), gram, input_precision=PRECISION)
            xs += x_step
        q = iterate(gram, coefficients, restart, steps, at_m, at_k, OPERAND, PRECISION)

    xs = x + (at_m * x_row + at_n * x_col)
    outs = out + (at_m * out_row + at_n * out_col)
    out_step = tl.cast(out_col, tl.int64) * CHUNK
    for start in range(0, length, CHUNK):
        inside = (at_m < size) & (at_n < length - start)
        chunk = tl.load(xs, mask=inside, other=0.0).to(tl.float32)
        scaled = (chunk / peak * factor[:, None]).to(OPERAND)
        if RESTART:
            scaled = tl.dot(before, scaled, zero, input_precision=PRECISION).to(OPERAND)
        update = tl.dot(q, scaled, zero, input_precision=PRECISION)
        tl.store(outs, update.to(out.dtype.element_ty), mask=inside)
        xs += x_step
        outs += out_step
