"""`orthoopt bench report`: one page, readable offline, from all result files of a folder."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from html import escape
from pathlib import Path

from orthoopt.bench.report_claims import claims_html, counted, files_html, gpu_line, machines_html
from orthoopt.bench.report_finetune import finetune
from orthoopt.bench.report_html import Figure, Part, Result, Section, figure_html, table_html
from orthoopt.bench.report_other import anything, loader, state_dtype
from orthoopt.bench.report_page import SCRIPT, STYLE
from orthoopt.bench.report_polar import coefficients, dct, orthogonalize
from orthoopt.bench.report_steps import memory, steps
from orthoopt.bench.report_training import training
from orthoopt.bench.results_file import DEFAULT_FOLDER

_READERS: dict[str, Callable[[Result], Iterator[Part]]] = {
    "pretrain": training,
    "finetune": finetune,
    "step": steps,
    "orthogonalize": orthogonalize,
    "memory": memory,
    "state_dtype": state_dtype,
    "coefficients": coefficients,
    "dct": dct,
    "loader": loader,
}
"""Benches whose files are drawn, in the order of the page."""

_MOST_VERDICTS = 6

_BROKEN = (KeyError, TypeError, ValueError, IndexError, AttributeError, ZeroDivisionError)


def main(argv: Sequence[str] | None = None) -> int:
    """Write the page; 0, or 2 where there is nothing to read or a file is no JSON object."""
    options = _parse(sys.argv[1:] if argv is None else argv)
    folders = [Path(folder) for folder in options.results or [DEFAULT_FOLDER]]
    out = Path(options.out) if options.out else Path(os.environ.get("OUT") or folders[0]) / "report.html"
    try:
        results, others = read(folders)
        text, troubles = page(results, others, out)
        out.parent.mkdir(parents=True, exist_ok=True)
        building = out.with_name(f".{out.name}.{os.getpid()}")
        building.write_text(text, encoding="utf-8")
        building.replace(out)
    except (ReportError, OSError) as error:
        print(f"orthoopt bench report: error: {error}", file=sys.stderr)
        return 2
    for trouble in troubles:
        print(f"orthoopt bench report: {trouble}", file=sys.stderr)
    print(f"{out}: {len(results)} result files, {len(text) / 1e6:.1f} MB")
    return 0


class ReportError(ValueError):
    """There is nothing to make a page from."""


def read(folders: Sequence[Path]) -> tuple[list[Result], list[tuple[Path, str]]]:
    """The result files of the folders, by name, and the JSON files that are none, each with the reason.

    Raises:
        ReportError: a folder is none, or none holds a result.
    """
    results, others = [], []
    for folder in folders:
        if not folder.is_dir():
            raise ReportError(f"--results {folder}: no such folder")
        for path in sorted(folder.glob("*.json")):
            try:
                value = json.loads(path.read_text(encoding="utf-8"))
            except (UnicodeDecodeError, json.JSONDecodeError) as error:
                others.append((path, f"no JSON: {error}"))
                continue
            if isinstance(value, dict) and isinstance(value.get("bench"), str):
                results.append(Result(path.name, path, value))
            else:
                others.append((path, "not written by a bench: it has no name under `bench`"))
    if not results:
        raise ReportError(f"--results {' '.join(map(str, folders))}: no result file of a bench there")
    return results, others


def page(results: Sequence[Result], others: Sequence[tuple[Path, str]], out: Path) -> tuple[str, list[str]]:
    """The page as HTML, and what could not be drawn.

    Args:
        results: the files to show.
        others: JSON files that are listed only, each with the reason.
        out: where the page will stand, for links to the files.
    """
    order = list(_READERS)
    place = {result.name: order.index(_kind(result)) if _kind(result) in order else len(order) for result in results}
    results = sorted(results, key=lambda result: (place[result.name], _earlier(result), result.name))
    links = {result.path: _link(result.path, out) for result in results} | {
        path: _link(path, out) for path, _ in others
    }
    drawn = [_section(result, links[result.path], f"part-{number}") for number, result in enumerate(results)]
    titles = [section.title for section, _, _ in drawn]
    names, sections, troubles = [], [], []
    for number, (section, html, found) in enumerate(drawn):
        title = section.title if titles.count(section.title) == 1 else f"{section.title} ({section.result.path.stem})"
        names.append((title, f"part-{number}"))
        sections.append(f'<section><h2 id="part-{number}">{escape(title)}</h2>{html}</section>')
        troubles += [f"{section.result.name}: {trouble}" for trouble in found]
    names += [("Held to", "claims"), ("Machines", "machines"), ("Files", "files")]
    menu = "".join(f'<li><a href="#{anchor}">{escape(title)}</a></li>' for title, anchor in names)
    parts = [
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>orthoopt: measured</title>\n<style>{STYLE}</style>\n</head>\n<body>",
        "<header><div><h1>orthoopt: what was measured</h1>",
        '<p class="soft">Every figure on this page is drawn from the result file named below it, at the path named '
        "there. The page needs no network.</p></div>",
        '<button id="theme" type="button" hidden>Dark page</button></header>\n<main>',
        _facts(results),
        _brief([section for section, _, _ in drawn]),
        f'<nav aria-label="Parts of the page"><ul>{menu}</ul></nav>',
        *sections,
        claims_html(results, links),
        machines_html(results, links),
        files_html(results, others, links),
        '</main>\n<footer>Made by <code>orthoopt bench report</code>.</footer>\n<div id="tip" hidden></div>',
        f"<script>{SCRIPT}</script>\n</body>\n</html>\n",
    ]
    return "\n".join(parts).encode("ascii", "xmlcharrefreplace").decode("ascii"), troubles


def _kind(result: Result) -> str:
    """The bench a file is of; of another that compares plans by training, that one."""
    name, plans = str(result.value["bench"]), result.value.get("plans")
    alike = isinstance(plans, dict) and all(isinstance(plan, dict) and "seeds" in plan for plan in plans.values())
    return "pretrain" if name not in _READERS and plans and alike else name


def _earlier(result: Result) -> tuple[bool, int]:
    """Tuned comparisons before quick ones, few arms before many."""
    plans = result.value.get("plans")
    return ("title" not in result.value, len(plans) if isinstance(plans, dict) else 0)


def _section(result: Result, link: str, anchor: str) -> tuple[Section, str, list[str]]:
    """A file's part of the page: the section, its HTML, and what could not be drawn of it."""
    section, figures, troubles = Section(result.name, result), [], []
    parts = _READERS.get(_kind(result), anything)(result)
    while True:
        try:
            part = next(parts, None)
            if part is None:
                break
            if isinstance(part, Section):
                section = part
                continue
            made = part()
            for figure in [made] if isinstance(made, Figure) else made:
                figures.append(figure_html(figure, result, link))
        except _BROKEN as error:
            what = f"there is no {error}" if isinstance(error, KeyError) else str(error)
            troubles.append(f"a figure could not be drawn: {what}")
    html = [f"<p>{escape(line)}</p>" for line in [*section.lines, _made(result)]]
    if section.verdicts:
        html.append(_verdicts(section.verdicts))
    html += figures
    for title, table in section.tables:
        html.append(
            f'<div class="card"><h3>{escape(title)}</h3>{table_html(table, title)}{_source(result, link)}</div>'
        )
    if not figures and not section.tables:
        html.append(f'<div class="card"><p>Nothing of this file can be drawn.</p>{_source(result, link)}</div>')
    html += [f'<p class="card alarm">{escape(trouble)}</p>' for trouble in troubles]
    return section, "".join(html), troubles


def _verdicts(verdicts: Sequence[str]) -> str:
    """What a file states in words; folded where it is long."""
    items = f'<ul class="verdicts">{"".join(f"<li>{escape(verdict)}</li>" for verdict in verdicts)}</ul>'
    if len(verdicts) > _MOST_VERDICTS:
        items = f"<details><summary>{len(verdicts)} comparisons</summary>{items}</details>"
    return f'<div class="card"><h3>Stated in the file</h3>{items}</div>'


def _brief(sections: Sequence[Section]) -> str:
    """What the comparisons by training state of the symmetry plans, at the top of the page."""
    said = [section for section in sections if section.brief]
    if not said:
        return ""
    note = "Losses at the end of the schedule in nats per token, each arm at its own best learning rate."
    parts = [f'<div class="card"><h3>In short</h3><p class="soft">{note}</p>']
    for section in said:
        items = "".join(f"<li>{escape(line)}</li>" for line in section.brief)
        parts.append(f'<p>{escape(section.title)}</p><ul class="verdicts">{items}</ul>')
    return "".join([*parts, "</div>"])


def _source(result: Result, link: str) -> str:
    return f'<p class="source">Data: <a href="{escape(link)}">{escape(result.name)}</a></p>'


def _made(result: Result) -> str:
    """Where and when a file was made, in a line."""
    block = result.machine
    if "cpu" not in block and not block["gpu"]:
        return "The file does not say on what machine it was made."
    gpu, versions, git = block["gpu"], block["versions"], block["git"]
    threads = block.get("torch_threads")
    cpu = f"{block.get('cores', '?')} cores of {block.get('cpu', 'an unknown processor')}"
    parts = [
        str(gpu.get("name") or "") or cpu + {None: "", 1: ", one thread"}.get(threads, f", {threads} threads"),
        str(block.get("time", ""))[:10],
        f"torch {versions['torch']}" if "torch" in versions else "",
        f"commit {str(git['commit'])[:12]}{' with changes' if git.get('dirty') else ''}" if git.get("commit") else "",
    ]
    return "; ".join(part for part in parts if part) + "."


def _facts(results: Sequence[Result]) -> str:
    kept, failed, unmeasured = counted(results)
    times = sorted(str(result.machine.get("time", ""))[:10] for result in results if result.machine.get("time"))
    facts = [("result files", str(len(results)))]
    if times:
        facts.append(("measured", times[0] if times[0] == times[-1] else f"{times[0]} to {times[-1]}"))
    if kept + failed + unmeasured:
        facts.append(("limits held to", f"{kept} of {kept + failed + unmeasured} kept"))
    facts.append(("GPU", gpu_line(results)))
    return '<dl class="facts">' + "".join(f"<div><dt>{n}</dt><dd>{escape(v)}</dd></div>" for n, v in facts) + "</dl>"


def _link(path: Path, out: Path) -> str:
    """From the page to a file, as a relative URL."""
    from urllib.parse import quote

    return quote(Path(os.path.relpath(path.resolve(), out.resolve().parent)).as_posix())


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="orthoopt bench report",
        description="One self-contained HTML page from every JSON file in the folders of results: curves, bars, what "
        "the library holds itself to, and on what machine each file was made. JSON files of others are listed.",
        allow_abbrev=False,
    )
    parser.add_argument("--results", nargs="+", metavar="FOLDER", help=f"folders of results, default {DEFAULT_FOLDER}")
    parser.add_argument("--out", help="the page; default report.html in $OUT, else in the first folder")
    return parser.parse_args(argv)


if __name__ == "__main__":
    raise SystemExit(main())
