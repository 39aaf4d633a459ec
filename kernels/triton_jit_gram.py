"""The Triton kernel of a whole Gram iteration on one matrix a program. Imports Triton: read only once it is launched."""

# mypy: disable-error-code="no-untyped-def, import-untyped"

import triton
import triton.language as tl


@triton.jit
def product(a, b, total, PRECISION: tl.constexpr):
    """``total + a @ b`` with float32 operands."""
    return tl.dot(a, b, total, input_precision=PRECISION)


@triton.jit
def small_gram_kernel(
    x, out, coefficients, kappa,
    size, length, steps,
    x_batch, x_row, x_col, out_batch, out_row, out_col,
    AOL: tl.constexpr, PRECISION: tl.constexpr, SIDE: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Normalize, iterate in Gram form and multiply out; ``(size, length)`` with size <= SIDE.

    X is read twice, in chunks of CHUNK columns, and written once; R and Q never leave the chip.
    """
    batch = tl.program_id(0).to(tl.int64)
    x += batch * x_batch
    out += batch * out_batch
    at_m = tl.arange(0, SIDE)[:, None]
    at_n = tl.arange(0, CHUNK)[None, :]
    xs = x + (at_m * x_row + at_n * x_col)
    x_step = tl.cast(x_col, tl.int64) * CHUNK
    # R is kept of X over the largest magnitude seen so far, so that no square leaves float32.
    peak = 0.0
    gram = tl.zeros((SIDE, SIDE), tl.float32)
    for start in range(0, length, CHUNK):
        chunk = tl.load(xs, mask=(at_m < size) & (at_n < length - start), other=0.0).to(tl.float32)
        larger = tl.maximum(peak, tl.max(tl.max(tl.abs(chunk), 1), 0))
        divisor = tl.where(larger == 0, 1.0, larger)
        shrink = peak / divisor
        chunk = chunk / divisor
        gram = product(chunk, tl.trans(chunk), gram * (shrink * shrink), PRECISION)
        peak = larger
        xs += x_step
    peak = tl.where(peak == 0, 1.0, peak)

    at_k = tl.arange(0, SIDE)[None, :]
    on_diagonal = at_m == at_k
    # The trace is the squared norm; not-a-number there reaches every entry, as it does when a norm is taken first.
    squared = tl.sum(tl.sum(tl.where(on_diagonal, gram, 0.0), 1), 0)
    squared = tl.where(squared == 0, 1.0, squared)
    norm = tl.sqrt(squared) * kappa
    gram = gram / norm / norm
    q = tl.where(on_diagonal, 1.0, 0.0)
    if AOL:
        sums = tl.sum(tl.abs(gram), 1)
        rows = 1.0 / tl.sqrt(tl.where(sums > 0, sums, 1.0))
        # R is symmetric, so what was summed along one side is wanted along the other too.
        sums = tl.sum(tl.abs(gram), 0)
        cols = 1.0 / tl.sqrt(tl.where(sums > 0, sums, 1.0))
        gram = gram * rows[:, None] * cols[None, :]
    for step in range(0, steps):
        a = tl.load(coefficients + 3 * step)
        b = tl.load(coefficients + 3 * step + 1)
        c = tl.load(coefficients + 3 * step + 2)
        z = b * gram + product(c * gram, gram, tl.zeros((SIDE, SIDE), tl.float32), PRECISION)
        q = product(q, z, a * q, PRECISION)
        if step + 1 < steps:
            gram = product(gram, z, a * gram, PRECISION)
            gram = product(z, gram, a * gram, PRECISION)
    if AOL:
        q = q * cols[None, :]
    q = q / norm

    xs = x + (at_m * x_row + at_n * x_col)
    outs = out + (at_m * out_row + at_n * out_col)
    out_step = tl.cast(out_col, tl.int64) * CHUNK
    for start in range(0, length, CHUNK):
        inside = (at_m < size) & (at_n < length - start)
        chunk = tl.load(xs, mask=inside, other=0.0).to(tl.float32) / peak
        update = product(q, chunk, tl.zeros((SIDE, CHUNK), tl.float32), PRECISION)
        tl.store(outs, update.to(out.dtype.element_ty), mask=inside)
        xs += x_step
        outs += out_step
