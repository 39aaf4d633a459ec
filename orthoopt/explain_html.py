"""An explanation as one page: what it comes to, the model drawn by its sizes, the table, and what nobody knows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

from orthoopt.explain_lines import by_size, lines_of, reason_with_view, spell_shape
from orthoopt.explain_names import NUMBER, collapse
from orthoopt.explain_page import SCRIPT, STYLE
from orthoopt.explain_summary import sentences, way_out
from orthoopt.explanation import Explanation, Row
from orthoopt.treemap import Box, treemap
from orthoopt.units import spell_bytes, spell_count, spell_flops

MOST_CELLS = 3000
"""A model of more tensors is drawn with those that differ by their numbers alone together, within each layer."""

_SMALLEST = 2e-6  # of the area: less is not drawn
_HUES = 8  # --c0 to --c7


def explanation_html(explanation: Explanation) -> str:
    """See :meth:`Explanation.html`."""
    colors = _Colors(explanation)
    title = f"{explanation.model or 'Parameters'} under plan {explanation.plan}"
    parts = [
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>",
        f"<h1>{escape(title)}</h1>",
        *_facts(explanation),
        *_unknown(explanation),
        *_shares(explanation, colors),
        *_picture(explanation, colors),
        *_rows(explanation, colors),
        f"</main>\n<script>{SCRIPT}</script>\n</body>\n</html>\n",
    ]
    return "\n".join(parts).encode("ascii", "xmlcharrefreplace").decode("ascii")


class _Colors:
    """The colour of each rule: AdamW grey, the others by size."""

    def __init__(self, explanation: Explanation) -> None:
        order = [rule for rule in by_size(explanation) if rule != "adamw"]
        self._rules = {rule: f"var(--c{place % _HUES})" for place, rule in enumerate(order)}

    def paint(self, role: str, rule: str) -> str:
        """Attributes of an element of this colour; unknown roles are striped."""
        unknown = ' class="unknown"' if role == "unknown" else ""
        return f'{unknown} style="background:{self._rules.get(rule, "var(--plain)")}'

    def chip(self, rule: str) -> str:
        """A small square of the colour."""
        color = self._rules.get(rule, "var(--plain)")
        return f'<span class="chip" style="background:{color}" aria-hidden="true"></span>'


def _facts(explanation: Explanation) -> Iterator[str]:
    count = len(explanation.rows)
    flops, state, adamw = explanation.flops, explanation.state_bytes, explanation.adamw_state_bytes
    facts = [
        ("parameters", spell_count(explanation.elements), f"in {count} tensor{'s' * (count != 1)}"),
        ("optimizer state", spell_bytes(state), f"AdamW: {spell_bytes(adamw)}"),
        ("a step", "?" if flops is None else spell_flops(flops), "counted, see below"),
        ("learning rate", f"{explanation.lr:g}", f"weight decay {explanation.weight_decay:g}"),
    ]
    cells = (f"<div><dt>{name}</dt><dd>{value}<small>{more}</small></dd></div>" for name, value, more in facts)
    yield '<dl class="facts">' + "".join(cells) + "</dl>"


def _unknown(explanation: Explanation) -> Iterator[str]:
    lines = lines_of([row for row in explanation.rows if row.role == "unknown"])
    if not lines:
        return
    count = sum(len(line.rows) for line in lines)
    yield f'<section class="alarm"><h2>{count} tensor{"s" * (count != 1)} of unknown role</h2><ul>'
    for line in lines:
        row = line.rows[0]
        said = f"{spell_shape(row)}, under {row.rule}: {row.reason}"
        yield f"<li><code>{escape(line.name)}</code> {escape(said)}</li>"
    yield f"</ul><p>What would settle it: <code>{escape(way_out(lines))}</code></p></section>"


def _shares(explanation: Explanation, colors: _Colors) -> Iterator[str]:
    total = max(explanation.elements, 1)
    shares = sorted(explanation.shares, key=lambda share: -share.elements)
    yield "<h2>Shares of the parameters</h2>"
    spoken = "; ".join(f"{share.role} {share.elements / total:.1%} under {share.rule}" for share in shares)
    yield f'<div class="bar" role="img" aria-label="{escape(spoken)}">'
    for share in shares:
        part = share.elements / total
        said = f"{share.role}, {share.rule}: {spell_count(share.elements)} parameters, {part:.1%}"
        unknown, thin = ("unknown" if share.role == "unknown" else ""), ("thin" if part < 0.05 else "")
        style = colors.paint("", share.rule).strip()
        yield (
            f'<span class="{unknown} {thin}" {style};flex:{part:.5f} 1 0%" title="{escape(said)}">'
            f"{escape(share.role) if not thin else ''}</span>"
        )
    yield "</div>"
    yield '<ul class="legend">'
    yield from (f"<li>{colors.chip(rule)}{escape(rule)}</li>" for rule in by_size(explanation))
    yield "</ul>"
    yield '<table class="few"><thead><tr><th>role</th><th>rule</th><th class="number spare">tensors</th>'
    yield '<th class="number">parameters</th><th class="number spare">share</th><th class="number">state</th>'
    yield '<th class="number">a step</th></tr></thead><tbody>'
    for share in shares:
        unknown = ' class="of-unknown"' if share.role == "unknown" else ""
        flops = "?" if share.flops is None else spell_flops(share.flops)
        yield (
            f"<tr{unknown}><td>{escape(share.role)}</td><td>{colors.chip(share.rule)}{escape(share.rule)}</td>"
            f'<td class="number spare">{share.tensors}</td><td class="number">{spell_count(share.elements)}</td>'
            f'<td class="number spare">{share.elements / total:.1%}</td>'
            f'<td class="number">{spell_bytes(share.state_bytes)}</td><td class="number">{flops}</td></tr>'
        )
    yield "</tbody></table>"
    for sentence in sentences(explanation):
        yield f'<p class="soft">{escape(sentence[0].upper() + sentence[1:])}.</p>'
    yield (
        '<p class="soft">Operations are those of the second step as an accelerator runs it: 2 for each multiplication '
        "and addition of a matrix product, 1 for each element of another result.</p>"
    )


def _picture(explanation: Explanation, colors: _Colors) -> Iterator[str]:
    """A block for every layer, in it a cell for every parameter, areas in proportion to elements."""
    total = explanation.elements
    drawn = [row for row in explanation.rows if row.numel > _SMALLEST * total]
    if not drawn:
        return
    blocks: dict[str, list[Row]] = {}
    for row in drawn:
        blocks.setdefault(_block(row.name), []).append(row)
    order = sorted(blocks, key=lambda name: -sum(row.numel for row in blocks[name]))
    sizes = [sum(row.numel for row in blocks[name]) for name in order]
    yield "<h2>The model</h2>"
    yield (
        '<p class="soft">Areas are in proportion to elements, colours are rules, heavy lines are layers. '
        "Point at a cell, or tap it; the table below has the same.</p>"
    )
    yield '<div class="map" id="map" role="img" aria-label="The parameters as areas, coloured by rule">'
    for name, outer in zip(order, treemap(sizes, Box(0, 0, 200, 100)), strict=True):
        cells = _cells_of(blocks[name], merged=len(drawn) > MOST_CELLS)
        inner = treemap([sum(row.numel for row in rows) for _, rows in cells], outer)
        for (spelled, rows), box in zip(cells, inner, strict=True):
            yield _cell(spelled, rows, box, colors)
        yield f'<b style="{_place(outer)}"></b>'
    yield "</div>"
    small = len(explanation.rows) - len(drawn)
    note = f"{small} tensor{'s are' if small != 1 else ' is'} too small to draw. " if small else ""
    yield f'<p id="said" class="soft" aria-live="polite">{note}</p>'


def _block(name: str) -> str:
    """The part of a name up to its first number, which is the layer; the whole of one without."""
    found = NUMBER.search(name)
    return name[: found.end()] if found else name


def _cells_of(rows: Sequence[Row], merged: bool) -> list[tuple[str, list[Row]]]:
    if not merged:
        cells = [(row.name, [row]) for row in rows]
    else:
        cells = list(collapse(rows, lambda row: row.name, lambda row: repr(row[1:])))
    return sorted(cells, key=lambda cell: -sum(row.numel for row in cell[1]))


def _cell(name: str, rows: Sequence[Row], box: Box, colors: _Colors) -> str:
    row = rows[0]
    many = f"{len(rows)} of " if len(rows) > 1 else ""
    title = f"{name}: {many}{spell_shape(row)}, {row.role}, {row.rule}, {spell_count(row.numel)} parameters"
    label = ".".join(part for part in name.split(".") if part != "weight").rpartition(".")[2]
    fits = box.width > len(label) + 1 and box.height > 2.5  # of 200 by 100, on a page of 1200 px
    style = colors.paint(row.role, row.rule).strip()
    if not fits:
        style = (
            style.replace('class="unknown"', 'class="unknown tiny"') if "class" in style else f'class="tiny" {style}'
        )
    return f'<i {style};{_place(box)}" title="{escape(title)}">{escape(label) if fits else ""}</i>'


def _place(box: Box) -> str:
    x, y, width, height = box
    return f"left:{x / 2:.3f}%;top:{y:.3f}%;width:{width / 2:.3f}%;height:{height:.3f}%"


def _rows(explanation: Explanation, colors: _Colors) -> Iterator[str]:
    lines = lines_of(explanation.rows)
    roles = dict.fromkeys(line.rows[0].role for line in lines)
    yield "<h2>What each parameter gets, and why</h2>"
    yield '<div class="controls" id="controls" hidden>'
    yield '<input id="text" type="search" placeholder="filter" aria-label="filter the table by text">'
    yield '<select id="role" aria-label="filter the table by role"><option value="">all roles</option>'
    yield "".join(f'<option value="{escape(role)}">{escape(role)}</option>' for role in roles)
    yield '</select><span id="count" class="soft" role="status"></span></div>'
    heads = ("name", "shape", "role", "rule", "lr", "decay", "state", "a step", "reason")
    cells = (f'<th scope="col"{_NUMBER_HEAD if head in _NUMERIC else ""}>{head}</th>' for head in heads)
    yield '<div class="wide"><table class="big" id="rows" role="table">'
    yield f"<thead><tr>{''.join(cells)}</tr></thead><tbody>"
    yield from (_line(line.name, line.rows, colors) for line in lines)
    yield "</tbody></table></div>"


_NUMERIC = ("lr", "decay", "state", "a step")
_NUMBER_HEAD = ' class="number"'


def _line(name: str, rows: Sequence[Row], colors: _Colors) -> str:
    row, count = rows[0], len(rows)
    many = f' <span class="soft">&times;{count}</span>' if count > 1 else ""
    unknown = ' class="of-unknown"' if row.role == "unknown" else ""
    state = count * row.state_bytes
    flops = None if row.flops is None else count * row.flops
    numbers = [
        ("lr", row.lr, f"{row.lr:g}"),
        ("decay", row.weight_decay, f"{row.weight_decay:g}"),
        ("state", state, spell_bytes(state)),
        ("a step", flops or 0, "?" if flops is None else spell_flops(flops)),
    ]
    spelled = "".join(
        f'<td role="cell" class="number" data-label="{label}" data-value="{value!r}">{said}</td>'
        for label, value, said in numbers
    )
    return (
        f'<tr role="row"{unknown} data-role="{escape(row.role)}"><td role="cell" class="name">{escape(name)}{many}</td>'
        f'<td role="cell" data-value="{row.numel}">{spell_shape(row)}</td><td role="cell">{escape(row.role)}</td>'
        f'<td role="cell" class="rule">{colors.chip(row.rule)}{escape(row.rule)}</td>{spelled}'
        f'<td role="cell" class="reason">{escape(reason_with_view(row))}</td></tr>'
    )
