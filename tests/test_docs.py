"""Every Python block of the documents runs, and every page of a rule names a rule that there is."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from docs_blocks import run_blocks

from orthoopt import plans, rules

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.M | re.S)
LINK = re.compile(r"\]\((?!https?:)([^)#\s]+)")


def names_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


# The page of frameworks runs in test_integrations.py, which imports them anyway.
RUN = [page for page in PAGES if BLOCK.search(page.read_text()) and page.name != "swap.md"]


@pytest.mark.parametrize("page", RUN, ids=names_of)
def test_the_python_blocks_of_a_page_run_in_order(page: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # A rule that a page defines is gone with its test.
    monkeypatch.setattr(rules._base, "_RULES", dict(rules._base._RULES))
    monkeypatch.chdir(tmp_path)
    run_blocks(page)


@pytest.mark.parametrize("page", PAGES, ids=names_of)
def test_links_between_files_lead_somewhere(page: Path) -> None:
    for target in LINK.findall(page.read_text()):
        assert (page.parent / target).exists(), target


def test_every_rule_and_plan_is_documented() -> None:
    text = "\n".join(page.read_text() for page in PAGES)
    for name in (*rules.names(), *plans.names()):
        assert f"`{name}`" in text, name


def test_the_table_of_plans_is_the_result_files() -> None:
    """Every figure of the comparison, and every arm of it."""
    result = json.loads((ROOT / "bench" / "results" / "plans_cpu.json").read_text())
    lines = [line.strip("| ").split(" | ") for line in (ROOT / "docs" / "plans.md").read_text().splitlines()]
    table = {cells[0].strip("`"): cells[1:] for cells in lines if len(cells) >= 4 and cells[0].startswith("`")}
    assert table.keys() == result["plans"].keys() and set(plans.names()) <= table.keys()
    order = [result["plans"][name]["validation_loss"]["mean"] for name in table]
    assert order == sorted(order)
    for name, (rate, loss, bits, *_) in table.items():
        plan = result["plans"][name]
        assert len(plan["seeds"]) == 3 and plan["best_is_inside_grid"], name
        assert rate == f"{plan['best_learning_rate']:g}", name
        assert loss == f"{plan['validation_loss']['mean']:.3f}", name
        assert bits.split(" |")[0] == f"{plan['bits_per_byte']['mean']:.3f}", name
    for row in result["differences"]:
        (arm,) = [name for name in row["between"] if name != "adamw"]
        sign = 1 if row["between"][0] == "adamw" else -1
        mean, *interval = [sign * x for x in (row["difference"]["mean"], *row["difference"]["ci95"])]
        low, high = sorted(interval)
        assert table[arm][3] == f"{mean:.3f}, {low:.3f} to {high:.3f}", arm
