"""The style and the script of the report's page. Nothing is loaded from anywhere, and no picture needs the script."""

LIGHT = ("#3d454d", "#0067b1", "#c8480a", "#007a57", "#b03a8c", "#7d7912", "#2b93c9", "#7a3e1d", "#6a51c7")
DARK = ("#c3cbd3", "#56aef5", "#ff8f52", "#2fc896", "#ec8fd0", "#e0b62f", "#8fdcf7", "#c98e6a", "#9579fc")
"""Hues 0 to 8, told apart by colour-blind readers too; 0 is the reference's. Each comes with a shape of its own."""

_HUES = "\n".join(f".c{k} {{ --c: var(--c{k}); }}" for k in range(len(LIGHT)))


def _named(colors: tuple[str, ...]) -> str:
    return " ".join(f"--c{k}: {color};" for k, color in enumerate(colors))


_LIGHT = (
    f"--page: #f3f5f7; --card: #ffffff; --ink: #1b1f24; --soft: #57606a; --line: #d8dde3; --grid: #e6eaee; "
    f"--good: #116329; --bad: #b3261e; --link: #0b57a4; --faint: #a4adb6; {_named(LIGHT)}"
)
_DARK = (
    f"--page: #0e1216; --card: #171c22; --ink: #e4e9ee; --soft: #9fabb7; --line: #323a43; --grid: #262d35; "
    f"--good: #5fd38a; --bad: #ff8a80; --link: #7db8f5; --faint: #66717c; {_named(DARK)}"
)

STYLE = (
    f"""
:root {{ color-scheme: light; {_LIGHT} }}
@media (prefers-color-scheme: dark) {{ :root:not([data-theme="light"]) {{ color-scheme: dark; {_DARK} }} }}
:root[data-theme="dark"] {{ color-scheme: dark; {_DARK} }}
{_HUES}
.c-faint {{ --c: var(--faint); }}
"""
    + """
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main, header, footer { max-width: 60rem; margin: 0 auto; padding: 0 1rem; }
header { padding-top: 1.75rem; display: flex; flex-wrap: wrap; gap: .5rem 1rem; align-items: flex-start; }
header > div { flex: 1 1 18rem; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 0; }
h2 { font-size: 1.25rem; line-height: 1.3; margin: 2.75rem 0 .5rem; overflow-wrap: anywhere; scroll-margin-top: 1rem; }
h3 { font-size: 1rem; line-height: 1.35; margin: 0; }
p { margin: .4rem 0; max-width: 46rem; }
a { color: var(--link); }
code { font-family: ui-monospace, monospace; font-size: .88em; overflow-wrap: anywhere; }
.soft, figcaption, .source, .note { color: var(--soft); }
button { font: inherit; font-size: .88rem; color: var(--ink); background: var(--card); border: 1px solid var(--line);
  border-radius: .4rem; padding: .3rem .75rem; cursor: pointer; min-height: 2rem; }
button:hover { border-color: var(--soft); }
:focus-visible { outline: 2px solid var(--link); outline-offset: 2px; }
nav ul { list-style: none; display: flex; flex-wrap: wrap; gap: .3rem 1.1rem; padding: 0; margin: 1rem 0 0; }
figure, .card { background: var(--card); border: 1px solid var(--line); border-radius: .6rem; padding: 1rem 1.25rem;
  margin: .9rem 0; min-width: 0; }
figcaption { font-size: .9rem; margin: .15rem 0 .6rem; max-width: 46rem; }
svg { display: block; width: 100%; height: auto; overflow: visible; }
svg text { font: 12px system-ui, sans-serif; fill: var(--ink); paint-order: stroke; stroke: var(--card);
  stroke-width: 3px; stroke-linejoin: round; }
svg .tick { fill: var(--soft); }
svg .strong { font-weight: 600; }
svg .name { fill: var(--c); font-weight: 600; }
svg .number { font-variant-numeric: tabular-nums; }
svg .grid { stroke: var(--grid); }
svg .axis, svg .zero { stroke: var(--soft); }
svg .reference { stroke: var(--ink); stroke-dasharray: 4 3; }
svg .fill { fill: var(--c); }
svg .mark { stroke: var(--card); stroke-width: 1; }
svg .ring { fill: none; stroke: var(--c); stroke-width: 2; }
svg .line, svg .thin, svg .leader { fill: none; stroke: var(--c); stroke-width: 2; stroke-linejoin: round; }
svg .thin { stroke-width: 1.1; opacity: .75; }
svg .leader { stroke-width: 1; opacity: .6; }
svg .band { fill: var(--c); opacity: .17; }
svg .whisker { stroke: var(--ink); stroke-width: 1.5; }
svg .interval { stroke: var(--c); stroke-width: 1.75; }
svg .cut { fill: var(--card); }
svg .on { stroke: var(--ink); stroke-width: 2.5; opacity: 1; }
.narrow { display: none; max-width: 30rem; margin: 0 auto; }
.panels { display: grid; grid-template-columns: repeat(auto-fill, minmax(10.2rem, 1fr)); gap: 1rem .75rem; }
ul.legend { list-style: none; display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; padding: 0; margin: 0 0 .6rem;
  font-size: .88rem; }
ul.legend.narrow { display: none; }
ul.legend svg { display: inline-block; width: 14px; height: 14px; margin-right: .35rem; vertical-align: -2px; }
.source { font-size: .85rem; margin-top: .7rem; max-width: none; overflow-wrap: anywhere; }
details { font-size: .88rem; margin-top: .35rem; }
summary { cursor: pointer; color: var(--soft); padding: .15rem 0; }
.wide-table { overflow-x: auto; }
.wide-table:focus-visible { outline-offset: 0; }
table { border-collapse: collapse; width: 100%; font-size: .88rem; }
th, td { text-align: left; padding: .35rem .9rem .35rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th { font-weight: 600; }
thead th { color: var(--soft); white-space: nowrap; }
td.number, th.number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
td.words, th.words { min-width: 11rem; }
td.brief { white-space: nowrap; }
ul.verdicts { padding-left: 1.1rem; margin: .5rem 0; max-width: 50rem; }
ul.verdicts li { margin: .25rem 0; overflow-wrap: anywhere; }
.holds { color: var(--good); font-weight: 600; white-space: nowrap; }
.fails { color: var(--bad); font-weight: 600; white-space: nowrap; }
.unmeasured { color: var(--soft); white-space: nowrap; }
.alarm { border-color: var(--bad); }
dl.facts { display: flex; flex-wrap: wrap; gap: .6rem 2.25rem; margin: 1.25rem 0 0; }
dl.facts dt { color: var(--soft); font-size: .85rem; }
dl.facts dd { margin: 0; font-size: 1.2rem; font-weight: 600; }
footer { padding-top: 2rem; padding-bottom: 4rem; font-size: .88rem; color: var(--soft); }
#tip { position: fixed; z-index: 9; pointer-events: none; background: var(--ink); color: var(--card); font-size: .84rem;
  line-height: 1.4; padding: .3rem .6rem; border-radius: .35rem; max-width: min(22rem, 90vw); white-space: pre-line; }
#tip[hidden] { display: none; }
@media (max-width: 52rem) {
  main, header, footer { padding-left: .75rem; padding-right: .75rem; }
  figure, .card { padding: .8rem .7rem; }
  .wide { display: none; }
  .narrow { display: block; }
  ul.legend.narrow { display: flex; max-width: none; }
}
@media print { button, nav, details { display: none; } body { background: #fff; } figure { break-inside: avoid; } }
"""
)

SCRIPT = """
(function () {
  "use strict";
  var root = document.documentElement, theme = document.getElementById("theme"), tip = document.getElementById("tip");
  var dark = window.matchMedia("(prefers-color-scheme: dark)");
  function isDark() { return root.dataset.theme ? root.dataset.theme === "dark" : dark.matches; }
  function say() { theme.textContent = isDark() ? "Light page" : "Dark page"; }
  theme.hidden = false;
  theme.addEventListener("click", function () { root.dataset.theme = isDark() ? "light" : "dark"; say(); });
  dark.addEventListener("change", say);
  say();

  Array.prototype.forEach.call(document.querySelectorAll("svg title"), function (title) {
    title.parentNode.dataset.tip = title.textContent;
    title.parentNode.removeChild(title);
  });
  var shown = null;
  function place(event) {
    var box = tip.getBoundingClientRect();
    var x = Math.min(event.clientX + 14, window.innerWidth - box.width - 6);
    var y = event.clientY - box.height - 12;
    tip.style.left = Math.max(6, x) + "px";
    tip.style.top = (y < 6 ? event.clientY + 18 : y) + "px";
  }
  function point(event) {
    var mark = event.target.closest ? event.target.closest("[data-tip]") : null;
    if (shown && shown !== mark) shown.classList.remove("on");
    shown = mark;
    tip.hidden = !mark;
    if (!mark) return;
    mark.classList.add("on");
    tip.textContent = mark.dataset.tip;
    place(event);
  }
  document.addEventListener("pointermove", point);
  document.addEventListener("pointerdown", point);

  document.addEventListener("click", function (event) {
    var button = event.target.closest ? event.target.closest("button[data-save]") : null;
    if (!button) return;
    var text = document.getElementById(button.dataset.save).textContent;
    var link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], {type: "application/json"}));
    link.download = button.dataset.name;
    link.click();
    setTimeout(function () { URL.revokeObjectURL(link.href); }, 1000);
  });
  Array.prototype.forEach.call(document.querySelectorAll("button[data-save]"), function (button) {
    button.hidden = false;
  });
})();
"""
