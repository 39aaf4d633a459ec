"""The report in a real browser: Chromium opens it from a file, without network, and every picture is looked at."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import result_files

from orthoopt.bench import report

RESULTS = Path(__file__).parents[2] / "bench" / "results"
_NAMES = ("chromium", "chromium-browser", "google-chrome")
_QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
          "--disable-component-update", "--disable-sync", "--hide-scrollbars"]  # fmt: skip

# Of every picture that is shown: what is wrong with it, in words.
_LOOK = """
() => {
  const found = [];
  const shown = Array.from(document.querySelectorAll("figure svg")).filter(svg => svg.getClientRects().length);
  for (const svg of shown) {
    const name = svg.getAttribute("aria-label") || "chip";
    const frame = svg.getBoundingClientRect(), box = svg.viewBox.baseVal;
    if (frame.width < 5 || frame.height < 5) { found.push(name + ": empty"); continue; }
    const scale = frame.width / box.width;
    const marks = svg.querySelectorAll("path, circle, rect, line, text");
    if (!marks.length) found.push(name + ": nothing drawn");
    if (/NaN|undefined|Infinity/.test(svg.outerHTML)) found.push(name + ": not a number");
    const texts = [];
    for (const mark of marks) {
      const at = mark.getBoundingClientRect();
      const out = Math.max(frame.left - at.left, at.right - frame.right, frame.top - at.top, at.bottom - frame.bottom);
      if (out > 3) found.push(`${name}: ${mark.tagName} ${mark.textContent} ${out.toFixed(1)} px outside`);
      if (mark.tagName !== "text") continue;
      if (12 * scale < 10) found.push(`${name}: text of ${(12 * scale).toFixed(1)} px`);
      for (const [other, words] of texts) {
        const wide = Math.min(at.right, other.right) - Math.max(at.left, other.left);
        const high = Math.min(at.bottom, other.bottom) - Math.max(at.top, other.top);
        if (wide > 2 && high > 3) found.push(`${name}: "${mark.textContent}" over "${words}"`);
      }
      texts.push([at, mark.textContent]);
    }
  }
  return [shown.length, found];
}
"""


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, list[str]]]:
    """The page of all real and made-up results in a browser tab, and what the browser complained about."""
    chromium = next(filter(None, map(shutil.which, _NAMES)), None)
    if chromium is None:
        pytest.skip(f"no Chromium: none of {', '.join(_NAMES)} is on PATH; apt-get install chromium")
    driver = pytest.importorskip("playwright.sync_api", reason="playwright is not installed; pip install playwright")
    folder = tmp_path_factory.mktemp("report")
    made = folder / "made"
    made.mkdir()
    out = folder / "report.html"
    assert report.main(["--results", str(RESULTS), str(result_files.fill(made)), "--out", str(out)]) == 0
    complaints: list[str] = []
    with driver.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=_QUIET)
        context = browser.new_context(viewport={"width": 1280, "height": 900}, offline=True, color_scheme="light")
        page = context.new_page()
        page.on("console", lambda message: complaints.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: complaints.append(f"error: {error}"))
        page.on("request", lambda request: request.url.startswith(("file:", "blob:")) or complaints.append(request.url))
        page.goto(out.as_uri())
        yield page, complaints
        browser.close()


def shoot(page: Any, folder: Path, name: str) -> None:
    """A picture of the whole page, kept where ORTHOOPT_SCREENSHOTS or the folder says."""
    path = Path(os.environ.get("ORTHOOPT_SCREENSHOTS") or folder) / f"report-{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=str(path), full_page=True)
    assert path.stat().st_size > 50_000


@pytest.mark.parametrize(
    ("name", "width", "scheme"), [("light", 1280, "light"), ("dark", 1280, "dark"), ("phone", 390, "light")]
)
def test_every_picture_is_drawn(
    opened: tuple[Any, list[str]], tmp_path: Path, name: str, width: int, scheme: str
) -> None:  # fmt: skip
    page, complaints = opened
    page.set_viewport_size({"width": width, "height": 900})
    page.emulate_media(color_scheme=scheme)
    shoot(page, tmp_path, name)
    count, wrong = page.evaluate(_LOOK)
    assert count > 100 and wrong == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    light = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g)[0] > 127")
    assert light == (scheme == "light")
    assert complaints == []


def test_the_page_answers_the_pointer(opened: tuple[Any, list[str]]) -> None:
    page, complaints = opened
    page.set_viewport_size({"width": 1280, "height": 900})
    page.emulate_media(color_scheme="light")
    mark = page.locator("figure:has-text('Time of a step') .wide rect.fill").last
    said = mark.get_attribute("data-tip")
    mark.hover()
    assert said and page.locator("#tip").text_content() == said and page.locator("#tip").is_visible()
    page.locator("h1").hover()
    assert page.locator("#tip").is_hidden()
    page.locator("#theme").click()
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    page.locator("#theme").click()
    with page.expect_download() as saved:
        page.locator("button[data-name='step_cpu.json']").click()
    assert saved.value.suggested_filename == "step_cpu.json"
    assert complaints == []
