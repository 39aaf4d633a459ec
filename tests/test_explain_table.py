"""The table: nothing is lost at any width, everything fits, colours come only when asked for."""

from __future__ import annotations

import re

import models
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_explain import line_of
from torch import nn

from orthoopt.explain import Explanation, explain
from orthoopt.explain_lines import SECTIONS
from orthoopt.explain_names import collapse, pattern_of
from orthoopt.roles import ROLES

ESCAPE = re.compile(r"\x1b\[[0-9;]*m")
WIDTHS = [60, 80, 100, 120, 160, 200, 240]


class Odd(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mixing = nn.Parameter(torch.zeros(4, 6))


class OddStack(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(50, 8)
        self.layers = nn.ModuleList([Odd() for _ in range(3)])


def test_equal_layers_share_a_line_and_unequal_ones_do_not() -> None:
    deep = models.llama(num_hidden_layers=12)
    text = explain(deep, overrides=[(r"layers\.(3|7)\.mlp\.up_proj", {"rule": "adamw"})]).text()
    names = [line.split()[0] for line in text.splitlines() if "mlp.up_proj" in line]
    assert names == [
        "model.layers.{0..2,4..6,8..11}.mlp.up_proj.weight",
        "model.layers.{3,7}.mlp.up_proj.weight",
    ]
    full = explain(deep).text(full=True)
    assert all(line_of(full, name) for name, _ in deep.named_parameters())


def test_names_with_several_numbers_are_collapsed_only_when_complete() -> None:
    def stack(depths: list[int]) -> nn.ModuleList:
        return nn.ModuleList([nn.ModuleList([nn.Linear(4, 6, bias=False) for _ in range(n)]) for n in depths])

    complete = explain(nn.ModuleDict({"a": stack([2, 2, 2])})).text()
    assert line_of(complete, "a.{0..2}.{0,1}.weight")
    ragged = explain(nn.ModuleDict({"a": stack([2, 3, 2])})).text()
    assert line_of(ragged, "a.{0..2}.0.weight") and line_of(ragged, "a.{0..2}.1.weight")
    assert line_of(ragged, "a.1.2.weight")


def test_many_runs_of_layers_are_cut_short() -> None:
    layers = nn.ModuleList([nn.Linear(4, 6 if i % 4 == 3 else 8, bias=False) for i in range(24)])
    text = explain(layers).text()
    assert line_of(text, "{0..2,4..6,..,20..22}.weight") and line_of(text, "{3,7,..,23}.weight")


def test_without_a_terminal_every_row_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    explained = explain(models.llama())
    print(explained)
    assert capsys.readouterr().out == explained.text() + "\n"


def squeezed(text: str) -> str:
    return "".join(text.split())


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("build", [models.gpt2, models.gpt_oss, models.olmoe])
def test_everything_fits_and_nothing_is_lost(build: type, width: int) -> None:
    explained = explain(build())
    text = explained.text(width=width)
    assert max(map(len, text.splitlines())) <= width
    for line in text.splitlines():
        assert line == line.rstrip()
    # Wrapped reasons beside the table have other columns between their lines: then their words are looked for.
    beside = "reason" in text.splitlines()[0]
    for row in explained.rows:
        if beside:
            assert all(word in text for word in row.reason.split())
        else:
            assert squeezed(row.reason) in squeezed(text)
    for name in ("embed_tokens" if build is not models.gpt2 else "wte", "spectral", "row_norm", "adamw"):
        assert name in text
    assert f"{explained.model}:parameters" not in text and squeezed("optimizer state") in squeezed(text)


def test_the_layouts_follow_the_width() -> None:
    explained = explain(models.gpt2())
    first = {width: explained.text(width=width).splitlines()[0].split() for width in (60, 100, 160)}
    assert first[160] == ["name", "shape", "role", "view", "rule", "lr", "decay", "reason"]
    assert first[100] == ["name", "shape", "role", "rule", "lr", "decay"]
    assert first[60] == ["name"]
    # Where the column of views is gone, reasons tell them.
    name = "transformer.h.{0,1}.attn.c_attn.weight"
    after = explained.text(width=100).split(name)[1]
    assert "seen as transposed, 3 fused matrices" in after.splitlines()[1]
    assert explained.text(width=1) == explained.text(width=60)


def test_columns_are_aligned() -> None:
    lines = explain(models.gpt_oss()).text().splitlines()
    header, rows = lines[0], [line for line in lines if line.startswith(("model.", "lm_head."))]
    assert len(rows) == 20
    for column in ("shape", "role", "view", "rule", "reason"):
        at = header.index(column)
        assert all(line[at - 1] == " " and line[at] != " " for line in rows), column


def test_roles_stand_together_in_the_order_of_the_network() -> None:
    assert sorted(role for section in SECTIONS for role in section) == sorted(ROLES)
    table = explain(models.olmoe()).text().split("\n\nOlmoeForCausalLM")[0].split("\nview ")[0]
    sections = [[line.split()[2] for line in block.splitlines()] for block in table.split("\n\n")]
    assert [set(section) - {"role"} for section in sections if section] == [
        {"embedding"}, {"attention"}, {"expert_in", "expert_out", "router"}, {"lm_head"}, {"vector"},
    ]  # fmt: skip


def test_very_long_names_are_broken_at_their_dots() -> None:
    deep = nn.ModuleDict({"a" * 30: nn.ModuleDict({"b" * 30: nn.ModuleDict({"c" * 70: nn.Linear(3, 4)})})})
    lines = explain(deep).text(width=60).splitlines()
    at = lines.index("a" * 30)
    assert lines[at + 1 : at + 4] == ["." + "b" * 30, "." + "c" * 59, "c" * 11 + ".weight"]


def test_colours_only_when_asked_and_only_colours() -> None:
    explained = explain(OddStack(), overrides=[("tokens", {"rule": "row_norm"})])
    for width in (None, *WIDTHS):
        plain, painted = explained.text(width=width), explained.text(width=width, color=True)
        assert "\x1b" not in plain and "\x1b[" in painted
        bare = ESCAPE.sub("", painted)
        bars = [line for line in painted.splitlines() if "\x1b[7" in line]
        assert len(bars) == 1 and len(ESCAPE.sub("", bars[0])) == min(width or 80, 100)
        without_bar = bare.replace(ESCAPE.sub("", bars[0]) + "\n\n", "")
        assert [line.rstrip() for line in without_bar.splitlines()] == plain.splitlines()
    assert "\x1b[1;31munknown" in explained.text(color=True)


def test_each_rule_has_a_colour_of_its_own() -> None:
    text = explain(models.gpt_oss(), "symmetry_paper").text(color=True)
    codes = {
        rule: set(re.findall(rf"\x1b\[(\d+)m{rule} *\x1b", text)) for rule in ("spectral", "row_norm", "left_spectral")
    }
    assert all(len(code) == 1 for code in codes.values())
    assert len(set.union(*codes.values())) == 3


def test_unknown_parameters_are_pointed_out_with_the_way_out() -> None:
    text = explain(Odd()).text()
    assert "!! 1 of unknown role: mixing" in text and '(r"mixing", {"role": "hidden", "view": "matrix"})' in text
    settled = explain(Odd(), overrides=[(r"mixing", {"role": "hidden", "view": "matrix"})])
    assert settled.rows[0][2:5] == ("hidden", "matrix", "spectral") and "unknown" not in settled.text()
    bare = [("a.b", torch.zeros(2, 3, 4, requires_grad=True))]
    assert r'(r"a\.b"' in explain(bare).text()


def test_the_way_out_works_for_every_layer_and_stands_last() -> None:
    text = explain(OddStack()).text(width=100)
    assert "!! 3 of unknown role: layers.{0..2}.mixing" in text
    pattern = re.search(r'r"(.*?)"', text.partition("What would settle it:")[2])
    assert pattern and text.index("What would settle it") > text.index("optimizer state")
    settled = explain(OddStack(), overrides=[(pattern[1], {"role": "hidden", "view": "matrix"})])
    assert all(row.role != "unknown" for row in settled.rows)


def test_what_shapes_alone_say_is_marked() -> None:
    named = [("first.thing", torch.zeros(6, 4, requires_grad=True)), ("gain", torch.zeros(4, requires_grad=True))]
    assert "? 1 matrices have their role by shape alone: first.thing" in explain(named).text()
    assert "by shape alone" not in explain(models.gpt2()).text()


def test_training_tokens_are_told_only_where_they_mean_something() -> None:
    dense = explain(models.llama())
    weights = sum(row.numel for row in dense.rows if row.role not in ("embedding", "vector"))
    (sentence,) = [line for line in dense.text().splitlines() if "as much as training" in line]
    tokens = float(re.search(r"on ([0-9.]+)k? tokens", sentence)[1])  # type: ignore[index]
    assert tokens == pytest.approx(
        (dense.flops or 0) / (6 * weights) / (1000 if "k tokens" in sentence else 1), rel=5e-3
    )
    for other in (models.olmoe(), models.ConvNet(), OddStack()):
        assert "as much as training" not in explain(other).text()


@given(st.sets(st.tuples(st.integers(0, 6), st.integers(0, 3)), min_size=1))
def test_collapsed_names_stand_for_all_items_once(places: set[tuple[int, int]]) -> None:
    names = [f"layers.{a}.experts.{b}.weight" for a, b in sorted(places)]
    lines = list(collapse(names, str, lambda name: None))
    assert sorted(name for _, members in lines for name in members) == sorted(names)
    assert all(re.fullmatch(pattern_of(names[0]), name) for name in names)


def test_names_given_twice_end() -> None:
    twice = [("a.0.w", torch.zeros(2, 3, requires_grad=True)), ("a.0.w", torch.zeros(2, 3, requires_grad=True))]
    assert explain(twice).text().count("a.0.w ") == 2


def test_show_prints_for_the_stream(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    explained: Explanation = explain(models.gpt2())
    explained.show()
    assert capsys.readouterr().out == explained.text() + "\n"
    explained.show(width=80, color="always")
    assert capsys.readouterr().out == explained.text(width=80, color=True) + "\n"
