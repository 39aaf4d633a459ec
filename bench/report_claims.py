"""The end of the report: limits kept or not, what each file was made on, and the files themselves."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from orthoopt.bench.report_html import Result, Table, table_html
from orthoopt.bench.report_svg import short

_STATES = {True: ("holds", "✓ kept"), False: ("fails", "✗ not kept"), None: ("unmeasured", "not measured")}
_KNOWN = ("what", "value", "limit", "at_least", "holds")


def _claims(results: Sequence[Result]) -> list[tuple[Result, Mapping[str, Any]]]:
    """Each limit with its file; ``holds`` is True, False or None."""
    found: list[tuple[Result, Mapping[str, Any]]] = []
    for result in results:
        listed = result.value.get("must_show")
        for claim in listed if isinstance(listed, list) else []:
            if isinstance(claim, Mapping) and "what" in claim:
                holds = claim.get("holds")
                found.append((result, {**claim, "holds": holds if isinstance(holds, bool) else None}))
    return found


def counted(results: Sequence[Result]) -> tuple[int, int, int]:
    """How many limits are kept, not kept, and not measured."""
    states = [claim.get("holds") for _, claim in _claims(results)]
    return states.count(True), states.count(False), states.count(None)


def gpu_line(results: Sequence[Result]) -> str:
    """Which GPUs there are figures of."""
    names = [str(result.machine["gpu"].get("name", "a GPU")) for result in results if result.on_gpu]
    return ", ".join(dict.fromkeys(names)) or "not measured"


def claims_html(results: Sequence[Result], links: Mapping[Path, str]) -> str:
    """All limits, those that are not kept first."""
    claims = sorted(_claims(results), key=lambda pair: (False, None, True).index(pair[1].get("holds")))
    parts = ['<section><h2 id="claims">Held to</h2>']
    if not claims:
        return parts[0] + "<p>No file here states limits.</p></section>"
    kept, failed, unmeasured = counted(results)
    parts.append(
        f"<p>Limits that the library holds its own speed and memory to, as the result files state them: {kept} kept, "
        f"{failed} not kept, {unmeasured} not measured.</p>"
    )
    lines = [(claim.get("holds"), _claim(result, claim, links[result.path])) for result, claim in claims]
    kept_ = [line for holds, line in lines if holds]
    open_ = [line for holds, line in lines if not holds]
    parts.append(f'<div class="card">{_claims_table(open_) if open_ else "<p>All are kept.</p>"}')
    if kept_:
        parts.append(f"<details><summary>{kept} kept</summary>{_claims_table(kept_)}</details>")
    parts.append('<p class="source">Data: <code>$.must_show[*]</code> of each file</p></div></section>')
    return "".join(parts)


def _claim(result: Result, claim: Mapping[str, Any], link: str) -> str:
    kind, word = _STATES[claim.get("holds")]
    value = short(claim["value"]) if isinstance(claim.get("value"), (int, float)) else "-"
    limit = short(claim["limit"]) if isinstance(claim.get("limit"), (int, float)) else "?"
    beside = ", ".join(f"{key} {_spelled(item)}" for key, item in claim.items() if key not in _KNOWN)
    return (
        f'<tr><td class="{kind}">{word}</td><td class="number">{escape(value)}</td>'
        f'<td class="number">{"≥" if claim.get("at_least") else "≤"} {escape(limit)}</td>'
        f'<th scope="row" class="words">{escape(str(claim["what"]))}</th><td class="words">{escape(beside)}</td>'
        f'<td><a href="{escape(link)}">{escape(result.name)}</a></td></tr>'
    )


def _claims_table(rows: Sequence[str]) -> str:
    heads = ("", "value", "limit", "what", "of", "file")
    head = "".join(f'<th scope="col"{_NUMBER if name in heads[1:3] else ""}>{name}</th>' for name in heads)
    return (
        '<div class="wide-table" role="region" tabindex="0" aria-label="Limits"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


_NUMBER = ' class="number"'


def _spelled(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def machines_html(results: Sequence[Result], links: Mapping[Path, str]) -> str:
    """What each file was made on, and with."""
    rows, releases = [], []
    for result in results:
        block = result.machine
        git, gpu, versions = block["git"], block["gpu"], block["versions"]
        commit = str(git.get("commit", "unknown"))[:12] + (" with changes" if git.get("dirty") else "")
        numbers = [str(block.get(key, "")) for key in ("cores", "torch_threads", "load_average")]
        time = str(block.get("time", "")).replace("T", " ")[:16]
        rows.append((result.name, time, str(gpu.get("name") or block.get("cpu", "")), commit, *numbers))
        releases.append((result.name, ", ".join(f"{name} {release}" for name, release in versions.items())))
    table = table_html(
        Table(("file", "UTC", "machine", "commit", "cores", "threads", "load"), rows, left=4), "Machines"
    )
    also = table_html(Table(("file", "releases"), releases, left=2), "Releases")
    gpu_said = gpu_line(results)
    note = "GPU: not measured; no file here was made on one." if gpu_said == "not measured" else f"GPU: {gpu_said}."
    return (
        f'<section><h2 id="machines">Machines</h2><p>{escape(note)} Compare figures of one file only, or of files '
        f'whose rows agree.</p><div class="card">{table}<details><summary>Releases</summary>{also}</details>'
        '<p class="source">Data: <code>$.machine</code> of each file</p></div></section>'
    )


def files_html(results: Sequence[Result], others: Sequence[tuple[Path, str]], links: Mapping[Path, str]) -> str:
    """Every file, with a button that saves the copy inside this page; and JSON files that are no results."""
    rows, data = [], []
    for number, result in enumerate(results):
        text = json.dumps(result.value, separators=(",", ":"), ensure_ascii=True).replace("<", "\\u003c")
        data.append(f'<script type="application/json" id="data-{number}">{text}</script>')
        button = (
            f'<button type="button" hidden data-save="data-{number}" data-name="{escape(result.name)}">Save</button>'
        )
        rows.append(
            f'<tr><th scope="row"><a href="{escape(links[result.path])}">{escape(result.name)}</a></th>'
            f'<td>{escape(str(result.value["bench"]))}</td><td class="number">{len(text) / 1e3:,.0f} kB</td>'
            f"<td>{button}</td></tr>"
        )
    listed = "".join(
        f'<li><a href="{escape(links[path])}">{escape(path.name)}</a>: {escape(reason)}</li>' for path, reason in others
    )
    also = f"<h3>Also there, and not shown</h3><ul>{listed}</ul>" if others else ""
    heads = '<th scope="col">file</th><th scope="col">bench</th><th scope="col" class="number">size</th>'
    return (
        '<section><h2 id="files">Files</h2><p>This page carries a copy of each; the links lead to the files where the '
        'page was made.</p><div class="card"><div class="wide-table" role="region" tabindex="0" aria-label="Files">'
        f'<table><thead><tr>{heads}<th scope="col">copy</th></tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
        f"{also}</div>{''.join(data)}</section>"
    )
