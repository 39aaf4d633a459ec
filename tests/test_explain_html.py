"""The page: well-formed, needs nothing from anywhere, tells everything, and lets nobody's names run as code."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import models
import pytest
import torch
from test_explain_table import OddStack
from torch import nn

from orthoopt import explain_html
from orthoopt.explain import explain
from orthoopt.explain_lines import lines_of

VOID = {"meta", "input", "br", "hr", "img", "link"}


class Page(HTMLParser):
    """Checks that elements close in order, and keeps what there is."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs), (tag, attrs)
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.words.append(data)

    @property
    def text(self) -> str:
        return "".join(self.words)

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


BUILDS = [models.gpt2, models.gpt_oss, models.olmoe, OddStack, models.ConvNet]


@pytest.mark.parametrize("build", BUILDS)
def test_the_page_is_whole_and_well_formed(build: type) -> None:
    explained = explain(build())
    html = explained.html()
    assert html.isascii() and html.startswith("<!DOCTYPE html>")
    page = Page(html)
    for line in lines_of(explained.rows):
        assert line.name in page.text and line.rows[0].reason in page.text
    for share in explained.shares:
        assert share.role in page.text and share.rule in page.text
    (root,), (title,) = page.named("html"), page.named("title")
    assert root == {"lang": "en"} and title == {}
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert all("aria-label" in attributes for attributes in page.named("input") + page.named("select"))
    rows = [attributes for attributes in page.named("tr") if "data-role" in attributes]
    assert len(rows) == len(lines_of(explained.rows))


@pytest.mark.parametrize("build", BUILDS)
def test_the_page_needs_nothing_from_anywhere(build: type) -> None:
    html = explain(build()).html()
    assert not re.search(r"https?:|//[a-z]|@import|url\(|fetch\(|XMLHttp", html)
    for tag, attributes in Page(html).elements:
        assert tag not in ("link", "img", "iframe", "object", "embed")
        assert not {"src", "href", "srcset", "onclick"} & attributes.keys()
    assert "prefers-color-scheme: dark" in html and "width=device-width" in html


def test_without_the_script_only_the_controls_are_missing() -> None:
    page = Page(explain(models.gpt2()).html())
    hidden = [attributes.get("id") for _, attributes in page.elements if "hidden" in attributes]
    assert hidden == ["controls"]


def test_hostile_names_stay_text() -> None:
    evil = '<script>alert("1")</script>&amp;\u00e9"\'>'
    params = [
        (f"a.{evil}.weight", torch.zeros(4, 6, requires_grad=True)),
        (evil, torch.zeros(3, 2, 2, requires_grad=True)),
    ]
    html = explain(params, overrides=[("^a", {"role": "attention"})]).html()
    page = Page(html)
    assert html.isascii() and html.count("<script>") == 1 and "alert(" not in html.partition("<script>")[2]
    assert f"a.{evil}.weight" in page.text and evil in page.text
    assert any(evil in (attributes.get("title") or "") for attributes in page.named("i"))


class Wild(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(4, 6))


def test_a_hostile_class_name_stays_text() -> None:
    Wild.__name__ = "</title><script>x</script>"
    page = Page(explain(Wild()).html())
    assert len(page.named("script")) == 1 and "</title><script>x</script> under plan symmetry" in page.text


def percent(style: str, name: str) -> float:
    found = re.search(rf"{name}:([0-9.]+)%", style)
    assert found
    return float(found[1])


def test_areas_are_in_proportion_to_elements() -> None:
    explained = explain(models.olmoe())
    cells = {(cell["title"] or "").partition(":")[0]: cell["style"] or "" for cell in Page(explained.html()).named("i")}
    total = sum(row.numel for row in explained.rows)
    assert len(cells) == len(explained.rows)
    for row in explained.rows:
        area = percent(cells[row.name], "width") * percent(cells[row.name], "height") / 10**4
        # Three decimals of a percent, for two sides of up to 100 percent.
        assert area == pytest.approx(row.numel / total, abs=2e-5)
    styles = {row.rule: re.search(r"background:([^;]*)", cells[row.name]) for row in explained.rows}
    assert len({match[1] for match in styles.values() if match}) == len(styles) == 3


def test_unknown_parameters_are_in_an_alarm_and_striped() -> None:
    html = explain(OddStack()).html()
    assert "3 tensors of unknown role" in html and html.index("unknown role") < html.index("Shares of")
    unknown = [cell for cell in Page(html).named("i") if "unknown" in (cell.get("class") or "")]
    assert len(unknown) == 3
    assert "of unknown role" not in explain(models.gpt2()).html()


def test_a_model_of_very_many_tensors_is_drawn_by_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    experts = nn.ModuleList([nn.ModuleList([nn.Linear(4, 6, bias=False) for _ in range(20)]) for _ in range(3)])
    assert len(Page(explain(experts).html()).named("i")) == 60
    monkeypatch.setattr(explain_html, "MOST_CELLS", 50)
    cells = Page(explain(experts).html()).named("i")
    assert [(cell["title"] or "").partition(",")[0] for cell in cells] == [
        f"{layer}.{{0..19}}.weight: 20 of 6x4" for layer in range(3)
    ]  # fmt: skip


def test_too_small_tensors_are_counted() -> None:
    layers = [
        ("big", torch.zeros(9000, 900, device="meta", requires_grad=True)),
        ("gain", torch.zeros(9, requires_grad=True)),
    ]
    assert "1 tensor is too small to draw" in explain(layers).html()
