"""Kept memory: alone with its user, aligned, bounded, given back, and of no consequence to results."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch
from strategies import matrix

from orthoopt import orthogonalize, workspace
from orthoopt.coefficients import resolve_coefficients
from orthoopt.iteration import CHUNK_BYTES, bytes_needed
from orthoopt.iteration_form import FormName
from orthoopt.kernels import symmetric_products_are_compiled
from orthoopt.newton_schulz import form_of, newton_schulz
from orthoopt.workspace import borrow, elements_needed, kept_bytes, release

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _empty() -> Iterator[None]:
    release()
    yield
    release()


def test_pieces_are_apart_aligned_and_writable() -> None:
    shapes = [(3, 5), (1,), (2, 7, 3)]
    with borrow(shapes, torch.float32, CPU) as pieces:
        for i, piece in enumerate(pieces):
            piece.fill_(i)
            assert piece.is_contiguous() and piece.data_ptr() % 64 == pieces[0].data_ptr() % 64
        assert [piece.shape for piece in pieces] == [torch.Size(shape) for shape in shapes]
        assert all((piece == i).all() for i, piece in enumerate(pieces))


def test_the_largest_block_is_kept_and_used_again() -> None:
    for size, kept in ((1000, 1000), (10, 1000), (2000, 2000)):
        with borrow([(size,)], torch.float32, CPU) as (piece,):
            address = piece.data_ptr()
            assert kept_bytes() == 0  # no one else may have it
        assert 4 * kept <= kept_bytes() < 4 * kept + 64
    with borrow([(2000,)], torch.float32, CPU) as (piece,):
        assert piece.data_ptr() == address
        with borrow([(2000,)], torch.float32, CPU) as (other,):
            assert other.data_ptr() != address
    release()
    assert kept_bytes() == 0


def test_a_block_above_the_cap_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workspace, "CAP_BYTES", 4096)
    with borrow([(1025,)], torch.float32, CPU):
        pass
    assert kept_bytes() == 0
    with pytest.raises(ZeroDivisionError), borrow([(1024,)], torch.float32, CPU):
        raise ZeroDivisionError
    assert kept_bytes() == 4096  # after an error as well


def test_what_is_made_in_inference_mode_can_be_used_outside() -> None:
    x = matrix(80, 200, "gaussian", 0, (2,)).float()
    with torch.inference_mode():
        inside = orthogonalize(x).clone()
    assert torch.equal(orthogonalize(x), inside)


@pytest.mark.parametrize("shape", [(2, 20, 30), (3, 70, 300), (300, 70), (2, 64, 64)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_stood_in_it_does_not_matter_and_results_are_not_in_it(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = matrix(*shape[-2:], "gaussian", 0, shape[:-2]).to(dtype)
    first = orthogonalize(x)
    kept = first.clone()
    for block in workspace._kept.values():
        block.fill_(torch.nan)
    assert kept_bytes() > 0
    assert torch.equal(orthogonalize(x), kept)
    orthogonalize(-3 * x)
    assert torch.equal(first, kept)


def test_two_threads_do_not_disturb_each_other() -> None:
    inputs = [matrix(64, 200, "gaussian", seed, (2,)).float() for seed in range(4)]
    expected = [orthogonalize(x) for x in inputs]
    wrong = []

    def work(index: int) -> None:
        for _ in range(20):
            if not torch.equal(orthogonalize(inputs[index]), expected[index]):
                wrong.append(index)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(inputs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize(("form", "restarts"), [("standard", 0), ("gram", 0), ("gram", 1)])
def test_the_stated_need_is_a_result_and_its_buffers(form: str, restarts: int) -> None:
    rows, cols = 100, 300
    squares = 2 if form == "standard" else 4
    spare = rows * cols if form == "standard" or restarts else 0
    # Compiled products read rows an odd number of cache lines of 16 apart.
    width = 112 if symmetric_products_are_compiled() else rows
    expected = 4 * (3 * rows * cols + 3 * squares * rows * width + 3 * spare)
    # Pieces are rounded up to a cache line.
    assert expected <= bytes_needed(3, cols, rows, form, restarts=restarts) < expected + 64 * 5  # type: ignore[arg-type]  # drawn


def test_the_need_of_a_large_batch_is_that_of_a_chunk() -> None:
    few, many = (bytes_needed(batch, 128, 768, "gram") - 4 * batch * 128 * 768 for batch in (500, 5000))
    assert few == many <= CHUNK_BYTES
    assert elements_needed([(16,), (17,)], torch.float32) == 48


@pytest.mark.parametrize("form", ["standard", "gram"])
@pytest.mark.parametrize("shape", [(3, 70, 100), (5, 64, 300)])
def test_a_call_takes_the_memory_that_it_states(shape: tuple[int, ...], form: FormName) -> None:
    """What is kept afterwards is what its buffers needed."""
    batch, rows, cols = shape
    newton_schulz(torch.randn(shape), 5, "muon", form=form)
    restarts = form_of(rows, cols, resolve_coefficients("muon", 5), torch.float32, torch.device("cpu"), form).restarts
    assert kept_bytes() + 4 * batch * rows * cols == bytes_needed(batch, rows, cols, form, restarts=len(restarts))
