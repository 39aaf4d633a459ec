"""`orthoopt bench dct`: the cosine transform and the lift by product and by FFT, over lengths.

What the cut-over in :mod:`orthoopt.dct` rests on. A pair whose results disagree gets no time.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from orthoopt.bench import machine, timing
from orthoopt.bench.results_file import results_folder, write_json
from orthoopt.dct import dct, dct_basis, idct

SIZES = (64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096)
_TOLERANCE = 1e-5  # float32 sums of up to 4096 terms


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print a table, write dct_DEVICE.json; 0, or 1 if a pair disagreed."""
    parser = argparse.ArgumentParser(prog="orthoopt bench dct", description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="lengths k; matrices are k by k")
    parser.add_argument("--seconds", type=float, default=2.0, help="for one variant of one length")
    parser.add_argument("--repeats", type=int, default=40, help="at most, of one variant of one length")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", help="folder of the result")
    options = parser.parse_args(sys.argv[1:] if argv is None else argv)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    path = results_folder(options.out) / f"dct_{device.type}.json"
    result: dict[str, Any] = {
        "bench": "dct",
        "machine": machine.describe(device),
        "settings": {
            "device": str(device), "dtype": "float32", "repeats": options.repeats, "seconds": options.seconds,
            "shapes": "k by k; the lift puts k/4 columns back",
        },
        "sizes": [],
    }  # fmt: skip
    print(f"{'k':>5}{'product ms':>12}{'FFT ms':>10}{'ratio':>8}   {'lift, product ms':>17}{'FFT ms':>10}{'ratio':>8}")
    for size in options.sizes:
        row = measure(size, device, options.repeats, options.seconds)
        result["sizes"].append(row)
        print(f"{size:>5}{_cells(row['transform'], 12)}   {_cells(row['lift'], 17)}", flush=True)
        write_json(path, result)
    print(path)
    return 0 if all(row[what]["correct"] for row in result["sizes"] for what in ("transform", "lift")) else 1


def measure(size: int, device: torch.device, repeats: int, seconds: float) -> dict[str, Any]:
    """One length: seconds of both methods for the whole transform, and for the lift of a quarter of the columns."""
    source = torch.Generator().manual_seed(size)
    x = torch.randn(size, size, generator=source).to(device)
    indices = torch.randperm(size, generator=source)[: max(1, size // 4)].sort().values.to(device)
    b = x[:, : len(indices)].contiguous()

    def by_fft() -> Tensor:
        spread = b.new_zeros(size, size).scatter(-1, indices.expand(b.shape), b)
        return idct(spread, "fft")

    pairs: dict[str, tuple[Callable[[], Tensor], Callable[[], Tensor]]] = {
        "transform": (lambda: dct(x, "matmul"), lambda: dct(x, "fft")),
        "lift": (lambda: b @ dct_basis(size, b.dtype, device).mT[indices], by_fft),
    }
    stopwatch = timing.Stopwatch(device)
    row: dict[str, Any] = {"k": size}
    for what, (product, fft) in pairs.items():
        expected = product()
        error = float((fft() - expected).norm() / expected.norm())
        row[what] = {"error": error, "correct": error < _TOLERANCE, "product": None, "fft": None}
        if not row[what]["correct"]:
            continue
        runners = [timing.Runner(product), timing.Runner(fft)]
        counts = [timing.repeats_within(seconds, stopwatch.warm_up(runner.call), repeats) for runner in runners]
        samples = timing.time_interleaved(runners, counts, stopwatch)
        for name, times in zip(("product", "fft"), samples, strict=True):
            row[what][name] = timing.summarize([wall for wall, _ in times])
    return row


def _cells(pair: dict[str, Any], width: int) -> str:
    if not pair["correct"]:
        return f"{'disagree: not timed':>{width + 18}}"
    product, fft = (pair[name]["median"] for name in ("product", "fft"))
    return f"{1e3 * product:>{width}.3f}{1e3 * fft:>10.3f}{product / fft:>8.2f}"


if __name__ == "__main__":
    sys.exit(main())
