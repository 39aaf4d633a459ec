"""The style and the script of an explanation's page. Nothing is loaded from anywhere."""

STYLE = """
:root {
  color-scheme: light dark;
  --page: #ffffff; --ink: #1b1f24; --soft: #59636e; --line: #d5dae0; --band: #f5f7f9; --alarm: #b3261e;
  --c0: #8fc1f5; --c1: #93d8ab; --c2: #f3b184; --c3: #cdb2f2; --c4: #f4d06f; --c5: #f2a3bb; --c6: #8bd7d6;
  --c7: #c4cf78; --plain: #d3d9df; --mark: #10202f;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #12161b; --ink: #e4e9ee; --soft: #9aa5b1; --line: #313942; --band: #1a2027; --alarm: #ff8a80;
    --c0: #2f659c; --c1: #2f7448; --c2: #95582b; --c3: #69499a; --c4: #7a6118; --c5: #944360; --c6: #226c6b;
    --c7: #5f6a1c; --plain: #465059; --mark: #ffffff;
  }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 75rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin: 2.25rem 0 .6rem; }
p { margin: .4rem 0; }
.soft { color: var(--soft); }
code, td.name { font-family: ui-monospace, monospace; font-size: .87em; overflow-wrap: anywhere; }
dl.facts { display: flex; flex-wrap: wrap; gap: .75rem 2.5rem; margin: 1rem 0 0; }
dl.facts dt { color: var(--soft); font-size: .85rem; }
dl.facts dd { margin: 0; font-size: 1.35rem; font-weight: 600; }
dl.facts dd small { display: block; font-size: .8rem; font-weight: 400; color: var(--soft); }
.bar { display: flex; height: 2rem; border-radius: .3rem; overflow: hidden; gap: 1px; background: var(--line); }
.bar span { color: var(--mark); font-size: .8rem; line-height: 2rem; padding: 0 .4rem; overflow: hidden;
  white-space: nowrap; min-width: 0; text-overflow: ellipsis; }
.bar span.thin { padding: 0; }
ul.legend { list-style: none; display: flex; flex-wrap: wrap; gap: .2rem 1.25rem; padding: 0; margin: .6rem 0; }
.chip { display: inline-block; width: .8em; height: .8em; border-radius: .2em; margin-right: .4em;
  vertical-align: -.05em; border: 1px solid var(--line); }
.map { position: relative; width: 100%; aspect-ratio: 2 / 1; background: var(--line); border-radius: .3rem;
  overflow: hidden; }
.map i { position: absolute; font-style: normal; overflow: hidden; color: var(--mark); font-size: .7rem;
  line-height: 1.2; padding: 1px 3px; box-shadow: inset 0 0 0 .5px var(--page); white-space: nowrap; }
.map i.tiny { padding: 0; }
.map b { position: absolute; box-shadow: inset 0 0 0 2px var(--page), 0 0 0 1px var(--page); pointer-events: none; }
.map i:hover, .map i.on { outline: 2px solid var(--ink); outline-offset: -2px; }
.unknown { color: #fff !important;
  background: repeating-linear-gradient(45deg, #b3261e 0 6px, #7d1a15 6px 12px) !important; }
#said { min-height: 3em; overflow-wrap: anywhere; }
.alarm { border: 2px solid var(--alarm); border-radius: .4rem; padding: .75rem 1rem; margin-top: 2rem; }
.alarm h2 { color: var(--alarm); margin-top: 0; }
.controls { display: flex; flex-wrap: wrap; gap: .5rem; margin-bottom: .5rem; }
.controls[hidden] { display: none; }
.controls input, .controls select { font: inherit; color: inherit; background: var(--band); padding: .3rem .5rem;
  border: 1px solid var(--line); border-radius: .3rem; max-width: 100%; }
.controls input { flex: 1 1 14rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; }
th, td { text-align: left; padding: .35rem .8rem .35rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th { font-weight: 600; white-space: nowrap; }
th button { font: inherit; color: inherit; background: none; border: 0; padding: 0; cursor: pointer; }
th[aria-sort="ascending"] button::after { content: " \\2191"; }
th[aria-sort="descending"] button::after { content: " \\2193"; }
td.rule { white-space: nowrap; }
td.name { min-width: 15rem; }
td.number, th.number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
td.reason { color: var(--soft); min-width: 14rem; }
tr.of-unknown td { color: var(--alarm); font-weight: 600; }
:focus-visible { outline: 2px solid #2f7fd6; outline-offset: 2px; }
@media (max-width: 62rem) {
  .map { aspect-ratio: 3 / 4; }
  .map i { font-size: 0; }
  .big thead { display: none; }
  .big, .big tbody { display: block; }
  .big tr { display: flex; flex-wrap: wrap; gap: 0 1rem; border-bottom: 1px solid var(--line); padding: .6rem 0; }
  .big tr[hidden] { display: none; }
  .big td { border: 0; padding: 0; text-align: left; }
  .big td.name, .big td.reason { flex: 0 0 100%; }
  .big td.name { font-weight: 600; min-width: 0; }
  .big td[data-label]::before { content: attr(data-label) " "; color: var(--soft); font-size: .85em; }
  .few th, .few td { padding-right: .5rem; font-size: .82rem; }
  .few .spare { display: none; }
}
@media print { .controls { display: none; } * { print-color-adjust: exact; -webkit-print-color-adjust: exact; } }
"""

SCRIPT = """
(function () {
  "use strict";
  var map = document.getElementById("map"), said = document.getElementById("said"), chosen = null;
  function tell(event) {
    var cell = event.target.closest("i");
    if (!cell || cell === chosen) return;
    if (chosen) chosen.classList.remove("on");
    chosen = cell;
    cell.classList.add("on");
    said.textContent = cell.title;
  }
  if (map) {
    map.addEventListener("click", tell);
    map.addEventListener("mouseover", tell);
  }
  var table = document.getElementById("rows");
  if (!table) return;
  var body = table.tBodies[0], rows = Array.prototype.slice.call(body.rows);
  var text = document.getElementById("text"), role = document.getElementById("role");
  var count = document.getElementById("count");
  function filter() {
    var wanted = text.value.toLowerCase(), shown = 0;
    rows.forEach(function (row) {
      var fits = (!role.value || row.dataset.role === role.value) &&
        row.textContent.toLowerCase().indexOf(wanted) >= 0;
      row.hidden = !fits;
      shown += fits ? 1 : 0;
    });
    count.textContent = shown + " of " + rows.length + " lines";
  }
  document.getElementById("controls").hidden = false;
  text.addEventListener("input", filter);
  role.addEventListener("change", filter);
  filter();
  function key(row, column) {
    var cell = row.cells[column];
    return cell.dataset.value === undefined ? cell.textContent : Number(cell.dataset.value);
  }
  Array.prototype.forEach.call(table.tHead.rows[0].cells, function (head, column) {
    var button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    head.textContent = "";
    head.appendChild(button);
    button.addEventListener("click", function () {
      var down = head.getAttribute("aria-sort") === "ascending";
      Array.prototype.forEach.call(table.tHead.rows[0].cells, function (other) {
        other.removeAttribute("aria-sort");
      });
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      rows.sort(function (left, right) {
        var a = key(left, column), b = key(right, column);
        var order = typeof a === "number" ? a - b : a.localeCompare(b, undefined, {numeric: true});
        return down ? -order : order;
      });
      rows.forEach(function (row) { body.appendChild(row); });
    });
  });
})();
"""
