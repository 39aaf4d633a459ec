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
    return [
        (result, claim)
        for result in results
        for claim in result.value.get("must_show") or []
        if isinstance(claim, Mapping) and "what" in claim
    ]


def counted(results: Sequence[Result]) -> tuple[int, int, int]:
    """How many limits are kept, not kept, and not measured."""
    states = [claim.get("holds") for _, claim in _claims(results)]
    return states.count(True), states.count(False), states.count(None)


def gpu_line(results: Sequence[Result]) -> str:
    """Which GPUs there are figures of."""
    names = [str((result.machine.get("gpu") or {}).get("name", "a GPU")) for result in results if result.on_gpu]
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
    rows = []
    for result, claim in claims:
        kind, word = _STATES[claim.get("holds")]
        value = "-" if claim.get("value") is None else short(claim["value"])
        sign = "≥" if claim.get("at_least") else "≤"
        beside = ", ".join(f"{key} {_spelled(item)}" for key, item in claim.items() if key not in _KNOWN)
        rows.append(
            f'<tr><td class="{kind}">{word}</td><td class="number">{escape(value)}</td>'
            f'<td class="number">{sign} {escape(short(claim["limit"]))}</td>'
            f'<th scope="row" class="words">{escape(str(claim["what"]))}</th><td class="words">{escape(beside)}</td>'
            f'<td><a href="{escape(links[result.path])}">{escape(result.name)}</a></td></tr>'
        )
    heads = ("", "value", "limit", "what", "of", "file")
    head = "".join(f'<th scope="col"{_NUMBER if name in heads[1:3] else ""}>{name}</th>' for name in heads)
    parts.append(
        '<div class="card"><div class="wide-table" role="region" tabindex="0" aria-label="Limits kept or not">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
        '<p class="source">Data: <code>$.must_show[*]</code> of each file</p></div></section>'
    )
    return "".join(parts)


_NUMBER = ' class="number"'


def _spelled(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def machines_html(results: Sequence[Result], links: Mapping[Path, str]) -> str:
    """What each file was made on."""
    rows = []
    for result in results:
        block = result.machine
        git, gpu, versions = block.get("git") or {}, block.get("gpu") or {}, dict(block.get("versions") or {})
        commit = str(git.get("commit", "unknown"))[:12] + (" with changes" if git.get("dirty") else "")
        first = [f"{name} {versions.pop(name)}" for name in ("torch", "python") if name in versions]
        rest = [f"{name} {release}" for name, release in versions.items()]
        rows.append(
            (result.name, str(block.get("time", "")).replace("T", " ")[:16], str(gpu.get("name") or block.get("cpu", "")),
             str(block.get("cores", "")), str(block.get("torch_threads", "")), str(block.get("load_average", "")), commit,
             ", ".join([*first, *rest]))
        )  # fmt: skip
    header = ("file", "UTC", "machine", "cores", "threads", "load", "commit", "releases")
    table = table_html(Table(header, rows, left=8), "Machines")
    gpu = gpu_line(results)
    note = "GPU: not measured; no file here was made on one." if gpu == "not measured" else f"GPU: {gpu}."
    return (
        f'<section><h2 id="machines">Machines</h2><p>{escape(note)} Compare figures of one file only, or of files whose '
        f'rows agree.</p><div class="card">{table}<p class="source">Data: <code>$.machine</code> of each file</p></div>'
        "</section>"
    )


def files_html(results: Sequence[Result], others: Sequence[tuple[Path, str]], links: Mapping[Path, str]) -> str:
    """Every file, with a button that saves the copy inside this page; and JSON files that are no results."""
    rows, data = [], []
    for number, result in enumerate(results):
        text = json.dumps(result.value, separators=(",", ":"), ensure_ascii=True).replace("<", "\\u003c")
        data.append(f'<script type="application/json" id="data-{number}">{text}</script>')
        rows.append(
            f'<tr><th scope="row"><a href="{escape(links[result.path])}">{escape(result.name)}</a></th>'
            f'<td>{escape(str(result.value["bench"]))}</td><td class="number">{len(text) / 1e3:,.0f} kB</td>'
            f'<td><button type="button" hidden data-save="data-{number}" data-name="{escape(result.name)}">Save</button>'
            "</td></tr>"
        )
    listed = "".join(
        f'<li><a href="{escape(links[path])}">{escape(path.name)}</a>: {escape(reason)}</li>' for path, reason in others
    )
    also = f"<h3>Also there, and not shown</h3><ul>{listed}</ul>" if others else ""
    return (
        '<section><h2 id="files">Files</h2><p>This page carries a copy of each; the links lead to the files where the page '
        'was made.</p><div class="card"><div class="wide-table" role="region" tabindex="0" aria-label="Files"><table><thead>'
        '<tr><th scope="col">file</th><th scope="col">bench</th><th scope="col" class="number">size</th><th scope="col">'
        f"copy</th></tr></thead><tbody>{''.join(rows)}</tbody></table></div>{also}</div>{''.join(data)}</section>"
    )
