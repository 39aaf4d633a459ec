"""Coefficient tables of the Newton-Schulz iteration, each with its source."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

Triple: TypeAlias = tuple[float, float, float]


@dataclass(frozen=True)
class Table:
    """Coefficients (a, b, c) of the maps σ ← aσ + bσ³ + cσ⁵, one row a step.

    ``kappa`` divides the Frobenius-normalized input. Past the last row, the last one repeats or the rows cycle.
    ``min_steps`` and ``max_steps`` bound the step counts for which the table makes sense.
    """

    rows: tuple[Triple, ...]
    source: str
    kappa: float = 1.0
    beyond: Literal["repeat", "cycle"] = "repeat"
    start: Literal["frobenius", "aol"] = "frobenius"
    min_steps: int = 1
    max_steps: int | None = None

    def for_steps(self, steps: int) -> Table:
        """The same table with exactly ``steps`` rows."""
        count = len(self.rows)
        index = (lambda i: i % count) if self.beyond == "cycle" else (lambda i: min(i, count - 1))
        rows = tuple(self.rows[index(i)] for i in range(steps))
        return Table(rows, self.source, self.kappa, self.beyond, self.start, self.min_steps, self.max_steps)


_FIXED_POINT: Triple = (1.875, -1.25, 0.375)

_POLAR_EXPRESS_A: tuple[Triple, ...] = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
    (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
    _FIXED_POINT,
)

_POLAR_EXPRESS_B: tuple[Triple, ...] = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)

# From the sixth step on the fifth row is another one than in the five-step table.
_POLAR_EXPRESS_B_LONG: tuple[Triple, ...] = (
    *_POLAR_EXPRESS_B[:4],
    (2.3005307116270983, -1.6111665557258408, 0.3833374427545273),
    (1.8631210546382593, -1.2042160621002727, 0.3421879560523383),
    (1.8382572152247512, -1.1779263289537742, 0.3396513038637379),
    (1.8749999923301852, -1.2499999836060613, 0.374999991275876),
)


def _with_safety(rows: tuple[Triple, ...], safety: float) -> tuple[Triple, ...]:
    """Divide as (a/ς, b/ς³, c/ς⁵), all but the fixed point, so that inputs up to ς stay inside the map's interval."""
    return tuple(r if r == _FIXED_POINT else (r[0] / safety, r[1] / safety**3, r[2] / safety**5) for r in rows)


TABLES: dict[str, Table] = {
    "muon": Table(((3.4445, -4.7750, 2.0315),), "KellerJordan/Muon muon.py; torch.optim.Muon"),
    "quintic": Table(
        (
            (4.0848, -6.8946, 2.9270),
            (3.9505, -6.3029, 2.6377),
            (3.7418, -5.5913, 2.3037),
            (2.8769, -3.1427, 1.2046),
            (2.8366, -3.0525, 1.2012),
        ),
        "KellerJordan/modded-nanogpt; microsoft/dion",
        beyond="cycle",
    ),
    "polar_express": Table(_POLAR_EXPRESS_B, "arXiv 2505.16932, safety 1.02 baked in", kappa=1.02),
    "polar_express_a": Table(
        _with_safety(_POLAR_EXPRESS_A, 1.01), "arXiv 2505.16932; timlautk/polargrad, safety 1.01", kappa=1.01
    ),
    "polar_express_a_1.05": Table(
        _with_safety(_POLAR_EXPRESS_A, 1.05), "arXiv 2505.16932; Dao-AILab/gram-newton-schulz, safety 1.05"
    ),
    "polar_express_c": Table(
        (
            (8.237312490495555, -23.157747414558198, 16.680568411445915),
            (4.082441999064835, -2.893047735332586, 0.5252849256975648),
            (3.9263479922546582, -2.8547468034765298, 0.5318022422894988),
            (3.2982187133085143, -2.424541981026706, 0.48632008358844075),
            (2.2970369434552573, -1.63662558125903, 0.4002628455953627),
            (1.8763805351440397, -1.2347896577722228, 0.35891887501668385),
            (1.8564423485617974, -1.2132449880935525, 0.3568003487825883),
            (1.8749994008682747, -1.2499988017229169, 0.3749994008546422),
        ),
        "arXiv 2505.16932 as in timm, safety 1.01 baked in",
        kappa=1.01,
    ),
    "cans": Table(
        (
            (8.4703, -25.1081, 18.6293),
            (4.1828, -3.1087, 0.5806),
            (3.9619, -2.9541, 0.5630),
            (3.2866, -2.4647, 0.5074),
            (2.2737, -1.6447, 0.4162),
        ),
        "arXiv 2506.10935, via NVIDIA-NeMo/Emerging-Optimizers",
    ),
    "aol4": Table(
        (
            (4.6051, -9.6552, 5.6769),
            (4.7505, -6.0861, 2.1790),
            (2.7763, -2.3190, 0.5523),
            (2.4231, -2.2861, 0.8193),
        ),
        "arXiv 2512.04632; thib-s/flash-newton-schulz. The limit is the polar factor of the row-rescaled matrix",
        beyond="cycle",
        start="aol",
    ),
    "cubic5": Table(
        (
            (3.3656576, -3.3420992, 0.0),
            (2.5744352, -1.4957376, 0.0),
            (2.5368962, -1.4312570, 0.0),
            (2.4418906, -1.2764040, 0.0),
            (2.2230472, -0.9630650, 0.0),
        ),
        "arXiv 2606.00371, via NVIDIA-NeMo/Emerging-Optimizers",
        min_steps=5,
        max_steps=5,
    ),
    "deepseekv4": Table(
        (*((3.4445, -4.7750, 2.0315),) * 8, *((2.0, -1.5, 0.5),) * 2), "via NVIDIA-NeMo/Emerging-Optimizers"
    ),
    # max f on [0, 1] exceeds this map's repelling fixed point: from the sixth step on it diverges.
    "root_2048x2048": Table(((3.4916, -4.8224, 2.1095),), "arXiv 2511.20626; noah-research ROOT", max_steps=5),
    "root_2048x3072": Table(((3.4509, -4.5790, 1.9325),), "arXiv 2511.20626; noah-research ROOT"),
    "root_2048x8192": Table(((2.9794, -3.6674, 1.6207),), "arXiv 2511.20626; noah-research ROOT"),
    "root_2048x16384": Table(((3.1943, -3.8221, 1.5322),), "arXiv 2511.20626; noah-research ROOT"),
}
TABLES["polar_express_b"] = TABLES["polar_express"]

_REFUSED = {
    "aol4_old": "its first map is negative above σ = 0.884, so near-rank-one momentum would be ascended; use 'aol4'",
}


def names() -> list[str]:
    """The names of the tables."""
    return sorted(TABLES)


MAX_STEPS = 1000
"""More would not converge any further, and not end either."""


@functools.lru_cache(maxsize=256)
def _named(name: str, steps: int) -> Table:
    if name in _REFUSED:
        raise ValueError(f"coefficients {name!r} are refused: {_REFUSED[name]}")
    if name not in TABLES:
        near = difflib.get_close_matches(name, TABLES, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"unknown coefficients {name!r}{hint} Known tables: {', '.join(names())}")
    table = TABLES[name]
    if steps < table.min_steps or (table.max_steps is not None and steps > table.max_steps):
        low, high = table.min_steps, table.max_steps
        bounds = f"exactly {low}" if low == high else f"at least {low}" if high is None else f"at most {high}"
        raise ValueError(f"coefficients {name!r} allow {bounds} steps, got steps={steps}")
    if table.rows is _POLAR_EXPRESS_B and steps > len(table.rows):
        table = Table(_POLAR_EXPRESS_B_LONG, table.source, table.kappa)
    return table.for_steps(steps)


def resolve_coefficients(coefficients: str | Triple | Sequence[Triple], steps: int) -> Table:
    """The rows to run: a named table, one triple, or a sequence of triples, brought to ``steps`` rows.

    Raises:
        ValueError: the name, the shape of the coefficients or the number of steps is wrong.
    """
    if isinstance(steps, bool) or not isinstance(steps, int) or not 1 <= steps <= MAX_STEPS:
        raise ValueError(f"steps must be a whole number of at least 1 and at most {MAX_STEPS}, got {steps!r}")
    if isinstance(coefficients, str):
        return _named(coefficients, steps)
    rows: tuple[Any, ...] = tuple(coefficients)
    if len(rows) == 3 and all(isinstance(value, int | float) for value in rows):
        rows = (rows,)
    checked: list[Triple] = []
    for row in rows:
        if isinstance(row, int | float | str) or len(row) != 3:
            raise ValueError(
                f"coefficients must be a table's name, one (a, b, c) or several, got {coefficients!r}; "
                f"known tables: {', '.join(names())}"
            )
        checked.append((float(row[0]), float(row[1]), float(row[2])))
    if not checked:
        raise ValueError("coefficients must hold at least one (a, b, c), got none")
    return Table(tuple(checked), "given by the user").for_steps(steps)
