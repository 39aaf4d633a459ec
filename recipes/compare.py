"""`orthoopt compare RUN RUN ...`: runs drawn over each other, here and as PNG, and what differs between them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from orthoopt.recipes.compare_runs import KEYS, Run, cautions, differing, read_run
from orthoopt.recipes.errors import RecipeError
from orthoopt.recipes.terminal_chart import Line, frame_of, terminal_chart
from orthoopt.terminal import HUES, WHEN, Cell, Paint, aligned, columns_of, wants_color, wrapped

_X = {"step": "step", "tokens": "tokens", "seconds": "seconds of training"}
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_DEFAULT_WIDTH, _MOST_WIDTH, _HEIGHT = 80, 120, 18
_MOST_ROWS = 20


def main(argv: Sequence[str] | None = None) -> int:
    """Draw, print the tables, write the picture; 0, or 2 for a run that is none or has nothing to draw."""
    options = _parse(sys.argv[1:] if argv is None else argv)
    try:
        runs = [read_run(Path(folder)) for folder in options.runs]
        if len(runs) > len(_LETTERS):
            raise RecipeError(f"{len(runs)} runs: at most {len(_LETTERS)} can be told apart")
        lines = [_line(letter, run, options.key, options.x) for letter, run in zip(_LETTERS, runs, strict=False)]
        drawn = (
            None if options.out == "none" else draw(lines, names_of(runs), options.key, options.x, Path(options.out))
        )
    except (RecipeError, OSError) as error:
        print(f"orthoopt compare: error: {error}", file=sys.stderr)
        return 2
    paint = Paint(wants_color(options.color, sys.stdout))
    width = min(options.width or columns_of(sys.stdout, _DEFAULT_WIDTH) or _DEFAULT_WIDTH, _MOST_WIDTH)
    print(
        text(runs, lines, options.key, options.x, width=max(width, 40), paint=paint, braille=_can(sys.stdout.encoding))
    )
    if drawn:
        print(f"\n{drawn}")
    return 0


def text(
    runs: Sequence[Run], lines: Sequence[Line], key: str, x: str, *, width: int, paint: Paint, braille: bool
) -> str:
    """The chart, each run's end, what differs, and what makes losses differ by themselves.

    Args:
        runs: in the order of their letters.
        lines: their curves.
        key: of :data:`KEYS`.
        x: step, tokens or seconds.
        width: in columns.
        paint: colours or none.
        braille: False for ASCII alone.
    """
    what = KEYS[key]
    parts = [terminal_chart(lines, width=width, height=_HEIGHT, x=_X[x], y=what, paint=paint, braille=braille)]
    parts.append(_ends(runs, lines, key, width, paint))
    different = differing(runs)
    if len(runs) > 1:
        parts.append(
            _differences(different, len(runs), width, paint) if different else "the runs have the same settings"
        )
    for caution in cautions(runs, key):
        parts.append("\n".join(paint(line, "yellow") for line in wrapped(f"careful: {caution}", width)))
    return "\n\n".join(parts)


def _line(letter: str, run: Run, key: str, x: str) -> Line:
    points = [(row[x], row[key]) for row in run.rows if row.get(key) is not None and row.get(x) is not None]
    if not points:
        there = [name for name in KEYS if any(row.get(name) is not None for row in run.rows)]
        raise RecipeError(f"--key {key}: {run.folder} has no {key} over {x}; it has {', '.join(there) or 'no losses'}")
    return Line(letter, points)


def names_of(runs: Sequence[Run]) -> list[str]:
    """Folder names, or paths as given where two have the same."""
    names = [run.folder.name or str(run.folder) for run in runs]
    return [str(run.folder) if names.count(name) > 1 else name for name, run in zip(names, runs, strict=True)]


def _ends(runs: Sequence[Run], lines: Sequence[Line], key: str, width: int, paint: Paint) -> str:
    """A line a run: its letter, name, plan, rate, and where it ended; the lowest in bold."""
    last = [line.points[-1][1] for line in lines]
    rows = [[Cell(head, ("dim",)) for head in ("", "run", "plan", "lr", "seed", key, "steps", "seconds")]]
    for place, (run, name) in enumerate(zip(runs, names_of(runs), strict=True)):
        best = ("bold",) if last[place] == min(last) and len(runs) > 1 else ()
        rate, seconds = run.settings.get("learning_rate"), run.rows[-1].get("seconds")
        cells = [
            _cut(name, max(width - 52, 12)), _cut(str(run.settings.get("plan", "?")), 16),
            f"{rate:g}" if isinstance(rate, (int, float)) else "?", str(run.settings.get("seed", "?")),
            f"{last[place]:.4f}", f"{run.rows[-1]['step']}{'' if run.finished else ' so far'}",
            "" if seconds is None else f"{seconds:.0f}",
        ]  # fmt: skip
        letter = Cell(lines[place].letter, (HUES[place % len(HUES)],))
        rows.append([letter, *(Cell(cell, best if column == 4 else ()) for column, cell in enumerate(cells))])
    return "\n".join(line.text for line in aligned(rows, paint, right=(3, 4, 5, 6, 7)))


def _differences(different: Sequence[tuple[str, Sequence[str]]], count: int, width: int, paint: Paint) -> str:
    """What differs: a column a run where they fit, else a line a setting."""
    shown, more = different[:_MOST_ROWS], max(len(different) - _MOST_ROWS, 0)
    names = max(len(name) for name, _ in shown)
    room = (width - names - 2 * count) // count
    head = [Cell("differs", ("dim",)), *(Cell(_LETTERS[k], (HUES[k % len(HUES)],)) for k in range(count))]
    if room >= 8:
        rows = [head, *([Cell(name), *(Cell(_cut(value, room)) for value in values)] for name, values in shown)]
        lines = [line.text for line in aligned(rows, paint)]
    else:
        lines = [paint("differs", "dim")]
        for name, values in shown:
            spelled = ", ".join(f"{_LETTERS[k]} {_cut(value, 24)}" for k, value in enumerate(values))
            lines += wrapped(f"{name}: {spelled}", width)
    if more:
        lines.append(paint(f"and {more} more settings in run.json", "dim"))
    return "\n".join(lines)


def _cut(word: str, room: int) -> str:
    return word if len(word) <= room else word[: max(room - 2, 1)] + ".."


def draw(lines: Sequence[Line], names: Sequence[str], key: str, x: str, path: Path) -> str:
    """Write the picture; its path, or why there is none."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return "no picture: matplotlib is not installed"
    if path.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise RecipeError(f"--out {path}: a picture is .png, .svg or .pdf, or `none` for none")
    figure = Figure(figsize=(8, 4.8), layout="constrained")
    axes = figure.add_subplot()
    for place, (line, name) in enumerate(zip(lines, names, strict=True)):
        marker = "o" if len(line.points) <= 40 else None
        axes.plot(*zip(*line.points, strict=True), color=_COLOURS[place % len(_COLOURS)], linewidth=1.6, marker=marker,
                  linestyle=("-", "--", ":", "-.")[place // len(_COLOURS) % 4], markersize=4,
                  label=f"{line.letter}  {name}: {line.points[-1][1]:.4f}")  # fmt: skip
    frame = frame_of(lines)
    axes.set(xlabel=_X[x], ylabel=KEYS[key], ylim=(frame.y_low, frame.y_high))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    return str(path)


# Okabe and Ito's colours without yellow, told apart by colour-blind readers too.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


def _can(encoding: str | None) -> bool:
    """Whether a stream of this encoding can show Braille."""
    try:
        "⣿│".encode(encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="orthoopt compare",
        description="Draw runs of orthoopt pretrain and finetune over each other, with what differs between them.",
        allow_abbrev=False,
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run's folder, with metrics.jsonl and run.json")
    parser.add_argument("--key", choices=list(KEYS), default="eval_loss", help="what is drawn, default eval_loss")
    parser.add_argument("--x", choices=list(_X), default="step", help="over what, default step")
    parser.add_argument("--out", default="compare.png", help="the picture, default compare.png; none for none")
    parser.add_argument("--width", type=int, help="columns, default those of the terminal, else 80")
    parser.add_argument("--color", choices=WHEN, default="auto", help="default auto: colours on a terminal")
    return parser.parse_args(argv)


if __name__ == "__main__":
    raise SystemExit(main())
