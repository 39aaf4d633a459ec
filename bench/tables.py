"""Tables for the terminal and for Markdown files, from the same cells."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from orthoopt.bench.claims import spelled

Row = Sequence[str]


def aligned(header: Row, rows: Sequence[Row], left: int = 1) -> str:
    """Columns padded to their widest cell, the first ``left`` of them flush left."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = []
    for row in (header, *rows):
        cells = [
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def markdown(header: Row, rows: Sequence[Row], left: int = 1) -> str:
    """The same as a Markdown table."""
    rule = ["---" if i < left else "---:" for i in range(len(header))]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in (header, rule, *rows)
    )


def milliseconds(seconds: float) -> str:
    """Four digits at most."""
    return f"{seconds * 1e3:.4g}" if seconds < 10 else f"{seconds * 1e3:.0f}"


def place(block: dict[str, Any]) -> str:
    """Where a result was made, from its ``machine`` block."""
    releases = block["versions"]
    where = block["gpu"]["name"] if block["gpu"] else f"{block['cpu']}, threads: {block['torch_threads']}"
    return f"{where}; torch {releases['torch']}, Python {releases['python']}"


def document(title: str, result: dict[str, Any], parts: Sequence[str]) -> str:
    """A Markdown page: title, machine and commit, the parts, and what must be shown."""
    block = result["machine"]
    git = block["git"]
    commit = (
        "no commit known" if git is None else f"commit {git['commit'][:12]}{' with changes' if git['dirty'] else ''}"
    )
    lines = [f"# {title}", f"{place(block)}; {block['time']}, {commit}, load {block['load_average']}", *parts]
    if result.get("must_show"):
        listed = "\n".join(f"- {' '.join(line.split())}" for line in spelled(result["must_show"]))
        lines.append(f"## Held to\n\n{listed}")
    return "\n\n".join(lines) + "\n"


def write_markdown(path: Path, text: str) -> Path:
    """Write the page beside its JSON file."""
    path.write_text(text, encoding="utf-8")
    return path
