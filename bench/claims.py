"""What the library holds its own speed and memory to, as figures of one run: the ``must_show`` block of a result."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from orthoopt.bench.variants import BASELINE, FLOOR, LINEAR, MOMENTUM_ALONE, OURS

STEP_RATIO = {"cpu": {"cpu_small": 40.0}, "cuda": {"gpt2": 4.0, "llama3.2_1b": 1.6}}
"""Times that ``torch.optim.Muon`` takes of ours, by set."""
PEER_RATIO = {"cpu": 1.3, "cuda": 1.0}
LINEAR_OF_ADAMW = {"cpu": 0.9, "cuda": 1.0}
LINEAR_OF_COPY = {"cpu": 1.4, "cuda": 1 / 0.85}
ITERATION_MILLISECONDS = {"gpt2": 2.4, "qwen3_0.6b": 11.0, "llama3.2_1b": 35.0}
"""Of the whole set's Newton-Schulz iteration on an H100."""
SHARE_OF_MATMUL = 0.8
OVER_STANDARD_AT_FOUR = 1.4
PEAK_OVER_NEED = 1.25
STATE_OF_ADAMW = 0.52


def claim(what: str, value: float | None, limit: float, *, at_least: bool, **beside: Any) -> dict[str, Any]:
    """One line of a ``must_show`` block; ``holds`` is None where there is no value, or it is not one that counts."""
    holds = None if value is None else bool(value >= limit if at_least else value <= limit)
    return {"what": what, "value": value, "limit": limit, "at_least": at_least, "holds": holds, **beside}


def step_claims(
    results: Iterable[dict[str, Any]], device_type: str, bfloat16_in_hardware: bool
) -> list[dict[str, Any]]:
    """What ``bench step`` must show.

    Args:
        results: of the sets, as the bench's ``measure`` gives them.
        device_type: whose limits.
        bfloat16_in_hardware: whether a CPU multiplies bfloat16; torch's Muon does, so its ratio depends on it.
    """
    found = []
    for result in results:
        seconds = {row["name"]: row["seconds"]["median"] for row in result["variants"] if row["seconds"]}
        rows = {row["name"]: row for row in result["variants"]}
        ours, name = seconds.get(OURS), result["set"]
        if ours and BASELINE in seconds and name in STEP_RATIO[device_type]:
            limit, ratio = STEP_RATIO[device_type][name], seconds[BASELINE] / ours
            beside = {} if device_type != "cpu" else {"bfloat16_in_hardware": bfloat16_in_hardware}
            found.append(claim(f"{BASELINE} over {OURS}", ratio, limit, at_least=True, set=name, **beside))
        peers = [n for n in seconds if rows[n]["family"] == "peer" and (rows[n]["same_work"] or device_type != "cpu")]
        if ours and peers:
            fastest = min(peers, key=seconds.__getitem__)
            ratio, limit = seconds[fastest] / ours, PEER_RATIO[device_type]
            found.append(claim(f"fastest peer over {OURS}", ratio, limit, at_least=True, set=name, peer=fastest))
        found += [line for rule in LINEAR if rule in seconds for line in _linear(rows, rule, name, device_type)]
    return found


def _linear(rows: dict[str, Any], rule: str, name: str, device_type: str) -> list[dict[str, Any]]:
    """A linear-time rule beside fused AdamW, and beside a copy of the bytes that it must move."""
    row, floor = rows[rule], rows.get(FLOOR)
    lines = []
    if floor is not None and floor["seconds"]:
        adamw, took = floor["seconds"]["median"], row["seconds"]["median"]
        limit, beside = LINEAR_OF_ADAMW[device_type], _momentum_alone(rows, rule, adamw)
        lines.append(claim(f"{rule} over {FLOOR}", took / adamw, limit, at_least=False, set=name, **beside))
    what, wall = f"{rule} over copying its least bytes", 1 / row["share_of_ceiling"]
    value, beside = wall, {}
    if row.get("device_seconds"):  # the copy is timed by the device's clock too
        value = wall * row["device_seconds"]["median"] / row["seconds"]["median"]
        beside = {"by_wall_clock": wall}
    lines.append(claim(what, value, LINEAR_OF_COPY[device_type], at_least=False, set=name, **beside))
    return lines


def _momentum_alone(rows: dict[str, Any], rule: str, adamw: float) -> dict[str, float]:
    """What a momentum alone takes of AdamW's time, with the check for bad gradients where the rule has it."""
    alone, unchecked = rows.get(MOMENTUM_ALONE), rows.get(f"{rule} unchecked")
    if alone is None or not alone["seconds"]:
        return {}
    check = 0.0
    if unchecked is not None and unchecked["seconds"]:
        check = max(0.0, rows[rule]["seconds"]["median"] - unchecked["seconds"]["median"])
    return {"momentum_alone": (alone["seconds"]["median"] + check) / adamw}


def spelled(claims: Sequence[dict[str, Any]]) -> list[str]:
    """One line a claim, for people."""
    lines = []
    for line in claims:
        word = {True: "holds", False: "DOES NOT HOLD", None: "not measured"}[line["holds"]]
        value = "-" if line["value"] is None else f"{line['value']:.3g}"
        known = ("what", "value", "limit", "at_least", "holds")
        beside = ", ".join(f"{key} {_short(value)}" for key, value in line.items() if key not in known)
        sign = ">=" if line["at_least"] else "<="
        lines.append(
            f"{word:<14}{value:>7} {sign} {line['limit']:<6.3g} {line['what']}{f' ({beside})' if beside else ''}"
        )
    return lines


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
