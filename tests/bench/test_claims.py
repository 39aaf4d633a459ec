from __future__ import annotations

from typing import Any

import pytest

from orthoopt.bench import claims
from orthoopt.bench.variants import BASELINE, FLOOR, MOMENTUM_ALONE, OURS


def row(name: str, seconds: float | None, family: str = "ours", share: float = 1.0, same_work: bool = False) -> dict:
    times = None if seconds is None else {"median": seconds}
    return {"name": name, "seconds": times, "family": family, "share_of_ceiling": share, "same_work": same_work}


def result(*rows: dict[str, Any], name: str = "cpu_small") -> dict[str, Any]:
    return {"set": name, "variants": list(rows)}


def by_what(lines: list[dict[str, Any]]) -> dict[str, Any]:
    return {line["what"]: line for line in lines}


def test_ratios_and_limits_by_hand() -> None:
    lines = claims.step_claims(
        [
            result(
                row(OURS, 0.1),
                row("orthoopt.RowNorm", 0.009, share=0.8),
                row("orthoopt.AuON", 0.02, share=0.5),
                row(BASELINE, 5.0, "torch"),
                row(FLOOR, 0.01, "torch"),
                row("in bfloat16", 0.05, "peer"),
                row("slower", 0.2, "peer", same_work=True),
                row("fast", 0.12, "peer", same_work=True),
            )
        ],
        "cpu",
        bfloat16_in_hardware=False,
    )
    found = by_what(lines)
    assert len(found) == len(lines) == 6
    baseline = found[f"{BASELINE} over {OURS}"]
    assert (baseline["value"], baseline["limit"], baseline["holds"]) == (pytest.approx(50), 40, True)
    assert baseline["bfloat16_in_hardware"] is False
    peer = found[f"fastest peer over {OURS}"]
    # On a CPU the one in bfloat16 does not count, however fast: it does other work.
    assert (peer["peer"], peer["value"], peer["holds"]) == ("fast", pytest.approx(1.2), False)
    assert found[f"orthoopt.RowNorm over {FLOOR}"]["value"] == pytest.approx(0.9)
    copying = found["orthoopt.RowNorm over copying its least bytes"]
    assert (copying["value"], copying["holds"]) == (pytest.approx(1.25), True)
    assert found["orthoopt.AuON over copying its least bytes"]["holds"] is False


def test_what_a_momentum_alone_takes_is_told_beside_what_a_rule_takes() -> None:
    """With the check where there is one: of a rule not timed without it, nothing is known of that."""
    rows = [
        row("orthoopt.RowNorm", 0.009), row("orthoopt.RowNorm unchecked", 0.0075), row("orthoopt.AuON", 0.010),
        row(FLOOR, 0.01, "torch"), row(MOMENTUM_ALONE, 0.007, "torch"),
    ]  # fmt: skip
    found = by_what(claims.step_claims([result(*rows)], "cpu", False))
    alone = {what: line["momentum_alone"] for what, line in found.items() if "momentum_alone" in line}
    assert alone == {
        f"orthoopt.RowNorm over {FLOOR}": pytest.approx(0.85),
        f"orthoopt.RowNorm unchecked over {FLOOR}": pytest.approx(0.7),
        f"orthoopt.AuON over {FLOOR}": pytest.approx(0.7),
    }
    line = claims.spelled([found[f"orthoopt.RowNorm over {FLOOR}"]])[0]
    assert "(set cpu_small, momentum_alone 0.85)" in line


def test_what_was_not_timed_is_not_claimed() -> None:
    rows = [row(OURS, None), row(BASELINE, 1.0, "torch"), row("orthoopt.AuON", None), row("p", 1.0, "peer")]
    assert claims.step_claims([result(*rows)], "cpu", False) == []
    line = claims.claim("x", None, 1.0, at_least=True)
    assert line["holds"] is None and "not measured" in claims.spelled([line])[0]


def test_on_a_gpu_every_peer_counts() -> None:
    rows = [row(OURS, 0.1), row("p", 0.05, "peer")]
    (line,) = claims.step_claims([result(*rows, name="gpt2")], "cuda", False)
    assert (line["peer"], line["limit"], line["holds"]) == ("p", 1.0, False)


def test_a_gpus_own_clock_counts_for_copies() -> None:
    own = row("orthoopt.RowNorm", 0.010, share=0.5) | {"device_seconds": {"median": 0.006}}
    (line,) = claims.step_claims([result(own)], "cuda", False)
    assert line["value"] == pytest.approx(2 * 0.6) and line["by_wall_clock"] == pytest.approx(2)
    assert line["holds"] is False  # 83% of the copy's rate, where 85% are wanted
    assert "by_wall_clock 2" in claims.spelled([line])[0]


@pytest.mark.parametrize(("value", "at_least", "holds"), [(1.0, True, True), (1.0, False, True), (1.1, False, False)])
def test_a_limit_is_met_by_itself(value: float, at_least: bool, holds: bool) -> None:
    line = claims.claim("x", value, 1.0, at_least=at_least)
    assert line["holds"] is holds and ("DOES NOT HOLD" in claims.spelled([line])[0]) is not holds
