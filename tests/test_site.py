"""The documentation site: built without a warning, whole, and readable offline, on a desktop and on a phone."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import docs_figures
import pytest

import orthoopt

pytest.importorskip("mkdocs")
yaml = pytest.importorskip("yaml")

ROOT = Path(__file__).parents[1]
PAGES = [page for page in sorted((ROOT / "docs").rglob("*.md")) if page.parent.name != "site"]
CHROMIUM = shutil.which("chromium")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]  # fmt: skip


@pytest.fixture
def layout(monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any]:
    """The modules that lay out the pages and write the reference."""
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "site"))
    return importlib.import_module("pages"), importlib.import_module("reference")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site as `make docs` builds it, in a folder of its own. A warning fails the build."""
    folder = tmp_path_factory.mktemp("docs") / "site"
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    command = [sys.executable, "-P", "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING" not in done.stderr and not done.stdout, done.stdout + done.stderr
    return folder


def test_links_out_of_the_documents_lead_to_pages_of_their_own(
    layout: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages, _ = layout
    monkeypatch.setattr(pages, "ROOT", tmp_path)
    for name, text in {
        "docs/site/style.css": "",
        "docs/a.md": "[b](sub/b.md#x) [s](../src/s.py) [f](../src) [web](https://x.y/z.md) `[c](../no.md)`\n",
        "docs/sub/b.md": "[a](../a.md)\n\n```\n[c](../no.md)\n```\n\n<!-- reference: one, two -->\n",
        "src/s.py": "# [no](link.md)\n",
        "src/n.json": "{}",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    out = tmp_path / "out"
    pages.assemble(out, lambda name: f"<{name}>")
    first, second = (out / "a.md").read_text(), (out / "sub" / "b.md").read_text()
    assert "[b](sub/b.md#x) [s](repository/src/s.py.md) [f](repository/src/files.md)" in first
    assert "[web](https://x.y/z.md) `[c](../no.md)`" in first
    assert "[a](../a.md)" in second and "[c](../no.md)" in second and "<one>\n\n<two>" in second
    assert "~ python\n# [no](link.md)" in (out / "repository" / "src" / "s.py.md").read_text()
    assert "[n.json](n.json)" in (out / "repository" / "src" / "files.md").read_text()
    assert (out / "repository" / "src" / "n.json").read_text() == "{}"
    (tmp_path / "docs" / "a.md").write_text("[gone](gone.md)\n")
    with pytest.raises(FileNotFoundError, match=r"docs/a\.md links to gone\.md"):
        pages.assemble(out, str)


def test_a_docstring_becomes_a_signature_and_lists(layout: tuple[Any, Any]) -> None:
    text = layout[1].reference("orthoopt.Muon")
    assert text.startswith("### orthoopt.Muon { #orthoopt.Muon }")
    assert "    lr: float | Tensor = 0.001,\n" in text and "    *,\n" in text
    assert "**Args**\n\n- `params`: a model, named parameters, bare parameters (shapes decide, with a warning)," in text
    assert "see `orthoopt.weight_decay`" in text and ":mod:" not in text and "``" not in text.replace("```", "")


class Parts(HTMLParser):
    """What a page can be linked at, where it links to, and what it loads."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = dict(attributes)
        self.anchors |= {name for name in (given.get("id"), given.get("name") if tag == "a" else None) if name}
        if tag == "a" and given.get("href"):
            self.links.append(str(given["href"]))
        self.loaded += [str(given["src"])] if given.get("src") else []
        if tag == "link" and given.get("rel") in ("stylesheet", "preload", "preconnect", "icon"):
            self.loaded.append(str(given["href"]))


@pytest.fixture(scope="module")
def parts(site: Path) -> dict[Path, Parts]:
    return {page: Parts(page) for page in sorted(site.rglob("*.html"))}


def test_every_link_and_anchor_of_the_site_leads_somewhere(site: Path, parts: dict[Path, Parts]) -> None:
    assert len(parts) >= len(PAGES)
    lost = []
    for page, found in parts.items():
        base = site if page.name == "404.html" else page.parent
        for link in found.links:
            url = urlsplit(link)
            if url.scheme or url.netloc:
                continue
            path = unquote(url.path).lstrip("/") if page.name == "404.html" else unquote(url.path)
            target = (base / path).resolve() if path else page
            target = target / "index.html" if target.is_dir() else target
            anchors = parts[target].anchors if target in parts else set()
            if not target.exists() or (url.fragment and target in parts and unquote(url.fragment) not in anchors):
                lost.append(f"{page.relative_to(site)}: {link}")
    assert not lost, "\n".join(lost)


def test_the_site_loads_nothing_from_elsewhere(parts: dict[Path, Parts]) -> None:
    for page, found in parts.items():
        for url in found.loaded:
            assert not urlsplit(url).scheme and not urlsplit(url).netloc, (page.name, url)


def pages_of(entry: Any) -> Iterator[str]:
    """The pages of a part of the navigation."""
    if isinstance(entry, str):
        yield entry
    else:
        for item in entry.values() if isinstance(entry, dict) else entry:
            yield from pages_of(item)


def test_every_page_is_in_the_navigation_once(parts: dict[Path, Parts]) -> None:
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    listed = list(pages_of(yaml.safe_load(text[text.index("\nnav:") :])["nav"]))
    assert len(listed) == len(set(listed))
    assert {page.relative_to(ROOT / "docs").as_posix() for page in PAGES} <= set(listed)


def test_the_reference_has_every_public_name(site: Path, parts: dict[Path, Parts]) -> None:
    anchors = parts[site / "api.html"].anchors
    modules = {"hf", "plans", "rules"}
    missing = [name for name in orthoopt.__all__ if name not in modules and f"orthoopt.{name}" not in anchors]
    assert not missing
    assert {"orthoopt.hf.OptimizerFactory", "orthoopt.plans.get", "orthoopt.rules.get"} <= anchors


@pytest.mark.parametrize("page", docs_figures.RULES, ids=lambda page: page.name)
def test_figures_of_rules_are_those_of_the_result_files(page: Path) -> None:
    """Mended by `python tests/docs_figures.py`."""
    text = page.read_text(encoding="utf-8")
    assert docs_figures.MARKER.search(text), "no measured behaviour"
    assert docs_figures.with_tables(text) == text
    headings = [line for line in text.splitlines() if line.startswith("## ")]
    for wanted in ("When", "Measured", "What the tests prove", "Source"):
        assert any(wanted in line for line in headings) or f"**{wanted}" in text, wanted


def test_the_comparisons_in_the_readme_are_those_of_the_result_files() -> None:
    """Mended by `python tests/docs_figures.py`."""
    text = docs_figures.README.read_text(encoding="utf-8")
    assert len(docs_figures.TRAINED.findall(text)) == 2
    assert docs_figures.with_tables(text) == text
    told = text.partition("**AdamW against the symmetry stack.**")[2].partition("![")[0]
    tables = " ".join(found["shown"] for found in docs_figures.TRAINED.finditer(text))
    figures = re.findall(r"-?\d\.\d{3}", told)
    assert len(figures) > 15 and not [figure for figure in figures if figure not in tables]


def test_the_step_times_that_are_quoted_are_those_of_the_result_file() -> None:
    answer = " ".join((ROOT / "docs" / "faq.md").read_text(encoding="utf-8").partition("## 17.")[2].split())
    for words in docs_figures.step_times():
        assert words in answer, words
    readme = " ".join(docs_figures.README.read_text(encoding="utf-8").split())
    for words in (*docs_figures.step_ratios(), *docs_figures.shares_of_product()):
        assert words in readme, words
    speed = " ".join((ROOT / "docs" / "speed.md").read_text(encoding="utf-8").split())
    assert docs_figures.shares_of_product()[0].replace("matrix product", "product") in speed


@pytest.mark.timeout(900)
@pytest.mark.slow  # a browser opens every page twice
@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
@pytest.mark.parametrize("width", [1280, 390])
def test_pages_open_without_errors_and_fit_the_screen(site: Path, parts: dict[Path, Parts], width: int) -> None:
    from playwright.sync_api import sync_playwright

    problems: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": width, "height": 900})
        page.on("pageerror", lambda error: problems.append(f"{page.url}: {error}"))
        # What is still on its way when the next page is asked for is broken off.
        page.on("requestfailed", lambda request: request.failure == "net::ERR_ABORTED" or problems.append(
            f"{page.url}: {request.url}: {request.failure}"))  # fmt: skip
        page.on("request", lambda request: request.url.startswith(("file:", "data:", "blob:")) or problems.append(
            f"{page.url}: asks for {request.url}"))  # fmt: skip
        for path in parts.keys() - {site / "404.html"}:  # whose links begin at a server's root
            page.goto(path.as_uri())
            wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
            if wide > 0:
                problems.append(f"{path.name}: {wide} pixels wider than the screen")
        page.goto((site / "index.html").as_uri() + "?q=orthogonalize")
        page.wait_for_selector(".md-search-result__item", timeout=20_000)
        browser.close()
    assert not problems, "\n".join(problems)
