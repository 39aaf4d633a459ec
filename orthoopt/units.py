"""Numbers for people: three digits and a suffix."""

from __future__ import annotations

_POWERS = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def spell_count(number: float) -> str:
    """512, 38.6M, 20.9B."""
    short = _short(number)
    return f"{number:.0f}" if short is None else "".join(short).replace("G", "B")


def spell_bytes(number: float) -> str:
    """512 B, 1.51 GB."""
    return _with_unit(number, "B")


def spell_flops(number: float) -> str:
    """512 FLOP, 4.31 TFLOP."""
    return _with_unit(number, "FLOP")


def _with_unit(number: float, unit: str) -> str:
    short = _short(number)
    return f"{number:.0f} {unit}" if short is None else f"{short[0]} {short[1]}{unit}"


def _short(number: float) -> tuple[str, str] | None:
    for power, prefix in _POWERS:
        if number >= power * 0.9995:  # 999.6k reads 1.00M, not 1000k
            scaled = number / power
            decimals = 2 if scaled < 9.995 else 1 if scaled < 99.95 else 0
            return f"{scaled:.{decimals}f}", prefix
    return None
