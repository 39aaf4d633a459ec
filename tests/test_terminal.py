"""When text is coloured, and that colours change nothing about its layout."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orthoopt.terminal import HUES, Cell, Paint, aligned, columns_of, wants_color, wrapped


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("environ", "pipe", "terminal"),
    [
        ({}, False, True),
        ({"NO_COLOR": "1"}, False, False),
        ({"NO_COLOR": ""}, False, True),  # no-color.org: when not an empty string
        ({"FORCE_COLOR": "1"}, True, True),
        ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, False, False),
        ({"TERM": "dumb"}, False, False),
        ({"TERM": "dumb", "FORCE_COLOR": "1"}, True, True),
        ({"TERM": "xterm-256color"}, False, True),
    ],
)
def test_colours_are_automatic(environ: dict[str, str], pipe: bool, terminal: bool) -> None:
    assert wants_color("auto", io.StringIO(), environ) == pipe
    assert wants_color("auto", Terminal(), environ) == terminal
    assert wants_color("always", io.StringIO(), environ) and not wants_color("never", Terminal(), environ)


def test_another_word_is_refused() -> None:
    with pytest.raises(ValueError, match="color='maybe' must be one of 'auto', 'always', 'never'"):
        wants_color("maybe", io.StringIO())


def test_a_pipe_has_no_width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "93")
    assert columns_of(io.StringIO(), 160) is None and columns_of(Terminal(), 160) == 93


def test_every_hue_can_be_painted() -> None:
    assert Paint(True)("x", "bold", "red") == "\x1b[1;31mx\x1b[0m"
    assert Paint(False)("x", "bold") == Paint(True)("x") == "x" and Paint(True)("", "bold") == ""
    assert len({Paint(True)("x", hue) for hue in HUES}) == len(HUES)
    with pytest.raises(KeyError):
        Paint(True)("x", "mauve")


@given(st.lists(st.lists(st.text("ab ", max_size=6).map(str.strip), min_size=3, max_size=3), min_size=1))
def test_columns_align_with_and_without_colours(words: list[list[str]]) -> None:
    cells = [[Cell(word, ("cyan",)) for word in row] for row in words]
    plain, painted = aligned(cells, Paint(False), right=(1,)), aligned(cells, Paint(True), right=(1,))
    assert [line.width for line in plain] == [line.width for line in painted] == [len(line.text) for line in plain]
    widths = [max(len(row[place]) for row in words) for place in range(3)]
    for line, row in zip(plain, words, strict=True):
        assert line.text[: widths[0]].strip() == row[0]
        assert line.text[widths[0] + 2 : widths[0] + 2 + widths[1]].strip() == row[1]
        assert line.text[sum(widths[:2]) + 4 :].strip() == row[2]


def test_wrapping() -> None:
    assert wrapped("a bc def", 5, "  ") == ["  a", "  bc", "  def"]
    assert wrapped("a bc def", None, "  ") == ["  a bc def"] and wrapped("", 10) == [""]
