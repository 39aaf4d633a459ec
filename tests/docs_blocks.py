"""The documents taken apart: fenced blocks, and the commands in blocks and in running text."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "bench/README.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "recipes").rglob("*.md")),
]
SHELL = ("bash", "sh", "shell", "console")
PLAIN = ("", "text")
"""Equations, trees and output, among which lines that begin like a command are commands."""
WORDS = ("orthoopt", "torchrun", "make", "python", "python3", "accelerate", "sbatch", "pytest", "mkdocs", "pip")

_FENCE = re.compile(r"^(?P<indent> *)(?P<fence>```+|~~~+) *(?P<language>[\w+-]*)[^\n`]*$")
_SPAN = re.compile(rf"(?<!`)`((?:{'|'.join(WORDS)})\s[^`]+)`(?!`)")
_SETTINGS = r"(?:[A-Z_][A-Z0-9_]*=\S* +)*"
_COMMAND = re.compile(rf"^\s*(?:\$ )?(?={_SETTINGS}(?:{'|'.join(WORDS)})(?:\s|$))")


class Block(NamedTuple):
    """A fenced block, without the indentation of its fence."""

    page: Path
    line: int
    language: str
    text: str
    before: str
    """The paragraph that stands before it."""

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(ROOT).as_posix()}:{self.line}"


class Command(NamedTuple):
    """A command as it is typed, and what the page says that it prints."""

    place: str
    text: str
    output: str | None = None
    shortened: bool = False
    inline: bool = False
    """In running text, where it does not continue what a block has begun."""


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path) -> list[Block]:
    """Every fenced block of a page. A fence that is not closed is an error."""
    found: list[Block] = []
    lines = page.read_text(encoding="utf-8").splitlines()
    opened: tuple[int, re.Match[str]] | None = None
    for number, line in enumerate(lines):
        fence = _FENCE.match(line)
        if opened is None:
            opened = (number, fence) if fence else None
            continue
        start, first = opened
        if line.strip() == first["fence"]:
            body = [text.removeprefix(first["indent"]) for text in lines[start + 1 : number]]
            paragraph = "\n".join(lines[:start]).rstrip().rpartition("\n\n")[2]
            found.append(Block(page, start + 1, first["language"], "\n".join(body) + "\n", paragraph))
            opened = None
    assert opened is None, f"{name_of(page)}:{opened[0] + 1}: a fence without an end" if opened else ""
    return found


def commands(page: Path) -> Iterator[Command]:
    """The commands of a page: lines of its shell blocks, and code in its text and tables."""
    for block in blocks(page):
        if block.language in SHELL or block.language in PLAIN:
            yield from _of_block(block)
    prose = _without_blocks(page.read_text(encoding="utf-8"))
    for span in _SPAN.finditer(prose):
        place = f"{name_of(page)}:{prose[: span.start()].count(chr(10)) + 1}"
        yield Command(place, " ".join(span[1].split()), inline=True)


def run_blocks(page: Path) -> None:
    """Run the Python blocks of a page in order, with `torch`, `orthoopt` and a small `model` that has gradients."""
    import models
    import torch

    import orthoopt

    model = models.qwen3(device="cpu")
    for param in model.parameters():
        param.grad = torch.randn_like(param)
    space: dict[str, Any] = {"torch": torch, "orthoopt": orthoopt, "model": model}
    with warnings.catch_warnings():  # a page may filter some
        for block in blocks(page):
            if block.language == "python":
                exec(compile("\n" * block.line + block.text, name_of(page), "exec"), space)


def _without_blocks(text: str) -> str:
    """`text` with the lines of fenced blocks empty."""
    inside, kept = "", []
    for line in text.splitlines():
        fence = _FENCE.match(line)
        closing = bool(inside) and line.strip() == inside
        if not inside and fence:
            inside = fence["fence"]
            kept.append("")
        else:
            kept.append("" if inside else line)
            inside = "" if closing else inside
    return "\n".join(kept)


def _of_block(block: Block) -> Iterator[Command]:
    text = re.sub(r"\\\n\s*", " ", block.text)
    lines = text.splitlines()
    prompts = [number for number, line in enumerate(lines) if line.startswith("$ ")]
    for position, number in enumerate(prompts):
        end = prompts[position + 1] if position + 1 < len(prompts) else len(lines)
        shown = "\n".join(lines[number + 1 : end]).strip("\n")
        yield Command(block.place, lines[number].removeprefix("$ "), shown or None, "\n...\n" in f"\n{shown}\n")
    if prompts:
        return
    for line in lines:
        typed = line.strip() and not line.lstrip().startswith("#")
        if typed and (block.language in SHELL or _COMMAND.match(line)):
            yield Command(block.place, line.strip())
    # "`orthoopt explain gpt2` prints, shortened:" before a block of plain text
    spans = _SPAN.findall(block.before)
    if (
        block.language in PLAIN
        and block.before.endswith(":")
        and len(spans) == 1
        and lines
        and not _COMMAND.match(lines[0])
    ):
        yield Command(block.place, " ".join(spans[0].split()), block.text.strip("\n"), "shortened" in block.before)
