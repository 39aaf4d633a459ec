from __future__ import annotations

import json

import pytest

from orthoopt.bench import loader as bench


@pytest.mark.slow  # it measures: a dozen seconds of encoding and training
def test_the_loader_is_measured_beside_a_model(tmp_path, capsys) -> None:
    flags = ["--megabytes", "0.3", "--block_size", "64", "--batch", "4", "--repeats", "2"]
    assert bench.main([*flags, "--out", str(tmp_path)]) == 0
    result = json.loads((tmp_path / "loader_cpu.json").read_text())
    assert result["correct"] == {"JSON lines": True, "Parquet": True}
    assert set(result["wait_share"]) == {"stream from JSON lines", "stream from Parquet", "tokens on disk"}
    printed = capsys.readouterr().out
    for name, row in result["rates"].items():
        assert name in printed
        assert row["tokens_per_second"] == pytest.approx(row["tokens"] / row["seconds"]["median"])
    assert all(0.0 <= share <= 1.0 for share in result["wait_share"].values())


def test_wrong_blocks_get_no_time(tmp_path, monkeypatch, capsys) -> None:
    """A stream that does not hold what was encoded is reported, and the bench fails."""
    result = {
        "rates": {"training step": {"tokens_per_second": 2.0, "seconds": {"p20": 1.0, "p80": 1.0}}},
        "wait_share": {},
        "correct": {"JSON lines": False, "Parquet": True},
    }
    monkeypatch.setattr(bench, "measure", lambda *_: result)
    assert bench.main(["--out", str(tmp_path)]) == 1
    assert "the blocks of the stream from JSON lines are wrong: not timed" in capsys.readouterr().out
