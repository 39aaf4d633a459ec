"""`orthoopt compare`: lines lie where the figures say, what differs is listed, what does not compare is said."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orthoopt.recipes import compare
from orthoopt.recipes.terminal_chart import Line, frame_of, terminal_chart
from orthoopt.terminal import Paint

SETTINGS: dict[str, Any] = {
    "plan": "adamw", "learning_rate": 0.002, "seed": 0, "model": "Qwen3ForCausalLM", "parameters": 1000,
    "vocabulary": 300, "corpus": {"name": "text:a", "digest": "d"}, "scored": {"tokens": 10, "bytes": 30},
    "arguments": {"training": {"output_dir": "x", "max_steps": 60, "seed": 0}}, "model_config": {"hidden_size": 32},
}  # fmt: skip


def run(folder: Path, *, low: float = 2.0, finished: bool = True, steps: int = 60, **changes: Any) -> str:
    """A run's folder with losses that fall to `low`."""
    folder.mkdir(parents=True)
    rows: list[dict[str, Any]] = [{"step": step, "loss": low + 40 / step} for step in range(2, steps, 2)]
    for step in range(5, steps + 1, 5):
        rows.append({"step": step, "eval_loss": low + 30 / step, "eval_bits_per_byte": low / 2 + 15 / step})
    rows = [{**row, "tokens": row["step"] * 10, "seconds": row["step"] / 4} for row in rows]
    rows.sort(key=lambda row: row["step"])
    cut_off = '{"step": 61, "eval_l'
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + cut_off)
    settings = {**SETTINGS, **changes}
    settings["arguments"] = {"training": {"output_dir": str(folder), "max_steps": steps}}
    (folder / "run.json").write_text(json.dumps(settings))
    if finished:
        (folder / "results.json").write_text("{}")
    return str(folder)


def compared(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert compare.main(list(arguments)) == 0
    return capsys.readouterr().out


def test_two_runs_are_drawn_and_told_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = run(tmp_path / "one"), run(tmp_path / "two", low=1.0, plan="muon", learning_rate=0.004)
    picture = tmp_path / "new" / "compare.png"
    said = compared(capsys, a, b, "--out", str(picture))
    assert picture.read_bytes().startswith(b"\x89PNG") and str(picture) in said
    assert max(map(len, said.splitlines()[:-1])) <= 80 and "\x1b" not in said
    rows = dict(line.split(maxsplit=1) for line in said.splitlines() if re.match("[AB]  ", line))
    assert rows["A"].split() == ["one", "adamw", "0.002", "0", "2.5000", "60", "15"]
    assert rows["B"].split() == ["two", "muon", "0.004", "0", "1.5000", "60", "15"]
    assert re.search(r"plan +adamw +muon\n", said) and re.search(r"learning_rate +0.002 +0.004\n", said)
    assert "output_dir" not in said and "hidden_size" not in said
    careful = " ".join(said.split("careful:")[1].split())
    assert careful.startswith("one seed each") and said.count("careful:") == 1


def test_keys_and_axes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = run(tmp_path / "one"), run(tmp_path / "two", low=1.0)
    said = compared(capsys, a, b, "--key", "eval_bits_per_byte", "--x", "tokens", "--out", "none")
    assert said.startswith("validation, bits per byte") and "  tokens" in said and "600" in said and "1.2500" in said
    assert "2.6897" in compared(capsys, a, b, "--key", "loss", "--x", "seconds", "--out", "none")  # 2 + 40 / 58
    assert not list(tmp_path.glob("*.png"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"corpus": {"name": "text:b", "digest": "e"}}, "different corpora"),
        ({"scored": {"tokens": 11, "bytes": 30}}, "different held-out text"),
        ({"vocabulary": 4096}, "compare eval_bits_per_byte"),
        ({"model_config": {"hidden_size": 64}}, "different models"),
        ({"finished": False}, "not finished"),
        ({"steps": 40}, "different lengths, 60, 40 steps"),
    ],
)
def test_what_does_not_compare_is_said(
    changes: dict[str, Any], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = run(tmp_path / "one"), run(tmp_path / "two", **changes)
    assert said in " ".join(compared(capsys, a, b, "--out", "none").split())


def test_seeds_of_one_plan_are_no_caution(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [run(tmp_path / f"seed{seed}", seed=seed) for seed in range(2)]
    assert "careful" not in compared(capsys, *folders, "--out", "none")


def test_many_runs_list_what_differs_line_by_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [run(tmp_path / f"run{k}", low=1 + k / 9, seed=k, note="x" * 30) for k in range(9)]
    said = compared(capsys, *folders, "--out", "none")
    assert max(map(len, said.splitlines())) <= 80
    assert "seed: A 0, B 1, C 2" in said and "I 8" in said


def test_folders_of_one_name_are_told_by_their_paths(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [run(tmp_path / name / "run") for name in ("a", "b")]
    named = compare.names_of([compare.read_run(Path(folder)) for folder in folders])
    assert named == folders


def test_a_real_run_is_read(finished: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = compared(capsys, str(finished.output), "--out", str(tmp_path / "a.svg"))
    results = json.loads((finished.output / "results.json").read_text())
    assert f"{results['eval_loss']:.4f}" in said and results["plan"] in said and "careful" not in said
    assert (tmp_path / "a.svg").read_text().startswith("<?xml")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere"], "nowhere: no such folder"),
        (["empty"], "no metrics.jsonl"),
        (["bare"], "nothing was logged"),
        (["bad"], "run.json"),
        (["losses"], "--key eval_loss: losses has no eval_loss over step; it has loss"),
        (["one", "--out", "a.gif"], "--out a.gif"),
        (["one"] * 27, "27 runs: at most 26"),
    ],
)
def test_wrong_input_is_an_error_in_one_line(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    run(Path("one"))
    for name, text in (
        ("bare", "\n"),
        ("bad", '{"step": 1, "eval_loss": 2.0}'),
        ("losses", '{"step": 1, "loss": 2.0}'),
    ):
        Path(name).mkdir()
        Path(name, "metrics.jsonl").write_text(text)
    Path("bad", "run.json").write_text("{")
    Path("empty").mkdir()
    before = sorted(tmp_path.rglob("*"))
    assert compare.main(arguments) == 2
    captured = capsys.readouterr()
    assert said in captured.err and captured.err.count("\n") == 1 and captured.out == ""
    assert sorted(tmp_path.rglob("*")) == before


finite = st.floats(-1e4, 1e4)
curves = st.lists(
    st.lists(st.tuples(st.floats(0, 1e6), finite), min_size=1, max_size=9).map(sorted), min_size=1, max_size=5
)


@settings(max_examples=15)
@given(curves, st.integers(40, 120), st.booleans(), st.booleans())
def test_a_chart_fits_and_colours_change_nothing(
    points: list[list[tuple[float, float]]], width: int, braille: bool, color: bool
) -> None:
    lines = [Line(letter, spots) for letter, spots in zip("ABCDE", points, strict=False)]
    drawn = terminal_chart(lines, width=width, height=12, x="step", y="loss", paint=Paint(color), braille=braille)
    plain = re.sub(r"\x1b\[[0-9;]*m", "", drawn)
    assert max(map(len, plain.splitlines())) <= width
    assert braille or plain.isascii()
    assert color or drawn == plain
    for line in lines:
        x, y = line.points[-1]
        frame = frame_of(lines)
        if frame.y_low <= y <= frame.y_high:
            assert line.letter in plain


def test_a_line_is_drawn_where_its_values_are() -> None:
    """In ASCII, a falling straight line fills one cell a column, from the top left to the bottom right."""
    line = Line("A", [(0.0, 10.0), (100.0, 0.0)])
    drawn = terminal_chart([line], width=60, height=20, x="x", y="y", paint=Paint(False), braille=False)
    rows = drawn.splitlines()[1:21]
    spots = [(row.index("|" if "|" in row else "+"), [k for k, char in enumerate(row) if char == "A"]) for row in rows]
    middles = [sum(cells) / len(cells) - bar for bar, cells in spots if len(cells) > 1]
    assert middles == sorted(middles) and middles[0] < 12 and middles[-1] > 40
