"""What an explanation comes to: shares of roles, memory, the cost of a step, and what nobody knows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from orthoopt.explain_lines import UNKNOWN, Line, Styles, lines_of, spell_shape
from orthoopt.explain_names import pattern_of
from orthoopt.explanation import Explanation, Row, Share
from orthoopt.terminal import Cell, Paint, aligned, wrapped
from orthoopt.units import spell_bytes, spell_count, spell_flops

_INDENT = "    "


def summary(explanation: Explanation, width: int | None, paint: Paint, styles: Styles) -> Iterator[str]:
    """The whole in a few lines, and what the parameters of each role come to."""
    count = len(explanation.rows)
    said = f"{spell_count(explanation.elements)} parameters in {count} tensor{'s' * (count != 1)}"
    whose = f"{explanation.model}: " if explanation.model else ""
    settings = f"plan {explanation.plan}, lr {explanation.lr:g}, weight decay {explanation.weight_decay:g}"
    yield from wrapped(f"{whose}{said}; {settings}", width)
    yield ""
    shares = sorted(explanation.shares, key=lambda share: -share.elements)
    if paint.on:
        yield from _bar(shares, explanation.elements, min(width or 80, 100), paint, styles)
    yield from _share_table(shares, explanation.elements, width, paint, styles)
    yield ""
    for sentence in sentences(explanation):
        yield from wrapped(sentence, width)


def _share_table(
    shares: Sequence[Share], elements: int, width: int | None, paint: Paint, styles: Styles
) -> Iterator[str]:
    words = ("role", "rule", "tensors", "parameters", "share", "state", "a step")
    header = [Cell(word, ("bold",)) for word in words]
    rows = [
        [
            styles.role(share.role), styles.rule(share.rule), Cell(str(share.tensors)),
            Cell(spell_count(share.elements)), Cell(f"{share.elements / max(elements, 1):.1%}"),
            Cell(spell_bytes(share.state_bytes)), Cell("?" if share.flops is None else spell_flops(share.flops)),
        ]
        for share in shares
    ]  # fmt: skip
    kept = list(range(len(words)))
    lines = aligned([header, *rows], paint, right=range(2, 7))
    for dropped in (2, 3):  # what fits in the narrowest terminal is the share, state and cost
        if width is not None and max(line.width for line in lines) > width:
            kept.remove(dropped)
            table = [[row[place] for place in kept] for row in (header, *rows)]
            lines = aligned(table, paint, right=range(2, len(kept)))
    yield from (line.text for line in lines)


def _bar(shares: Sequence[Share], elements: int, width: int, paint: Paint, styles: Styles) -> Iterator[str]:
    """One line filled by the rules' colours, as long as their shares of the elements; only where there are colours."""
    sizes: dict[str, int] = {}
    for share in shares:
        sizes[share.rule] = sizes.get(share.rule, 0) + share.elements
    ends, parts, filled = 0, [], 0
    for rule, size in sizes.items():
        ends += size
        stop = round(width * ends / max(elements, 1))
        if stop > filled:
            label = rule.center(stop - filled) if stop - filled > len(rule) + 1 else " " * (stop - filled)
            parts.append(paint(label, "reverse", *styles.rule(rule).styles))
            filled = stop
    yield "".join(parts)
    yield ""


def sentences(explanation: Explanation) -> Iterator[str]:
    """Memory and cost of a step, in words."""
    own, adamw = explanation.state_bytes, explanation.adamw_state_bytes
    yield f"optimizer state {spell_bytes(own)}; AdamW's would be {spell_bytes(adamw)} (ratio {own / max(adamw, 1):.2f})"
    flops, products = explanation.flops, explanation.matmul_flops
    if flops is None or products is None:
        uncounted = dict.fromkeys(row.rule for row in explanation.rows if row.flops is None)
        yield f"the cost of a step is not known: {', '.join(uncounted)} cannot run without values"
        return
    part = products / max(flops, 1)
    share = "more than 99.9%" if 0.9995 < part < 1 else f"{part:.1%}"
    said = f"a step costs {spell_flops(flops)}, {share} of it in matrix products"
    weights = _used_by_every_token(explanation.rows)
    if weights:
        tokens = spell_count(flops / (6 * weights))
        said += f": as much as training on {tokens} tokens, at 6 FLOP a token for each of the {spell_count(weights)}"
        said += " weights that multiply it"
    yield said


def _used_by_every_token(rows: Sequence[Row]) -> int:
    """Elements of the matrices that every token is multiplied by, once; 0 where the rows cannot tell.

    Experts see some tokens, kernels see each input many times, and of the unknown nobody knows.
    """
    roles = {row.role for row in rows}
    if roles & {"expert_in", "expert_out", "router", "conv", "unknown"} or "attention" not in roles:
        return 0
    return sum(row.numel for row in rows if row.role not in ("embedding", "vector"))


def unsettled(explanation: Explanation, width: int | None, paint: Paint) -> Iterator[str]:
    """The parameters of unknown role, what would settle it, and those that only their shapes speak for."""
    unknown = [row for row in explanation.rows if row.role == "unknown"]
    lines = lines_of(unknown)
    if lines:
        shown = ", ".join(line.name for line in lines[:3]) + (", ..." if len(lines) > 3 else "")
        title = f"!! {len(unknown)} of unknown role: {shown}"
        yield from (paint(part, *UNKNOWN) for part in wrapped(title, width))
        for line in lines:
            row = line.rows[0]
            shape = spell_shape(row)
            yield from wrapped(f"{line.name} ({shape}, {row.rule}): {row.reason}", width, _INDENT)
        yield from wrapped(f"What would settle it: {way_out(lines)}", width)
    guessed = [row for row in explanation.rows if "by shape" in row.reason and row.role not in ("unknown", "vector")]
    if guessed:
        if lines:
            yield ""
        names = ", ".join(line.name for line in lines_of(guessed)[:3])
        said = f"? {len(guessed)} matrices have their role by shape alone: {names}. The model itself would tell more"
        yield from (paint(part, "yellow") for part in wrapped(said, width))


def way_out(lines: Sequence[Line]) -> str:
    """What the user may write so that these lines of unknown role get one."""
    if lines[0].name.startswith("params["):
        return "the model itself, or its named_parameters(), instead of bare tensors"
    pairs = [f'(r"{pattern_of(line.rows[0].name)}", {{"role": "hidden", "view": "matrix"}})' for line in lines[:3]]
    return f"{', '.join(pairs)} among the overrides, with the role that it has"
