"""Lay out the pages of the site: those of docs/, and whatever of the repository they link to.

    python docs/site/pages.py FOLDER

Pages in docs/ are written for a reader of the repository: their links lead to sources and results beside docs/. On the
site such a target becomes a page of its own under `repository/` (a picture or JSON a copy), so that every link works
in both places, without a network, and before the repository has an address. Any generator of Python-Markdown reads the
outcome.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).parents[2]
ELSEWHERE = "repository"
_CODE = re.compile(r"^(?P<fence>```+|~~~+).*?^(?P=fence)[^\n]*$|(?P<tick>`+)(?:(?!\n\n).)+?(?P=tick)(?!`)", re.M | re.S)
_LINK = re.compile(r"(?P<before>\]\()(?P<target>[^)#\s:]+)(?P<anchor>#[^)\s]*)?(?=\))")
_MARKER = re.compile(r"^<!-- reference: (?P<names>[\w., ]+) -->$", re.M)
_COPIED = {".png", ".svg", ".json", ".html", ".pdf"}
_LANGUAGES = {".py": "python", ".yaml": "yaml", ".yml": "yaml", ".toml": "toml", ".sh": "bash", ".c": "c", ".h": "c"}


def assemble(out: Path, reference: Callable[[str], str]) -> list[Path]:
    """Write the site's pages under `out`, which is emptied first; `reference` documents a dotted name in Markdown.

    Returns what was read, for a server to watch. Raises FileNotFoundError for a link that leads nowhere.
    """
    shutil.rmtree(out, ignore_errors=True)
    read: list[Path] = []
    queue = sorted(page for page in (ROOT / "docs").rglob("*.md") if page.parent.name != "site")
    seen = set(queue)
    while queue:
        source = queue.pop(0)
        read.append(source)
        place = out / place_of(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        if source.suffix in _COPIED:
            shutil.copyfile(source, place)
            continue
        text, targets = _rewritten(_text(source), source)
        text = _MARKER.sub(lambda found: "\n\n".join(map(reference, found["names"].replace(",", " ").split())), text)
        place.write_text(text, encoding="utf-8")
        queue += [target for target in targets if target not in seen]
        seen.update(targets)
    for asset in (ROOT / "docs" / "site").iterdir():
        if asset.suffix in (".css", ".js"):
            shutil.copyfile(asset, out / asset.name)
    return read


def place_of(source: Path) -> PurePosixPath:
    """Where a file or folder of the repository stands on the site, relative to its pages."""
    path = PurePosixPath(source.relative_to(ROOT).as_posix())
    if path.parts[:1] == ("docs",):
        return path.relative_to("docs")
    if source.is_dir():
        return ELSEWHERE / path / "files.md"
    return ELSEWHERE / (path if source.suffix in _COPIED | {".md"} else path.with_name(f"{path.name}.md"))


def _text(source: Path) -> str:
    """A Markdown file as it is; a folder as a list of its files, another file as a page that shows it."""
    if source.suffix == ".md":
        return source.read_text(encoding="utf-8")
    title = f"# {source.relative_to(ROOT).as_posix()}\n\n"
    if source.is_dir():
        names = sorted(entry.name for entry in source.iterdir() if entry.is_file() and not entry.name.startswith("."))
        return title + "\n".join(f"- [{name}]({name})" for name in names) + "\n"
    fence = "~" * 8
    language = _LANGUAGES.get(source.suffix, "text")
    return f"{title}{fence} {language}\n{source.read_text(encoding='utf-8').rstrip()}\n{fence}\n"


def _rewritten(text: str, source: Path) -> tuple[str, list[Path]]:
    """`text` with its links as they are on the site, and the files that they lead to."""
    folder = source if source.is_dir() else source.parent
    here = place_of(source).parent
    targets: list[Path] = []

    def moved(link: re.Match[str]) -> str:
        target = Path(os.path.normpath(folder / link["target"]))
        if not target.exists():
            raise FileNotFoundError(f"{source.relative_to(ROOT)} links to {link['target']}, which is not there")
        targets.append(target)
        return link["before"] + os.path.relpath(place_of(target), here) + (link["anchor"] or "")

    parts, end = [], 0
    for code in _CODE.finditer(text):  # what looks like a link in code is none
        parts += [_LINK.sub(moved, text[end : code.start()]), code.group()]
        end = code.end()
    return "".join([*parts, _LINK.sub(moved, text[end:])]), targets


if __name__ == "__main__":
    from reference import reference

    assemble(Path(sys.argv[1]), reference)
