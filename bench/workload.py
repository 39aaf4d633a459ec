"""What a step bench works on: one set of matrices with gradients, and the check of a variant's result on it."""

from __future__ import annotations

from itertools import count

import torch
from torch import Tensor

from orthoopt.bench.shapes import ShapeSet
from orthoopt.bench.timing import Stopwatch
from orthoopt.bench.variants import TOLERANCES, Variant

GRADIENT_SETS = 3  # rotated, so that a step does not find its gradients in a cache
CHECKED_STEPS = 2  # the second has a history: momentum and bias correction show


class Workload:
    """Parameters shared by all variants, Gaussian gradients, and where the parameters started."""

    def __init__(self, shapes: ShapeSet, device: torch.device, seed: int = 0) -> None:
        generator = torch.Generator(device).manual_seed(seed)

        def draw(size: float) -> list[Tensor]:
            sizes = [(rows, cols) for _, rows, cols in shapes.matrices]
            return [torch.randn(*s, generator=generator, device=device) * size for s in sizes]

        self.device = device
        self.start = draw(0.02)
        self.gradients = [draw(1e-3) for _ in range(GRADIENT_SETS)]
        self.named = [
            (matrix.name, torch.nn.Parameter(tensor.clone()))
            for matrix, tensor in zip(shapes.matrices, self.start, strict=True)
        ]

    def give_gradients(self, number: int) -> None:
        """Let every parameter's gradient be that of one of the sets, in rotation."""
        for (_, parameter), gradient in zip(self.named, self.gradients[number % GRADIENT_SETS], strict=True):
            parameter.grad = gradient


class Contestant:
    """A variant at work: its optimizer, its error, and the step that is timed."""

    def __init__(self, variant: Variant, workload: Workload) -> None:
        self.variant, self.workload = variant, workload
        self.iteration = variant.iteration(workload.start[0])
        self.tolerance = TOLERANCES[self.iteration]
        self.estimate = 0.0  # seconds of a warm step
        with torch.no_grad():
            for (_, parameter), start in zip(workload.named, workload.start, strict=True):
                parameter.copy_(start)
        self.optimizer = variant.build(workload.named)
        self.error = self._check()
        self._turn = count(CHECKED_STEPS)

    @property
    def correct(self) -> bool:
        """Whether the error is within the tolerance; a NaN is not."""
        return self.error <= self.tolerance

    def step(self) -> None:
        """What is timed."""
        self.optimizer.step()

    def prepare(self) -> None:
        """Give the next set of gradients; not timed."""
        self.workload.give_gradients(next(self._turn))

    def _check(self) -> float:
        """Take the first steps and compare with the definition in float64.

        Returns:
            The largest over all matrices of ‖W − W_definition‖ / ‖W_definition − W_start‖, in Frobenius norms.
        """
        stopwatch = Stopwatch(self.workload.device)
        for number in range(CHECKED_STEPS):
            self.workload.give_gradients(number)
            self.estimate, _ = stopwatch(self.step)
        worst = torch.zeros((), dtype=torch.float64, device=self.workload.device)
        for i, (_, parameter) in enumerate(self.workload.named):
            start = self.workload.start[i].double()
            gradients = [self.workload.gradients[number][i].double() for number in range(CHECKED_STEPS)]
            wanted = self.variant.definition(start, gradients)
            error = (parameter.detach().double() - wanted).norm() / (wanted - start).norm()
            worst = torch.maximum(worst, error)  # keeps a NaN
        return float(worst)
