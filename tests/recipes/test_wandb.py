"""Weights & Biases offline: what waits to be synced is what metrics.jsonl holds."""

from __future__ import annotations

import json
import shlex
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orthoopt.recipes import pretrain
from orthoopt.recipes.callbacks import TrainingClock
from orthoopt.recipes.wandb_run import WandbRun

wandb = pytest.importorskip("wandb")
_BLOCK = 32768
_FULL, _FIRST, _LAST = 1, 2, 4


def records(path: Path) -> Iterator[bytes]:
    """The records of a .wandb file, LevelDB's log: chunks of crc, length and kind, none over the end of a block."""
    data = path.read_bytes()
    assert data[:7] in (b"", b":W&B" + struct.pack("<HB", 0xBEE1, 0))
    place, record = 7, b""
    while place + 7 <= len(data):
        if _BLOCK - place % _BLOCK < 7:  # too short for a chunk's head
            place += _BLOCK - place % _BLOCK
            continue
        length, kind = struct.unpack("<HB", data[place + 4 : place + 7])
        if place + 7 + length > len(data):  # not all written yet
            return
        record = (b"" if kind in (_FULL, _FIRST) else record) + data[place + 7 : place + 7 + length]
        if kind in (_FULL, _LAST):
            yield record
        place += 7 + length


def finished_records(path: Path) -> list[Any]:
    """The records of a run that ended. wandb's own process closes the file, maybe after `finish` has returned."""
    from wandb.proto.wandb_internal_pb2 import Record

    for _ in range(600):
        held = [Record.FromString(data) for data in records(path)]
        if held and held[-1].HasField("exit"):
            return held
        time.sleep(0.1)
    raise AssertionError(f"{path} does not end in an exit record after a minute: {len(held)} records")


def offline_run(folder: Path) -> tuple[str, list[dict[str, Any]]]:
    """The run's id and the rows of its history, of a folder that `wandb sync` takes."""
    (path,) = folder.glob("run-*.wandb")
    identity, rows = "", []
    for record in finished_records(path):
        if record.HasField("run"):
            identity = record.run.run_id
        elif record.HasField("history"):
            items = record.history.item
            rows.append({item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items})
    return identity, rows


def in_wandbs_names(row: dict[str, Any]) -> dict[str, Any]:
    """A row of metrics.jsonl under the names that Trainer gives wandb."""
    names = {"step": "train/global_step", "tokens": "train/num_input_tokens_seen"}
    flat: dict[str, Any] = {}
    for key, value in row.items():
        for part, number in (value if isinstance(value, dict) else {"": value}).items():
            name = f"{key}/{part}" if part else key
            place = f"eval/{name[5:]}" if name.startswith("eval_") else f"train/{name}"
            flat[names.get(key, place)] = number
    return flat


@pytest.fixture(autouse=True)
def offline(monkeypatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for name in ("WANDB_RUN_ID", "WANDB_DIR", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)


def test_an_offline_run_holds_what_metrics_hold_and_a_resumed_one_goes_on_in_it(sandbox, tmp_path, monkeypatch) -> None:
    output = tmp_path / "run"
    flags = sandbox.flags(output, *shlex.split("--max_steps 8 --report_to wandb --generate_sample false"))
    on_step_end = TrainingClock.on_step_end

    def stop(self, args, state, control, **kwargs):
        on_step_end(self, args, state, control, **kwargs)
        if state.global_step == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(TrainingClock, "on_step_end", stop)
    assert pretrain.main(flags) == 130
    (first,) = (output / "wandb").glob("offline-run-*")
    before = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    identity, history = offline_run(first)
    assert_same(before, history)

    monkeypatch.undo()
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    assert pretrain.main([*flags, "--resume_from_checkpoint", "auto"]) == 0
    (second,) = set((output / "wandb").glob("offline-run-*")) - {first}
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    again, continued = offline_run(second)
    assert again == identity == json.loads((output / "wandb_run.json").read_text())["id"]
    assert wandb.run is None
    assert_same([row for row in rows if row["step"] > 4], continued)


def assert_same(rows: list[dict[str, Any]], history: list[dict[str, Any]]) -> None:
    """Row by row, every number of metrics.jsonl is in wandb's history, bit for bit."""
    logged = [row for row in history if {"train/loss", "eval/loss"} & set(row)]
    assert len(logged) == len(rows) > 0
    for row, held in zip(rows, logged, strict=True):
        expected = in_wandbs_names(row)
        assert len(expected) > 6
        assert {name: held.get(name) for name in expected} == expected


def test_a_new_training_in_the_folder_is_a_new_run_and_a_callers_own_run_stays_open(tmp_path) -> None:
    def start(output: Path, *, continued: bool) -> str:
        run = WandbRun(output, wanted=True, continued=continued, name=None, config={})
        identity = wandb.run.id
        run.finish()
        return identity

    one = start(tmp_path, continued=False)
    assert start(tmp_path, continued=True) == one
    assert start(tmp_path, continued=False) != one
    with wandb.init(project="own", dir=tmp_path) as own:
        WandbRun(tmp_path, wanted=True, continued=False, name=None, config={}).finish()
        assert wandb.run is own
