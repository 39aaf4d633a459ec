"""What a step bench works on: one set of matrices with gradients, and the check of a variant's result on it."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any, NamedTuple

import torch
from torch import Tensor

from orthoopt.bench.definitions import Definition
from orthoopt.bench.shapes import Matrix, ShapeSet
from orthoopt.bench.timing import Stopwatch
from orthoopt.bench.variants import TOLERANCES, Variant

CHECKED_STEPS = 2  # the second has a history: momentum and bias correction show
# Gradients rotate, so that a step does not find them in a cache; a large set does not fit one anyway.
_ROTATED, _ROTATED_BYTES = 3, 2**29
_CHECKED_EACH, _CHECKED_EACH_OF_LARGE, _LARGE = 16, 4, 10**7
COMPILE_SECONDS = 300.0


class Piece(NamedTuple):
    """One matrix of a set: where it lies."""

    name: str
    bank: int
    """The parameter's number."""
    expert: int | None
    rows: slice

    def of(self, banks: list[Tensor]) -> Tensor:
        """The matrix out of a list of tensors shaped as the parameters; shares memory."""
        bank = banks[self.bank]
        return (bank if self.expert is None else bank[self.expert])[self.rows]


class Workload:
    """Parameters shared by all variants, Gaussian gradients, and the matrices that are checked."""

    def __init__(self, shapes: ShapeSet, device: torch.device, seed: int = 0) -> None:
        self.device, self._seed = device, seed
        self._matrices = shapes.matrices
        self._empty = _room(device)
        self.banks = [self._empty(matrix) for matrix in shapes.matrices]
        sets = _ROTATED if 4 * shapes.parameters < _ROTATED_BYTES else CHECKED_STEPS
        self.gradients = [[self._empty(matrix) for matrix in shapes.matrices] for _ in range(sets)]
        for number, tensors in enumerate(self.gradients, start=1):
            _fill(tensors, 1e-3, seed + number)
        self.pieces = [piece for number, matrix in enumerate(shapes.matrices) for piece in _pieces(number, matrix)]
        each = _CHECKED_EACH if shapes.parameters < _LARGE else _CHECKED_EACH_OF_LARGE
        self.checked = _spread(self.pieces, lambda piece: piece.of(self.banks).shape, each)
        self.named = [
            (matrix.name, torch.nn.Parameter(bank)) for matrix, bank in zip(shapes.matrices, self.banks, strict=True)
        ]
        self._apart: list[tuple[str, torch.nn.Parameter]] | None = None
        self._own: list[Tensor] | None = None
        self._wanted: dict[tuple[Definition, int], tuple[Tensor, Tensor]] = {}
        self.reset()

    @property
    def matrices_apart(self) -> list[tuple[str, torch.nn.Parameter]]:
        """The same memory as 2-D parameters, one a matrix."""
        if self._apart is None:
            parts = [(piece.name, torch.nn.Parameter(piece.of(self.banks))) for piece in self.pieces]
            self._apart = self.named if len(parts) == len(self.named) else parts
        return self._apart

    def reset(self) -> None:
        """Put the parameters back where they started."""
        with torch.no_grad():
            _fill(self.banks, 0.02, self._seed)

    def give_gradients(self, number: int, *, apart: bool, own: bool) -> None:
        """Let every parameter's gradient be that of one of the sets, in rotation.

        Args:
            number: of the step.
            apart: to the parameters of :attr:`matrices_apart`.
            own: copies, for an optimizer that writes its gradients.
        """
        banks = self.gradients[number % len(self.gradients)]
        if own:
            self._own = self._own or [self._empty(matrix) for matrix in self._matrices]
            torch._foreach_copy_(self._own, banks)
            banks = self._own
        if apart and self.matrices_apart is not self.named:
            for (_, parameter), piece in zip(self.matrices_apart, self.pieces, strict=True):
                parameter.grad = piece.of(banks)
            return
        for (_, parameter), gradient in zip(self.named, banks, strict=True):
            parameter.grad = gradient

    def wanted(self, definition: Definition) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Of each checked matrix: where it is, where it started, and where it should be, the last two in float64."""
        for index, piece in enumerate(self.checked):
            if (definition, index) not in self._wanted:
                start = self._start(piece).double()
                gradients = [piece.of(self.gradients[number]).double() for number in range(CHECKED_STEPS)]
                self._wanted[definition, index] = start, definition(piece.name, start, gradients)
            yield (piece.of(self.banks), *self._wanted[definition, index])

    def _start(self, piece: Piece) -> Tensor:
        bank = self._empty(self._matrices[piece.bank])
        _fill([bank], 0.02, self._seed, first=piece.bank)
        return Piece(piece.name, 0, piece.expert, piece.rows).of([bank])


def _room(device: torch.device) -> Callable[[Matrix], Tensor]:
    """A function that makes room for a parameter on the device."""
    return lambda matrix: torch.empty(matrix.shape, device=device)


def _fill(tensors: list[Tensor], size: float, seed: int, first: int = 0) -> None:
    """Gaussian entries; each tensor from a stream of its own, so that one can be drawn again by itself."""
    for number, tensor in enumerate(tensors, start=first):
        generator = torch.Generator(tensor.device).manual_seed(1_000_003 * seed + number)
        tensor.normal_(0, size, generator=generator)


def _pieces(number: int, matrix: Matrix) -> Iterator[Piece]:
    for expert in range(max(1, matrix.experts)):
        for part in range(matrix.fused):
            rows = slice(part * matrix.rows, (part + 1) * matrix.rows)
            name = matrix.name if matrix.held == 1 else f"{matrix.name}.{expert}.{part}"
            yield Piece(name, number, expert if matrix.experts else None, rows)


def _spread(pieces: list[Piece], kind: Callable[[Piece], Any], each: int) -> list[Piece]:
    """So many of every kind, from the first to the last: the edges of batches are among them."""
    kinds: dict[Any, list[Piece]] = {}
    for piece in pieces:
        kinds.setdefault(kind(piece), []).append(piece)
    chosen = []
    for group in kinds.values():
        most = min(each, len(group))
        chosen += [group[i * (len(group) - 1) // max(1, most - 1)] for i in range(most)]
    return chosen


class Contestant:
    """A variant at work: its optimizer, its error, and the step that is timed."""

    def __init__(self, variant: Variant, workload: Workload, compile_seconds: float = COMPILE_SECONDS) -> None:
        self.variant, self.workload = variant, workload
        self.iteration = variant.iteration(workload.banks[0])
        self.tolerance = TOLERANCES[self.iteration]
        self.estimate = 0.0  # seconds of a warm step
        self.first_seconds = 0.0
        workload.reset()
        self.optimizer = variant.build(workload.matrices_apart if variant.matrices_alone else workload.named)
        self._step: Callable[[], object] = self.optimizer.step
        if variant.compiled:
            torch.compiler.reset()
            self._step = torch.compile(self.optimizer.step)
        with deadline(compile_seconds if variant.compiled else 0.0):
            self._first_steps()
        self.error = self._error()
        self._turn = count(CHECKED_STEPS)

    @property
    def correct(self) -> bool:
        """Whether the error is within the tolerance; a NaN is not."""
        return self.error <= self.tolerance

    def step(self) -> None:
        """What is timed."""
        with self.variant.around():
            self._step()

    def prepare(self, number: int | None = None) -> None:
        """Give the next set of gradients; not timed."""
        self.workload.give_gradients(
            next(self._turn) if number is None else number,
            apart=self.variant.matrices_alone,
            own=not self.variant.keeps_gradients,
        )

    def _first_steps(self) -> None:
        stopwatch = Stopwatch(self.workload.device)
        for number in range(CHECKED_STEPS):
            self.prepare(number)
            self.estimate, _ = stopwatch(self.step)
            self.first_seconds = self.first_seconds or self.estimate

    def _error(self) -> float:
        """The largest over checked matrices of ‖W − W_definition‖ / ‖W_definition − W_start‖, in Frobenius norms."""
        worst = torch.zeros((), dtype=torch.float64, device=self.workload.device)
        for parameter, start, wanted in self.workload.wanted(self.variant.definition):
            error = (parameter.detach().double() - wanted).norm() / (wanted - start).norm()
            worst = torch.maximum(worst, error)  # keeps a NaN
        return float(worst)


@contextlib.contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Raise TimeoutError when the block takes longer; 0: never. Without effect outside the main thread."""
    if not seconds or not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: object) -> None:
        raise TimeoutError(f"took more than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
